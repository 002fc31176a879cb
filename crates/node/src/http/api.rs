//! The routes that every port has, and their JSON.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{Port, Served};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ErrorBody {
    /// Stable, for programs: `not_found`, `wrong_port`, `method_not_allowed`, `not_implemented`, `timeout` …
    #[schema(example = "not_found")]
    pub code: String,
    /// For people: what, why, and what to do.
    pub message: String,
}

impl ErrorBody {
    /// An error's code and text.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }

    /// As the answer to a request.
    pub fn with(self, status: StatusCode) -> Response {
        (status, Json(self)).into_response()
    }
}

/// `GET /health`: the agent runs.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Health {
    /// Always `ok`.
    #[schema(example = "ok")]
    pub status: &'static str,
    /// This node's number.
    pub node: u16,
    /// The agent's version.
    pub version: &'static str,
    /// Milliseconds since the agent opened its API.
    pub uptime_ms: u64,
}

/// `GET /ready`: whether the agent can do its work.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Ready {
    /// Whether all checks are.
    pub ready: bool,
    /// This node's number.
    pub node: u16,
    /// Each thing the agent needs.
    pub checks: Vec<ReadyCheck>,
}

/// One thing the agent needs to be ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ReadyCheck {
    /// What: `postgres`, `raft`, `gossip`, `replication` …
    #[schema(example = "postgres")]
    pub name: &'static str,
    /// Whether it is there.
    pub ready: bool,
    /// Why not; null when ready.
    pub reason: Option<String>,
}

impl ReadyCheck {
    /// A thing that is there.
    pub fn ready(name: &'static str) -> Self {
        Self { name, ready: true, reason: None }
    }

    /// A thing that is not there, and why.
    pub fn unready(name: &'static str, reason: impl Into<String>) -> Self {
        Self { name, ready: false, reason: Some(reason.into()) }
    }
}

/// `GET /status`: what every component says of itself.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Status {
    /// This node's number.
    pub node: u16,
    /// The cluster's identity.
    pub cluster_id: String,
    /// The identity of this node's data.
    pub uuid: String,
    /// The life of this node's data.
    pub incarnation: u32,
    /// The agent's version.
    pub version: &'static str,
    /// When the agent opened its API, RFC 3339 in UTC.
    #[schema(example = "2025-05-17T08:00:00.000Z")]
    pub started_at: String,
    /// By component.
    pub components: BTreeMap<&'static str, ComponentStatus>,
}

/// What one component says of itself.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ComponentStatus {
    /// When it said so, RFC 3339 in UTC.
    #[schema(example = "2025-05-17T08:00:00.000Z")]
    pub taken_at: String,
    /// Its own status; the keys are the component's.
    #[schema(value_type = Object)]
    pub status: serde_json::Value,
}

/// What a handler of the common routes knows: what is served, and the port the request came in on.
#[derive(Clone)]
struct Here {
    served: Arc<Served>,
    port: Port,
}

/// The common routes, and the answers to what is no route of this port.
pub(super) fn common_routes(port: Port, served: &Arc<Served>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi_json))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(Here { served: Arc::clone(served), port })
}

/// The agent runs.
#[utoipa::path(get, path = "/health", tag = "agent", responses(
    (status = 200, description = "The agent runs, whatever the state of its parts", body = Health)
))]
async fn health(State(here): State<Here>) -> Json<Health> {
    let uptime = here.served.started.elapsed().unwrap_or_default();
    Json(Health {
        status: "ok",
        node: here.served.identity.node.get(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
    })
}

/// Whether the agent can do its work, and if not, why.
#[utoipa::path(get, path = "/ready", tag = "agent", responses(
    (status = 200, description = "All that the agent needs is there", body = Ready),
    (status = 503, description = "Something is missing; `checks` says what", body = Ready)
))]
async fn ready(State(here): State<Here>) -> Response {
    let checks = (here.served.ready)();
    let ready = checks.iter().all(|check| check.ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let node = here.served.identity.node.get();
    (status, Json(Ready { ready, node, checks })).into_response()
}

/// What every component says of itself.
#[utoipa::path(get, path = "/status", tag = "agent", responses(
    (status = 200, description = "The status of each component, with the time it was taken", body = Status)
))]
async fn status(State(here): State<Here>) -> Json<Status> {
    let Served { identity, started, status, .. } = &*here.served;
    let components = status.iter().map(|(name, source)| {
        let status = source();
        (*name, ComponentStatus { taken_at: rfc3339(SystemTime::now()), status })
    });
    Json(Status {
        node: identity.node.get(),
        cluster_id: identity.cluster_id.to_string(),
        uuid: identity.uuid.to_string(),
        incarnation: identity.incarnation.0,
        version: env!("CARGO_PKG_VERSION"),
        started_at: rfc3339(*started),
        components: components.collect(),
    })
}

/// All metrics, as OpenMetrics text.
#[utoipa::path(get, path = "/metrics", tag = "agent", responses(
    (status = 200, description = "OpenMetrics text", body = String,
     content_type = "application/openmetrics-text")
))]
async fn metrics(State(here): State<Here>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &here.served.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => ErrorBody::new("internal", format!("the metrics cannot be written: {error}"))
            .with(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "agent", responses(
    (status = 200, description = "The OpenAPI document of all ports", body = Object)
))]
async fn openapi_json(State(here): State<Here>) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, here.served.openapi.clone()).into_response()
}

async fn no_route(State(here): State<Here>, uri: Uri) -> Response {
    let path = uri.path();
    let error = match Port::of_path(path) {
        Some(right) if right != here.port => {
            let address = here.served.addresses.get(&right);
            let address = address.map_or_else(String::new, |address| format!(", {address}"));
            ErrorBody::new(
                "wrong_port",
                format!(
                    "{path} is served on the {} port of this node{address}; this is its {} port",
                    right.name(),
                    here.port.name()
                ),
            )
        }
        Some(_) | None => ErrorBody::new(
            "not_found",
            format!("there is no {path} here; GET /openapi.json lists what there is"),
        ),
    };
    error.with(StatusCode::NOT_FOUND)
}

async fn no_method(method: Method, uri: Uri) -> Response {
    let message =
        format!("{} does not take {method}; GET /openapi.json lists what does", uri.path());
    ErrorBody::new("method_not_allowed", message).with(StatusCode::METHOD_NOT_ALLOWED)
}

/// An instant as RFC 3339 in UTC with milliseconds.
pub fn rfc3339(instant: SystemTime) -> String {
    let at = OffsetDateTime::from(instant);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.millisecond()
    )
}

/// What utoipa collects of this file.
pub(super) mod documented {
    pub(in crate::http) use super::{
        __path_health, __path_metrics, __path_openapi_json, __path_ready, __path_status,
    };
}
