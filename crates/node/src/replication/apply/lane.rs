//! The applier of one origin: gate, statements, outcomes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use synapsedb_core::change::{Change, Relation, Tuple};
use synapsedb_core::delivery::{self, Delivery, TransactionPoint};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::time::Timestamp;
use synapsedb_pg::conn::Connection;
use synapsedb_pg::pgoutput::{self, Message};
use synapsedb_pg::quote;
use synapsedb_pg::wire::backend::ServerError;

use super::plan::{LocalColumn, Plan, Shape, VersionCheck};
use super::session::{Outcome, Parameter, Purpose, Session, text};
use super::{Skipped, Source};
use crate::replication::ddl::{Ddl, PREFIX as DDL_PREFIX};
use crate::replication::spool::{Frame, Header, Reader};
use crate::replication::{Shared, origin_name, parse_origin_name};

/// Bytes of statements that may wait in memory before they are sent.
const UNSENT_BYTES: usize = 64 << 10;

/// Rows from which on a run of inserts goes as arrays: below, the single statements cost less.
const BATCH_ROWS_MIN: usize = 4;

/// Bytes of rows that one batch holds at most.
const BATCH_BYTES: usize = 1 << 20;

/// How often a lane that waits for a wrong clock looks again.
const CLOCK_RECHECK: Duration = Duration::from_millis(100);

/// Why a lane stopped: the transaction that could not be applied. Nothing of it, and nothing after it, was.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) commit_lsn: Lsn,
    /// What the server said.
    pub(crate) error: Option<ServerError>,
    /// What we said, if it was not the server.
    pub(crate) reason: String,
    /// Tag and place in its transaction, if a DDL statement failed.
    pub(crate) ddl: Option<(String, usize)>,
}

impl Failure {
    /// One line for the status and the log.
    pub(crate) fn text(&self) -> String {
        let statement = self.ddl.as_ref().map_or(String::new(), |(tag, _)| format!("{tag}: "));
        match &self.error {
            Some(error) => format!("{statement}{error}"),
            None => format!("{statement}{}", self.reason),
        }
    }
}

/// How a step of a lane ends: it goes on, a transaction failed, or the connection or the spool did.
enum Stop {
    Failed(Box<Failure>),
    Broken(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

type Step<T> = Result<T, Stop>;

/// A run of inserts into one table.
#[derive(Default)]
struct Batch {
    plan: usize,
    rows: Vec<Bytes>,
    bytes: usize,
}

pub(crate) struct Lane<'a> {
    shared: &'a Arc<Shared>,
    source: &'a Source,
    skipped: &'a Skipped,
    session: Session,
    reader: Reader,
    check: VersionCheck,
    plans: Vec<Plan>,
    /// Plans by the very bytes of the relation message: another description is another plan.
    known: HashMap<Bytes, usize>,
    /// The relations that the current transaction has named: by OID of the origin.
    current: HashMap<u32, (Bytes, Option<usize>)>,
    batch: Batch,
    /// The last transaction that was sent.
    sent: Lsn,
    /// The transaction that is being sent.
    open: Option<Lsn>,
    /// Its commit time as SQL.
    time: Vec<u8>,
    /// The tags of its DDL statements so far.
    ddl_tags: Vec<String>,
    /// The table whose creation was looked up ahead of its place in the transaction.
    created_ahead: Vec<(String, String)>,
    applied_any: bool,
}

impl<'a> Lane<'a> {
    /// Connects, takes the origin's session and finds out where to begin.
    pub(crate) async fn start(
        shared: &'a Arc<Shared>,
        source: &'a Source,
        skipped: &'a Skipped,
    ) -> Result<Self> {
        let name = origin_name(source.origin, source.incarnation);
        let config = shared.postgres.local().named(format!("synapsedb apply {}", source.origin));
        let mut session = Session::new(Connection::connect(&config, false).await?);
        let setup = include_str!("../sql/apply_session.sql");
        session.query(setup).await.context("set up the apply session")?;
        take_origin(&mut session, &name).await?;
        let progress = session.query(include_str!("../sql/session_progress.sql")).await?;
        let sent: Lsn = text(progress.first().context("no progress")?, 0)?.parse()?;
        let origins = session.query(include_str!("../sql/origins.sql")).await?;
        let mut check =
            VersionCheck { origin: source.origin, here: shared.identity.node, origins: Vec::new() };
        for row in &origins {
            if let Some((node, _)) = parse_origin_name(text(row, 1)?) {
                check.origins.push((text(row, 0)?.parse()?, node));
            }
        }
        shared.applied.advance(source.origin, sent);
        let reader = source.spool.reader_after(sent)?;
        let mut lane = Self {
            shared,
            source,
            skipped,
            session,
            reader,
            check,
            plans: Vec::new(),
            known: HashMap::new(),
            current: HashMap::new(),
            batch: Batch::default(),
            sent,
            open: None,
            time: Vec::new(),
            ddl_tags: Vec::new(),
            created_ahead: Vec::new(),
            applied_any: false,
        };
        lane.session.prepare("begin", include_str!("../sql/begin_apply.sql"))?;
        lane.session.prepare("table", include_str!("../sql/replica_table.sql"))?;
        lane.session.prepare("ddl", include_str!("../sql/call_run_ddl.sql"))?;
        lane.session.prepare("ddl_done", include_str!("../sql/ddl_done.sql"))?;
        Ok(lane)
    }

