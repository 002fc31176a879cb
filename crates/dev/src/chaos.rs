//! Writes on all nodes while agents and servers are killed and started again; then every node must hold the same
//! rows and every acknowledged one exactly once.

use std::time::Duration;

use anyhow::{Result, anyhow};
use rand::Rng as _;
use tokio::time::Instant;

use crate::cluster::{Cluster, EQUAL_TIMEOUT};
use crate::load::{self, Load};

/// What is done to the cluster and for how long.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long the faults go on.
    pub duration: Duration,
    /// The pause between two faults.
    pub between: Duration,
    /// How long a killed agent stays away at most.
    pub away_ms_max: u64,
    /// The writers.
    pub load: load::Config,
    /// The faults to choose from.
    pub faults: Vec<Fault>,
}

/// What can befall a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of the agent, which is started again.
    KillAgent,
    /// SIGKILL of the postmaster, which the agent starts again.
    KillPostgres,
    /// SIGKILL of both.
    KillBoth,
    /// The agent stands still and goes on.
    Pause,
    /// The agent is cut off from its peers and joins them again (where the machine allows it).
    CutOff,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(60),
            between: Duration::from_secs(4),
            away_ms_max: 3000,
            load: load::Config::default(),
            faults: vec![Fault::KillAgent, Fault::KillPostgres, Fault::KillBoth],
        }
    }
}

/// What a run has shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Transactions that were acknowledged.
    pub acknowledged: usize,
    /// Transactions whose outcome the writer does not know.
    pub ambiguous: usize,
    /// Transactions that the server refused.
    pub refused: usize,
    /// Faults that were made.
    pub faults: usize,
    /// Seconds from the last write until all nodes were equal.
    pub settle_s: f64,
}

/// Makes the tables, runs load and faults, and checks the outcome.
///
/// # Errors
/// What was lost, doubled or different, or that the cluster did not recover.
pub async fn run(cluster: &Cluster, config: &Config) -> Result<Report> {
    load::prepare(cluster, &config.load).await;
    let load = Load::start(cluster, &config.load);
    let end = Instant::now() + config.duration;
    let mut report = Report::default();
    while Instant::now() + config.between < end {
        tokio::time::sleep(config.between).await;
        befall(cluster, config, report.faults).await;
        report.faults += 1;
    }
    tokio::time::sleep_until(end).await;
    cluster.wait_ready().await;
    let accounts = load.finish().await;
    let stopped = Instant::now();
    cluster.equal_rows_within(EQUAL_TIMEOUT).await.map_err(|reason| anyhow!(reason))?;
    report.settle_s = stopped.elapsed().as_secs_f64();
    for node in cluster.nodes() {
        load::verify(cluster, node.number(), &accounts).await.map_err(|reason| anyhow!(reason))?;
    }
    for account in accounts.values() {
        report.acknowledged += account.acknowledged.len();
        report.ambiguous += account.ambiguous.len();
        report.refused += account.refused.len();
    }
    if report.acknowledged == 0 {
        return Err(anyhow!("no write was acknowledged: the run has shown nothing"));
    }
    Ok(report)
}

/// Lets one fault befall one node: both in turn and shifted, so that a short run makes every fault and reaches every
/// node.
pub(crate) async fn befall(cluster: &Cluster, config: &Config, turn: usize) {
    let nodes = cluster.nodes();
    let node = &nodes[turn % nodes.len()];
    let shifted = turn + turn / nodes.len();
    let Some(fault) = config.faults.get(shifted % config.faults.len().max(1)) else { return };
    let away = Duration::from_millis(rand::rng().random_range(0..=config.away_ms_max));
    tracing::info!("{fault:?} on node {}, away for {away:?}", node.number());
    match fault {
        Fault::KillAgent => {
            node.kill_agent();
            tokio::time::sleep(away).await;
            node.start();
        }
        Fault::KillPostgres => kill_server(node),
        Fault::KillBoth => {
            node.kill_agent();
            kill_server(node);
            tokio::time::sleep(away).await;
            node.start();
        }
        Fault::Pause => {
            node.pause_agent();
            tokio::time::sleep(away).await;
            node.resume();
        }
        Fault::CutOff => {
            if node.can_be_cut_off().is_ok() {
                node.cut_off();
                tokio::time::sleep(away).await;
                node.rejoin();
            }
        }
    }
}

fn kill_server(node: &crate::node::Node) {
    // It may still be down from the fault before.
    if crate::process::postmaster(&node.pgdata()).is_some() {
        node.kill_postgres();
    }
}
