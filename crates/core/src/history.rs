//! What is remembered of recent writes until every member has passed them: commit times, deletes, unique claims.
//!
//! A row tells who wrote it last, by its `xmin`. It does not tell what was deleted, which unique values a row held
//! before it moved on, or whether a writer had seen another. This index answers that; it is filled from the spools
//! (local writes as they are decoded, remote ones as they are applied) and forgets what is *stable*: what every member
//! is known to have seen, so that no concurrent write can arrive any more.
//!
//! Rows and unique values are named by [`Digest`]s. The index never decides alone: it says that a transaction must be
//! looked at closely, and answers exactly when it is.

mod arrivals;
mod forgetting;
mod policies;
mod writes;

use std::collections::{BTreeMap, VecDeque};

use arrivals::Arrivals;
pub use writes::KnownWrite;

use crate::ids::NodeId;
use crate::lsn::Lsn;
use crate::policy::Epochs;
use crate::time::Timestamp;
use crate::version::{RowVersion, VersionVector};

/// The name of a row (table and primary key) or of a unique value (index and values): 128 bits, so that two names
/// never meet by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u128);

/// A transaction of an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its commit LSN.
    pub lsn: Lsn,
    /// When it committed.
    pub time: Timestamp,
    /// Its transaction id at its origin.
    pub xid: u32,
    /// Whether it was not applied in a group here (see [`crate::group`]): its rows alone carry its time.
    pub alone: bool,
}

/// A unique value that a write took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    row: Digest,
    version: RowVersion,
}

/// A transaction as a writer: its version, and what it had seen.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The version of every row that it writes.
    pub version: RowVersion,
    /// What its origin had seen of the others when it committed.
    pub vector: &'a VersionVector,
}

impl Writer<'_> {
    /// Whether it had seen the write `other`.
    pub fn has_seen(&self, other: &RowVersion) -> bool {
        other.origin == self.version.origin || other.lsn <= self.vector.get(other.origin)
    }
}

/// How the writer of a row stands to a transaction that is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The transaction had seen it, or it is older than everything that is remembered.
    Covered,
    /// Neither had seen the other; with the writer's commit LSN if it is known already.
    Concurrent(Option<Lsn>),
}

/// How far apart the commit times of two transactions may be whose commit records stand in the other order: the time is
/// taken before the record is written. Measured: at most 121 µs; a process that is stopped in between takes longer.
const INVERSION_US: i64 = 1_000_000;

/// Among how many commits from the first unseen one the earliest time is looked for: as many sessions may commit at the
/// same instant. A row whose time is missed is still older than the transaction, which wins.
const INVERSION_COMMITS: usize = 64;

/// What an entry is, for forgetting it.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Tombstone(Digest),
    Claim(Digest),
    Write(Digest),
}

/// The index.
#[derive(Clone, Debug, Default)]
pub struct History {
    commits: BTreeMap<NodeId, VecDeque<Commit>>,
    /// What transactions of each origin had seen when the last of them that is applied here committed.
    seen: BTreeMap<NodeId, VersionVector>,
    /// The same of those that are known and not applied yet, where it grew.
    growing: BTreeMap<NodeId, VecDeque<(Lsn, VersionVector)>>,
    tombstones: BTreeMap<Digest, RowVersion>,
    claims: BTreeMap<Digest, Vec<Claim>>,
    /// All writes on rows of tables with a policy of their own, in the order of their versions.
    writes: BTreeMap<Digest, Vec<KnownWrite>>,
    /// By origin, in the order of registration, which is that of its commits.
    entries: BTreeMap<NodeId, VecDeque<(Lsn, Entry)>>,
    /// Rows that were inserted here by remote transactions which the decoding of the own WAL has not passed yet.
    arrivals: Arrivals,
    /// Changes of tables' policies that a write may still come without.
    policies: BTreeMap<Digest, Epochs>,
    /// Up to where everything may be forgotten.
    forgotten: VersionVector,
    /// Per side of a foreign key, the last write of each origin that matters to the other side.
    touched: BTreeMap<Digest, VersionVector>,
}

