//! What is counted of the connections between agents.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::CallError;
use crate::tls::Refusal;

/// Refusals are logged at most this often; all are counted.
const LOG_INTERVAL: Duration = Duration::from_millis(200);

pub(super) struct Metrics {
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    calls: Family<[(&'static str, &'static str); 2], Counter>,
    accepted: Gauge,
    logged: Mutex<Option<Instant>>,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            refused: Family::default(),
            calls: Family::default(),
            accepted: Gauge::default(),
            logged: Mutex::default(),
        };
        registry.register(
            "synapsedb_peers_refused",
            "Connections between agents that were refused, by reason",
            metrics.refused.clone(),
        );
        registry.register(
            "synapsedb_peers_calls",
            "Calls to other agents, by service and outcome",
            metrics.calls.clone(),
        );
        registry.register(
            "synapsedb_peers_accepted_connections",
            "Connections of other agents that are open now",
            metrics.accepted.clone(),
        );
        metrics
    }

    /// Counts a refusal, and logs it unless another was logged a moment ago.
    pub(super) fn refuse(&self, reason: Refusal, from: &str, detail: &str) {
        self.refused.get_or_create(&[("reason", reason.label())]).inc();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            *logged = Some(Instant::now());
            tracing::warn!(reason = reason.label(), from, "refused a connection: {detail}");
        }
    }

    pub(super) fn called(&self, service: &'static str, error: Option<&CallError>) {
        let outcome = match error {
            None => "ok",
            Some(CallError::UnknownPeer { .. }) => "unknown_peer",
            Some(CallError::Unreachable { .. }) => "unreachable",
            Some(CallError::Disconnected { .. }) => "disconnected",
            Some(CallError::Timeout { .. }) => "timeout",
            Some(CallError::Remote { .. }) => "remote_error",
            Some(CallError::TooLong { .. }) => "too_long",
        };
        self.calls.get_or_create(&[("service", service), ("outcome", outcome)]).inc();
    }

    /// Counts an accepted connection as open until the answer is dropped.
    pub(super) fn accepted(&self) -> Accepted {
        self.accepted.inc();
        Accepted(self.accepted.clone())
    }
}

pub(super) struct Accepted(Gauge);

impl Drop for Accepted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
