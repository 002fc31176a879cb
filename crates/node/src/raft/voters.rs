//! On the leader: who votes follows who is a member. A joining node receives the log first and votes when it is active.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::{ChangeMembers, EmptyNode};
use synapsedb_core::ids::NodeId;
use synapsedb_core::state::{ClusterState, MemberStatus};
use tokio::time::timeout;

use super::{Shared, node_id};
use crate::tasks::Shutdown;

/// The pause between two looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long one change may take before it is looked at again.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The next change that brings the members of Raft nearer to those of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// It receives the log.
    Teach(NodeId),
    /// It votes.
    Promote(NodeId),
    /// It is no longer there.
    Remove(NodeId),
}

/// Follows the members until `stop`.
pub(super) async fn follow(shared: Arc<Shared>, stop: Shutdown) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if !shared.leads() {
            continue;
        }
        let next = {
            let metrics = shared.raft.metrics();
            let metrics = metrics.borrow();
            let membership = &metrics.membership_config;
            let voters = membership.voter_ids().filter_map(node_id).collect();
            let known = membership.nodes().filter_map(|(id, _)| node_id(*id)).collect();
            next(&shared.state.borrow(), &voters, &known)
        };
        if let Some(change) = next {
            match timeout(CHANGE_TIMEOUT, make(&shared, change)).await {
                Ok(Ok(())) => tracing::info!("the voters have changed: {change:?}"),
                Ok(Err(error)) => {
                    tracing::warn!("the voters were not changed ({change:?}): {error}")
                }
                Err(_) => tracing::warn!("the voters were not changed in time ({change:?})"),
            }
        }
    }
}

async fn make(shared: &Shared, change: Change) -> Result<(), String> {
    let id = |node: NodeId| u64::from(node.get());
    let text = |error: &dyn std::error::Error| error.to_string();
    match change {
        Change::Teach(node) => {
            let done = shared.raft.add_learner(id(node), EmptyNode {}, false).await;
            done.map(drop).map_err(|error| text(&error))
        }
        Change::Promote(node) => {
            let add = ChangeMembers::AddVoterIds(BTreeSet::from([id(node)]));
            shared.raft.change_membership(add, true).await.map(drop).map_err(|error| text(&error))
        }
        Change::Remove(node) => {
            let voter = ChangeMembers::RemoveVoters(BTreeSet::from([id(node)]));
            let done = shared.raft.change_membership(voter, false).await;
            done.map(drop).map_err(|error| text(&error))?;
            let learner = ChangeMembers::RemoveNodes(BTreeSet::from([id(node)]));
            // Gone already, unless it never voted.
            let _ = shared.raft.change_membership(learner, false).await;
            Ok(())
        }
    }
}

fn next(
    state: &ClusterState,
    voters: &BTreeSet<NodeId>,
    known: &BTreeSet<NodeId>,
) -> Option<Change> {
    for (&node, member) in &state.members {
        let change = match member.status {
            MemberStatus::Removed => known.contains(&node).then_some(Change::Remove(node)),
            _ if !known.contains(&node) => Some(Change::Teach(node)),
            MemberStatus::Active => (!voters.contains(&node)).then_some(Change::Promote(node)),
            MemberStatus::Joining | MemberStatus::Leaving => None,
        };
        if change.is_some() {
            return change;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use synapsedb_core::ids::Incarnation;
    use synapsedb_core::state::{Addresses, Command};

    use super::*;

    fn node(number: u16) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn set(numbers: &[u16]) -> BTreeSet<NodeId> {
        numbers.iter().map(|number| node(*number)).collect()
    }

    #[test]
    fn the_voters_follow_the_members() {
        let mut state = ClusterState::default();
        // Before anybody has registered, the founders vote.
        assert_eq!(next(&state, &set(&[1, 2]), &set(&[1, 2])), None);
        let admit = |number: u16| Command::AdmitMember {
            node: node(number),
            uuid: number.to_string(),
            incarnation: Incarnation::FIRST,
            addresses: Addresses::default(),
        };
        let register = |number: u16| Command::RegisterMember {
            node: node(number),
            uuid: number.to_string(),
            incarnation: Incarnation::FIRST,
            addresses: Addresses::default(),
            system_identifier: String::new(),
            postgres_version: 0,
        };
        state.apply(&register(1));
        state.apply(&register(2));
        assert_eq!(next(&state, &set(&[1, 2]), &set(&[1, 2])), None);
        state.apply(&admit(3));
        assert_eq!(next(&state, &set(&[1, 2]), &set(&[1, 2])), Some(Change::Teach(node(3))));
        assert_eq!(next(&state, &set(&[1, 2]), &set(&[1, 2, 3])), None);
        state.apply(&register(3));
        assert_eq!(next(&state, &set(&[1, 2]), &set(&[1, 2, 3])), Some(Change::Promote(node(3))));
        state.apply(&Command::DismissMember { node: node(1) });
        assert_eq!(next(&state, &set(&[1, 2, 3]), &set(&[1, 2, 3])), None);
        state.apply(&Command::RemoveMember { node: node(1) });
        assert_eq!(next(&state, &set(&[1, 2, 3]), &set(&[1, 2, 3])), Some(Change::Remove(node(1))));
        assert_eq!(next(&state, &set(&[2, 3]), &set(&[2, 3])), None);
    }
}
