//! Runs the components: spawned by name, stopped together, and the first that ends stops the agent.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Told to every component: when it is cancelled, the component finishes what it must and returns.
pub type Shutdown = CancellationToken;

/// The running components.
pub struct Tasks {
    set: JoinSet<(&'static str, Result<()>)>,
    shutdown: Shutdown,
}

impl Tasks {
    /// No component yet; all that are spawned stop when `shutdown` is cancelled.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { set: JoinSet::new(), shutdown }
    }

    /// Runs a component under its name.
    pub fn spawn<F, T>(&mut self, name: &'static str, run: F)
    where
        F: FnOnce(Shutdown) -> T,
        T: Future<Output = Result<()>> + Send + 'static,
    {
        let task = run(self.shutdown.child_token());
        self.set.spawn(async move { (name, task.await) });
    }

    /// Waits until shutdown is asked for or a component ends, stops the rest, and waits at most `grace` for them.
    ///
    /// # Errors
    /// The error of the first component that ended by itself: a component never does that when all is well.
    pub async fn run(mut self, grace: Duration) -> Result<()> {
        let first = tokio::select! {
            // Asked first: components that end because they were told to have not failed.
            biased;
            () = self.shutdown.cancelled() => Ok(()),
            Some(ended) = self.set.join_next() => Err(match ended {
                Ok((name, Ok(()))) => anyhow!("component {name} ended without being asked to"),
                Ok((name, Err(error))) => error.context(format!("component {name} failed")),
                Err(error) => anyhow!("a component panicked: {error}"),
            }),
        };
        self.shutdown.cancel();
        let drained = tokio::time::timeout(grace, async {
            while let Some(ended) = self.set.join_next().await {
                match ended {
                    Ok((_, Ok(()))) => {}
                    Ok((name, Err(error))) => {
                        tracing::warn!(component = name, "stopped with an error: {error:#}");
                    }
                    Err(error) => tracing::warn!("a component panicked while stopping: {error}"),
                }
            }
        })
        .await;
        first.and(drained.context("some components did not stop within the grace period"))
    }
}