impl History {
    /// An empty index that remembers at most `arrivals_max` rows whose arrival has not been decoded yet.
    pub fn new(arrivals_max: usize) -> Self {
        Self { arrivals: Arrivals::new(arrivals_max), ..Self::default() }
    }

    /// A transaction of `origin` has committed, after all others that are known of it, having seen `vector`. It need
    /// not be applied here yet.
    pub fn committed(&mut self, origin: NodeId, commit: Commit, vector: &VersionVector) {
        let commits = self.commits.entry(origin).or_default();
        if commits.back().is_some_and(|last| last.lsn >= commit.lsn) {
            // What was to be applied by itself, and was not, may come in a group the next time.
            if let Ok(at) = commits.binary_search_by_key(&commit.lsn, |known| known.lsn) {
                commits[at].alone &= commit.alone;
            }
            return;
        }
        commits.push_back(commit);
        let growing = self.growing.entry(origin).or_default();
        let last = growing.back().map(|(_, last)| last).or_else(|| self.seen.get(&origin));
        if last != Some(vector) {
            growing.push_back((commit.lsn, vector.clone()));
        }
    }

    /// Up to which commit time the writers of rows here are certain to have been seen by a transaction of `origin` with
    /// this `vector` and commit `time`, or are of its own origin. A row whose writer is younger is looked at closely.
    pub fn bound(
        &self,
        here: NodeId,
        origin: NodeId,
        vector: &VersionVector,
        time: Timestamp,
    ) -> Timestamp {
        let mut bound = time.plus_us(-1);
        let mut knows_own = false;
        for (&node, commits) in &self.commits {
            if node == origin {
                continue;
            }
            knows_own |= node == here;
            let Some(last) = commits.back() else { continue };
            let seen = vector.get(node);
            if last.lsn > seen {
                let unseen = commits.partition_point(|commit| commit.lsn <= seen);
                // The times stand nearly in the order of the records.
                let first = commits.range(unseen..).take(INVERSION_COMMITS);
                let earliest = first.map(|commit| commit.time).min().unwrap_or(time);
                bound = bound.min(earliest.plus_us(-1));
            } else if node == here {
                // Local commits that are not decoded yet are younger than the last that is.
                bound = bound.min(last.time);
            }
        }
        if knows_own { bound } else { Timestamp(i64::MIN) }
    }

    /// An origin begins another life with a copy of another node's data: what the one that ended had seen says nothing
    /// of what the next one writes upon. Everything of the life that ended is applied here.
    pub fn reborn(&mut self, origin: NodeId) {
        self.seen.remove(&origin);
        self.growing.remove(&origin);
    }

    /// Whether a transaction with this `vector` had seen the writer of a row: `writer` committed at `time`, with the
    /// transaction id `xid` if it committed on this very server. A row that an earlier life of this node wrote, and
    /// that came back with a copy, has no such id here.
    ///
    /// Two transactions of one origin in the same microsecond cannot be told apart by a row that was applied from
    /// there; the earlier one is taken then, so that no false conflict is told.
    pub fn seen(
        &self,
        here: NodeId,
        vector: &VersionVector,
        writer: NodeId,
        time: Timestamp,
        xid: Option<u32>,
    ) -> Seen {
        let Some(commits) = self.commits.get(&writer).filter(|commits| !commits.is_empty()) else {
            return Seen::Covered;
        };
        let found = match xid {
            Some(xid) => commits.iter().rev().find(|known| known.xid == xid && known.time == time),
            None => commits.iter().find(|commit| commit.time == time),
        };
        let own = writer == here && xid.is_some();
        match found {
            Some(commit) if commit.lsn <= vector.get(writer) => Seen::Covered,
            Some(commit) => Seen::Concurrent(Some(commit.lsn)),
            // What is not decoded yet was not sent to anybody.
            None if own
                && commits.back().is_some_and(|last| time.us_since(last.time) > -INVERSION_US) =>
            {
                Seen::Concurrent(None)
            }
            None => Seen::Covered,
        }
    }

