//! The open sessions of this agent: counted by endpoint and node, and told when they must end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use synapsedb_core::ids::NodeId;
use tokio_util::sync::CancellationToken;

use super::metrics::{Place, SessionsGauge};
use super::{Endpoint, api};

/// Why a session is ended from our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The primary is another node now, or none.
    PrimaryChanged(Option<NodeId>),
    /// The agent stops.
    Draining,
}

/// Tells one session that it must end.
#[derive(Debug, Default)]
pub(super) struct EndSignal {
    token: CancellationToken,
    reason: OnceLock<End>,
}

impl EndSignal {
    /// Tells it; the first reason stands.
    pub(super) fn raise(&self, end: End) {
        let _ = self.reason.set(end);
        self.token.cancel();
    }

    /// Waits until it is told.
    pub(super) async fn raised(&self) -> End {
        self.token.cancelled().await;
        self.reason.get().copied().unwrap_or(End::Draining)
    }
}

struct Live {
    endpoint: Endpoint,
    node: NodeId,
    signal: Arc<EndSignal>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    live: BTreeMap<u64, Live>,
    counts: BTreeMap<(Endpoint, NodeId), u64>,
}

/// The open sessions.
pub(super) struct Sessions {
    inner: Mutex<Inner>,
    gauge: SessionsGauge,
}

impl Sessions {
    pub(super) fn new(gauge: SessionsGauge) -> Self {
        Self { inner: Mutex::default(), gauge }
    }

    /// Counts a session until the returned entry is dropped.
    pub(super) fn open(&self, endpoint: Endpoint, node: NodeId) -> Entry<'_> {
        let signal = Arc::new(EndSignal::default());
        let mut inner = self.lock();
        let id = inner.next;
        inner.next += 1;
        inner.live.insert(id, Live { endpoint, node, signal: Arc::clone(&signal) });
        *inner.counts.entry((endpoint, node)).or_default() += 1;
        drop(inner);
        self.gauge_of(endpoint, node, 1);
        Entry { sessions: self, id, node, signal }
    }

    /// How many sessions each node serves for this agent, both endpoints together.
    pub(super) fn per_node(&self) -> BTreeMap<NodeId, u64> {
        let mut per_node = BTreeMap::new();
        for (&(_, node), &count) in &self.lock().counts {
            *per_node.entry(node).or_default() += count;
        }
        per_node
    }

    pub(super) fn per_endpoint_and_node(&self) -> Vec<api::Sessions> {
        let counts = self.lock().counts.clone();
        let present = counts.into_iter().filter(|(_, sessions)| *sessions > 0);
        present
            .map(|((endpoint, node), sessions)| api::Sessions {
                endpoint,
                node: node.get(),
                sessions,
            })
            .collect()
    }

    /// Ends the write sessions that are not on the primary.
    pub(super) fn primary_is(&self, primary: Option<NodeId>) -> usize {
        let strays: Vec<_> = self
            .lock()
            .live
            .values()
            .filter(|live| live.endpoint == Endpoint::Write && Some(live.node) != primary)
            .map(|live| Arc::clone(&live.signal))
            .collect();
        for signal in &strays {
            signal.raise(End::PrimaryChanged(primary));
        }
        strays.len()
    }

    /// Ends all sessions.
    pub(super) fn drain(&self) {
        let signals: Vec<_> =
            self.lock().live.values().map(|live| Arc::clone(&live.signal)).collect();
        for signal in signals {
            signal.raise(End::Draining);
        }
    }

    fn close(&self, id: u64) {
        let mut inner = self.lock();
        let Some(live) = inner.live.remove(&id) else { return };
        if let Some(count) = inner.counts.get_mut(&(live.endpoint, live.node)) {
            *count = count.saturating_sub(1);
        }
        drop(inner);
        self.gauge_of(live.endpoint, live.node, -1);
    }

    fn gauge_of(&self, endpoint: Endpoint, node: NodeId, change: i64) {
        let place = Place { endpoint: endpoint.name(), node: node.get() };
        self.gauge.get_or_create_owned(&place).inc_by(change);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that holds the lock can panic half way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's entry; dropping it closes the session.
pub(super) struct Entry<'a> {
    sessions: &'a Sessions,
    id: u64,
    /// The node that serves it.
    pub(super) node: NodeId,
    /// Raised when the session must end.
    pub(super) signal: Arc<EndSignal>,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.sessions.close(self.id);
    }
}
