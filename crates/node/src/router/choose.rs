//! Decides which node a new session goes to: a pure function of what the cluster has agreed on and what gossip sees.

use std::fmt;

use synapsedb_core::ids::NodeId;
use synapsedb_core::state::{ClusterState, Member, MemberStatus};

use super::Endpoint;
use crate::gossip::{MemberState, View};

/// A node that may serve the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The node.
    pub node: NodeId,
    /// `host:port` of its PostgreSQL server.
    pub address: String,
}

/// Where a session may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// These nodes, best first; never empty.
    Try(Vec<Target>),
    /// No node at this moment.
    Nobody(Why),
}

/// Why no node can serve a session now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The cluster has agreed on no primary yet.
    NoPrimary,
    /// The primary has left the cluster, or has not said where its server is.
    PrimaryUnusable(NodeId),
    /// No member is fit to read from; each with the reason.
    NobodyReady(Vec<(NodeId, Unfit)>),
    /// This node, which the session wants to read from and no other, is not fit for it.
    NotReadable(NodeId),
    /// No ready node has all that the session must see (a token); each with what it lacks.
    Stale(String, Vec<(NodeId, String)>),
    /// These members do not say what they have acknowledged; each with the reason.
    Unheard(Vec<(NodeId, String)>),
    /// The agent is stopping.
    Draining,
}

/// Why a member is not read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Gossip has not seen it yet.
    Unseen,
    /// It does not answer heartbeats.
    Suspect,
    /// It is down.
    Down,
    /// It has left.
    Left,
    /// Its agent lives, its PostgreSQL server takes no sessions.
    ServerNotReady,
    /// It has not said where its server is.
    NoAddress,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unseen => "not heard of yet",
            Self::Suspect => "does not answer heartbeats",
            Self::Down => "is down",
            Self::Left => "has left",
            Self::ServerNotReady => "its PostgreSQL server takes no sessions",
            Self::NoAddress => "the address of its PostgreSQL server is unknown",
        })
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPrimary => f.write_str("the cluster has no primary yet"),
            Self::PrimaryUnusable(node) => {
                write!(f, "the primary, node {node}, has left or its address is unknown")
            }
            Self::Stale(token, lacking) => {
                write!(
                    f,
                    "no node that is ready has applied all that this session must see: {token}"
                )?;
                each(f, "; ", lacking)
            }
            Self::Unheard(silent) => {
                f.write_str("what was acknowledged is not known everywhere")?;
                each(f, ": ", silent)
            }
            Self::NotReadable(node) => {
                write!(f, "node {node}, which synapsedb.route names, is no member or not ready")
            }
            Self::Draining => f.write_str("this agent is stopping"),
            Self::NobodyReady(members) if members.is_empty() => {
                f.write_str("the cluster has no members yet")
            }
            Self::NobodyReady(members) => {
                f.write_str("no node is ready")?;
                each(f, ": ", members)
            }
        }
    }
}

/// The nodes with what is said of each.
fn each(
    f: &mut fmt::Formatter<'_>,
    mut between: &str,
    nodes: &[(NodeId, impl fmt::Display)],
) -> fmt::Result {
    for (node, what) in nodes {
        write!(f, "{between}node {node} {what}")?;
        between = ", ";
    }
    Ok(())
}

/// The nodes that may serve a transaction on `endpoint`, the nearest first.
///
/// Writes go to the primary that the cluster has agreed on and to nobody else, whatever gossip believes of it. Reads
/// go to any ready node: `own` comes first, then the lowest number.
pub fn choose(endpoint: Endpoint, state: &ClusterState, view: &View, own: NodeId) -> Choice {
    match endpoint {
        Endpoint::Write | Endpoint::Split => choose_primary(state),
        Endpoint::Read => choose_ready(state, view, own),
    }
}

