//! What replication leaves of a writer's speed: pgbench's TPC-B-like script while two receivers apply.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::time::Instant;

use super::Options;
use super::cpu::Usage;
use super::measure;
use super::system::System;
use crate::postgres::programs;

/// How long the receivers may take to catch up.
const CATCH_UP: Duration = Duration::from_secs(120);

/// What a writer achieved.
pub(super) struct Written {
    /// Its transactions per second.
    pub(super) per_second: f64,
    /// What the processes on the way of its rows have spent, from its begin until the receivers had everything.
    pub(super) parts: Vec<(&'static str, f64)>,
    /// Its transactions.
    pub(super) transactions: u64,
    /// How long after its end the receivers had everything.
    pub(super) behind_s: f64,
}

/// Fills the tables, waits until the receivers have them, and lets pgbench write on the origin.
pub(super) async fn measure(system: &System, options: &Options) -> Result<Written> {
    let origin = system.origin();
    let fill = include_str!("fill_tpcb.sql").replace("$scale", &options.scale.to_string());
    origin.try_rows(&fill).await.context("fill the tables")?;
    let session = origin.try_session().await?;
    measure::rest(system, &session).await?;
    let mut pgbench = Command::new(programs(Some(system.major().await?))?.join("pgbench"));
    pgbench
        .args(["-n", "-b", "tpcb-like", "-h", "127.0.0.1", "-U", &origin.user])
        .args(["-p", &origin.port.to_string(), "-T", &options.seconds.to_string()])
        .args(["-c", &options.clients.to_string(), "-j", "2", &origin.database])
        .env("PGPASSWORD", &origin.password);
    let before = Usage::of(system).await?;
    let output = tokio::task::spawn_blocking(move || pgbench.output()).await??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("pgbench: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    let said = |what| text.lines().find_map(|line| line.strip_prefix(what)?.split(' ').next());
    let per_second = said("tps = ").context("pgbench says no tps")?.parse()?;
    let transactions = said("number of transactions actually processed: ");
    let transactions = transactions.context("pgbench says no number of transactions")?.parse()?;
    let end = Instant::now();
    for receiver in system.receivers() {
        tokio::time::timeout(CATCH_UP, measure::settle(receiver, &session)).await??;
    }
    let behind_s = end.elapsed().as_secs_f64();
    let parts = Usage::of(system).await?.since(&before);
    for table in ["pgbench_branches", "pgbench_tellers", "pgbench_accounts", "pgbench_history"] {
        let sum =
            if table == "pgbench_history" { "delta" } else { &format!("{}balance", &table[8..9]) };
        measure::same(system, &format!("select count(*), sum({sum}) from {table}")).await?;
    }
    Ok(Written { per_second, parts, transactions, behind_s })
}
