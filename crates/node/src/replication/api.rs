//! `GET /replication/status` and its JSON.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::{Handle, lag};
use crate::http::api::ErrorBody;

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
    /// What commits here wait for.
    pub durability: DurabilityBody,
    /// What is on this node only.
    pub not_replicated: NotReplicatedBody,
    /// Per origin, the commit LSN up to which its transactions are visible here.
    pub applied: BTreeMap<String, String>,
    /// Per origin, the bytes of its transactions kept on this node's disk.
    pub spool_bytes: BTreeMap<String, u64>,
}

/// What is on this node only, since PostgreSQL shows it to no stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct NotReplicatedBody {
    /// Large objects; at most 1000 are counted.
    pub large_objects: u64,
    /// Unlogged tables: they are on all nodes, their rows are not.
    pub unlogged_tables: u64,
}

/// The reading of the own WAL.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct PublisherBody {
    /// Whether the WAL is being read.
    pub running: bool,
    /// Up to where it has been read.
    pub read_lsn: String,
    /// Up to where it is durable in the spool of this node.
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
    /// The workers that the lane may use (`replication.apply_workers`).
    pub workers: usize,
    /// Transactions that workers have applied ahead of their turn since the agent was started.
    pub worker_transactions: u64,
    /// The commit LSN received last.
    pub received_lsn: String,
    /// The commit LSN applied last.
    pub applied_lsn: String,
    /// The age of the origin's newest probe row that arrived here: how far this node may be behind, in milliseconds.
    pub probe_age_ms: Option<u64>,
    /// Bytes of the origin's WAL that may hold transactions which are not applied here; null while the origin does not
    /// say how far it is.
    pub lag_bytes: Option<u64>,
    /// When the origin's transaction that was applied last committed there, RFC 3339 in UTC.
    #[schema(example = "2025-05-17T08:00:00.000Z")]
    pub applied_commit_time: Option<String>,
    /// How long ago the origin said last how far it is: the age of `lag_bytes`.
    pub heartbeat_age_ms: Option<u64>,
}

/// `GET /replication/status`: this node, and how far every node is behind every other.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ReplicationBody {
    /// The node that answers.
    #[serde(flatten)]
    pub own: StatusBody,
    /// One row per node: its lanes as it says itself, asked for this answer.
    pub matrix: Vec<MatrixRowBody>,
}

/// How far one node is behind the others.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MatrixRowBody {
    /// The node that receives.
    pub node: u16,
    /// Why it did not answer; null when it did.
    pub unreachable: Option<String>,
    /// One per origin; null when it did not answer: what it said earlier is not shown.
    pub lanes: Option<Vec<MatrixLaneBody>>,
}

/// How far a node is behind one origin.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MatrixLaneBody {
    /// The node where the transactions were committed.
    pub origin: u16,
    /// As in `lanes`.
    pub state: String,
    /// As in `lanes`.
    pub detail: Option<String>,
    /// As in `lanes`.
    pub probe_age_ms: Option<u64>,
    /// As in `lanes`.
    pub lag_bytes: Option<u64>,
    /// As in `lanes`.
    pub applied_commit_time: Option<String>,
    /// As in `lanes`.
    pub heartbeat_age_ms: Option<u64>,
}

impl From<LaneBody> for MatrixLaneBody {
    fn from(lane: LaneBody) -> Self {
        Self {
            origin: lane.origin,
            state: lane.state.to_owned(),
            detail: lane.detail.or(lane.fetch_error),
            probe_age_ms: lane.probe_age_ms,
            lag_bytes: lane.lag_bytes,
            applied_commit_time: lane.applied_commit_time,
            heartbeat_age_ms: lane.heartbeat_age_ms,
        }
    }
}

/// `POST` without anything to say: `{}`. A body of JSON is asked for, since a web page of somebody else's cannot send
/// one to this machine unseen.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EmptyBody {}

/// How a request failed.
pub(crate) fn failed(error: &anyhow::Error) -> Response {
    let said = error.downcast_ref::<tokio_postgres::Error>().and_then(|error| error.code());
    let ours = said.is_none_or(|code| !code.code().starts_with("22"));
    if ours {
        ErrorBody::new("unavailable", format!("{error:#}")).with(StatusCode::SERVICE_UNAVAILABLE)
    } else {
        ErrorBody::new("bad_request", sql_words(error)).with(StatusCode::BAD_REQUEST)
    }
}

/// What the server said: the text of a tokio-postgres error alone is "db error".
pub(crate) fn sql_words(error: &anyhow::Error) -> String {
    let said = error.downcast_ref::<tokio_postgres::Error>().and_then(|error| error.as_db_error());
    said.map_or_else(
        || format!("{error:#}"),
        |said| format!("{} {}", said.code().code(), said.message()),
    )
}

/// What commits on this node wait for, and how that stands.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DurabilityBody {
    /// `local`, `quorum` or `applied`: what sessions wait for that choose none.
    pub class: &'static str,
    /// Whether the server asks for what the classes promise.
    pub in_force: bool,
    /// Why it does not.
    pub reason: Option<String>,
    /// `met`, `lost` (commits of the class wait) or `degraded` (they do not wait for other nodes).
    pub state: &'static str,
    /// How long it has been lost or degraded.
    pub since_ms: Option<u64>,
    /// `block` or `degrade`.
    pub on_lost_quorum: &'static str,
    /// Members that must have a commit, this one included.
    pub members_needed: usize,
    /// Members that can acknowledge commits now, this one included.
    pub members_connected: usize,
    /// Members that have all commits of this node on their disks, this one included.
    pub members_acknowledged: usize,
    /// Sessions that wait for other nodes.
    pub waiting_sessions: u64,
    /// How long the oldest commit that too few members have has been waiting.
    pub oldest_unacknowledged_ms: Option<u64>,
    /// Up to where enough members have everything on their disks, as the server was told.
    pub quorum_lsn: String,
    /// Up to where enough members show everything, as the server was told.
    pub applied_lsn: String,
    /// The other members.
    pub members: Vec<DurabilityMemberBody>,
}

/// What a member has of this node's commits.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DurabilityMemberBody {
    /// The member.
    pub node: u16,
    /// Whether it receives them from this node now.
    pub connected: bool,
    /// Whether it has all of them on its disk.
    pub acknowledged: bool,
    /// The last commit that it has on its disk.
    pub durable_lsn: String,
    /// The last commit that its readers see.
    pub visible_lsn: String,
}

/// The routes of this component.
pub fn routes(handle: Handle) -> Router {
    let routes = Router::new().route("/replication/status", get(status)).with_state(handle.clone());
    routes
        .merge(super::conflicts::api::routes(handle.clone()))
        .merge(super::quarantine::api::routes(handle.clone()))
        .merge(super::verify::api::routes(handle))
}

/// The status of replication on this node.
#[utoipa::path(get, path = "/replication/status", tag = "replication",
    responses((status = 200, description = "What replication does on this node, and how far every node is behind every \
        other", body = ReplicationBody)))]
async fn status(State(handle): State<Handle>) -> Json<ReplicationBody> {
    let matrix = lag::matrix(&handle.shared).await;
    Json(ReplicationBody { own: handle.status(), matrix })
}

#[derive(OpenApi)]
#[openapi(paths(status))]
struct Document;

/// The description of the routes.
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    document.merge(super::conflicts::api::document());
    document.merge(super::quarantine::api::document());
    document.merge(super::verify::api::document());
    document
}
