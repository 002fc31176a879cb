//! The replicated state of the cluster: what Raft agrees on, and the rule by which each command changes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Incarnation, NodeId};

/// Everything the cluster agrees on. Equal commands in equal order make equal states on every node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Every node that ever registered; a removed one stays, so that its number is never given away again.
    pub members: BTreeMap<NodeId, Member>,
    /// The node to which the write endpoint leads.
    pub primary: Option<NodeId>,
    /// Grows by one with every change of `primary`.
    pub epoch: Epoch,
}

/// A node as it registered last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The identity of its data; another one under the same number is another node.
    pub uuid: String,
    /// The life of its data.
    pub incarnation: Incarnation,
    /// Whether it belongs to the cluster.
    pub status: MemberStatus,
    /// Where it listens.
    pub addresses: Addresses,
    /// PostgreSQL's own identifier of the data directory (decimal, as `pg_control_system()` prints it); empty when it
    /// was not yet known.
    pub system_identifier: String,
    /// The server's `server_version_num`, such as 150018; zero when it was not yet known.
    pub postgres_version: u32,
}

/// Whether a member belongs to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberStatus {
    /// Its data is being copied: the others keep for it what they have, and it serves nobody yet.
    Joining,
    /// It takes part.
    Active,
    /// It is about to be removed: what it has committed is received to the end, and it serves nobody any more.
    Leaving,
    /// It was removed for good.
    Removed,
}

/// Where a member listens, each as `host:port`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Agent to agent: TCP with mutual TLS, and gossip datagrams under the same number.
    pub peers: String,
    /// The PostgreSQL server.
    pub postgres: String,
    /// The first of the agent's HTTP ports.
    pub http: String,
}

/// A change of the cluster's intent. Proposed through Raft, applied by [`ClusterState::apply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A node joins, or tells what has changed about it (it does so at every start).
    RegisterMember {
        /// Its number.
        node: NodeId,
        /// The identity of its data.
        uuid: String,
        /// The life of its data.
        incarnation: Incarnation,
        /// Where it listens.
        addresses: Addresses,
        /// PostgreSQL's identifier of its data directory; empty when not yet known.
        system_identifier: String,
        /// Its `server_version_num`; zero when not yet known.
        postgres_version: u32,
    },
    /// A node's data is about to be copied: a new node under a number that was never used, or another life of a known
    /// one.
    AdmitMember {
        /// Its number.
        node: NodeId,
        /// The identity of its data.
        uuid: String,
        /// The life that the copy begins.
        incarnation: Incarnation,
        /// Where it will listen.
        addresses: Addresses,
    },
    /// A node is to be removed: it serves nobody from now on.
    DismissMember {
        /// Its number.
        node: NodeId,
    },
    /// Ownership of the write endpoint goes to a node.
    SetPrimary {
        /// The new primary.
        node: NodeId,
        /// The epoch that the proposer decided upon; if it has passed, the decision is stale and is refused.
        expected: Epoch,
    },
    /// A node leaves for good; its number is not given away again.
    RemoveMember {
        /// Its number.
        node: NodeId,
    },
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The state has changed.
    Applied,
    /// The state was already as the command wants it.
    Unchanged,
    /// The command is not allowed; the state has not changed.
    Refused(Refusal),
}

