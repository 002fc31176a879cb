//! stub
#![allow(missing_docs)]
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Incarnation, NodeId};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    pub members: BTreeMap<NodeId, Member>,
    pub primary: Option<NodeId>,
    pub epoch: Epoch,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub uuid: String,
    pub incarnation: Incarnation,
    pub status: MemberStatus,
    pub addresses: Addresses,
    pub system_identifier: String,
    pub postgres_version: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberStatus {
    Active,
    Removed,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    pub peers: String,
    pub postgres: String,
    pub http: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    RegisterMember {
        node: NodeId,
        uuid: String,
        incarnation: Incarnation,
        addresses: Addresses,
        system_identifier: String,
        postgres_version: u32,
    },
    SetPrimary {
        node: NodeId,
        expected: Epoch,
    },
    RemoveMember {
        node: NodeId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Applied,
    Unchanged,
    Refused(Refusal),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("stub")]
    UnknownMember,
}
