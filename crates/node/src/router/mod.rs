//! The doors of the cluster: clients connect here, and each transaction goes to a node that can serve it.
//!
//! **Runs on:** every node; on one machine all agents share the two addresses, and a dead agent simply vanishes.
//! **Invariant:** a write transaction goes to the primary that the cluster has agreed on and to no other node; a
//! client sees what it would see on a connection of its own; no password is kept.
//!
//! Each worker ([`worker`]) is a thread of its own with its clients and its server connections. A client's session
//! ([`session`]) is lent a connection from a pool ([`pool`]) for a transaction; its bytes are passed on by their
//! headers ([`upstream`], [`downstream`]), and what it may have left behind is asked of the server ([`state`]).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use rustls::RootCertStore;
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::NodeId;
use synapsedb_core::state::ClusterState;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::layout::Identity;
use crate::{gossip, peers, raft, replication, tls};

pub mod api;
pub mod choose;
pub mod stats;

mod accept;
mod account;
mod begun;
mod breaker;
mod by_statement;
mod cancel;
mod certificate;
mod channels;
mod console;
mod dial;
mod downstream;
mod ear;
mod ending;
mod endpoint;
mod entry;
mod expected;
mod exposition;
mod fresh;
mod gate;
mod hearing;
mod hub;
mod lend;
mod limits;
mod listen;
mod login;
mod loss;
mod metrics;
mod origin;
mod outcome;
mod own;
mod own_statements;
mod pid;
mod places;
mod pool;
mod pooling;
mod reach;
mod reload;
mod repeat;
mod report;
mod roles;
mod served;
mod server;
mod session;
mod settings;
mod sight;
mod snapshot;
mod socket;
mod splice;
mod split;
mod startup;
mod state;
mod statements;
mod survey;
mod task;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod token;
mod traffic;
mod turn;
mod unix;
mod upstream;
mod warm;
mod worker;

pub use certificate::{CertificateRole, ClientCertificates};
pub use dial::ServerTls;
pub use endpoint::Endpoint;
pub use pooling::PoolRule;
pub use reload::ReadAgain;
use snapshot::Snapshot;
pub use task::Task;
pub use token::Consistency;

