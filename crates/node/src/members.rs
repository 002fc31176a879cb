//! Tells those who speak with other members where these are: as the cluster has agreed, and as the configuration says
//! of those that the cluster does not know yet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use synapsedb_core::ids::NodeId;
use synapsedb_core::state::{ClusterState, MemberStatus};
use tokio::sync::watch;

use crate::peers::PeerAddress;
use crate::tasks::Shutdown;
use crate::{gossip, peers};

/// How long a removed member is still spoken to, so that it learns of it.
const FAREWELL: Duration = Duration::from_secs(3);

/// Follows the members of the cluster.
pub(crate) struct Task {
    pub(crate) me: NodeId,
    /// Those of the configuration.
    pub(crate) seeds: Vec<PeerAddress>,
    pub(crate) state: watch::Receiver<Arc<ClusterState>>,
    pub(crate) peers: peers::Handle,
    pub(crate) gossip: gossip::Handle,
}

impl Task {
    /// Follows until `stop`.
    ///
    /// # Errors
    /// The cluster state is gone: Raft has ended.
    pub(crate) async fn run(mut self, stop: Shutdown) -> Result<()> {
        let mut before = BTreeMap::new();
        loop {
            let state = self.state.borrow_and_update().clone();
            let removed = |node: &NodeId| {
                state.members.get(node).is_some_and(|member| member.status == MemberStatus::Removed)
            };
            if removed(&self.me) {
                // Replication gives the server back, and then ends the agent.
                stop.cancelled().await;
                return Ok(());
            }
            let now = book(&self.seeds, &state);
            let mut shown = now.clone();
            let leaving =
                before.iter().filter(|(node, _)| removed(node) && !now.contains_key(node));
            let leaving: Vec<(NodeId, String)> =
                leaving.map(|(node, at)| (*node, String::clone(at))).collect();
            let farewell = !leaving.is_empty();
            shown.extend(leaving);
            self.peers.set_members(&shown);
            self.gossip.set_members(&shown);
            before = now;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = self.state.changed() => changed.context("the cluster state is gone")?,
                () = tokio::time::sleep(FAREWELL), if farewell => {}
            }
        }
    }
}

/// Where everybody is.
fn book(seeds: &[PeerAddress], state: &ClusterState) -> BTreeMap<NodeId, String> {
    let unknown = seeds.iter().filter(|seed| !state.members.contains_key(&seed.node));
    let mut book: BTreeMap<_, _> = unknown.map(|seed| (seed.node, seed.address.clone())).collect();
    book.extend(state.present().map(|(node, member)| (node, member.addresses.peers.clone())));
    book
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

    #[test]
    fn the_cluster_knows_better_than_the_configuration() {
        let seed =
            |number: u16| PeerAddress { node: node(number), address: format!("seed{number}:1") };
        let seeds = [seed(1), seed(2), seed(3)];
        let mut state = ClusterState::default();
        assert_eq!(book(&seeds, &state).len(), 3);
        for number in [2, 3, 4] {
            let addresses = Addresses { peers: format!("known{number}:1"), ..Addresses::default() };
            state.apply(&Command::AdmitMember {
                node: node(number),
                uuid: number.to_string(),
                incarnation: Incarnation::FIRST,
                addresses,
            });
        }
        state.apply(&Command::RegisterMember {
            node: node(4),
            uuid: "4".to_owned(),
            incarnation: Incarnation::FIRST,
            addresses: Addresses { peers: "known4:1".to_owned(), ..Addresses::default() },
            system_identifier: String::new(),
            postgres_version: 0,
        });
        state.apply(&Command::RemoveMember { node: node(3) });
        let book: Vec<_> = book(&seeds, &state).into_values().collect();
        assert_eq!(book, ["seed1:1", "known2:1", "known4:1"]);
    }
}
