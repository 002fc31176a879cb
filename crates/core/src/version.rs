//! What a node, or a transaction, has seen of every origin: version vectors and row versions.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::lsn::Lsn;
use crate::time::Timestamp;

/// Per origin, the commit LSN up to which (and including which) its transactions have been seen. An origin that is
/// absent has been seen up to [`Lsn::ZERO`]. (Mattern 1989; Parker et al. 1983, with LSNs as the counters.)
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VersionVector(BTreeMap<NodeId, Lsn>);

/// How two version vectors stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Causality {
    /// Both have seen the same.
    Equal,
    /// The left has seen less than the right.
    Before,
    /// The left has seen more than the right.
    After,
    /// Each has seen something that the other has not.
    Concurrent,
}

impl VersionVector {
    /// The vector that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was seen of `origin`.
    pub fn get(&self, origin: NodeId) -> Lsn {
        self.0.get(&origin).copied().unwrap_or(Lsn::ZERO)
    }

    /// Raises what was seen of `origin` to `lsn`; never lowers it. Answers whether anything changed.
    pub fn advance(&mut self, origin: NodeId, lsn: Lsn) -> bool {
        if lsn <= self.get(origin) {
            return false;
        }
        self.0.insert(origin, lsn);
        true
    }

    /// Forgets what was seen of `origin`.
    pub fn remove(&mut self, origin: NodeId) {
        self.0.remove(&origin);
    }

    /// The least vector that covers both (the join of the lattice).
    pub fn merge(&mut self, other: &Self) {
        for (&origin, &lsn) in &other.0 {
            self.advance(origin, lsn);
        }
    }

    /// Whether everything that `other` has seen has been seen here too.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(&origin, &lsn)| self.get(origin) >= lsn)
    }

    /// How this vector stands to `other`.
    pub fn compare(&self, other: &Self) -> Causality {
        match (self.covers(other), other.covers(self)) {
            (true, true) => Causality::Equal,
            (true, false) => Causality::After,
            (false, true) => Causality::Before,
            (false, false) => Causality::Concurrent,
        }
    }

    /// The entries in the order of the nodes.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, Lsn)> + '_ {
        self.0.iter().map(|(&origin, &lsn)| (origin, lsn))
    }

    /// The number of origins of which anything was seen.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was seen of anyone.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(NodeId, Lsn)> for VersionVector {
    fn from_iter<I: IntoIterator<Item = (NodeId, Lsn)>>(entries: I) -> Self {
        let mut vector = Self::new();
        for (origin, lsn) in entries {
            vector.advance(origin, lsn);
        }
        vector
    }
}

impl fmt::Display for VersionVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, (origin, lsn)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{origin}: {lsn}")?;
        }
        f.write_str("}")
    }
}

/// The version of a row: who wrote it last and when. The derived order (commit time, then origin, then LSN) is total
/// and is computed alike by every node, since it names the *writer* and never the node that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowVersion {
    /// When the writing transaction committed at its origin.
    pub commit_time: Timestamp,
    /// Where it committed.
    pub origin: NodeId,
    /// Its commit LSN there.
    pub lsn: Lsn,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn vectors() -> impl Strategy<Value = VersionVector> {
        proptest::collection::btree_map(1u16..=3, 0u64..4, 0..=3).prop_map(|entries| {
            let entry = |(number, lsn)| (NodeId::new(number).unwrap(), Lsn(lsn));
            entries.into_iter().map(entry).collect()
        })
    }

    fn merged(a: &VersionVector, b: &VersionVector) -> VersionVector {
        let mut both = a.clone();
        both.merge(b);
        both
    }

    #[test]
    fn an_entry_only_rises_and_zero_is_no_entry() {
        let node = NodeId::new(2).unwrap();
        let mut vector = VersionVector::new();
        assert!(!vector.advance(node, Lsn::ZERO) && vector.is_empty());
        assert!(vector.advance(node, Lsn(5)) && !vector.advance(node, Lsn(4)));
        assert_eq!((vector.get(node), vector.len()), (Lsn(5), 1));
        assert_eq!(vector.to_string(), "{2: 0/5}");
    }

    proptest! {
        #[test]
        fn merge_is_commutative_associative_and_idempotent(
            a in vectors(), b in vectors(), c in vectors(),
        ) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &a), a);
        }

        #[test]
        fn covers_is_a_partial_order(a in vectors(), b in vectors(), c in vectors()) {
            prop_assert!(a.covers(&a));
            prop_assert!(!(a.covers(&b) && b.covers(&a)) || a == b);
            prop_assert!(!(a.covers(&b) && b.covers(&c)) || a.covers(&c));
        }

        #[test]
        fn the_merge_is_the_least_vector_that_covers_both(
            a in vectors(), b in vectors(), c in vectors(),
        ) {
            let both = merged(&a, &b);
            prop_assert!(both.covers(&a) && both.covers(&b));
            prop_assert!(!(c.covers(&a) && c.covers(&b)) || c.covers(&both));
            prop_assert_eq!(a.covers(&b), both == a);
        }

        #[test]
        fn compare_agrees_with_its_mirror(a in vectors(), b in vectors()) {
            let mirror = match b.compare(&a) {
                Causality::Equal => Causality::Equal,
                Causality::Before => Causality::After,
                Causality::After => Causality::Before,
                Causality::Concurrent => Causality::Concurrent,
            };
            prop_assert_eq!(a.compare(&b), mirror);
        }

        #[test]
        fn json_round_trips(a in vectors()) {
            let json = serde_json::to_string(&a).unwrap();
            prop_assert_eq!(serde_json::from_str::<VersionVector>(&json).unwrap(), a);
        }
    }
}
