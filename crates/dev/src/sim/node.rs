//! A pure node of the simulation: its rows, its spools, its clock, and what it has heard of the others.

use std::collections::{BTreeMap, VecDeque};

use synapsedb_core::delivery::{self, Delivery, TransactionPoint};
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::time::Timestamp;
use synapsedb_core::version::{RowVersion, VersionVector};

use super::model::Transaction;
use super::replica::{Durable, Replica};

/// How far ahead of the local clock a transaction is waited for.
pub(super) const CLOCK_SKEW_MAX_US: i64 = 500_000;
/// How many transactions one answer carries.
const BATCH: usize = 4;

/// How a node works: `Default` is as it should, the rest is broken on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rigging {
    /// Transactions are applied before what they had seen.
    pub without_causal_delivery: bool,
    /// Transactions are applied before the local clock has reached their commit time.
    pub without_commit_wait: bool,
    /// What is forgotten when.
    pub forget: Forget,
}

/// When a write is forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forget {
    /// When every transaction that may still be applied here has seen it.
    #[default]
    Stable,
    /// When every member has applied it, though transactions from before that may still be on their way.
    Applied,
    /// At once.
    AtOnce,
}

/// The transactions of one origin in one node's spool, and what is known beyond them.
#[derive(Clone, Debug, Default)]
pub(super) struct Spool {
    /// How many transactions have been dropped from the front.
    dropped: u64,
    transactions: VecDeque<Transaction>,
    /// How many of all are durable.
    synced: u64,
    /// Up to this position there is nothing else, and what the origin had seen there.
    checkpoint: Option<(Lsn, VersionVector)>,
}

impl Spool {
    pub(super) fn end(&self) -> Lsn {
        Lsn(self.dropped + self.transactions.len() as u64)
    }

    fn after(&self, lsn: Lsn) -> Option<&Transaction> {
        self.transactions.get(usize::try_from(lsn.0.checked_sub(self.dropped)?).ok()?)
    }

    pub(super) fn push(&mut self, transaction: Transaction) {
        if transaction.version.lsn.0 == self.end().0 + 1 {
            self.transactions.push_back(transaction);
        }
    }

    fn lose_tail(&mut self) {
        let kept = self.synced.saturating_sub(self.dropped) as usize;
        self.transactions.truncate(kept);
        self.checkpoint = None;
    }
}

/// A request for the transactions of an origin.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub origin: NodeId,
    pub after: Lsn,
    pub acknowledged: VersionVector,
}

/// What answers it.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub origin: NodeId,
    pub transactions: Vec<Transaction>,
    pub checkpoint: Option<(Lsn, VersionVector)>,
    pub acknowledged: VersionVector,
}

/// A node.
pub(super) struct Node {
    pub id: NodeId,
    members: Vec<NodeId>,
    rigging: Rigging,
    pub replica: Replica,
    /// What has been committed and applied here, the own transactions too.
    pub applied: VersionVector,
    durable: (Durable, VersionVector),
    pub spools: BTreeMap<NodeId, Spool>,
    /// What each member needs no more.
    acknowledged: BTreeMap<NodeId, VersionVector>,
    /// What every further transaction of an origin will have seen.
    seen: BTreeMap<NodeId, VersionVector>,
    pub clock_offset_us: i64,
    /// The latest commit time here.
    latest: Timestamp,
    pub up: bool,
}

impl Node {
    pub(super) fn new(id: NodeId, members: &[NodeId], replica: Replica, rigging: Rigging) -> Self {
        let durable = (replica.durable(), VersionVector::new());
        Self {
            id,
            members: members.to_vec(),
            rigging,
            replica,
            applied: VersionVector::new(),
            durable,
            spools: members.iter().map(|member| (*member, Spool::default())).collect(),
            acknowledged: BTreeMap::new(),
            seen: BTreeMap::new(),
            clock_offset_us: 0,
            latest: Timestamp::default(),
            up: true,
        }
    }

    pub(super) fn clock(&self, now_us: i64) -> Timestamp {
        Timestamp(now_us + self.clock_offset_us)
    }

