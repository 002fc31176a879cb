//! The guard of the leader, and the figures of Raft.
//!
//! openraft 0.9 lets a leader that has lost its majority go on with its heartbeats; each renews the lease of the
//! followers that it still reaches, so that they never elect (openraft issue 2080). And a leader whose disk has stalled
//! leads on although nothing can be committed. The guard silences both: without heartbeats the leases run out and
//! those that can agree elect another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};
use openraft::ServerState;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::time::{Instant, MissedTickBehavior};

use super::{RaftNode, Shared};
use crate::tasks::Shutdown;

/// Watches over this node's part in Raft.
pub struct Task {
    shared: Arc<Shared>,
    /// How often a leader is to be heard of, which does not change with the time of a write.
    heartbeat: Duration,
    term: Gauge<u64, AtomicU64>,
    leads: Gauge<u64, AtomicU64>,
    last_index: Gauge<u64, AtomicU64>,
    applied_index: Gauge<u64, AtomicU64>,
    silenced: Counter,
    stop: StopOnDrop,
}

impl Task {
    pub(super) fn new(shared: Arc<Shared>, heartbeat: Duration, registry: &mut Registry) -> Self {
        let stop = StopOnDrop(Some(shared.raft.clone()));
        let task = Self {
            shared,
            heartbeat,
            term: Gauge::default(),
            leads: Gauge::default(),
            last_index: Gauge::default(),
            applied_index: Gauge::default(),
            silenced: Counter::default(),
            stop,
        };
        for (name, help, gauge) in [
            ("synapsedb_raft_term", "The current term", &task.term),
            ("synapsedb_raft_leader", "1 when this node leads with a majority", &task.leads),
            ("synapsedb_raft_last_index", "The index of the last log entry", &task.last_index),
            ("synapsedb_raft_applied_index", "The last applied index", &task.applied_index),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "synapsedb_raft_silenced",
            "How often this node, leading without a majority or with a stalled disk, was silenced",
            task.silenced.clone(),
        );
        task
    }

    /// Guards until `stop`, then shuts Raft down.
    ///
    /// # Errors
    /// Raft has stopped by itself: its file cannot be read or written.
    pub async fn run(mut self, stop: Shutdown) -> Result<()> {
        let period = (self.heartbeat / 2).max(Duration::from_millis(1));
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leading_since = None;
        let until = stop.child_token();
        let _until = until.clone().drop_guard();
        tokio::spawn(super::voters::follow(self.shared.clone(), until));
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            if let Err(fatal) = self.shared.raft.metrics().borrow().running_state.clone() {
                return Err(anyhow!("Raft has stopped: {fatal}"));
            }
            self.guard(&mut leading_since);
            self.be_heard().await;
            self.measure();
        }
        // It panics only if Raft's own task has: then there is nothing left to stop.
        if let Some(raft) = self.stop.0.take() {
            let _ = raft.shutdown().await;
        }
        Ok(())
    }

    fn guard(&self, leading_since: &mut Option<Instant>) {
        let (leads, alone, ack_age) = {
            let metrics = self.shared.raft.metrics();
            let metrics = metrics.borrow();
            let alone = metrics.membership_config.voter_ids().count() == 1;
            (metrics.state == ServerState::Leader, alone, metrics.millis_since_quorum_ack)
        };
        if !leads {
            *leading_since = None;
            return self.set_silenced(None);
        }
        let since = leading_since.get_or_insert_with(Instant::now);
        let config = &self.shared.config;
        let patience = Duration::from_millis(config.election_max_ms.saturating_mul(2));
        // Before the first acknowledgement of a term there is no age: count from its beginning.
        let unconfirmed = ack_age.map_or_else(|| since.elapsed(), Duration::from_millis);
        let stalled = self.shared.store.writing_for().unwrap_or_default();
        if !alone && unconfirmed > patience {
            self.set_silenced(Some("no majority has confirmed it"));
        } else if stalled > Duration::from_millis(config.disk_stall_ms) {
            self.set_silenced(Some("its disk does not finish a write"));
        } else if unconfirmed < patience / 2 {
            // A majority is back, or the disk is, before anybody else was elected: lead on.
            self.set_silenced(None);
        }
    }

    /// openraft's own heartbeats are as far apart as a call may take, which is long on a slow disk. The others, whose
    /// disks may be faster, wait no longer than their own settings say.
    async fn be_heard(&self) {
        let own = Duration::from_millis(self.shared.config.heartbeat_ms);
        let leads = self.shared.raft.metrics().borrow().state == ServerState::Leader;
        if own > self.heartbeat && leads && !self.shared.silenced.load(Ordering::Relaxed) {
            // An error says that Raft has stopped, which the next turn of the loop finds.
            let _ = self.shared.raft.trigger().heartbeat().await;
        }
    }

    fn set_silenced(&self, reason: Option<&str>) {
        let was = self.shared.silenced.swap(reason.is_some(), Ordering::Relaxed);
        if was == reason.is_some() {
            return;
        }
        self.shared.raft.runtime_config().heartbeat(reason.is_none());
        match reason {
            Some(reason) => {
                self.silenced.inc();
                tracing::warn!("this node led and is silenced, so that others can elect: {reason}");
            }
            None => tracing::info!("this node is no longer silenced"),
        }
    }

    fn measure(&self) {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow();
        self.term.set(metrics.current_term);
        self.last_index.set(metrics.last_log_index.unwrap_or(0));
        self.applied_index.set(metrics.last_applied.map_or(0, |applied| applied.index));
        drop(metrics);
        self.leads.set(u64::from(self.shared.leads()));
    }
}

/// Ends Raft with the task, also when the task is dropped in the middle.
struct StopOnDrop(Option<RaftNode>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(raft) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { raft.shutdown().await });
        }
    }
}
