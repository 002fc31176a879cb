//! Decides whether the cluster must be told of this node, and what.

use synapsedb_core::state::{ClusterState, Command, Member, MemberStatus};

use super::Registration;
use crate::layout::Identity;

/// The command that makes the cluster know this node as it is; `None` if it does.
pub(super) fn due(
    state: &ClusterState,
    identity: &Identity,
    registration: &Registration,
) -> Option<Command> {
    let removed = |known: &Member| known.status == MemberStatus::Removed;
    // A node that was removed ends by itself, once its server is given back.
    if registration.held || state.members.get(&identity.node).is_some_and(removed) {
        return None;
    }
    let uuid = identity.uuid.to_string();
    let known = state.members.get(&identity.node).is_some_and(|known| {
        // What is not known yet is not told, and the cluster keeps what it has.
        let same_server = registration.system_identifier.is_empty()
            || known.system_identifier == registration.system_identifier;
        let same_version = registration.postgres_version == 0
            || known.postgres_version == registration.postgres_version;
        known.uuid == uuid
            && known.incarnation == identity.incarnation
            && matches!(known.status, MemberStatus::Active | MemberStatus::Leaving)
            && known.addresses == registration.addresses
            && same_server
            && same_version
    });
    if known {
        return None;
    }
    Some(Command::RegisterMember {
        node: identity.node,
        uuid,
        incarnation: identity.incarnation,
        addresses: registration.addresses.clone(),
        system_identifier: registration.system_identifier.clone(),
        postgres_version: registration.postgres_version,
    })
}
