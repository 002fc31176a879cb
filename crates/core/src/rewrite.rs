//! Who wrote the rows of a table that was rewritten.
//!
//! An `ALTER TABLE` that rewrites its table stores every row anew, and the server then tells its transaction as the
//! writer of every row. But a rewrite is not a write: a row is what its last write made of it, and a concurrent write
//! is settled with that one. So the writers from before the rewrite are read from the spools, which hold every
//! transaction that somebody may not have seen.

use std::collections::BTreeMap;

use crate::history::Digest;
use crate::version::{RowVersion, VersionVector};

/// The last writers of rows of one table, as far as somebody may not have seen them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writers(BTreeMap<Digest, RowVersion>);

impl Writers {
    /// An origin wrote a row. To be called in the order of its commits, with those of no other origin.
    pub fn wrote(&mut self, row: Digest, version: RowVersion) {
        self.0.insert(row, version);
    }

    /// Adds the last writers of another origin.
    pub fn merge(&mut self, other: Self) {
        for (row, version) in other.0 {
            let last = self.0.entry(row).or_insert(version);
            *last = version.max(*last);
        }
    }

    /// Who wrote the row last; `None` for a writer whom everybody has seen.
    pub fn of(&self, row: Digest) -> Option<RowVersion> {
        self.0.get(&row).copied()
    }
}

/// The rewrites whose rows may still meet a write that had not seen what they hide, each with what had been applied
/// here at most when it was committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrites(BTreeMap<i64, VersionVector>);

impl Rewrites {
    /// A rewrite is there, and at most `applied` had been applied before it, itself included. What is known of it
    /// already stays.
    pub fn noticed(&mut self, rewrite: i64, applied: &VersionVector) {
        self.0.entry(rewrite).or_insert_with(|| applied.clone());
    }

    /// Whether a rewrite is known.
    pub fn is_known(&self, rewrite: i64) -> bool {
        self.0.contains_key(&rewrite)
    }

    /// Forgets the rewrites of which every transaction that may still be applied here has seen all that they hide, and
    /// answers which they were: `stable` is what all those transactions have seen.
    pub fn settled(&mut self, stable: &VersionVector) -> Vec<i64> {
        let open = self.0.iter().filter(|(_, applied)| stable.covers(applied));
        let settled: Vec<i64> = open.map(|(rewrite, _)| *rewrite).collect();
        self.0.retain(|rewrite, _| !settled.contains(rewrite));
        settled
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::conflict::{self, Decision, Facts};
    use crate::history::Writer;
    use crate::ids::NodeId;
    use crate::lsn::Lsn;
    use crate::time::Timestamp;

    const ROW: Digest = Digest(7);

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Kind {
        Put,
        Delete,
        Rewrite,
    }

    #[derive(Clone, Debug)]
    struct Transaction {
        kind: Kind,
        version: RowVersion,
        seen: VersionVector,
    }

    impl Transaction {
        fn writer(&self) -> Writer<'_> {
            Writer { version: self.version, vector: &self.seen }
        }
    }

    fn node(number: u16) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn version(time: usize, origin: u16, lsn: u64) -> RowVersion {
        RowVersion { commit_time: Timestamp(time as i64), origin: node(origin), lsn: Lsn(lsn) }
    }

    /// One row of a node: who wrote it as the server tells it, what is remembered, and what was applied.
    #[derive(Clone, Debug, Default)]
    struct Replica {
        /// What the row is, by the version that wrote it, and whom the server tells as its writer.
        row: Option<(RowVersion, RowVersion)>,
        deleted: Option<RowVersion>,
        rewriters: Vec<RowVersion>,
        applied: Vec<Transaction>,
    }

    impl Replica {
        fn writer(&self, knows_rewrites: bool) -> Option<RowVersion> {
            let (_, told) = self.row?;
            if !knows_rewrites || !self.rewriters.contains(&told) {
                return Some(told);
            }
            let mut writers = Writers::default();
            for origin in 1..=3 {
                let mut of_origin = Writers::default();
                let of = |t: &&Transaction| t.version.origin == node(origin);
                for written in self.applied.iter().filter(of).filter(|t| t.kind == Kind::Put) {
                    of_origin.wrote(ROW, written.version);
                }
                writers.merge(of_origin);
            }
            writers.of(ROW)
        }

        fn apply(&mut self, next: &Transaction, knows_rewrites: bool) {
            let writer = self.writer(knows_rewrites);
            let present = writer.filter(|writer| !next.writer().has_seen(writer));
            let facts = Facts { present, deleted: self.deleted, taken: None };
            match next.kind {
                Kind::Put if conflict::decide(facts, next.version) == Decision::Write => {
                    self.row = Some((next.version, next.version));
                }
                Kind::Put => {}
                Kind::Delete => {
                    if present.is_none_or(|present| present < next.version) {
                        self.row = None;
                    }
                    self.deleted = self.deleted.max(Some(next.version));
                }
                Kind::Rewrite => {
                    self.rewriters.push(next.version);
                    self.row = self.row.map(|(wrote, _)| (wrote, next.version));
                }
            }
            self.applied.push(next.clone());
        }
    }

