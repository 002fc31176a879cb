//! A physical copy of another server, and a server on it that only this process reaches.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use synapsedb_core::lsn::Lsn;

use super::probe::{Probe, probe};
use super::server::{Server, stop_leftover};
use super::{Binaries, Config, OsUser, data_dir, target};

/// How often a server that starts is asked.
const POLL: Duration = Duration::from_millis(100);
/// The size of a WAL segment, which initdb is never told otherwise.
const SEGMENT_BYTES: u64 = 16 << 20;

/// A server to be copied.
#[derive(Clone, Debug)]
pub(crate) struct Original {
    /// Its port on this machine.
    pub(crate) port: u16,
    /// The agent's superuser role there.
    pub(crate) role: String,
    /// The password of that role.
    pub(crate) password: String,
    /// Its major version.
    pub(crate) major: u32,
}

/// What the names of unfinished copies begin with.
const PARTIAL: &str = "pgdata.copy-";

/// Another directory for every attempt: what an attempt that was killed still writes must not meet the next.
pub(crate) fn partial(config: &Config) -> Config {
    let name = format!("{PARTIAL}{}", uuid::Uuid::new_v4().simple());
    Config {
        data_dir: config.data_dir.with_file_name(name),
        listen: String::new(),
        ..config.clone()
    }
}

/// Removes what attempts that were killed have left, as far as nobody writes there any more.
pub(crate) fn clear(config: &Config) {
    let timeout = Duration::from_millis(config.stop_timeout_ms);
    let parent = config.data_dir.parent().map(std::fs::read_dir);
    for entry in parent.into_iter().flatten().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            let left = stop_leftover(&entry.path(), timeout)
                .and_then(|_| Ok(std::fs::remove_dir_all(entry.path())?));
            if let Err(error) = left {
                tracing::warn!("{} is left behind: {error:#}", entry.path().display());
            }
        }
    }
}

/// Copies a running server with `pg_basebackup` into `config.data_dir`, which is made. Blocks for as long as it takes.
///
/// # Errors
/// There are no programs of that version, the server refuses, or the disk does.
pub(crate) fn base_backup(config: &Config, original: &Original) -> Result<()> {
    let user = OsUser::for_server(&config.os_user)?;
    let binaries = Binaries::find(config.bin_dir.as_deref(), Some(original.major))?;
    let dir = &config.data_dir;
    std::fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700);
    std::fs::set_permissions(dir, mode)?;
    if let Some(user) = &user {
        user.own(dir)?;
    }
    let output = data_dir::command(&binaries.program("pg_basebackup"), user.as_ref())
        .env("PGPASSWORD", &original.password)
        .arg("--pgdata")
        .arg(dir)
        .args(["--host=127.0.0.1", "--wal-method=stream", "--checkpoint=fast", "--no-password"])
        .arg(format!("--port={}", original.port))
        .arg(format!("--username={}", original.role))
        .output()
        .context("cannot run pg_basebackup")?;
    ensure!(
        output.status.success(),
        "pg_basebackup failed: {}",
        String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")
    );
    Ok(())
}

/// Makes a stopped server's WAL go on after `lsn`.
///
/// # Errors
/// `pg_resetwal` fails.
pub(crate) fn begin_wal_after(config: &Config, lsn: Lsn, timeline: u32) -> Result<()> {
    let user = OsUser::for_server(&config.os_user)?;
    let binaries =
        Binaries::find(config.bin_dir.as_deref(), Some(data_dir::major_of(&config.data_dir)?))?;
    let segment = lsn.0 / SEGMENT_BYTES + 2;
    let per_log = (1_u64 << 32) / SEGMENT_BYTES;
    let name = format!("{timeline:08X}{:08X}{:08X}", segment / per_log, segment % per_log);
    let output = data_dir::command(&binaries.program("pg_resetwal"), user.as_ref())
        .arg("-l")
        .arg(&name)
        .arg("-D")
        .arg(&config.data_dir)
        .output()
        .context("cannot run pg_resetwal")?;
    ensure!(
        output.status.success(),
        "pg_resetwal failed: {}",
        String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")
    );
    Ok(())
}

/// A server on a copy.
pub(crate) struct Private {
    server: Server,
    config: Config,
    target: synapsedb_pg::Config,
}

impl Private {
    /// Starts the server and waits until it takes sessions, its recovery included.
    ///
    /// # Errors
    /// It ends, or takes longer than `postgres.start_timeout_ms`.
    pub(crate) async fn start(config: Config) -> Result<Self> {
        let user = OsUser::for_server(&config.os_user)?;
        let target = target(&config)?;
        let binaries = data_dir::prepare(&config, user.as_ref(), None)?;
        let server = Server::adopt_or_start(&config, user.as_ref(), &binaries).await?;
        let mut private = Self { server, config, target };
        let deadline = Instant::now() + Duration::from_millis(private.config.start_timeout_ms);
        loop {
            let why = tokio::select! {
                reason = private.server.exited(&private.config.log_file) => {
                    bail!("the server on the copy ended: {reason}");
                }
                answer = probe(&private.target, private.config.probe_timeout_ms) => match answer {
                    Probe::Alive(_) => return Ok(private),
                    Probe::Busy => "it is busy".to_owned(),
                    Probe::Starting(why) | Probe::Failed(why) => why,
                }
            };
            if Instant::now() > deadline {
                let log = private.config.log_file.display().to_string();
                private.stop().await;
                bail!("the server on the copy does not become ready ({why}); see {log}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// How it is reached.
    pub(crate) fn target(&self) -> &synapsedb_pg::Config {
        &self.target
    }

    /// Stops it in order.
    pub(crate) async fn stop(mut self) {
        self.server.stop(Duration::from_millis(self.config.stop_timeout_ms)).await;
    }
}