/// The nodes of `targets` that show what is older than `lag_max_ms`, with how old it is: they are not read from while
/// another one is nearer. If all are so far behind, none is in it; 0 stands for no bound.
pub fn behind(targets: &[Target], view: &View, lag_max_ms: u64) -> Vec<(NodeId, u64)> {
    let lag_ms = |node: NodeId| {
        let facts = view.members.get(&node).and_then(|member| member.facts.as_ref());
        facts.map_or(0, |facts| facts.lag_ms)
    };
    let lags = targets.iter().map(|target| (target.node, lag_ms(target.node)));
    let behind: Vec<_> = lags.filter(|(_, lag_ms)| *lag_ms > lag_max_ms).collect();
    let any_is_nearer = behind.len() < targets.len();
    if lag_max_ms > 0 && any_is_nearer { behind } else { Vec::new() }
}

/// Why a member cannot be read from now; `None` if it can.
pub fn unfit(node: NodeId, state: &ClusterState, view: &View, own: NodeId) -> Option<Unfit> {
    let member = state.members.get(&node).filter(|member| is_active(member));
    member.map_or(Some(Unfit::Left), |member| fitness(node, member, view, own).err())
}

fn choose_primary(state: &ClusterState) -> Choice {
    let Some(node) = state.primary else { return Choice::Nobody(Why::NoPrimary) };
    match state.members.get(&node) {
        Some(member) if is_active(member) && !member.addresses.postgres.is_empty() => {
            Choice::Try(vec![Target { node, address: member.addresses.postgres.clone() }])
        }
        Some(_) | None => Choice::Nobody(Why::PrimaryUnusable(node)),
    }
}

fn choose_ready(state: &ClusterState, view: &View, own: NodeId) -> Choice {
    let mut fit = Vec::new();
    let mut unfit = Vec::new();
    for (&node, member) in state.members.iter().filter(|(_, member)| is_active(member)) {
        match fitness(node, member, view, own) {
            Ok(()) => fit.push(Target { node, address: member.addresses.postgres.clone() }),
            Err(why) => unfit.push((node, why)),
        }
    }
    if fit.is_empty() {
        return Choice::Nobody(Why::NobodyReady(unfit));
    }
    fit.sort_by_key(|target| (target.node != own, target.node));
    Choice::Try(fit)
}

fn fitness(node: NodeId, member: &Member, view: &View, own: NodeId) -> Result<(), Unfit> {
    if member.addresses.postgres.is_empty() {
        return Err(Unfit::NoAddress);
    }
    let seen = view.members.get(&node).ok_or(Unfit::Unseen)?;
    if node != own {
        // What gossip believes of this very agent says nothing: it runs, or nobody would ask.
        match seen.state {
            MemberState::Alive => {}
            MemberState::Suspect => return Err(Unfit::Suspect),
            MemberState::Down => return Err(Unfit::Down),
            MemberState::Left => return Err(Unfit::Left),
        }
    }
    let ready = seen.facts.as_ref().is_some_and(|facts| facts.postgres_ready);
    if ready { Ok(()) } else { Err(Unfit::ServerNotReady) }
}

