//! Nodes join a cluster under load, are given new data, and leave it: nobody pauses, nothing is lost or doubled.

use std::time::Duration;

use synapsedb_dev::load::{self, Load};
use synapsedb_dev::{Cluster, HttpPort, Node, eventually};

use crate::{NOTICED, cluster};

/// How long a node may take to catch up and take part.
const CAUGHT_UP: Duration = Duration::from_secs(90);

/// Waits until everybody knows that a node takes part, and all are ready.
async fn takes_part(cluster: &Cluster, number: u16) {
    eventually(&format!("node {number} takes part"), CAUGHT_UP, async || {
        for node in cluster.nodes() {
            let answer = node.try_http(HttpPort::Raft, "/raft/status").await;
            let (_, text) = answer.map_err(|error| format!("{error:#}"))?;
            let body: serde_json::Value =
                serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let status = &body["state"]["members"][number.to_string()]["status"];
            if status != "active" {
                return Err(format!("node {}: {status}", node.number()));
            }
            if !body["voters"].as_array().is_some_and(|voters| voters.contains(&number.into())) {
                return Err(format!(
                    "node {}: it does not vote: {}",
                    node.number(),
                    body["voters"]
                ));
            }
        }
        Ok(())
    })
    .await;
    cluster.wait_ready().await;
}

