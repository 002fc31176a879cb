//! The changes that could not be applied on this node and wait for a person, as `synapsedb.quarantine` keeps them.

pub mod api;
pub(crate) mod retries;

use std::time::Duration;

use anyhow::{Context as _, Result};
use synapsedb_core::ids::NodeId;
use synapsedb_pg::client::Client;

use super::Shared;
use api::QuarantinedBody;
use retries::Asked;

/// How many are shown when nobody says how many.
const LIMIT: u32 = 100;
/// How many are shown at most.
const LIMIT_MAX: u32 = 1000;

/// What came of another attempt at a quarantined change.
#[derive(Debug)]
pub(crate) enum Retried {
    /// It is applied.
    Applied,
    /// It still cannot be applied, with the reason.
    Refused(String),
    /// There is none of that number.
    Unknown,
}

/// How long a lane may take to try a change again.
const RETRY_LIMIT: Duration = Duration::from_secs(60);

/// Whether nothing may be forgotten now, since a change waits here that can be tried again, or a row is still to be
/// looked at beside a local write.
///
/// # Errors
/// The server cannot be asked.
pub(crate) async fn holds(shared: &Shared, client: &Client) -> Result<bool> {
    // How much the spools tell at the start is nobody's fault.
    if !shared.rechecks.are_told() {
        return Ok(true);
    }
    let waits = client.query_again(include_str!("../sql/any_quarantined.sql"), &[]).await?;
    let waits = waits.first().is_some_and(|waits| waits.get(0));
    let config = &shared.config;
    let spool_full = || {
        let spools = shared.spools.all();
        spools.values().any(|(_, spool)| spool.bytes() > config.spool.bytes_max / 2)
    };
    let writes = shared.recent.lock().len();
    let over = writes > config.quarantine_remembered_max || spool_full();
    let for_long = waits || shared.rechecks.wait_for_long();
    // What was forgotten once does not come back.
    let too_much = for_long && (over || shared.retries.is_too_much());
    if shared.retries.note_too_much(too_much) {
        tracing::warn!(
            "too much was written since a change was put into quarantine, or since a row is locked that is to be \
             looked at beside a local write: what it met is forgotten (replication.quarantine_remembered_max, \
             replication.spool.bytes_max). A change that is tried again then gives way to a later row; see \
             `synapsedb repl quarantine`, and compare with `synapsedb verify` afterwards"
        );
    }
    Ok((waits || !shared.rechecks.are_done()) && !too_much)
}

/// The oldest changes in quarantine; one more than asked for, if there is one.
async fn list(shared: &Shared, limit: u32) -> Result<Vec<QuarantinedBody>> {
    let client = shared.sql("quarantine").await?;
    client.batch_execute("set timezone = utc; set statement_timeout = '5s'").await?;
    let limit = i64::from(limit) + 1;
    let rows = client.query(include_str!("../sql/quarantine.sql"), &[&limit]).await?;
    let parsed = rows.iter().map(|row| serde_json::from_str(row.get(0)));
    parsed.collect::<Result<_, _>>().context("read synapsedb.quarantine")
}

/// Gives a quarantined change up: it is deleted, and the log keeps what it was.
async fn skip(shared: &Shared, id: i64) -> Result<Option<QuarantinedBody>> {
    let client = shared.sql("quarantine").await?;
    client.batch_execute("set timezone = utc; set statement_timeout = '5s'").await?;
    let deleted = client.query_opt(include_str!("../sql/skip_quarantined.sql"), &[&id]).await?;
    let Some(row) = deleted else { return Ok(None) };
    let json: &str = row.get(0);
    tracing::warn!(
        id,
        "a quarantined change was given up by request and is not applied here: {json}"
    );
    Ok(Some(serde_json::from_str(json).context("read synapsedb.quarantine")?))
}

/// Tries a quarantined change again.
///
/// # Errors
/// The server cannot be asked, or the lane of its origin does not get to it.
pub(crate) async fn retry(shared: &Shared, id: i64) -> Result<Retried> {
    let client = shared.sql("quarantine").await?;
    let sql = include_str!("../sql/quarantined_origin.sql");
    let Some(row) = client.query_opt(sql, &[&id]).await? else { return Ok(Retried::Unknown) };
    let origin = u16::try_from(row.get::<_, i32>(0)).ok().and_then(NodeId::new);
    let origin = origin.context("its origin is no node of this cluster")?;
    let asked = shared.retries.ask(shared.identity.node, origin, Asked::Quarantined(id));
    let answer = tokio::time::timeout(RETRY_LIMIT, asked).await;
    let answer = answer.with_context(|| {
        format!("the lane of node {origin} is busy or does not run: try again later, nothing was changed")
    })?;
    Ok(match answer.context("the lane was started anew meanwhile: try again")? {
        Ok(()) => Retried::Applied,
        Err(reason) => Retried::Refused(reason),
    })
}

fn limit(asked: Option<u32>) -> u32 {
    asked.unwrap_or(LIMIT).clamp(1, LIMIT_MAX)
}
