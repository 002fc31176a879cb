//! The sample tables `users` and `orders` of a new cluster: made once, on node 1, and waited for on all nodes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use synapsedb_pg::{Config, Host, client};

use crate::layout::{Cluster, Node, write_atomic};

/// How long the tables may take to reach every node.
const ARRIVAL: Duration = Duration::from_secs(60);
/// How often a node is asked whether they are there.
const POLL: Duration = Duration::from_millis(50);
/// The file that says that they were made: who drops them does not get them back.
pub(super) const MARKER: &str = "sample.done";

/// Makes the sample tables unless this cluster has had them.
///
/// # Errors
/// Node 1 refuses, or the tables do not reach every node in time.
pub(super) async fn make(cluster: &Cluster) -> Result<()> {
    let marker = cluster.data.join(MARKER);
    if marker.exists() {
        return Ok(());
    }
    let first = cluster.node(1)?;
    let client = client::connect(&agent(cluster, first)?).await?;
    client.batch_execute(include_str!("sample.sql")).await.context("make the sample tables")?;
    for node in &cluster.nodes {
        arrive(cluster, node).await?;
    }
    write_atomic(&marker, b"The tables users and orders were made.\n", 0o644)
}

async fn arrive(cluster: &Cluster, node: &Node) -> Result<()> {
    let client = client::connect(&agent(cluster, node)?).await?;
    let deadline = Instant::now() + ARRIVAL;
    let there = "select to_regclass('public.users') is not null and to_regclass('public.orders') is not null";
    while !client.query_one(there, &[]).await?.get::<_, bool>(0) {
        if Instant::now() > deadline {
            bail!("the sample tables have not reached node {} within {ARRIVAL:?}", node.id);
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// How the agent's superuser reaches a node's server.
fn agent(cluster: &Cluster, node: &Node) -> Result<Config> {
    let file = cluster.node_dir(node.id).join("secrets/agent.password");
    let password = std::fs::read_to_string(&file)
        .with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(Config {
        host: Host::Tcp("127.0.0.1".to_owned()),
        port: node.ports.postgres,
        user: "synapsedb_agent".to_owned(),
        password: Some(password.trim_end().to_owned()),
        database: "synapsedb".to_owned(),
        application_name: "synapsedb up".to_owned(),
        ..Config::default()
    })
}
