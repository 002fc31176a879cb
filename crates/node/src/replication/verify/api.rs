//! `POST /replication/verify`, `GET` and `DELETE /replication/verify/{id}`, and their JSON.

use std::collections::BTreeMap;
use std::time::SystemTime;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::NodeId;
use synapsedb_core::verify::Fault;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::super::Handle;
use crate::http::api::{ErrorBody, rfc3339};

/// What is to be compared.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyBody {
    /// A table, with or without its schema; all tables unless said otherwise.
    #[serde(default)]
    pub table: Option<String>,
    /// Rows that differ are set on the other nodes as they are on this one; nothing is set unless said so.
    #[serde(default)]
    pub repair_from: Option<u16>,
}

/// How far a comparison is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It has not begun.
    Waiting,
    /// It compares.
    Running,
    /// It is over.
    Done,
    /// It could not be finished; `error` says why.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl JobState {
    /// Whether nothing changes any more.
    pub fn is_over(self) -> bool {
        match self {
            Self::Waiting | Self::Running => false,
            Self::Done | Self::Failed | Self::Cancelled => true,
        }
    }
}

/// What came of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All nodes hold the same rows.
    Equal,
    /// They did not, and do now.
    Repaired,
    /// They do not.
    Different,
    /// Nothing differs, but not everything could be compared.
    Incomplete,
}

/// A comparison.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct JobBody {
    /// Its identity.
    pub id: String,
    /// The node that coordinates it.
    pub node: u16,
    /// The table, if one was named.
    pub table: Option<String>,
    /// The node as on which differing rows are set, if they are.
    pub repair_from: Option<u16>,
    /// How far it is.
    pub state: JobState,
    /// What came of it; null before.
    pub verdict: Option<Verdict>,
    /// Why it could not be finished.
    pub error: Option<String>,
    /// When it was asked for, RFC 3339 in UTC.
    pub started_at: String,
    /// When it was over.
    pub finished_at: Option<String>,
    /// What it is at.
    pub progress: ProgressBody,
    /// The nodes that were compared.
    pub nodes: Vec<u16>,
    /// The members that were not, or not to the end.
    pub unreachable: Vec<UnreachableBody>,
    /// The tables that were compared so far.
    pub tables: Vec<TableBody>,
}

/// What a comparison is at.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct ProgressBody {
    /// How many tables there are to compare; 0 until that is known.
    pub tables: usize,
    /// How many of them are compared.
    pub tables_done: usize,
    /// The table that is being compared.
    pub table: Option<String>,
    /// Rows compared, of all tables.
    pub rows: u64,
    /// Rows that differ, of all tables.
    pub different: u64,
}

/// A member that took no part.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct UnreachableBody {
    /// Its number.
    pub node: u16,
    /// Why not.
    pub reason: String,
}

/// What was found of a table.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct TableBody {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Whether it has no primary key: then it is compared as a whole.
    pub keyless: bool,
    /// Rows compared.
    pub rows: u64,
    /// Ranges whose hashes were compared.
    pub ranges: u64,
    /// Rows that differ (of a table without primary key: 1 if the table does).
    pub different: u64,
    /// Rows that differ still: all of `different`, unless they were repaired.
    pub left: u64,
    /// Rows that changed at every look: they are being written and are no difference.
    pub in_flight: u64,
    /// Rows of which it is not known, since a node does not apply what the others committed.
    pub undecided: u64,
    /// What kept them from being decided.
    pub undecided_reason: Option<String>,
    /// Rows that were set on a node, counted per node.
    pub repaired: u64,
    /// Per node, what is wrong with how many rows there, measured by what most nodes hold.
    pub faults: BTreeMap<u16, FaultsBody>,
    /// The first of the rows that differ.
    pub differences: Vec<DifferenceBody>,
    /// How the table itself differs between the nodes; its rows are not compared then.
    pub schema_difference: Option<String>,
    /// Why it could not be compared.
    pub error: Option<String>,
}

/// How many rows are wrong on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct FaultsBody {
    /// Most nodes have them.
    pub missing: u64,
    /// Most nodes do not have them.
    pub extra: u64,
    /// They have other values on most nodes.
    pub different: u64,
}

/// A row that differs.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DifferenceBody {
    /// Its primary key; empty for a table without one.
    pub key: Vec<String>,
    /// What is wrong with it where.
    #[schema(value_type = BTreeMap<u16, String>)]
    pub faults: BTreeMap<NodeId, Fault>,
    /// The hash of its values on each node; null where it is not.
    #[schema(value_type = BTreeMap<u16, Option<String>>)]
    pub hashes: BTreeMap<NodeId, Option<String>>,
    /// Why it could not be repaired, if that was tried in vain.
    pub not_repaired: Option<String>,
}

