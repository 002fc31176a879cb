//! The figures with everything that is needed to read them: machine, versions, settings, command.

use anyhow::Result;
use serde::Serialize;

use super::Options;
use super::system::System;

/// Where and by which command figures were made.
#[derive(Serialize)]
pub(super) struct Machine {
    /// The command line that made them.
    pub(super) command: String,
    /// Processor cores of the machine.
    pub(super) cores: usize,
    /// Memory of the machine, GiB.
    pub(super) memory_gib: f64,
    /// The kernel.
    pub(super) kernel: String,
}

impl Machine {
    /// This machine, and the command line of this process.
    pub(super) fn here() -> Self {
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
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kilobytes / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// A report.
#[derive(Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    machine: Machine,
    /// What was asked for.
    options: Options,
    /// The version of the servers.
    postgres: String,
    /// The version of the binary.
    synapsedb: String,
    /// The version of pglogical, when it was measured.
    pglogical: Option<String>,
    /// The settings of the servers of both systems.
    settings: String,
    /// The figures.
    rows: Vec<Row>,
}

/// The figures of one system in one round, in their order.
#[derive(Default)]
pub(super) struct Figures {
    /// The version of pglogical; empty for SynapseDB.
    pub(super) version: String,
    rows: Vec<(String, f64, &'static str)>,
}

impl Figures {
    /// Adds a figure.
    pub(super) fn add(&mut self, what: &str, value: f64, unit: &'static str) {
        self.rows.push((what.to_owned(), value, unit));
    }
}

/// A figure of both systems, one value per round.
#[derive(Default, Serialize)]
struct Row {
    what: String,
    unit: &'static str,
    synapsedb: Vec<f64>,
    pglogical: Vec<f64>,
    /// The medians.
    synapsedb_median: Option<f64>,
    pglogical_median: Option<f64>,
    /// The one by the other.
    ratio: Option<f64>,
}

impl Row {
    fn summarize(&mut self) {
        self.synapsedb_median = median(&self.synapsedb);
        self.pglogical_median = median(&self.pglogical);
        self.ratio =
            self.synapsedb_median.zip(self.pglogical_median).map(|(ours, theirs)| ours / theirs);
    }
}

/// The median; nothing of nothing.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.get((sorted.len().max(1) - 1) / 2)?, sorted.get(sorted.len() / 2)?);
    Some((low + high) / 2.0)
}

impl Report {
    /// A report without figures.
    pub(super) fn new(options: &Options) -> Self {
        Self {
            machine: Machine::here(),
            options: options.clone(),
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
        let Machine { command, cores, memory_gib, kernel } = &self.machine;
        println!("{command}");
        println!(
            "{cores} cores, {memory_gib:.0} GiB, Linux {kernel}, PostgreSQL {}, {}, pglogical {}",
            self.postgres,
            self.synapsedb,
            self.pglogical.as_deref().unwrap_or("not measured")
        );
        println!("{}", self.settings.replace('\n', ", "));
        let width = self.rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
        println!("{:<width$} {:>22} {:>22} {:>6}", "", "SynapseDB", "pglogical", "ratio");
        for row in &self.rows {
            let [ours, theirs] = [&row.synapsedb, &row.pglogical].map(|values| spread(values));
            let ratio = row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
            println!("{:<width$} {ours:>22} {theirs:>22} {ratio:>6} {}", row.what, row.unit);
        }
    }

    /// Adds the figures of a round.
    pub(super) fn add(&mut self, system: &str, figures: Figures) {
        if !figures.version.is_empty() {
            self.pglogical = Some(figures.version);
        }
        for (what, value, unit) in figures.rows {
            let index = self.rows.iter().position(|row| row.what == what).unwrap_or_else(|| {
                self.rows.push(Row { what, unit, ..Row::default() });
                self.rows.len() - 1
            });
            let row = &mut self.rows[index];
            match system {
                "pglogical" => row.pglogical.push(value),
                _ => row.synapsedb.push(value),
            }
            row.summarize();
        }
    }
}

/// The median with the least and the largest value.
pub(super) fn spread(values: &[f64]) -> String {
    let Some(median) = median(values) else { return String::new() };
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let digits = if median < 100.0 { 2 } else { 0 };
    match values.len() {
        1 => format!("{median:.digits$}"),
        _ => format!("{median:.digits$} ({least:.digits$}-{most:.digits$})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), Some(3.0));
        assert_eq!(spread(&[1.0, 2.0, 9.0]), "2.00 (1.00-9.00)");
    }
}
