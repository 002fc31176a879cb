//! The conflicts that were settled on this node, as `synapsedb.conflict` keeps them.

pub mod api;

use anyhow::{Context as _, Result};

use super::Shared;
use api::{ConflictBody, FilterQuery};

/// How many are shown when nobody says how many.
const LIMIT: u32 = 100;
/// How many are shown at most.
const LIMIT_MAX: u32 = 1000;

/// The newest conflicts that fit the filter; one more than asked for, if there is one.
async fn list(shared: &Shared, filter: &FilterQuery, id: Option<i64>) -> Result<Vec<ConflictBody>> {
    let client = shared.sql("conflicts").await?;
    client.batch_execute("set timezone = utc; set statement_timeout = '5s'").await?;
    let limit = i64::from(limit(filter.limit)) + 1;
    let sql = include_str!("../sql/conflicts.sql");
    let rows =
        client.query(sql, &[&filter.table, &filter.r#type, &filter.since, &id, &limit]).await?;
    let parsed = rows.iter().map(|row| serde_json::from_str(row.get(0)));
    parsed.collect::<Result<_, _>>().context("read synapsedb.conflict")
}

fn limit(asked: Option<u32>) -> u32 {
    asked.unwrap_or(LIMIT).clamp(1, LIMIT_MAX)
}
