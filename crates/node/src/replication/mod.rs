//! Rows between nodes: reads the local WAL once, spools it, serves it to the peers, and applies theirs exactly once.
//!
//! **Runs on:** every node. **Invariant:** every transaction is applied exactly once, in its origin's commit order, and
//! only after everything that it had seen; progress commits in the transaction whose rows it describes.
//!
//! The path of a row: local WAL → [`publish`] → own [`spool`] → [`serve`] → (mTLS) → [`fetch`] → the peer's spool of
//! this origin → [`apply`]. The spools of all origins lie on every node, so a peer can hand on what a dead origin sent.

pub mod api;
pub mod apply;
mod bootstrap;
mod clock;
pub mod conflicts;
mod crowd;
pub mod ddl;
pub mod durability;
mod fetch;
mod foreign_keys;
mod guard;
mod keys;
mod lag;
mod metrics;
mod origin;
pub(crate) mod outcome;
mod part;
mod policies;
pub mod position;
mod probe;
mod progress;
mod publish;
pub mod quarantine;
mod realign;
mod recent;
mod recheck;
mod retry;
mod rewrites;
mod row_of;
pub(crate) mod seed;
mod serve;
pub mod spool;
mod status;
mod task;
pub mod verify;
mod visible;
mod writers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_pg::client;
use tokio::sync::watch;

use crate::layout::Identity;
use crate::{gossip, peers, postgres, raft};

pub use progress::Applied;
pub use status::{LaneState, Status};
pub use task::Task;

/// The limits of replication.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the spools lie; one directory per origin and incarnation.
    pub spool_dir: PathBuf,
    /// The limits of each spool.
    pub spool: spool::Config,
    /// What commits wait for.
    pub durability: durability::Config,
    /// How often written spool is made durable and the slot is confirmed, unless somebody waits for it.
    pub sync_interval_ms: u64,
    /// How long the transactions of a busy stream (500 per second and more) may gather before they are read together,
    /// which is that much of lag for a good part of their cost; 0 reads every one at once.
    pub gather_max_ms: u64,
    /// Transactions in flight to the local server before the applier waits for the first of them.
    pub apply_window: usize,
    /// Bytes of statements in flight before the applier waits.
    pub apply_window_bytes: usize,
    /// Rows that one bulk INSERT carries at most.
    pub apply_batch_rows: usize,
    /// Consecutive small transactions of one origin that are applied as one local transaction at most; 1 applies each
    /// by itself. See decision 024.
    pub apply_group_max: usize,
    /// How long such a group waits for a lock; then its transactions are applied one by one, with
    /// [`Config::lock_timeout_ms`].
    pub apply_group_lock_timeout_ms: u64,
    /// Workers of each lane, which apply large transactions ahead of their turn. None by default: see decision 023.
    pub apply_workers: usize,
    /// Rows from which on a transaction is worth being handed to a worker.
    pub apply_worker_min_rows: usize,
    /// Rows and unique values of a transaction that are told apart from others'; of one with more, its tables are.
    pub apply_worker_claims_max: usize,
    /// How long a worker waits for a lock; then it leaves its transaction to the lane.
    pub apply_worker_lock_timeout_ms: u64,
    /// How often a worker that waits for its turn looks whether it keeps somebody waiting for a lock; then it takes
    /// back what it has done, and leaves its transaction to the lane.
    pub apply_worker_yield_ms: u64,
    /// Transactions that a lane with workers reads ahead of what is applied at most.
    pub apply_ahead_transactions_max: usize,
    /// Bytes of them.
    pub apply_ahead_bytes_max: usize,
    /// How far a peer's clock may be ahead before its transactions are held back with an alarm.
    pub clock_skew_max_ms: u64,
    /// How often the probe row is written: the resolution of the lag in seconds.
    pub probe_interval_ms: u64,
    /// Rows inserted by other nodes that are remembered until the own WAL is decoded past them; beyond it, a local
    /// delete looks at the table instead.
    pub arrivals_max: usize,
    /// What a change in quarantine met is remembered, with all that was written since, until it is applied or given up:
    /// at most so many writes, and as long as no spool is larger than half of its limit. A change that is tried again
    /// after that is settled by the later row.
    pub quarantine_remembered_max: usize,
    /// How long an applier that meets a missing row waits for the own WAL to be decoded.
    pub decode_wait_max_ms: u64,
    /// How long a single row may take to be applied (a trigger or function of the user's may never end): then it is
    /// quarantined.
    pub row_timeout_ms: u64,
    /// Parents of one foreign key that went while children of it were written elsewhere: so many are looked up one by
    /// one, beyond it the whole table is looked at.
    pub foreign_key_parents_max: usize,
    /// How long an applier waits for a lock; then it tries the transaction again.
    pub lock_timeout_ms: u64,
    /// Rows of `synapsedb.conflict` that are kept at most.
    pub conflict_rows_max: u64,
    /// Days for which rows of `synapsedb.conflict` are kept.
    pub conflict_keep_days: u32,
    /// How long a spool stream may be silent before it is opened anew.
    pub stream_timeout_ms: u64,
    /// The first and the longest wait before something that failed is tried again.
    pub retry_min_ms: u64,
    /// See [`Config::retry_min_ms`].
    pub retry_max_ms: u64,
    /// Sequences step by this many times their increment, so that the nodes' values never meet. At least the number
    /// of nodes; it cannot be changed later.
    pub sequence_stride: u16,
    /// Interrupted commits of routers are looked up among so many transactions that committed last.
    pub outcomes_max: usize,
    /// How long each of them is remembered.
    pub outcomes_keep_ms: u64,
    /// The limits of comparing the nodes.
    pub verify: verify::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            spool_dir: PathBuf::new(),
            spool: spool::Config::default(),
            durability: durability::Config::default(),
            sync_interval_ms: 200,
            gather_max_ms: 5,
            apply_window: 256,
            apply_window_bytes: 1 << 20,
            apply_batch_rows: 1000,
            apply_group_max: 32,
            apply_group_lock_timeout_ms: 20,
            apply_workers: 0,
            apply_worker_min_rows: 100,
            apply_worker_claims_max: 50_000,
            apply_worker_lock_timeout_ms: 100,
            apply_worker_yield_ms: 20,
            apply_ahead_transactions_max: 256,
            apply_ahead_bytes_max: 4 << 20,
            clock_skew_max_ms: 500,
            arrivals_max: 200_000,
            quarantine_remembered_max: 1_000_000,
            decode_wait_max_ms: 5000,
            row_timeout_ms: 30_000,
            foreign_key_parents_max: 10_000,
            lock_timeout_ms: 10_000,
            conflict_rows_max: 100_000,
            conflict_keep_days: 30,
            probe_interval_ms: 2000,
            stream_timeout_ms: 5000,
            retry_min_ms: 50,
            retry_max_ms: 2000,
            sequence_stride: NodeId::MAX,
            outcomes_max: 131_072,
            outcomes_keep_ms: 120_000,
            verify: verify::Config::default(),
        }
    }
}

