//! The cluster's intent, agreed by a majority and kept on disk: who is a member, who is the primary.
//!
//! **Runs on:** every node. **Invariant:** an outcome is answered only after a majority has the command on disk, and a
//! node never forgets a vote or an entry: when its file is damaged or gone, it refuses to start.
//!
//! openraft agrees ([`log`] and [`machine`] keep what it says in one redb file, [`network`] carries its messages over
//! `peers`). Around it: a guard ([`task`]) that silences a leader without a majority or with a stalled disk, so that
//! the others can elect; proposals that find the leader, and that count once however often they are repeated.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use openraft::{ServerState, SnapshotPolicy};
use prometheus_client::registry::Registry;
use synapsedb_core::ids::NodeId;
use synapsedb_core::state::{ClusterState, Command, Outcome};
use tokio::sync::watch;
use uuid::Uuid;

use crate::layout::Identity;
use crate::peers::{self, PeerAddress};

mod acknowledged;
pub mod api;
mod log;
mod machine;
mod network;
mod propose;
mod store;
mod task;
#[cfg(test)]
mod tests;
mod voters;

pub use propose::ProposeError;
pub use task::Task;

/// The pace, the limits and the place of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The directory of `raft.redb`. Beside the directory, a file `raft.started` remembers that the log exists.
    pub dir: PathBuf,
    /// Time between two heartbeats of a leader; also the limit of one replication call.
    pub heartbeat_ms: u64,
    /// The shortest time without a leader after which a node stands for election.
    pub election_min_ms: u64,
    /// The longest such time; also the leader's lease: no node votes for another within it.
    pub election_max_ms: u64,
    /// How long a proposal looks for a leader and waits for its commit.
    pub propose_timeout_ms: u64,
    /// A leader whose write to disk takes longer than this stops its heartbeats, so that another is elected.
    pub disk_stall_ms: u64,
    /// How many entries are applied between two snapshots.
    pub snapshot_entries: u64,
    /// How many entries that a snapshot covers are kept for followers that are a little behind.
    pub keep_entries: u64,
    /// The size of the pieces in which a snapshot travels.
    pub snapshot_chunk_bytes: u64,
    /// How long one piece of a snapshot may take.
    pub snapshot_timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("raft"),
            heartbeat_ms: 100,
            election_min_ms: 300,
            election_max_ms: 600,
            propose_timeout_ms: 10_000,
            disk_stall_ms: 1_000,
            snapshot_entries: 1_000,
            keep_entries: 500,
            snapshot_chunk_bytes: 1024 * 1024,
            snapshot_timeout_ms: 10_000,
        }
    }
}

/// The time of an election by that of a write: candidate and voters write the vote, then the leader and a majority
/// its first entry, and nobody shall stand again meanwhile.
const ELECTION_IN_WRITES: u64 = 6;

/// The limit of a replication call by the time of a write, which the follower does before it answers.
const CALL_IN_WRITES: u64 = 2;

impl Config {
    /// The pace for a disk on which a write takes so long. A disk that is fast enough for the settings changes nothing;
    /// on a slower one no vote would be in before the next election, so that nobody is ever elected.
    fn paced(self, write: Duration) -> Self {
        let write_ms = u64::try_from(write.as_millis()).unwrap_or(u64::MAX);
        let election_ms = write_ms.saturating_mul(ELECTION_IN_WRITES);
        if election_ms <= self.election_min_ms {
            return self;
        }
        let election_max_ms = self.election_max_ms.max(election_ms.saturating_mul(2));
        tracing::warn!(
            "a durable write of the Raft log takes {write_ms} ms: a node without a leader stands for election after \
             {election_ms} to {election_max_ms} ms instead of {} to {} ms. If other nodes have faster disks, set \
             raft.election_min_ms and raft.election_max_ms to these values there too, or they do not wait for this \
             node's vote; a faster disk for {} lets a failover be as quick as the section [raft] says",
            self.election_min_ms,
            self.election_max_ms,
            self.dir.display()
        );
        Self {
            heartbeat_ms: self.heartbeat_ms.max(write_ms.saturating_mul(CALL_IN_WRITES)),
            election_min_ms: election_ms,
            election_max_ms,
            disk_stall_ms: self.disk_stall_ms.max(election_ms),
            ..self
        }
    }

    fn openraft(&self, cluster_id: Uuid) -> Result<openraft::Config> {
        ensure!(self.heartbeat_ms > 0, "raft.heartbeat_ms must be at least 1");
        let config = openraft::Config {
            cluster_name: cluster_id.to_string(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            install_snapshot_timeout: self.snapshot_timeout_ms,
            snapshot_max_chunk_size: self.snapshot_chunk_bytes.max(1),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries.max(1)),
            max_in_snapshot_log_to_keep: self.keep_entries,
            // A follower further behind than a snapshot interval and what is kept gets the snapshot.
            replication_lag_threshold: self
                .snapshot_entries
                .saturating_add(self.keep_entries)
                .saturating_mul(2)
                .max(1_000),
            ..openraft::Config::default()
        };
        config.validate().context(
            "the section [raft] contradicts itself: heartbeat_ms < election_min_ms < election_max_ms must hold",
        )
    }
}

