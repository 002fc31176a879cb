//! Decides between a row as it is here and a row as another node wrote it.
//!
//! The decision looks at the *writers* only, never at the node that applies, so that every node decides alike.

use crate::version::RowVersion;

/// Which of the two rows stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The remote change is applied.
    ApplyRemote,
    /// The local row stays as it is.
    KeepLocal,
}

/// The later write wins: by commit time, then by origin, then by LSN.
///
/// A local version that is not known (the row was written before commit timestamps were kept, or they were already
/// vacuumed away) is older than everything. Two versions of one origin are no conflict at all: that origin's later
/// transaction is the one being applied, whatever its clock did meanwhile.
pub fn last_write_wins(local: Option<RowVersion>, remote: RowVersion) -> Resolution {
    match local {
        Some(local) if local.origin != remote.origin && local > remote => Resolution::KeepLocal,
        Some(_) | None => Resolution::ApplyRemote,
    }
}

/// What is known here of the row that a transaction writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The version of the row that is here.
    pub present: Option<RowVersion>,
    /// The latest delete of it that is remembered.
    pub deleted: Option<RowVersion>,
    /// The latest write of another row that claims one of the same unique values, if it is later than the incoming one.
    pub taken: Option<RowVersion>,
}

/// What becomes of an incoming insert or update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The row is written as it came.
    Write,
    /// The row stays as it is here, present or deleted.
    Keep,
    /// The write loses a unique value to another row: whatever older row is here goes, and the write is not made.
    GiveWay,
}

/// Decides upon an incoming insert or update of a row under last write wins.
///
/// The state of a row is that of the latest among all its writes and deletes, or nothing if that one is a delete or has
/// lost a unique value to a later write of another row. That is a function of the set of writes and not of the order in
/// which they arrive. Of two writes of one origin the one that arrives later is the later: they come in order.
pub fn decide(facts: Facts, incoming: RowVersion) -> Decision {
    let later = |other: RowVersion| other.origin != incoming.origin && other > incoming;
    if facts.present.is_some_and(later) || facts.deleted.is_some_and(|deleted| deleted > incoming) {
        Decision::Keep
    } else if facts.taken.is_some_and(|taken| taken > incoming) {
        Decision::GiveWay
    } else {
        Decision::Write
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ids::NodeId;
    use crate::lsn::Lsn;
    use crate::time::Timestamp;

    fn version(commit_time: i64, origin: u16, lsn: u64) -> RowVersion {
        let origin = NodeId::new(origin).unwrap();
        RowVersion { commit_time: Timestamp(commit_time), origin, lsn: Lsn(lsn) }
    }

    #[test]
    fn the_later_writer_wins_and_the_higher_origin_breaks_ties() {
        let keeps = |local, remote| last_write_wins(Some(local), remote) == Resolution::KeepLocal;
        assert!(keeps(version(11, 1, 5), version(10, 2, 9)));
        assert!(!keeps(version(10, 2, 9), version(11, 1, 5)));
        assert!(keeps(version(10, 2, 5), version(10, 1, 9)));
        assert!(!keeps(version(10, 1, 9), version(10, 2, 5)));
    }

    #[test]
    fn a_writer_never_conflicts_with_itself_nor_with_the_unknown() {
        let later_but_earlier = last_write_wins(Some(version(99, 1, 5)), version(1, 1, 6));
        assert_eq!(later_but_earlier, Resolution::ApplyRemote);
        assert_eq!(last_write_wins(None, version(1, 1, 1)), Resolution::ApplyRemote);
    }

    proptest::proptest! {
        #[test]
        fn two_nodes_that_met_the_versions_in_opposite_order_agree(
            a in (0i64..4, 1u16..4, 0u64..4), b in (0i64..4, 1u16..4, 0u64..4),
        ) {
            let (a, b) = (version(a.0, a.1, a.2), version(b.0, b.1, b.2));
            proptest::prop_assume!(a.origin != b.origin);
            let keep = |local, remote| match last_write_wins(Some(local), remote) {
                Resolution::ApplyRemote => remote,
                Resolution::KeepLocal => local,
            };
            proptest::prop_assert_eq!(keep(a, b), keep(b, a));
        }
    }
}
