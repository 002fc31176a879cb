//! Sets rows of this node as they are on another, with the commit times of their writers, and replicates nothing of it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use synapsedb_core::ids::NodeId;
use synapsedb_pg::client::Client;
use tokio_postgres::Transaction;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use super::call::{SetOutcome, SetRow, TableName};
use super::local;
use super::statements::Statements;
use crate::replication::Shared;
use crate::replication::api::sql_words;

/// How often, and after which rest, the replication origin is asked for when another session has it.
const ORIGIN_TRIES: u32 = 100;
const ORIGIN_RETRY: Duration = Duration::from_millis(50);

/// Sets the rows, each in a transaction of its own; those that clash with each other in one.
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
    let mut clashing = Vec::new();
    for (place, row) in rows.iter().enumerate() {
        outcomes.push(match sql.set(client, std::slice::from_ref(row)).await {
            Ok(true) => SetOutcome::Done,
            Ok(false) => SetOutcome::Moved,
            Err(error) if client.is_closed() => return Err(error),
            Err(error) => {
                if is_clash(&error) {
                    clashing.push(place);
                }
                SetOutcome::Refused(sql_words(&error))
            }
        });
    }
    // Rows that hold each other's unique values can only be set together.
    if clashing.len() > 1 {
        let together: Vec<_> = clashing.iter().map(|place| rows[*place].clone()).collect();
        if sql.set(client, &together).await.is_ok_and(|all_as_seen| all_as_seen) {
            clashing.iter().for_each(|place| outcomes[*place] = SetOutcome::Done);
        }
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

/// Whether another row has a value that must be unique.
fn is_clash(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<tokio_postgres::Error>().and_then(|error| error.code());
    code.is_some_and(|code| {
        *code == SqlState::UNIQUE_VIOLATION || *code == SqlState::EXCLUSION_VIOLATION
    })
}

impl Sql<'_> {
    /// Sets rows in one transaction, which keeps the latest of their commit times. False, and nothing is set, if one of
    /// them is no longer as it was seen.
    async fn set(&self, client: &mut Client, rows: &[SetRow]) -> Result<bool> {
        let transaction = client.transaction().await?;
        let time = rows.iter().filter_map(SetRow::commit_time).max();
        let any = rows.iter().any(|row| row.row.is_some());
        transaction.query(include_str!("../sql/repair_begin.sql"), &[&time, &any]).await?;
        let mut taken = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(was) = self.take_out(&transaction, row).await? else {
                transaction.rollback().await?;
                return Ok(false);
            };
            taken.push(was);
        }
        for (row, was) in rows.iter().zip(taken) {
            let mut is = None::<String>;
            if let Some(wanted) = &row.row {
                is = transaction.query_one(&self.put_in, &[&wanted.values]).await?.get(0);
            }
            self.log(&transaction, row, was, is).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Deletes the row that was seen, if one was; nothing if it is not as it was seen.
    async fn take_out(&self, transaction: &Transaction<'_>, row: &SetRow) -> Result<Option<Taken>> {
        let Some(seen) = &row.seen else { return Ok(Some(Taken::default())) };
        let parameters: [&(dyn ToSql + Sync); 3] = [&row.key, &seen.content, &seen.version];
        let taken = transaction.query_opt(&self.take_out, &parameters).await?;
        Ok(taken.map(|taken| Taken { row: taken.get(0), commit_time: taken.get(1) }))
    }

    async fn log(
        &self,
        transaction: &Transaction<'_>,
        row: &SetRow,
        was: Taken,
        is: Option<String>,
    ) -> Result<()> {
        let key = serde_json::to_string(&self.statements.named_key(&row.key))?;
        let detail = format!("set as it is on node {}", self.from);
        let (from, time) = (i32::from(self.from.get()), row.commit_time());
        let TableName { schema, name } = self.table;
        let parameters: [&(dyn ToSql + Sync); 9] =
            [schema, name, &key, &was.row, &is, &was.commit_time, &from, &time, &detail];
        transaction.execute(include_str!("../sql/repair_log.sql"), &parameters).await?;
        Ok(())
    }
}

/// The row that was there.
#[derive(Default)]
struct Taken {
    row: Option<String>,
    commit_time: Option<String>,
}
