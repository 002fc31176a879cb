//! Takes a replication origin into a session.

use std::time::Duration;

use anyhow::{Context as _, Result};
use synapsedb_pg::client::Client;

const TRY_INTERVAL: Duration = Duration::from_millis(20);
/// "Object in use": another session has the origin.
const IN_USE: &str = "55006";

/// Takes an origin, which only one session may hold: one that was given up may take a moment to end, and so long it is
/// tried again, `tries_max` times.
///
/// # Errors
/// The session before does not let go of it; the server cannot be reached or refuses.
pub(super) async fn take(client: &Client, name: &str, tries_max: u32) -> Result<()> {
    let sql = "select pg_catalog.pg_replication_origin_session_setup($1)";
    let mut tries = 0;
    loop {
        match client.query(sql, &[&name]).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code().is_some_and(|code| code.code() == IN_USE) => {
                tries += 1;
                if tries > tries_max {
                    return Err(error).with_context(|| format!("take replication origin {name}"));
                }
                tokio::time::sleep(TRY_INTERVAL).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until no session has the origin of a worker for the life of a node to which `name` belongs: what workers of an
/// earlier lane were about to commit is committed then, or never will be.
///
/// # Errors
/// Such a session does not end; the server cannot be reached or refuses.
pub(super) async fn await_workers(client: &Client, name: &str, tries_max: u32) -> Result<()> {
    for row in client.query(include_str!("sql/worker_origins.sql"), &[&name]).await? {
        take(client, row.get(0), tries_max).await?;
        client.batch_execute("select pg_catalog.pg_replication_origin_session_reset()").await?;
    }
    Ok(())
}
