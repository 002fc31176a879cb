//! Whether a node may publish what its server commits: only if no peer has received more of it than it has itself.
//!
//! A node that was restored from an older copy would give LSNs away a second time, and its peers, who have seen them,
//! would never ask for what is behind them. The positions of the peers tell such a copy from the real one.

use std::collections::BTreeMap;

use crate::ids::NodeId;
use crate::lsn::Lsn;
use crate::time::Timestamp;

/// A transaction by which two histories of one origin are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its commit LSN at its origin.
    pub commit_lsn: Lsn,
    /// When it committed there and its transaction id, where they are known.
    pub content: Option<(Timestamp, u32)>,
}

impl Mark {
    /// Whether a transaction with this commit LSN, time and id can be the marked one.
    pub fn is(&self, commit_lsn: Lsn, time: Timestamp, xid: u32) -> bool {
        self.commit_lsn == commit_lsn && self.content.is_none_or(|content| content == (time, xid))
    }
}

/// What a peer says of the node that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// It may go on: this is the last transaction of it that was received or applied there, if there was any.
    Knows(Option<Mark>),
    /// The cluster knows the asking node as another one, with the reason.
    Refuses(String),
}

/// Where the asking node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// The last transaction in its spool.
    pub spooled: Lsn,
    /// The end of its server's WAL.
    pub wal_end: Lsn,
    /// The first position from which its slot can still read.
    pub slot: Lsn,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may publish, once its WAL is seen to hold these transactions, which the peers received and its spool lost.
    Publish(Vec<Mark>),
    /// Fewer than a majority have answered.
    Wait {
        /// How many more must.
        missing: usize,
    },
    /// It must not publish.
    Refuse(Refusal),
}

/// Why a node must not publish.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A peer has what the node lacks.
    #[error(
        "node {peer} has this node's transactions until {theirs}, this node itself has them until {ours}: it was \
         restored from an older copy. Nothing was changed and nothing is published; re-seed it \
         (synapsedb node reseed)"
    )]
    OlderCopy {
        /// Who has more.
        peer: NodeId,
        /// The last transaction there.
        theirs: Lsn,
        /// The end of what is here.
        ours: Lsn,
    },
    /// A peer says that this is another node than the one it knows.
    #[error("node {peer} refuses this node: {reason}")]
    ByPeer {
        /// Who.
        peer: NodeId,
        /// Why.
        reason: String,
    },
}

/// Decides upon what the peers have said. `members` counts all members, the asking node included.
pub fn decide(own: Own, members: usize, answers: &BTreeMap<NodeId, Says>) -> Decision {
    let mut marks = Vec::new();
    for (&peer, says) in answers {
        let mark = match says {
            Says::Refuses(reason) => {
                return Decision::Refuse(Refusal::ByPeer { peer, reason: reason.clone() });
            }
            Says::Knows(None) => continue,
            Says::Knows(Some(mark)) => *mark,
        };
        if mark.commit_lsn <= own.spooled {
            continue;
        }
        // A crash of the machine may have taken the end of the spool, never the WAL from which it was made.
        if mark.commit_lsn >= own.wal_end || mark.commit_lsn < own.slot {
            let (theirs, ours) = (mark.commit_lsn, own.wal_end.min(own.slot.max(own.spooled)));
            return Decision::Refuse(Refusal::OlderCopy { peer, theirs, ours });
        }
        marks.push(mark);
    }
    let majority = members / 2 + 1;
    match majority.saturating_sub(answers.len() + 1) {
        0 => Decision::Publish(marks),
        missing => Decision::Wait { missing },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(number: u16) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn mark(lsn: u64) -> Mark {
        Mark { commit_lsn: Lsn(lsn), content: Some((Timestamp(1), 7)) }
    }

    fn knows(lsn: u64) -> Says {
        Says::Knows((lsn > 0).then(|| mark(lsn)))
    }

    const OWN: Own = Own { spooled: Lsn(50), wal_end: Lsn(100), slot: Lsn(40) };

    #[test]
    fn a_majority_must_answer() {
        let answers = |numbers: &[u16]| -> BTreeMap<_, _> {
            numbers.iter().map(|number| (node(*number), knows(50))).collect()
        };
        assert_eq!(decide(OWN, 1, &answers(&[])), Decision::Publish(vec![]));
        assert_eq!(decide(OWN, 2, &answers(&[])), Decision::Wait { missing: 1 });
        assert_eq!(decide(OWN, 2, &answers(&[2])), Decision::Publish(vec![]));
        assert_eq!(decide(OWN, 3, &answers(&[])), Decision::Wait { missing: 1 });
        assert_eq!(decide(OWN, 3, &answers(&[3])), Decision::Publish(vec![]));
        assert_eq!(decide(OWN, 5, &answers(&[3])), Decision::Wait { missing: 1 });
        assert_eq!(decide(OWN, 4, &answers(&[2, 3])), Decision::Publish(vec![]));
    }

    #[test]
    fn one_peer_with_more_than_the_wal_is_enough_to_refuse() {
        for theirs in [100, 101] {
            let answers = [(node(2), knows(50)), (node(3), knows(theirs))].into();
            assert!(matches!(
                decide(OWN, 3, &answers),
                Decision::Refuse(Refusal::OlderCopy { peer, theirs: at, .. }) if peer == node(3) && at == Lsn(theirs)
            ));
        }
        // Also before a majority has answered.
        let answers = [(node(3), knows(101))].into();
        assert!(matches!(decide(OWN, 5, &answers), Decision::Refuse(_)));
    }

    #[test]
    fn what_only_the_spool_lost_must_be_met_in_the_wal() {
        let answers = [(node(2), knows(70)), (node(3), knows(60))].into();
        assert_eq!(decide(OWN, 3, &answers), Decision::Publish(vec![mark(70), mark(60)]));
        let own = Own { slot: Lsn(65), ..OWN };
        assert!(matches!(decide(own, 3, &answers), Decision::Refuse(_)), "the slot is beyond it");
    }

    #[test]
    fn a_peer_that_knows_another_refuses() {
        let answers = [(node(2), Says::Refuses("another".to_owned()))].into();
        assert!(matches!(decide(OWN, 3, &answers), Decision::Refuse(Refusal::ByPeer { .. })));
    }

    #[test]
    fn another_history_has_another_mark() {
        assert!(mark(70).is(Lsn(70), Timestamp(1), 7));
        assert!(!mark(70).is(Lsn(70), Timestamp(2), 7));
        assert!(!mark(70).is(Lsn(70), Timestamp(1), 8));
        let unknown = Mark { content: None, ..mark(70) };
        assert!(unknown.is(Lsn(70), Timestamp(2), 8) && !unknown.is(Lsn(71), Timestamp(2), 8));
    }
}
