//! A node's vote alone, without its server: a small cluster cannot agree without it while the node's data is replaced.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};

use crate::config::AgentConfig;
use crate::metrics;
use crate::node::{Agreement, Heard};
use crate::tasks::{Shutdown, Tasks};

/// The node votes until this is dropped. It has no server, answers no HTTP, and does not count as alive.
///
/// Whoever has it holds the agent's place, so that no agent runs under the same identity.
pub(crate) struct Vote {
    stop: Shutdown,
    thread: Option<JoinHandle<Result<()>>>,
}

/// Takes part in what the cluster decides, with the Raft log of the node.
///
/// # Errors
/// The log is damaged, gone, or an older copy; the node's certificate or address cannot be used. Nothing was changed.
pub(crate) fn start(config: AgentConfig) -> Result<Vote> {
    let stop = Shutdown::new();
    let (begun, begins) = mpsc::channel();
    let until = stop.clone();
    let thread = std::thread::Builder::new()
        .name("vote".to_owned())
        .spawn(move || run(&config, until, &begun))
        .context("cannot start a thread")?;
    match begins.recv() {
        Ok(()) => Ok(Vote { stop, thread: Some(thread) }),
        // It has ended before it began, and says why.
        Err(mpsc::RecvError) => {
            let ended = thread.join().map_err(|_| anyhow!("the vote panicked"))?;
            Err(ended.err().unwrap_or_else(|| anyhow!("the vote ended")))
        }
    }
}

fn run(config: &AgentConfig, stop: Shutdown, begun: &mpsc::Sender<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let grace = Duration::from_millis(config.node.stop_timeout_ms);
    runtime.block_on(async {
        let mut registry = metrics::registry();
        let mut tasks = Tasks::new(stop);
        let identity = config.identity()?;
        let heard = Heard::InRaft;
        let _agreement =
            Agreement::start(config, &identity, heard, &mut tasks, &mut registry).await?;
        let _ = begun.send(());
        tasks.run(grace).await
    })
}

impl Drop for Vote {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            tracing::warn!("the vote of a node whose data is replaced has ended: {error:#}");
        }
    }
}
