//! Decides what the publisher reports to its server as flushed and as applied: what releases the commits that wait.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use synapsedb_core::durability::{Class, Facts, Pending, Quorum, Watch, reached};
use synapsedb_core::lsn::Lsn;

use super::{Ack, Durability, Members, View, lock, name};
use crate::replication::Shared;
use crate::replication::spool::Tail;

/// Commits that are answered for one by one; beyond that, neighbours share an answer.
const ENTRIES_MAX: usize = 8192;

/// How long the list of members is used before it is read again.
const MEMBERS_MAX_AGE: Duration = Duration::from_millis(250);

/// The publisher's own; see the [module](super).
pub(crate) struct Gate<'a> {
    shared: &'a Shared,
    durability: &'a Durability,
    durable: Level,
    visible: Level,
    members: Members,
    members_read: Instant,
    newest: Lsn,
    /// Where the stream began: the slot may stand there, and must not go back.
    from: Lsn,
    reported: Positions,
}

/// What is reported to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Positions {
    /// Releases `synchronous_commit = on` and `remote_write`; the server forgets the WAL before it.
    pub(crate) flush: Lsn,
    /// Releases `remote_apply`.
    pub(crate) apply: Lsn,
}

struct Level {
    class: Class,
    pending: Pending,
    watch: Watch,
}

impl Level {
    fn new(class: Class, durability: &Durability) -> Self {
        let config = &durability.config;
        let watch = Watch::new(config.on_lost_quorum, config.degrade_after_ms);
        Self { class, pending: Pending::new(ENTRIES_MAX), watch }
    }

    /// Takes in what enough members have, and looks whether that keeps going on.
    fn look(&mut self, durability: &Durability, through: Option<Lsn>, facts: Facts, now_ms: u64) {
        self.pending.acknowledge(through);
        let facts = Facts { waiting_ms: self.pending.age_ms(now_ms), ..facts };
        if let Some(state) = self.watch.step(now_ms, facts) {
            tell(durability, self.class, state, facts);
        }
    }

    fn degraded(&self) -> bool {
        match self.watch.state() {
            Quorum::Degraded(_) => true,
            Quorum::Met | Quorum::Lost(_) => false,
        }
    }
}

impl<'a> Gate<'a> {
    /// For a stream from `from`. What is in the spool already may still be waited for: the server outlives its agent.
    pub(crate) fn new(shared: &'a Shared, tail: &Tail, from: Lsn) -> Self {
        let durability = &shared.durability;
        let mut gate = Self {
            shared,
            durability,
            durable: Level::new(Class::Quorum, durability),
            visible: Level::new(Class::Applied, durability),
            members: durability.members(shared),
            members_read: Instant::now(),
            newest: Lsn::ZERO,
            from,
            reported: Positions::default(),
        };
        if tail.commit_lsn > Lsn::ZERO {
            gate.committed(tail.commit_lsn, tail.end_lsn);
        }
        gate
    }

    /// A transaction was spooled.
    pub(crate) fn committed(&mut self, commit_lsn: Lsn, end_lsn: Lsn) {
        let now_ms = self.durability.now_ms();
        self.durable.pending.push(commit_lsn, end_lsn, now_ms);
        self.visible.pending.push(commit_lsn, end_lsn, now_ms);
        self.newest = commit_lsn;
    }

    /// What may be reported, given that everything before `own` is on the own disk. It never goes back.
    pub(crate) fn positions(&mut self, own: Lsn) -> Positions {
        if self.members_read.elapsed() > MEMBERS_MAX_AGE {
            self.members = self.durability.members(self.shared);
            self.members_read = Instant::now();
        }
        let (acks, connected) = self.durability.acks(&self.members);
        let needed = self.members.needed;
        let facts = Facts { connected, needed, waiting_ms: None };
        let now_ms = self.durability.now_ms();
        let through = |of: fn(&Ack) -> Lsn| reached(acks.iter().map(of), needed);
        self.durable.look(self.durability, through(|ack| ack.durable), facts, now_ms);
        self.visible.look(self.durability, through(|ack| ack.visible), facts, now_ms);

        let unwaited = own.min(Lsn(self.durability.unwaited.load(Ordering::Relaxed)));
        let floor = Lsn(self.durability.applied_floor.load(Ordering::Relaxed));
        let flush = if self.durable.degraded() {
            own
        } else {
            self.durable.pending.position(own).max(unwaited)
        };
        let apply = if self.visible.degraded() {
            flush
        } else {
            self.visible.pending.position(own).max(unwaited).max(floor).min(flush)
        };
        // Zero says nothing.
        let flush = if flush < self.from { Lsn::ZERO } else { flush };
        let apply = apply.min(flush);
        let before = self.reported;
        self.reported =
            Positions { flush: flush.max(before.flush), apply: apply.max(before.apply) };
        *lock(&self.durability.view) = View {
            durable: self.durable.watch.state(),
            visible: self.visible.watch.state(),
            durable_waiting_ms: self.durable.pending.age_ms(now_ms),
            visible_waiting_ms: self.visible.pending.age_ms(now_ms),
            newest: self.newest,
            flush: self.reported.flush,
            apply: self.reported.apply,
        };
        self.reported
    }
}

/// A quorum that nobody asks for is no matter for a human; the one of the cluster's class is.
fn tell(durability: &Durability, class: Class, state: Quorum, facts: Facts) {
    let what = name(class);
    let ours = class <= durability.config.class;
    let Facts { connected, needed, waiting_ms } = facts;
    let waiting_ms = waiting_ms.unwrap_or_default();
    match state {
        Quorum::Met if ours => {
            tracing::warn!(
                class = what,
                connected,
                needed,
                "enough members acknowledge commits again: the class is \
                in force"
            );
        }
        Quorum::Lost(_) if ours => {
            tracing::error!(
                class = what,
                connected,
                needed,
                waiting_ms,
                "too few members acknowledge commits: \
                commits of this class wait until they do (replication.durability.on_lost_quorum = \"block\")"
            );
        }
        Quorum::Degraded(_) if ours => {
            tracing::error!(
                class = what,
                connected,
                needed,
                waiting_ms,
                "too few members acknowledge commits: \
                the class is DEGRADED to local until they have caught up. What is committed now is lost with this \
                node's disk (replication.durability.on_lost_quorum = \"degrade\")"
            );
        }
        Quorum::Met | Quorum::Lost(_) | Quorum::Degraded(_) => {
            tracing::info!(
                class = what,
                connected,
                needed,
                waiting_ms,
                ?state,
                "the members that acknowledge commits"
            );
        }
    }
    // One event is counted once: for the cluster's class, and for quorum where sessions alone choose it.
    if class == durability.config.class.max(Class::Quorum) {
        match state {
            Quorum::Degraded(_) => durability.metrics.degradations.inc(),
            Quorum::Lost(_) => durability.metrics.quorum_losses.inc(),
            Quorum::Met => 0,
        };
    }
}
