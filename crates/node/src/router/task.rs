//! Runs the workers, each on a thread of its own, and ends them when the agent stops.

use std::sync::Arc;
use std::thread;

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::worker::{self, Command, Listeners};
use crate::tasks::Shutdown;

/// The running router.
pub struct Task {
    shared: Arc<Shared>,
    listeners: Vec<Listeners>,
    orders: Vec<mpsc::UnboundedReceiver<Command>>,
}

impl Task {
    pub(super) fn new(
        shared: Arc<Shared>,
        listeners: Vec<Listeners>,
        orders: Vec<mpsc::UnboundedReceiver<Command>>,
    ) -> Self {
        Self { shared, listeners, orders }
    }

    /// Serves clients until `stop`, then ends the sessions within `drain_ms` and a little.
    ///
    /// # Errors
    /// A thread cannot be made, or a worker cannot begin. What goes wrong with one session ends that session.
    pub async fn run(self, stop: Shutdown) -> anyhow::Result<()> {
        let Self { shared, listeners, orders } = self;
        let mut ends = Vec::with_capacity(orders.len());
        for (index, (listeners, orders)) in listeners.into_iter().zip(orders).enumerate() {
            ends.push(start(Arc::clone(&shared), index as u16, listeners, orders)?);
        }
        let drain = async {
            stop.cancelled().await;
            shared.draining.cancel();
            for commands in &shared.commands {
                // A worker that has ended needs no telling.
                let _ = commands.send(Command::Drain);
            }
        };
        let all = futures_util::future::try_join_all(ends.into_iter().map(|end| async {
            end.await.context("router: a worker has ended in the middle of its work")?
        }));
        let mut all = std::pin::pin!(all);
        let certificates = async {
            if let Some(tls) = &shared.tls {
                let interval = shared.config().tls_reload_interval_ms.max(1);
                tls.follow(std::time::Duration::from_millis(interval), &stop).await;
            }
            // The other two say when it ends.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = certificates => Ok(()),
            ended = &mut all => ended.map(drop),
            () = drain => all.await.map(drop),
        }
    }
}

/// Starts a worker; the receiver gets what it ended with.
fn start(
    shared: Arc<Shared>,
    index: u16,
    listeners: Listeners,
    orders: mpsc::UnboundedReceiver<Command>,
) -> anyhow::Result<oneshot::Receiver<anyhow::Result<()>>> {
    let (ended, end) = oneshot::channel();
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let outcome = runtime.context("router: no event loop").and_then(|runtime| {
            let local = tokio::task::LocalSet::new();
            let work = worker::run(shared, index, listeners, orders);
            local.block_on(&runtime, work).context("router: a listener cannot be used")
        });
        // The receiver is gone when the agent has stopped waiting.
        let _ = ended.send(outcome);
    };
    thread::Builder::new()
        .name(format!("router-{index}"))
        .spawn(work)
        .context("router: no thread for a worker")?;
    Ok(end)
}
