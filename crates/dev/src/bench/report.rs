//! The figures with everything that is needed to read them: machine, versions, settings, command.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::Options;
use super::measure::Lags;
use super::system::System;

/// A report.
#[derive(Serialize)]
pub(super) struct Report {
    /// The command line that made it.
    command: String,
    /// What was asked for.
    options: Options,
    /// Processor cores of the machine.
    cores: usize,
    /// Memory of the machine, GiB.
    memory_gib: f64,
    /// The kernel.
    kernel: String,
    /// The version of the servers.
    postgres: String,
    /// The version of the binary.
    synapsedb: String,
    /// The version of pglogical, when it was measured.
    pub pglogical: Option<String>,
    /// The settings of the servers of both systems.
    settings: String,
    /// The figures.
    pub rows: Vec<Row>,
}

/// A figure.
#[derive(Serialize)]
pub(super) struct Row {
    /// Which system.
    pub system: &'static str,
    /// What was measured.
    pub what: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
}

impl Row {
    /// A rate from a count and the time it took.
    pub(super) fn rate(
        system: &System,
        what: String,
        count: u64,
        took: Duration,
        unit: &'static str,
    ) -> Self {
        Self { system: system.name(), what, value: count as f64 / took.as_secs_f64(), unit }
    }

    /// The two percentiles of a lag.
    pub(super) fn lag(system: &System, what: &str, lags: &Lags) -> [Self; 2] {
        [("p50", 0.5), ("p99", 0.99)].map(|(name, share)| Self {
            system: system.name(),
            what: format!("{what}, {name}"),
            value: lags.percentile_ms(share),
            unit: "ms",
        })
    }
}

impl Report {
    /// A report without figures.
    pub(super) fn new(options: &Options) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let kilobytes = read("/proc/meminfo")
            .lines()
            .find_map(|line| {
                line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok()
            })
            .unwrap_or(0.0);
        // Its path would say only where the build of this machine lies.
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        Self {
            command: format!("cargo dev {}", arguments.join(" ")),
            options: options.clone(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kilobytes / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            postgres: String::new(),
            synapsedb: String::new(),
            pglogical: None,
            settings: String::new(),
            rows: Vec::new(),
        }
    }

    /// Adds the versions and settings of a running mesh.
    pub(super) async fn describe(&mut self, system: &System, settings: &str) -> Result<()> {
        self.postgres = system.origin().try_rows("show server_version").await?.concat();
        self.settings = settings.to_owned();
        if let System::Native(cluster) = system {
            self.synapsedb = cluster.binary().output(&["--version"])?.trim().to_owned();
        }
        Ok(())
    }

    /// Prints it for people.
    pub(super) fn print(&self) {
        println!("{}", self.command);
        println!(
            "{} cores, {:.0} GiB, Linux {}, PostgreSQL {}, {}, pglogical {}",
            self.cores,
            self.memory_gib,
            self.kernel,
            self.postgres,
            self.synapsedb,
            self.pglogical.as_deref().unwrap_or("not measured")
        );
        println!("{}", self.settings.replace('\n', ", "));
        let width = self.rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
        for row in &self.rows {
            let digits = if row.value < 100.0 { 2 } else { 0 };
            println!(
                "{:<10} {:<width$} {:>12.digits$} {}",
                row.system, row.what, row.value, row.unit
            );
        }
    }
}
