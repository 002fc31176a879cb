//! Writes on all nodes while agents and servers are killed and started again; then every node must hold the same
//! rows and every acknowledged one exactly once.
//!
//! A seed decides which fault lasts how long, not when the processes do what: a run with the same seed is alike, not
//! the same.

use std::time::Duration;

use anyhow::{Result, anyhow};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use crate::cluster::{Cluster, EQUAL_TIMEOUT};
use crate::load::{self, Load};
use crate::node::Node;

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
    /// Decides for how long a node is away and how its clock is set.
    pub seed: u64,
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
    /// The node's clock is set to another time within the allowed skew (where the node has one of its own): ahead while
    /// it runs, back while agent and server are killed, for at least as long as it is set back.
    SetClock,
}

/// How far a clock is set ahead at most: the nodes' clocks then differ by less than `replication.clock_skew_max_ms`.
const AHEAD_MS_MAX: i64 = 400;

impl Default for Config {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(60),
            between: Duration::from_secs(4),
            away_ms_max: 3000,
            load: load::Config::default(),
            faults: vec![Fault::KillAgent, Fault::KillPostgres, Fault::KillBoth],
            seed: rand::rng().random(),
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

/// Lets one fault befall one node: both in turn, so that a short run makes every fault and reaches every node, and
/// shifted, so that a long one lets every fault befall every node.
pub(crate) async fn befall(cluster: &Cluster, config: &Config, turn: usize) {
    let nodes = cluster.nodes();
    let node = &nodes[turn % nodes.len()];
    let faults = config.faults.len().max(1);
    let round = (1..).map(|times| times * faults).find(|turns| turns % nodes.len() == 0);
    let shifted = turn + turn / round.unwrap_or(faults);
    let Some(fault) = config.faults.get(shifted % faults) else { return };
    let mut chance = StdRng::seed_from_u64(config.seed.wrapping_add(turn as u64));
    let away = Duration::from_millis(chance.random_range(0..=config.away_ms_max));
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
        Fault::SetClock => {
            if let Some(before) = node.clock_ahead_ms() {
                set_clock(node, before, chance.random_range(0..=AHEAD_MS_MAX)).await;
            }
        }
    }
}

/// A clock that is set back while the node runs breaks a promise of the machine. This one is only wrong.
async fn set_clock(node: &Node, before: i64, after: i64) {
    tracing::info!("the clock of node {} from {before} ms to {after} ms ahead", node.number());
    if after >= before {
        return node.set_clock(after);
    }
    node.kill_agent();
    kill_server(node);
    node.set_clock(after);
    tokio::time::sleep(Duration::from_millis((before - after).unsigned_abs())).await;
    node.start();
}

/// Gives every node a clock of its own, each another time ahead; before the cluster is started.
///
/// # Errors
/// What this machine is missing for it.
pub fn own_clocks(cluster: &Cluster, seed: u64) -> Result<(), String> {
    Node::can_have_own_clock()?;
    let mut chance = StdRng::seed_from_u64(seed);
    for node in cluster.nodes() {
        let ahead_ms = chance.random_range(0..=AHEAD_MS_MAX);
        tracing::info!("the clock of node {} is {ahead_ms} ms ahead", node.number());
        node.own_clock(ahead_ms);
    }
    Ok(())
}

fn kill_server(node: &Node) {
    // It may still be down from the fault before.
    if crate::process::postmaster(&node.pgdata()).is_some() {
        node.kill_postgres();
    }
}
