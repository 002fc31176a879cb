//! stub
/// The limits and addresses of this component.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

use std::sync::Arc;

use synapsedb_core::ids::NodeId;
use synapsedb_core::state::{ClusterState, Command, Outcome};
use tokio::sync::watch;

/// Why a proposal was not committed.
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct ProposeError;

/// Proposes commands and reads the replicated state.
#[derive(Clone)]
pub struct Handle;

#[allow(clippy::unimplemented, unused_variables, missing_docs)]
impl Handle {
    pub async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        unimplemented!()
    }
    pub fn state(&self) -> Arc<ClusterState> {
        unimplemented!()
    }
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterState>> {
        unimplemented!()
    }
    pub fn is_leader(&self) -> bool {
        unimplemented!()
    }
    pub fn leader(&self) -> Option<NodeId> {
        unimplemented!()
    }
}
