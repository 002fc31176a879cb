//! `synapsedb psql`: PostgreSQL's own shell on an endpoint or a node.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Result, anyhow};

use super::{Data, endpoints};
use crate::postgres::{Binaries, DEFAULT_PASSWORD};

/// The arguments of `psql`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    data: Data,
    /// The node, 1 to 16 [default: the write endpoint]
    node: Option<u16>,
    /// The read endpoint
    #[arg(long, conflicts_with_all = ["node", "write"])]
    read: bool,
    /// The write endpoint
    #[arg(long, conflicts_with = "node")]
    write: bool,
    /// What psql is given as well, after `--`
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let cluster = arguments.data.cluster()?;
    let port = match arguments.node {
        Some(number) => cluster.node(number)?.ports.postgres,
        None if arguments.read => cluster.read_port,
        None => cluster.write_port,
    };
    let beside =
        Binaries::find(cluster.bin_dir.as_deref(), None).map(|found| found.program("psql"));
    let program = beside.ok().filter(|path| path.is_file()).unwrap_or_else(|| "psql".into());
    let mut command = Command::new(&program);
    command.arg(endpoints::url(&cluster, port)).args(&arguments.arguments);
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
