//! Nodes join a cluster under load, are given new data, and leave it: nobody pauses, nothing is lost or doubled.

use std::time::Duration;

use synapsedb_dev::client::Session;
use synapsedb_dev::load::{self, Load};
use synapsedb_dev::{Cluster, HttpPort, Node, eventually};

use crate::{NOTICED, agent, binary, cluster};

/// How long a node may take to catch up and take part.
const CAUGHT_UP: Duration = Duration::from_secs(90);

/// Waits until everybody knows that a node takes part, and all are ready.
async fn takes_part(cluster: &Cluster, number: u16) {
    is_known(cluster, number).await;
    cluster.wait_ready().await;
}

/// Waits until everybody knows that a node takes part.
async fn is_known(cluster: &Cluster, number: u16) {
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
    // To a later write of node 3 gives way what came with the copy, and not what node 3 wrote itself.
    assert_eq!(writer(three, 3).await, "no origin, node 1", "written before the copy");
    assert_eq!(writer(three, 10).await, "an origin", "applied here");
    assert_eq!(writer(three, 11).await, "no origin, node 3", "of node 3 itself");
}

/// Who wrote the row with this key, as it is told when a place is looked at again at node 3.
async fn writer(node: &Node, id: u32) -> String {
    let without_origin = "(select coalesce((select i.node from synapsedb.inherited i
        where age(t.xmin) > age((i.before_xid::text::numeric % 4294967296)::text::xid)
        order by before_xid limit 1), 3))";
    let place = include_str!("../../src/replication/sql/place.sql")
        .replace("{table}", "versioned")
        .replace("{found}", &format!("t.id = {id}"))
        .replace("{without_origin}", without_origin)
        .replace("{key}", "t.id::text");
    let told = format!(
        "select case roident when '0' then 'no origin, node ' || node else 'an origin' end
        from ({place}) as place (writer, roident, node, commit_time, key)"
    );
    let rows = agent(node).session().await.rows(&told).await.unwrap();
    assert_eq!(rows.len(), 1, "row {id}");
    rows[0].clone()
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

/// Keeps a node from applying what node 1 writes behind its next row of the table `gate`.
async fn hold_back(node: &Node) -> Session {
    let session = node.session().await;
    session.rows("begin").await.unwrap();
    session.rows("lock table gate in access exclusive mode").await.unwrap();
    session
}

