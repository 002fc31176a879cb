//! Hands a row to a peer that must write it anew and was not told all of it: an update leaves out TOASTed values that
//! it did not change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::NodeId;
use synapsedb_pg::quote;
use tokio_postgres::types::ToSql;

use super::{Shared, keys};

/// The service under which a node answers.
const SERVICE: &str = "replication.row";

/// How often a node is asked, and the pause in between.
const TRIES_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// A row, by its primary key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) schema: String,
    pub(crate) table: String,
    /// The columns of the key, with their values as texts.
    pub(crate) key: BTreeMap<String, String>,
}

/// Its columns as texts; `None` if there is no such row.
pub(crate) type Answered = Option<BTreeMap<String, Option<String>>>;

/// Answers the peers from now on.
pub(crate) fn serve(shared: &Arc<Shared>) {
    let serving = shared.clone();
    shared.peers.serve(SERVICE, move |_, body| {
        let shared = serving.clone();
        Box::pin(async move {
            let answer = async {
                let asked: Asked = serde_json::from_slice(&body)?;
                let answered = read(&shared, &asked).await?;
                anyhow::Ok(Bytes::from(serde_json::to_vec(&answered)?))
            };
            answer.await.map_err(|error| format!("{error:#}"))
        })
    });
}

/// The row as node `node` has it now.
///
/// # Errors
/// The node cannot be asked, or has no such row.
pub(crate) async fn ask(
    shared: &Shared,
    node: NodeId,
    asked: &Asked,
) -> Result<BTreeMap<String, Option<String>>> {
    let body = Bytes::from(serde_json::to_vec(asked)?);
    let mut tries = 0;
    let answer = loop {
        tries += 1;
        match shared.peers.call(node, SERVICE, body.clone()).await {
            Ok(answer) => break answer,
            Err(error) if tries >= TRIES_MAX => return Err(error.into()),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    };
    let answered: Answered = serde_json::from_slice(&answer).context("read a peer's row")?;
    answered.ok_or_else(|| anyhow!("node {node} has no such row any more"))
}

async fn read(shared: &Shared, asked: &Asked) -> Result<Answered> {
    let client = shared.sql("row of a peer").await?;
    client.batch_execute(include_str!("sql/row_session.sql")).await?;
    let columns =
        client.query(include_str!("sql/replica_table.sql"), &[&asked.schema, &asked.table]).await?;
    let mut selected = Vec::with_capacity(columns.len());
    let mut found = Vec::with_capacity(asked.key.len());
    let mut values: Vec<&(dyn ToSql + Sync)> = Vec::with_capacity(asked.key.len());
    for column in &columns {
        let (name, type_name): (&str, &str) = (column.get(1), column.get(2));
        selected.push(keys::text_sql(name));
        if let Some(value) = asked.key.get(name) {
            values.push(value);
            found.push(format!("t.{} = ${}::text::{type_name}", quote::ident(name), values.len()));
        }
    }
    if found.is_empty() || found.len() != asked.key.len() {
        bail!("table {}.{} has other key columns here", asked.schema, asked.table);
    }
    let sql = format!(
        "select {} from {} as t where {}",
        selected.join(", "),
        quote::qualified(&asked.schema, &asked.table),
        found.join(" and ")
    );
    let row = client.query_opt(&sql, &values).await?;
    Ok(row.map(|row| {
        let value = |(at, column): (usize, &tokio_postgres::Row)| (column.get(1), row.get(at));
        columns.iter().enumerate().map(value).collect()
    }))
}
