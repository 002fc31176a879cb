//! The PostgreSQL server beside the agent: made, started, supervised and stopped by it (*managed*), or run by somebody
//! else and only checked (*attached*).
//!
//! **Runs on:** every node. **Invariant:** at most one server runs on a data directory, and it survives the agent: a
//! new agent adopts the server that a killed one left.

mod attached;
mod binaries;
mod bootstrap;
pub(crate) mod copy;
mod data_dir;
mod os_user;
mod password;
mod probe;
mod server;
mod task;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use synapsedb_pg::Host;
use tokio::sync::watch;

pub use attached::{check_once, target as attached_target};
pub use binaries::Binaries;
pub use os_user::OsUser;
pub use password::{has_default_password, verifier};
pub use probe::Facts;
pub use server::{is_running, stop_leftover};
pub use task::Task;

use crate::tasks::Shutdown;

/// The password that everybody knows, for clusters that only this machine reaches.
pub const DEFAULT_PASSWORD: &str = "synapsedb";

/// Who runs the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The agent.
    #[default]
    Managed,
    /// Somebody else: systemd, a container, a person.
    Attached,
}

/// The limits and addresses of this component.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who runs the server.
    pub mode: Mode,
    /// Attached: `postgresql://superuser@host:port/database`; the password comes from `password_file`.
    pub url: Option<String>,
    /// The file with the password of the agent's superuser role.
    pub password_file: PathBuf,
    /// The agent's superuser role (managed).
    pub agent_role: String,
    /// The role that owns the replicated database.
    pub role: String,
    /// The file with the role's SCRAM verifier, the same on all nodes; without it the role must exist (managed).
    pub role_verifier_file: Option<PathBuf>,
    /// The replicated database (managed).
    pub database: String,
    /// Where `initdb` and `postgres` are; looked for when not set (managed).
    pub bin_dir: Option<PathBuf>,
    /// The server's data directory (managed).
    pub data_dir: PathBuf,
    /// Where the server makes its unix socket (managed).
    pub socket_dir: PathBuf,
    /// The server's `listen_addresses` (managed).
    pub listen: String,
    /// The server's port (managed).
    pub port: u16,
    /// What the server writes to stderr (managed).
    pub log_file: PathBuf,
    /// The user that runs the server when the agent is root (managed).
    pub os_user: String,
    /// Shown in the server's process titles (managed).
    pub cluster_name: String,
    /// The server's `max_connections` (managed).
    pub max_connections: u32,
    /// The server's `shared_buffers`, in MiB (managed).
    pub shared_buffers_mb: u64,
    /// Further settings, by name (managed); those on which replication rests cannot be changed.
    pub settings: std::collections::BTreeMap<String, String>,
    /// Further lines of `pg_hba.conf`, before those of the agent's (managed).
    pub hba: Vec<String>,
    /// How many replication slots an attached server must have.
    pub replication_slots_min: u32,
    /// How many WAL senders an attached server must have.
    pub wal_senders_min: u32,
    /// Time between two health probes, in milliseconds.
    pub probe_interval_ms: u64,
    /// Within what a probe must answer, in milliseconds.
    pub probe_timeout_ms: u64,
    /// How many probes in a row may fail before the server counts as down.
    pub probe_failures_max: u32,
    /// How long a start, recovery included, may take, in milliseconds (managed).
    pub start_timeout_ms: u64,
    /// How long a fast shutdown may take before an immediate one, in milliseconds (managed).
    pub stop_timeout_ms: u64,
    /// The first wait before another start, in milliseconds; it doubles.
    pub retry_min_ms: u64,
    /// The longest wait before another start, in milliseconds.
    pub retry_max_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Managed,
            url: None,
            password_file: PathBuf::new(),
            agent_role: "synapsedb_agent".to_owned(),
            role: "synapsedb".to_owned(),
            role_verifier_file: None,
            database: "synapsedb".to_owned(),
            bin_dir: None,
            data_dir: PathBuf::new(),
            socket_dir: PathBuf::new(),
            listen: "127.0.0.1".to_owned(),
            port: 5432,
            log_file: PathBuf::new(),
            os_user: "postgres".to_owned(),
            cluster_name: "synapsedb".to_owned(),
            max_connections: 200,
            shared_buffers_mb: 128,
            settings: std::collections::BTreeMap::new(),
            hba: Vec::new(),
            replication_slots_min: 16,
            wal_senders_min: 16,
            probe_interval_ms: 500,
            probe_timeout_ms: 2_000,
            probe_failures_max: 2,
            start_timeout_ms: 120_000,
            stop_timeout_ms: 20_000,
            retry_min_ms: 100,
            retry_max_ms: 10_000,
        }
    }
}

