//! Makes the server ask for what the class promises, and watches who waits for other nodes, and for how long.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use synapsedb_core::lsn::Lsn;
use synapsedb_pg::client::Client;
use synapsedb_pg::quote;

use super::{Durability, HURRY_MS, lock, settings};
use crate::replication::api::DurabilityBody;
use crate::replication::{Shared, retry};
use crate::tasks::Shutdown;

/// How often it is looked who waits.
const LOOK: Duration = Duration::from_millis(200);

/// How often the settings are looked at, since somebody may change them.
const SETTINGS: Duration = Duration::from_secs(10);

/// How often the row behind `synapsedb.durability()` is written at most.
const WRITE: Duration = Duration::from_secs(1);

/// How long commits must have been without enough acknowledgements before it is looked whether anybody waits for them.
const UNWAITED_AFTER_MS: u64 = 1_000;

/// Keeps the class in force until shutdown.
///
/// # Errors
/// Never: a session that breaks is opened anew.
pub(crate) async fn run(shared: Arc<Shared>, stop: Shutdown) -> Result<()> {
    let mut backoff = retry::backoff(&shared.config);
    while !stop.is_cancelled() {
        shared.postgres.wait_ready(&stop).await;
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = Keeper::watch(&shared, &mut backoff) => ended,
        };
        let Err(error) = ended;
        tracing::debug!("the session of the durability classes is opened anew: {error:#}");
        retry::pause(&mut backoff, &stop).await;
    }
    Ok(())
}

struct Keeper<'a> {
    shared: &'a Shared,
    durability: &'a Durability,
    client: Client,
    /// Since when commits that wait have held up an applier.
    blocking_since: Option<Instant>,
    candidate: Option<Candidate>,
    written: Option<(Instant, String)>,
}

/// A position of the WAL, and the transactions that ran after it was read: when they have ended and nobody waits, then
/// nobody waits for anything before that position.
struct Candidate {
    lsn: Lsn,
    running: BTreeSet<String>,
}

impl<'a> Keeper<'a> {
    async fn watch(
        shared: &'a Shared,
        backoff: &mut synapsedb_core::backoff::Backoff,
    ) -> Result<Infallible> {
        // Before the stream is there, nobody would release the commits.
        while !shared.status.is_publishing() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let client = shared.sql("durability").await?;
        client.batch_execute(include_str!("../sql/durability_session.sql")).await?;
        backoff.succeeded();
        let durability = &shared.durability;
        let (blocking_since, candidate, written) = (None, None, None);
        let mut keeper = Self { shared, durability, client, blocking_since, candidate, written };
        let mut looked_at_settings: Option<Instant> = None;
        let mut due = tokio::time::interval(LOOK);
        loop {
            due.tick().await;
            if looked_at_settings.is_none_or(|at| at.elapsed() > SETTINGS) {
                keeper.put_in_force().await;
                looked_at_settings = Some(Instant::now());
            }
            if !keeper.look().await? {
                looked_at_settings = None;
            }
            keeper.show().await?;
        }
    }

    async fn put_in_force(&self) {
        let class = self.durability.config.class;
        let outcome = settings::put_in_force(&self.client, class).await;
        let reason = outcome.err().map(|error| format!("{error:#}"));
        let mut known = lock(&self.durability.not_in_force);
        if let Some(reason) = reason.as_ref().filter(|reason| known.as_ref() != Some(reason)) {
            let class = super::name(class);
            tracing::error!(class, "durability classes are not in force: {reason}");
        }
        *known = reason;
    }

