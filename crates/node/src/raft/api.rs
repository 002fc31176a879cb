//! `GET /raft/status`: what this node knows of the agreement.

use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use openraft::ServerState;
use serde::Serialize;
use synapsedb_core::state::ClusterState;
use utoipa::{OpenApi, ToSchema};

use super::{Handle, node_id};

/// What one node knows of the agreement.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct StatusBody {
    /// The node that answers.
    pub node: u16,
    /// Its part in Raft.
    pub role: Role,
    /// The current term.
    pub term: u64,
    /// The leader as this node knows it; absent while there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<u16>,
    /// Whether this node leads and a majority has confirmed that within the lease.
    pub leads: bool,
    /// Whether this node leads without a majority or with a stalled disk, and therefore keeps silent.
    pub silenced: bool,
    /// The index of the last entry in its log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_log_index: Option<u64>,
    /// The index of the last entry that it has applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied_index: Option<u64>,
    /// The index of the last entry in its snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_index: Option<u64>,
    /// The index of the last entry that it has removed from its log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purged_index: Option<u64>,
    /// The nodes that vote.
    pub voters: Vec<u16>,
    /// On a leader, the milliseconds since a majority confirmed it last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub millis_since_quorum_ack: Option<u64>,
    /// The replicated state as this node has applied it: members, primary and epoch.
    #[schema(value_type = Object)]
    pub state: ClusterState,
}

/// The part of a node in Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It receives the log and does not vote.
    Learner,
    /// It votes and receives the log.
    Follower,
    /// It stands for election.
    Candidate,
    /// It leads.
    Leader,
    /// It stops.
    Stopping,
}

#[derive(OpenApi)]
#[openapi(paths(status))]
struct Document;

/// The description of the routes.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// The routes of Raft.
pub fn routes(handle: Handle) -> Router {
    Router::new().route("/raft/status", get(status)).with_state(handle)
}

/// What this node knows of the agreement.
#[utoipa::path(
    get,
    path = "/raft/status",
    tag = "raft",
    responses((status = 200, description = "What this node knows of the agreement", body = StatusBody))
)]
pub async fn status(State(handle): State<Handle>) -> Json<StatusBody> {
    Json(handle.status())
}

impl StatusBody {
    pub(super) fn new(handle: &Handle) -> Self {
        let shared = &handle.shared;
        let (leader, leads, state) = (handle.leader(), handle.is_leader(), handle.state());
        let metrics = shared.raft.metrics().borrow().clone();
        let voters = metrics.membership_config.voter_ids().filter_map(node_id);
        Self {
            node: shared.identity.node.get(),
            role: match metrics.state {
                ServerState::Learner => Role::Learner,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Leader => Role::Leader,
                ServerState::Shutdown => Role::Stopping,
            },
            term: metrics.current_term,
            leader: leader.map(|leader| leader.get()),
            leads,
            silenced: shared.silenced.load(Ordering::Relaxed),
            last_log_index: metrics.last_log_index,
            applied_index: metrics.last_applied.map(|applied| applied.index),
            snapshot_index: metrics.snapshot.map(|snapshot| snapshot.index),
            purged_index: metrics.purged.map(|purged| purged.index),
            voters: voters.map(|voter| voter.get()).collect(),
            millis_since_quorum_ack: metrics.millis_since_quorum_ack,
            state: (*state).clone(),
        }
    }
}