    /// The commit of `origin` with this LSN, if it is remembered.
    pub fn commit(&self, origin: NodeId, lsn: Lsn) -> Option<Commit> {
        let commits = self.commits.get(&origin)?;
        let at = commits.binary_search_by_key(&lsn, |commit| commit.lsn).ok()?;
        commits.get(at).copied()
    }

    /// The first remembered commit of `origin` at this time.
    pub fn commit_at(&self, origin: NodeId, time: Timestamp) -> Option<Commit> {
        self.commits.get(&origin)?.iter().find(|commit| commit.time == time).copied()
    }

    /// The commits of `origin` that are remembered, in the order of the WAL.
    pub(crate) fn commits_of(&self, origin: NodeId) -> Option<&VecDeque<Commit>> {
        self.commits.get(&origin)
    }

    /// One side of a foreign key was written: a child that refers to somebody, or a parent that goes.
    pub fn touch(&mut self, side: Digest, version: RowVersion) {
        self.touched.entry(side).or_default().advance(version.origin, version.lsn);
    }

    /// The last writes of one side of a foreign key that `writer` had not seen, by origin; empty if it had seen all.
    pub fn untold(&self, side: Digest, writer: &Writer<'_>) -> VersionVector {
        let Some(last) = self.touched.get(&side) else { return VersionVector::new() };
        let unseen = |(origin, lsn): &(NodeId, Lsn)| {
            *origin != writer.version.origin && *lsn > writer.vector.get(*origin)
        };
        last.iter().filter(unseen).collect()
    }

    /// A row was deleted, or its primary key changed, or it lost a unique value. Answers whether an older version of it
    /// may have been inserted here after that, unseen: then the row must be looked at.
    pub fn deleted(&mut self, row: Digest, version: RowVersion) -> bool {
        let tombstone = self.tombstones.entry(row).or_insert(version);
        *tombstone = version.max(*tombstone);
        let entries = self.entries.entry(version.origin).or_default();
        entries.push_back((version.lsn, Entry::Tombstone(row)));
        self.arrivals.may_have_older(row, version)
    }

    /// The transactions that have brought older versions of a row here behind a delete of this `version`, or may have:
    /// of each origin the last. They may still be on their way.
    pub fn arrivals_before(&mut self, row: Digest, version: RowVersion) -> VersionVector {
        self.arrivals.older(row, version)
    }

    /// The latest delete of a row that is remembered.
    pub fn tombstone(&self, row: Digest) -> Option<RowVersion> {
        self.tombstones.get(&row).copied()
    }

    /// Whether no delete and no claim is remembered: then nothing needs to be looked up.
    pub fn is_quiet(&self) -> bool {
        self.tombstones.is_empty() && self.claims.is_empty()
    }

    /// A remote transaction inserts a row here.
    pub fn arrived(&mut self, row: Digest, version: RowVersion) {
        self.arrivals.push(row, version);
    }

    /// Whether a remote transaction may have inserted the row here since what has been decoded of the own WAL.
    pub fn may_have_arrived(&mut self, row: Digest) -> bool {
        self.arrivals.may_have(row)
    }

    /// The own WAL has been decoded up to where the transaction `through` of `origin` was applied.
    pub fn decoded(&mut self, origin: NodeId, through: Lsn) {
        self.arrivals.decoded(origin, through);
    }

    /// Whether a delete of the row is remembered that the writer had not seen.
    pub fn is_deleted_unseen(&self, row: Digest, writer: &Writer<'_>) -> bool {
        self.tombstones.get(&row).is_some_and(|tombstone| !writer.has_seen(tombstone))
    }

    /// A write takes a unique value for a row. Answers whether a write of another row claims it too, which this one had
    /// not seen: then the row must be looked at.
    pub fn claim(&mut self, value: Digest, row: Digest, writer: &Writer<'_>) -> bool {
        let version = writer.version;
        let claims = self.claims.entry(value).or_default();
        let beats = claims.iter().any(|claim| claim.row != row && !writer.has_seen(&claim.version));
        match claims.iter_mut().find(|claim| claim.row == row && claim.version == version) {
            Some(_) => return beats,
            None => claims.push(Claim { row, version }),
        }
        let entries = self.entries.entry(version.origin).or_default();
        entries.push_back((version.lsn, Entry::Claim(value)));
        beats
    }

