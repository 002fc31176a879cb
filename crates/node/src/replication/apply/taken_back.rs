//! Progress that was never made, and is taken back.
//!
//! From PostgreSQL 16 on, a transaction that ends in an error after `pg_replication_origin_xact_setup` moves its
//! origin's progress as if it had been committed (`RecordTransactionAbort`). Appliers call that last of all, so only a
//! session that is ended between this call and its commit, by a stopping server for one, leaves such progress behind.
//! Whoever believed it would leave the transaction out for ever. So before lanes begin, the commit that an origin's
//! progress tells of is looked for: it is there under the commit time of its writer.

use anyhow::{Context as _, Result};
use synapsedb_core::lsn::Lsn;
use synapsedb_pg::client::Client;

use super::Source;
use super::gate::sql_time;
use crate::replication::spool::{Header, SpoolError};
use crate::replication::{Shared, origin, origin_name};

/// The first major version that counts what failed, as `server_version_num`.
const VERSION_MIN: u32 = 160_000;
/// How often the origin is asked for while a session from before still has it.
const TRIES_MAX: u32 = 250;
/// Transaction ids that are looked at first; each next look is at so many times as many.
const LOOK_FIRST: i64 = 1_000;
const LOOK_FACTOR: i64 = 8;
/// Of so many transactions in a row some were committed: when the server knows of none, it has forgotten them.
const FORGOTTEN_MIN: i64 = 100_000;

/// Takes back the progress of an origin as far as there is no commit behind it. Answers whether there was any.
///
/// # Errors
/// The server or the spool cannot be read, or a session that was given up does not let go of the origin.
pub(crate) async fn take_back(shared: &Shared, source: &Source) -> Result<bool> {
    let version = shared.postgres.health().borrow().version;
    if version != 0 && version < VERSION_MIN {
        return Ok(false);
    }
    let client = shared.sql("progress").await?;
    let name = origin_name(source.origin, source.incarnation);
    origin::await_workers(&client, &name, TRIES_MAX).await?;
    // Held, so that nobody is in the middle of a commit.
    origin::take(&client, &name, TRIES_MAX).await?;
    let told = client.query_one(include_str!("../sql/life_progress.sql"), &[&name]).await?;
    let told: Lsn = told.get::<_, String>(0).parse()?;
    let mut true_progress = told;
    while let Some((header, before)) = transaction_at(source, true_progress)? {
        if is_committed(&client, &name, &header).await? {
            break;
        }
        true_progress = before;
    }
    client.batch_execute("select pg_catalog.pg_replication_origin_session_reset()").await?;
    if true_progress == told {
        return Ok(false);
    }
    tracing::warn!(origin = %source.origin, %told, %true_progress,
        "the server counts a transaction as applied that was never committed; it is applied now");
    let lsn = true_progress.to_string();
    client.query(include_str!("../sql/origins_beyond.sql"), &[&name, &lsn]).await?;
    Ok(true)
}

async fn one_text(client: &Client, sql: &str) -> Result<String> {
    Ok(client.query_one(sql, &[]).await?.get(0))
}

/// The transaction at a position, and the position before it; `None` when the spool does not hold it: then it has been
/// applied by all members, or came with a copy of the data.
fn transaction_at(source: &Source, lsn: Lsn) -> Result<Option<(Header, Lsn)>> {
    if lsn == Lsn::ZERO {
        return Ok(None);
    }
    let read = || {
        let before = source.spool.commit_before(lsn)?;
        let frame = source.spool.reader_after(before)?.try_next()?;
        Ok((frame, before))
    };
    match read() {
        Ok((frame, before)) => {
            let header = frame.and_then(|frame| frame.header());
            Ok(header.filter(|header| header.commit_lsn == lsn).map(|header| (header, before)))
        }
        Err(SpoolError::Gone { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Looks for the transaction's commit, from the newest local transaction backwards.
async fn is_committed(client: &Client, origin: &str, header: &Header) -> Result<bool> {
    let newest = "select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text";
    let mut end: i64 = one_text(client, newest).await?.parse()?;
    let time = sql_time(header.commit_time);
    let mut look = LOOK_FIRST;
    while end > 3 {
        let row = client
            .query_one(include_str!("../sql/is_committed.sql"), &[&origin, &time, &end, &look])
            .await
            .with_context(|| format!("look for the commit {} of {origin}", header.commit_lsn))?;
        let (found, older, known): (bool, bool, bool) = (row.get(0), row.get(1), row.get(2));
        let forgotten = !known && look >= FORGOTTEN_MIN;
        if found || forgotten {
            return Ok(true);
        }
        if older {
            return Ok(false);
        }
        end -= look;
        look = look.saturating_mul(LOOK_FACTOR);
    }
    Ok(false)
}