/// The limits and addresses of the router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where clients connect that may be served by any healthy node.
    pub read_listen: SocketAddr,
    /// Where clients connect that must be served by the primary.
    pub write_listen: SocketAddr,
    /// Where clients connect whose reads go to any healthy node and whose writes go to the primary; without it there is
    /// no such endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_listen: Option<SocketAddr>,
    /// What is known of the functions of a database, by which the split endpoint tells reads from writes, is asked
    /// anew when it is so old; it is at once when a statement that may have changed it passes.
    pub split_names_max_age_ms: u64,
    /// Texts whose verdict the split endpoint keeps, of one database on one worker.
    pub split_texts_max: usize,
    /// Sessions at once on this agent, all endpoints together; one more is refused with 53300.
    pub clients_max: usize,
    /// Clients of one role at once on this agent; one more is refused with 53300. 0 for no limit.
    pub user_clients_max: usize,
    /// Connections at once that have not said yet who they are; one more is closed without an answer.
    pub startups_max: usize,
    /// From accept to a complete startup packet, TLS included.
    pub startup_timeout_ms: u64,
    /// The largest startup packet; PostgreSQL accepts 10,000 bytes.
    pub startup_bytes_max: usize,
    /// From connecting to a node's PostgreSQL server to the first message of its answer.
    pub connect_timeout_ms: u64,
    /// How long a client of the read endpoint waits for a node to become ready.
    pub read_wait_ms: u64,
    /// How long a client of the write endpoint waits for a primary that answers.
    pub write_wait_ms: u64,
    /// Between two attempts while waiting.
    pub retry_ms: u64,
    /// A node whose rows are older than this is not read from on the read endpoint while another's are not; 0 for no
    /// bound. They are known to be old only to within `replication.probe_interval_ms`.
    pub read_lag_max_ms: u64,
    /// How long a member may take to say how far it is, when a session changes its node or reads what is global.
    pub position_timeout_ms: u64,
    /// How long the sessions on an old primary may go on to finish their transaction; idle ones end at once.
    pub primary_change_grace_ms: u64,
    /// How long sessions may go on to finish their transaction when the agent stops; idle ones end at once.
    pub drain_ms: u64,
    /// After the grace: how long to wait for the end of a message that is being sent, and then for the client to
    /// take the last error.
    pub farewell_ms: u64,
    /// When a client gets a server connection, and for how long.
    pub pool_mode: PoolMode,
    /// How consistent the reads of a session are that does not say (`synapsedb.consistency`).
    pub consistency: Consistency,
    /// Threads that serve clients, at most 8; 0 for one for every two cores.
    pub workers: usize,
    /// Server connections of one role in one database on one node.
    pub pool_size: usize,
    /// Connections that such a pool has at the least, from the first login on; 0 for none.
    pub pool_size_min: usize,
    /// What is otherwise for some clients: `[[router.pools]]`.
    pub pools: Vec<PoolRule>,
    /// How long a client waits for a server connection when all are in use.
    pub query_wait_timeout_ms: u64,
    /// A server connection that nobody has used for so long is closed; 0 for never.
    pub server_idle_timeout_ms: u64,
    /// A server connection is not lent again when it is so old; 0 for no limit.
    pub server_lifetime_ms: u64,
    /// Prepared statements that a server connection keeps.
    pub prepared_statements_max: usize,
    /// The longest statement that is looked at as a whole and can be prepared by name, in bytes.
    pub query_bytes_max: usize,
    /// Channels that a client may listen to through a shared connection; with more it keeps a connection of its own.
    pub listen_channels_max: usize,
    /// Channels of one shared listener; a client whose channels would be more keeps a connection of its own.
    pub listener_channels_max: usize,
    /// Notifications that wait for one client, in bytes: with more its session ends.
    pub notifications_bytes_max: usize,
    /// Whether transactions that have written carry a marker, by which a COMMIT whose server connection was lost can be
    /// told from one that did not take effect.
    pub resolve_commits: bool,
    /// How long a client whose COMMIT was lost waits for that at most.
    pub resolve_wait_ms: u64,
    /// How late a login with a wrong password is answered.
    pub failed_login_delay_ms: u64,
    /// Whether server connections by TCP are encrypted: `off`, `prefer`, `require` or `verify-full`.
    pub server_tls: ServerTls,
    /// The authorities (PEM) that `verify-full` trusts; empty for the cluster's own.
    pub server_tls_ca_file: PathBuf,
    /// Whether clients must show a certificate, beside proving their password: `off`, `allow` or `require`.
    pub client_certificates: ClientCertificates,
    /// The authorities (PEM) of clients' certificates; needed unless `client_certificates` is `off`.
    pub tls_client_ca_file: PathBuf,
    /// The lists (PEM) of clients' certificates that their authorities have revoked; empty for none.
    pub tls_client_crl_file: PathBuf,
    /// How often it is looked whether the files of certificates have changed.
    pub tls_reload_interval_ms: u64,
    /// Which roles the holder of a certificate may be, beside the one that it names.
    pub certificate_roles: Vec<CertificateRole>,
    /// Idle time before TCP keepalive probes; a dead peer is noticed about twice as long after it was last heard.
    pub keepalive_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            read_listen: SocketAddr::from(([127, 0, 0, 1], 5001)),
            write_listen: SocketAddr::from(([127, 0, 0, 1], 5002)),
            split_listen: None,
            split_names_max_age_ms: 10_000,
            split_texts_max: 4_096,
            clients_max: 2_000,
            user_clients_max: 0,
            startups_max: 256,
            startup_timeout_ms: 10_000,
            startup_bytes_max: 10_000,
            connect_timeout_ms: 2_000,
            read_wait_ms: 2_000,
            write_wait_ms: 10_000,
            retry_ms: 50,
            read_lag_max_ms: 10_000,
            position_timeout_ms: 1_000,
            primary_change_grace_ms: 200,
            drain_ms: 1_000,
            farewell_ms: 500,
            pool_mode: PoolMode::Transaction,
            consistency: Consistency::Session,
            workers: 0,
            pool_size: 20,
            pool_size_min: 0,
            pools: Vec::new(),
            query_wait_timeout_ms: 120_000,
            server_idle_timeout_ms: 600_000,
            server_lifetime_ms: 3_600_000,
            prepared_statements_max: 200,
            query_bytes_max: 1024 * 1024,
            listen_channels_max: 1_000,
            listener_channels_max: 10_000,
            notifications_bytes_max: 4 * 1024 * 1024,
            resolve_commits: true,
            resolve_wait_ms: 5_000,
            failed_login_delay_ms: 500,
            server_tls: ServerTls::Prefer,
            server_tls_ca_file: PathBuf::new(),
            client_certificates: ClientCertificates::Off,
            tls_client_ca_file: PathBuf::new(),
            tls_client_crl_file: PathBuf::new(),
            tls_reload_interval_ms: 5_000,
            certificate_roles: Vec::new(),
            keepalive_ms: 10_000,
        }
    }
}

