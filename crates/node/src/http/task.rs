//! Serves the ports until the agent stops.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Config;
use super::listen::Limited;
use crate::tasks::Shutdown;

/// The bound API.
pub struct Task {
    config: Config,
    servers: Vec<(TcpListener, axum::Router)>,
}

impl Task {
    pub(super) fn new(config: Config, servers: Vec<(TcpListener, axum::Router)>) -> Self {
        Self { config, servers }
    }

    /// Serves until `stop`; requests that run then have `drain_ms` to end.
    ///
    /// # Errors
    /// A port stopped serving by itself.
    pub async fn run(self, stop: Shutdown) -> anyhow::Result<()> {
        let idle = Duration::from_millis(self.config.idle_timeout_ms.max(1));
        let mut serving = JoinSet::new();
        for (listener, router) in self.servers {
            let listener = Limited::new(listener, self.config.connections_max, idle);
            let server = axum::serve(listener, router)
                .with_graceful_shutdown(stop.clone().cancelled_owned());
            serving.spawn(async move { server.await });
        }
        tokio::select! {
            () = stop.cancelled() => {}
            ended = serving.join_next() => {
                if !stop.is_cancelled() {
                    anyhow::bail!("http: a port stopped serving: {ended:?}");
                }
            }
        }
        let drained = async { while serving.join_next().await.is_some() {} };
        if timeout(Duration::from_millis(self.config.drain_ms), drained).await.is_err() {
            tracing::debug!("http: some requests did not end in time and are cut");
        }
        Ok(())
    }
}
