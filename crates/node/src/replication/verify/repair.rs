//! Sets rows of this node as they are on another, with the commit times of their writers, and replicates nothing of it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use synapsedb_core::ids::NodeId;
use synapsedb_pg::client::Client;

use super::call::{SetOutcome, SetRow, TableName};
use super::local;
use super::statements::Statements;
use crate::replication::Shared;
use crate::replication::api::sql_words;

/// How often, and after which rest, the replication origin is asked for when another session has it.
const ORIGIN_TRIES: u32 = 100;
const ORIGIN_RETRY: Duration = Duration::from_millis(50);

/// Sets the rows, each in a transaction of its own.
///
/// # Errors
/// The session broke; what was set before stays. A row that the server refuses is no error, but an outcome.
pub(super) async fn set(
    shared: &Shared,
    slot: &mut Option<Client>,
    statements: &Statements,
    table: &TableName,
    from: NodeId,
    rows: Vec<SetRow>,
) -> Result<Vec<SetOutcome>> {
    slot.take_if(|client| client.is_closed());
    let client = match slot.as_mut() {
        Some(client) => client,
        None => slot.insert(open(shared).await?),
    };
    let (take_out, put_in) = (statements.take_out(), statements.put_in());
    let sql = Sql { take_out, put_in, statements, table, from };
    let mut outcomes = Vec::with_capacity(rows.len());
    for row in rows {
        outcomes.push(match sql.set(client, &row).await {
            Ok(outcome) => outcome,
            Err(error) if client.is_closed() => return Err(error),
            Err(error) => SetOutcome::Refused(sql_words(&error)),
        });
    }
    let done = outcomes.iter().filter(|outcome| **outcome == SetOutcome::Done).count();
    shared.verify.metrics.repaired_rows.inc_by(done as u64);
    tracing::warn!(%from, done, of = outcomes.len(), "rows of {}.{} were set as they are on another node",
        table.schema, table.name);
    Ok(outcomes)
}

async fn open(shared: &Shared) -> Result<Client> {
    let client = shared.sql("repair").await?;
    local::set_up(shared, &client).await?;
    let mut tries = 0;
    // Only one session may hold the origin: the one before may take a moment to end.
    while let Err(error) = client.batch_execute(include_str!("../sql/repair_session.sql")).await {
        tries += 1;
        if tries > ORIGIN_TRIES || client.is_closed() {
            return Err(error).context("take the replication origin synapsedb_settle");
        }
        tokio::time::sleep(ORIGIN_RETRY).await;
    }
    Ok(client)
}

struct Sql<'a> {
    take_out: String,
    put_in: String,
    statements: &'a Statements,
    table: &'a TableName,
    from: NodeId,
}

impl Sql<'_> {
    async fn set(&self, client: &mut Client, row: &SetRow) -> Result<SetOutcome> {
        let transaction = client.transaction().await?;
        let time = row.row.as_ref().and_then(|row| row.commit_time.as_ref());
        let begin = include_str!("../sql/repair_begin.sql");
        transaction.query(begin, &[&time, &row.row.is_some()]).await?;
        let (mut was, mut was_time) = (None::<String>, None::<String>);
        if let Some(seen) = &row.seen {
            let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
                [&row.key, &seen.content, &seen.version];
            let Some(taken) = transaction.query_opt(&self.take_out, &parameters).await? else {
                transaction.rollback().await?;
                return Ok(SetOutcome::Moved);
            };
            (was, was_time) = (taken.get(0), taken.get(1));
        }
        let mut is = None::<String>;
        if let Some(wanted) = &row.row {
            is = transaction.query_one(&self.put_in, &[&wanted.values]).await?.get(0);
        }
        let key = serde_json::to_string(&self.statements.named_key(&row.key))?;
        let detail = format!("set as it is on node {}", self.from);
        let from = i32::from(self.from.get());
        transaction
            .execute(
                include_str!("../sql/repair_log.sql"),
                &[
                    &self.table.schema,
                    &self.table.name,
                    &key,
                    &was,
                    &is,
                    &was_time,
                    &from,
                    &time,
                    &detail,
                ],
            )
            .await?;
        transaction.commit().await?;
        Ok(SetOutcome::Done)
    }
}