/// When a client gets a server connection, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PoolMode {
    /// For each transaction. What a session must keep longer, keeps the connection with it.
    #[default]
    Transaction,
    /// A connection of its own, for all its life.
    Session,
    /// For each request, which must not leave a transaction open.
    Statement,
}

/// The server beside this agent.
#[derive(Clone, Debug)]
pub struct Local {
    /// How the agent's superuser reaches it.
    pub control: synapsedb_pg::Config,
    /// The file of its unix socket, by which clients' sessions reach it.
    pub socket: Option<PathBuf>,
    /// The role that may not come through the router.
    pub reserved: Option<String>,
    /// The role that may do everything on the console, though it is no superuser: the owner of the cluster's database.
    pub admin: Option<String>,
}

/// What all parts of the router share.
struct Shared {
    /// What is in force: [`Shared::config`].
    config: ArcSwap<Config>,
    read_again: ReadAgain,
    /// Held while the configuration is read again.
    reloading: tokio::sync::Mutex<()>,
    own: NodeId,
    state: watch::Receiver<Arc<ClusterState>>,
    view: watch::Receiver<Arc<gossip::View>>,
    /// What clients are shown.
    tls: Option<served::Certificates>,
    /// The way to the servers.
    dialer: dial::Dialer,
    local: Option<Local>,
    peers: Option<peers::Handle>,
    replication: Option<replication::Handle>,
    metrics: metrics::Metrics,
    clients: places::Places,
    counted: limits::Counted,
    startups: places::Places,
    /// Makes up the salt of a role that does not exist, so that it looks like one that does.
    mock_secret: [u8; 32],
    workers: usize,
    commands: Vec<mpsc::UnboundedSender<worker::Command>>,
    /// What each worker has said last of what goes on.
    snapshots: Vec<Mutex<Snapshot>>,
    /// Connections of clients, those included that have not said who they are.
    running: AtomicUsize,
    /// The most clients that were seen at once, by endpoint.
    most_clients: [AtomicU64; Endpoint::COUNT],
    /// How often statements passed that may have changed which functions and views there are.
    definitions: AtomicU64,
    /// The agent is stopping: no new session.
    draining: CancellationToken,
}

impl Shared {
    /// What the workers have said last.
    fn snapshots(&self) -> Vec<Snapshot> {
        let read =
            |slot: &Mutex<Snapshot>| slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.snapshots.iter().map(read).collect()
    }

    /// What the workers say now.
    async fn look(&self) -> Vec<Snapshot> {
        let mut answers = Vec::with_capacity(self.commands.len());
        for commands in &self.commands {
            let (answer, look) = oneshot::channel();
            // Of a worker that has ended there is nothing to see.
            if commands.send(worker::Command::Look(answer)).is_ok() {
                answers.push(look);
            }
        }
        let mut snapshots = Vec::with_capacity(answers.len());
        for answer in answers {
            snapshots.extend(answer.await);
        }
        snapshots
    }
}

/// Reads the router's status.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    read_listen: SocketAddr,
    write_listen: SocketAddr,
    split_listen: Option<SocketAddr>,
}

impl Handle {
    /// Where the read endpoint listens.
    pub fn read_address(&self) -> SocketAddr {
        self.read_listen
    }

    /// Where the write endpoint listens.
    pub fn write_address(&self) -> SocketAddr {
        self.write_listen
    }

    /// Where the split endpoint listens, if there is one.
    pub fn split_address(&self) -> Option<SocketAddr> {
        self.split_listen
    }

    /// What goes on, as of at most a second ago.
    pub fn status(&self) -> api::Status {
        let shared = &self.shared;
        let snapshots = shared.snapshots();
        api::Status {
            read_listen: self.read_listen.to_string(),
            write_listen: self.write_listen.to_string(),
            split_listen: self.split_listen.map(|address| address.to_string()),
            tls: shared.tls.is_some(),
            primary: shared.state.borrow().primary.map(NodeId::get),
            pool_mode: shared.config().pool_mode,
            clients: shared.clients.taken(),
            clients_max: shared.config().clients_max,
            endpoints: snapshot::endpoints(shared, &snapshots),
            pools: snapshot::pools(&snapshots),
            draining: shared.draining.is_cancelled(),
            totals: shared.metrics.totals(),
        }
    }
}