    /// The transactions that claim a unique value for another row and that `writer` had not seen: of each origin the
    /// last.
    pub fn claims_unseen(&self, value: Digest, row: Digest, writer: &Writer<'_>) -> VersionVector {
        let claims = self.claims.get(&value).map(Vec::as_slice).unwrap_or_default();
        let unseen = claims.iter().filter(|claim| claim.row != row);
        let mut last = VersionVector::new();
        for Claim { version, .. } in unseen.filter(|claim| !writer.has_seen(&claim.version)) {
            last.advance(version.origin, version.lsn);
        }
        last
    }

    /// The latest write of another row than `row` that claims a unique value and is later than `version`: it takes the
    /// value from `row`, wherever its own row is now.
    pub fn taken_by(&self, value: Digest, row: Digest, version: RowVersion) -> Option<RowVersion> {
        let others = self.claims.get(&value)?.iter().filter(|claim| claim.row != row);
        others.map(|claim| claim.version).filter(|claim| *claim > version).max()
    }

    /// Whether a transaction had seen everything that is known.
    pub fn has_seen_all(&self, writer: &Writer<'_>) -> bool {
        self.commits.iter().all(|(&origin, commits)| {
            let last = commits.back().map_or(Lsn::ZERO, |last| last.lsn);
            origin == writer.version.origin || last <= writer.vector.get(origin)
        })
    }

    /// After the index was built from the spools: what lost a unique value to a later write is as good as deleted.
    pub fn bury_losers(&mut self) {
        let lost = |claims: &Vec<Claim>| -> Vec<Claim> {
            let beaten = |claim: &&Claim| {
                claims.iter().any(|other| other.row != claim.row && other.version > claim.version)
            };
            claims.iter().filter(beaten).copied().collect()
        };
        let losers: Vec<Claim> = self.claims.values().flat_map(lost).collect();
        for loser in losers {
            self.deleted(loser.row, loser.version);
        }
    }

    /// How many commits, deletes, claims, writes and arrivals are remembered. Takes no longer when they are many.
    pub fn len(&self) -> usize {
        let commits: usize = self.commits.values().map(VecDeque::len).sum();
        let entries: usize = self.entries.values().map(VecDeque::len).sum();
        commits + entries + self.arrivals.len()
    }

    /// Whether nothing at all is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;
    use crate::policy::Effect;

    fn node(number: u16) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn vector(entries: &[(u16, u64)]) -> VersionVector {
        entries.iter().map(|&(number, lsn)| (node(number), Lsn(lsn))).collect()
    }

    fn version(origin: u16, lsn: u64, time: i64) -> RowVersion {
        RowVersion { commit_time: Timestamp(time), origin: node(origin), lsn: Lsn(lsn) }
    }

    fn commit(lsn: u64, time: i64) -> Commit {
        Commit {
            lsn: Lsn(lsn),
            time: Timestamp(time),
            xid: u32::try_from(lsn).unwrap(),
            alone: false,
        }
    }

    const ROW: Digest = Digest(7);
    const OTHER: Digest = Digest(8);
    const VALUE: Digest = Digest(9);

    #[test]
    fn the_bound_is_before_the_first_unseen_commit() {
        let mut history = History::new(10);
        let of_three = |seen: &[(u16, u64)]| vector(seen);
        assert_eq!(history.bound(node(1), node(2), &of_three(&[]), Timestamp(99)).0, i64::MIN);
        history.committed(node(1), commit(5, 50), &vector(&[]));
        history.committed(node(1), commit(6, 60), &vector(&[]));
        history.committed(node(3), commit(9, 70), &vector(&[]));
        let bound =
            |seen: &[(u16, u64)]| history.bound(node(1), node(2), &vector(seen), Timestamp(99)).0;
        assert_eq!(bound(&[(1, 6), (3, 9)]), 60, "what is not decoded yet is younger than this");
        assert_eq!(bound(&[(1, 5), (3, 9)]), 59);
        assert_eq!(bound(&[(1, 4), (3, 9)]), 49);
        assert_eq!(bound(&[(1, 6)]), 60);
    }