/// The rows that were written concurrently, as every node must show them in the end: of everything that node 1 wrote
/// first and that arrives late nothing is left.
async fn remembers(node: &Node) {
    let late = format!("node {} applies what is late", node.number());
    eventually(&late, NOTICED, async || node.shows("select id from gate", &["1"]).await).await;
    let rows = node.rows("select id, v, u from remembered order by id").await;
    assert_eq!(rows, ["3|old|three", "20|two|free"], "node {}", node.number());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_remembers_deletes_and_unique_values() {
    let mut cluster = binary().lay_out(3);
    // A node is not ready where nothing of another arrives; here that is held back for a while.
    let patient = |node: &Node| node.configure("replication.probe_interval_ms", 60_000);
    cluster.nodes().iter().for_each(patient);
    cluster.start().await;
    cluster
        .node(1)
        .sql(
            "create table gate (id int primary key);
             create table remembered (id int primary key, v text, u text unique);
             insert into remembered values (1, 'old', 'one'), (2, 'old', 'two'), (3, 'old', 'three')",
        )
        .await;
    cluster.all_show("select count(*) from remembered", &["3"]).await;
    let held = [hold_back(cluster.node(2)).await, hold_back(cluster.node(3)).await];
    cluster.node(1).sql("insert into gate values (1)").await;
    cluster.node(1).sql("update remembered set v = 'late' where id in (1, 2)").await;
    cluster.node(1).sql("insert into remembered values (10, 'late', 'taken')").await;
    // Later than all of that, and unseen by it; node 2 lets the unique value go again.
    cluster.node(2).sql("delete from remembered where id = 1").await;
    cluster.node(2).sql("insert into remembered values (20, 'two', 'taken')").await;
    cluster.node(2).sql("update remembered set u = 'free' where id = 20").await;
    cluster.node(3).sql("delete from remembered where id = 2").await;
    eventually("the nodes have the later writes", NOTICED, async || {
        let rows = "select id from remembered order by id";
        cluster.node(1).shows(rows, &["3", "20"]).await?;
        cluster.node(2).shows(rows, &["3", "20"]).await?;
        cluster.node(3).shows(rows, &["3", "20"]).await
    })
    .await;
    // Another life of the node that deleted one of the rows: it applies what is late after its copy.
    cluster.node(3).stop();
    cluster.command(&["node", "reseed", "3", "--yes", "--source", "2", "--timeout", "120"]);
    cluster.node(3).start();
    is_known(&cluster, 3).await;
    remembers(cluster.node(3)).await;
    // A new node does too.
    cluster.join_with(Some(2), patient);
    is_known(&cluster, 4).await;
    remembers(cluster.node(4)).await;
    // The node that both were copied from reads what it remembers of the life that has ended from its disk. Nobody
    // takes it for an older copy, though it has committed nothing since.
    drop(held);
    cluster.node(2).stop();
    cluster.node(2).start();
    cluster.wait_ready().await;
    for node in cluster.nodes() {
        remembers(node).await;
    }
    cluster.assert_equal_rows().await;
    cluster.command(&["verify", "remembered"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_nodes_is_reseeded_and_no_sequence_repeats() {
    let cluster = cluster(2).await;
    // No column shows what the first two gave.
    let tables = "create sequence ticket; create sequence short as integer maxvalue 1000000;
        create table drawn (id int primary key)";
    cluster.node(1).sql(tables).await;
    cluster.all_show("select count(*) from drawn", &["0"]).await;
    let draw = async |sequence: &str| -> i64 {
        let sql = format!("select max(nextval('{sequence}')) from generate_series(1, 1000)");
        cluster.node(2).value(&sql).await.parse().unwrap()
    };
    let next = async |sequence: &str| -> i64 {
        cluster.node(2).value(&format!("select nextval('{sequence}')")).await.parse().unwrap()
    };
    let (ticket, short) = (draw("ticket").await, draw("short").await);
    cluster.node(2).sql("insert into drawn values (1)").await;
    cluster.all_show("select count(*) from drawn", &["1"]).await;
    cluster.node(2).stop();
    std::fs::remove_dir_all(cluster.node(2).folder().join("spool")).unwrap();
    // Nobody leads: the command votes for the node whose data it replaces, if it can.
    let reseed = ["node", "reseed", "2", "--yes", "--timeout", "120"];
    let (raft, away) = (cluster.node(2).folder().join("raft"), cluster.data().join("raft-2"));
    std::fs::rename(&raft, &away).unwrap();
    let data = cluster.data().to_string_lossy();
    let refused = cluster.binary().output(&[&reseed, &["--data", &*data][..]].concat());
    let refused = format!("{:#}", refused.unwrap_err());
    assert!(refused.contains("its vote cannot be cast for it"), "{refused}");
    let _ = std::fs::remove_dir_all(&raft);
    std::fs::rename(&away, &raft).unwrap();
    cluster.command(&reseed);
    cluster.node(2).start();
    takes_part(&cluster, 2).await;
    let (again, short_again) = (next("ticket").await, next("short").await);
    assert!(again > ticket && again < ticket + 10_000, "{again} after {ticket}");
    assert!(short_again > short, "{short_again} after {short}");
    // Its old server knows nothing any more: what it may have given is skipped.
    let ticket = draw("ticket").await;
    cluster.node(2).sql("insert into drawn values (2)").await;
    cluster.all_show("select count(*) from drawn", &["2"]).await;
    cluster.node(2).stop();
    std::fs::remove_dir_all(cluster.node(2).pgdata()).unwrap();
    let told = cluster.command(&reseed);
    assert!(told.contains("may come again") && told.contains(": short."), "{told}");
    cluster.node(2).start();
    takes_part(&cluster, 2).await;
    let far = next("ticket").await;
    assert!(far > ticket + (1 << 32), "{far} after {ticket}");
    assert_eq!((far - ticket) % 16, 0, "{far} after {ticket}");
    cluster.node(2).sql("insert into drawn values (3)").await;
    cluster.all_show("select count(*) from drawn", &["3"]).await;
    cluster.assert_equal_rows().await;
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
    // Its server waits for nobody and keeps nothing for anybody, should it go on alone.
    let settings = std::fs::read_to_string(folder.join("pgdata/postgresql.auto.conf")).unwrap();
    assert!(!settings.contains("synchronous"), "{settings}");
    let slots = std::fs::read_dir(folder.join("pgdata/pg_replslot")).unwrap().count();
    assert_eq!(slots, 0, "slots: {}", parted.log_tail());
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
    // What it wrote keeps nobody from forgetting what all have seen.
    cluster.node(1).sql("delete from parted").await;
    for node in cluster.nodes() {
        eventually("it forgets what all have seen", NOTICED, async || {
            let remembered = node.metric("synapsedb_replication_remembered_writes", "").await;
            if remembered < 100.0 { Ok(()) } else { Err(format!("{remembered}")) }
        })
        .await;
        let origins = "select roname from pg_replication_origin where roname like 'synapsedb_3%'";
        eventually("its origin is dropped", NOTICED, async || node.shows(origins, &[]).await).await;
    }
    // Those that start anew, and those that join, do not wait for it.
    cluster.node(1).stop();
    cluster.node(1).start();
    cluster.wait_ready().await;
    assert_eq!(cluster.join(Some(1)), 4);
    takes_part(&cluster, 4).await;
    for node in cluster.nodes() {
        node.sql(&format!("insert into parted (by) values ({})", node.number())).await;
    }
    cluster.all_show("select by from parted order by by", &["1", "2", "4"]).await;
    // Its number is not given again.
    let listed = cluster.command(&["node", "ls"]);
    assert!(listed.lines().any(|line| line.contains("removed")), "{listed}");
}
