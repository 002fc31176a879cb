//! Decides whether the primary stays, and who follows it.
//!
//! Every node takes writes, so a failover moves the *ownership* of the write endpoint and promotes nothing. A wrong
//! decision here costs a moment of latency, never data: it takes effect only through
//! [`Command::SetPrimary`](crate::state::Command::SetPrimary), which a stale epoch cannot win.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::state::ClusterState;
use crate::version::VersionVector;

/// When to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long a primary may be unable to serve, without being known to be down, before it is replaced, in
    /// milliseconds.
    pub unready_ms: u64,
    /// How long after a change of the primary the next one waits, in milliseconds, unless the primary is down.
    pub cooldown_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { unready_ms: 1_000, cooldown_ms: 5_000 }
    }
}

/// What gossip believes of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// It answers.
    Alive,
    /// It does not answer this moment; it may refute.
    Suspect,
    /// It did not refute in time, or it has left.
    Down,
}

/// What is known of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Whether a majority of the members has heard from it lately.
    pub reachable: bool,
    /// What gossip believes of its agent.
    pub agent: Agent,
    /// Whether its PostgreSQL server takes sessions, and its clock was not set back.
    pub takes_writes: bool,
    /// The instant, on the clock of [`Facts::now_ms`], since which the three facts above are as they are.
    pub since_ms: u64,
    /// What it has applied, durably.
    pub applied: VersionVector,
}

/// All that a decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What the cluster has agreed on.
    pub state: &'a ClusterState,
    /// What is known of each node; of a node that is absent nothing is known, and it counts as down.
    pub nodes: &'a BTreeMap<NodeId, NodeFacts>,
    /// When the primary changed last, in milliseconds on the clock of `now_ms`; `None` if that was before the clock.
    pub changed_ms: Option<u64>,
    /// The instant of the decision, in milliseconds on any clock that only goes forward.
    pub now_ms: u64,
}

/// What to do about the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Leave it as it is.
    Keep,
    /// Propose this node as the new primary, in the epoch of the state that was looked at.
    Appoint(NodeId),
    /// A new primary is needed and no node could be it.
    NobodyEligible,
}

/// Whether the primary stays, and if not, which ready node knows most of what only the survivors can tell.
pub fn decide(facts: &Facts<'_>, config: &Config) -> Decision {
    if !must_replace(facts, config) {
        return Decision::Keep;
    }
    let eligible: Vec<NodeId> = facts
        .state
        .active_nodes()
        .filter(|node| facts.nodes.get(node).is_some_and(can_serve))
        .collect();
    most_advanced(facts, &eligible).map_or(Decision::NobodyEligible, Decision::Appoint)
}

fn can_serve(node: &NodeFacts) -> bool {
    node.reachable && node.agent == Agent::Alive && node.takes_writes
}

fn must_replace(facts: &Facts<'_>, config: &Config) -> bool {
    let Some(primary) = facts.state.primary.filter(|&node| facts.state.active(node).is_some())
    else {
        return true;
    };
    let Some(node) = facts.nodes.get(&primary) else { return true };
    let since = |then_ms: u64| facts.now_ms.saturating_sub(then_ms);
    let cooling = facts.changed_ms.is_some_and(|changed| since(changed) < config.cooldown_ms);
    match (node.agent, node.reachable, node.takes_writes) {
        (Agent::Down, _, _) => true,
        // A mere suspicion, while a majority hears the node and its server answers, is refuted or becomes `Down` soon.
        (Agent::Alive | Agent::Suspect, true, true) => false,
        // Two witnesses that do not depend on each other: the failure detector and the reachability matrix.
        (Agent::Suspect, false, _) => !cooling,
        (Agent::Alive, false, _) | (Agent::Alive | Agent::Suspect, true, false) => {
            !cooling && since(node.since_ms) >= config.unready_ms
        }
    }
}

