//! How a lane and its workers begin: a session each, which holds a replication origin.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::schedule::Worker;
use synapsedb_pg::conn::Connection;
use synapsedb_pg::quote;

use super::Source;
use super::ahead::Workers;
use super::calls::Calls;
use super::check::VersionCheck;
use super::feed::Feed;
use super::inherited::Inherited;
use super::lane::{Lane, STATEMENTS};
use super::session::{Session, text};
use super::write::Batch;
use crate::replication::{Shared, origin, origin_name, parse_origin_name, worker_origin_name};

/// How often an origin is asked for while a session from before still has it.
const TRIES_MAX: u32 = 50;

/// Whose the rows are that have no origin.
async fn inherited(session: &mut Session) -> Result<Inherited> {
    let rows = session.query(include_str!("../sql/inherited.sql")).await?;
    let boundary = |row: &Vec<_>| Ok((text(row, 0)?.parse()?, text(row, 1)?.parse()?));
    Ok(Inherited::new(rows.iter().map(boundary).collect::<Result<_>>()?))
}

impl<'a> Lane<'a> {
    /// Connects, takes the origin's session and finds out where to begin.
    pub(crate) async fn start(shared: &'a Arc<Shared>, source: &'a Source) -> Result<Self> {
        let name = origin_name(source.origin, source.incarnation);
        let lock_timeout_ms = shared.config.lock_timeout_ms;
        let title = format!("synapsedb apply {}", source.origin);
        let mut session = connect(shared, &title, &name, lock_timeout_ms).await?;
        // What workers of the lane before were about to commit is decided before it is asked for.
        let client = shared.sql("apply, workers").await?;
        origin::await_workers(&client, &name, TRIES_MAX).await?;
        let row = client.query_one(include_str!("../sql/life_progress.sql"), &[&name]).await?;
        let sent: Lsn = row.get::<_, String>(0).parse()?;
        let progress = session.query(include_str!("../sql/session_progress.sql")).await?;
        let own: Lsn = text(progress.first().context("no progress")?, 0)?.parse()?;
        shared.applied.advance(source.origin, sent);
        shared.status.lane_starts(source.origin);
        let feed = Feed::new(source.spool.reader_after(sent)?);
        let mut lane = Self::new(shared, source, session, feed, None).await?;
        (lane.sent, lane.own, lane.workers.committed) = (sent, own, sent);
        lane.start_workers();
        Ok(lane)
    }

    /// Connects a worker, which is given its transactions.
    pub(super) async fn for_worker(
        shared: &'a Arc<Shared>,
        source: &'a Source,
        worker: Worker,
    ) -> Result<Self> {
        let name = worker_origin_name(source.origin, source.incarnation, worker.0);
        let title = format!("synapsedb apply {} worker {}", source.origin, worker.0 + 1);
        let lock_timeout_ms = shared.config.apply_worker_lock_timeout_ms;
        let mut session = connect(shared, &title, &name, lock_timeout_ms).await?;
        let progress = session.query(include_str!("../sql/session_progress.sql")).await?;
        let own: Lsn = text(progress.first().context("no progress")?, 0)?.parse()?;
        let nothing = Feed::nothing();
        let mut lane = Self::new(shared, source, session, nothing, Some(worker)).await?;
        (lane.sent, lane.own) = (own, own);
        Ok(lane)
    }

    async fn new(
        shared: &'a Arc<Shared>,
        source: &'a Source,
        mut session: Session,
        feed: Feed,
        worker: Option<Worker>,
    ) -> Result<Self> {
        let origins = session.query(include_str!("../sql/origins.sql")).await?;
        let mut check =
            VersionCheck::new(source.origin, shared.identity.node, inherited(&mut session).await?);
        for row in &origins {
            if let Some((node, _)) = parse_origin_name(text(row, 1)?) {
                check.origins.push((text(row, 0)?.parse()?, node));
            }
        }
        let mut lane = Self {
            shared,
            source,
            session,
            feed,
            worker,
            check,
            plans: Vec::new(),
            known: BTreeMap::new(),
            current: HashMap::new(),
            batch: Batch::new(),
            sent: Lsn::ZERO,
            own: Lsn::ZERO,
            open: None,
            header: None,
            late: None,
            bound: Vec::new(),
            ddl_tags: Vec::new(),
            created_ahead: Vec::new(),
            applied_any: false,
            begun_any: false,
            procedures: true,
            calls: Calls::default(),
            alone_through: Lsn::ZERO,
            failed_runs: 0,
            conflicting: 0,
            deferred: false,
            catalog: 0,
            flusher: None,
            workers: Workers::none(),
        };
        lane.prepare().await?;
        Ok(lane)
    }

    /// The statements that every lane needs.
    pub(super) async fn prepare(&mut self) -> Result<()> {
        if self.is_lane() {
            let mine = format!("apply_{}_", self.source.origin);
            let drop_procedures = include_str!("../sql/drop_procedures.sql");
            self.session.query(&drop_procedures.replace("$1", &quote::literal(&mine))).await?;
        }
        self.deferred = self.has_deferred_triggers().await?;
        STATEMENTS.iter().try_for_each(|(name, sql)| self.session.prepare(name, sql))
    }

    pub(super) async fn has_deferred_triggers(&mut self) -> Result<bool> {
        let rows = self.session.query(include_str!("../sql/deferred.sql")).await?;
        Ok(text(rows.first().context("no answer")?, 0)? == "true")
    }

    /// Whether it is not a worker.
    pub(super) fn is_lane(&self) -> bool {
        self.worker.is_none()
    }
}

async fn connect(
    shared: &Shared,
    title: &str,
    origin: &str,
    lock_timeout_ms: u64,
) -> Result<Session> {
    let config = shared.postgres.local().named(title.to_owned());
    let mut session = Session::new(Connection::connect(&config, false).await?);
    let setup = include_str!("../sql/apply_session.sql")
        .replace("$lock_timeout", &lock_timeout_ms.to_string())
        .replace("$row_timeout", &shared.config.row_timeout_ms.to_string());
    session.query(&setup).await.context("set up the apply session")?;
    take_origin(&mut session, origin).await?;
    Ok(session)
}

/// Only one session may hold an origin: the one before may take a moment to end.
async fn take_origin(session: &mut Session, name: &str) -> Result<()> {
    let sql =
        format!("select pg_catalog.pg_replication_origin_session_setup({})", quote::literal(name));
    let mut tries = 0;
    loop {
        match session.query(&sql).await {
            Ok(_) => return Ok(()),
            Err(error) if tries >= TRIES_MAX => {
                return Err(error).with_context(|| format!("take replication origin {name}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        tries += 1;
    }
}
