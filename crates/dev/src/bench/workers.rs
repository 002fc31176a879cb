//! How fast a backlog of large transactions drains in a lane alone, and in one with workers; SynapseDB only.

use anyhow::{Context as _, Result};

use super::Options;
use super::measure::{self, Large};
use super::report::Figures;
use super::system::{Pause, System};
use crate::binary::Binary;

/// Makes the transactions inside the server.
const TRANSACTIONS: &str = include_str!("large_transactions.sql");
/// Rows of each.
const ROWS: u64 = 500;

/// Both, in turn, each in a mesh made anew.
pub(super) async fn measure(binary: &Binary, options: &Options) -> Result<Figures> {
    let mut figures = Figures::default();
    let transactions = options.worker_transactions;
    for workers in [0, 2] {
        let system = System::with_workers(binary, options.nodes, workers).await?;
        figures.version = system.version().await?;
        // Every lane has met the table.
        measure::drain_large(&system, Large::Insert, 1).await?;
        let drained = drain(&system, transactions).await?;
        let rows = (transactions * ROWS) as f64 / drained;
        let what =
            format!("drain of {transactions} transactions of {ROWS} rows, {workers} workers");
        figures.add(&what, rows, "rows/s");
        if let System::Native(cluster) = &system {
            let counted = "synapsedb_replication_worker_transactions_total";
            let by_workers = cluster.node(2).metric(counted, "").await;
            figures.add(&format!("applied by {workers} workers"), by_workers, "tx");
        }
    }
    Ok(figures)
}

/// Seconds that the transactions take to arrive.
async fn drain(system: &System, transactions: u64) -> Result<f64> {
    let session = system.origin().try_session().await?;
    session.batch_execute("truncate bench_large").await?;
    measure::rest(system, &session).await?;
    system.pause(Pause::Receiver).await?;
    let sql = TRANSACTIONS.replace("$count", &transactions.to_string());
    session.batch_execute(&sql).await.context("write the transactions")?;
    let drained = measure::drain(system, &session).await?;
    measure::same(system, "select count(*), sum(id), sum(length(payload)) from bench_large")
        .await?;
    Ok(drained.as_secs_f64())
}
