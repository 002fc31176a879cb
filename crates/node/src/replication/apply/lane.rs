//! The applier of one origin: gate, statements, outcomes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::schedule::Worker;
use synapsedb_pg::client::Client;
use synapsedb_pg::pgoutput::{self, Message};
use synapsedb_pg::wire::backend::ServerError;

use super::Source;
use super::ahead::Workers;
use super::calls::Calls;
use super::check::VersionCheck;
pub(super) use super::failure::{Failure, Step, Stop, is_passing};
use super::feed::Feed;
use super::gate::{bound, sql_bound, sql_time};
use super::plan::Plan;
use super::session::{Outcome, Parameter, Purpose, Session, text};
use super::write::Batch;
use crate::replication::spool::{Frame, Header};
use crate::replication::{Shared, recent};

/// Bytes of statements that may wait in memory before they are sent.
pub(super) const UNSENT_BYTES: usize = 64 << 10;

/// Plans that a lane keeps, with their prepared statements; then it begins anew.
const PLANS_MAX: usize = 1000;

/// After this many runs that failed for no expected reason, a lane does without them.
const FAILED_RUNS_MAX: u32 = 10;

/// After this many transactions in a row that met conflicts the next one is expected to meet one too.
pub(super) const CONFLICTING_MIN: u32 = 2;

/// The code with which a statement ends its transaction when it does not meet the row that it expects.
pub(super) const UNMET: &str = "SY001";

/// The statements that every lane and worker needs.
pub(super) const STATEMENTS: [(&str, &str); 11] = [
    ("begin", include_str!("../sql/begin_apply.sql")),
    ("end", include_str!("../sql/end_apply.sql")),
    ("table", include_str!("../sql/replica_table.sql")),
    ("keys", include_str!("../sql/table_keys.sql")),
    ("foreign_keys", include_str!("../sql/table_foreign_keys.sql")),
    ("ddl", include_str!("../sql/call_run_ddl.sql")),
    ("ddl_done", include_str!("../sql/ddl_done.sql")),
    ("limit", include_str!("../sql/limit_statements.sql")),
    ("scope", include_str!("../sql/table_scope.sql")),
    ("turn", include_str!("../sql/worker_turn.sql")),
    ("keeps_waiting", include_str!("../sql/keeps_waiting.sql")),
];

/// A transaction that is opened once more, for a change of it that comes out of the quarantine, or is looked at again:
/// later ones of its origin are here.
#[derive(Clone, Copy)]
pub(super) struct Late {
    /// Whose transaction it is: of the lane's origin, or of this node.
    pub(super) origin: NodeId,
    /// Whether what the change met may be forgotten.
    pub(super) forgotten: bool,
}

pub(crate) struct Lane<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) source: &'a Source,
    pub(super) session: Session,
    pub(super) feed: Feed,
    /// Which worker of the lane it is; nothing for the lane itself.
    pub(super) worker: Option<Worker>,
    pub(super) check: VersionCheck,
    pub(super) plans: Vec<Plan>,
    /// Plans by the very bytes of the relation message: another description is another plan.
    pub(super) known: BTreeMap<Bytes, usize>,
    /// The relations that the current transaction has named: by OID of the origin.
    pub(super) current: HashMap<u32, (Bytes, Option<usize>)>,
    pub(super) batch: Batch,
    /// The last transaction of the origin that was sent, or committed by a worker.
    pub(super) sent: Lsn,
    /// The last one that was sent in this session.
    pub(super) own: Lsn,
    /// The transaction that is being sent.
    pub(super) open: Option<Lsn>,
    /// Its header.
    pub(super) header: Option<Header>,
    /// Whether it comes late.
    pub(super) late: Option<Late>,
    /// Up to which commit time it has certainly seen the writers of rows, as SQL.
    pub(super) bound: Vec<u8>,
    /// The tags of its DDL statements so far.
    pub(super) ddl_tags: Vec<String>,
    /// The table whose creation was looked up ahead of its place in the transaction.
    pub(super) created_ahead: Vec<(String, String)>,
    pub(super) applied_any: bool,
    /// The first transaction of a lane goes the plain way: it may be the one that failed before.
    pub(super) begun_any: bool,
    /// Whether runs may be applied by procedures.
    pub(super) procedures: bool,
    pub(super) calls: Calls,
    /// The transactions through this one are applied by themselves: a run with one of them has failed, and it is not
    /// known which.
    pub(super) alone_through: Lsn,
    /// Runs that failed for another reason than a row that was not as expected.
    pub(super) failed_runs: u32,
    /// How many transactions in a row have met conflicts.
    pub(super) conflicting: u32,
    /// Whether a trigger may fail at a commit: then every transaction goes the slow path, which lets it fail before.
    pub(super) deferred: bool,
    /// The state of the catalogs upon which the plans were made.
    pub(super) catalog: u64,
    /// The session that takes the WAL to the disk for a missing row.
    pub(super) flusher: Option<Client>,
    pub(super) workers: Workers,
}

