//! `GET /replication/quarantine`, `POST /replication/quarantine/{id}/retry` and `…/skip`, and their JSON.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::super::Handle;
use super::super::api::{EmptyBody, failed};
use super::{Retried, limit, list};
use crate::http::api::ErrorBody;

/// How many are wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LimitQuery {
    /// How many at most: 100 unless said otherwise, 1000 at most.
    pub limit: Option<u32>,
}

/// The changes that could not be applied on one node.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct QuarantineBody {
    /// The node that answers.
    pub node: u16,
    /// The oldest first.
    pub quarantined: Vec<QuarantinedBody>,
    /// Whether there are more.
    pub more: bool,
}

/// A change that could not be applied.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct QuarantinedBody {
    /// Its number on the node that could not apply it.
    pub id: i64,
    /// When it was put there, RFC 3339.
    pub at: String,
    /// The node where it was committed.
    pub origin: Option<i32>,
    /// The life of that node's data.
    pub incarnation: Option<i64>,
    /// The commit LSN of its transaction there.
    pub commit_lsn: Option<String>,
    /// The commit time of its transaction there, RFC 3339.
    pub commit_time: Option<String>,
    /// Its place in the transaction.
    pub position: Option<i32>,
    /// The table's schema.
    pub schema_name: Option<String>,
    /// The table.
    pub table_name: Option<String>,
    /// `insert`, `update`, `delete`, `truncate` or `ddl`.
    pub kind: Option<String>,
    /// The row before.
    #[schema(value_type = Object)]
    pub old_row: Option<Value>,
    /// The row after.
    #[schema(value_type = Object)]
    pub new_row: Option<Value>,
    /// The DDL statement.
    pub statement: Option<String>,
    /// Why it could not be applied.
    pub reason: Option<String>,
    /// The server's code of the reason.
    pub sqlstate: Option<String>,
    /// How often it was tried.
    pub attempts: i32,
}

/// A change that was tried again and is applied.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RetriedBody {
    /// Its number.
    pub id: i64,
    /// Always true.
    pub applied: bool,
}

/// The routes of the quarantine.
pub(crate) fn routes(handle: Handle) -> Router {
    Router::new()
        .route("/replication/quarantine", get(quarantine))
        .route("/replication/quarantine/{id}/retry", post(retry))
        .route("/replication/quarantine/{id}/skip", post(skip))
        .with_state(handle)
}

/// The changes that could not be applied on this node.
#[utoipa::path(get, path = "/replication/quarantine", tag = "replication", params(LimitQuery), responses(
    (status = 200, description = "The oldest first", body = QuarantineBody),
    (status = 503, description = "The server does not answer", body = ErrorBody)))]
async fn quarantine(State(handle): State<Handle>, Query(query): Query<LimitQuery>) -> Response {
    let wanted = limit(query.limit);
    match list(&handle.shared, wanted).await {
        Ok(mut quarantined) => {
            let more = quarantined.len() > wanted as usize;
            quarantined.truncate(wanted as usize);
            let node = handle.shared.identity.node.get();
            Json(QuarantineBody { node, quarantined, more }).into_response()
        }
        Err(error) => failed(&error),
    }
}

/// Tries a change again that could not be applied on this node.
#[utoipa::path(post, path = "/replication/quarantine/{id}/retry", tag = "replication", request_body = EmptyBody,
    params(("id" = i64, Path, description = "Its number on this node")), responses(
    (status = 200, description = "It is applied", body = RetriedBody),
    (status = 404, description = "There is none of that number", body = ErrorBody),
    (status = 409, description = "It still cannot be applied", body = ErrorBody),
    (status = 503, description = "It could not be tried", body = ErrorBody)))]
async fn retry(
    State(handle): State<Handle>,
    Path(id): Path<i64>,
    Json(EmptyBody {}): Json<EmptyBody>,
) -> Response {
    match super::retry(&handle.shared, id).await {
        Ok(Retried::Applied) => Json(RetriedBody { id, applied: true }).into_response(),
        Ok(Retried::Refused(reason)) => {
            let message =
                format!("change {id} still cannot be applied, nothing was changed: {reason}");
            ErrorBody::new("conflict", message).with(StatusCode::CONFLICT)
        }
        Ok(Retried::Unknown) => unknown(&handle, id),
        Err(error) => failed(&error),
    }
}

/// Gives a change up that could not be applied on this node: it is deleted, the log keeps what it was.
#[utoipa::path(post, path = "/replication/quarantine/{id}/skip", tag = "replication", request_body = EmptyBody,
    params(("id" = i64, Path, description = "Its number on this node")), responses(
    (status = 200, description = "What was given up", body = QuarantinedBody),
    (status = 404, description = "There is none of that number", body = ErrorBody),
    (status = 503, description = "The server does not answer", body = ErrorBody)))]
async fn skip(
    State(handle): State<Handle>,
    Path(id): Path<i64>,
    Json(EmptyBody {}): Json<EmptyBody>,
) -> Response {
    match super::skip(&handle.shared, id).await {
        Ok(Some(given_up)) => Json(given_up).into_response(),
        Ok(None) => unknown(&handle, id),
        Err(error) => failed(&error),
    }
}

fn unknown(handle: &Handle, id: i64) -> Response {
    let node = handle.shared.identity.node;
    let message = format!("there is no change {id} in the quarantine of node {node}");
    ErrorBody::new("not_found", message).with(StatusCode::NOT_FOUND)
}

#[derive(OpenApi)]
#[openapi(paths(quarantine, retry, skip))]
struct Document;

/// The description of the routes.
pub(crate) fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
