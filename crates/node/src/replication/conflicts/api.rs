//! `GET /replication/conflicts` and `GET /replication/conflicts/{id}`, and their JSON.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::super::Handle;
use super::super::api::failed;
use super::{limit, list};
use crate::http::api::ErrorBody;

/// Which conflicts are wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FilterQuery {
    /// A table, with or without its schema.
    pub table: Option<String>,
    /// A type of conflict, such as `update_update`.
    pub r#type: Option<String>,
    /// Settled at or after this instant, RFC 3339.
    pub since: Option<String>,
    /// How many at most: 100 unless said otherwise, 1000 at most.
    pub limit: Option<u32>,
}

/// The conflicts that were settled on one node.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ConflictsBody {
    /// The node that answers.
    pub node: u16,
    /// The newest first.
    pub conflicts: Vec<ConflictBody>,
    /// Whether there are more that fit.
    pub more: bool,
}

/// A conflict and how it was settled.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConflictBody {
    /// Its number on the node that settled it.
    pub id: i64,
    /// When it was settled there, RFC 3339.
    pub at: String,
    /// The table's schema.
    pub schema_name: Option<String>,
    /// The table.
    pub table_name: Option<String>,
    /// What met what.
    pub r#type: Option<String>,
    /// What stayed.
    pub resolution: Option<String>,
    /// By which policy.
    pub policy: Option<String>,
    /// The primary key.
    #[schema(value_type = Object)]
    pub key: Option<Value>,
    /// The row that was here.
    #[schema(value_type = Object)]
    pub local_row: Option<Value>,
    /// The row that came.
    #[schema(value_type = Object)]
    pub remote_row: Option<Value>,
    /// Who wrote the row that was here.
    pub local_node: Option<i32>,
    /// Its commit LSN there.
    pub local_lsn: Option<String>,
    /// Its commit time there.
    pub local_time: Option<String>,
    /// Who wrote the row that came.
    pub remote_node: Option<i32>,
    /// Its commit LSN there.
    pub remote_lsn: Option<String>,
    /// Its commit time there.
    pub remote_time: Option<String>,
    /// What the writer of the row that came had seen.
    #[schema(value_type = Object)]
    pub remote_vector: Option<Value>,
    /// Anything else.
    pub detail: Option<String>,
}

/// The routes of conflicts.
pub(crate) fn routes(handle: Handle) -> Router {
    Router::new()
        .route("/replication/conflicts", get(conflicts))
        .route("/replication/conflicts/{id}", get(conflict))
        .with_state(handle)
}

/// The newest conflicts that were settled on this node.
#[utoipa::path(get, path = "/replication/conflicts", tag = "replication", params(FilterQuery), responses(
    (status = 200, description = "The newest first", body = ConflictsBody),
    (status = 400, description = "`since` is no instant", body = ErrorBody),
    (status = 503, description = "The server does not answer", body = ErrorBody)))]
async fn conflicts(State(handle): State<Handle>, Query(filter): Query<FilterQuery>) -> Response {
    match list(&handle.shared, &filter, None).await {
        Ok(mut conflicts) => {
            let wanted = limit(filter.limit) as usize;
            let more = conflicts.len() > wanted;
            conflicts.truncate(wanted);
            let node = handle.shared.identity.node.get();
            Json(ConflictsBody { node, conflicts, more }).into_response()
        }
        Err(error) => failed(&error),
    }
}

/// One conflict that was settled on this node.
#[utoipa::path(get, path = "/replication/conflicts/{id}", tag = "replication",
    params(("id" = i64, Path, description = "Its number on this node")), responses(
    (status = 200, description = "It, with both rows", body = ConflictBody),
    (status = 404, description = "There is none of that number", body = ErrorBody)))]
async fn conflict(State(handle): State<Handle>, Path(id): Path<i64>) -> Response {
    match list(&handle.shared, &FilterQuery::default(), Some(id)).await {
        Ok(mut found) => match found.pop() {
            Some(conflict) => Json(conflict).into_response(),
            None => {
                let node = handle.shared.identity.node;
                let message =
                    format!("there is no conflict {id} on node {node}; old ones are deleted");
                ErrorBody::new("not_found", message).with(StatusCode::NOT_FOUND)
            }
        },
        Err(error) => failed(&error),
    }
}

#[derive(OpenApi)]
#[openapi(paths(conflicts, conflict))]
struct Document;

/// The description of the routes.
pub(crate) fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
