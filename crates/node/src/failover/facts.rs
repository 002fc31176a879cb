//! Gathers, from what gossip sees and the cluster has agreed on, the facts upon which the primary is decided.

use std::collections::BTreeMap;

use synapsedb_core::failover::{Agent, NodeFacts};
use synapsedb_core::ids::{Epoch, NodeId};
use synapsedb_core::state::ClusterState;

use crate::gossip::{MemberState, MemberView, View};

/// Remembers since when things are as they are.
#[derive(Debug, Default)]
pub(super) struct Observer {
    since: BTreeMap<NodeId, (Seen, u64)>,
    epoch: Option<Epoch>,
    changed_ms: Option<u64>,
}

/// The facts of a node whose duration matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    reachable: bool,
    agent: Agent,
    takes_writes: bool,
}

impl Observer {
    /// Takes a look at `now_ms`: what is known of each active member that gossip has heard of.
    pub(super) fn look(
        &mut self,
        state: &ClusterState,
        view: &View,
        own: NodeId,
        reachable_age_ms: u64,
        now_ms: u64,
    ) -> BTreeMap<NodeId, NodeFacts> {
        if self.epoch.replace(state.epoch).is_some_and(|epoch| epoch != state.epoch) {
            self.changed_ms = Some(now_ms);
        }
        let mut facts = BTreeMap::new();
        for node in state.active_nodes() {
            let Some(member) = view.members.get(&node) else {
                self.since.remove(&node);
                continue;
            };
            let seen = Seen {
                reachable: is_reachable(node, state, view, own, reachable_age_ms),
                agent: agent(node, member, own),
                takes_writes: member
                    .facts
                    .as_ref()
                    .is_some_and(|facts| facts.postgres_ready && !facts.clock_set_back),
            };
            let since = self.since.entry(node).or_insert((seen, now_ms));
            if since.0 != seen {
                *since = (seen, now_ms);
            }
            let Seen { reachable, agent, takes_writes } = seen;
            let applied =
                member.facts.as_ref().map(|facts| facts.applied.clone()).unwrap_or_default();
            let since_ms = since.1;
            facts.insert(node, NodeFacts { reachable, agent, takes_writes, since_ms, applied });
        }
        facts
    }

    /// When the primary changed last, if it did while this agent looked.
    pub(super) fn changed_ms(&self) -> Option<u64> {
        self.changed_ms
    }
}

fn agent(node: NodeId, member: &MemberView, own: NodeId) -> Agent {
    if node == own {
        // Whoever asks lives.
        return Agent::Alive;
    }
    match member.state {
        MemberState::Alive => Agent::Alive,
        MemberState::Suspect => Agent::Suspect,
        MemberState::Down | MemberState::Left => Agent::Down,
    }
}

/// Whether a majority of the active members, the node itself among them, has heard of it lately.
fn is_reachable(
    node: NodeId,
    state: &ClusterState,
    view: &View,
    own: NodeId,
    reachable_age_ms: u64,
) -> bool {
    let hears = |witness: NodeId| {
        witness == node
            || heard_age_ms(witness, node, view, own).is_some_and(|age| age <= reachable_age_ms)
    };
    let members = state.active_nodes().count();
    let witnesses = state.active_nodes().filter(|&witness| hears(witness)).count();
    witnesses > members / 2
}

/// How long ago `witness` heard of `node`, as far as we know.
fn heard_age_ms(witness: NodeId, node: NodeId, view: &View, own: NodeId) -> Option<u64> {
    if witness == own {
        return view.members.get(&node)?.heartbeat_age_ms;
    }
    // The ages that a witness reported grow on while it is silent: a dead one vouches for nobody.
    view.members.get(&witness)?.hears.get(&node).copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use synapsedb_core::state::Command;

    use super::super::tests::{cluster, heard, node};
    use super::*;

    #[test]
    fn reachable_means_that_a_majority_heard_it_lately() {
        let state = cluster(3);
        // Rows: who heard (node 1 is we); columns: of whom; in milliseconds ago.
        for (ages, expected) in [
            ([[0, 90, 90], [90, 0, 90], [90, 90, 0]], [true, true, true]),
            // We do not hear node 3, node 2 does.
            ([[0, 90, 9_000], [90, 0, 90], [90, 90, 0]], [true, true, true]),
            // Nobody hears node 3, and what it said last is old.
            ([[0, 90, 9_000], [90, 0, 9_000], [90, 90, 0]], [true, true, false]),
            // We hear nobody, and what the others said of each other has become old.
            ([[0, 9_000, 9_000], [9_090, 0, 9_090], [9_090, 9_090, 0]], [false, false, false]),
        ] {
            let facts = Observer::default().look(&state, &heard(&ages), node(1), 500, 0);
            let reachable: Vec<_> = facts.values().map(|facts| facts.reachable).collect();
            assert_eq!(reachable, expected, "{ages:?}");
        }
    }

    #[test]
    fn since_is_when_it_became_so() {
        let state = cluster(3);
        let mut view = heard(&[[0, 90, 90], [90, 0, 90], [90, 90, 0]]);
        let mut observer = Observer::default();
        let since = |observer: &mut Observer, view: &View, now_ms| {
            observer.look(&state, view, node(1), 500, now_ms)[&node(2)].since_ms
        };
        assert_eq!(since(&mut observer, &view, 100), 100);
        assert_eq!(since(&mut observer, &view, 300), 100);
        view.members.get_mut(&node(2)).unwrap().state = MemberState::Suspect;
        assert_eq!(since(&mut observer, &view, 500), 500);
        assert_eq!(since(&mut observer, &view, 700), 500);
    }

    #[test]
    fn a_change_of_the_primary_is_noticed_but_not_the_first_look() {
        let mut state = cluster(3);
        let view = View::default();
        let mut observer = Observer::default();
        observer.look(&state, &view, node(1), 500, 100);
        assert_eq!(observer.changed_ms(), None);
        state.apply(&Command::SetPrimary { node: node(2), expected: state.epoch });
        observer.look(&state, &view, node(1), 500, 300);
        observer.look(&state, &view, node(1), 500, 500);
        assert_eq!(observer.changed_ms(), Some(300));
    }

    #[test]
    fn gossip_may_be_wrong_about_this_node_and_left_is_gone() {
        let state = cluster(3);
        let mut view = heard(&[[0, 90, 90], [90, 0, 90], [90, 90, 0]]);
        view.members.get_mut(&node(1)).unwrap().state = MemberState::Down;
        view.members.get_mut(&node(2)).unwrap().state = MemberState::Left;
        view.members.remove(&node(3));
        let facts = Observer::default().look(&state, &view, node(1), 500, 0);
        assert_eq!(facts[&node(1)].agent, Agent::Alive);
        assert_eq!(facts[&node(2)].agent, Agent::Down);
        assert!(!facts.contains_key(&node(3)));
    }
}
