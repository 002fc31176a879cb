//! Decides when a transaction of another node may be applied here: after its causes, and not before its time.
//!
//! The premise is that the transactions of one origin are offered in its commit order (its spool gives them so).
//! Then each is applied exactly once, after everything its origin had seen when it committed (causal delivery), and
//! only when the local clock has reached its commit time, so that whatever is written here later also carries a later
//! timestamp.

use crate::ids::NodeId;
use crate::lsn::Lsn;
use crate::time::Timestamp;
use crate::version::VersionVector;

/// What is known of a transaction before its changes are read.
#[derive(Clone, Copy, Debug)]
pub struct TransactionPoint<'a> {
    /// Where it committed.
    pub origin: NodeId,
    /// Its commit LSN there.
    pub commit_lsn: Lsn,
    /// When it committed there.
    pub commit_time: Timestamp,
    /// What its origin had seen of the other nodes when it committed.
    pub vector: &'a VersionVector,
}

/// What to do with a transaction now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Apply it.
    Deliver,
    /// It depends on a transaction that has not been applied here.
    AwaitOrigin {
        /// Where that one committed.
        origin: NodeId,
        /// The commit LSN that must have been applied.
        lsn: Lsn,
    },
    /// Its commit time is ahead of the local clock, within the allowed skew.
    AwaitClock {
        /// Microseconds until the clock reaches it.
        us: i64,
    },
    /// Its commit time is further ahead of the local clock than is allowed: one of the two clocks is wrong.
    ClockSkew {
        /// Microseconds by which it is ahead.
        us: i64,
    },
    /// It was applied before.
    AlreadyApplied,
}

/// Decides upon the next transaction of its origin at node `here`, which has applied `applied` and whose clock shows
/// `now`. Commit times up to `clock_skew_max_us` microseconds ahead are waited for.
///
/// Two entries of the transaction's vector need no wait: the one of `here`, whose transactions are where they were
/// made, and the one of its own origin, which the order of the stream satisfies.
pub fn decide(
    transaction: &TransactionPoint<'_>,
    here: NodeId,
    applied: &VersionVector,
    now: Timestamp,
    clock_skew_max_us: i64,
) -> Delivery {
    if applied.get(transaction.origin) >= transaction.commit_lsn {
        return Delivery::AlreadyApplied;
    }
    let unmet = transaction.vector.iter().find(|&(origin, lsn)| {
        origin != here && origin != transaction.origin && applied.get(origin) < lsn
    });
    if let Some((origin, lsn)) = unmet {
        return Delivery::AwaitOrigin { origin, lsn };
    }
    match transaction.commit_time.us_since(now) {
        us if us <= 0 => Delivery::Deliver,
        us if us <= clock_skew_max_us => Delivery::AwaitClock { us },
        us => Delivery::ClockSkew { us },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(number: u16) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn vector(entries: &[(u16, u64)]) -> VersionVector {
        entries.iter().map(|&(number, lsn)| (node(number), Lsn(lsn))).collect()
    }

    /// Transaction 50 of node 1, committed at 1000 µs, offered to node 2 at `now`.
    fn at(seen: &[(u16, u64)], applied: &[(u16, u64)], now: i64) -> Delivery {
        let point = TransactionPoint {
            origin: node(1),
            commit_lsn: Lsn(50),
            commit_time: Timestamp(1000),
            vector: &vector(seen),
        };
        decide(&point, node(2), &vector(applied), Timestamp(now), 500)
    }

    #[test]
    fn waits_for_what_the_origin_had_seen() {
        let unmet = Delivery::AwaitOrigin { origin: node(3), lsn: Lsn(7) };
        assert_eq!(at(&[(3, 7)], &[], 1000), unmet);
        assert_eq!(at(&[(3, 7)], &[(3, 6)], 1000), unmet);
        assert_eq!(at(&[(3, 7)], &[(3, 7)], 1000), Delivery::Deliver);
        assert_eq!(at(&[(3, 7)], &[(3, 8)], 1000), Delivery::Deliver);
    }

    #[test]
    fn own_entries_and_the_entries_of_the_origin_itself_need_no_wait() {
        assert_eq!(at(&[(2, 99), (1, 49), (3, 0)], &[], 1000), Delivery::Deliver);
    }

    #[test]
    fn nothing_is_applied_twice() {
        assert_eq!(at(&[], &[(1, 49)], 1000), Delivery::Deliver);
        assert_eq!(at(&[(3, 7)], &[(1, 50)], 0), Delivery::AlreadyApplied);
        assert_eq!(at(&[], &[(1, 51)], 1000), Delivery::AlreadyApplied);
    }

    #[test]
    fn waits_for_the_clock_within_the_allowed_skew() {
        assert_eq!(at(&[], &[], 999), Delivery::AwaitClock { us: 1 });
        assert_eq!(at(&[], &[], 500), Delivery::AwaitClock { us: 500 });
        assert_eq!(at(&[], &[], 499), Delivery::ClockSkew { us: 501 });
        assert_eq!(at(&[], &[], i64::MIN), Delivery::ClockSkew { us: i64::MAX });
        assert_eq!(at(&[], &[], i64::MAX), Delivery::Deliver);
    }
}
