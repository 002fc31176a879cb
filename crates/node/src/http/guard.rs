//! Around all routes: limits on time and size, and one shape of error whoever refuses.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use tower_http::limit::RequestBodyLimitLayer;

use super::Config;
use super::api::ErrorBody;

#[derive(Clone, Copy)]
struct Limits {
    request_timeout: Duration,
    header_bytes_max: usize,
}

/// The router within its limits.
pub(super) fn around(router: axum::Router, config: &Config) -> axum::Router {
    let limits = Limits {
        request_timeout: Duration::from_millis(config.request_timeout_ms),
        header_bytes_max: config.header_bytes_max,
    };
    router
        .layer(RequestBodyLimitLayer::new(config.body_bytes_max))
        .layer(from_fn_with_state(limits, guard))
}

async fn guard(State(limits): State<Limits>, request: Request, next: Next) -> Response {
    let head = head_bytes(request.uri(), request.headers());
    if head > limits.header_bytes_max {
        let message = format!(
            "the request head has {head} bytes; at most {} are accepted",
            limits.header_bytes_max
        );
        return ErrorBody::new("head_too_large", message)
            .with(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    let path = request.uri().path().to_owned();
    let run = AssertUnwindSafe(next.run(request)).catch_unwind();
    match tokio::time::timeout(limits.request_timeout, run).await {
        Ok(Ok(response)) => in_one_shape(response, &path),
        Ok(Err(_)) => {
            tracing::error!("http: the handler of {path} panicked");
            let message = format!("{path} failed by a defect of the agent; its log says more");
            ErrorBody::new("internal", message).with(StatusCode::INTERNAL_SERVER_ERROR)
        }
        Err(_) => {
            let message =
                format!("{path} took longer than {:?}; try again", limits.request_timeout);
            ErrorBody::new("timeout", message).with(StatusCode::SERVICE_UNAVAILABLE)
        }
    }
}

fn head_bytes(uri: &Uri, headers: &HeaderMap) -> usize {
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>() + target
}

/// Errors of the layers below (a body too large, a body that is no JSON) come as plain text: they get our shape.
fn in_one_shape(response: Response, path: &str) -> Response {
    let status = response.status();
    let failed = status.is_client_error() || status.is_server_error();
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("application/json"));
    if !failed || is_json {
        return response;
    }
    let reason = status.canonical_reason().unwrap_or("the request failed");
    let code = reason.to_ascii_lowercase().replace([' ', '-'], "_");
    let allow = response.headers().get(header::ALLOW).cloned();
    let mut shaped = ErrorBody::new(code, format!("{path}: {reason}")).with(status).into_response();
    if let Some(allow) = allow {
        shaped.headers_mut().insert(header::ALLOW, allow);
    }
    shaped
}