    #[test]
    fn what_a_writer_was_not_told_of_the_other_side_is_known() {
        let mut history = History::new(10);
        history.touch(ROW, version(1, 5, 50));
        history.touch(ROW, version(3, 9, 60));
        let vectors = [vector(&[]), vector(&[(1, 5)]), vector(&[(1, 5), (3, 9)])];
        let untold = |origin: u16, seen: usize, side: Digest| {
            let writer = Writer { version: version(origin, 20, 70), vector: &vectors[seen] };
            history.untold(side, &writer)
        };
        assert_eq!(untold(2, 0, ROW), vector(&[(1, 5), (3, 9)]));
        assert_eq!(untold(2, 1, ROW), vector(&[(3, 9)]));
        assert!(untold(2, 2, ROW).is_empty() && untold(2, 0, OTHER).is_empty());
        assert_eq!(untold(3, 0, ROW), vector(&[(1, 5)]), "its own it knows");
    }

    #[test]
    fn a_writer_is_seen_concurrent_or_forgotten() {
        let mut history = History::new(10);
        history.committed(node(1), commit(5, 50_000_000), &vector(&[]));
        history.committed(node(3), commit(9, 70), &vector(&[]));
        let seen = |vector_of: &[(u16, u64)], writer: u16, time: i64, xid: u32| {
            let xid = (writer == 1 && xid > 0).then_some(xid);
            history.seen(node(1), &vector(vector_of), node(writer), Timestamp(time), xid)
        };
        assert_eq!(seen(&[(3, 9)], 3, 70, 0), Seen::Covered);
        assert_eq!(seen(&[(3, 8)], 3, 70, 0), Seen::Concurrent(Some(Lsn(9))));
        assert_eq!(seen(&[], 3, 69, 0), Seen::Covered, "older than what is remembered");
        assert_eq!(seen(&[(1, 4)], 1, 50_000_000, 5), Seen::Concurrent(Some(Lsn(5))));
        assert_eq!(seen(&[(1, 5)], 1, 50_000_000, 5), Seen::Covered);
        assert_eq!(seen(&[(1, 5)], 1, 50_000_001, 6), Seen::Concurrent(None), "not decoded yet");
        assert_eq!(seen(&[(1, 5)], 1, 10, 2), Seen::Covered, "long ago");
        assert_eq!(seen(&[(1, 4)], 1, 50_000_000, 0), Seen::Concurrent(Some(Lsn(5))), "a copy");
        assert_eq!(seen(&[(1, 5)], 1, 50_000_001, 0), Seen::Covered, "an earlier life");
    }

    /// What node 2 and a copy of it decide upon an update of node 1 that both have not applied yet.
    #[test]
    fn a_copy_decides_alike_only_with_what_its_source_remembers() {
        let (old, value) = (vector(&[]), Digest(11));
        let late = Writer { version: version(1, 9, 40), vector: &old };
        let remember = |history: &mut History| {
            history.committed(node(2), commit(5, 50), &old);
            history.deleted(ROW, version(2, 5, 50));
            let later = Writer { version: version(2, 5, 50), vector: &old };
            history.claim(value, OTHER, &later);
        };
        let decides = |history: &History| {
            let taken = history.taken_by(value, Digest(1), late.version);
            (history.is_deleted_unseen(ROW, &late), taken)
        };
        let (mut source, mut copy, mut forgetful) =
            (History::new(10), History::new(10), History::new(10));
        remember(&mut source);
        remember(&mut copy);
        // It knows only what came after its copy.
        forgetful.committed(node(2), commit(6, 60), &old);
        assert_eq!(decides(&copy), decides(&source));
        assert_eq!(decides(&source), (true, Some(version(2, 5, 50))));
        assert_ne!(decides(&forgetful), decides(&source));
    }