/// The commit times and the writers of the rows of a table, as a node knows them; `node` is who wrote locally.
async fn versions(node: &Node, table: &str) -> Vec<String> {
    let sql = format!(
        "select t.id, v.\"timestamp\", coalesce(o.roname,
             (select 'synapsedb_' || i.node || '_1' from synapsedb.inherited i
              where age(t.xmin) > age((i.before_xid::text::numeric % 4294967296)::text::xid)
              order by before_xid limit 1),
             (select 'synapsedb_' || n.node || '_' || n.incarnation from synapsedb.node n))
         from {table} t, pg_xact_commit_timestamp_origin(t.xmin) v
         left join pg_replication_origin o on o.roident = v.roident order by t.id"
    );
    let session = node.session().await;
    session.rows(&sql).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_and_a_fourth_node_join_under_load() {
    let mut cluster = cluster(2).await;
    cluster.node(1).sql("create table joined (id serial primary key, by int)").await;
    let config = load::Config { writers: 1, rate_per_s: Some(100.0) };
    load::prepare(&cluster, &config).await;
    let load = Load::start(&cluster, &config);
    cluster.join(None);
    takes_part(&cluster, 3).await;
    cluster.node(3).sql("insert into joined (by) select 3 from generate_series(1, 50)").await;
    cluster.join(Some(3));
    takes_part(&cluster, 4).await;
    for number in 1..=4 {
        let insert = format!("insert into joined (by) select {number} from generate_series(1, 50)");
        cluster.node(number).sql(&insert).await;
    }
    let accounts = load.finish().await;
    cluster.all_show("select count(*), count(distinct id) from joined", &["250|250"]).await;
    cluster.assert_equal_rows().await;
    for node in cluster.nodes() {
        load::verify(&cluster, node.number(), &accounts).await.unwrap();
    }
    let listed = cluster.command(&["node", "ls"]);
    assert_eq!(listed.lines().filter(|line| line.contains("active")).count(), 4, "{listed}");
    // From cold, with what the configuration of the first nodes does not know.
    cluster.stop();
    cluster.start().await;
    cluster.node(4).sql("insert into joined (by) values (4)").await;
    cluster.all_show("select count(*) from joined", &["251"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_was_killed_is_finished_by_the_next() {
    let mut cluster = cluster(2).await;
    cluster.node(1).sql("create table halfway (id int primary key)").await;
    cluster.all_show("select count(*) from halfway", &["0"]).await;
    let folder = cluster.data().join("node-3");
    let copies = || {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let begun = |path: &std::path::Path| path.join("PG_VERSION").exists();
        entries.filter(|entry| begun(&entry.path())).count()
    };
    let mut command = std::process::Command::new(cluster.binary().path());
    let data = cluster.data().to_owned();
    let mut child = command.args(["node", "join", "--data"]).arg(data).spawn().unwrap();
    eventually("it copies", NOTICED, async || {
        let (begun, ended) = (copies(), child.try_wait().unwrap());
        if begun == 1 && ended.is_none() { Ok(()) } else { Err(format!("{begun} {ended:?}")) }
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    cluster.node(1).sql("insert into halfway select generate_series(1, 100)").await;
    assert_eq!(cluster.join(None), 3, "the number of the join that was not finished");
    takes_part(&cluster, 3).await;
    cluster.node(3).sql("insert into halfway values (101)").await;
    cluster.all_show("select count(*) from halfway", &["101"]).await;
    cluster.assert_equal_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_keeps_the_versions_of_all_rows() {
    let mut cluster = cluster(2).await;
    cluster.node(1).sql("create table versioned (id int primary key, v text)").await;
    cluster.all_show("select count(*) from versioned", &["0"]).await;
    cluster.node(1).sql("insert into versioned select n, 'one' from generate_series(1, 5) n").await;
    cluster.node(2).sql("insert into versioned select n, 'two' from generate_series(6, 9) n").await;
    cluster.all_show("select count(*) from versioned", &["9"]).await;
    cluster.join(Some(1));
    takes_part(&cluster, 3).await;
    // Before and after the copy, written by the copied node and by the copy.
    cluster.node(1).sql("insert into versioned values (10, 'one')").await;
    cluster.node(3).sql("insert into versioned values (11, 'three')").await;
    cluster.node(3).sql("update versioned set v = 'three' where id = 2").await;
    cluster.all_show("select count(*) from versioned", &["11"]).await;
    cluster.node(1).sql("update versioned set v = 'one again' where id in (1, 2)").await;
    cluster.assert_equal_rows().await;
    let (one, three) = (cluster.node(1), cluster.node(3));
    let expected = versions(one, "versioned").await;
    assert_eq!(versions(three, "versioned").await, expected);
    assert_eq!(versions(cluster.node(2), "versioned").await, expected);
    assert!(expected[4].ends_with("synapsedb_1_1"), "{expected:?}");
    assert!(expected[10].ends_with("synapsedb_3_1"), "{expected:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_spool_is_lost_is_reseeded() {
    let cluster = cluster(3).await;
    cluster.node(1).sql("create table seeded (id serial primary key, by int)").await;
    cluster.all_show("select count(*) from seeded", &["0"]).await;
    for number in 1..=3 {
        let insert =
            format!("insert into seeded (by) select {number} from generate_series(1, 100)");
        cluster.node(number).sql(&insert).await;
    }
    cluster.all_show("select count(*) from seeded", &["300"]).await;
    let node = cluster.node(2);
    node.stop();
    std::fs::remove_dir_all(node.folder().join("spool")).unwrap();
    node.start();
    eventually("it says that its spool was lost", NOTICED, async || match node.ready().await {
        Err(why) if why.contains("it was lost. Re-seed this node") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    node.stop();
    cluster.node(1).sql("insert into seeded (by) select 1 from generate_series(1, 10)").await;
    cluster.command(&["node", "reseed", "2", "--yes", "--source", "3", "--timeout", "120"]);
    node.start();
    takes_part(&cluster, 2).await;
    node.sql("insert into seeded (by) select 2 from generate_series(1, 100)").await;
    cluster.all_show("select count(*), count(distinct id) from seeded", &["410|410"]).await;
    cluster.assert_equal_rows().await;
    let status = node.http(HttpPort::Raft, "/replication/status").await;
    assert_eq!(status["incarnation"], 2, "{status}");
    // And on it goes after a restart, from the same place.
    node.stop();
    node.start();
    cluster.wait_ready().await;
    node.sql("insert into seeded (by) values (2)").await;
    cluster.all_show("select count(*), count(distinct id) from seeded", &["411|411"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_parts_for_good() {
    let mut cluster = cluster(3).await;
    cluster.node(1).sql("create table parted (id serial primary key, by int)").await;
    cluster.all_show("select count(*) from parted", &["0"]).await;
    cluster.node(3).sql("insert into parted (by) select 3 from generate_series(1, 500)").await;
    cluster.command(&["node", "part", "3", "--timeout", "60"]);
    let parted = cluster.node(3);
    eventually("its agent stops and says why", NOTICED, async || match parted.ended() {
        Some(_) if parted.log().contains("node 3 was removed from the cluster") => Ok(()),
        Some(how) => Err(format!("{how}: {}", parted.log_tail())),
        None => Err("it runs".to_owned()),
    })
    .await;
    let folder = parted.folder().to_owned();
    cluster.forget(3);
    cluster.wait_ready().await;
    cluster.all_show("select count(*) from parted", &["500"]).await;
    cluster.node(1).sql("insert into parted (by) values (1)").await;
    cluster.node(2).sql("insert into parted (by) values (2)").await;
    cluster.all_show("select count(*) from parted", &["502"]).await;
    for node in cluster.nodes() {
        let spool = node.folder().join("spool/3-1");
        eventually("its spools are removed", NOTICED, async || {
            if spool.exists() { Err(spool.display().to_string()) } else { Ok(()) }
        })
        .await;
    }
    assert!(folder.join("pgdata").exists(), "what it had is left where it was");
    // Its number is not given again.
    let listed = cluster.command(&["node", "ls"]);
    assert!(listed.lines().any(|line| line.contains("removed")), "{listed}");
}