/// Why a command was refused. A refused command has changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Another uuid under a known number: the node's data was wiped, or it is a copy under a wrong number.
    #[error(
        "node {node} is known with the identity {known}, not {got}: its data was wiped or belongs to another node. \
         The cluster is unchanged; restore the node's identity.json and data, or give the new node a number of its own"
    )]
    OtherIdentity {
        /// The number.
        node: NodeId,
        /// The uuid that the cluster knows.
        known: String,
        /// The uuid that was offered.
        got: String,
    },
    /// The same node with the data directory of another PostgreSQL server, in the same incarnation.
    #[error(
        "node {node} is known with the PostgreSQL system identifier {known}, not {got}: its data was replaced. \
         The cluster is unchanged; give back the old data, or re-seed the node, which raises its incarnation"
    )]
    OtherServer {
        /// The number.
        node: NodeId,
        /// The system identifier that the cluster knows.
        known: String,
        /// The system identifier that was offered.
        got: String,
    },
    /// An earlier life of the node's data, such as an old copy of it.
    #[error(
        "node {node} is known in incarnation {known}, and {got} is an earlier one: its data is an old copy. \
         The cluster is unchanged; re-seed the node"
    )]
    OldIncarnation {
        /// The number.
        node: NodeId,
        /// The incarnation that the cluster knows.
        known: Incarnation,
        /// The incarnation that was offered.
        got: Incarnation,
    },
    /// A life that does not follow the known one.
    #[error(
        "node {node} is known in incarnation {known}; a copy begins {expected}, not {got}. Nothing has changed; look \
         at the members again"
    )]
    NotTheNextIncarnation {
        /// The number.
        node: NodeId,
        /// The incarnation that the cluster knows.
        known: Incarnation,
        /// The one that a copy begins.
        expected: Incarnation,
        /// The one that was offered.
        got: Incarnation,
    },
    /// The decision was made upon an epoch that is not the current one.
    #[error(
        "the primary was chosen in epoch {expected}, and the cluster is in epoch {current}: \
         the choice is stale and nothing has changed; decide again"
    )]
    StaleEpoch {
        /// The epoch upon which the proposer decided.
        expected: Epoch,
        /// The cluster's.
        current: Epoch,
    },
    /// No node with this number ever registered.
    #[error("no node {node} is registered; nothing has changed, start its agent first")]
    UnknownMember {
        /// The number.
        node: NodeId,
    },
    /// The node is being copied or about to be removed.
    #[error("node {node} is joining or leaving; nothing has changed, wait until that is done")]
    NotActive {
        /// The number.
        node: NodeId,
    },
    /// The node was removed for good.
    #[error(
        "node {node} was removed from the cluster; nothing has changed, join under a number of its own"
    )]
    RemovedMember {
        /// The number.
        node: NodeId,
    },
    /// The only active node cannot be removed.
    #[error(
        "node {node} is the last active member; nothing has changed, take the cluster down instead"
    )]
    LastMember {
        /// The number.
        node: NodeId,
    },
}