/// The node that has applied most of the origins that cannot serve: what the serving ones have, all will get from
/// themselves. The old primary's transactions count first; then whom a node covers; then the lowest number. (A node
/// that covers another ranks at least as high in both, so nobody is preferred to a node that knows more.)
fn most_advanced(facts: &Facts<'_>, eligible: &[NodeId]) -> Option<NodeId> {
    let lost = |node: NodeId| -> VersionVector {
        let applied = facts.nodes.get(&node).map(|node| node.applied.clone()).unwrap_or_default();
        applied.iter().filter(|(origin, _)| !eligible.contains(origin)).collect()
    };
    let known: Vec<(NodeId, VersionVector)> =
        eligible.iter().map(|&node| (node, lost(node))).collect();
    known
        .iter()
        .max_by_key(|(node, applied)| {
            let of_the_old_primary = facts.state.primary.map(|primary| applied.get(primary));
            let covered = known.iter().filter(|(_, other)| applied.covers(other)).count();
            (of_the_old_primary, covered, Reverse(*node))
        })
        .map(|&(node, _)| node)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ids::{Epoch, Incarnation};
    use crate::lsn::Lsn;
    use crate::state::{Addresses, Command, Outcome};

    fn node(number: u16) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn vector(entries: &[(u16, u64)]) -> VersionVector {
        entries.iter().map(|&(number, lsn)| (node(number), Lsn(lsn))).collect()
    }

    /// Three members; the primary, if any, in epoch 1.
    fn cluster(primary: Option<u16>) -> ClusterState {
        let mut state = ClusterState::default();
        for number in 1..=3 {
            let register = Command::RegisterMember {
                node: node(number),
                uuid: number.to_string(),
                incarnation: Incarnation::FIRST,
                addresses: Addresses::default(),
                system_identifier: String::new(),
                postgres_version: 0,
            };
            assert_eq!(state.apply(&register), Outcome::Applied);
        }
        if let Some(primary) = primary {
            let set = Command::SetPrimary { node: node(primary), expected: Epoch(0) };
            assert_eq!(state.apply(&set), Outcome::Applied);
        }
        state
    }

    fn well(applied: &[(u16, u64)]) -> NodeFacts {
        NodeFacts {
            reachable: true,
            agent: Agent::Alive,
            takes_writes: true,
            since_ms: 0,
            applied: vector(applied),
        }
    }

    fn all_well() -> BTreeMap<NodeId, NodeFacts> {
        (1..=3).map(|number| (node(number), well(&[]))).collect()
    }

    fn at(
        now_ms: u64,
        state: &ClusterState,
        nodes: &BTreeMap<NodeId, NodeFacts>,
        changed_ms: Option<u64>,
    ) -> Decision {
        let config = Config { unready_ms: 1_000, cooldown_ms: 5_000 };
        decide(&Facts { state, nodes, changed_ms, now_ms }, &config)
    }

    #[test]
    fn a_new_cluster_appoints_its_lowest_ready_node() {
        let mut nodes = all_well();
        let state = cluster(None);
        assert_eq!(at(0, &state, &nodes, None), Decision::Appoint(node(1)));
        nodes.get_mut(&node(1)).unwrap().takes_writes = false;
        assert_eq!(at(0, &state, &nodes, None), Decision::Appoint(node(2)));
        assert_eq!(at(0, &state, &BTreeMap::new(), None), Decision::NobodyEligible);
    }

    #[test]
    fn a_primary_that_serves_or_is_only_suspected_stays() {
        let mut nodes = all_well();
        let state = cluster(Some(2));
        assert_eq!(at(9_000, &state, &nodes, None), Decision::Keep);
        nodes.get_mut(&node(2)).unwrap().agent = Agent::Suspect;
        assert_eq!(at(9_000, &state, &nodes, None), Decision::Keep);
        nodes.get_mut(&node(2)).unwrap().reachable = false;
        assert_eq!(at(9_000, &state, &nodes, None), Decision::Appoint(node(1)));
    }

    #[test]
    fn an_unready_primary_gets_its_time_and_a_dead_one_does_not() {
        let mut nodes = all_well();
        let state = cluster(Some(1));
        nodes.get_mut(&node(1)).unwrap().takes_writes = false;
        assert_eq!(at(999, &state, &nodes, None), Decision::Keep);
        assert_eq!(at(1_000, &state, &nodes, None), Decision::Appoint(node(2)));
        assert_eq!(at(4_999, &state, &nodes, Some(0)), Decision::Keep);
        assert_eq!(at(5_000, &state, &nodes, Some(0)), Decision::Appoint(node(2)));
        nodes.get_mut(&node(1)).unwrap().agent = Agent::Down;
        assert_eq!(at(1, &state, &nodes, Some(0)), Decision::Appoint(node(2)));
        nodes.remove(&node(1));
        assert_eq!(at(1, &state, &nodes, Some(0)), Decision::Appoint(node(2)));
    }

    #[test]
    fn the_most_advanced_survivor_follows() {
        let state = cluster(Some(1));
        let mut nodes = all_well();
        nodes.insert(node(1), NodeFacts { agent: Agent::Down, ..well(&[]) });
        nodes.insert(node(2), well(&[(1, 10), (2, 900)]));
        nodes.insert(node(3), well(&[(1, 11), (2, 5)]));
        assert_eq!(at(0, &state, &nodes, None), Decision::Appoint(node(3)));
        nodes.insert(node(2), well(&[(1, 11), (2, 900)]));
        assert_eq!(at(0, &state, &nodes, None), Decision::Appoint(node(2)));
    }

    #[test]
    fn a_removed_primary_is_replaced_and_never_appointed() {
        let mut state = cluster(Some(1));
        state.apply(&Command::RemoveMember { node: node(1) });
        assert_eq!(at(0, &state, &all_well(), Some(0)), Decision::Appoint(node(2)));
    }
}
