//! Keeps the cluster told who its members are and which of them is the primary.
//!
//! **Runs on:** every node registers itself; the leader appoints the primary. **Invariant:** only a committed command
//! changes anything, and a decision made upon an epoch that has passed is refused: two leaders cannot appoint two.

use std::sync::Arc;

use anyhow::Result;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use synapsedb_core::state::{Addresses, Command, Outcome};
use synapsedb_core::{backoff, failover};
use tokio::sync::watch;

use crate::layout::Identity;
use crate::peers::BoxFuture;
use crate::{gossip, raft};

pub mod api;
mod facts;
mod metrics;
mod registration;
mod task;
#[cfg(test)]
mod tests;

pub use task::Task;

/// When the primary is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Between two looks at the cluster.
    pub round_ms: u64,
    /// How long a primary whose agent lives may be unable to serve before it is replaced.
    pub unready_ms: u64,
    /// How long after a change of the primary the next one waits, unless the primary is down.
    pub cooldown_ms: u64,
    /// A node is reachable by another if its last heartbeat there is no older than this.
    pub reachable_age_ms: u64,
    /// After the agent's start: how long a primary is left alone, until gossip has heard of everybody.
    pub settle_ms: u64,
    /// How long a proposal may take before it is made again.
    pub propose_timeout_ms: u64,
    /// The longest wait after the first failed registration; it doubles with every further one.
    pub register_retry_ms: u64,
    /// The longest wait between two registrations.
    pub register_retry_max_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        let core = failover::Config::default();
        Self {
            round_ms: 200,
            unready_ms: core.unready_ms,
            cooldown_ms: core.cooldown_ms,
            reachable_age_ms: 500,
            settle_ms: 1_500,
            propose_timeout_ms: 5_000,
            register_retry_ms: 100,
            register_retry_max_ms: 2_000,
        }
    }
}

impl Config {
    fn core(&self) -> failover::Config {
        failover::Config { unready_ms: self.unready_ms, cooldown_ms: self.cooldown_ms }
    }

    fn backoff(&self) -> backoff::Config {
        backoff::Config { first_ms: self.register_retry_ms, limit_ms: self.register_retry_max_ms }
    }
}

/// What this node tells the cluster of itself. What is not known yet is empty or zero, and told when it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// Not to be told yet: whether the data is what the cluster knows has not been seen.
    pub held: bool,
    /// Where it listens.
    pub addresses: Addresses,
    /// PostgreSQL's identifier of its data directory.
    pub system_identifier: String,
    /// The server's `server_version_num`.
    pub postgres_version: u32,
}

/// Proposes a command: its outcome, or why it was not committed.
type Propose = Arc<dyn Fn(Command) -> BoxFuture<Result<Outcome, String>> + Send + Sync>;

/// What the component needs of the others.
struct World {
    state: watch::Receiver<Arc<synapsedb_core::state::ClusterState>>,
    view: watch::Receiver<Arc<gossip::View>>,
    registration: watch::Receiver<Registration>,
    is_leader: Box<dyn Fn() -> bool + Send + Sync>,
    propose: Propose,
}

/// Reads the component's status.
#[derive(Clone)]
pub struct Handle {
    status: watch::Receiver<api::Status>,
}

impl Handle {
    /// What was decided last.
    pub fn status(&self) -> api::Status {
        self.status.borrow().clone()
    }

    /// Whether the cluster knows this node as it is now.
    pub fn is_registered(&self) -> bool {
        self.status.borrow().registered
    }
}

/// Prepares the component. `registration` is what the node tells of itself, and may change at any time.
pub fn new(
    config: Config,
    identity: Identity,
    raft: &raft::Handle,
    gossip: &gossip::Handle,
    registration: watch::Receiver<Registration>,
    registry: &mut Registry,
) -> (Handle, Task) {
    let leader = raft.clone();
    let proposer = raft.clone();
    let world = World {
        state: raft.watch(),
        view: gossip.watch(),
        registration,
        is_leader: Box::new(move || leader.is_leader()),
        propose: Arc::new(move |command| {
            let raft = proposer.clone();
            Box::pin(async move { raft.propose(command).await.map_err(|error| error.to_string()) })
        }),
    };
    from_world(config, identity, world, registry)
}

fn from_world(
    config: Config,
    identity: Identity,
    world: World,
    registry: &mut Registry,
) -> (Handle, Task) {
    let (sender, status) = watch::channel(api::Status::default());
    let metrics = metrics::Metrics::register(registry);
    (Handle { status }, Task::new(config, identity, world, metrics, sender))
}
