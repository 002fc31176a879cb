//! The router's loop: accepts clients, ends the sessions that are on an old primary, and drains when the agent stops.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::metrics::Refused;
use super::{Endpoint, Shared, session};
use crate::tasks::Shutdown;

/// After a failed accept (no file descriptor left, mostly): a rest instead of a spin.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// The running router.
pub struct Task {
    shared: Arc<Shared>,
    read: TcpListener,
    write: TcpListener,
}

impl Task {
    pub(super) fn new(shared: Arc<Shared>, read: TcpListener, write: TcpListener) -> Self {
        Self { shared, read, write }
    }

    /// Serves clients until `stop`, then ends the sessions within `drain_ms` and a little.
    ///
    /// # Errors
    /// None: what goes wrong with one session ends that session.
    pub async fn run(self, stop: Shutdown) -> anyhow::Result<()> {
        let Self { shared, read, write } = self;
        let sessions = TaskTracker::new();
        let accepting = async {
            tokio::join!(
                accept(&shared, &sessions, Endpoint::Read, &read),
                accept(&shared, &sessions, Endpoint::Write, &write),
                follow_primary(&shared),
            )
        };
        tokio::select! {
            _ = accepting => {}
            () = stop.cancelled() => {}
        }
        shared.draining.cancel();
        // Connections that the kernel had taken for us are answered, not reset.
        accept_waiting(&shared, &sessions, Endpoint::Read, &read).await;
        accept_waiting(&shared, &sessions, Endpoint::Write, &write).await;
        drop((read, write));
        shared.sessions.drain();
        sessions.close();
        let config = &shared.config;
        let patience = config.drain_ms.saturating_add(config.farewell_ms.saturating_mul(3));
        if timeout(Duration::from_millis(patience), sessions.wait()).await.is_err() {
            tracing::warn!("router: {} sessions did not end in time and are cut", sessions.len());
        }
        Ok(())
    }
}

async fn accept(
    shared: &Arc<Shared>,
    sessions: &TaskTracker,
    endpoint: Endpoint,
    listener: &TcpListener,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => begin(shared, sessions, endpoint, stream),
            Err(error) => {
                tracing::warn!("router: the {} endpoint cannot accept: {error}", endpoint.name());
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn accept_waiting(
    shared: &Arc<Shared>,
    sessions: &TaskTracker,
    endpoint: Endpoint,
    listener: &TcpListener,
) {
    while let Ok(Ok((stream, _))) = timeout(Duration::ZERO, listener.accept()).await {
        begin(shared, sessions, endpoint, stream);
    }
}

fn begin(
    shared: &Arc<Shared>,
    sessions: &TaskTracker,
    endpoint: Endpoint,
    stream: tokio::net::TcpStream,
) {
    match Arc::clone(&shared.startups).try_acquire_owned() {
        Ok(starting) => {
            sessions.spawn(session::serve(Arc::clone(shared), endpoint, stream, starting));
        }
        Err(_) => shared.metrics.refused(Refused::TooManyStartups),
    }
}

async fn follow_primary(shared: &Shared) {
    let mut state = shared.state.clone();
    loop {
        let primary = state.borrow_and_update().primary;
        let ended = shared.sessions.primary_is(primary);
        if ended > 0 {
            tracing::info!(
                primary = primary.map(synapsedb_core::ids::NodeId::get),
                "router: the primary changed, {ended} write sessions on other nodes end"
            );
        }
        if state.changed().await.is_err() {
            // The state has no owner any more: the agent is stopping.
            std::future::pending::<()>().await;
        }
    }
}
