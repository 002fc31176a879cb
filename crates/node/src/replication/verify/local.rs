//! A node's part in a comparison: it answers from its own server, for one comparison at a time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use serde::Serialize;
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::verify::{Digest, RowState};
use synapsedb_core::version::VersionVector;
use synapsedb_pg::client::Client;
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::call::{Ask, Call, Described, Fetched, Key, Position, TableName};
use super::repair;
use super::statements::Statements;
use crate::replication::Shared;
use crate::replication::api::sql_words;

/// A comparison that has asked nothing for so long has ended, whatever became of its coordinator.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// A node that comes nearer to a barrier may take this many times `barrier_timeout_ms`.
pub(super) const BARRIER_LIMITS: u32 = 6;

/// What a comparison has open here.
pub(super) struct Session {
    job: Uuid,
    asked_by: NodeId,
    used: Instant,
    client: Client,
    /// Opened when something is to be repaired.
    pub(super) repair: Option<Client>,
    tables: HashMap<TableName, Statements>,
}

/// Answers one call as JSON.
pub(super) async fn answer(shared: &Shared, from: NodeId, call: Call) -> Result<Bytes, String> {
    let answered = match call.ask {
        // It needs no session and may take long.
        Ask::Await { target } => json(&behind(shared, &target).await),
        Ask::End => {
            shared.verify.note_end(call.job);
            let mut session = shared.verify.session.lock().await;
            session.take_if(|session| session.job == call.job);
            json(&())
        }
        ask => with_session(shared, from, call.job, ask).await,
    };
    answered.map_err(|error| sql_words(&error))
}

fn json(answer: &impl Serialize) -> Result<Bytes> {
    Ok(Bytes::from(serde_json::to_vec(answer)?))
}

async fn with_session(shared: &Shared, from: NodeId, job: Uuid, ask: Ask) -> Result<Bytes> {
    let mut slot = shared.verify.session.lock().await;
    if shared.verify.has_ended(job) {
        bail!("this comparison is over");
    }
    if let Some(other) = slot.as_ref().filter(|open| open.job != job)
        && other.used.elapsed() < IDLE_MAX
    {
        bail!(
            "it is taking part in another comparison, of node {}: try again later",
            other.asked_by
        );
    }
    slot.take_if(|open| open.job != job || open.client.is_closed());
    let session = match slot.as_mut() {
        Some(session) => session,
        None => slot.insert(open(shared, from, job).await?),
    };
    session.used = Instant::now();
    let answered = session.ask(shared, ask).await;
    session.used = Instant::now();
    answered
}

async fn open(shared: &Shared, asked_by: NodeId, job: Uuid) -> Result<Session> {
    let client = shared.sql("verify").await?;
    set_up(shared, &client).await?;
    let mut session = Session {
        job,
        asked_by,
        used: Instant::now(),
        client,
        repair: None,
        tables: HashMap::new(),
    };
    // A session that is opened anew in the middle of a comparison must know the tables as well.
    session.tables(None).await?;
    Ok(session)
}

/// The settings under which every node writes a value as the same text.
pub(super) async fn set_up(shared: &Shared, client: &Client) -> Result<()> {
    client.batch_execute(include_str!("../sql/verify_session.sql")).await?;
    let limit = format!("set statement_timeout = {}", shared.config.verify.statement_timeout_ms);
    Ok(client.batch_execute(&limit).await?)
}

impl Session {
    async fn ask(&mut self, shared: &Shared, ask: Ask) -> Result<Bytes> {
        match ask {
            Ask::Tables { wanted } => json(&self.tables(wanted).await?),
            Ask::Digest { table, range } => {
                let sql = self.statements(&table)?.digest(&range);
                let row = self.client.query_one(&sql, &[]).await?;
                let rows = u64::try_from(row.get::<_, i64>(0))?;
                json(&Digest { rows, sum: row.get(1) })
            }
            Ask::NextBound { table, range, rows } => {
                let sql = self.statements(&table)?.next_bound(&range);
                let skipped = i64::try_from(rows.saturating_sub(1))?;
                let row = self.client.query_opt(&sql, &[&skipped]).await?;
                json(&row.map(|row| row.get::<_, Key>(0)))
            }
            Ask::Bounds { table, range, rows } => {
                let sql = self.statements(&table)?.bounds(&range);
                let rows = self.client.query(&sql, &[&i64::try_from(rows.max(1))?]).await?;
                json(&rows.iter().map(|row| row.get::<_, Key>(0)).collect::<Vec<_>>())
            }
            Ask::Rows { table, range, limit } => {
                let sql = self.statements(&table)?.rows(&range);
                let rows = self.client.query(&sql, &[&i64::try_from(limit)?]).await?;
                json(&rows.iter().map(|row| (row.get(0), state(row, 1))).collect::<Vec<(Key, _)>>())
            }
            Ask::Look { table, keys } => {
                let sql = self.statements(&table)?.look();
                let rows = self.by_keys(&table, &sql, &keys).await?;
                json(&rows.iter().map(|row| state(row, 0)).collect::<Vec<_>>())
            }
            Ask::Fetch { table, keys } => {
                let sql = self.statements(&table)?.fetch();
                let rows = self.by_keys(&table, &sql, &keys).await?;
                json(&rows.iter().map(fetched).collect::<Vec<_>>())
            }
            Ask::Position => json(&position(shared, &self.client).await?),
            Ask::Set { table, from, rows } => {
                let statements = self.tables.get(&table).context("the table is not known")?;
                json(&repair::set(shared, &mut self.repair, statements, &table, from, rows).await?)
            }
            Ask::Await { .. } | Ask::End => Err(anyhow!("this needs no session")),
        }
    }

