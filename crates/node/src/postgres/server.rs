//! The managed server's process: started as a child, or adopted from an agent that was killed.

use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tokio::process::Child;

use super::{Binaries, Config, OsUser, data_dir};
use crate::process::Process;

/// How long an immediate shutdown may take before the process is killed.
const IMMEDIATE: Duration = Duration::from_secs(5);
/// How much of the log is looked through for the reason of an end.
const LOG_TAIL_BYTES: u64 = 8 * 1024;

/// A running postmaster.
pub(super) struct Server {
    process: Process,
    /// `None` when it was adopted.
    child: Option<Child>,
    /// Where the log ended when it was started.
    log_from: u64,
}

/// What `postmaster.pid` says of a process that runs on the data directory.
struct Running {
    process: Process,
    port: Option<u16>,
    socket_dir: String,
}

impl Server {
    /// The server that already runs on the data directory, stopped first if it listens elsewhere than configured;
    /// else a new one.
    pub(super) async fn adopt_or_start(
        config: &Config,
        user: Option<&OsUser>,
        binaries: &Binaries,
    ) -> Result<Self> {
        let log_from = config.log_file.metadata().map_or(0, |metadata| metadata.len());
        if let Some(running) = running(&config.data_dir) {
            let mut server = Self { process: running.process, child: None, log_from };
            let socket_dir = config.socket_dir.display().to_string();
            if running.port == Some(config.port) && running.socket_dir == socket_dir {
                tracing::info!(pid = server.process.pid(), "adopted the running server");
                return Ok(server);
            }
            tracing::info!(
                pid = server.process.pid(),
                "the running server has other addresses: restarting it"
            );
            server.stop(Duration::from_millis(config.stop_timeout_ms)).await;
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&config.log_file)
            .with_context(|| format!("cannot open {}", config.log_file.display()))?;
        let mut command = data_dir::command(&binaries.program("postgres"), user);
        command.arg("-D").arg(&config.data_dir).stdout(log.try_clone()?).stderr(log);
        // Its own group: a Ctrl-C at the terminal is for the agent, which stops the server in order.
        command.process_group(0);
        let child =
            tokio::process::Command::from(command).spawn().context("cannot run postgres")?;
        let process = child.id().and_then(Process::find).context("postgres ended at once")?;
        tracing::info!(pid = process.pid(), "started the server");
        Ok(Self { process, child: Some(child), log_from })
    }

    /// Whether an agent before this one started it.
    pub(super) fn is_adopted(&self) -> bool {
        self.child.is_none()
    }

    /// Returns, with the reason, when the process has ended. Cancel safe.
    pub(super) async fn exited(&mut self, log_file: &Path) -> String {
        let how = match &mut self.child {
            Some(child) => match child.wait().await {
                Ok(status) => format!("postgres ended ({status})"),
                Err(error) => format!("postgres is lost: {error}"),
            },
            None => {
                self.process.gone().await;
                "postgres ended".to_owned()
            }
        };
        match last_words(log_file, self.log_from) {
            Some(words) => format!("{how}: {words}"),
            None => how,
        }
    }

    /// Stops it: fast, then immediately, then by force.
    pub(super) async fn stop(&mut self, timeout: Duration) {
        for (signal, wait) in
            [(Signal::INT, timeout), (Signal::QUIT, IMMEDIATE), (Signal::KILL, IMMEDIATE)]
        {
            self.process.signal(signal);
            let gone = async {
                match &mut self.child {
                    // A child must be waited for, or it stays a zombie.
                    Some(child) => drop(child.wait().await),
                    None => self.process.gone().await,
                }
            };
            if tokio::time::timeout(wait, gone).await.is_ok() {
                return;
            }
            tracing::warn!(pid = self.process.pid(), "the server did not stop within {wait:?}");
        }
    }
}

/// Stops a server that a killed agent left on a data directory; blocks. Tells its pid if there was one.
///
/// # Errors
/// When it does not stop; the text names its pid.
pub fn stop_leftover(data_dir: &Path, timeout: Duration) -> Result<Option<u32>> {
    let Some(running) = running(data_dir) else { return Ok(None) };
    let pid = running.process.pid();
    for (signal, wait) in
        [(Signal::INT, timeout), (Signal::QUIT, IMMEDIATE), (Signal::KILL, IMMEDIATE)]
    {
        running.process.signal(signal);
        if running.process.wait_gone(wait) {
            return Ok(Some(pid));
        }
    }
    anyhow::bail!("the PostgreSQL server with pid {pid} on {} does not stop", data_dir.display())
}

/// Whether a server runs on a data directory.
pub fn is_running(data_dir: &Path) -> bool {
    running(data_dir).is_some()
}

/// The postmaster on a data directory, if one runs. `postmaster.pid` alone proves nothing: after a crash its pid may
/// belong to any process.
fn running(data_dir: &Path) -> Option<Running> {
    let text = std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let process = Process::find(lines.first()?.parse().ok()?)?;
    let name = process.name()?;
    // A postmaster works in its data directory.
    let here = process.working_dir()? == data_dir.canonicalize().ok()?;
    (here && (name.starts_with("postgres") || name.starts_with("postmaster"))).then(|| Running {
        process,
        port: lines.get(3).and_then(|port| port.parse().ok()),
        socket_dir: lines.get(4).map(|dir| (*dir).to_owned()).unwrap_or_default(),
    })
}

/// What the log says, since `from`, that ended the server: the last fatal message and its hint.
fn last_words(log_file: &Path, from: u64) -> Option<String> {
    let mut file = std::fs::File::open(log_file).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(LOG_TAIL_BYTES)))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let said = |line: &str| -> Option<String> {
        ["FATAL:", "PANIC:", "HINT:"].iter().find_map(|level| {
            let (_, message) = line.split_once(level)?;
            Some(message.trim().to_owned())
        })
    };
    let words: Vec<String> = text.lines().filter_map(said).collect();
    let last = words.len().saturating_sub(2);
    (!words.is_empty()).then(|| words[last..].join("; "))
}
