//! Brings sequences back that a `setval()` has put into another node's class.

use std::time::Duration;

use anyhow::Result;

use super::Shared;

/// Looks at all sequences again and again until the session breaks. It waits where a user's transaction alters one,
/// and nothing else waits for it.
///
/// # Errors
/// The server cannot be reached, or a sequence was locked for too long.
pub(crate) async fn run(shared: &Shared) -> Result<()> {
    let client = shared.sql("realign").await?;
    client.batch_execute(include_str!("sql/probe_session.sql")).await?;
    let realign = client.prepare("select synapsedb.realign_sequences()").await?;
    let every = Duration::from_millis(shared.config.probe_interval_ms.max(10));
    let mut due = tokio::time::interval(every);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        client.query(&realign, &[]).await?;
    }
}
