//! What a transaction must see, worked out from what the members say of themselves. Pure.

use std::collections::BTreeMap;

use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::state::{ClusterState, MemberStatus};
use synapsedb_core::version::VersionVector;

use super::token::ALL;
use crate::gossip::View;
use crate::replication::position::Position;

/// What the members said when they were asked together, or why one said nothing.
pub(super) type Told = BTreeMap<NodeId, Result<Position, String>>;

/// The members that may acknowledge writes, and those that may have until now.
pub(super) fn writers(state: &ClusterState) -> Vec<NodeId> {
    let may_write = |status: MemberStatus| match status {
        MemberStatus::Active | MemberStatus::Leaving => true,
        // Its data is a copy that is being made: nobody is sent there.
        MemberStatus::Joining | MemberStatus::Removed => false,
    };
    let members = state.members.iter().filter(|(_, member)| may_write(member.status));
    members.map(|(node, _)| *node).collect()
}

/// All that was acknowledged to anybody before the members were asked.
///
/// # Errors
/// Those that said nothing: nobody else knows what they have acknowledged.
pub(super) fn everything(
    writers: &[NodeId],
    told: &Told,
) -> Result<VersionVector, Vec<(NodeId, String)>> {
    let (mut all, mut silent) = (VersionVector::new(), Vec::new());
    for (node, answer) in told {
        match answer {
            // Also of one that joins: the others may know already that it takes part.
            Ok(position) => {
                all.advance(*node, position.published);
            }
            Err(why) if writers.contains(node) => silent.push((*node, why.clone())),
            Err(_) => {}
        }
    }
    let unasked = writers.iter().filter(|node| !told.contains_key(node));
    silent.extend(unasked.map(|node| (*node, "was not asked".to_owned())));
    if silent.is_empty() { Ok(all) } else { Err(silent) }
}

/// What a session can have seen on a node before the members were asked.
///
/// When the node itself answers that is exact. Otherwise it had seen no more of each other origin than that origin has
/// committed by now, and, of its own commits and those of an origin that is silent too, what others have received is
/// all that can be seen again.
pub(super) fn seen_at(home: NodeId, told: &Told) -> VersionVector {
    if let Some(Ok(position)) = told.get(&home) {
        let mut seen = position.applied.clone();
        seen.advance(home, position.published);
        return seen;
    }
    let mut seen = VersionVector::new();
    for node in told.keys() {
        match told.get(node) {
            Some(Ok(position)) => {
                seen.advance(*node, position.published);
            }
            Some(Err(_)) | None => {
                seen.advance(*node, received(*node, told));
            }
        }
    }
    seen
}

/// What somebody who answers has of an origin.
fn received(origin: NodeId, told: &Told) -> Lsn {
    let answers = told.values().filter_map(|answer| answer.as_ref().ok());
    answers.map(|position| position.received.get(origin)).max().unwrap_or_default()
}

/// A token in commit LSNs: one of its LSNs may lie behind the last commit in front of it, which nothing will ever be
/// applied up to. An LSN that its origin has not reached, or of which nobody knows whether a commit is in front of it
/// that is lost, stays as it is.
pub(super) fn in_commits(token: &VersionVector, told: &Told, view: &View) -> VersionVector {
    let commit = |(origin, lsn)| match last_commit(origin, lsn, told, view) {
        Some(commit) => (origin, lsn.min(commit)),
        None => (origin, lsn),
    };
    token.iter().map(commit).collect()
}