/// The most workers that a lane may have: all of them, with those of the other lanes, need an origin of the server's.
pub const WORKERS_MAX: usize = 4;

/// Reads what replication is doing.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// What the loops of this component share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    pub(crate) peers: peers::Handle,
    pub(crate) gossip: gossip::Handle,
    pub(crate) raft: raft::Handle,
    pub(crate) postgres: postgres::Handle,
    pub(crate) applied: Applied,
    pub(crate) own_commits: visible::OwnCommits,
    pub(crate) clock: clock::OwnClock,
    pub(crate) spools: spools::Spools,
    pub(crate) recent: recent::Recent,
    pub(crate) outcomes: outcome::Outcomes,
    pub(crate) rewrites: rewrites::Rewrites,
    pub(crate) foreign_keys: foreign_keys::check::Checks,
    pub(crate) rechecks: recheck::Rechecks,
    /// Grows when a table or a policy may have changed here: what is known of them is asked for anew.
    pub(crate) catalog: AtomicU64,
    pub(crate) status: status::Board,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) verify: verify::Board,
    pub(crate) retries: quarantine::retries::Retries,
    pub(crate) durability: durability::Durability,
    pub(crate) positions: position::Asked,
    /// Another one at every start of the agent; written into the probe row.
    pub(crate) boot: uuid::Uuid,
}

mod spools;

impl Shared {
    /// A table or a policy may have changed here.
    pub(crate) fn catalog_changed(&self) {
        self.catalog.fetch_add(1, Ordering::Release);
    }

    /// Children that may have lost their parents.
    pub(crate) fn look_for_orphans(&self, orphans: Vec<foreign_keys::Orphans>) {
        self.foreign_keys.look_for(orphans, self.config.foreign_key_parents_max);
    }

