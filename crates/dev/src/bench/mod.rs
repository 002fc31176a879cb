//! Measures the way of the rows between nodes, beside pglogical on the same machine in the same run.
//!
//! Both systems have one origin and the same number of servers with the same settings and fsync on. They are measured
//! in turn, round after round, each alone on the machine and made anew; the figure is the median of the rounds. Figures
//! are printed as a table and, if asked for, written as JSON; `docs/benchmarks.md` says what each figure means.

mod cpu;
mod durability;
mod endurance;
mod measure;
pub(crate) mod pglogical;
mod report;
pub mod router;
mod system;
mod workers;
mod writer;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::binary::Binary;
use report::{Figures, Report};
use system::System;

/// A group of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// How fast a backlog of single-row transactions drains.
    Drain,
    /// How fast one large transaction drains.
    Large,
    /// How fast large transactions drain without and with workers; SynapseDB only.
    Workers,
    /// How long after its commit a row is seen.
    Lag,
    /// What replication leaves of a writer's speed, with two receivers.
    Writer,
    /// What a transaction costs on its way.
    Cpu,
    /// The agents' memory; SynapseDB only, once.
    Memory,
    /// False conflicts; SynapseDB only, once.
    Conflicts,
}

/// What to measure.
#[derive(Clone, Debug, clap::Args, serde::Serialize)]
pub struct Options {
    /// Groups of figures; all if none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub parts: Vec<Part>,
    /// How often both systems are measured.
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// Single-row transactions that accumulate while the receiver stands still.
    #[arg(long, default_value_t = 300_000)]
    pub transactions: u64,
    /// Rows of one large transaction.
    #[arg(long, default_value_t = 500_000)]
    pub rows: u64,
    /// Transactions of 500 rows that accumulate for lanes without and with workers.
    #[arg(long, default_value_t = 1000)]
    pub worker_transactions: u64,
    /// Rows of the transaction, and number of transactions, during which the agents' memory is watched.
    #[arg(long, default_value_t = 1_000_000)]
    pub memory_rows: u64,
    /// Transactions without a conflict after which the false conflicts are counted.
    #[arg(long, default_value_t = 1_000_000)]
    pub conflict_transactions: u64,
    /// Transactions per second while the lag is measured.
    #[arg(long, default_value_t = 1000)]
    pub rate: u32,
    /// Transactions per second while the costs are measured.
    #[arg(long, default_value_t = 4000)]
    pub cpu_rate: u32,
    /// Seconds for which the lag under load, the costs and the writer are measured.
    #[arg(long, default_value_t = 10)]
    pub seconds: u32,
    /// The scale of the writer's tables: 100,000 accounts each.
    #[arg(long, default_value_t = 5)]
    pub scale: u32,
    /// Sessions of the writer.
    #[arg(long, default_value_t = 8)]
    pub clients: u32,
    /// Servers of either system; the writer has three.
    #[arg(long, default_value_t = 2)]
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

impl Options {
    fn has(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    fn has_any(&self, parts: &[Part]) -> bool {
        parts.iter().any(|part| self.has(*part))
    }
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
    let major = native.major().await?;
    report.describe(&native, &settings).await?;
    drop(native);
    for round in 1..=options.rounds {
        if !options.without_native {
            let make = async |receivers| System::native(&binary, receivers + 1).await;
            let figures = round_of(make, &options).await;
            report.add("SynapseDB", figures.context("SynapseDB")?);
        }
        if !options.without_pglogical {
            let make = async |receivers| System::pglogical(major, &settings, receivers).await;
            let figures = round_of(make, &options).await;
            report.add("pglogical", figures.context("pglogical")?);
        }
        eprintln!("round {round} of {} is done", options.rounds);
    }
    if !options.without_native && options.has(Part::Workers) {
        for _ in 0..options.rounds {
            let figures = workers::measure(&binary, &options).await;
            report.add("SynapseDB", figures.context("SynapseDB")?);
        }
    }
    if !options.without_native && options.has_any(&[Part::Memory, Part::Conflicts]) {
        let figures = endurance::measure(&binary, &options).await;
        report.add("SynapseDB", figures.context("SynapseDB")?);
    }
    report.print();
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// All measurements of one system, once.
async fn round_of(make: impl AsyncFn(u16) -> Result<System>, options: &Options) -> Result<Figures> {
    let mut figures = Figures::default();
    if options.has_any(&[Part::Drain, Part::Large, Part::Lag, Part::Cpu]) {
        let system = make(options.nodes - 1).await?;
        figures.version = system.version().await?;
        one_receiver(&system, options, &mut figures).await?;
    }
    if options.has(Part::Writer) {
        let system = make(2).await?;
        figures.version = system.version().await?;
        let written = writer::measure(&system, options).await?;
        let what = format!("a TPC-B-like writer of {} sessions, two receivers", options.clients);
        figures.add(&what, written.per_second, "tx/s");
        figures.add("the receivers are behind at its end by", written.behind_s, "s");
        figures.add_cpu("cost of a TPC-B-like transaction", &written.parts, written.transactions);
    }
    Ok(figures)
}

async fn one_receiver(system: &System, options: &Options, figures: &mut Figures) -> Result<()> {
    let transactions = options.transactions;
    if options.has(Part::Drain) {
        for pause in system.pauses() {
            let before = cpu::Usage::of(system).await?;
            let drained = measure::drain_single(system, *pause, transactions).await?;
            let what = format!("drain of {transactions} single-row transactions, {pause}");
            figures.add(&what, transactions as f64 / drained.as_secs_f64(), "tx/s");
            if *pause == *system.pauses().last().unwrap_or(pause) {
                let parts = cpu::Usage::of(system).await?.since(&before);
                figures.add_cpu("cost in a drain", &parts, transactions);
            }
        }
    }
    if options.has(Part::Large) {
        for large in measure::Large::ALL {
            let drained = measure::drain_large(system, large, options.rows).await?;
            let what =
                format!("drain of one transaction of {} rows{}", options.rows, large.label());
            figures.add(&what, options.rows as f64 / drained.as_secs_f64(), "rows/s");
        }
    }
    if options.has(Part::Lag) {
        let idle = measure::lag(system, 0, options.seconds).await?;
        figures.add_lag("lag when idle", &idle);
        let loaded = measure::lag(system, options.rate, options.seconds).await?;
        figures.add_lag(&format!("lag at {} tx/s", options.rate), &loaded);
        figures.add("the load that was really made", loaded.rate_per_s, "tx/s");
    }
    if options.has(Part::Cpu) {
        let before = cpu::Usage::of(system).await?;
        let written = measure::load(system, options.cpu_rate, options.seconds).await?;
        let parts = cpu::Usage::of(system).await?.since(&before);
        figures.add_cpu(&format!("cost at {} tx/s", options.cpu_rate), &parts, written);
    }
    Ok(())
}

impl Figures {
    /// What each process spent per transaction.
    fn add_cpu(&mut self, what: &str, parts: &[(&'static str, f64)], transactions: u64) {
        let mut whole = 0.0;
        for (part, seconds) in parts {
            let us = seconds * 1e6 / transactions as f64;
            whole += us;
            self.add(&format!("{what}, {part}"), us, "us/tx");
        }
        self.add(&format!("{what}, the whole way"), whole, "us/tx");
    }

    fn add_lag(&mut self, what: &str, lags: &measure::Lags) {
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            self.add(&format!("{what}, {name}"), lags.percentile_ms(share), "ms");
        }
    }
}