    fn statements(&self, table: &TableName) -> Result<&Statements> {
        self.tables.get(table).with_context(|| {
            format!("table {}.{} was not here when the comparison began", table.schema, table.name)
        })
    }

    async fn tables(&mut self, wanted: Option<String>) -> Result<Vec<Described>> {
        let rows = self.client.query(include_str!("../sql/verify_tables.sql"), &[&wanted]).await?;
        let mut tables = Vec::new();
        for row in rows {
            let described = Described {
                table: TableName { schema: row.get(0), name: row.get(1) },
                columns: serde_json::from_str(row.get(2))?,
                key: serde_json::from_str(row.get(3))?,
            };
            self.tables.insert(described.table.clone(), Statements::new(&described));
            tables.push(described);
        }
        Ok(tables)
    }

    /// Runs a query that takes keys as one array per column.
    async fn by_keys(&self, table: &TableName, sql: &str, keys: &[Key]) -> Result<Vec<Row>> {
        let width = self.statements(table)?.key_width();
        let column = |place: usize| -> Vec<Option<&str>> {
            keys.iter().map(|key| key.get(place).map(String::as_str)).collect()
        };
        let columns: Vec<_> = (0..width).map(column).collect();
        let parameters: Vec<&(dyn ToSql + Sync)> =
            columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
        let rows = self.client.query(sql, &parameters).await?;
        if rows.len() != keys.len() {
            bail!(
                "{} rows were found for {} keys: the primary key is not unique",
                rows.len(),
                keys.len()
            );
        }
        Ok(rows)
    }
}

fn state(row: &Row, column: usize) -> Option<RowState> {
    let content: Option<String> = row.get(column);
    Some(RowState { content: content?, version: row.get(column + 1) })
}

fn fetched(row: &Row) -> Option<Fetched> {
    Some(Fetched { state: state(row, 0)?, values: row.get(2), commit_time: row.get(3) })
}

/// What was committed and applied here until now. A transaction that is visible has its commit record in the WAL; one
/// of our own after it makes the publisher pass it.
async fn position(shared: &Shared, client: &Client) -> Result<Position> {
    let row = client.query_one("select pg_current_wal_insert_lsn()::text", &[]).await?;
    let before: Lsn = row.get::<_, String>(0).parse()?;
    let (node, boot) = (i32::from(shared.identity.node.get()), shared.boot.to_string());
    client.execute(include_str!("../sql/write_probe.sql"), &[&node, &boot]).await?;
    let (_, spool) =
        shared.spools.get(shared.identity.node).context("the own spool is not open")?;
    let mut tail = spool.tail_watch();
    if shared.status.has_lost_slot() {
        // What is not in the spool will be nowhere else, unless it is repaired from here.
        return Ok(Position { published: *tail.borrow(), visible: shared.applied.visible() });
    }
    let limit = Duration::from_millis(shared.config.verify.barrier_timeout_ms);
    let published = match timeout(limit, tail.wait_for(|tail| *tail >= before)).await {
        Ok(tail) => *tail.context("the own spool was closed")?,
        Err(_) => {
            bail!("its WAL up to {before} has not been published within {} ms", limit.as_millis())
        }
    };
    Ok(Position { published, visible: shared.applied.visible() })
}

/// Waits until this node has applied `target`, longer while it comes nearer; says what is missing if it does not.
async fn behind(shared: &Shared, target: &VersionVector) -> Option<String> {
    let here = shared.identity.node;
    let lacking = |visible: &VersionVector| {
        let mut all = target.iter().map(|(origin, lsn)| (origin, lsn, visible.get(origin)));
        all.find(|(origin, lsn, applied)| *origin != here && applied < lsn)
    };
    let limit = Duration::from_millis(shared.config.verify.barrier_timeout_ms);
    let begun = Instant::now();
    let mut visible = shared.applied.watch_visible();
    let mut nearest = lacking(&shared.applied.visible())?;
    loop {
        let waited = timeout(limit, visible.wait_for(|visible| lacking(visible).is_none())).await;
        if matches!(waited, Ok(Ok(_))) {
            return None;
        }
        let lacks = lacking(&shared.applied.visible())?;
        let (origin, lsn, applied) = lacks;
        if lacks == nearest || begun.elapsed() >= limit * BARRIER_LIMITS {
            let waited_ms = begun.elapsed().as_millis();
            return Some(format!(
                "has applied node {origin} up to {applied} only, not up to {lsn}, after {waited_ms} ms"
            ));
        }
        nearest = lacks;
    }
}