    /// What is applied here, on disk, of one life of an origin.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub(crate) async fn durable_of(&self, origin: NodeId, incarnation: Incarnation) -> Result<Lsn> {
        let name = origin_name(origin, incarnation);
        let client = self.sql("progress").await?;
        let mut durable = Lsn::ZERO;
        for row in client.query(include_str!("sql/origin_durable.sql"), &[&name]).await? {
            if row.get(1) {
                durable = durable.max(row.get::<_, String>(0).parse()?);
            }
        }
        Ok(durable)
    }

    /// A session of the agent with the local server; `purpose` is what `pg_stat_activity` shows of it.
    pub(crate) async fn sql(&self, purpose: &str) -> synapsedb_pg::Result<client::Client> {
        client::connect(&self.postgres.local().named(format!("synapsedb {purpose}"))).await
    }
}

impl Handle {
    /// What every part of replication is doing now.
    pub fn status(&self) -> Status {
        status::collect(&self.shared)
    }

    /// Why this node is not ready, or nothing: replication must run and every live member's probe must have arrived.
    pub fn not_ready(&self) -> Option<String> {
        status::not_ready(&self.shared)
    }

    /// Whether the slot is there and the peers have said that this node's data is what they know.
    pub fn may_publish(&self) -> watch::Receiver<bool> {
        self.shared.status.prepared()
    }

    /// What has been applied here of every origin.
    pub fn applied(&self) -> &Applied {
        &self.shared.applied
    }
}

/// Makes the component. Nothing runs before [`Task::run`].
///
/// # Errors
/// The spool directory cannot be made, or this node's own spool is corrupt or of another cluster.
pub fn new(
    config: Config,
    identity: Identity,
    peers: peers::Handle,
    gossip: gossip::Handle,
    raft: raft::Handle,
    postgres: postgres::Handle,
    registry: &mut prometheus_client::registry::Registry,
) -> Result<(Handle, Task)> {
    let spools = spools::Spools::new(&config, &identity)?;
    let recent = recent::Recent::new(config.arrivals_max);
    let outcomes = outcome::Outcomes::new(config.outcomes_max, config.outcomes_keep_ms);
    let durability = durability::Durability::new(config.durability.clone(), registry);
    let shared = Arc::new(Shared {
        config,
        identity,
        peers,
        gossip,
        raft,
        postgres,
        applied: Applied::default(),
        own_commits: visible::OwnCommits::default(),
        clock: clock::OwnClock::new(registry),
        spools,
        recent,
        outcomes,
        rewrites: rewrites::Rewrites::default(),
        foreign_keys: foreign_keys::check::Checks::default(),
        rechecks: recheck::Rechecks::default(),
        catalog: AtomicU64::new(0),
        status: status::Board::default(),
        metrics: metrics::Metrics::register(registry),
        verify: verify::Board::new(registry),
        retries: quarantine::retries::Retries::default(),
        durability,
        positions: position::Asked::new(),
        boot: uuid::Uuid::new_v4(),
    });
    registry.register_collector(Box::new(lag::Metrics { shared: shared.clone() }));
    Ok((Handle { shared: shared.clone() }, Task::new(shared)))
}

/// The name of the replication origin, and of the slot, that belongs to a life of a node. Both are cluster-wide names
/// of at most 63 bytes in PostgreSQL's alphabet for slots.
pub(crate) fn origin_name(node: NodeId, incarnation: Incarnation) -> String {
    format!("synapsedb_{node}_{incarnation}")
}

/// The name of the replication origin under which a worker applies transactions of a life of a node: PostgreSQL gives
/// an origin to one session only. Workers are numbered from 0.
pub(crate) fn worker_origin_name(node: NodeId, incarnation: Incarnation, worker: usize) -> String {
    format!("{}_w{}", origin_name(node, incarnation), worker + 1)
}

/// The node and life of which `name` is the origin, also one of a worker; `None` for an origin that is not ours.
pub(crate) fn parse_origin_name(name: &str) -> Option<(NodeId, Incarnation)> {
    let (node, life) = name.strip_prefix("synapsedb_")?.split_once('_')?;
    let (incarnation, worker) = life.split_once("_w").unwrap_or((life, "1"));
    worker.parse::<usize>().ok()?;
    Some((node.parse().ok()?, Incarnation(incarnation.parse().ok()?)))
}

/// Whether this node knows the cluster that it is a member of: before that, whoever else is a member.
pub(crate) fn knows_members(shared: &Shared) -> bool {
    shared.raft.state().present().any(|(node, _)| node == shared.identity.node)
}

/// The members of the cluster but this one, also those that join or leave, with the life of their data.
pub(crate) fn other_members(shared: &Shared) -> BTreeMap<NodeId, Incarnation> {
    let state = shared.raft.state();
    let others = state.present().filter(|(node, _)| *node != shared.identity.node);
    others.map(|(node, member)| (node, member.incarnation)).collect()
}
