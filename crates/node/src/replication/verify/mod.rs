//! Compares the rows of all nodes, and sets those that differ as they are on one of them.
//!
//! The node that is asked coordinates ([`job`], [`table`]): it cuts a table into ranges of its primary key, has every
//! node compute count and hash of a range ([`local`]), and cuts ranges that differ until they can be listed. A row that
//! differs is looked at again after every node has applied what the others had committed; only if nothing changes any
//! more it differs (`core::verify`). Repairs ([`repair`]) keep the writers' commit times and are not replicated.

pub mod api;
mod call;
mod job;
mod local;
mod repair;
mod statements;
mod table;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use crate::tasks::Shutdown;
use api::{JobBody, JobState};

/// The limits of a comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Rows of a range whose hash is compared at once.
    pub rows_per_range: u64,
    /// A range that differs is cut until it has no more rows than this; they are compared one by one.
    pub rows_listed_max: u64,
    /// Rows that differ and are looked at again together.
    pub suspects_max: usize,
    /// Differing rows of a table that are named; the others are counted.
    pub differences_max: usize,
    /// The rest after every range.
    pub pause_ms: u64,
    /// How long one statement of a comparison may take on a node.
    pub statement_timeout_ms: u64,
    /// How long a node may take to apply what the others had committed, or to come nearer to it.
    pub barrier_timeout_ms: u64,
    /// How many looks after the first must show the very same before a row differs.
    pub confirmations: usize,
    /// After how many looks a row that keeps changing is left alone.
    pub looks_max: usize,
    /// Comparisons whose results are kept.
    pub jobs_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rows_per_range: 10_000,
            rows_listed_max: 100,
            suspects_max: 1000,
            differences_max: 1000,
            pause_ms: 5,
            statement_timeout_ms: 60_000,
            barrier_timeout_ms: 10_000,
            confirmations: 2,
            looks_max: 10,
            jobs_max: 16,
        }
    }
}

/// What comparisons count, on the node that coordinates or, for repairs, on the node that was repaired.
#[derive(Default)]
struct Metrics {
    jobs: Counter,
    failures: Counter,
    rows: Counter,
    ranges: Counter,
    differences: Counter,
    repaired_rows: Counter,
}

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(
                format!("synapsedb_replication_verify_{name}"),
                help,
                counter.clone(),
            );
        };
        add("jobs", "Comparisons of the nodes coordinated here", &metrics.jobs);
        add("failures", "Comparisons that could not be finished", &metrics.failures);
        add("rows", "Rows compared", &metrics.rows);
        add("ranges", "Ranges of rows whose hashes were compared", &metrics.ranges);
        add("differences", "Rows found to differ between nodes", &metrics.differences);
        add(
            "repaired_rows",
            "Rows of this node set as they are on another",
            &metrics.repaired_rows,
        );
        metrics
    }
}

/// A comparison: what was asked, how far it is, what was found.
pub(crate) struct Job {
    id: Uuid,
    body: Mutex<JobBody>,
    cancelled: CancellationToken,
}

impl Job {
    fn update(&self, change: impl FnOnce(&mut JobBody)) {
        change(&mut self.body.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn body(&self) -> JobBody {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How many comparisons are remembered to be over.
const ENDED_MAX: usize = 64;

/// The comparisons of this node.
pub(crate) struct Board {
    /// The newest last.
    jobs: Mutex<VecDeque<Arc<Job>>>,
    asked: Notify,
    /// What a comparison has open on this node's server.
    session: tokio::sync::Mutex<Option<local::Session>>,
    /// The comparisons that ended last: what they had asked may still arrive.
    ended: Mutex<VecDeque<Uuid>>,
    metrics: Metrics,
}

impl Board {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        Self {
            jobs: Mutex::default(),
            asked: Notify::new(),
            session: tokio::sync::Mutex::default(),
            ended: Mutex::default(),
            metrics: Metrics::register(registry),
        }
    }

    /// A comparison, of whatever coordinator, is over.
    fn note_end(&self, job: Uuid) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() >= ENDED_MAX {
            ended.pop_front();
        }
        ended.push_back(job);
    }

    fn has_ended(&self, job: Uuid) -> bool {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).contains(&job)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a comparison in line, unless one is not over yet: that one is the error.
    fn start(&self, body: JobBody, id: Uuid, jobs_max: usize) -> Result<Arc<Job>, Uuid> {
        let mut jobs = self.lock();
        if let Some(other) = jobs.iter().find(|job| !job.body().state.is_over()) {
            return Err(other.id);
        }
        while jobs.len() >= jobs_max.max(1) {
            jobs.pop_front();
        }
        let job = Arc::new(Job { id, body: Mutex::new(body), cancelled: CancellationToken::new() });
        jobs.push_back(job.clone());
        self.asked.notify_one();
        Ok(job)
    }

    fn find(&self, id: Uuid) -> Option<Arc<Job>> {
        self.lock().iter().find(|job| job.id == id).cloned()
    }

    async fn next(&self) -> Arc<Job> {
        loop {
            let waiting =
                self.lock().iter().find(|job| job.body().state == JobState::Waiting).cloned();
            match waiting {
                Some(job) => return job,
                None => self.asked.notified().await,
            }
        }
    }
}

/// Runs the comparisons that this node is asked for, one at a time, until shutdown.
pub(crate) async fn run(shared: Arc<Shared>, stop: Shutdown) -> Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = async {
                let job = shared.verify.next().await;
                job::run(&shared, &job).await;
            } => {}
        }
    }
}

/// Answers the coordinators of other nodes.
pub(crate) fn serve(shared: &Arc<Shared>) {
    let serving = shared.clone();
    shared.peers.serve(call::SERVICE, move |from, body: Bytes| {
        let shared = serving.clone();
        Box::pin(async move {
            let call = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
            local::answer(&shared, from, call).await
        })
    });
}
