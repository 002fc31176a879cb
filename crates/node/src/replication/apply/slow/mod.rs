//! The slow path: one transaction, row by row. Each row is read and locked, and what becomes of it is decided from its
//! writers; what cannot be written at all goes to the quarantine.
//!
//! The transaction is still one local transaction with its origin's position and time, so it counts as applied exactly
//! once, like every other.

mod epochs;
mod grouped;
mod keyless;
mod left_out;
mod local;
mod log;
mod policy;
mod quarantine;
mod retry;
mod rewritten;
mod row;
mod ruled;
mod statement;
mod truncate;
mod unique;

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use synapsedb_core::change::Change;
use synapsedb_core::history::Writer;
use synapsedb_core::lsn::Lsn;
use synapsedb_pg::pgoutput::Message;
use synapsedb_pg::wire::backend::ServerError;

use super::gate::sql_time;
use super::lane::{Failure, Lane, Step, Stop, UNMET, is_passing};
use super::plan::Plan;
use super::session::{Answer, Parameter};
use crate::replication::ddl::{self, Ddl, PREFIX as DDL_PREFIX};
use crate::replication::policies;
use crate::replication::recent::{self, Side, relation_id};
use crate::replication::spool::{Frame, Header};

/// Why a change could not be applied.
pub(super) enum Trouble {
    /// The server refuses it, or it does not fit the local table: it goes to the quarantine.
    Row {
        /// What is wrong.
        reason: String,
        /// The server's code, if it was the server.
        sqlstate: Option<String>,
    },
    /// The transaction as a whole cannot go on now.
    Stop(Stop),
}

impl Trouble {
    pub(super) fn row(reason: impl Into<String>) -> Self {
        Self::Row { reason: reason.into(), sqlstate: None }
    }

    /// The local row is not as it was when the change was decided upon: its transaction begins anew.
    fn unmet(reason: impl Into<String>) -> Self {
        Self::Row { reason: reason.into(), sqlstate: Some(UNMET.to_owned()) }
    }
}

impl From<Stop> for Trouble {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Failed(failure) if !failure.is_passing() && !failure.unreadable => Self::Row {
                reason: failure.text(),
                sqlstate: failure.error.map(|error| error.sqlstate),
            },
            Stop::Failed(_) | Stop::Broken(_) => Self::Stop(stop),
        }
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Stop(Stop::Broken(error))
    }
}

/// The code of a statement that took too long, or that somebody has canceled.
const CANCELED: &str = "57014";

pub(super) type Settled<T> = Result<T, Trouble>;

/// When constraints that can be deferred are checked.
#[derive(Clone, Copy)]
enum Constraints {
    /// At the commit, as they may have been at the origin.
    Deferred,
    /// At every statement, so that the row that violates one is known.
    Immediate,
}

/// What is known of the tables.
#[derive(Clone, Copy)]
enum Plans {
    /// The plans of the transactions before.
    Known,
    /// Plans that were made for this transaction.
    New,
}

/// What became of an attempt to apply a transaction.
enum Attempt {
    Applied,
    /// A change could not be applied, perhaps for a plan that is out of date.
    Doubtful,
    /// The server refused the commit.
    Refused(Box<ServerError>),
}

