//! `synapsedb agent`: one agent, and the check of its configuration.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use super::FAILURE;
use crate::config::AgentConfig;
use crate::pid_file::PidFile;
use crate::postgres::{self, Binaries, Mode};
use crate::tasks::Shutdown;

/// The arguments of `agent`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The agent's TOML file
    #[arg(long, value_name = "FILE", env = "SYNAPSEDB_CONFIG")]
    config: PathBuf,
    /// Checks the file and the PostgreSQL server once, and starts nothing
    #[arg(long)]
    check: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let config = match AgentConfig::load(&arguments.config) {
        Ok(config) => config,
        Err(problems) => {
            super::tell(format_args!("{problems}"));
            return Ok(ExitCode::from(FAILURE));
        }
    };
    if arguments.check {
        return check_server(&config);
    }
    super::log_to_stderr("info,openraft=warn");
    let dir = &config.node.data_dir;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let _lock = PidFile::acquire(&dir.join("agent.pid"))?;
    tracing::info!(
        node = config.node.id,
        cluster = %config.cluster.id,
        version = env!("CARGO_PKG_VERSION"),
        "the agent starts"
    );
    let runtime = super::runtime()?;
    let done = runtime.block_on(async {
        let stop = Shutdown::new();
        let signals = tokio::spawn(super::stop_on_signal(stop.clone()));
        let done = crate::node::run(config, &arguments.config, stop.clone()).await;
        stop.cancel();
        signals.await.context("the signal handler panicked")??;
        done
    });
    // A blocking call that hangs (a dead disk) must not keep the process.
    runtime.shutdown_background();
    match done {
        Ok(()) => {
            tracing::info!("the agent has stopped");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            tracing::error!("the agent ends: {error:#}");
            Ok(ExitCode::from(FAILURE))
        }
    }
}

/// `synapsedb config check FILE`.
pub(super) fn check_file(file: &Path) -> Result<ExitCode> {
    match AgentConfig::load(file) {
        Ok(_) => {
            super::say("OK");
            Ok(ExitCode::SUCCESS)
        }
        Err(problems) => {
            super::say(format_args!("{problems}"));
            Ok(ExitCode::from(FAILURE))
        }
    }
}

fn check_server(config: &AgentConfig) -> Result<ExitCode> {
    match config.postgres.mode {
        Mode::Managed => {
            let version = config.postgres.data_dir.join("PG_VERSION");
            let major =
                std::fs::read_to_string(version).ok().and_then(|text| text.trim().parse().ok());
            let binaries = Binaries::find(config.postgres.bin_dir.as_deref(), major)?;
            super::say(format_args!(
                "OK: PostgreSQL {} in {}",
                binaries.major,
                binaries.dir.display()
            ));
        }
        Mode::Attached => {
            match super::runtime()?.block_on(postgres::check_once(&config.postgres)) {
                Ok(facts) => {
                    super::say(format_args!("OK: PostgreSQL {} answers", facts.version / 10_000))
                }
                Err(problems) => {
                    problems.iter().for_each(|problem| super::say(format_args!("{problem}")));
                    return Ok(ExitCode::from(FAILURE));
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
