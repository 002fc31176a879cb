//! Durability classes: what a commit here waits for, before the client is told of it.
//!
//! **Runs on:** every node, for the commits of its own server. **Invariant:** the server is told that a commit is safe
//! only when enough members have it on their disks (`quorum`) or show it to readers (`applied`); where that rule is
//! suspended, it is said in the log, the status, the metrics and `synapsedb.durability()`.
//!
//! The stream by which the publisher reads the WAL is the server's synchronous standby: what it reports as flushed and
//! applied releases the sessions that wait with `synchronous_commit = on` and `remote_apply`. The [`gate`] decides what
//! it reports, from the acknowledgements that the peers send back on their spool streams. The [`keeper`] makes the
//! server ask ([`settings`]) and watches who waits.

pub(crate) mod gate;
pub(crate) mod keeper;
mod metrics;
pub(crate) mod settings;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use synapsedb_core::durability::{Class, OnLostQuorum, Quorum, needed};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::state::MemberStatus;
use tokio::sync::Notify;

use super::Shared;
use super::api::{DurabilityBody, DurabilityMemberBody};

/// How long the peers are asked to hurry after a session that waited for them was seen.
const HURRY_MS: u64 = 10_000;

/// What commits wait for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The class of sessions that choose none: `local`, `quorum` or `applied`.
    pub class: Class,
    /// How many members, this one among them, must have a commit; 0 means a majority of the members.
    pub members: u16,
    /// What happens while too few members answer: `block` (commits wait) or `degrade` (the class is `local` meanwhile).
    pub on_lost_quorum: OnLostQuorum,
    /// How long a commit waits, or members are missing, until the quorum counts as lost.
    pub degrade_after_ms: u64,
    /// How long a commit of class `applied` may keep a peer's transaction from being applied here, by a lock that it
    /// holds while it waits. Then it is released in class `quorum`: else two nodes would wait for each other.
    pub applied_wait_max_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            class: Class::Local,
            members: 0,
            on_lost_quorum: OnLostQuorum::Block,
            degrade_after_ms: 10_000,
            applied_wait_max_ms: 1_000,
        }
    }
}

/// What a peer has of this node's transactions, as commit LSNs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ack {
    /// On its disk.
    pub(crate) durable: Lsn,
    /// Seen by its readers.
    pub(crate) visible: Lsn,
}

/// What the peer said on its stream, the newest if it opened several.
#[derive(Clone, Copy, Debug)]
struct Peer {
    stream: u64,
    incarnation: Incarnation,
    connected: bool,
    ack: Ack,
}

/// What the gate decided last.
#[derive(Clone, Copy, Debug, Default)]
struct View {
    durable: Quorum,
    visible: Quorum,
    durable_waiting_ms: Option<u64>,
    visible_waiting_ms: Option<u64>,
    /// The newest commit that was spooled.
    newest: Lsn,
    /// What was reported as flushed and as applied.
    flush: Lsn,
    apply: Lsn,
}

/// What the gate, the streams of the peers and the keeper share.
pub(crate) struct Durability {
    pub(crate) config: Config,
    pub(crate) metrics: metrics::Metrics,
    started: Instant,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    streams: AtomicU64,
    changed: Notify,
    view: Mutex<View>,
    /// Nobody waits for anything before it.
    unwaited: AtomicU64,
    /// Waits of class `applied` before it are given up.
    applied_floor: AtomicU64,
    /// Until when sessions that wait for other nodes were seen lately, in milliseconds since `started`.
    hurry_until_ms: AtomicU64,
    /// Sessions that wait now.
    waiting: AtomicU64,
    /// Why the server does not ask for what the class promises.
    not_in_force: Mutex<Option<String>>,
}

