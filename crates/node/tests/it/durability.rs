//! Durability classes: what a commit waits for, what happens without a quorum, and that nothing acknowledged is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use synapsedb_core::lsn::Lsn;
use synapsedb_dev::shared::Borrowed;
use synapsedb_dev::{Cluster, HttpPort, Node, Shared, eventually};

use crate::{NOTICED, binary};

/// The cluster whose class is `quorum`.
static QUORUM: Shared = Shared::new();

async fn quorum() -> Borrowed {
    let configure = |cluster: &Cluster| set(cluster, "class", "quorum");
    QUORUM.configured(binary(), configure).await
}

fn set(cluster: &Cluster, key: &str, value: impl Into<toml::Value>) {
    let value = value.into();
    for node in cluster.nodes() {
        node.configure(&format!("replication.durability.{key}"), value.clone());
    }
}

/// What the agent of a node says of its durability.
async fn durability(node: &Node) -> Value {
    node.http(HttpPort::Raft, "/replication/status").await["durability"].clone()
}

async fn is(node: &Node, state: &str) {
    eventually(&format!("durability on node {} is {state}", node.number()), NOTICED, async || {
        let answer = node.try_http(HttpPort::Raft, "/replication/status").await;
        let (_, text) = answer.map_err(|error| format!("{error:#}"))?;
        let status: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let status = &status["durability"];
        if status["state"] == state { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

/// Makes a table on node 1 that all nodes have.
async fn table(cluster: &Cluster, name: &str) {
    cluster.node(1).sql(&format!("create table {name} (id bigint primary key, v text)")).await;
    cluster.all_show(&format!("select count(*) from {name}"), &["0"]).await;
}

async fn shows_metric(node: &Node, name: &str, value: f64) {
    let name = format!("synapsedb_replication_durability_{name}");
    eventually(&format!("{name} is {value}"), NOTICED, async || {
        let shown = node.metric(&name, "").await;
        if shown == value { Ok(()) } else { Err(format!("it is {shown}")) }
    })
    .await;
}

async fn sql_says(node: &Node, state: &str) {
    let sql = "select distinct state from synapsedb.durability()";
    eventually("SQL shows the state", NOTICED, async || node.shows(sql, &[state]).await).await;
}

async fn postgres_log_says(node: &Node, words: &str) {
    eventually(&format!("a client was told: {words}"), NOTICED, async || {
        let log = std::fs::read_to_string(node.folder().join("postgres.log")).unwrap_or_default();
        if log.contains(words) { Ok(()) } else { Err("it is not in the server's log".to_owned()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_class_quorum_is_on_the_disk_of_a_majority() {
    let cluster = quorum().await;
    table(&cluster, "kept_twice").await;
    for node in cluster.nodes() {
        let session = node.session().await;
        for row in 0..20 {
            let id = row * 10 + node.number();
            let insert = format!("begin; insert into kept_twice values ({id}, 'x');");
            let sql = format!("{insert} select pg_current_wal_insert_lsn(); commit");
            let before: Lsn = session.rows(&sql).await.unwrap()[0].parse().unwrap();
            let status = durability(node).await;
            let members = status["members"].as_array().unwrap();
            let durable = members.iter().filter_map(|member| member["durable_lsn"].as_str());
            let kept = durable.filter(|lsn| lsn.parse::<Lsn>().unwrap() >= before).count();
            assert!(kept >= 1, "no other node has what follows {before}: {status}");
            assert_eq!(status["state"], "met", "{status}");
        }
        let class = "select distinct class, session_class, state, members_needed from synapsedb.durability()";
        assert_eq!(node.rows(class).await, ["quorum|quorum|met|2"]);
    }
    cluster.all_show("select count(*) from kept_twice", &["60"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_class_applied_is_seen_elsewhere() {
    let cluster = quorum().await;
    table(&cluster, "seen_twice").await;
    let session = cluster.node(2).session().await;
    assert_eq!(
        session.rows("select synapsedb.set_durability('applied')").await.unwrap(),
        ["applied"]
    );
    for row in 0..20 {
        session.rows(&format!("insert into seen_twice values ({row}, 'x')")).await.unwrap();
        let mut seen = 0;
        for node in [cluster.node(1), cluster.node(3)] {
            seen += node.rows(&format!("select 1 from seen_twice where id = {row}")).await.len();
        }
        assert!(seen >= 1, "no other node shows row {row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_chooses_its_class() {
    let cluster = quorum().await;
    let session = cluster.node(3).session().await;
    let class = "select synapsedb.session_durability()";
    for name in ["local", "applied", "quorum"] {
        session.rows(&format!("select synapsedb.set_durability('{name}')")).await.unwrap();
        assert_eq!(session.rows(class).await.unwrap(), [name]);
    }
    let local = format!("begin; select synapsedb.set_durability('local', true); {class}; commit");
    assert_eq!(session.rows(&local).await.unwrap(), ["local", "local"]);
    assert_eq!(session.rows(class).await.unwrap(), ["quorum"], "it lasts for the transaction");
    session.rows("set synchronous_commit = remote_apply").await.unwrap();
    assert_eq!(session.rows(class).await.unwrap(), ["applied"]);
    let unknown = "select synapsedb.set_durability('everywhere')";
    assert_eq!(cluster.node(3).server().sqlstate(unknown).await, "22023");
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_hold_nothing_for_the_peers_do_not_hang() {
    let cluster = quorum().await;
    table(&cluster, "some_rows").await;
    let node = cluster.node(1);
    node.sql("create unlogged table stays_here (id int)").await;
    let begin = Instant::now();
    for _ in 0..5 {
        node.sql("insert into stays_here values (1)").await;
        node.sql("analyze some_rows").await;
        node.sql("begin; select pg_current_xact_id(); insert into stays_here values (2); commit")
            .await;
    }
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(10), "15 commits took {took:?}");
}

/// Inserts one row in the background; true as soon as it was acknowledged.
fn insert(node: &Node, sql: &str) -> (Arc<AtomicBool>, tokio::task::JoinHandle<()>) {
    let (server, sql) = (node.server().clone(), sql.to_owned());
    let done = Arc::new(AtomicBool::new(false));
    let told = done.clone();
    let task = tokio::spawn(async move {
        server.sql(&sql).await;
        told.store(true, Ordering::SeqCst);
    });
    (done, task)
}

/// One cluster for both settings: node 1 blocks, node 2 degrades.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_commits_wait_or_are_degraded_and_it_is_said() {
    let cluster = binary().lay_out(3);
    set(&cluster, "class", "quorum");
    set(&cluster, "degrade_after_ms", 1000);
    cluster.node(2).configure("replication.durability.on_lost_quorum", "degrade");
    cluster.start().await;
    table(&cluster, "rows").await;
    blocks(&cluster).await;
    degrades(&cluster).await;
    cluster
        .all_show(
            "select string_agg(v, ',' order by id) from rows",
            &["blocked,local,again,degraded,met"],
        )
        .await;
    cluster.assert_equal_rows().await;
}

async fn blocks(cluster: &Cluster) {
    let node = cluster.node(1);
    cluster.node(2).kill_agent();
    cluster.node(3).kill_agent();
    let (done, blocked) = insert(node, "insert into rows values (1, 'blocked')");
    is(node, "lost").await;
    eventually("a session waits", NOTICED, async || {
        let status = durability(node).await;
        if status["waiting_sessions"] == 1 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    assert!(!done.load(Ordering::SeqCst), "it was acknowledged without a quorum");
    for (name, value) in [("quorum_lost", 1.0), ("members_needed", 2.0), ("members_connected", 1.0)]
    {
        shows_metric(node, name, value).await;
    }
    let local = "set synchronous_commit = local; insert into rows values (2, 'local')";
    node.sql(local).await;
    sql_says(node, "lost").await;
    postgres_log_says(node, "WARNING:  the quorum is lost since").await;
    assert!(node.log().contains("too few members acknowledge commits"), "{}", node.log_tail());
    assert!(!done.load(Ordering::SeqCst), "it was acknowledged without a quorum");

    // A new agent must not take for acknowledged what the one before it had in its spool.
    node.kill_agent();
    node.start();
    is(node, "lost").await;
    assert!(!done.load(Ordering::SeqCst), "a new agent released it");

    // The server can be shut down although its standby will not confirm everything; the waiting session ends by it.
    node.shut_down_postgres(Duration::from_secs(10));
    assert!(blocked.await.is_err(), "the session survived its server");
    eventually("the server is back", NOTICED, async || node.shows("select 1", &["1"]).await).await;
    let (done, again) = insert(node, "insert into rows values (3, 'again')");
    is(node, "lost").await;
    assert!(!done.load(Ordering::SeqCst), "it was acknowledged without a quorum");
    cluster.node(2).start();
    again.await.unwrap();
    is(node, "met").await;
    cluster.start().await;
}

async fn degrades(cluster: &Cluster) {
    let node = cluster.node(2);
    cluster.node(1).kill_agent();
    cluster.node(3).kill_agent();
    let (_, degraded) = insert(node, "insert into rows values (4, 'degraded')");
    tokio::time::timeout(Duration::from_secs(10), degraded).await.unwrap().unwrap();
    is(node, "degraded").await;
    shows_metric(node, "degradations_total", 1.0).await;
    shows_metric(node, "degraded", 1.0).await;
    sql_says(node, "degraded").await;
    postgres_log_says(node, "WARNING:  durability is DEGRADED to local since").await;
    assert!(node.log().contains("DEGRADED to local"), "{}", node.log_tail());
    cluster.start().await;
    is(node, "met").await;
    node.sql("insert into rows values (5, 'met')").await;
    shows_metric(node, "members_acknowledged", 3.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_peer_holds_spool_and_no_wal() {
    let cluster = binary().cluster(2).await;
    table(&cluster, "much").await;
    cluster.node(2).kill_agent();
    let node = cluster.node(1);
    node.sql("insert into much select n, repeat('x', 100) from generate_series(1, 10000) n").await;
    let end = node.value("select pg_current_wal_lsn()").await;
    eventually("the slot follows the WAL", NOTICED, async || {
        let sql =
            format!("select bool_and(confirmed_flush_lsn >= '{end}') from pg_replication_slots");
        node.shows(&sql, &["t"]).await
    })
    .await;
    // Who asks for the class waits all the same.
    let quorum = "set synchronous_commit = on; insert into much values (0, 'quorum')";
    let (done, task) = insert(node, quorum);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!done.load(Ordering::SeqCst), "it was acknowledged without a quorum");
    cluster.node(2).start();
    task.await.unwrap();
    cluster.assert_equal_rows().await;
}

/// Two commits of class `applied` on one row, each of which keeps the other from being applied: both must end.
#[tokio::test(flavor = "multi_thread")]
async fn commits_of_class_applied_that_wait_for_each_other_are_released() {
    let cluster = binary().lay_out(2);
    set(&cluster, "class", "applied");
    set(&cluster, "applied_wait_max_ms", 300);
    cluster.start().await;
    table(&cluster, "hot").await;
    cluster.node(1).sql("insert into hot values (1, '')").await;
    cluster.all_show("select count(*) from hot", &["1"]).await;
    let (first, second) = (cluster.node(1).session().await, cluster.node(2).session().await);
    for round in 0..5 {
        for (session, node) in [(&first, 1), (&second, 2)] {
            let update = format!("begin; update hot set v = '{round} by {node}' where id = 1");
            session.rows(&update).await.unwrap();
        }
        let commits = async { tokio::join!(first.rows("commit"), second.rows("commit")) };
        let ended = tokio::time::timeout(Duration::from_secs(10), commits).await;
        let (one, two) = ended.expect("the commits wait for each other");
        one.unwrap();
        two.unwrap();
    }
    let mut released = 0.0;
    for node in cluster.nodes() {
        released +=
            node.metric("synapsedb_replication_durability_applied_releases_total", "").await;
    }
    assert!(released >= 1.0, "nothing was released: the test has shown nothing");
    cluster.assert_equal_rows().await;
}

/// The origin vanishes with its disk right after it acknowledged commits that only one other node has, in its spool.
#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_row_survives_the_disk_of_its_origin() {
    let cluster = binary().lay_out(3);
    set(&cluster, "class", "quorum");
    cluster.start().await;
    table(&cluster, "precious").await;
    // Node 2 receives and cannot apply; node 3 hears nothing.
    let lock = cluster.node(2).session().await;
    lock.rows("begin; lock table precious in access exclusive mode").await.unwrap();
    let cut = cluster.node(3).can_be_cut_off();
    match &cut {
        Ok(()) => cluster.node(3).cut_off(),
        Err(_) => cluster.node(3).pause_agent(),
    }
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (server, rows) = (cluster.node(1).server().clone(), acknowledged.clone());
            tokio::spawn(async move {
                let session = server.session().await;
                for row in 0.. {
                    let id = row * 4 + writer;
                    let sql = format!("insert into precious values ({id}, 'x')");
                    if session.rows(&sql).await.is_err() {
                        return;
                    }
                    rows.lock().unwrap().push(id);
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let node = cluster.node(1);
    node.kill_agent();
    node.kill_postgres();
    for folder in ["pgdata", "spool"] {
        std::fs::remove_dir_all(node.folder().join(folder)).unwrap();
    }
    for writer in writers {
        writer.await.unwrap();
    }
    match &cut {
        Ok(()) => cluster.node(3).rejoin(),
        Err(_) => cluster.node(3).resume(),
    }
    lock.rows("rollback").await.unwrap();
    let rows = acknowledged.lock().unwrap().clone();
    assert!(rows.len() > 20, "only {} rows were acknowledged: the test shows little", rows.len());
    let ids: Vec<_> = rows.iter().map(i64::to_string).collect();
    let lost = format!(
        "select count(*) from unnest('{{{}}}'::bigint[]) id where id not in (select id from precious)",
        ids.join(",")
    );
    for survivor in [cluster.node(2), cluster.node(3)] {
        let what = format!("node {} has all {} rows", survivor.number(), rows.len());
        eventually(&what, NOTICED, async || survivor.shows(&lost, &["0"]).await).await;
    }
    let all = "select count(*), sum(id) from precious";
    let expected = cluster.node(2).value(all).await;
    eventually("the survivors are equal", NOTICED, async || {
        cluster.node(3).shows(all, &[&expected]).await
    })
    .await;
}
