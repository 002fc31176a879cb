//! Routes whose component is still to come: they are there, and say so, with what to use until then.

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};

use super::api::ErrorBody;

const DEADLOCKS: &str = "Deadlocks across nodes are found and broken from the release that brings distributed \
     transactions on. Until then a transaction runs on one node, where PostgreSQL finds deadlocks itself (40P01 after \
     deadlock_timeout); pg_locks and pg_blocking_pids() show who waits for whom.";
const BACKUPS: &str = "Backups of the whole cluster come with the release that brings the backup component. Until then \
     back up one node, they hold the same rows: pg_dump through the read endpoint, or pg_basebackup from a node's \
     PostgreSQL server. Nothing was changed.";

fn not_implemented(message: &str) -> Response {
    ErrorBody::new("not_implemented", message).with(StatusCode::NOT_IMPLEMENTED)
}

/// `/deadlock/*`
pub(super) fn deadlock_routes() -> Router {
    Router::new()
        .route("/deadlock/graph", get(deadlock_graph))
        .route("/deadlock/stats", get(deadlock_stats))
}

/// `/backup/*`
pub(super) fn backup_routes() -> Router {
    Router::new()
        .route("/backup/status", get(backup_status))
        .route("/backup/list", get(backup_list))
        .route("/backup/create", post(backup_create))
        .route("/backup/restore/{id}", post(backup_restore))
}

/// Who waits for whom, across nodes.
#[utoipa::path(get, path = "/deadlock/graph", tag = "deadlock", responses(
    (status = 501, description = "Not in this release", body = ErrorBody)
))]
async fn deadlock_graph() -> Response {
    not_implemented(DEADLOCKS)
}

/// Deadlocks found and broken.
#[utoipa::path(get, path = "/deadlock/stats", tag = "deadlock", responses(
    (status = 501, description = "Not in this release", body = ErrorBody)
))]
async fn deadlock_stats() -> Response {
    not_implemented(DEADLOCKS)
}

/// The backup that runs, and the last one.
#[utoipa::path(get, path = "/backup/status", tag = "backup", responses(
    (status = 501, description = "Not in this release", body = ErrorBody)
))]
async fn backup_status() -> Response {
    not_implemented(BACKUPS)
}

/// The backups there are.
#[utoipa::path(get, path = "/backup/list", tag = "backup", responses(
    (status = 501, description = "Not in this release", body = ErrorBody)
))]
async fn backup_list() -> Response {
    not_implemented(BACKUPS)
}

/// Makes a backup of the whole cluster.
#[utoipa::path(post, path = "/backup/create", tag = "backup", responses(
    (status = 501, description = "Not in this release", body = ErrorBody)
))]
async fn backup_create() -> Response {
    not_implemented(BACKUPS)
}

/// Restores the whole cluster to one consistent point.
#[utoipa::path(post, path = "/backup/restore/{id}", tag = "backup",
    params(("id" = String, Path, description = "The backup, from /backup/list")),
    responses((status = 501, description = "Not in this release", body = ErrorBody)))]
async fn backup_restore(Path(_id): Path<String>) -> Response {
    not_implemented(BACKUPS)
}

/// What utoipa collects of this file.
pub(super) mod documented {
    pub(in crate::http) use super::{
        __path_backup_create, __path_backup_list, __path_backup_restore, __path_backup_status,
        __path_deadlock_graph, __path_deadlock_stats,
    };
}