type RaftNode = openraft::Raft<machine::Types>;

/// What the handle, the task and the services share.
struct Shared {
    config: Config,
    identity: Identity,
    raft: RaftNode,
    peers: peers::Handle,
    store: store::Store,
    applied: watch::Receiver<machine::Published>,
    state: watch::Receiver<Arc<ClusterState>>,
    /// This node leads without a majority, or with a stalled disk: it neither counts as leader nor renews its lease.
    silenced: AtomicBool,
}

/// Proposes commands and reads the replicated state.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// Opens and verifies the log, starts Raft, and serves its calls. The member with the lowest number founds the
/// cluster when its log has never held anything.
///
/// # Errors
/// A setting is out of range; the log is damaged, of another node, or gone; this node is not among the members.
pub async fn new(
    config: Config,
    identity: Identity,
    addresses: Vec<PeerAddress>,
    peers: peers::Handle,
    registry: &mut Registry,
) -> Result<(Handle, Task)> {
    config.openraft(identity.cluster_id)?;
    let members: BTreeSet<u64> =
        addresses.iter().map(|member| u64::from(member.node.get())).collect();
    let me = u64::from(identity.node.get());
    ensure!(
        members.contains(&me),
        "node {me} is not in the list of members; add a [[member]] table for it"
    );
    let (dir, owner) = (config.dir.clone(), identity.clone());
    let opened = tokio::task::spawn_blocking(move || store::Store::open(&dir, &owner)).await;
    let file = config.dir.join(store::FILE);
    let (store, loaded) = match opened {
        Ok(opened) => opened?,
        // redb trusts what it reads to be well-formed and may panic when it is not.
        Err(panic) => bail!(store::damaged(&file, &format!("it could not be read ({panic})"))),
    };
    let pristine = loaded.pristine;
    let told_ms = config.heartbeat_ms;
    let config = config.paced(loaded.write);
    let openraft_config = Arc::new(config.openraft(identity.cluster_id)?);
    acknowledged::check(&peers, identity.uuid, loaded.last_index).await?;
    store.register(registry);
    let (machine, applied, state) = machine::Machine::new(store.clone(), loaded.applied);
    let network = network::Network::new(peers.clone(), &identity, state.clone());
    let log = log::Log::new(store.clone());
    let raft = RaftNode::new(me, openraft_config, network, log, machine)
        .await
        .with_context(|| format!("cannot start Raft from {}", file.display()))?;
    let shared = Arc::new(Shared {
        config,
        identity,
        raft,
        peers,
        store,
        applied,
        state,
        silenced: AtomicBool::new(false),
    });
    acknowledged::serve(&shared);
    network::serve(&shared);
    propose::serve(&shared);
    if pristine && members.first() == Some(&me) {
        tracing::info!(?members, "founding the cluster");
        shared.raft.initialize(members).await.context("cannot found the cluster")?;
    }
    let task = Task::new(shared.clone(), Duration::from_millis(told_ms), registry);
    Ok((Handle { shared }, task))
}

impl Handle {
    /// Proposes `command` and waits until it is committed and applied, at most `raft.propose_timeout_ms`; a node that
    /// does not lead hands it to the leader. A proposal counts once, however often it had to be repeated on the way.
    /// When it is answered, [`Handle::state`] of this node includes it, unless this node is far behind.
    ///
    /// # Errors
    /// [`ProposeError`]: the command may still be committed later.
    pub async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        propose::propose(&self.shared, command).await
    }

    /// The replicated state as this node has applied it.
    pub fn state(&self) -> Arc<ClusterState> {
        self.shared.state.borrow().clone()
    }

    /// The replicated state as it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.shared.state.clone()
    }

    /// Whether this node leads and a majority has confirmed that within the lease.
    pub fn is_leader(&self) -> bool {
        self.shared.leads()
    }

    /// The leader as this node knows it; `None` while there is none, or when this node leads without a majority.
    pub fn leader(&self) -> Option<NodeId> {
        self.shared.leader()
    }

    /// What `GET /raft/status` says.
    pub fn status(&self) -> api::StatusBody {
        api::StatusBody::new(self)
    }
}

impl Shared {
    fn leads(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let confirmed =
            metrics.millis_since_quorum_ack.is_some_and(|age| age <= self.config.election_max_ms);
        metrics.state == ServerState::Leader
            && metrics.running_state.is_ok()
            && (confirmed || metrics.membership_config.voter_ids().count() == 1)
            && !self.silenced.load(Ordering::Relaxed)
    }

    fn leader(&self) -> Option<NodeId> {
        let leader = self.raft.metrics().borrow().current_leader.and_then(node_id)?;
        (leader != self.identity.node || self.leads()).then_some(leader)
    }

    fn attempt_timeout(&self) -> Duration {
        Duration::from_millis(self.config.election_max_ms.saturating_mul(2))
    }
}

/// A Raft id as a node.
fn node_id(id: u64) -> Option<NodeId> {
    u16::try_from(id).ok().and_then(NodeId::new)
}
