//! From which node an origin's transactions are received: from the origin itself, or from who has most of what it sent.

use std::collections::BTreeMap;

use crate::ids::NodeId;
use crate::lsn::Lsn;

/// A node from which transactions can be received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// It may be alive, as far as is known.
    pub alive: bool,
    /// It was heard directly of late, and receiving from it has not just failed.
    pub reached: bool,
    /// The last transaction of the origin that it has, applied or not.
    pub received: Lsn,
}

/// The best source of `origin` for a node that has received `own` so far. The origin while it is reached; else who
/// has most of what is missing here; else the origin again, which may come back.
pub fn choose(origin: NodeId, own: Lsn, candidates: &BTreeMap<NodeId, Candidate>) -> NodeId {
    let of_origin = candidates.get(&origin).copied().unwrap_or_default();
    if of_origin.alive && of_origin.reached {
        return origin;
    }
    let others = || candidates.iter().filter(|(node, other)| **node != origin && other.alive);
    // Of equals the lowest number: all that ask end at the same node, and it does not flap.
    let most = |(a_node, a): &(&NodeId, &Candidate), (b_node, b): &(&NodeId, &Candidate)| {
        (a.received, b_node).cmp(&(b.received, a_node))
    };
    let with_more = others().filter(|(_, other)| other.reached && other.received > own);
    if let Some((node, _)) = with_more.max_by(most) {
        return *node;
    }
    if of_origin.alive {
        return origin;
    }
    let (reached, silent): (Vec<_>, Vec<_>) = others().partition(|(_, other)| other.reached);
    let best = reached.into_iter().max_by(most).or_else(|| silent.into_iter().max_by(most));
    best.map_or(origin, |(node, _)| *node)
}

/// Whether a node that receives from `source` and has `own` should turn to the best source instead.
pub fn should_leave(
    source: NodeId,
    origin: NodeId,
    own: Lsn,
    candidates: &BTreeMap<NodeId, Candidate>,
) -> Option<NodeId> {
    let best = choose(origin, own, candidates);
    let of = |node: NodeId| candidates.get(&node).copied().unwrap_or_default();
    let has_more = |node: NodeId| of(node).received > own;
    let leave = best != source
        && (best == origin || !of(source).alive || (has_more(best) && !has_more(source)));
    leave.then_some(best)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(number: u16) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn candidates(of: &[(u16, bool, bool, u64)]) -> BTreeMap<NodeId, Candidate> {
        of.iter()
            .map(|&(number, alive, reached, received)| {
                (node(number), Candidate { alive, reached, received: Lsn(received) })
            })
            .collect()
    }

    #[track_caller]
    fn chosen(own: u64, of: &[(u16, bool, bool, u64)]) -> u16 {
        choose(node(1), Lsn(own), &candidates(of)).get()
    }

    #[test]
    fn the_origin_while_it_is_reached() {
        assert_eq!(chosen(5, &[(1, true, true, 0), (2, true, true, 90)]), 1);
    }

    #[test]
    fn a_survivor_with_more_when_it_is_not() {
        for of_origin in [(1, false, false, 0), (1, true, false, 0)] {
            assert_eq!(chosen(5, &[of_origin, (2, true, true, 90), (4, true, true, 91)]), 4);
            assert_eq!(chosen(5, &[of_origin, (2, true, true, 90), (4, true, true, 90)]), 2);
            assert_eq!(chosen(5, &[of_origin, (2, true, true, 90), (4, false, true, 91)]), 2);
            assert_eq!(chosen(5, &[of_origin, (2, true, true, 90), (4, true, false, 91)]), 2);
        }
    }

    #[test]
    fn nobody_has_more() {
        // It lives: try again. It is dead: stay with whoever may get more.
        assert_eq!(chosen(90, &[(1, true, false, 0), (2, true, true, 90)]), 1);
        assert_eq!(chosen(90, &[(1, false, false, 0), (2, true, true, 90)]), 2);
        assert_eq!(chosen(90, &[(1, false, false, 0), (2, true, false, 90)]), 2);
        assert_eq!(chosen(90, &[(1, false, false, 0), (2, false, false, 90)]), 1);
        assert_eq!(chosen(90, &[]), 1);
    }

    #[test]
    fn a_source_is_left_for_the_origin_or_for_more() {
        let leaves = |source: u16, own: u64, of: &[(u16, bool, bool, u64)]| {
            should_leave(node(source), node(1), Lsn(own), &candidates(of)).map(NodeId::get)
        };
        let dead = (1, false, false, 0);
        assert_eq!(leaves(2, 5, &[(1, true, true, 0), (2, true, true, 90)]), Some(1));
        assert_eq!(leaves(2, 5, &[dead, (2, true, true, 90), (3, true, true, 95)]), None);
        assert_eq!(leaves(2, 90, &[dead, (2, true, true, 90), (3, true, true, 95)]), Some(3));
        assert_eq!(leaves(2, 90, &[dead, (2, true, true, 90), (3, true, true, 90)]), None);
        assert_eq!(leaves(2, 90, &[dead, (2, false, true, 90), (3, true, true, 90)]), Some(3));
    }
}