fn is_active(member: &Member) -> bool {
    match member.status {
        MemberStatus::Active => true,
        MemberStatus::Joining | MemberStatus::Leaving | MemberStatus::Removed => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::router::testing::{Seen, node, state, view};

    fn order(choice: Choice) -> Vec<u16> {
        match choice {
            Choice::Try(targets) => targets.iter().map(|target| target.node.get()).collect(),
            Choice::Nobody(_) => Vec::new(),
        }
    }

    /// Nodes 1 to 3 as gossip sees them, own node → the order in which they are tried.
    type Case = ([Seen; 3], u16, &'static [u16]);

    #[test]
    fn reads_go_to_ready_nodes_own_first() {
        use Seen::{Down, Missing, NotReady, Ready, Suspect};
        let table: &[Case] = &[
            ([Ready, Ready, Ready], 1, &[1, 2, 3]),
            ([Ready, Ready, Ready], 3, &[3, 1, 2]),
            ([Ready, Suspect, Ready], 3, &[3, 1]),
            ([Ready, Down, NotReady], 3, &[1]),
            ([Missing, Ready, Missing], 1, &[2]),
            // Gossip may believe this agent suspect: it runs nevertheless.
            ([Suspect, Ready, Ready], 1, &[1, 2, 3]),
            ([NotReady, NotReady, Down], 1, &[]),
            ([Missing, Missing, Missing], 1, &[]),
        ];
        for (seen, own, expected) in table {
            let choice = choose(Endpoint::Read, &state(3, Some(2)), &view(seen), node(*own));
            assert_eq!(order(choice), *expected, "{seen:?} own {own}");
        }
    }

    #[test]
    fn writes_go_to_the_primary_and_nowhere_else() {
        let unseen = view(&[Seen::Down, Seen::Down, Seen::Down]);
        let primary = choose(Endpoint::Write, &state(3, Some(2)), &unseen, node(1));
        assert_eq!(order(primary), [2], "gossip does not decide who the primary is");
        let nobody = choose(Endpoint::Write, &state(3, None), &unseen, node(1));
        assert_eq!(nobody, Choice::Nobody(Why::NoPrimary));
        let mut removed = state(3, Some(2));
        removed.members.get_mut(&node(2)).unwrap().status = MemberStatus::Removed;
        let nobody = choose(Endpoint::Write, &removed, &unseen, node(1));
        assert_eq!(nobody, Choice::Nobody(Why::PrimaryUnusable(node(2))));
        let stranger = choose(Endpoint::Write, &state(3, Some(9)), &unseen, node(1));
        assert_eq!(stranger, Choice::Nobody(Why::PrimaryUnusable(node(9))));
    }

    #[test]
    fn removed_members_and_members_without_address_are_not_read_from() {
        let mut state = state(3, None);
        state.members.get_mut(&node(1)).unwrap().status = MemberStatus::Removed;
        state.members.get_mut(&node(2)).unwrap().addresses.postgres.clear();
        let all = view(&[Seen::Ready, Seen::Ready, Seen::Ready]);
        let choice = choose(Endpoint::Read, &state, &all, node(1));
        assert_eq!(order(choice), [3]);
    }

    #[test]
    fn never_all_nodes_are_too_far_behind() {
        // The lags of nodes 1 to 3 → those that are not read from, with a bound of 100 ms.
        for (lags, expected) in [
            ([0, 0, 0], &[] as &[u16]),
            ([100, 99, 0], &[]),
            ([101, 99, 0], &[1]),
            ([500, 600, 100], &[1, 2]),
            ([500, 600, 101], &[]),
        ] {
            let mut view = view(&[Seen::Ready, Seen::Ready, Seen::Ready]);
            for (member, lag_ms) in view.members.values_mut().zip(lags) {
                member.facts.as_mut().unwrap().lag_ms = lag_ms;
            }
            let Choice::Try(targets) = choose(Endpoint::Read, &state(3, None), &view, node(1))
            else {
                panic!()
            };
            let found = behind(&targets, &view, 100);
            let nodes: Vec<u16> = found.iter().map(|(node, _)| node.get()).collect();
            assert_eq!(nodes, expected, "{lags:?}");
            assert!(behind(&targets, &view, 0).is_empty());
            // One that is not ready is no reason to read from none.
            assert!(behind(&targets[..1], &view, 100).is_empty());
        }
    }

    #[test]
    fn the_reason_names_every_node() {
        let seen = view(&[Seen::NotReady, Seen::Suspect]);
        let choice = choose(Endpoint::Read, &state(2, None), &seen, node(1));
        let Choice::Nobody(why) = choice else { panic!("{choice:?}") };
        assert_eq!(
            why.to_string(),
            "no node is ready: node 1 its PostgreSQL server takes no sessions, \
             node 2 does not answer heartbeats"
        );
    }
}
