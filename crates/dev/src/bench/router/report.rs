//! The figures of all ways, the bars that they are held to, and what is needed to read them.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use super::bars::{self, Judged};
use super::bed::Bed;
use super::{Options, Route};
use crate::bench::report::{Machine, median, spread};

/// A report.
#[derive(Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    machine: Machine,
    options: Options,
    /// The version of the server.
    postgres: String,
    /// The version of the binary.
    synapsedb: String,
    /// What the proxies say of themselves.
    proxies: Vec<String>,
    rows: Vec<Row>,
    bars: Vec<Judged>,
}

/// A figure of every way, one value per round.
#[derive(Serialize)]
struct Row {
    what: String,
    unit: &'static str,
    values: BTreeMap<Route, Vec<f64>>,
    medians: BTreeMap<Route, f64>,
}

impl Report {
    /// A report without figures.
    pub(super) fn new(options: &Options) -> Self {
        Self {
            machine: Machine::here(),
            options: options.clone(),
            postgres: String::new(),
            synapsedb: String::new(),
            proxies: Vec::new(),
            rows: Vec::new(),
            bars: Vec::new(),
        }
    }

    /// Adds the versions.
    pub(super) async fn describe(&mut self, bed: &Bed) -> Result<()> {
        self.postgres = bed.server().try_rows("show server_version").await?.concat();
        self.synapsedb = bed.cluster().binary().output(&["--version"])?.trim().to_owned();
        for version in bed.versions() {
            if !self.proxies.contains(&version) {
                self.proxies.push(version);
            }
        }
        Ok(())
    }

    /// Adds a figure of one way in one round.
    pub(super) fn add(&mut self, what: &str, route: Route, value: f64, unit: &'static str) {
        let index = self.rows.iter().position(|row| row.what == what).unwrap_or_else(|| {
            let (values, medians) = (BTreeMap::new(), BTreeMap::new());
            self.rows.push(Row { what: what.to_owned(), unit, values, medians });
            self.rows.len() - 1
        });
        let row = &mut self.rows[index];
        let values = row.values.entry(route).or_default();
        values.push(value);
        row.medians.extend(median(values).map(|median| (route, median)));
        self.bars = bars::judge(&|what, route| self.median(what, route), &self.options.clients);
    }

    /// The median of a figure.
    fn median(&self, what: &str, route: Route) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.what == what)?;
        row.medians.get(&route).copied()
    }

    /// Prints it for people.
    pub(super) fn print(&self) {
        let Machine { command, cores, memory_gib, kernel } = &self.machine;
        println!("{command}");
        println!(
            "{cores} cores, {memory_gib:.0} GiB, Linux {kernel}, PostgreSQL {}, {}, {}",
            self.postgres,
            self.synapsedb,
            self.proxies.join(", ")
        );
        let routes = Route::ALL.map(|route| format!("{:>22}", route.name())).concat();
        let width = self.rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
        println!("{:<width$} {routes}", "");
        for row in &self.rows {
            let values = Route::ALL.map(|route| {
                let text = row.values.get(&route).map(|values| spread(values));
                format!("{:>22}", text.unwrap_or_default())
            });
            println!("{:<width$} {} {}", row.what, values.concat(), row.unit);
        }
        for judged in &self.bars {
            println!("{judged}");
        }
    }
}
