//! Agents and servers are killed under load: every node ends with the same rows, every acknowledged one once.

use std::time::Duration;

use synapsedb_dev::chaos::{self, Fault};
use synapsedb_dev::load::{self, Load};
use synapsedb_dev::{Cluster, eventually};

use crate::{NOTICED, cluster, skip};

async fn survives(cluster: &Cluster, config: &chaos::Config) {
    let report = chaos::run(cluster, config).await;
    if let Err(error) = &report {
        panic!("{error:#}");
    }
    eprintln!("{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_agents_and_servers_lose_nothing_and_double_nothing() {
    let cluster = cluster(3).await;
    let config = chaos::Config { duration: Duration::from_secs(30), ..chaos::Config::default() };
    survives(&cluster, &config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_cut_off_catches_up() {
    let cluster = cluster(3).await;
    if let Err(reason) = cluster.node(2).can_be_cut_off() {
        return skip(&reason);
    }
    let config = load::Config { writers: 1, rate_per_s: Some(50.0) };
    load::prepare(&cluster, &config).await;
    let load = Load::start(&cluster, &config);
    cluster.node(2).cut_off();
    // Written on the far side of the cut while it lasts: it must not get through it.
    cluster.node(1).sql("insert into load_history values (0, 0, 1, 0)").await;
    let mark = "select count(*) from load_history where node = 0";
    eventually("node 3 has the row", NOTICED, async || cluster.node(3).shows(mark, &["1"]).await)
        .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(cluster.node(2).value(mark).await, "0", "the cut leaks");
    cluster.node(2).rejoin();
    let accounts = load.finish().await;
    cluster.assert_equal_rows().await;
    for node in cluster.nodes() {
        load::verify(&cluster, node.number(), &accounts).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_agents_lose_nothing() {
    let cluster = cluster(3).await;
    let config = chaos::Config {
        duration: Duration::from_secs(15),
        between: Duration::from_secs(2),
        away_ms_max: 4000,
        faults: vec![Fault::Pause],
        ..chaos::Config::default()
    };
    survives(&cluster, &config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_stopped_starts_with_its_rows() {
    let cluster = cluster(3).await;
    cluster.node(1).sql("create table kept (id serial primary key, v int)").await;
    cluster.all_show("select count(*) from kept", &["0"]).await;
    for node in cluster.nodes() {
        node.sql("insert into kept (v) select generate_series(1, 100)").await;
    }
    cluster.stop();
    cluster.start().await;
    cluster.all_show("select count(*), count(distinct id) from kept", &["300|300"]).await;
    cluster.node(3).sql("insert into kept (v) values (1)").await;
    cluster.assert_equal_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_may_be_killed_at_once() {
    let cluster = cluster(3).await;
    let config = load::Config::default();
    load::prepare(&cluster, &config).await;
    let load = Load::start(&cluster, &config);
    tokio::time::sleep(Duration::from_secs(2)).await;
    for node in cluster.nodes() {
        node.kill_agent();
        node.kill_postgres();
    }
    cluster.start().await;
    let accounts = load.finish().await;
    cluster.assert_equal_rows().await;
    for node in cluster.nodes() {
        load::verify(&cluster, node.number(), &accounts).await.unwrap();
    }
}
