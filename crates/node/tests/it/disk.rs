//! A full disk under the spool or the Raft log: clear words, nothing lost, and on it goes when there is room again.

use std::time::Duration;

use synapsedb_dev::disk::SmallDisk;
use synapsedb_dev::{Cluster, Node, eventually};

use crate::{NOTICED, cluster, skip};

/// The size of the small disk: enough for an empty spool or Raft log.
const DISK_BYTES: u64 = 64 << 20;

/// Starts the agent again if the full disk has ended it.
fn revive(node: &Node) {
    if node.ended().is_some() {
        node.kill_agent();
        node.start();
    }
}

async fn says(node: &Node, words: &[&str]) {
    eventually(
        &format!("the log of node {} says one of {words:?}", node.number()),
        NOTICED,
        async || {
            let log = node.log().to_lowercase();
            let said = words.iter().any(|word| log.contains(word));
            if said { Ok(()) } else { Err(node.log_tail()) }
        },
    )
    .await;
}

async fn table(cluster: &Cluster) {
    cluster.node(1).sql("create table crowded (id serial primary key, v text)").await;
    cluster.all_show("select count(*) from crowded", &["0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_spool_loses_nothing() {
    let cluster = cluster(3).await;
    table(&cluster).await;
    cluster.node(1).stop();
    let disk = match SmallDisk::mount(&cluster.node(1).folder().join("spool"), DISK_BYTES) {
        Ok(disk) => disk,
        Err(reason) => return skip(&format!("{reason:#}")),
    };
    cluster.start().await;
    disk.fill(64 << 10).unwrap();
    cluster
        .node(1)
        .sql(
            "insert into crowded (v)
             select repeat(md5(n::text), 30) from generate_series(1, 2000) n",
        )
        .await;
    cluster
        .node(2)
        .sql("insert into crowded (v) select 'from node 2' from generate_series(1, 50)")
        .await;
    says(cluster.node(1), &["no space", "disk is full", "disk full"]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    disk.relieve().unwrap();
    revive(cluster.node(1));
    cluster.wait_ready().await;
    cluster.all_show("select count(*) from crowded", &["2050"]).await;
    cluster.assert_equal_rows().await;
    drop(cluster);
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_raft_log_loses_nothing() {
    let cluster = cluster(3).await;
    table(&cluster).await;
    cluster.node(3).stop();
    let disk = match SmallDisk::mount(&cluster.node(3).folder().join("raft"), DISK_BYTES) {
        Ok(disk) => disk,
        Err(reason) => return skip(&format!("{reason:#}")),
    };
    cluster.start().await;
    disk.fill(0).unwrap();
    // A lost leader makes the others vote, and a vote is written before it is given.
    for number in [1, 2] {
        cluster.node(number).kill_agent();
        cluster.node(number).start();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    cluster.node(1).sql("insert into crowded (v) values ('while full')").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    disk.relieve().unwrap();
    revive(cluster.node(3));
    cluster.wait_ready().await;
    cluster.all_show("select v from crowded", &["while full"]).await;
    drop(cluster);
    drop(disk);
}