/// The comparisons of a node.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct JobsBody {
    /// The node that answers.
    pub node: u16,
    /// The newest last.
    pub jobs: Vec<JobBody>,
}

/// The routes of comparisons.
pub(crate) fn routes(handle: Handle) -> Router {
    Router::new()
        .route("/replication/verify", post(start).get(jobs))
        .route("/replication/verify/{id}", get(job).delete(cancel))
        .with_state(handle)
}

/// Begins to compare the nodes; this node coordinates.
#[utoipa::path(post, path = "/replication/verify", tag = "replication", request_body = VerifyBody, responses(
    (status = 202, description = "It is begun; its `id` leads to how far it is", body = JobBody),
    (status = 400, description = "`repair_from` is no member", body = ErrorBody),
    (status = 409, description = "Another comparison is not over yet", body = ErrorBody)))]
async fn start(State(handle): State<Handle>, Json(asked): Json<VerifyBody>) -> Response {
    let shared = &handle.shared;
    let here = shared.identity.node.get();
    if let Some(from) = asked.repair_from {
        let members = super::super::other_members(shared);
        if from != here && !members.keys().any(|node| node.get() == from) {
            let message = format!("node {from} is no member: nothing can be repaired from it");
            return ErrorBody::new("bad_request", message).with(StatusCode::BAD_REQUEST);
        }
    }
    let id = Uuid::new_v4();
    let body = JobBody {
        id: id.to_string(),
        node: here,
        table: asked.table,
        repair_from: asked.repair_from,
        state: JobState::Waiting,
        verdict: None,
        error: None,
        started_at: rfc3339(SystemTime::now()),
        finished_at: None,
        progress: ProgressBody::default(),
        nodes: Vec::new(),
        unreachable: Vec::new(),
        tables: Vec::new(),
    };
    match shared.verify.start(body, id, shared.config.verify.jobs_max) {
        Ok(job) => (StatusCode::ACCEPTED, Json(job.body())).into_response(),
        Err(other) => {
            let message = format!("comparison {other} is not over yet; wait for it, or cancel it");
            ErrorBody::new("conflict", message).with(StatusCode::CONFLICT)
        }
    }
}

/// The last comparisons that this node coordinated.
#[utoipa::path(get, path = "/replication/verify", tag = "replication", responses(
    (status = 200, description = "The newest last; they are forgotten when the agent ends", body = JobsBody)))]
async fn jobs(State(handle): State<Handle>) -> Json<JobsBody> {
    let jobs = handle.shared.verify.lock().iter().map(|job| job.body()).collect();
    Json(JobsBody { node: handle.shared.identity.node.get(), jobs })
}

/// How far a comparison is, and what it found.
#[utoipa::path(get, path = "/replication/verify/{id}", tag = "replication",
    params(("id" = String, Path, description = "Its identity")), responses(
    (status = 200, description = "So far", body = JobBody),
    (status = 404, description = "This node knows none of that identity", body = ErrorBody)))]
async fn job(State(handle): State<Handle>, Path(id): Path<String>) -> Response {
    match find(&handle, &id) {
        Ok(job) => Json(job.body()).into_response(),
        Err(error) => error.with(StatusCode::NOT_FOUND),
    }
}

/// Cancels a comparison; what it has repaired stays repaired.
#[utoipa::path(delete, path = "/replication/verify/{id}", tag = "replication",
    params(("id" = String, Path, description = "Its identity")), responses(
    (status = 200, description = "So far", body = JobBody),
    (status = 404, description = "This node knows none of that identity", body = ErrorBody)))]
async fn cancel(State(handle): State<Handle>, Path(id): Path<String>) -> Response {
    match find(&handle, &id) {
        Ok(job) => {
            job.cancelled.cancel();
            Json(job.body()).into_response()
        }
        Err(error) => error.with(StatusCode::NOT_FOUND),
    }
}

fn find(handle: &Handle, id: &str) -> Result<std::sync::Arc<super::Job>, ErrorBody> {
    let job = id.parse().ok().and_then(|id| handle.shared.verify.find(id));
    job.ok_or_else(|| {
        let node = handle.shared.identity.node;
        let message = format!(
            "node {node} knows no comparison {id}: another node coordinates it, or this agent was started anew"
        );
        ErrorBody::new("not_found", message)
    })
}

#[derive(OpenApi)]
#[openapi(paths(start, jobs, job, cancel))]
struct Document;

/// The description of the routes.
pub(crate) fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
