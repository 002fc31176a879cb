//! Figures of SynapseDB alone: the agents' memory when much has to pass or to wait, and false conflicts.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::time::Instant;

use super::report::Figures;
use super::system::System;
use super::{Options, Part, measure};
use crate::binary::Binary;
use crate::cluster::Cluster;

/// How long everything may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(600);

/// All of them.
pub(super) async fn measure(binary: &Binary, options: &Options) -> Result<Figures> {
    let mut figures = Figures::default();
    let system = System::native(binary, options.nodes).await?;
    let System::Native(cluster) = &system else { return Ok(figures) };
    if options.has(Part::Memory) {
        let rows = options.memory_rows;
        cluster.nodes().iter().for_each(|node| node.reset_memory_peak());
        measure::pass_large(&system, rows).await?;
        peaks(cluster, &mut figures, &format!("one transaction of {rows} rows"));
        peer_down(&system, cluster, rows).await?;
        peaks(cluster, &mut figures, &format!("a peer was down for {rows} transactions"));
    }
    if options.has(Part::Conflicts) {
        let count = false_conflicts(cluster, options.conflict_transactions).await?;
        let what = format!("false conflicts in {} transactions", options.conflict_transactions);
        figures.add(&what, count, "");
    }
    Ok(figures)
}

fn peaks(cluster: &Cluster, figures: &mut Figures, what: &str) {
    for node in cluster.nodes() {
        let mebibytes = node.agent_memory().peak_bytes as f64 / f64::from(1 << 20);
        let what = format!("peak memory of the agent of node {}, {what}", node.number());
        figures.add(&what, mebibytes, "MiB");
    }
}

/// Node 2, agent and server, is down while the transactions are written; then it catches up.
async fn peer_down(system: &System, cluster: &Cluster, transactions: u64) -> Result<()> {
    let session = system.origin().try_session().await?;
    session.batch_execute("truncate bench_single").await?;
    measure::rest(system, &session).await?;
    cluster.node(2).stop();
    cluster.nodes().iter().for_each(|node| node.reset_memory_peak());
    session.batch_execute("set synchronous_commit = off").await?;
    session.batch_execute(&measure::single(transactions)).await?;
    cluster.node(2).start();
    cluster.wait_ready().await;
    measure::settle(system.receiver(), &session).await?;
    measure::same(system, "select count(*), sum(id) from bench_single").await
}

/// Two nodes write at once, each its own rows: inserts them and updates them.
async fn false_conflicts(cluster: &Cluster, transactions: u64) -> Result<f64> {
    let there = "select to_regclass('synapsedb.conflict') is not null";
    if cluster.node(1).value(there).await != "t" {
        bail!("there is no table synapsedb.conflict");
    }
    let rows = transactions / 4;
    let write = |number: u16| {
        let server = cluster.node(number).server().clone();
        let sql = include_str!("apart.sql")
            .replace("$count", &rows.to_string())
            .replace("$node", &number.to_string());
        tokio::spawn(async move {
            let session = server.try_session().await?;
            session.batch_execute("set synchronous_commit = off").await?;
            session.batch_execute(&sql).await.context("write apart")
        })
    };
    // A truncate that arrives while node 2 writes already is a true conflict: it has to be seen there before.
    cluster.node(1).sql("insert into bench_load values (0, 0, 'before')").await;
    cluster.all_show("select count(*) > 0 from bench_load", &["t"]).await;
    cluster.node(1).sql("truncate bench_load").await;
    cluster.all_show("select count(*) from bench_load", &["0"]).await;
    let (one, two) = (write(1), write(2));
    one.await??;
    two.await??;
    let expected = (2 * rows).to_string();
    let end = Instant::now() + TIMEOUT;
    let mut conflicts = 0.0;
    for node in cluster.nodes() {
        let all = "select count(*) from bench_load where payload = 'changed'";
        while let Err(reason) = node.shows(all, &[&expected]).await {
            if Instant::now() > end {
                bail!("the rows have not arrived: {reason}");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        conflicts += node.value("select count(*) from synapsedb.conflict").await.parse::<f64>()?;
    }
    Ok(conflicts)
}