    #[test]
    fn another_life_has_seen_nothing_until_it_says_so() {
        let mut history = History::new(10);
        history.deleted(ROW, version(1, 5, 50));
        history.committed(node(1), commit(5, 50), &vector(&[]));
        history.committed(node(2), commit(9, 60), &vector(&[(1, 5)]));
        let applied = vector(&[(2, 9)]);
        let stable =
            |history: &mut History| history.stable(node(1), &applied, [node(2)].into_iter());
        assert_eq!(stable(&mut history).get(node(1)), Lsn(5));
        // The copy from which the next life begins may be older than what the last one had seen.
        history.reborn(node(2));
        assert_eq!(stable(&mut history).get(node(1)), Lsn(0));
        history.committed(node(2), commit(12, 90), &vector(&[(1, 5)]));
        assert_eq!(
            history.stable(node(1), &vector(&[(2, 12)]), [node(2)].into_iter()).get(node(1)),
            Lsn(5)
        );
    }

    #[test]
    fn an_origin_that_is_no_member_any_more_is_forgotten_too() {
        let mut history = History::new(10);
        history.committed(node(1), commit(5, 70), &vector(&[]));
        history.committed(node(3), commit(7, 50), &vector(&[]));
        history.deleted(ROW, version(3, 7, 50));
        history.committed(node(2), commit(9, 60), &vector(&[(1, 5)]));
        let members = [node(2)];
        let stable = history.stable(node(1), &vector(&[(2, 9), (3, 7)]), members.into_iter());
        assert_eq!(
            (stable.get(node(3)), stable.get(node(1))),
            (Lsn(0), Lsn(5)),
            "node 2 has not seen it"
        );
        assert_eq!(
            history.in_order(&stable).get(node(1)),
            Lsn(4),
            "kept as long as what is earlier"
        );
        history.committed(node(2), commit(10, 80), &vector(&[(1, 5), (3, 7)]));
        let stable = history.stable(node(1), &vector(&[(2, 10), (3, 7)]), members.into_iter());
        assert_eq!(history.in_order(&stable).get(node(1)), Lsn(5));
        assert!(history.forget(&stable, 0), "nothing may be forgotten at once");
        assert!(history.tombstone(ROW).is_some());
        assert!(!history.forget(&stable, 1), "that was all");
        assert!(history.tombstone(ROW).is_none());
    }

    #[test]
    fn what_is_written_after_others_have_come_is_not_forgotten_with_what_was_written_alone() {
        let mut history = History::new(10);
        history.committed(node(1), commit(5, 50), &vector(&[]));
        let stable = history.stable(node(1), &vector(&[]), std::iter::empty());
        assert_eq!(stable.get(node(1)), Lsn(5), "nobody else is there");
        history.forget(&stable, usize::MAX);
        history.committed(node(1), commit(6, 60), &vector(&[]));
        history.deleted(ROW, version(1, 6, 60));
        // While a change waits in quarantine, only what was forgotten before is.
        let forgotten = history.forgotten().clone();
        history.forget(&forgotten, usize::MAX);
        assert!(history.tombstone(ROW).is_some() && history.remembers(node(1), Lsn(6)));
    }

    #[test]
    fn a_write_that_becomes_known_after_another_was_decided_upon_was_missed() {
        let mut history = History::new(10);
        let unaware = vector(&[]);
        let wrote = |history: &mut History, origin: u16, lsn: u64, vector: &VersionVector| {
            let (effect, changed) = (Effect::Insert, BTreeSet::new());
            let (version, vector) = (version(origin, lsn, 50), vector.clone());
            history.wrote(ROW, KnownWrite { version, vector, effect, changed, settled: true })
        };
        let local = Writer { version: version(1, 5, 60), vector: &unaware };
        assert!(!wrote(&mut history, 2, 7, &unaware));
        assert!(history.missed(ROW, &local) && !history.missed(OTHER, &local));
        history.set_settled(ROW, version(2, 7, 50), false);
        assert!(!history.missed(ROW, &local), "it will be decided upon with both");
        history.set_settled(ROW, version(2, 7, 50), true);
        let aware = vector(&[(2, 7)]);
        assert!(!history.missed(ROW, &Writer { version: local.version, vector: &aware }));
    }

