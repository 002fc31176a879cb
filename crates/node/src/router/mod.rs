//! The two doors of the cluster: clients connect here, and each session goes to a node that can serve it.
//!
//! **Runs on:** every node; on one machine all agents share the two addresses, and a dead agent simply vanishes.
//! **Invariant:** a session on the write endpoint talks to the primary that the cluster has agreed on, and is ended
//! when that changes; no password is ever seen here, for client and server authenticate each other end to end.
//!
//! This is session routing: one client, one server connection, bytes passed on as they are. What is understood on the
//! way is only where messages end ([`framing`]), so that a session can be ended with a proper error.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::NodeId;
use synapsedb_core::state::ClusterState;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::layout::Identity;
use crate::{gossip, raft};

pub mod api;
pub mod choose;
pub mod framing;
pub mod startup;

mod backend;
mod client;
mod listen;
mod metrics;
mod relay;
mod session;
mod sessions;
mod task;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use task::Task;

/// The limits and addresses of the router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where clients connect that may be served by any healthy node.
    pub read_listen: SocketAddr,
    /// Where clients connect that must be served by the primary.
    pub write_listen: SocketAddr,
    /// Sessions at once on this agent, both endpoints together; one more is refused with 53300.
    pub clients_max: usize,
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
    /// How long the sessions on an old primary may go on to finish their transaction; idle ones end at once.
    pub primary_change_grace_ms: u64,
    /// How long sessions may go on to finish their transaction when the agent stops; idle ones end at once.
    pub drain_ms: u64,
    /// After the grace: how long to wait for the end of a message that is being sent, and then for the client to
    /// take the last error.
    pub farewell_ms: u64,
    /// How long a server may go on answering a client that has closed its side.
    pub half_close_ms: u64,
    /// Idle time before TCP keepalive probes; a dead peer is noticed about twice as long after it was last heard.
    pub keepalive_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            read_listen: SocketAddr::from(([127, 0, 0, 1], 5001)),
            write_listen: SocketAddr::from(([127, 0, 0, 1], 5002)),
            clients_max: 2_000,
            startups_max: 256,
            startup_timeout_ms: 10_000,
            startup_bytes_max: 10_000,
            connect_timeout_ms: 2_000,
            read_wait_ms: 2_000,
            write_wait_ms: 10_000,
            retry_ms: 50,
            primary_change_grace_ms: 200,
            drain_ms: 1_000,
            farewell_ms: 500,
            half_close_ms: 5_000,
            keepalive_ms: 10_000,
        }
    }
}

/// One of the two doors.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    /// Any healthy node.
    Read,
    /// The primary.
    Write,
}

impl Endpoint {
    /// As it stands in metrics, logs and errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// What all parts of the router share.
struct Shared {
    config: Config,
    own: NodeId,
    state: watch::Receiver<Arc<ClusterState>>,
    view: watch::Receiver<Arc<gossip::View>>,
    tls: Option<TlsAcceptor>,
    sessions: sessions::Sessions,
    metrics: metrics::Metrics,
    clients: Arc<Semaphore>,
    startups: Arc<Semaphore>,
    /// The agent is stopping: no new session.
    draining: CancellationToken,
}

/// Reads the router's status.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    read_listen: SocketAddr,
    write_listen: SocketAddr,
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

    /// What goes on at this moment.
    pub fn status(&self) -> api::Status {
        let shared = &self.shared;
        api::Status {
            read_listen: self.read_listen.to_string(),
            write_listen: self.write_listen.to_string(),
            tls: shared.tls.is_some(),
            primary: shared.state.borrow().primary.map(NodeId::get),
            sessions: shared.sessions.per_endpoint_and_node(),
            clients: shared.config.clients_max - shared.clients.available_permits(),
            clients_max: shared.config.clients_max,
            draining: shared.draining.is_cancelled(),
            totals: shared.metrics.totals(),
        }
    }
}

/// Binds both endpoints. `tls` answers clients that ask for TLS; without it they are told that there is none.
///
/// # Errors
/// An address cannot be bound, for instance because another program has taken the port; names the endpoint, the
/// address and what to do. Must be called within a tokio runtime.
pub fn new(
    config: Config,
    identity: &Identity,
    raft: &raft::Handle,
    gossip: &gossip::Handle,
    tls: Option<TlsAcceptor>,
    registry: &mut Registry,
) -> Result<(Handle, Task)> {
    from_watches(config, identity.node, raft.watch(), gossip.watch(), tls, registry)
}

/// [`new`], from the two things it reads of its handles.
fn from_watches(
    config: Config,
    own: NodeId,
    state: watch::Receiver<Arc<ClusterState>>,
    view: watch::Receiver<Arc<gossip::View>>,
    tls: Option<TlsAcceptor>,
    registry: &mut Registry,
) -> Result<(Handle, Task)> {
    let read = listen::bind(config.read_listen, Endpoint::Read)?;
    let write = listen::bind(config.write_listen, Endpoint::Write)?;
    let read_listen = read.local_addr().context("router: the read endpoint has no address")?;
    let write_listen = write.local_addr().context("router: the write endpoint has no address")?;
    let clients = Arc::new(Semaphore::new(config.clients_max.min(Semaphore::MAX_PERMITS)));
    let startups = Arc::new(Semaphore::new(config.startups_max.min(Semaphore::MAX_PERMITS)));
    let metrics = metrics::Metrics::register(registry);
    let shared = Arc::new(Shared {
        sessions: sessions::Sessions::new(metrics.sessions.clone()),
        config,
        own,
        state,
        view,
        tls,
        metrics,
        clients,
        startups,
        draining: CancellationToken::new(),
    });
    let handle = Handle { shared: Arc::clone(&shared), read_listen, write_listen };
    Ok((handle, Task::new(shared, read, write)))
}