impl ClusterState {
    /// Changes the state as `command` says, or refuses and changes nothing.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        let outcome = match command {
            Command::RegisterMember {
                node,
                uuid,
                incarnation,
                addresses,
                system_identifier,
                postgres_version,
            } => self.register(
                *node,
                Member {
                    uuid: uuid.clone(),
                    incarnation: *incarnation,
                    status: MemberStatus::Active,
                    addresses: addresses.clone(),
                    system_identifier: system_identifier.clone(),
                    postgres_version: *postgres_version,
                },
            ),
            Command::AdmitMember { node, uuid, incarnation, addresses } => {
                self.admit(*node, uuid, *incarnation, addresses)
            }
            Command::DismissMember { node } => self.dismiss(*node),
            Command::SetPrimary { node, expected } => self.set_primary(*node, *expected),
            Command::RemoveMember { node } => self.remove(*node),
        };
        outcome.unwrap_or_else(Outcome::Refused)
    }

    /// The member with this number if it is active.
    pub fn active(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node).filter(|member| member.status == MemberStatus::Active)
    }

    /// The members that have not been removed, in order.
    pub fn present(&self) -> impl Iterator<Item = (NodeId, &Member)> + '_ {
        let there = |member: &Member| member.status != MemberStatus::Removed;
        self.members
            .iter()
            .filter(move |(_, member)| there(member))
            .map(|(&node, member)| (node, member))
    }

    /// The numbers of the active members, in order.
    pub fn active_nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        let active = |member: &Member| member.status == MemberStatus::Active;
        self.members.iter().filter(move |(_, member)| active(member)).map(|(&node, _)| node)
    }

    fn register(&mut self, node: NodeId, mut new: Member) -> Result<Outcome, Refusal> {
        let Some(known) = self.members.get(&node) else {
            self.members.insert(node, new);
            return Ok(Outcome::Applied);
        };
        if known.uuid != new.uuid {
            let (known, got) = (known.uuid.clone(), new.uuid);
            return Err(Refusal::OtherIdentity { node, known, got });
        }
        if known.status == MemberStatus::Removed {
            return Err(Refusal::RemovedMember { node });
        }
        if new.incarnation < known.incarnation {
            let (known, got) = (known.incarnation, new.incarnation);
            return Err(Refusal::OldIncarnation { node, known, got });
        }
        if known.status == MemberStatus::Leaving {
            new.status = MemberStatus::Leaving;
        }
        if new.incarnation == known.incarnation {
            // An agent may register before its server answers: what is not known then stays as it was.
            if new.system_identifier.is_empty() {
                new.system_identifier.clone_from(&known.system_identifier);
            }
            if new.postgres_version == 0 {
                new.postgres_version = known.postgres_version;
            }
            if !known.system_identifier.is_empty()
                && known.system_identifier != new.system_identifier
            {
                let (known, got) = (known.system_identifier.clone(), new.system_identifier);
                return Err(Refusal::OtherServer { node, known, got });
            }
        }
        if *known == new {
            return Ok(Outcome::Unchanged);
        }
        self.members.insert(node, new);
        Ok(Outcome::Applied)
    }

    fn admit(
        &mut self,
        node: NodeId,
        uuid: &str,
        incarnation: Incarnation,
        addresses: &Addresses,
    ) -> Result<Outcome, Refusal> {
        let new = Member {
            uuid: uuid.to_owned(),
            incarnation,
            status: MemberStatus::Joining,
            addresses: addresses.clone(),
            system_identifier: String::new(),
            postgres_version: 0,
        };
        if let Some(known) = self.members.get(&node) {
            if known.uuid != uuid {
                let (known, got) = (known.uuid.clone(), uuid.to_owned());
                return Err(Refusal::OtherIdentity { node, known, got });
            }
            let known = match known.status {
                MemberStatus::Removed => return Err(Refusal::RemovedMember { node }),
                MemberStatus::Joining if *known == new => return Ok(Outcome::Unchanged),
                MemberStatus::Joining if known.incarnation == incarnation => {
                    Incarnation(incarnation.0 - 1)
                }
                MemberStatus::Joining | MemberStatus::Active | MemberStatus::Leaving => {
                    known.incarnation
                }
            };
            let expected = Incarnation(known.0 + 1);
            if incarnation != expected {
                return Err(Refusal::NotTheNextIncarnation {
                    node,
                    known,
                    expected,
                    got: incarnation,
                });
            }
            if self.active_nodes().all(|active| active == node) {
                return Err(Refusal::LastMember { node });
            }
        }
        self.members.insert(node, new);
        self.disown(node);
        Ok(Outcome::Applied)
    }

    fn dismiss(&mut self, node: NodeId) -> Result<Outcome, Refusal> {
        self.known_present(node)?;
        if self.active_nodes().all(|active| active == node) {
            return Err(Refusal::LastMember { node });
        }
        match self.members.get_mut(&node) {
            Some(member) if member.status != MemberStatus::Leaving => {
                member.status = MemberStatus::Leaving;
                self.disown(node);
                Ok(Outcome::Applied)
            }
            _ => Ok(Outcome::Unchanged),
        }
    }

    fn set_primary(&mut self, node: NodeId, expected: Epoch) -> Result<Outcome, Refusal> {
        // Staleness comes first: whoever decided upon an old epoch did not know what is being judged here.
        if expected != self.epoch {
            return Err(Refusal::StaleEpoch { expected, current: self.epoch });
        }
        self.known_active(node)?;
        if self.primary == Some(node) {
            return Ok(Outcome::Unchanged);
        }
        self.own(Some(node));
        Ok(Outcome::Applied)
    }

    fn remove(&mut self, node: NodeId) -> Result<Outcome, Refusal> {
        match self.known_present(node) {
            Ok(()) => {}
            Err(Refusal::RemovedMember { .. }) => return Ok(Outcome::Unchanged),
            Err(refusal) => return Err(refusal),
        }
        if self.active_nodes().all(|active| active == node) {
            return Err(Refusal::LastMember { node });
        }
        if let Some(member) = self.members.get_mut(&node) {
            member.status = MemberStatus::Removed;
        }
        self.disown(node);
        Ok(Outcome::Applied)
    }

    fn known_active(&self, node: NodeId) -> Result<(), Refusal> {
        match self.members.get(&node).map(|member| member.status) {
            Some(MemberStatus::Active) => Ok(()),
            Some(MemberStatus::Joining | MemberStatus::Leaving) => Err(Refusal::NotActive { node }),
            Some(MemberStatus::Removed) => Err(Refusal::RemovedMember { node }),
            None => Err(Refusal::UnknownMember { node }),
        }
    }

    fn known_present(&self, node: NodeId) -> Result<(), Refusal> {
        match self.known_active(node) {
            Err(Refusal::NotActive { .. }) => Ok(()),
            known => known,
        }
    }

    fn disown(&mut self, node: NodeId) {
        if self.primary == Some(node) {
            self.own(None);
        }
    }

    fn own(&mut self, primary: Option<NodeId>) {
        self.primary = primary;
        self.epoch = Epoch(self.epoch.0 + 1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(number: u16) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn register(number: u16, uuid: &str, incarnation: u32, system: &str) -> Command {
        Command::RegisterMember {
            node: node(number),
            uuid: uuid.to_owned(),
            incarnation: Incarnation(incarnation),
            addresses: Addresses::default(),
            system_identifier: system.to_owned(),
            postgres_version: 150_000,
        }
    }

    fn two_members() -> ClusterState {
        let mut state = ClusterState::default();
        assert_eq!(state.apply(&register(1, "a", 1, "71")), Outcome::Applied);
        assert_eq!(state.apply(&register(2, "b", 1, "72")), Outcome::Applied);
        state
    }

    #[track_caller]
    fn refuse(state: &mut ClusterState, command: &Command) -> Refusal {
        let before = state.clone();
        let Outcome::Refused(refusal) = state.apply(command) else { panic!("not refused") };
        assert_eq!(*state, before, "a refused command changed the state");
        refusal
    }

    #[test]
    fn registering_again_changes_nothing_and_new_addresses_are_taken() {
        let mut state = two_members();
        assert_eq!(state.apply(&register(1, "a", 1, "71")), Outcome::Unchanged);
        assert_eq!(state.apply(&register(1, "a", 1, "")), Outcome::Unchanged);
        let mut moved = register(1, "a", 1, "71");
        if let Command::RegisterMember { addresses, .. } = &mut moved {
            addresses.peers = "10.0.0.1:7401".to_owned();
        }
        assert_eq!(state.apply(&moved), Outcome::Applied);
        assert_eq!(state.members[&node(1)].addresses.peers, "10.0.0.1:7401");
    }

    #[test]
    fn another_identity_server_or_life_under_a_known_number_is_refused() {
        let mut state = two_members();
        assert_eq!(state.apply(&register(1, "a", 2, "73")), Outcome::Applied);
        assert!(matches!(
            refuse(&mut state, &register(1, "c", 9, "79")),
            Refusal::OtherIdentity { known, got, .. } if known == "a" && got == "c"
        ));
        assert!(matches!(
            refuse(&mut state, &register(1, "a", 1, "71")),
            Refusal::OldIncarnation { known: Incarnation(2), got: Incarnation(1), .. }
        ));
        assert!(matches!(
            refuse(&mut state, &register(1, "a", 2, "74")),
            Refusal::OtherServer { known, got, .. } if known == "73" && got == "74"
        ));
    }

    #[test]
    fn ownership_moves_once_per_epoch() {
        let mut state = two_members();
        let set =
            |number, epoch| Command::SetPrimary { node: node(number), expected: Epoch(epoch) };
        assert_eq!(state.apply(&set(1, 0)), Outcome::Applied);
        assert_eq!((state.primary, state.epoch), (Some(node(1)), Epoch(1)));
        assert_eq!(
            refuse(&mut state, &set(2, 0)),
            Refusal::StaleEpoch { expected: Epoch(0), current: Epoch(1) }
        );
        assert_eq!(state.apply(&set(1, 1)), Outcome::Unchanged);
        assert_eq!(refuse(&mut state, &set(3, 1)), Refusal::UnknownMember { node: node(3) });
        assert_eq!(state.apply(&set(2, 1)), Outcome::Applied);
        assert_eq!((state.primary, state.epoch), (Some(node(2)), Epoch(2)));
    }

    fn admit(number: u16, uuid: &str, incarnation: u32) -> Command {
        Command::AdmitMember {
            node: node(number),
            uuid: uuid.to_owned(),
            incarnation: Incarnation(incarnation),
            addresses: Addresses::default(),
        }
    }

    #[test]
    fn a_new_member_joins_before_it_is_active() {
        let mut state = two_members();
        assert_eq!(state.apply(&admit(3, "c", 1)), Outcome::Applied);
        assert_eq!(state.apply(&admit(3, "c", 1)), Outcome::Unchanged);
        assert_eq!(state.active(node(3)), None);
        let set = Command::SetPrimary { node: node(3), expected: Epoch(0) };
        assert_eq!(refuse(&mut state, &set), Refusal::NotActive { node: node(3) });
        assert!(matches!(refuse(&mut state, &admit(3, "d", 1)), Refusal::OtherIdentity { .. }));
        assert_eq!(state.apply(&register(3, "c", 1, "71")), Outcome::Applied);
        assert_eq!(state.active_nodes().count(), 3);
    }

    #[test]
    fn another_life_follows_the_known_one() {
        let mut state = two_members();
        state.apply(&Command::SetPrimary { node: node(2), expected: Epoch(0) });
        assert!(matches!(
            refuse(&mut state, &admit(2, "b", 1)),
            Refusal::NotTheNextIncarnation { .. }
        ));
        assert!(matches!(
            refuse(&mut state, &admit(2, "b", 3)),
            Refusal::NotTheNextIncarnation { .. }
        ));
        assert_eq!(state.apply(&admit(2, "b", 2)), Outcome::Applied);
        assert_eq!(state.primary, None, "who is copied owns nothing");
        assert!(matches!(
            refuse(&mut state, &register(2, "b", 1, "72")),
            Refusal::OldIncarnation { .. }
        ));
        // A copy that failed is begun again.
        assert_eq!(state.apply(&admit(2, "b", 2)), Outcome::Unchanged);
        assert_eq!(state.apply(&admit(2, "b", 3)), Outcome::Applied);
        assert_eq!(state.apply(&register(2, "b", 3, "79")), Outcome::Applied);
        assert!(state.active(node(2)).is_some());
    }

    #[test]
    fn the_last_active_member_is_neither_copied_nor_dismissed() {
        let mut state = two_members();
        assert_eq!(state.apply(&Command::DismissMember { node: node(2) }), Outcome::Applied);
        for command in [admit(1, "a", 2), Command::DismissMember { node: node(1) }] {
            assert_eq!(refuse(&mut state, &command), Refusal::LastMember { node: node(1) });
        }
    }

    #[test]
    fn a_dismissed_member_stays_so_until_it_is_removed() {
        let mut state = two_members();
        state.apply(&Command::SetPrimary { node: node(2), expected: Epoch(0) });
        let dismiss = Command::DismissMember { node: node(2) };
        assert_eq!(state.apply(&dismiss), Outcome::Applied);
        assert_eq!(state.apply(&dismiss), Outcome::Unchanged);
        assert_eq!((state.primary, state.active(node(2))), (None, None));
        assert_eq!(state.apply(&register(2, "b", 1, "72")), Outcome::Unchanged);
        assert_eq!(state.active(node(2)), None);
        assert_eq!(state.apply(&Command::RemoveMember { node: node(2) }), Outcome::Applied);
        assert_eq!(refuse(&mut state, &dismiss), Refusal::RemovedMember { node: node(2) });
        assert_eq!(refuse(&mut state, &admit(2, "b", 2)), Refusal::RemovedMember { node: node(2) });
    }

    #[test]
    fn a_removed_member_owns_nothing_and_never_returns() {
        let mut state = two_members();
        state.apply(&Command::SetPrimary { node: node(2), expected: Epoch(0) });
        let remove = |number| Command::RemoveMember { node: node(number) };
        assert_eq!(state.apply(&remove(2)), Outcome::Applied);
        assert_eq!((state.primary, state.epoch), (None, Epoch(2)));
        assert_eq!(state.apply(&remove(2)), Outcome::Unchanged);
        let removed = Refusal::RemovedMember { node: node(2) };
        assert_eq!(refuse(&mut state, &register(2, "b", 5, "72")), removed);
        let set = Command::SetPrimary { node: node(2), expected: Epoch(2) };
        assert_eq!(refuse(&mut state, &set), removed);
        assert_eq!(refuse(&mut state, &remove(1)), Refusal::LastMember { node: node(1) });
        assert_eq!(refuse(&mut state, &remove(9)), Refusal::UnknownMember { node: node(9) });
        assert_eq!(state.active_nodes().collect::<Vec<_>>(), [node(1)]);
        assert!(state.active(node(2)).is_none());
    }

    #[test]
    fn json_round_trips_and_no_number_out_of_range_is_read() {
        let state = two_members();
        let json = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<ClusterState>(&json).unwrap(), state);
        let wrong = json.replace("\"2\":", "\"99\":");
        assert!(serde_json::from_str::<ClusterState>(&wrong).is_err());
    }
}