/// A commit of the origin that is not before the last one in front of `lsn`: as the origin says, or those who have
/// received its WAL beyond there, or its last heartbeats.
fn last_commit(origin: NodeId, lsn: Lsn, told: &Told, view: &View) -> Option<Lsn> {
    if let Some(Ok(position)) = told.get(&origin) {
        return (position.read >= lsn || lsn == ALL).then_some(position.published);
    }
    let answers = told.values().filter_map(|answer| answer.as_ref().ok());
    let beyond = answers.filter(|position| position.received_ends.get(origin) >= lsn);
    let received = beyond.map(|position| position.received.get(origin)).min();
    received.or_else(|| {
        let facts = view.members.get(&origin)?.facts.as_ref()?;
        let read = facts.wal_lsn.0.saturating_sub(facts.unread_bytes);
        (read >= lsn.0).then_some(facts.published_lsn)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::super::testing::{Seen, node, state, view};
    use super::*;

    fn vector(entries: &[(u16, u64)]) -> VersionVector {
        entries.iter().map(|(origin, lsn)| (node(*origin), Lsn(*lsn))).collect()
    }

    fn at(read: u64, published: u64, others: &[(u16, u64)]) -> Result<Position, String> {
        let applied = vector(others);
        let (received, received_ends) = (applied.clone(), VersionVector::new());
        let (read, published) = (Lsn(read), Lsn(published));
        Ok(Position { read, published, applied, received, received_ends })
    }

    fn silent() -> Result<Position, String> {
        Err("no answer".to_owned())
    }

    fn told(answers: Vec<Result<Position, String>>) -> Told {
        (1..).map(node).zip(answers).collect()
    }

    #[test]
    fn who_may_have_acknowledged_must_be_heard() {
        let mut state = state(4, None);
        state.members.get_mut(&node(2)).unwrap().status = MemberStatus::Leaving;
        state.members.get_mut(&node(3)).unwrap().status = MemberStatus::Joining;
        state.members.get_mut(&node(4)).unwrap().status = MemberStatus::Removed;
        assert_eq!(writers(&state), [node(1), node(2)]);
        let both = told(vec![at(12, 10, &[]), at(25, 20, &[])]);
        assert_eq!(everything(&writers(&state), &both).unwrap(), vector(&[(1, 10), (2, 20)]));
        // One that joins is heard if it says something.
        for (joining, expected) in [(at(35, 30, &[]), 30), (silent(), 0)] {
            let three = told(vec![at(12, 10, &[]), at(25, 20, &[]), joining]);
            assert_eq!(everything(&writers(&state), &three).unwrap().get(node(3)).0, expected);
        }
        let one = told(vec![at(12, 10, &[]), silent()]);
        let lacking = everything(&writers(&state), &one).unwrap_err();
        assert_eq!(lacking, [(node(2), "no answer".to_owned())]);
        let lacking = everything(&writers(&state), &told(vec![at(12, 10, &[])])).unwrap_err();
        assert_eq!(lacking[0].0, node(2));
    }

    #[test]
    fn a_node_that_answers_says_what_was_seen_there() {
        let told = told(vec![at(12, 10, &[(2, 5), (3, 6)]), at(22, 20, &[(1, 9)]), silent()]);
        assert_eq!(seen_at(node(1), &told), vector(&[(1, 10), (2, 5), (3, 6)]));
    }

    #[test]
    fn of_a_silent_node_the_others_tell_what_can_have_been_seen_there() {
        let told = told(vec![
            silent(),
            at(22, 20, &[(1, 9), (3, 4)]),
            at(33, 30, &[(1, 11), (2, 15)]),
            silent(),
        ]);
        // Of node 1 what node 3 has received, of node 4 nothing, of the others all that they have.
        assert_eq!(seen_at(node(1), &told), vector(&[(1, 11), (2, 20), (3, 30)]));
    }

    #[test]
    fn what_lies_behind_the_last_commit_is_not_waited_for() {
        for (lsn, read, published, expected) in [
            (100, 100, 80, 80),
            (100, 120, 90, 90),
            (100, 120, 110, 100),
            // The origin has not come so far: an LSN of another life, or one that was made up.
            (100, 99, 80, 100),
        ] {
            let told = told(vec![at(read, published, &[])]);
            let found = in_commits(&vector(&[(1, lsn)]), &told, &View::default());
            assert_eq!(found, vector(&[(1, expected)]), "{lsn} {read} {published}");
        }
    }

    #[test]
    fn of_a_silent_origin_others_know_how_far_its_commits_go() {
        let received = |commit: u64, end: u64| {
            let (received, received_ends) = (vector(&[(1, commit)]), vector(&[(1, end)]));
            Ok(Position { received, received_ends, ..Position::default() })
        };
        let token = vector(&[(1, 100)]);
        for (answers, expected) in [
            // Nobody has received so far: there may be a commit that is lost.
            (vec![silent(), silent()], 100),
            (vec![silent(), received(80, 99)], 100),
            (vec![silent(), received(80, 100)], 80),
            (vec![silent(), received(80, 99), received(90, 105)], 90),
            (vec![silent(), received(120, 130)], 100),
        ] {
            let found = in_commits(&token, &told(answers), &View::default());
            assert_eq!(found, vector(&[(1, expected)]));
        }
        // A write whose place is not known: only its origin can say that all of it is there.
        let unknown = [(node(1), ALL)].into_iter().collect();
        let heard = told(vec![at(12, 10, &[]), silent()]);
        assert_eq!(in_commits(&unknown, &heard, &View::default()), vector(&[(1, 10)]));
        let unheard = told(vec![silent(), received(80, 1_000)]);
        assert_eq!(in_commits(&unknown, &unheard, &View::default()), unknown);
        let mut view = view(&[Seen::Down]);
        for (wal, unread, expected) in [(100, 0, 70), (120, 20, 70), (120, 21, 100)] {
            let facts = view.members.get_mut(&node(1)).unwrap().facts.as_mut().unwrap();
            (facts.wal_lsn, facts.unread_bytes, facts.published_lsn) = (Lsn(wal), unread, Lsn(70));
            let found = in_commits(&token, &told(vec![silent()]), &view);
            assert_eq!(found, vector(&[(1, expected)]), "{wal} {unread}");
        }
    }

    /// A cluster at one moment: what each node has committed, and how much each other has received and applied of it.
    #[derive(Clone, Debug)]
    struct World {
        committed: Vec<u64>,
        /// By node and origin, in percent of what was committed: applied, and received (no less).
        shares: Vec<Vec<(u64, u64)>>,
        silent: Vec<bool>,
    }

    const NODES: usize = 4;

    impl World {
        fn applied(&self, node: usize, origin: usize) -> u64 {
            let (applied, _) = self.shares[node][origin];
            if node == origin {
                self.committed[origin]
            } else {
                self.committed[origin] * applied / 100
            }
        }

        fn received(&self, node: usize, origin: usize) -> u64 {
            let (applied, received) = self.shares[node][origin];
            let share = applied.max(received);
            if node == origin {
                self.committed[origin]
            } else {
                self.committed[origin] * share / 100
            }
        }

        fn told(&self) -> Told {
            let vector = |of: &dyn Fn(usize) -> u64| -> VersionVector {
                (0..NODES).map(|o| (node(o as u16 + 1), Lsn(of(o)))).collect()
            };
            let answer = |n: usize| match self.silent[n] {
                true => silent(),
                false => Ok(Position {
                    read: Lsn(self.committed[n] + 3),
                    published: Lsn(self.committed[n]),
                    applied: vector(&|o| if o == n { 0 } else { self.applied(n, o) }),
                    received: vector(&|o| self.received(n, o)),
                    received_ends: VersionVector::new(),
                }),
            };
            told((0..NODES).map(answer).collect())
        }
    }

    fn worlds() -> impl Strategy<Value = World> {
        let share = (0_u64..=100, 0_u64..=100);
        (
            prop::collection::vec(0_u64..1_000, NODES),
            prop::collection::vec(prop::collection::vec(share, NODES), NODES),
            prop::collection::vec(any::<bool>(), NODES),
        )
            .prop_map(|(committed, shares, silent)| World { committed, shares, silent })
    }

    proptest! {
        /// Whatever was applied at the old node is in what must be seen, but for what nobody who answers has.
        #[test]
        fn a_session_that_moves_sees_again_what_can_be_seen(world in worlds(), home in 0..NODES) {
            let told = world.told();
            let seen = seen_at(node(home as u16 + 1), &told);
            for origin in 0..NODES {
                let shown = world.applied(home, origin);
                let there = (0..NODES).filter(|n| !world.silent[*n]);
                let known = there.map(|n| world.received(n, origin)).max().unwrap_or(0);
                let wanted = seen.get(node(origin as u16 + 1)).0;
                prop_assert!(wanted >= shown.min(known), "origin {origin}: {wanted} {shown} {known}");
                // And it is never more than somebody who answers can hand on, so the wait can end.
                let reachable = if world.silent[home] { known } else { known.max(shown) };
                prop_assert!(wanted <= reachable, "origin {origin}: {wanted} {reachable}");
            }
        }

        /// Whoever has applied a token in commits has all that was committed up to it, and all who catch up come there.
        #[test]
        fn a_token_in_commits_is_enough_and_can_be_reached(
            commits in prop::collection::btree_set(1_u64..100, 0..8),
            lsn in 0_u64..120,
            applied in 0_usize..9,
        ) {
            let commits: Vec<u64> = commits.into_iter().collect();
            let published = commits.last().copied().unwrap_or(0);
            let read = published + 10;
            let told = told(vec![at(read, published, &[])]);
            let token = vector(&[(1, lsn)]);
            let wanted = in_commits(&token, &told, &View::default()).get(node(1)).0;
            let shown = commits.iter().take(applied).next_back().copied().unwrap_or(0);
            if shown >= wanted {
                prop_assert!(commits.iter().all(|commit| *commit > lsn || *commit <= shown));
            }
            prop_assert_eq!(published >= wanted, lsn <= read);
        }
    }
}