    /// Looks who waits; answers whether the server still asks for our reports, as far as we made it.
    async fn look(&mut self) -> Result<bool> {
        let sql = include_str!("../sql/durability_waits.sql");
        let rows = self.client.query_again(sql, &[]).await?;
        let row = rows.first().context("the server does not say who waits")?;
        let (waiting, blocking): (i64, bool) = (row.get(0), row.get(1));
        let running: BTreeSet<String> = row.get::<_, Vec<String>>(2).into_iter().collect();
        let waiting = u64::try_from(waiting).unwrap_or_default();
        self.durability.waiting.store(waiting, Ordering::Relaxed);
        if waiting > 0 {
            let until = self.durability.now_ms() + HURRY_MS;
            self.durability.hurry_until_ms.store(until, Ordering::Relaxed);
        }
        self.release_applied(blocking);
        self.find_unwaited(waiting, running).await?;
        let asked = row.get::<_, String>(3) == quote::ident(settings::STANDBY);
        Ok(asked || lock(&self.durability.not_in_force).is_some())
    }

    /// A commit that waits to be applied elsewhere holds its locks here. If they keep a peer's transaction from being
    /// applied here, that peer's commit may wait for us: one of the two must give in.
    fn release_applied(&mut self, blocking: bool) {
        let view = *lock(&self.durability.view);
        if !blocking || view.apply >= view.flush {
            self.blocking_since = None;
            return;
        }
        let since = *self.blocking_since.get_or_insert_with(Instant::now);
        let limit = Duration::from_millis(self.durability.config.applied_wait_max_ms);
        if since.elapsed() < limit {
            return;
        }
        self.blocking_since = None;
        self.durability.applied_floor.fetch_max(view.flush.0, Ordering::Relaxed);
        self.durability.changed.notify_one();
        self.durability.metrics.applied_releases.inc();
        tracing::warn!(
            through = %view.flush, "commits of class applied that wait here keep another node's transaction from being \
            applied: they are released in class quorum (replication.durability.applied_wait_max_ms)"
        );
    }

    /// While too few members answer, the server would keep its WAL from the last acknowledged commit on. It need not
    /// keep what nobody waits for: that is in the spool.
    async fn find_unwaited(&mut self, waiting: u64, running: BTreeSet<String>) -> Result<()> {
        let view = *lock(&self.durability.view);
        let held = view.durable_waiting_ms.is_some_and(|ms| ms > UNWAITED_AFTER_MS);
        if !held || waiting > 0 {
            self.candidate = None;
            return Ok(());
        }
        match &self.candidate {
            Some(candidate) if candidate.running.is_disjoint(&running) => {
                self.durability.unwaited.fetch_max(candidate.lsn.0, Ordering::Relaxed);
                self.durability.changed.notify_one();
                self.candidate = None;
            }
            Some(_) => {}
            None => {
                // The position first: whoever committed before it is among those who run afterwards, or has ended.
                let position = "select pg_catalog.pg_current_wal_flush_lsn()::text";
                let lsn: String = self.client.query_one(position, &[]).await?.get(0);
                let row =
                    self.client.query_one(include_str!("../sql/durability_waits.sql"), &[]).await?;
                let running = row.get::<_, Vec<String>>(2).into_iter().collect();
                self.candidate = Some(Candidate { lsn: lsn.parse()?, running });
            }
        }
        Ok(())
    }

    /// Shows the state in the metrics and to `synapsedb.durability()`.
    async fn show(&mut self) -> Result<()> {
        let status = self.durability.status(self.shared);
        self.durability.metrics.show(&status);
        let row = shown(&status);
        if let Some((at, last)) = &self.written
            && (*last == row || at.elapsed() < WRITE)
        {
            return Ok(());
        }
        let members = serde_json::to_string(&status.members)?;
        let since_ms = status.since_ms.map(|ms| ms as f64);
        let needed = i32::try_from(status.members_needed).unwrap_or(i32::MAX);
        let waiting = i32::try_from(status.waiting_sessions).unwrap_or(i32::MAX);
        self.client
            .execute(
                include_str!("../sql/put_durability.sql"),
                &[&status.class, &status.state, &since_ms, &needed, &waiting, &members],
            )
            .await?;
        self.written = Some((Instant::now(), row));
        Ok(())
    }
}

/// What must have changed for the row to be written again.
fn shown(status: &DurabilityBody) -> String {
    let DurabilityBody { class, state, members_needed, waiting_sessions, members, .. } = status;
    format!("{class} {state} {members_needed} {waiting_sessions} {members:?}")
}