    #[test]
    fn a_delete_is_remembered_until_nobody_can_have_missed_it() {
        let mut history = History::new(10);
        assert!(!history.deleted(ROW, version(1, 5, 50)));
        let unaware = vector(&[]);
        let late = Writer { version: version(2, 8, 40), vector: &unaware };
        assert!(history.is_deleted_unseen(ROW, &late));
        let members = [node(2), node(3)];
        // Node 2 commits something that has seen the delete; it is known here and not applied.
        history.committed(node(2), commit(9, 60), &vector(&[(1, 5)]));
        history.committed(node(3), commit(3, 60), &vector(&[(1, 5), (2, 9)]));
        let stable = history.stable(node(1), &vector(&[(3, 3)]), members.into_iter());
        assert_eq!(stable.get(node(1)), Lsn(0));
        history.forget(&stable, usize::MAX);
        assert!(history.is_deleted_unseen(ROW, &late));
        // Now it is applied: whatever node 2 sends from here on has seen the delete.
        let stable = history.stable(node(1), &vector(&[(2, 9), (3, 3)]), members.into_iter());
        assert_eq!(stable.get(node(1)), Lsn(5));
        history.forget(&stable, usize::MAX);
        assert!(!history.is_deleted_unseen(ROW, &late) && history.tombstone(ROW).is_none());
    }

    #[test]
    fn what_takes_a_value_is_remembered_as_long_as_what_loses_it() {
        let mut history = History::new(10);
        let unaware = vector(&[]);
        for (origin, lsn, time, row) in [(1, 5, 50, ROW), (2, 6, 60, OTHER)] {
            history.committed(node(origin), commit(lsn, time), &unaware);
            let version = version(origin, lsn, time);
            history.claim(VALUE, row, &Writer { version, vector: &unaware });
        }
        let stable = history.in_order(&vector(&[(2, 6)]));
        assert_eq!(stable.get(node(2)), Lsn(5), "the earlier one of node 1 is not stable");
        assert_eq!(history.in_order(&vector(&[(1, 5), (2, 6)])).get(node(2)), Lsn(6));
        history.bury_losers();
        assert_eq!(history.tombstone(ROW), Some(version(1, 5, 50)));
        assert_eq!(history.tombstone(OTHER), None);
    }

    #[test]
    fn an_insert_that_arrived_before_an_older_looking_delete_was_decoded_is_told() {
        let mut history = History::new(1);
        history.arrived(ROW, version(2, 4, 40));
        assert!(history.deleted(ROW, version(1, 5, 50)), "the row that arrived is older");
        assert_eq!(history.arrivals_before(ROW, version(1, 5, 50)), vector(&[(2, 4)]));
        history.arrived(OTHER, version(2, 5, 45));
        assert!(history.deleted(Digest(1), version(1, 6, 60)), "more arrived than is remembered");
        history.decoded(node(2), Lsn(5));
        assert!(!history.deleted(ROW, version(1, 7, 70)));
    }

    #[test]
    fn a_claim_meets_the_claims_of_other_rows_only() {
        let mut history = History::new(10);
        let (unaware, aware) = (vector(&[]), vector(&[(1, 5)]));
        let first = Writer { version: version(1, 5, 50), vector: &unaware };
        assert!(!history.claim(VALUE, ROW, &first) && !history.claim(VALUE, ROW, &first));
        let seen = Writer { version: version(2, 6, 60), vector: &aware };
        assert!(!history.claim(VALUE, OTHER, &seen), "it had seen the first let it go");
        let clash = Writer { version: version(3, 6, 40), vector: &unaware };
        assert!(history.claim(VALUE, Digest(1), &clash));
        assert_eq!(history.claims_unseen(VALUE, Digest(1), &clash), vector(&[(1, 5), (2, 6)]));
        assert_eq!(history.claims_unseen(VALUE, OTHER, &seen), vector(&[(3, 6)]));
        assert_eq!(history.taken_by(VALUE, Digest(1), clash.version), Some(seen.version));
        assert_eq!(history.taken_by(VALUE, OTHER, seen.version), None);
    }
}