impl Durability {
    pub(crate) fn new(
        config: Config,
        registry: &mut prometheus_client::registry::Registry,
    ) -> Self {
        let starting = "the own WAL is not being read yet".to_owned();
        Self {
            metrics: metrics::Metrics::register(registry, config.class),
            config,
            started: Instant::now(),
            peers: Mutex::default(),
            streams: AtomicU64::new(0),
            changed: Notify::new(),
            view: Mutex::default(),
            unwaited: AtomicU64::new(0),
            applied_floor: AtomicU64::new(0),
            hurry_until_ms: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            not_in_force: Mutex::new(Some(starting)),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns when there may be something new for the gate. Cancel safe, for one waiter.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// A peer has opened a stream of this node's transactions; it counts as connected as long as the answer lives.
    pub(crate) fn connect(&self, peer: NodeId, incarnation: Incarnation) -> AckStream<'_> {
        let stream = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        let ack = Ack::default();
        lock(&self.peers).insert(peer, Peer { stream, incarnation, connected: true, ack });
        AckStream { durability: self, peer, stream }
    }

    /// Up to which class somebody waits, so that spools are synced and progress is told at once.
    pub(crate) fn hurry(&self) -> Class {
        let seen = self.now_ms() < self.hurry_until_ms.load(Ordering::Relaxed);
        if seen { Class::Applied } else { self.config.class }
    }

    /// The peers whose acknowledgements count, and how many members are needed.
    fn members(&self, shared: &Shared) -> Members {
        let state = shared.raft.state();
        let mut peers: BTreeMap<NodeId, Option<Incarnation>> =
            shared.peers.others().into_iter().map(|node| (node, None)).collect();
        // Who is configured but not registered yet counts: the safe side, also before Raft's state is known.
        for (node, member) in &state.members {
            match member.status {
                MemberStatus::Active | MemberStatus::Leaving => {
                    peers.insert(*node, Some(member.incarnation))
                }
                MemberStatus::Joining | MemberStatus::Removed => peers.remove(node),
            };
        }
        peers.remove(&shared.identity.node);
        let needed = needed(peers.len() + 1, usize::from(self.config.members));
        Members { peers, needed }
    }

    /// What the members have acknowledged, and how many of them are connected, this one included.
    fn acks(&self, members: &Members) -> (Vec<Ack>, usize) {
        let known = lock(&self.peers);
        let counted = members.peers.iter().filter_map(|(node, incarnation)| {
            known.get(node).filter(|peer| incarnation.is_none_or(|life| life == peer.incarnation))
        });
        let counted: Vec<&Peer> = counted.collect();
        let connected = counted.iter().filter(|peer| peer.connected).count() + 1;
        (counted.iter().map(|peer| peer.ack).collect(), connected)
    }

    /// Why the class is not in force, if it is not; `local` needs nothing.
    pub(crate) fn not_in_force(&self) -> Option<String> {
        let reason = lock(&self.not_in_force).clone()?;
        (self.config.class > Class::Local).then(|| {
            format!("durability class {} is not in force: {reason}", name(self.config.class))
        })
    }

    /// The status.
    pub(crate) fn status(&self, shared: &Shared) -> DurabilityBody {
        let members = self.members(shared);
        let (_, connected) = self.acks(&members);
        let view = *lock(&self.view);
        let (state, since_ms) = self.state(&view);
        let known = lock(&self.peers);
        let body = |node: &NodeId| {
            let peer = known.get(node);
            let ack = peer.map(|peer| peer.ack).unwrap_or_default();
            DurabilityMemberBody {
                node: node.get(),
                connected: peer.is_some_and(|peer| peer.connected),
                acknowledged: ack.durable >= view.newest,
                durable_lsn: ack.durable.to_string(),
                visible_lsn: ack.visible.to_string(),
            }
        };
        let peers: Vec<_> = members.peers.keys().map(body).collect();
        let reason = lock(&self.not_in_force).clone();
        // The server asks for a standby that does not run yet, and which then would not have enough members.
        let unserved = self.config.class > Class::Local && reason.is_some();
        let state = if unserved && connected < members.needed { "lost" } else { state };
        let waiting_ms = match self.config.class {
            Class::Local | Class::Quorum => view.durable_waiting_ms,
            Class::Applied => view.visible_waiting_ms.max(view.durable_waiting_ms),
        };
        DurabilityBody {
            class: name(self.config.class),
            in_force: reason.is_none(),
            reason,
            state,
            since_ms: since_ms.map(|since| self.now_ms().saturating_sub(since)),
            on_lost_quorum: match self.config.on_lost_quorum {
                OnLostQuorum::Block => "block",
                OnLostQuorum::Degrade => "degrade",
            },
            members_needed: members.needed,
            members_connected: connected,
            members_acknowledged: 1 + peers.iter().filter(|peer| peer.acknowledged).count(),
            waiting_sessions: self.waiting.load(Ordering::Relaxed),
            oldest_unacknowledged_ms: waiting_ms,
            quorum_lsn: view.flush.to_string(),
            applied_lsn: view.apply.to_string(),
            members: peers,
        }
    }

    /// The state in one word, and since when, in milliseconds since the start.
    fn state(&self, view: &View) -> (&'static str, Option<u64>) {
        let quorum = match (self.config.class, view.durable) {
            (Class::Applied, Quorum::Met) => view.visible,
            (_, durable) => durable,
        };
        match quorum {
            Quorum::Met => ("met", None),
            Quorum::Lost(since) => ("lost", Some(since)),
            Quorum::Degraded(since) => ("degraded", Some(since)),
        }
    }
}

/// The peers that count, with the life that Raft knows of them, and how many members are needed.
#[derive(Clone, Debug, Default)]
struct Members {
    peers: BTreeMap<NodeId, Option<Incarnation>>,
    needed: usize,
}

/// A peer's stream of this node's transactions, on which it acknowledges them.
pub(crate) struct AckStream<'a> {
    durability: &'a Durability,
    peer: NodeId,
    stream: u64,
}

impl AckStream<'_> {
    /// The peer has this much.
    pub(crate) fn acknowledged(&self, ack: Ack) {
        self.update(|peer| peer.ack = ack);
    }

    fn update(&self, change: impl FnOnce(&mut Peer)) {
        let mut peers = lock(&self.durability.peers);
        // A stream that was replaced by a newer one has no say.
        if let Some(peer) = peers.get_mut(&self.peer).filter(|peer| peer.stream == self.stream) {
            change(peer);
            self.durability.changed.notify_one();
        }
    }
}

impl Drop for AckStream<'_> {
    fn drop(&mut self) {
        self.update(|peer| peer.connected = false);
    }
}

/// The class as it is configured.
pub(crate) fn name(class: Class) -> &'static str {
    match class {
        Class::Local => "local",
        Class::Quorum => "quorum",
        Class::Applied => "applied",
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