    /// The version of a local transaction that commits now, and what it has seen; `None` while the clock, which was set
    /// back, has not caught up with what is here.
    pub(super) fn next_version(&self, now_us: i64) -> Option<(RowVersion, VersionVector)> {
        let clock = self.clock(now_us);
        if clock <= self.latest && !self.rigging.without_commit_wait {
            return None;
        }
        let lsn = Lsn(self.applied.get(self.id).0 + 1);
        let version = RowVersion { commit_time: clock, origin: self.id, lsn };
        let seen = self.applied.iter().filter(|(origin, _)| *origin != self.id).collect();
        Some((version, seen))
    }

    /// A local commit is durable, and with it everything before it.
    pub(super) fn commit(&mut self, transaction: &Transaction) {
        self.enter(transaction);
        let spool = self.spools.entry(self.id).or_default();
        spool.push(transaction.clone());
        spool.synced = spool.end().0;
        self.make_rows_durable();
    }

    fn enter(&mut self, transaction: &Transaction) {
        self.replica.apply(transaction);
        let (origin, lsn) = transaction.position();
        self.applied.advance(origin, lsn);
        self.latest = self.latest.max(transaction.version.commit_time);
        let seen = self.seen.entry(origin).or_default();
        seen.merge(&transaction.seen);
    }

    /// Applies the next transaction of `origin` if it may be applied now, and returns it.
    pub(super) fn apply_next(&mut self, origin: NodeId, now_us: i64) -> Option<Transaction> {
        // What was applied before a crash and is no longer in the spools is not remembered: it is fetched first.
        if self.spools.iter().any(|(origin, spool)| spool.end() < self.applied.get(*origin)) {
            return None;
        }
        let transaction = self.spools.get(&origin)?.after(self.applied.get(origin))?.clone();
        let RowVersion { commit_time, lsn: commit_lsn, .. } = transaction.version;
        let vector = &transaction.seen;
        let point = TransactionPoint { origin, commit_lsn, commit_time, vector };
        let now = self.clock(now_us);
        let may = match delivery::decide(&point, self.id, &self.applied, now, CLOCK_SKEW_MAX_US) {
            Delivery::Deliver => true,
            Delivery::AwaitOrigin { .. } => self.rigging.without_causal_delivery,
            Delivery::AwaitClock { .. } | Delivery::ClockSkew { .. } => {
                self.rigging.without_commit_wait
            }
            Delivery::AlreadyApplied => false,
        };
        may.then(|| {
            self.enter(&transaction);
            transaction
        })
    }

    /// What the origins had seen where there is nothing else of them.
    pub(super) fn pass_checkpoints(&mut self) {
        for (origin, spool) in &mut self.spools {
            if let Some((lsn, vector)) = &spool.checkpoint
                && self.applied.get(*origin) >= *lsn
            {
                self.seen.entry(*origin).or_default().merge(vector);
                spool.checkpoint = None;
            }
        }
    }

    pub(super) fn make_rows_durable(&mut self) {
        self.durable = (self.replica.durable(), self.applied.clone());
    }

    pub(super) fn sync_spools(&mut self) {
        self.spools.values_mut().for_each(|spool| spool.synced = spool.end().0);
    }

    /// What this node needs no more from others: it is durable in its rows and in its spools.
    fn own_acknowledged(&self) -> VersionVector {
        let durable = |origin: NodeId| {
            let synced = self.spools.get(&origin).map_or(0, |spool| spool.synced);
            self.durable.1.get(origin).min(Lsn(synced))
        };
        self.members.iter().map(|origin| (*origin, durable(*origin))).collect()
    }

    pub(super) fn request(&self, origin: NodeId) -> Request {
        let after = self.spools.get(&origin).map(Spool::end).unwrap_or_default();
        Request { origin, after, acknowledged: self.own_acknowledged() }
    }

    /// Answers a request of a peer.
    ///
    /// # Errors
    /// The spool begins too late: the peer would have to be re-seeded.
    pub(super) fn answer(&mut self, from: NodeId, request: &Request) -> Result<Answer, String> {
        self.hear(from, &request.acknowledged);
        let Request { origin, after, .. } = *request;
        let Some(spool) = self.spools.get(&origin) else { return Err("no spool".to_owned()) };
        if after.0 < spool.dropped {
            return Err(format!(
                "{} holds origin {origin} only after {}, node {from} needs it after {after}",
                self.id, spool.dropped
            ));
        }
        let begin = (after.0 - spool.dropped) as usize;
        let transactions: Vec<_> =
            spool.transactions.iter().skip(begin).take(BATCH).cloned().collect();
        let all = begin + transactions.len() >= spool.transactions.len();
        // Only what is durable here will have been seen after a crash too.
        let checkpoint = (all && origin == self.id).then(|| (spool.end(), self.durable.1.clone()));
        Ok(Answer { origin, transactions, checkpoint, acknowledged: self.own_acknowledged() })
    }

