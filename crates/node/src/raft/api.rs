//! `GET /raft/status`: what this node knows of the agreement.

use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use openraft::ServerState;
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::state::{Addresses, ClusterState, Command, Outcome};
use utoipa::{OpenApi, ToSchema};

use super::{Handle, node_id};
use crate::http::api::ErrorBody;

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

/// A change of the members.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ChangeBody {
    /// A node's data is about to be copied: a new node, or another life of a known one.
    Admit {
        /// Its number.
        #[schema(value_type = u16)]
        node: NodeId,
        /// The identity of its data.
        uuid: String,
        /// The life that the copy begins.
        #[schema(value_type = u32)]
        incarnation: Incarnation,
        /// Where it will listen: `peers`, `postgres` and `http`, each as `host:port`.
        #[schema(value_type = Object)]
        addresses: Addresses,
    },
    /// A node is to be removed: it serves nobody from now on.
    Dismiss {
        /// Its number.
        #[schema(value_type = u16)]
        node: NodeId,
    },
    /// A node leaves for good.
    Remove {
        /// Its number.
        #[schema(value_type = u16)]
        node: NodeId,
    },
}

/// What came of a change.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChangedBody {
    /// Whether anything had to be changed.
    pub changed: bool,
}

#[derive(OpenApi)]
#[openapi(paths(status, change_members))]
struct Document;

/// The description of the routes.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// The routes of Raft.
pub fn routes(handle: Handle) -> Router {
    Router::new()
        .route("/raft/status", get(status))
        .route("/raft/members", post(change_members))
        .with_state(handle)
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

/// Changes the members of the cluster, when a majority agrees.
#[utoipa::path(
    post,
    path = "/raft/members",
    tag = "raft",
    request_body = ChangeBody,
    responses(
        (status = 200, description = "The cluster has agreed", body = ChangedBody),
        (status = 409, description = "The change is not allowed (`refused`)", body = ErrorBody),
        (status = 503, description = "No majority has agreed in time (`no_majority`)", body = ErrorBody)
    )
)]
pub async fn change_members(
    State(handle): State<Handle>,
    Json(change): Json<ChangeBody>,
) -> Response {
    let command = match change {
        ChangeBody::Admit { node, uuid, incarnation, addresses } => {
            Command::AdmitMember { node, uuid, incarnation, addresses }
        }
        ChangeBody::Dismiss { node } => Command::DismissMember { node },
        ChangeBody::Remove { node } => Command::RemoveMember { node },
    };
    match handle.propose(command).await {
        Ok(Outcome::Applied) => Json(ChangedBody { changed: true }).into_response(),
        Ok(Outcome::Unchanged) => Json(ChangedBody { changed: false }).into_response(),
        Ok(Outcome::Refused(refusal)) => {
            ErrorBody::new("refused", refusal.to_string()).with(StatusCode::CONFLICT)
        }
        Err(error) => {
            ErrorBody::new("no_majority", error.to_string()).with(StatusCode::SERVICE_UNAVAILABLE)
        }
    }
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
