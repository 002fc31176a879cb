//! The command line: one verb per file.

mod agent;
mod ask;
mod cert;
mod conflicts;
mod down;
mod endpoints;
mod init;
mod logs;
mod node;
mod progress;
mod psql;
mod repl;
mod sample;
mod status;
mod table;
mod up;
mod verify;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::layout::{self, Cluster};
use crate::tasks::Shutdown;

/// Exit code: it failed, or the answer is no.
const FAILURE: u8 = 1;
/// Exit code of `status`, `repl` and `conflicts`: the cluster works, but not all of it.
const DEGRADED: u8 = 3;
/// Exit code of `verify`: the nodes do not hold the same rows.
const DIFFERENT: u8 = 4;

/// One database made of stock PostgreSQL servers.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 (status, repl, conflicts) works, but not all of it, 4 (verify) the
/// nodes differ.
#[derive(Parser)]
#[command(name = "synapsedb", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes, if there is none, and runs a cluster on this machine
    Up(up::Arguments),
    /// Stops the cluster on this machine
    Down(down::Arguments),
    /// Shows how the cluster is
    Status(status::Arguments),
    /// Opens psql on an endpoint or a node
    Psql(psql::Arguments),
    /// Shows how far the nodes are behind each other, and what could not be applied
    Repl(repl::Arguments),
    /// Shows conflicts and how they were settled
    #[command(subcommand)]
    Conflicts(conflicts::Command),
    /// Compares the rows of all nodes
    Verify(verify::Arguments),
    /// Prints the logs of the agents or of the PostgreSQL servers
    Logs(logs::Arguments),
    /// Makes the directory of a cluster without starting anything
    Init(init::Arguments),
    /// Runs one agent
    Agent(agent::Arguments),
    /// Lists, adds, re-seeds and removes nodes of the running cluster
    #[command(subcommand)]
    Node(node::Command),
    /// Works on configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Makes certificates
    #[command(subcommand)]
    Cert(cert::Command),
    /// Runs the agents of a cluster: what `up --detach` leaves behind
    #[command(hide = true)]
    Supervise(Data),
    /// Prints the version
    Version,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Prints OK, or everything that is wrong with a file
    Check {
        /// The agent's TOML file
        file: PathBuf,
    },
}

/// Where the cluster is.
#[derive(Args, Clone, Debug)]
struct Data {
    /// The cluster's directory [default: /var/lib/synapsedb as root, else ~/.local/share/synapsedb]
    #[arg(long = "data", value_name = "DIR", env = "SYNAPSEDB_DATA")]
    dir: Option<PathBuf>,
}

impl Data {
    /// The directory, absolute.
    fn path(&self) -> Result<PathBuf> {
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/synapsedb"),
            None => {
                let home = std::env::var_os("HOME")
                    .context("HOME is not set; name a directory with --data")?;
                PathBuf::from(home).join(".local/share/synapsedb")
            }
        };
        std::path::absolute(&dir).with_context(|| format!("--data {} is no path", dir.display()))
    }

    /// This directory, or the one that was named before the verb.
    fn or(&self, before: &Self) -> Self {
        Self { dir: self.dir.clone().or_else(|| before.dir.clone()) }
    }

    fn cluster(&self) -> Result<Cluster> {
        layout::load(&self.path()?)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let done = match cli.command {
        Command::Up(arguments) => up::run(&arguments),
        Command::Down(arguments) => down::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Psql(arguments) => psql::run(&arguments),
        Command::Repl(arguments) => repl::run(&arguments),
        Command::Conflicts(command) => conflicts::run(&command),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Logs(arguments) => logs::run(&arguments),
        Command::Init(arguments) => init::run(&arguments),
        Command::Agent(arguments) => agent::run(&arguments),
        Command::Config(ConfigCommand::Check { file }) => agent::check_file(&file),
        Command::Node(command) => node::run(&command),
        Command::Cert(command) => cert::run(&command),
        Command::Supervise(data) => up::supervise(&data),
        Command::Version => {
            say(format_args!("synapsedb {}", env!("CARGO_PKG_VERSION")));
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        tell(format_args!("synapsedb: {error:#}"));
        ExitCode::from(FAILURE)
    })
}

/// Prints a line. A reader that has gone (`… | head`) is no error.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a line for the person who waits. A terminal that has gone is no error.
fn tell(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes events to stderr. `SYNAPSEDB_LOG` chooses which: `info`, `debug`, `synapsedb::raft=trace,info`, …
fn log_to_stderr(default: &str) {
    let filter = std::env::var("SYNAPSEDB_LOG").unwrap_or_else(|_| default.to_owned());
    let filter = tracing_subscriber::EnvFilter::try_new(&filter)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    // A second call (in tests) keeps the first one's choice.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// The runtime of the agent and of the supervisor.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// Cancels `stop` at SIGTERM, SIGINT or SIGHUP.
async fn stop_on_signal(stop: Shutdown) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        _ = hangup.recv() => "SIGHUP",
        () = stop.cancelled() => return Ok(()),
    };
    tracing::info!("{name}: stopping");
    stop.cancel();
    Ok(())
}

/// The password for the role, from `POSTGRES_PASSWORD` or `POSTGRES_PASSWORD_FILE`, as the official images take it.
fn password_from_environment() -> Result<Option<String>> {
    let password =
        match (std::env::var("POSTGRES_PASSWORD"), std::env::var("POSTGRES_PASSWORD_FILE")) {
            (Ok(_), Ok(_)) => {
                bail!("POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE are both set; set one")
            }
            (Ok(password), Err(_)) => password,
            (Err(_), Ok(file)) => std::fs::read_to_string(&file)
                .with_context(|| format!("POSTGRES_PASSWORD_FILE {file} cannot be read"))?
                .trim_end_matches(['\r', '\n'])
                .to_owned(),
            (Err(_), Err(_)) => return Ok(None),
        };
    if password.is_empty() {
        bail!("the password from POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE is empty");
    }
    Ok(Some(password))
}
