//! stub
/// The limits and addresses of this component.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

use std::collections::BTreeMap;
use std::sync::Arc;

use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;
use tokio::sync::watch;

/// What a node says of itself in every heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Facts {
    /// Whether its PostgreSQL server takes sessions.
    pub postgres_ready: bool,
    /// What it has applied, durably, of every origin.
    pub applied: VersionVector,
    /// Where its own WAL ends.
    pub wal_lsn: Lsn,
}

/// What gossip believes of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It answers, or somebody says so.
    Alive,
    /// It does not answer; it may refute.
    Suspect,
    /// It did not refute in time.
    Down,
    /// It said goodbye.
    Left,
}

/// One member as seen from here.
#[derive(Clone, Debug)]
pub struct MemberView {
    /// What gossip believes.
    pub state: MemberState,
    /// The life of its data.
    pub incarnation: Incarnation,
    /// Milliseconds since its last heartbeat reached this node; `None` if none ever did.
    pub heartbeat_age_ms: Option<u64>,
    /// What it said last.
    pub facts: Option<Facts>,
    /// Its row of the reachability matrix: per node, the age in milliseconds of the last heartbeat it heard.
    pub hears: BTreeMap<NodeId, u64>,
    /// Milliseconds since `state` last changed.
    pub since_ms: u64,
}

/// All members as seen from here, this node included.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// By node.
    pub members: BTreeMap<NodeId, MemberView>,
}

/// Reads the view and publishes this node's facts.
#[derive(Clone)]
pub struct Handle;

#[allow(clippy::unimplemented, unused_variables, missing_docs)]
impl Handle {
    pub fn publish(&self, facts: Facts) {
        unimplemented!()
    }
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        unimplemented!()
    }
    pub fn view(&self) -> Arc<View> {
        unimplemented!()
    }
}