    pub(super) fn receive(&mut self, from: NodeId, answer: Answer) {
        self.hear(from, &answer.acknowledged);
        let spool = self.spools.entry(answer.origin).or_default();
        for transaction in answer.transactions {
            spool.push(transaction);
        }
        if let Some((lsn, vector)) = answer.checkpoint
            && lsn <= spool.end()
        {
            spool.checkpoint = Some((lsn, vector));
        }
    }

    fn hear(&mut self, from: NodeId, acknowledged: &VersionVector) {
        self.acknowledged.entry(from).or_default().merge(acknowledged);
    }

    fn others(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().copied().filter(|member| *member != self.id)
    }

    /// Whether every transaction that may still be applied here has seen this one.
    fn is_stable(&self, version: RowVersion) -> bool {
        let RowVersion { origin, lsn, .. } = version;
        let sees = |member: NodeId| {
            let seen = self.seen.get(&member);
            member == origin || seen.is_some_and(|seen| seen.get(origin) >= lsn)
        };
        self.applied.get(origin) >= lsn && self.others().all(sees)
    }

    fn is_acknowledged(&self, version: RowVersion) -> bool {
        let RowVersion { origin, lsn, .. } = version;
        let has = |vector: Option<&VersionVector>| vector.is_some_and(|v| v.get(origin) >= lsn);
        has(Some(&self.own_acknowledged()))
            && self.others().all(|member| has(self.acknowledged.get(&member)))
    }

    /// Drops from memory and from the spools what is needed no more.
    pub(super) fn forget(&mut self) {
        let spooled = self.spools.values().flat_map(|spool| &spool.transactions);
        let unstable = spooled.map(|transaction| transaction.version);
        // In the order of versions: what takes a value is remembered as long as what loses it.
        let horizon = unstable.filter(|version| !self.is_stable(*version)).min();
        let forgotten = |version: RowVersion| match self.rigging.forget {
            Forget::Stable => horizon.is_none_or(|horizon| version < horizon),
            Forget::Applied => self.is_acknowledged(version),
            Forget::AtOnce => true,
        };
        let mut drops = Vec::new();
        for (origin, spool) in &self.spools {
            let may = |transaction: &&Transaction| {
                let version = transaction.version;
                forgotten(version) && self.is_acknowledged(version)
            };
            drops.push((*origin, spool.transactions.iter().take_while(may).count()));
        }
        let remembered: Vec<RowVersion> = self.replica.versions();
        let gone: std::collections::BTreeSet<_> =
            remembered.into_iter().filter(|version| forgotten(*version)).collect();
        self.replica.forget(|version| gone.contains(&version));
        for (origin, count) in drops {
            if let Some(spool) = self.spools.get_mut(&origin) {
                spool.transactions.drain(..count);
                spool.dropped += count as u64;
            }
        }
    }

    /// The process ends without warning, perhaps the server too, and all that was not durable is gone.
    pub(super) fn crash(&mut self, server_too: bool) {
        self.up = false;
        self.acknowledged.clear();
        self.seen.clear();
        self.spools.values_mut().for_each(Spool::lose_tail);
        if !server_too {
            self.make_rows_durable();
        }
    }

    /// The start after it: the index is made again from the spools.
    pub(super) fn recover(&mut self) {
        self.up = true;
        let (rows, applied) = self.durable.clone();
        self.applied = applied;
        let spooled = self.spools.values().flat_map(|spool| &spool.transactions);
        let applied = |t: &&Transaction| t.version.lsn <= self.applied.get(t.version.origin);
        let mut known: Vec<&Transaction> = spooled.filter(applied).collect();
        known.sort_by_key(|transaction| transaction.version);
        self.replica.recover(rows, known.iter().copied());
        for transaction in known {
            let seen = self.seen.entry(transaction.version.origin).or_default();
            seen.merge(&transaction.seen);
        }
    }

    /// How many transactions the spools hold.
    pub(super) fn spooled(&self) -> usize {
        self.spools.values().map(|spool| spool.transactions.len()).sum()
    }
}
