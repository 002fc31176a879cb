//! Rows that remote transactions inserted here and that the decoding of the own WAL has not passed yet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Digest;
use crate::ids::NodeId;
use crate::lsn::Lsn;
use crate::time::Timestamp;
use crate::version::{RowVersion, VersionVector};

/// The rows. Every applied insert is noted, and hardly any is ever asked for: only deletes ask, and only then what came
/// since the last of them is put in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals {
    max: usize,
    count: usize,
    /// By origin, in the order of its commits.
    queues: BTreeMap<NodeId, Queue>,
    /// Those of the queues that are in order.
    sorted: BTreeSet<(Digest, RowVersion)>,
    /// More rows arrived than are remembered: until then, by origin, nothing is known of them.
    unknown: VersionVector,
}

#[derive(Clone, Debug, Default)]
struct Queue {
    rows: VecDeque<(Digest, RowVersion)>,
    /// How many of them, from the front on, are in order.
    sorted: usize,
}

impl Arrivals {
    /// Remembers at most `max` rows.
    pub(super) fn new(max: usize) -> Self {
        Self { max, ..Self::default() }
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn push(&mut self, row: Digest, version: RowVersion) {
        if self.count >= self.max {
            self.unknown.advance(version.origin, version.lsn);
            return;
        }
        self.queues.entry(version.origin).or_default().rows.push_back((row, version));
        self.count += 1;
    }

    /// The own WAL has been decoded up to where the transaction `through` of `origin` was applied.
    pub(super) fn decoded(&mut self, origin: NodeId, through: Lsn) {
        if let Some(queue) = self.queues.get_mut(&origin) {
            while let Some(&row) = queue.rows.front().filter(|(_, version)| version.lsn <= through)
            {
                queue.rows.pop_front();
                self.count -= 1;
                if queue.sorted > 0 {
                    queue.sorted -= 1;
                    self.sorted.remove(&row);
                }
            }
        }
        if !self.unknown.is_empty() && self.unknown.get(origin) <= through {
            self.unknown = self.unknown.iter().filter(|(node, _)| *node != origin).collect();
        }
    }

    /// Whether an older version of the row than `version` may be among them.
    pub(super) fn may_have_older(&mut self, row: Digest, version: RowVersion) -> bool {
        self.sort();
        let before = self.sorted.range(..(row, version)).next_back();
        before.is_some_and(|(arrived, _)| *arrived == row) || !self.unknown.is_empty()
    }

    /// The transactions that have brought older versions of the row than `version`, or may have: of each origin the
    /// last.
    pub(super) fn older(&mut self, row: Digest, version: RowVersion) -> VersionVector {
        self.sort();
        let mut older = self.unknown.clone();
        let arrived = self.sorted.range(..(row, version)).rev();
        for (_, arrived) in arrived.take_while(|(arrived, _)| *arrived == row) {
            older.advance(arrived.origin, arrived.lsn);
        }
        older
    }

    /// Whether any version of the row may be among them.
    pub(super) fn may_have(&mut self, row: Digest) -> bool {
        self.sort();
        let Some(origin) = NodeId::new(1) else { return true };
        let first = RowVersion { commit_time: Timestamp(i64::MIN), origin, lsn: Lsn::ZERO };
        let found = self.sorted.range((row, first)..).next();
        found.is_some_and(|(arrived, _)| *arrived == row) || !self.unknown.is_empty()
    }

    /// Puts what came since the last time in order.
    fn sort(&mut self) {
        for queue in self.queues.values_mut() {
            self.sorted.extend(queue.rows.iter().skip(queue.sorted));
            queue.sorted = queue.rows.len();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn version(origin: u16, lsn: u64, time: i64) -> RowVersion {
        let origin = NodeId::new(origin).unwrap();
        RowVersion { commit_time: Timestamp(time), origin, lsn: Lsn(lsn) }
    }

    #[test]
    fn what_was_put_in_order_is_forgotten_as_it_is_passed() {
        let (one, two) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
        let mut arrivals = Arrivals::new(3);
        arrivals.push(Digest(7), version(1, 10, 100));
        assert!(!arrivals.may_have_older(Digest(7), version(2, 1, 99)), "it is younger");
        assert!(!arrivals.may_have_older(Digest(8), version(2, 1, 200)));
        assert!(arrivals.may_have_older(Digest(7), version(2, 1, 200)));
        assert_eq!(arrivals.older(Digest(7), version(2, 1, 200)).get(one), Lsn(10));
        assert!(arrivals.older(Digest(7), version(2, 1, 99)).is_empty());
        assert!(arrivals.may_have(Digest(7)) && !arrivals.may_have(Digest(6)));
        assert!(!arrivals.may_have(Digest(8)));
        arrivals.push(Digest(7), version(2, 20, 150));
        arrivals.decoded(one, Lsn(10));
        assert!(arrivals.may_have_older(Digest(7), version(1, 11, 200)), "that of node 2");
        arrivals.decoded(two, Lsn(19));
        assert!(arrivals.may_have_older(Digest(7), version(1, 11, 200)));
        arrivals.decoded(two, Lsn(20));
        assert!(!arrivals.may_have_older(Digest(7), version(1, 11, 200)));
        assert_eq!((arrivals.len(), arrivals.sorted.len()), (0, 0));
    }

    #[test]
    fn more_rows_than_are_remembered_may_be_any() {
        let mut arrivals = Arrivals::new(1);
        arrivals.push(Digest(1), version(1, 10, 1));
        arrivals.push(Digest(2), version(1, 11, 2));
        assert!(arrivals.may_have_older(Digest(9), version(2, 1, 3)));
        let unknown = arrivals.older(Digest(9), version(2, 1, 3));
        assert_eq!(unknown.get(NodeId::new(1).unwrap()), Lsn(11));
        arrivals.decoded(NodeId::new(1).unwrap(), Lsn(10));
        assert!(arrivals.may_have_older(Digest(9), version(2, 1, 3)));
        arrivals.decoded(NodeId::new(1).unwrap(), Lsn(11));
        assert!(!arrivals.may_have_older(Digest(9), version(2, 1, 3)));
    }
}
