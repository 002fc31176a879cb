//! A slot that was dropped behind the agent's back, and WAL that was removed: said at once, and what was not sent yet
//! reaches the others before the node is given new data.

use synapsedb_dev::{Cluster, Node, eventually};

use super::not_ready;
use crate::{NOTICED, cluster};

/// Drops the slot of a node while its agent stands still; what is committed then is in no stream.
async fn drop_slot(node: &Node) {
    let server = node.agent_server();
    let drop = "select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null;
        select pg_sleep(0.1);
        select pg_drop_replication_slot(slot_name) from pg_replication_slots";
    eventually("the slot is dropped", NOTICED, async || {
        server.try_rows(drop).await.map(|_| ()).map_err(|error| format!("{error:#}"))
    })
    .await;
}

/// Fills WAL until the slot of a node, whose agent stands still, has lost what it needs.
async fn lose_wal(node: &Node) {
    let server = node.agent_server();
    server.sql("alter system set max_slot_wal_keep_size = '1MB'").await;
    server.sql("select pg_reload_conf()").await;
    eventually("the slot is lost", NOTICED, async || {
        let server = node.agent_server();
        server.sql("select pg_switch_wal()").await;
        server.sql("checkpoint").await;
        server.shows("select wal_status from pg_replication_slots", &["lost"]).await
    })
    .await;
    server.sql("alter system reset max_slot_wal_keep_size").await;
    server.sql("select pg_reload_conf()").await;
}

/// What only this node has reaches the others, then it is given new data.
async fn rescue_and_reseed(cluster: &Cluster, node: &Node, source: u16) {
    let number = node.number().to_string();
    cluster.command(&["verify", "unsent", "--repair", "--from", &number, "--yes"]);
    node.stop();
    let source = source.to_string();
    cluster.command(&["node", "reseed", &number, "--yes", "--source", &source, "--timeout", "120"]);
    node.start();
    cluster.wait_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_or_lost_wal_is_said_and_what_was_not_sent_is_rescued() {
    let cluster = cluster(3).await;
    let [one, two, three] = [1, 2, 3].map(|number| cluster.node(number));
    one.sql("create table unsent (id int primary key, v text)").await;
    one.sql("insert into unsent select n, 'old' from generate_series(1, 10) n").await;
    cluster.all_show("select count(*) from unsent", &["10"]).await;

    one.pause_agent();
    drop_slot(one).await;
    one.sql("insert into unsent select n, 'one' from generate_series(101, 110) n").await;
    one.sql("update unsent set v = 'changed' where id = 1; delete from unsent where id = 2").await;
    one.resume();
    not_ready(one, "is gone, though the spool knows it").await;
    assert!(one.log().contains("synapsedb node reseed"), "{}", one.log_tail());
    let endpoint = cluster.write_endpoint();
    eventually("the write endpoint leads to another node", NOTICED, async || {
        let node = endpoint.try_rows("select node from synapsedb.node").await;
        match node.map_err(|error| format!("{error:#}"))?.as_slice() {
            [node] if node != "1" => Ok(()),
            nodes => Err(format!("{nodes:?}")),
        }
    })
    .await;
    // The others go on, and it still receives.
    three.sql("insert into unsent values (31, 'three')").await;
    for node in [one, two] {
        eventually("the row of node 3 is here", NOTICED, async || {
            node.shows("select v from unsent where id = 31", &["three"]).await
        })
        .await;
    }
    rescue_and_reseed(&cluster, one, 2).await;
    let look = "select count(*), count(*) filter (where v = 'one'), max(v) filter (where id = 1) from unsent";
    cluster.all_show(look, &["20|10|changed"]).await;
    one.sql("insert into unsent values (111, 'one')").await;
    cluster.all_show("select v from unsent where id = 111", &["one"]).await;

    two.pause_agent();
    two.sql("insert into unsent values (201, 'two')").await;
    lose_wal(two).await;
    two.resume();
    not_ready(two, "was removed").await;
    assert!(two.log().contains("max_slot_wal_keep_size"), "{}", two.log_tail());
    rescue_and_reseed(&cluster, two, 3).await;
    two.sql("insert into unsent values (202, 'two')").await;
    cluster.all_show("select id from unsent where v = 'two' order by id", &["201", "202"]).await;
    cluster.assert_equal_rows().await;
}