    /// Every vector that `origin` may have when it commits after this history.
    fn pasts(history: &[Transaction], origin: NodeId) -> Vec<VersionVector> {
        let mut pasts = vec![VersionVector::new()];
        for other in (1..=3).map(node).filter(|other| *other != origin) {
            let count = history.iter().filter(|t| t.version.origin == other).count() as u64;
            let with = |past: &VersionVector, lsn| {
                let mut past = past.clone();
                past.advance(other, Lsn(lsn));
                past
            };
            pasts = pasts.iter().flat_map(|past| (0..=count).map(|lsn| with(past, lsn))).collect();
        }
        let before = history.iter().rfind(|t| t.version.origin == origin);
        pasts.retain(|past| {
            let causes = |t: &Transaction| {
                t.seen.iter().all(|(node, lsn)| node == origin || past.get(node) >= lsn)
            };
            let known = history.iter().filter(|t| past.get(t.version.origin) >= t.version.lsn);
            before.is_none_or(|before| past.covers(&before.seen)) && known.into_iter().all(causes)
        });
        pasts
    }

    /// Delivers in every causal order; answers how many orders there were, or how one ended that is wrong.
    fn deliver(
        history: &[Transaction],
        replica: &Replica,
        vector: &VersionVector,
        knows_rewrites: bool,
    ) -> Result<usize, String> {
        let mut orders = 0;
        for next in history {
            let (origin, lsn) = (next.version.origin, next.version.lsn);
            if vector.get(origin).0 + 1 != lsn.0 || !vector.covers(&next.seen) {
                continue;
            }
            let (mut replica, mut vector) = (replica.clone(), vector.clone());
            replica.apply(next, knows_rewrites);
            vector.advance(origin, lsn);
            let writes = replica.applied.iter().filter(|t| t.kind != Kind::Rewrite);
            let last = writes.max_by_key(|t| t.version);
            let expected = last.filter(|last| last.kind == Kind::Put).map(|last| last.version);
            let shown = replica.row.map(|(wrote, _)| wrote);
            if shown != expected {
                return Err(format!("{shown:?}, not {expected:?}: {:#?}", replica.applied));
            }
            orders += deliver(history, &replica, &vector, knows_rewrites)?;
        }
        Ok(if orders == 0 { 1 } else { orders })
    }

    /// All histories of a row that is there and `size` more transactions, in every causal order.
    fn check(size: usize, knows_rewrites: bool) -> Result<(usize, usize), String> {
        let first =
            Transaction { kind: Kind::Put, version: version(0, 1, 1), seen: VersionVector::new() };
        let mut histories = vec![vec![first]];
        let (mut count, mut orders) = (0, 0);
        for time in 1..=size {
            let mut longer = Vec::new();
            for history in &histories {
                for origin in 1..=3 {
                    let own = history.iter().filter(|t| t.version.origin == node(origin)).count();
                    let version = version(time, origin, own as u64 + 1);
                    for seen in pasts(history, node(origin)) {
                        for kind in [Kind::Put, Kind::Delete, Kind::Rewrite] {
                            let mut history = history.clone();
                            history.push(Transaction { kind, version, seen: seen.clone() });
                            longer.push(history);
                        }
                    }
                }
            }
            histories = longer;
            for history in &histories {
                let none = VersionVector::new();
                orders += deliver(history, &Replica::default(), &none, knows_rewrites)?;
            }
            count += histories.len();
        }
        Ok((count, orders))
    }

    #[test]
    fn a_row_is_what_its_last_write_made_of_it_whenever_it_was_rewritten() {
        let (histories, orders) = check(3, true).unwrap();
        assert!(histories > 5_000 && orders > 20_000, "{histories} histories, {orders} orders");
    }

    #[test]
    fn who_believes_the_server_loses_writes() {
        assert!(check(2, false).is_err());
    }

    #[test]
    fn the_last_write_of_each_origin_counts_and_of_those_the_latest() {
        let (mut one, mut two) = (Writers::default(), Writers::default());
        one.wrote(ROW, version(9, 1, 1));
        one.wrote(ROW, version(5, 1, 2));
        two.wrote(ROW, version(7, 2, 1));
        one.merge(two);
        assert_eq!(one.of(ROW), Some(version(7, 2, 1)));
        assert_eq!(one.of(Digest(8)), None);
    }

    #[test]
    fn a_rewrite_is_settled_when_everybody_has_seen_what_it_hides() {
        let vector = |one, two| [(node(1), Lsn(one)), (node(2), Lsn(two))].into_iter().collect();
        let mut rewrites = Rewrites::default();
        rewrites.noticed(1, &vector(5, 3));
        rewrites.noticed(1, &vector(9, 9));
        rewrites.noticed(2, &vector(6, 3));
        assert_eq!(rewrites.settled(&vector(5, 2)), [0; 0]);
        assert_eq!(rewrites.settled(&vector(5, 3)), [1]);
        assert!(rewrites.is_known(2) && !rewrites.is_known(1));
        assert_eq!(rewrites.settled(&vector(7, 3)), [2]);
    }
}