impl Lane<'_> {
    /// Every DDL makes new plans, and the server keeps the statements of the old ones: now and then all are dropped.
    pub(super) async fn forget_plans(&mut self) -> Step<()> {
        self.settle_all().await?;
        self.session.query("deallocate all").await?;
        self.plans.clear();
        self.known.clear();
        self.forget_procedures();
        Ok(self.prepare().await?)
    }

    /// Waits for everything that is in flight.
    pub(super) async fn settle_all(&mut self) -> Step<()> {
        while self.session.busy() {
            let outcome = self.session.outcome().await?;
            self.settle(outcome)?;
        }
        Ok(())
    }

    /// Whether this lane has applied anything since it was started.
    pub(crate) fn applied_any(&self) -> bool {
        self.applied_any
    }

    /// Applies until a transaction fails that cannot be applied in any way now.
    ///
    /// # Errors
    /// The connection is lost or the spool cannot be read.
    pub(crate) async fn follow(&mut self) -> Result<Failure> {
        loop {
            match self.step().await {
                Ok(()) => {}
                Err(Stop::Broken(error)) => return Err(error),
                Err(Stop::Failed(failure)) => match self.look_closely(*failure).await {
                    Ok(()) => {}
                    Err(Stop::Failed(failure)) => return Ok(*failure),
                    Err(Stop::Broken(error)) => return Err(error),
                },
            }
        }
    }

    /// After a failure: the transaction that failed is applied row by row. Which one of a run that is shows when they
    /// are applied one by one: then the first that was not applied is the one.
    async fn look_closely(&mut self, failure: Failure) -> Step<()> {
        if failure.run && failure.commit_lsn > self.alone_through && failure.may_be_of_others() {
            let through = self.sent;
            self.recover().await?;
            self.alone_through = through;
            return Ok(());
        }
        if failure.is_passing() || failure.unreadable {
            return Err(Stop::Failed(Box::new(failure)));
        }
        let expected = failure
            .error
            .as_ref()
            .is_some_and(|error| matches!(error.sqlstate.as_str(), UNMET | "23505"));
        if failure.run && !expected {
            self.failed_runs += 1;
            if self.failed_runs == FAILED_RUNS_MAX {
                tracing::warn!(origin = %self.source.origin,
                    "runs of transactions are applied one by one from now on: {}", failure.text());
                self.procedures = false;
            }
        }
        self.recover().await?;
        tracing::debug!(origin = %self.source.origin, lsn = %failure.commit_lsn,
            "a transaction is applied row by row: {}", failure.text());
        self.slow_transaction(None).await
    }

    /// Gives up what is in flight and goes back to the first transaction that was not applied.
    pub(super) async fn recover(&mut self) -> Step<()> {
        self.workers.clear();
        self.give_up().await?;
        let progress = self.session.query(include_str!("../sql/session_progress.sql")).await?;
        self.own = text(progress.first().context("no progress")?, 0)?.parse()?;
        self.sent = self.own.max(self.workers.committed);
        self.shared.applied.advance(self.source.origin, self.sent);
        self.feed = Feed::new(self.source.spool.reader_after(self.sent)?);
        Ok(())
    }

    /// Gives up what is in flight; the session may be used again.
    pub(super) async fn give_up(&mut self) -> Step<()> {
        let unprepared = self.session.reset().await?;
        for statement in &unprepared {
            self.plans.iter_mut().for_each(|plan| plan.forget(statement));
        }
        self.forget_calls(&unprepared);
        self.open = None;
        self.batch = Batch::new();
        self.current.clear();
        for (name, sql) in STATEMENTS {
            if unprepared.iter().any(|statement| statement == name) {
                self.session.prepare(name, sql)?;
            }
        }
        Ok(())
    }

    async fn step(&mut self) -> Step<()> {
        let frame = self.next_frame().await?;
        if self.may_be_for_workers(&frame) {
            return Box::pin(self.work_ahead(frame)).await;
        }
        self.take(frame).await
    }

    /// Applies a frame.
    pub(super) async fn take(&mut self, frame: Frame) -> Step<()> {
        self.notice_catalog().await?;
        if !self.goes_fast() && frame.is_first() && self.open.is_none() {
            // The fast way would most likely fail, and that costs more than it saves.
            self.send_run().await?;
            self.settle_all().await?;
            return self.slow_transaction(Some(frame)).await;
        }
        if self.take_into_run(&frame).await? {
            return Ok(());
        }
        self.send_run().await?;
        if let Some(header) = frame.header() {
            self.begin(&header).await?;
        }
        for message in frame.messages() {
            self.message(message).await?;
            self.session.drain_to(UNSENT_BYTES).await?;
            if self.session.failing() {
                return Err(self.failure().await);
            }
        }
        if frame.is_last() {
            self.end().await?;
        }
        Ok(())
    }

    /// Whether a table or a policy has changed since plans were made anew.
    pub(super) fn catalog_has_changed(&self) -> bool {
        self.shared.catalog.load(Ordering::Acquire) != self.catalog
    }

    /// After a change of a table or a policy, by whomever, plans are made anew.
    pub(super) fn notice_change(&mut self) {
        let catalog = self.shared.catalog.load(Ordering::Acquire);
        if std::mem::replace(&mut self.catalog, catalog) != catalog {
            self.known.clear();
        }
    }

    /// See [`Lane::notice_change`]; what was sent before is waited for.
    pub(super) async fn notice_catalog(&mut self) -> Step<()> {
        let catalog = self.shared.catalog.load(Ordering::Acquire);
        if self.open.is_none() && std::mem::replace(&mut self.catalog, catalog) != catalog {
            self.send_run().await?;
            self.settle_all().await?;
            self.known.clear();
            self.deferred = self.has_deferred_triggers().await?;
        }
        Ok(())
    }

    /// The next frame; outcomes that come in while it waits are settled.
    async fn next_frame(&mut self) -> Step<Frame> {
        loop {
            while let Some(outcome) = self.session.known_outcome() {
                self.settle(outcome)?;
            }
            if self.open.is_none()
                && let Some(retry) = self.shared.retries.take(self.source.origin)
            {
                self.send_run().await?;
                self.settle_all().await?;
                self.retry(retry).await?;
            }
            self.make_room().await?;
            if let Some(frame) = self.feed.try_next()? {
                return Ok(frame);
            }
            // Nothing more is there now: what was gathered does not wait for more.
            self.send_run().await?;
            let busy = self.session.busy();
            tokio::select! {
                biased;
                outcome = self.session.outcome(), if busy => {
                    let outcome = outcome?;
                    self.settle(outcome)?;
                }
                () = self.shared.retries.wait(self.source.origin), if self.open.is_none() => {}
                frame = self.feed.next() => return Ok(frame?),
            }
        }
    }

    /// Waits for outcomes while as much is in flight as may be.
    pub(super) async fn make_room(&mut self) -> Step<()> {
        let config = &self.shared.config;
        while self.open.is_none()
            && (self.session.in_flight() >= config.apply_window.max(1)
                || self.session.unsent_bytes() > config.apply_window_bytes)
        {
            let outcome = self.session.outcome().await?;
            self.settle(outcome)?;
        }
        Ok(())
    }

    pub(super) fn settle(&mut self, outcome: Outcome) -> Step<()> {
        match outcome.error {
            None => {
                self.applied_any = true;
                self.workers.applied(outcome.commit_lsn);
                self.shared.applied.advance(self.source.origin, outcome.commit_lsn);
                self.shared.status.applied(self.source.origin, outcome.commit_lsn);
                self.shared.metrics.applied(outcome.transactions, outcome.ineffective);
                Ok(())
            }
            Some(error) => {
                Err(self.failed(outcome.commit_lsn, error, outcome.failed_ddl, outcome.run))
            }
        }
    }

    fn failed(
        &self,
        commit_lsn: Lsn,
        error: ServerError,
        failed_ddl: Option<usize>,
        run: bool,
    ) -> Stop {
        // Only the open transaction's tags are known; an earlier one's DDL was waited for before it ended.
        let ddl = failed_ddl.and_then(|index| Some((self.ddl_tags.get(index)?.clone(), index)));
        Stop::Failed(Box::new(Failure {
            commit_lsn,
            error: Some(error),
            reason: String::new(),
            ddl,
            run,
            unreadable: false,
        }))
    }

    pub(super) fn refuse(&self, reason: String) -> Stop {
        Stop::Failed(Box::new(self.refused(reason)))
    }

    fn refused(&self, reason: String) -> Failure {
        let commit_lsn = self.open.unwrap_or(self.sent);
        Failure { commit_lsn, error: None, reason, ddl: None, run: false, unreadable: false }
    }

    /// A message that no version of the stream known here has. The lane stands still before its transaction: what
    /// it means is not known, so nothing can be done without it.
    pub(super) fn unreadable(&self, error: &anyhow::Error) -> Stop {
        let spool = self.shared.spools.path(self.source.origin, self.source.incarnation);
        let reason = format!(
            "it holds a message that cannot be read here: {error:#}. Nothing of it and of what follows is applied. \
             Update this agent if it is the older one; else stop it, move {} away and start it again: what is there is \
             fetched anew",
            spool.display()
        );
        Stop::Failed(Box::new(Failure { unreadable: true, ..self.refused(reason) }))
    }

    /// Decodes a message of the spool.
    pub(super) fn decode<'m>(&self, raw: &'m [u8]) -> Step<Message<'m>> {
        pgoutput::decode(raw).map_err(|error| self.unreadable(&error.into()))
    }

    /// Which transaction failed: the first whose outcome says so, else the open one.
    pub(super) async fn failure(&mut self) -> Stop {
        while let Some(outcome) = self.session.known_outcome() {
            if let Err(stop) = self.settle(outcome) {
                return stop;
            }
        }
        match self.session.take_open_failure() {
            Some((error, failed_ddl)) => {
                self.failed(self.open.unwrap_or(self.sent), error, failed_ddl, false)
            }
            None => Stop::Broken(anyhow!("a transaction failed without saying why")),
        }
    }

    /// Waits until the transaction may be applied, and sends its guard.
    pub(super) async fn begin(&mut self, header: &Header) -> Step<()> {
        if self.plans.len() > PLANS_MAX {
            self.forget_plans().await?;
        }
        self.gate(header).await?;
        // What it had seen may have changed a table.
        self.notice_catalog().await?;
        self.begun_any = true;
        self.open = Some(header.commit_lsn);
        self.ddl_tags.clear();
        self.created_ahead.clear();
        self.current.clear();
        let bound = {
            let mut history = self.shared.recent.lock();
            let bound = bound(&history, self.shared.identity.node, self.source.origin, header);
            // The index takes commits in their order: those of workers are noted by the lane.
            recent::note_commit(&mut history, self.source.origin, header, true);
            bound
        };
        self.bound = sql_bound(bound).into_bytes();
        self.header = Some(header.clone());
        if self.is_lane() {
            self.shared.status.sent(self.source.origin, header.commit_lsn, header.commit_time);
        }
        let previous = self.own.to_string();
        self.session.execute("begin", &[Parameter::Text(previous.as_bytes())], Purpose::Other)?;
        Ok(())
    }

    pub(super) async fn end(&mut self) -> Step<()> {
        self.flush_batch()?;
        if let (Some(commit_lsn), Some(header)) = (self.open.take(), &self.header) {
            let (lsn, time) = (commit_lsn.to_string(), sql_time(header.commit_time));
            let which = [&lsn, &time].map(|text| Parameter::Text(text.as_bytes()));
            self.session.execute("end", &which, Purpose::Other)?;
            self.session.sync(commit_lsn);
            (self.sent, self.own) = (commit_lsn, commit_lsn);
        }
        Ok(())
    }
}