/// What the router stands on.
pub struct World {
    /// This agent's node.
    pub own: NodeId,
    /// What the cluster has agreed on.
    pub state: watch::Receiver<Arc<ClusterState>>,
    /// What gossip sees.
    pub view: watch::Receiver<Arc<gossip::View>>,
    /// The server beside this agent, if its clients may be let in by it.
    pub local: Option<Local>,
    /// The way to the other agents.
    pub peers: Option<peers::Handle>,
    /// Says how far the members are, and what became of transactions.
    pub replication: Option<replication::Handle>,
    /// Answers clients that ask for TLS; without it they are told that there is none.
    pub tls: Option<tls::clients::Files>,
    /// The authorities that servers' certificates are checked against, unless the configuration names others.
    pub authorities: Arc<RootCertStore>,
    /// Reads the agent's file again.
    pub read_again: ReadAgain,
}

impl World {
    /// Of the components that the router stands on.
    pub fn new(
        config: &Config,
        identity: &Identity,
        raft: &raft::Handle,
        (gossip, peers, replication): (&gossip::Handle, &peers::Handle, &replication::Handle),
        (local, read_again): (Local, ReadAgain),
        tls: &tls::Handle,
    ) -> Self {
        Self {
            own: identity.node,
            state: raft.watch(),
            view: gossip.watch(),
            local: Some(local),
            peers: Some(peers.clone()),
            replication: Some(replication.clone()),
            tls: Some(tls.client_files(config.client_authority(), config.client_revocations())),
            authorities: tls.authorities(),
            read_again,
        }
    }
}

/// Binds the endpoints.
///
/// # Errors
/// An address cannot be bound, for instance because another program has taken the port; names the endpoint, the
/// address and what to do. Or a file of the configuration cannot be used; names it.
pub fn new(config: Config, world: World, registry: &mut Registry) -> Result<(Handle, Task)> {
    let workers = workers(&config);
    let mut listeners = Vec::with_capacity(workers);
    let first = listen::all(config.read_listen, config.write_listen, config.split_listen)?;
    let read_listen =
        first.read.local_addr().context("router: the read endpoint has no address")?;
    let write_listen =
        first.write.local_addr().context("router: the write endpoint has no address")?;
    let split_listen = first.split.as_ref().map(std::net::TcpListener::local_addr).transpose();
    let split_listen = split_listen.context("router: the split endpoint has no address")?;
    listeners.push(first);
    for _ in 1..workers {
        listeners.push(listen::all(read_listen, write_listen, split_listen)?);
    }
    let (commands, orders) = (0..workers).map(|_| mpsc::unbounded_channel()).unzip();
    let World { own, state, view, local, peers, replication, tls, authorities, read_again } = world;
    let tls = tls.map(|files| served::Certificates::load(files, registry)).transpose()?;
    let shared = Arc::new(Shared {
        clients: places::Places::default(),
        counted: limits::Counted::default(),
        startups: places::Places::default(),
        dialer: dial::Dialer::new(&config, authorities)?,
        config: ArcSwap::from_pointee(config),
        read_again,
        reloading: tokio::sync::Mutex::default(),
        own,
        state,
        view,
        tls,
        local,
        peers,
        replication,
        metrics: metrics::Metrics::register(registry),
        mock_secret: rand::random(),
        workers,
        commands,
        snapshots: (0..workers).map(|_| Mutex::default()).collect(),
        running: AtomicUsize::new(0),
        most_clients: Default::default(),
        definitions: AtomicU64::new(0),
        draining: CancellationToken::new(),
    });
    registry.register_collector(Box::new(snapshot::Collector::new(&shared)));
    if let Some(peers) = &shared.peers {
        cancel::serve(&shared, peers);
        stats::serve(&shared, peers);
        console::drop_database::serve(&shared, peers);
    }
    let handle = Handle { shared: Arc::clone(&shared), read_listen, write_listen, split_listen };
    Ok((handle, Task::new(shared, listeners, orders)))
}

/// How many threads serve clients: PostgreSQL wants the other cores.
fn workers(config: &Config) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let wanted = if config.workers == 0 { cores / 2 } else { config.workers };
    wanted.clamp(1, usize::from(pid::WORKERS_MAX))
}
