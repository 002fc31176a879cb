//! Writes this node's probe row and reads the others': the one lag that cannot lie.

use std::time::Duration;

use anyhow::Result;
use synapsedb_core::ids::NodeId;
use synapsedb_core::time::Timestamp;

use super::Shared;
use super::status::Probe;

/// Writes and reads probes until the session breaks.
///
/// # Errors
/// The server cannot be reached or refuses.
pub(crate) async fn run(shared: &Shared) -> Result<()> {
    let client = shared.sql("probe").await?;
    client.batch_execute(include_str!("sql/probe_session.sql")).await?;
    let write = client.prepare(include_str!("sql/write_probe.sql")).await?;
    let read = client.prepare(include_str!("sql/read_probes.sql")).await?;
    let node = i32::from(shared.identity.node.get());
    let boot = shared.boot.to_string();
    let written_every = Duration::from_millis(shared.config.probe_interval_ms.max(10));
    let mut next_write = tokio::time::Instant::now();
    // Reading is cheap: the row that is waited for at the start is seen at once.
    let mut read_due = tokio::time::interval(written_every.min(Duration::from_millis(250)));
    loop {
        read_due.tick().await;
        if tokio::time::Instant::now() >= next_write {
            client.execute(&write, &[&node, &boot]).await?;
            next_write = tokio::time::Instant::now() + written_every;
        }
        let rows = client.query(&read, &[]).await?;
        let probes = rows.iter().filter_map(|row| {
            let node = NodeId::new(u16::try_from(row.get::<_, i32>(0)).ok()?)?;
            let age_ms = u64::try_from(row.get::<_, i64>(2)).unwrap_or(0);
            let commit_time = row.get::<_, Option<i64>>(3).map(Timestamp::from_unix_us);
            Some((node, Probe { age_ms, commit_time }))
        });
        shared.status.probes(probes.collect());
    }
}