    /// Whether this lane has applied anything since it was started.
    pub(crate) fn applied_any(&self) -> bool {
        self.applied_any
    }

    /// Applies until a transaction fails.
    ///
    /// # Errors
    /// The connection is lost or the spool cannot be read.
    pub(crate) async fn follow(&mut self) -> Result<Failure> {
        loop {
            match self.step().await {
                Ok(()) => {}
                Err(Stop::Failed(failure)) => return Ok(*failure),
                Err(Stop::Broken(error)) => return Err(error),
            }
        }
    }

    async fn step(&mut self) -> Step<()> {
        let frame = self.next_frame().await?;
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

    /// The next frame; outcomes that come in while it waits are settled.
    async fn next_frame(&mut self) -> Step<Frame> {
        loop {
            while let Some(outcome) = self.session.known_outcome() {
                self.settle(outcome)?;
            }
            let window_full = self.open.is_none()
                && (self.session.in_flight() >= self.shared.config.apply_window.max(1)
                    || self.session.unsent_bytes() > self.shared.config.apply_window_bytes);
            if window_full {
                let outcome = self.session.outcome().await?;
                self.settle(outcome)?;
                continue;
            }
            if let Some(frame) = self.reader.try_next()? {
                return Ok(frame);
            }
            let busy = self.session.busy();
            tokio::select! {
                biased;
                outcome = self.session.outcome(), if busy => {
                    let outcome = outcome?;
                    self.settle(outcome)?;
                }
                frame = self.reader.next() => return Ok(frame?),
            }
        }
    }

    fn settle(&mut self, outcome: Outcome) -> Step<()> {
        match outcome.error {
            None => {
                self.applied_any = true;
                self.shared.applied.advance(self.source.origin, outcome.commit_lsn);
                self.shared.status.applied(self.source.origin, outcome.commit_lsn);
                self.shared.metrics.applied(outcome.ineffective);
                Ok(())
            }
            Some(error) => Err(self.failed(outcome.commit_lsn, error, outcome.failed_ddl)),
        }
    }

    fn failed(&self, commit_lsn: Lsn, error: ServerError, failed_ddl: Option<usize>) -> Stop {
        // Only the open transaction's tags are known; an earlier one's DDL was waited for before it ended.
        let ddl = failed_ddl.and_then(|index| Some((self.ddl_tags.get(index)?.clone(), index)));
        Stop::Failed(Box::new(Failure {
            commit_lsn,
            error: Some(error),
            reason: String::new(),
            ddl,
        }))
    }

    fn refuse(&self, reason: String) -> Stop {
        let commit_lsn = self.open.unwrap_or(self.sent);
        Stop::Failed(Box::new(Failure { commit_lsn, error: None, reason, ddl: None }))
    }

    /// Which transaction failed: the first whose outcome says so, else the open one.
    async fn failure(&mut self) -> Stop {
        while let Some(outcome) = self.session.known_outcome() {
            if let Err(stop) = self.settle(outcome) {
                return stop;
            }
        }
        match self.session.take_open_failure() {
            Some((error, failed_ddl)) => {
                self.failed(self.open.unwrap_or(self.sent), error, failed_ddl)
            }
            None => Stop::Broken(anyhow!("a transaction failed without saying why")),
        }
    }

    /// Waits until the transaction may be applied, and sends its guard.
    async fn begin(&mut self, header: &Header) -> Step<()> {
        self.gate(header).await?;
        self.open = Some(header.commit_lsn);
        self.ddl_tags.clear();
        self.created_ahead.clear();
        self.current.clear();
        self.time = sql_time(header.commit_time).into_bytes();
        let (previous, lsn) = (self.sent.to_string(), header.commit_lsn.to_string());
        let time = self.time.clone();
        let parameters = [
            Parameter::Text(previous.as_bytes()),
            Parameter::Text(lsn.as_bytes()),
            Parameter::Text(&time),
        ];
        self.session.execute("begin", &parameters, Purpose::Other)?;
        Ok(())
    }

    async fn gate(&mut self, header: &Header) -> Step<()> {
        let mut visible = self.shared.applied.watch_visible();
        let origin = self.source.origin;
        loop {
            let point = TransactionPoint {
                origin,
                commit_lsn: header.commit_lsn,
                commit_time: header.commit_time,
                vector: &header.vector,
            };
            let here = self.shared.identity.node;
            let skew_us = i64::try_from(self.shared.config.clock_skew_max_ms).unwrap_or(i64::MAX);
            let applied = visible.borrow_and_update().clone();
            match delivery::decide(&point, here, &applied, now(), skew_us.saturating_mul(1000)) {
                Delivery::Deliver => {
                    self.shared.status.flowing(origin);
                    return Ok(());
                }
                Delivery::AlreadyApplied => {
                    return Err(anyhow!(
                        "transaction {} of node {origin} is offered again after it was applied",
                        header.commit_lsn
                    )
                    .into());
                }
                Delivery::AwaitOrigin { origin: cause, lsn } => {
                    self.shared.status.waiting_for(origin, cause, lsn);
                    self.wait(async { visible.changed().await.map_err(Into::into) }).await?;
                }
                Delivery::AwaitClock { us } => {
                    let us = u64::try_from(us).unwrap_or(0);
                    self.wait(sleep(Duration::from_micros(us))).await?;
                }
                Delivery::ClockSkew { us } => {
                    self.shared.status.clock_skew(origin, us);
                    self.shared.metrics.clock_skew_waits.inc();
                    self.wait(sleep(CLOCK_RECHECK)).await?;
                }
            }
        }
    }

    /// Waits for `event` or for an outcome, whichever comes first.
    async fn wait(&mut self, event: impl Future<Output = Result<()>>) -> Step<()> {
        let busy = self.session.busy();
        let outcome = tokio::select! {
            biased;
            outcome = self.session.outcome(), if busy => outcome?,
            woken = event => return Ok(woken?),
        };
        self.settle(outcome)
    }

    async fn message(&mut self, raw: Bytes) -> Step<()> {
        match raw.first() {
            Some(b'I') => {
                let relation = relation_id(&raw);
                let plan = self.plan(relation).await?;
                let full = self.batch.rows.len() >= self.shared.config.apply_batch_rows
                    || self.batch.bytes >= BATCH_BYTES;
                if self.batch.plan != plan || full {
                    self.flush_batch()?;
                }
                self.batch.plan = plan;
                self.batch.bytes += raw.len();
                self.batch.rows.push(raw);
                Ok(())
            }
            Some(b'R') => {
                let relation = relation_id(&raw);
                let plan = self.known.get(&raw).copied();
                self.current.insert(relation, (raw, plan));
                Ok(())
            }
            _ => {
                self.flush_batch()?;
                self.other_message(&raw).await
            }
        }
    }

    async fn other_message(&mut self, raw: &Bytes) -> Step<()> {
        match pgoutput::decode(raw).context("decode a spooled message")? {
            Message::Change(Change::Update { relation, old, new }) => {
                let plan = self.plan(relation).await?;
                self.fits(plan, &new)?;
                let time = std::mem::take(&mut self.time);
                let (shape, parameters) =
                    self.plans[plan].update_parameters(old.as_ref(), &new, &time);
                let sent = self.row(plan, &shape, &parameters);
                self.time = time;
                sent
            }
            Message::Change(Change::Delete { relation, old }) => {
                let plan = self.plan(relation).await?;
                let parameters = self.plans[plan].delete_parameters(&old);
                self.row(plan, &Shape::Delete, &parameters)
            }
            Message::Change(Change::Truncate { relations, restart_identity, .. }) => {
                self.truncate(&relations, restart_identity).await
            }
            Message::LogicalMessage { prefix, content, .. } if prefix == DDL_PREFIX => {
                let ddl = Ddl::parse(content)?;
                self.ddl(&ddl).await
            }
            // Inserts are batched; the rest is no part of a spooled transaction.
            Message::Change(Change::Insert { .. })
            | Message::LogicalMessage { .. }
            | Message::Begin { .. }
            | Message::Commit { .. }
            | Message::Origin { .. }
            | Message::Relation(_)
            | Message::Type { .. } => Ok(()),
        }
    }

    fn fits(&self, plan: usize, row: &Tuple<'_>) -> Step<()> {
        let width = self.plans[plan].width();
        if row.len() == width {
            return Ok(());
        }
        let table = self.plans[plan].table();
        Err(self.refuse(format!("a row of {table} has {} columns, not {width}", row.len())))
    }

    fn row(&mut self, plan: usize, shape: &Shape, parameters: &[Parameter<'_>]) -> Step<()> {
        let (name, sql) = self.plans[plan].statement(shape);
        if let Some(sql) = sql {
            self.session.prepare(&name, &sql)?;
        }
        self.session.execute(&name, parameters, Purpose::Row)?;
        Ok(())
    }

    fn flush_batch(&mut self) -> Step<()> {
        let batch = std::mem::take(&mut self.batch);
        let mut rows = Vec::with_capacity(batch.rows.len());
        for raw in &batch.rows {
            let Message::Change(Change::Insert { new, .. }) =
                pgoutput::decode(raw).context("decode a spooled row")?
            else {
                return Err(anyhow!("a spooled message of kind I is no insert").into());
            };
            self.fits(batch.plan, &new)?;
            rows.push(new);
        }
        let time = std::mem::take(&mut self.time);
        let sent = if rows.len() < BATCH_ROWS_MIN {
            rows.iter().try_for_each(|row| {
                let parameters = self.plans[batch.plan].insert_parameters(row, &time);
                self.row(batch.plan, &Shape::Insert, &parameters)
            })
        } else {
            self.insert_many(batch.plan, &rows, &time)
        };
        self.time = time;
        sent
    }

    fn insert_many(&mut self, plan: usize, rows: &[Tuple<'_>], time: &[u8]) -> Step<()> {
        let arrays = self.plans[plan].insert_many_parameters(rows)?;
        let mut parameters: Vec<_> = arrays.iter().map(|array| Parameter::Binary(array)).collect();
        if self.plans[plan].has_versions() {
            parameters.push(Parameter::Text(time));
        }
        let (name, sql) = self.plans[plan].statement(&Shape::InsertMany);
        if let Some(sql) = sql {
            self.session.prepare(&name, &sql)?;
        }
        self.session.execute(&name, &parameters, Purpose::Other)?;
        Ok(())
    }

    async fn truncate(&mut self, relations: &[u32], restart_identity: bool) -> Step<()> {
        let mut tables = Vec::with_capacity(relations.len());
        for relation in relations {
            // A table of the internal schema was left out by the publisher.
            if self.current.contains_key(relation) {
                let plan = self.plan(*relation).await?;
                tables.push(self.plans[plan].table().to_owned());
            }
        }
        let restart = if restart_identity { " restart identity" } else { "" };
        let sql = format!("truncate only {}{restart}", tables.join(", only "));
        self.session.prepare("", &sql)?;
        self.session.execute("", &[], Purpose::Other)?;
        Ok(())
    }

    async fn ddl(&mut self, ddl: &Ddl) -> Step<()> {
        let index = self.ddl_tags.len();
        self.ddl_tags.push(ddl.tag.clone());
        let commit_lsn = self.open.unwrap_or(self.sent);
        if self.skipped.contains(&(commit_lsn, index)) {
            return Ok(());
        }
        if ddl.creates.as_ref().is_some_and(|table| self.created_ahead.contains(table)) {
            return Ok(());
        }
        match ddl.statement() {
            Ok(Some(statement)) => self.run_ddl(ddl, &statement, index).await,
            Ok(None) => Ok(()),
            Err(error) => Err(self.refuse(format!("{}: {error:#}", ddl.tag))),
        }
    }

    async fn run_ddl(&mut self, ddl: &Ddl, statement: &str, index: usize) -> Step<()> {
        let run =
            [&ddl.role, &ddl.search_path, statement].map(|text| Parameter::Text(text.as_bytes()));
        self.session.execute("ddl", &run, Purpose::Ddl(index))?;
        // Waited for, since what follows may depend on the catalogs as they are now.
        if self.session.lookup("ddl_done", &[]).await?.is_none() {
            return Err(self.failure().await);
        }
        self.known.clear();
        self.current.values_mut().for_each(|(_, plan)| *plan = None);
        self.shared.metrics.applied_ddl.inc();
        Ok(())
    }

    /// The plan for a relation that this transaction has named, made when it is first needed.
    async fn plan(&mut self, relation: u32) -> Step<usize> {
        let Some((raw, plan)) = self.current.get(&relation) else {
            return Err(self.refuse(format!("the stream changes relation {relation} unnamed")));
        };
        if let Some(plan) = plan {
            return Ok(*plan);
        }
        let raw = raw.clone();
        let Message::Relation(described) = pgoutput::decode(&raw).context("decode a relation")?
        else {
            return Err(self.refuse("a spooled message of kind R is no relation".to_owned()));
        };
        let mut columns = self.local_columns(&described).await?;
        if columns.is_empty() && self.create_ahead(&described).await? {
            columns = self.local_columns(&described).await?;
        }
        if columns.is_empty() {
            return Err(self.refuse(format!(
                "there is no table {}.{} here: create it as at the origin, and the stream goes on",
                described.schema, described.name
            )));
        }
        let number = self.plans.len();
        let plan = Plan::new(number, &described, &columns, self.check.clone())
            .map_err(|error| self.refuse(error.to_string()))?;
        self.plans.push(plan);
        self.known.insert(raw.clone(), number);
        self.current.insert(relation, (raw, Some(number)));
        Ok(number)
    }

    async fn local_columns(&mut self, relation: &Relation) -> Step<Vec<LocalColumn>> {
        let parameters = [
            Parameter::Text(relation.schema.as_bytes()),
            Parameter::Text(relation.name.as_bytes()),
        ];
        let Some(rows) = self.session.lookup("table", &parameters).await? else {
            return Err(self.failure().await);
        };
        let columns = rows.iter().map(|row| {
            Ok(LocalColumn {
                name: text(row, 1)?.to_owned(),
                type_name: text(row, 2)?.to_owned(),
                always_identity: text(row, 3)? == "t",
                generated: text(row, 4)? == "t",
                in_primary_key: text(row, 5)? == "t",
            })
        });
        Ok(columns.collect::<Result<_>>()?)
    }

    /// `CREATE TABLE AS`: its rows come before the message that creates the table. The transaction is whole in the
    /// spool, so the message is found ahead.
    async fn create_ahead(&mut self, relation: &Relation) -> Step<bool> {
        let wanted = (relation.schema.clone(), relation.name.clone());
        let mut ahead = self.source.spool.reader_after(self.sent)?;
        while let Some(frame) = ahead.try_next()? {
            for message in frame.messages().filter(|message| message.first() == Some(&b'M')) {
                let Message::LogicalMessage { prefix: DDL_PREFIX, content, .. } =
                    pgoutput::decode(&message).context("decode a spooled message")?
                else {
                    continue;
                };
                let ddl = Ddl::parse(content)?;
                if ddl.creates.as_ref() == Some(&wanted) {
                    self.run_ddl(&ddl, &ddl.query, 0).await?;
                    self.created_ahead.push(wanted);
                    return Ok(true);
                }
            }
            if frame.is_last() {
                break;
            }
        }
        Ok(false)
    }

    async fn end(&mut self) -> Step<()> {
        self.flush_batch()?;
        if let Some(commit_lsn) = self.open.take() {
            self.session.sync(commit_lsn);
            self.sent = commit_lsn;
        }
        Ok(())
    }
}

/// Only one session may hold an origin: the one before may take a moment to end.
async fn take_origin(session: &mut Session, name: &str) -> Result<()> {
    let sql =
        format!("select pg_catalog.pg_replication_origin_session_setup({})", quote::literal(name));
    let mut tries = 0;
    loop {
        match session.query(&sql).await {
            Ok(_) => return Ok(()),
            Err(error) if tries >= 50 => {
                return Err(error).with_context(|| format!("take replication origin {name}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        tries += 1;
    }
}

async fn sleep(duration: Duration) -> Result<()> {
    tokio::time::sleep(duration).await;
    Ok(())
}

fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_us(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}

fn relation_id(raw: &[u8]) -> u32 {
    raw.get(1..5).map_or(0, |id| u32::from_be_bytes([id[0], id[1], id[2], id[3]]))
}

/// The instant as PostgreSQL reads it in any session.
fn sql_time(time: Timestamp) -> String {
    let nanos = i128::from(time.unix_us()) * 1000;
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    format!(
        "{}-{:02}-{:02} {:02}:{:02}:{:02}.{:06}+00",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.microsecond()
    )
}
