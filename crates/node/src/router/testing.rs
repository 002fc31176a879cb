//! Small clusters as values, for the router's tests.
#![allow(clippy::unwrap_used, clippy::needless_update)]

use std::collections::BTreeMap;

use synapsedb_core::ids::{Epoch, Incarnation, NodeId};
use synapsedb_core::state::{Addresses, ClusterState, Member, MemberStatus};

use crate::gossip::{Facts, MemberState, MemberView, View};

/// How gossip sees a node.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seen {
    Ready,
    NotReady,
    Suspect,
    Down,
    Missing,
}

pub(super) fn node(number: u16) -> NodeId {
    NodeId::new(number).unwrap()
}

/// Nodes 1 to `members`, all active.
pub(super) fn state(members: u16, primary: Option<u16>) -> ClusterState {
    let addresses: Vec<_> = (1..=members).map(|n| format!("127.0.0.1:{}", 5431 + n)).collect();
    state_at(&addresses, primary)
}

/// Nodes 1 to n with these PostgreSQL servers, all active.
pub(super) fn state_at(postgres: &[String], primary: Option<u16>) -> ClusterState {
    let member = |postgres: &String| Member {
        uuid: String::new(),
        incarnation: Incarnation::FIRST,
        status: MemberStatus::Active,
        addresses: Addresses { postgres: postgres.clone(), ..Addresses::default() },
        system_identifier: String::new(),
        postgres_version: 150_000,
    };
    ClusterState {
        members: (1..).map(node).zip(postgres.iter().map(member)).collect(),
        primary: primary.map(node),
        epoch: Epoch(1),
    }
}

pub(super) fn view(seen: &[Seen]) -> View {
    let member = |state, ready| MemberView {
        state,
        incarnation: Incarnation::FIRST,
        heartbeat_age_ms: Some(10),
        facts: Some(Facts { postgres_ready: ready, ..Facts::default() }),
        hears: BTreeMap::new(),
        since_ms: 1_000,
    };
    let members = (1..).map(node).zip(seen).filter_map(|(node, seen)| {
        let member = match seen {
            Seen::Ready => member(MemberState::Alive, true),
            Seen::NotReady => member(MemberState::Alive, false),
            Seen::Suspect => member(MemberState::Suspect, true),
            Seen::Down => member(MemberState::Down, true),
            Seen::Missing => return None,
        };
        Some((node, member))
    });
    View { members: members.collect(), ..View::default() }
}
