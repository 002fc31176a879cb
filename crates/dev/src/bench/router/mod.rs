//! Measures the way of statements through the router, beside a direct way, PgBouncer and HAProxy in the same run.
//!
//! One node of SynapseDB is the server of all of them. They are measured in turn, point by point and round after round,
//! so that what else the machine does meets all; the figure is the median of the rounds. TLS is off everywhere.
//! `docs/benchmarks.md` says what each figure means.

mod bars;
mod bed;
mod copy;
mod crowd;
mod grid;
mod pgbench;
mod proxy;
mod report;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::binary::Binary;
use report::Report;

/// Descriptors beside those of the clients.
const FILES_BESIDE: u64 = 1_000;

/// A group of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Transactions per second.
    Tps,
    /// How long a transaction takes, and what a proxy adds to it.
    Latency,
    /// The processor time of the whole proxy process per query.
    Cpu,
    /// Resident memory per idle client.
    Memory,
    /// Thousands of clients on a few connections.
    Crowd,
    /// One large answer.
    Copy,
    /// What a second worker of the router brings.
    Cores,
}

/// A way from the client to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// None between them.
    Direct,
    /// The read endpoint.
    Synapsedb,
    /// PgBouncer that reaches the server by TCP, as its users run it.
    Pgbouncer,
    /// PgBouncer that reaches the server by its unix socket.
    PgbouncerUnix,
    /// HAProxy in TCP mode.
    Haproxy,
}

/// What to measure.
#[derive(Clone, Debug, clap::Args, serde::Serialize)]
pub struct Options {
    /// Groups of figures; all if none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub parts: Vec<Part>,
    /// Ways to the server; all if none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub routes: Vec<Route>,
    /// How often all ways are measured.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Seconds for which each point is measured.
    #[arg(long, default_value_t = 5)]
    pub seconds: u32,
    /// The scale of pgbench's tables: 100,000 accounts each.
    #[arg(long, default_value_t = 5)]
    pub scale: u32,
    /// Numbers of clients.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 100])]
    pub clients: Vec<u32>,
    /// Server connections of a pool, the router's and PgBouncer's; 0 leaves the router's default.
    #[arg(long, default_value_t = 20)]
    pub pool_size: u32,
    /// Clients at once while memory is measured and in the crowd.
    #[arg(long, default_value_t = 5_000)]
    pub crowd: u32,
    /// Seconds for which the crowd is measured.
    #[arg(long, default_value_t = 60)]
    pub crowd_seconds: u32,
    /// Bytes of the large answer, in millions.
    #[arg(long, default_value_t = 1_000)]
    pub copy_mb: u32,
    /// Keys of the router's configuration to set, such as `pool_mode="session"`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Another PgBouncer than the installed one.
    #[arg(long)]
    pub pgbouncer: Option<PathBuf>,
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

    /// The ways to measure, of these.
    fn of(&self, routes: &[Route]) -> Vec<Route> {
        let wanted = |route: &&Route| self.routes.is_empty() || self.routes.contains(route);
        routes.iter().filter(wanted).copied().collect()
    }
}

impl Route {
    /// All, in the order in which they are printed.
    const ALL: [Self; 5] =
        [Self::Direct, Self::Synapsedb, Self::Pgbouncer, Self::PgbouncerUnix, Self::Haproxy];

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Synapsedb => "SynapseDB",
            Self::Pgbouncer => "PgBouncer",
            Self::PgbouncerUnix => "PgBouncer, unix",
            Self::Haproxy => "HAProxy",
        }
    }
}

/// Measures and prints.
///
/// # Errors
/// When a proxy is not installed or does not start, or a client of it gets an error.
pub async fn run(binary: Binary, options: Options) -> Result<()> {
    raise_files(u64::from(options.crowd) * 2 + FILES_BESIDE)?;
    let mut report = Report::new(&options);
    let measured = measure(&binary, &options, &mut report).await;
    // What has been measured before an error is not lost.
    report.print();
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    measured
}

async fn measure(binary: &Binary, options: &Options, report: &mut Report) -> Result<()> {
    if options.has_any(&[Part::Tps, Part::Latency, Part::Cpu, Part::Copy]) {
        let bed = bed::Bed::make(binary, options, &options.of(&Route::ALL), &[]).await?;
        report.describe(&bed).await?;
        for round in 1..=options.rounds {
            if options.has_any(&[Part::Tps, Part::Latency, Part::Cpu]) {
                grid::measure(&bed, options, round, report).await?;
            }
            if options.has(Part::Copy) {
                copy::measure(&bed, options, round, report).await?;
            }
            eprintln!("round {round} of {} is done", options.rounds);
        }
    }
    if options.has_any(&[Part::Memory, Part::Crowd]) {
        let routes = options.of(&[Route::Synapsedb, Route::Pgbouncer]);
        let bed = bed::Bed::make(binary, options, &routes, &[]).await?;
        report.describe(&bed).await?;
        crowd::measure(&bed, options, report).await?;
    }
    if options.has(Part::Cores) {
        grid::measure_workers(binary, options, report).await?;
    }
    Ok(())
}

/// Lets this process and those that it starts open so many files.
fn raise_files(wanted: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
        if setrlimit(Resource::Nofile, raised).is_err() {
            bail!(
                "so many clients need {wanted} open files, and the hard limit is {:?}; raise it (`ulimit -Hn`), \
                 or ask for fewer with --crowd",
                limit.maximum
            );
        }
    }
    Ok(())
}