/// Whether the server takes sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum State {
    /// It is being made, started or checked for the first time.
    Starting,
    /// It takes sessions, and roles and database are there.
    Ready,
    /// It does not.
    Down {
        /// Why, in a sentence.
        reason: String,
    },
}

/// What is known of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Whether it takes sessions.
    #[serde(flatten)]
    pub state: State,
    /// When its postmaster was started, as the server prints it: another text is another start.
    pub postmaster_started: Option<String>,
    /// `server_version_num`, for example 150018; 0 while unknown.
    pub version: u32,
    /// `system_identifier` of its control file; empty while unknown.
    pub system_identifier: String,
}

impl Health {
    /// Whether the server takes sessions.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }
}

/// What `/status` shows of the server.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Who runs it.
    pub mode: Mode,
    /// How it is.
    #[serde(flatten)]
    pub health: Health,
    /// `host:port` or the socket by which the agent reaches it.
    pub address: String,
}

#[derive(Clone, Default)]
struct Metrics {
    ready: Gauge,
    starts: Counter,
    exits: Counter,
    probe_failures: Counter,
}

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone())
        };
        add("synapsedb_postgres_starts", "Starts of the managed server", &metrics.starts);
        add(
            "synapsedb_postgres_exits",
            "Ends of the managed server that nobody asked for",
            &metrics.exits,
        );
        add(
            "synapsedb_postgres_probe_failures",
            "Health probes without an answer",
            &metrics.probe_failures,
        );
        registry.register(
            "synapsedb_postgres_ready",
            "1 while the server takes sessions",
            metrics.ready.clone(),
        );
        metrics
    }
}

/// Reads the server's health and says how it is reached.
#[derive(Clone)]
pub struct Handle {
    mode: Mode,
    health: watch::Receiver<Health>,
    local: Arc<synapsedb_pg::Config>,
}

impl Handle {
    /// The health, and a notice of every change of it.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// How the agent's superuser reaches the replicated database.
    pub fn local(&self) -> synapsedb_pg::Config {
        (*self.local).clone()
    }

    /// Returns when the server takes sessions, or when `stop` is cancelled.
    pub async fn wait_ready(&self, stop: &Shutdown) {
        let mut health = self.health.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            // An error means that the task is gone, which stops the agent anyway.
            _ = health.wait_for(Health::is_ready) => {}
        }
    }

    /// The health as `/status` shows it.
    pub fn status(&self) -> Status {
        Status {
            mode: self.mode,
            health: self.health.borrow().clone(),
            address: self.local.address(),
        }
    }
}

/// The component; nothing is started before [`Task::run`].
///
/// # Errors
/// When the password file cannot be read or the url is no url.
pub fn new(config: Config, registry: &mut Registry) -> Result<(Handle, Task)> {
    let local = Arc::new(target(&config)?);
    let health = Health {
        state: State::Starting,
        postmaster_started: None,
        version: 0,
        system_identifier: String::new(),
    };
    let (sender, health) = watch::channel(health);
    let metrics = Metrics::register(registry);
    let handle = Handle { mode: config.mode, health, local: Arc::clone(&local) };
    Ok((handle, Task::new(config, local, sender, metrics)))
}

/// How the agent's superuser reaches the replicated database. Its sessions never wait for other nodes, whatever the
/// durability class of the server: two agents would wait for each other.
fn target(config: &Config) -> Result<synapsedb_pg::Config> {
    let mut target = login(config)?;
    target.options.retain(|(name, _)| !name.eq_ignore_ascii_case("synchronous_commit"));
    target.options.push(("synchronous_commit".to_owned(), "local".to_owned()));
    Ok(target)
}

fn login(config: &Config) -> Result<synapsedb_pg::Config> {
    let password = || -> Result<Option<String>> {
        if config.password_file.as_os_str().is_empty() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&config.password_file).with_context(|| {
            format!("postgres.password_file {} cannot be read", config.password_file.display())
        })?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    };
    match (&config.url, config.mode) {
        (Some(url), Mode::Attached) => {
            let mut target =
                attached::target(url).map_err(|why| anyhow::anyhow!("postgres.url {why}"))?;
            target.connect_timeout_ms = config.probe_timeout_ms;
            if let Some(password) = password()? {
                target.password = Some(password);
            }
            Ok(target)
        }
        _ => Ok(synapsedb_pg::Config {
            host: Host::Unix(config.socket_dir.clone()),
            port: config.port,
            user: config.agent_role.clone(),
            password: password()?,
            database: config.database.clone(),
            connect_timeout_ms: config.probe_timeout_ms,
            ..synapsedb_pg::Config::default()
        }),
    }
}

#[cfg(test)]
mod tests;
