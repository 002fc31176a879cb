//! Measures the way of the rows between nodes, beside pglogical on the same machine in the same run.
//!
//! One system runs at a time, with the same server settings and fsync on. Figures are printed as a table and, if
//! asked for, written as JSON; `docs/benchmarks.md` says what each figure means.

mod durability;
mod measure;
pub(crate) mod pglogical;
mod report;
mod system;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::binary::Binary;
use report::{Report, Row};
use system::{Pause, System};

/// What to measure.
#[derive(Clone, Debug, clap::Args, serde::Serialize)]
pub struct Options {
    /// Single-row transactions that accumulate while the receiver stands still.
    #[arg(long, default_value_t = 300_000)]
    pub transactions: u64,
    /// Rows of one large transaction.
    #[arg(long, default_value_t = 500_000)]
    pub rows: u64,
    /// Rows of the transaction during which the agents' memory is watched; 0 leaves it out.
    #[arg(long, default_value_t = 1_000_000)]
    pub memory_rows: u64,
    /// Transactions per second while the lag is measured.
    #[arg(long, default_value_t = 1000)]
    pub rate: u32,
    /// Seconds for which the lag is measured under load.
    #[arg(long, default_value_t = 20)]
    pub seconds: u32,
    /// Nodes of the SynapseDB mesh.
    #[arg(long, default_value_t = 3)]
    pub nodes: u16,
    /// Measure only how long commits take in each durability class.
    #[arg(long)]
    pub durability: bool,
    /// Leave pglogical out.
    #[arg(long)]
    pub without_pglogical: bool,
    /// Leave SynapseDB out.
    #[arg(long)]
    pub without_native: bool,
    /// Also write the figures to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// Measures and prints.
///
/// # Errors
/// When a system cannot be set up, or rows do not arrive.
pub async fn run(binary: Binary, options: Options) -> Result<()> {
    if options.durability {
        return durability::run(&binary, options.nodes).await;
    }
    let mut report = Report::new(&options);
    // The settings of the agent's servers are those of both systems, so the mesh is always made.
    let native = System::native(&binary, options.nodes).await?;
    let settings = native.settings().await?;
    report.describe(&native, &settings).await?;
    if !options.without_native {
        report.rows.extend(measure_one(&native, &options).await.context("SynapseDB")?);
        report.rows.extend(memory(&native, &options).await.context("SynapseDB")?);
    }
    let major = native.major().await?;
    drop(native);
    if !options.without_pglogical {
        let pglogical = System::pglogical(major, &settings).await?;
        report.pglogical = Some(pglogical.version().await?);
        report.rows.extend(measure_one(&pglogical, &options).await.context("pglogical")?);
    }
    report.print();
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// All measurements of one system.
async fn measure_one(system: &System, options: &Options) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for pause in system.pauses() {
        let drained = measure::drain_single(system, *pause, options.transactions).await?;
        let what = format!("drain of {} single-row transactions, {}", options.transactions, pause);
        rows.push(Row::rate(system, what, options.transactions, drained, "tx/s"));
    }
    let drained = measure::drain_large(system, options.rows).await?;
    let what = format!("drain of one transaction of {} rows, {}", options.rows, Pause::Receiver);
    rows.push(Row::rate(system, what, options.rows, drained, "rows/s"));
    let idle = measure::lag(system, 0, 10).await?;
    rows.extend(Row::lag(system, "lag when idle", &idle));
    let loaded = measure::lag(system, options.rate, options.seconds).await?;
    let what = format!("lag at {:.0} tx/s", loaded.rate_per_s);
    rows.extend(Row::lag(system, &what, &loaded));
    Ok(rows)
}

/// The agents' memory while a large transaction passes.
async fn memory(system: &System, options: &Options) -> Result<Vec<Row>> {
    let System::Native(cluster) = system else { return Ok(Vec::new()) };
    if options.memory_rows == 0 {
        return Ok(Vec::new());
    }
    for node in cluster.nodes() {
        node.reset_memory_peak();
    }
    measure::pass_large(system, options.memory_rows).await?;
    let peaks = cluster.nodes().iter().map(|node| {
        let what = format!(
            "peak memory of the agent of node {} during a transaction of {} rows",
            node.number(),
            options.memory_rows
        );
        let mebibytes = node.agent_memory().peak_bytes as f64 / f64::from(1 << 20);
        Row { system: system.name(), what, value: mebibytes, unit: "MiB" }
    });
    Ok(peaks.collect())
}
