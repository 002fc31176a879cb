//! stub
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::{Incarnation, NodeId};

/// Who this agent is, kept in `identity.json` beside its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster to which the data belongs.
    pub cluster_id: uuid::Uuid,
    /// The node's number.
    pub node: NodeId,
    /// The data's own identity: another one under the same number is another node.
    pub uuid: uuid::Uuid,
    /// The life of the data.
    pub incarnation: Incarnation,
}