impl Lane<'_> {
    /// Applies the first transaction that was not applied. Its first frame may have been read.
    pub(super) async fn slow_transaction(&mut self, mut first: Option<Frame>) -> Step<()> {
        self.shared.metrics.slow_transactions.inc();
        let (mut plans, mut constraints) = (Plans::Known, Constraints::Deferred);
        loop {
            let frame = match first.take() {
                Some(frame) => frame,
                None => self.feed.next().await?,
            };
            let header = frame.header().context("the spool goes on in the middle of something")?;
            self.gate(&header).await?;
            // What it had seen may have changed a table.
            self.notice_change();
            let conflicting = std::mem::take(&mut self.conflicting);
            match self.attempt(frame, &header, plans, constraints).await? {
                Attempt::Applied => {
                    if self.conflicting > 0 {
                        self.conflicting = conflicting.saturating_add(1);
                    }
                    self.slowly_applied(header.commit_lsn);
                    return Ok(());
                }
                Attempt::Doubtful => {
                    self.session.reset().await?;
                    self.must("rollback", &[]).await?;
                    self.recover().await?;
                    self.known.clear();
                    plans = Plans::New;
                }
                Attempt::Refused(error) => {
                    let failure = self.failure_of(*error);
                    self.session.reset().await?;
                    self.must("rollback", &[]).await?;
                    self.recover().await?;
                    if matches!(constraints, Constraints::Immediate) {
                        return Err(Stop::Failed(Box::new(failure)));
                    }
                    constraints = Constraints::Immediate;
                }
            }
        }
    }

    fn slowly_applied(&mut self, commit_lsn: Lsn) {
        (self.sent, self.own) = (commit_lsn, commit_lsn);
        self.workers.applied(commit_lsn);
        self.open = None;
        self.applied_any = true;
        self.begun_any = true;
        self.shared.applied.advance(self.source.origin, commit_lsn);
        self.shared.status.applied(self.source.origin, commit_lsn);
        self.shared.metrics.applied(1, 0);
    }

    async fn attempt(
        &mut self,
        first: Frame,
        header: &Header,
        plans: Plans,
        constraints: Constraints,
    ) -> Step<Attempt> {
        self.open_slowly(header, constraints).await?;
        let (mut frame, mut position) = (first, 0);
        loop {
            for raw in frame.messages() {
                if raw.first() == Some(&b'R') {
                    let plan = self.known.get(&raw).copied();
                    self.current.insert(relation_id(&raw), (raw, plan));
                    continue;
                }
                if !self.guarded(&raw, position, plans).await? {
                    return Ok(Attempt::Doubtful);
                }
                position += 1;
            }
            if frame.is_last() {
                break;
            }
            frame = self.feed.next().await?;
        }
        let mut written = self.current.values().filter_map(|(_, plan)| *plan);
        let changes_policy = written.any(|plan| self.plans[plan].is_policy);
        Ok(match self.close_slowly(header, header.commit_lsn).await? {
            Ok(_) => {
                if changes_policy {
                    // Before anybody applies what had seen it.
                    self.shared.catalog_changed();
                }
                Attempt::Applied
            }
            Err(error) => Attempt::Refused(Box::new(error)),
        })
    }

    /// Commits the transaction of `header`, after which the origin is applied up to `position`. What could fail at the
    /// commit fails before it is said which transaction this is.
    async fn close_slowly(
        &mut self,
        header: &Header,
        position: Lsn,
    ) -> Step<Result<Answer, ServerError>> {
        self.session.queue("set constraints all immediate", &[])?;
        let (lsn, time) = (position.to_string(), sql_time(header.commit_time));
        let which = [&lsn, &time].map(|text| Parameter::Text(text.as_bytes()));
        self.session.queue(include_str!("../../sql/end_apply.sql"), &which)?;
        Ok(self.session.run("commit", &[]).await?)
    }

    /// Opens the transaction of `header`.
    async fn open_slowly(&mut self, header: &Header, constraints: Constraints) -> Step<()> {
        let timing = match constraints {
            Constraints::Deferred => "set constraints all deferred",
            Constraints::Immediate => "set constraints all immediate",
        };
        if self.late.is_none() {
            recent::note_commit(&mut self.shared.recent.lock(), self.source.origin, header, true);
            self.shared.status.sent(self.source.origin, header.commit_lsn, header.commit_time);
        }
        self.open = Some(header.commit_lsn);
        self.header = Some(header.clone());
        self.ddl_tags.clear();
        self.created_ahead.clear();
        self.current.clear();
        for sql in ["begin", timing] {
            self.session.queue(sql, &[])?;
        }
        let previous = self.own.to_string();
        let guard = [Parameter::Text(previous.as_bytes())];
        self.must(include_str!("../../sql/begin_apply.sql"), &guard).await?;
        Ok(())
    }

    /// A statement that must succeed, or the transaction fails.
    async fn must(&mut self, sql: &str, parameters: &[Parameter<'_>]) -> Step<Answer> {
        let answer = self.session.run(sql, parameters).await?;
        answer.map_err(|error| Stop::Failed(Box::new(self.failure_of(error))))
    }

    pub(super) fn failure_of(&self, error: ServerError) -> Failure {
        Failure {
            commit_lsn: self.open.unwrap_or(self.sent),
            error: Some(error),
            reason: String::new(),
            ddl: None,
            run: false,
            unreadable: false,
        }
    }

    /// A statement of a change.
    pub(super) async fn ask(&mut self, sql: &str, parameters: &[Parameter<'_>]) -> Settled<Answer> {
        let begun = Instant::now();
        let limit = Duration::from_millis(self.shared.config.row_timeout_ms);
        match self.session.run(sql, parameters).await? {
            Ok(answer) => Ok(answer),
            // Somebody else than its limit has canceled it: that says nothing about the row.
            Err(error) if error.sqlstate == CANCELED && begun.elapsed() < limit => {
                Err(Trouble::Stop(Stop::Failed(Box::new(self.failure_of(error)))))
            }
            Err(error) if is_passing(&error.sqlstate) || error.is_fatal() => {
                Err(Trouble::Stop(Stop::Failed(Box::new(self.failure_of(error)))))
            }
            Err(error) => {
                let sqlstate = Some(error.sqlstate.clone());
                Err(Trouble::Row { reason: error.to_string(), sqlstate })
            }
        }
    }

    /// A question whose parameters are schema and name of a plan's table.
    async fn ask_of_table(&mut self, plan: usize, sql: &str) -> Settled<Answer> {
        let Plan { schema, name, .. } = &self.plans[plan];
        let table = [schema.clone().into_bytes(), name.clone().into_bytes()];
        self.ask(sql, &table.each_ref().map(|name| Parameter::Text(name))).await
    }

    /// A change within a savepoint: if it cannot be applied, it goes to the quarantine and the transaction goes on,
    /// unless that may be for a plan which a change of the table has made wrong: then the answer is false.
    async fn guarded(&mut self, raw: &Bytes, position: u32, plans: Plans) -> Step<bool> {
        self.session.queue("savepoint change", &[])?;
        let changed = self.change(raw).await;
        match changed {
            Ok(()) => {}
            Err(Trouble::Stop(stop)) => return Err(stop),
            Err(Trouble::Row { sqlstate, .. })
                if matches!(plans, Plans::Known) || sqlstate.as_deref() == Some(UNMET) =>
            {
                return Ok(false);
            }
            Err(Trouble::Row { reason, sqlstate }) => {
                self.put_aside(raw, position, &reason, sqlstate.as_deref()).await?;
            }
        }
        self.session.queue("release savepoint change", &[])?;
        Ok(true)
    }

    /// Takes back to its savepoint what a change did before it failed, and puts it into the quarantine.
    async fn put_aside(
        &mut self,
        raw: &Bytes,
        position: u32,
        reason: &str,
        sqlstate: Option<&str>,
    ) -> Step<()> {
        let unprepared = self.session.reset().await?;
        for statement in &unprepared {
            self.plans.iter_mut().for_each(|plan| plan.forget(statement));
        }
        self.must("rollback to savepoint change", &[]).await?;
        self.quarantine(raw, position, reason, sqlstate).await
    }

    async fn change(&mut self, raw: &Bytes) -> Settled<()> {
        let message = self.decode(raw)?;
        match message {
            Message::Change(Change::Truncate { relations, restart_identity, .. }) => {
                self.slow_truncate(&relations, restart_identity).await
            }
            Message::Change(change) => {
                let plan = self.plan(change.relation()).await?;
                self.note_policy(&change)?;
                self.note_slowly(plan, &change);
                self.slow_row(plan, &change).await
            }
            Message::LogicalMessage { prefix: DDL_PREFIX, content, .. } => {
                let ddl = Ddl::parse(content).map_err(|error| self.unreadable(&error))?;
                self.slow_ddl(&ddl).await
            }
            Message::LogicalMessage { .. }
            | Message::Begin { .. }
            | Message::Commit { .. }
            | Message::Origin { .. }
            | Message::Relation(_)
            | Message::Type { .. } => Ok(()),
        }
    }

    /// Notes a change of a table's policy.
    fn note_policy(&self, change: &Change<'_>) -> Settled<()> {
        let Some((raw, Some(plan))) = self.current.get(&change.relation()) else { return Ok(()) };
        if self.plans[*plan].is_policy
            && let Message::Relation(relation) = self.decode(raw)?
        {
            policies::note(self.shared, &relation, change, self.incoming()?);
        }
        Ok(())
    }

    fn note_slowly(&self, plan: usize, change: &Change<'_>) {
        let Plan { keys, foreign, .. } = &self.plans[plan];
        let Some(header) = &self.header else { return };
        let version = recent::version(self.writer(), header);
        let writer = Writer { version, vector: &header.vector };
        let mut history = self.shared.recent.lock();
        if let Some(keys) = keys {
            recent::note(&mut history, keys, change, &writer, Side::Remote);
        }
        let mut orphans = Vec::new();
        foreign.note(&mut history, change, &writer, &mut orphans);
        drop(history);
        self.shared.look_for_orphans(orphans);
    }

    /// A statement whose effect is already here was run on two nodes by hand, and is done.
    async fn slow_ddl(&mut self, ddl: &Ddl) -> Settled<()> {
        match self.ddl(ddl).await {
            Err(Stop::Failed(failure)) if !failure.is_passing() => {
                let there = failure.error.as_ref().is_some_and(|error| {
                    failure.ddl.is_some() && ddl::already_there(&ddl.tag, &error.sqlstate)
                });
                if !there {
                    return Err(Stop::Failed(failure).into());
                }
                tracing::warn!(origin = %self.source.origin, lsn = %failure.commit_lsn,
                    "{} was run here too, its effect is already there: {}", ddl.tag, failure.text());
                self.session.reset().await?;
                self.ask("rollback to savepoint change", &[]).await?;
                Ok(())
            }
            other => other.map_err(Trouble::from),
        }
    }
}

/// A column of a row of the server that cannot be missing.
pub(super) fn column(row: &[Option<Bytes>], column: usize) -> Settled<&str> {
    super::session::text(row, column)
        .map_err(|error| Trouble::Stop(Stop::Broken(anyhow!("{error:#}"))))
}
