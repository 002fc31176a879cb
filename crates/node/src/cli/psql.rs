//! `synapsedb psql`: PostgreSQL's own shell on an endpoint or a node.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Result, anyhow, bail};

use super::{Data, endpoints};
use crate::postgres::{Binaries, DEFAULT_PASSWORD};

/// The arguments of `psql`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    data: Data,
    /// The read endpoint
    #[arg(long, conflicts_with = "write")]
    read: bool,
    /// The write endpoint
    #[arg(long)]
    write: bool,
    /// The node, 1 to 16 [default: the write endpoint]; all else is given to psql, such as -c 'select 1'
    #[arg(
        value_name = "NODE | PSQL ARGUMENTS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let cluster = arguments.data.cluster()?;
    let (node, given) = split(&arguments.words);
    if node.is_some() && (arguments.read || arguments.write) {
        bail!("a node and an endpoint cannot both be meant: give one of them");
    }
    let port = match node {
        Some(number) => cluster.node(number)?.ports.postgres,
        None if arguments.read => cluster.read_port,
        None => cluster.write_port,
    };
    let beside =
        Binaries::find(cluster.bin_dir.as_deref(), None).map(|found| found.program("psql"));
    let program = beside.ok().filter(|path| path.is_file()).unwrap_or_else(|| "psql".into());
    let mut command = Command::new(&program);
    command.arg(endpoints::url(&cluster, port)).args(given);
    if std::env::var_os("PGPASSWORD").is_none() {
        let password = super::password_from_environment()?;
        if let Some(password) =
            password.or(cluster.default_password.then(|| DEFAULT_PASSWORD.to_owned()))
        {
            command.env("PGPASSWORD", password);
        }
    }
    Err(anyhow!("cannot run {}: {}", program.display(), command.exec()))
}

/// The node, if the first word is a number, and what is left for psql; a `--` between them is not needed.
fn split(words: &[String]) -> (Option<u16>, &[String]) {
    let (node, rest) = match words.split_first() {
        Some((first, rest)) => match first.parse() {
            Ok(node) => (Some(node), rest),
            Err(_) => (None, words),
        },
        None => (None, words),
    };
    (node, rest.strip_prefix(&["--".to_owned()]).unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_number_is_the_node_and_the_rest_is_for_psql() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(split(&words("2 -c x")), (Some(2), &words("-c x")[..]));
        assert_eq!(split(&words("2 -- -c x")), (Some(2), &words("-c x")[..]));
        assert_eq!(split(&words("-c 1")), (None, &words("-c 1")[..]));
        assert_eq!(split(&[]), (None, &[][..]));
    }
}
