//! Transactions far larger than memory should hold pass through the agents in bounded memory.

use synapsedb_dev::cluster::EQUAL_TIMEOUT;
use synapsedb_dev::eventually;

use crate::cluster;

/// The most resident memory an agent may have had: the goal for a transaction of any size.
const AGENT_BYTES_MAX: u64 = 256 << 20;
/// Rows of the large transaction; the benchmark takes a million.
const ROWS: u32 = 200_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_needs_little_memory_and_is_seen_whole() {
    let cluster = cluster(3).await;
    cluster
        .node(1)
        .sql("create table large (id bigint primary key, text text, at timestamptz default now())")
        .await;
    cluster.all_show("select count(*) from large", &["0"]).await;
    let counts = cluster.node(3).server().clone();
    let watcher = tokio::spawn(async move {
        let session = counts.session().await;
        loop {
            let rows = session.rows("select count(*) from large").await.unwrap();
            if rows[0] != "0" {
                return rows[0].clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    let insert = format!(
        "insert into large select n, repeat(md5(n::text), 6) from generate_series(1, {ROWS}) n"
    );
    cluster.node(1).sql(&insert).await;
    let count = ROWS.to_string();
    let first = tokio::time::timeout(EQUAL_TIMEOUT * 2, watcher).await.unwrap().unwrap();
    assert_eq!(first, count, "the transaction was seen in part");
    eventually("every node has all rows", EQUAL_TIMEOUT, async || {
        for node in cluster.nodes() {
            node.shows("select count(*) from large", &[&count]).await?;
        }
        Ok(())
    })
    .await;
    cluster.node(2).sql("update large set text = 'short' where id % 2 = 0").await;
    cluster.node(3).sql("delete from large where id % 4 = 1").await;
    cluster.all_show_as(3, "select count(*) from large where id % 4 = 1").await;
    cluster.assert_equal_rows().await;
    for node in cluster.nodes() {
        let peak = node.agent_memory().peak_bytes;
        eprintln!("node {}: the agent's memory peaked at {} MiB", node.number(), peak >> 20);
        assert!(peak <= AGENT_BYTES_MAX, "node {}: {peak} bytes", node.number());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_survives_a_kill_of_the_agent_that_applies_it() {
    let cluster = cluster(3).await;
    cluster.node(1).sql("create table large_killed (id bigint primary key, text text)").await;
    cluster.all_show("select count(*) from large_killed", &["0"]).await;
    let insert =
        "insert into large_killed select n, md5(n::text) from generate_series(1, 100000) n";
    cluster.node(1).sql(insert).await;
    for _ in 0..3 {
        cluster.node(2).kill_agent();
        cluster.node(2).start();
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    cluster.node(1).kill_agent();
    cluster.node(1).start();
    cluster.wait_ready().await;
    cluster.all_show("select count(*) from large_killed", &["100000"]).await;
    cluster.assert_equal_rows().await;
}
