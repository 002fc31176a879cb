//! `GET /replication/status` and its JSON.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use super::Handle;

/// What replication is doing on the node that answers.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct StatusBody {
    /// The node that answers.
    pub node: u16,
    /// The life of its data.
    pub incarnation: u32,
    /// Whether the internal schema, the event triggers and the origins are in place.
    pub prepared: bool,
    /// The reading of the own WAL.
    pub publisher: PublisherBody,
    /// One per other member: the receiving and applying of its transactions.
    pub lanes: Vec<LaneBody>,
    /// Per origin, the commit LSN up to which its transactions are visible here.
    pub applied: BTreeMap<String, String>,
    /// Per origin, the bytes of its transactions kept on this node's disk.
    pub spool_bytes: BTreeMap<String, u64>,
}

/// The reading of the own WAL.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct PublisherBody {
    /// Whether the WAL is being read.
    pub running: bool,
    /// Up to where it has been read.
    pub read_lsn: String,
    /// Up to where it is durable in the spool, and confirmed to the server.
    pub confirmed_lsn: String,
    /// Why it is not running.
    pub error: Option<String>,
}

/// One origin's way to this node.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LaneBody {
    /// The node where the transactions were committed.
    pub origin: u16,
    /// The node from which they are received now.
    pub source: Option<u16>,
    /// Why they are not received.
    pub fetch_error: Option<String>,
    /// `starting`, `flowing`, `waiting` (for a cause from another node), `clock_skew` or `blocked`.
    pub state: &'static str,
    /// What is waited for, or why it is blocked.
    pub detail: Option<String>,
    /// The commit LSN received last.
    pub received_lsn: String,
    /// The commit LSN applied last.
    pub applied_lsn: String,
    /// The age of the origin's newest probe row that arrived here: how far this node may be behind, in milliseconds.
    pub probe_age_ms: Option<u64>,
}

/// The routes of this component.
pub fn routes(handle: Handle) -> Router {
    Router::new().route("/replication/status", get(status)).with_state(handle)
}

/// The status of replication on this node.
#[utoipa::path(get, path = "/replication/status", tag = "replication",
    responses((status = 200, description = "What replication does on this node", body = StatusBody)))]
async fn status(State(handle): State<Handle>) -> Json<StatusBody> {
    Json(handle.status())
}

#[derive(OpenApi)]
#[openapi(paths(status))]
struct Document;

/// The description of the routes.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
