//! Workers of a lane: large transactions of one origin are applied at the same time, and seen in the origin's order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use synapsedb_dev::client::Session;
use synapsedb_dev::{Cluster, HttpPort, Node, eventually};

use crate::{NOTICED, agent, binary};

/// From so many rows on, a transaction is handed over in these tests.
const LARGE: usize = 100;

/// A cluster whose lanes have two workers each, with the table `wide`, that every lane has met.
async fn cluster(nodes: u16) -> Cluster {
    let cluster = binary().lay_out(nodes);
    for node in cluster.nodes() {
        node.configure("replication.apply_workers", 2);
        node.configure("replication.apply_worker_min_rows", i64::try_from(LARGE).unwrap());
    }
    cluster.start().await;
    let tables = "create table wide (id bigint primary key, v text not null, n int not null default 0);
                  create table marker (id int primary key, at timestamptz default clock_timestamp())";
    cluster.node(1).sql(tables).await;
    cluster.all_show("select count(*) from marker", &["0"]).await;
    for node in cluster.nodes() {
        let number = node.number();
        node.sql(&format!("insert into wide values (-{number}, 'met')")).await;
        node.sql(&format!("insert into marker values (-{number})")).await;
    }
    cluster.all_show("select count(*) from wide", &[&nodes.to_string()]).await;
    cluster.all_show("select count(*) from marker", &[&nodes.to_string()]).await;
    await_workers(cluster.node(2)).await;
    cluster
}

async fn by_workers(node: &Node) -> f64 {
    node.metric("synapsedb_replication_worker_transactions_total", "").await
}

async fn refusals(node: &Node) -> f64 {
    node.metric("synapsedb_replication_worker_refusals_total", "").await
}

/// A transaction that inserts the `n`-th range of rows.
fn insert(n: usize) -> String {
    let from = n * 1000;
    format!("insert into wide select i, 'row ' || i from generate_series({from}, {from} + 299) i")
}

#[tokio::test(flavor = "multi_thread")]
async fn disjoint_transactions_go_to_workers_and_dependent_ones_do_not() {
    let cluster = cluster(2).await;
    let (origin, receiver) = (cluster.node(1), cluster.node(2));
    receiver.pause_agent();
    for n in 1..=40 {
        origin.sql(&insert(n)).await;
        // What is small between them stays with the lane.
        origin.sql(&format!("insert into wide values ({n} * 1000 + 900, 'small')")).await;
    }
    receiver.resume();
    cluster.assert_equal_rows().await;
    let handed_over = by_workers(receiver).await;
    assert!(handed_over >= 10.0, "only {handed_over} of 40 were applied by workers");
    let status = receiver.http(HttpPort::Raft, "/replication/status").await;
    let lane = &status["lanes"][0];
    assert_eq!(lane["workers"], 2, "{lane}");
    assert!(lane["worker_transactions"].as_f64() >= Some(10.0), "{lane}");
    receiver.pause_agent();
    for n in 1..=20 {
        let same =
            format!("update wide set n = n + 1, v = v || '{n}' where id between 1000 and 1299");
        origin.sql(&same).await;
    }
    receiver.resume();
    cluster.assert_equal_rows().await;
    assert_eq!(by_workers(receiver).await, handed_over, "they all write the same rows");
    assert_eq!(receiver.value("select count(*) from synapsedb.conflict").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_the_commits_in_their_order() {
    let cluster = cluster(2).await;
    let (origin, receiver) = (cluster.node(1), cluster.node(2));
    receiver.pause_agent();
    let writing = origin.session().await;
    for n in 1..=150 {
        let marked = format!("begin; {}; insert into marker values ({n}); commit", insert(n));
        writing.batch_execute(&marked).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, session) = (stop.clone(), receiver.session().await);
    let observer = tokio::spawn(async move {
        let mut looks = std::collections::BTreeSet::new();
        while !stopped.load(Ordering::Relaxed) {
            let seen = "select count(*), coalesce(max(id), 0),
                            (select count(*) from wide where id >= 1000) / 300
                        from marker where id > 0";
            let seen = session.rows(seen).await.unwrap().remove(0);
            let numbers: Vec<&str> = seen.split('|').collect();
            assert!(numbers[0] == numbers[1] && numbers[0] == numbers[2], "a gap: {seen}");
            looks.insert(numbers[0].to_owned());
        }
        looks.len()
    });
    receiver.resume();
    cluster.assert_equal_rows().await;
    stop.store(true, Ordering::Relaxed);
    let looks = observer.await.unwrap();
    assert!(looks > 5, "it was looked at {looks} states only");
    assert!(by_workers(receiver).await > 20.0);
}

/// Writes large transactions until it is stopped; answers how many were acknowledged.
async fn write(session: Session, from: usize, stop: Arc<AtomicBool>) -> usize {
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        session.batch_execute(&insert(from + written)).await.unwrap();
        written += 1;
        // The receiver has the same cores, which may be busy with other tests, and is to keep up.
        tokio::time::sleep(Duration::from_millis(150)).await;
        if written % 3 == 0 {
            let earlier = (from + written - 2) * 1000;
            let update =
                format!("update wide set n = n + 1 where id between {earlier} and {earlier} + 299");
            session.batch_execute(&update).await.unwrap();
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_receiver_loses_nothing_and_doubles_nothing() {
    let cluster = cluster(2).await;
    let (origin, receiver) = (cluster.node(1), cluster.node(2));
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..2 {
        let (session, from) = (origin.session().await, 1 + writer * 100_000);
        writers.spawn(write(session, from, stop.clone()));
    }
    for round in 0..3 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        receiver.kill_postgres();
        cluster.wait_ready().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        receiver.kill_agent();
        if round == 1 {
            receiver.kill_postgres();
        }
        receiver.start();
        cluster.wait_ready().await;
        // Whatever it is doing, its sessions end and nothing else does.
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                   where application_name like 'synapsedb apply % worker %'";
        agent(receiver).sql(end).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    while let Some(one) = writers.join_next().await {
        written += one.unwrap();
    }
    cluster.assert_equal_rows().await;
    let rows = (written * 300).to_string();
    cluster.all_show("select count(*) from wide where id > 0", &[&rows]).await;
    let applied = by_workers(receiver).await;
    eprintln!("{written} inserts were written, {applied} by workers since the last start");
    assert_eq!(receiver.value("select count(*) from synapsedb.quarantine").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts_with_local_writers_end_alike() {
    let cluster = cluster(2).await;
    for n in 1..=10 {
        cluster.node(1).sql(&insert(n)).await;
    }
    cluster.assert_equal_rows().await;
    let mut writers = tokio::task::JoinSet::new();
    for node in cluster.nodes() {
        let (session, number) = (node.session().await, usize::from(node.number()));
        writers.spawn(async move {
            for turn in 0..40 {
                // Both write the same ranges, in another order; deletes and inserts among them.
                let from = 1000 * (1 + (turn * (2 * number - 1)) % 10);
                let sql = match turn % 4 {
                    0 | 1 => format!(
                        "update wide set n = n + 1, v = 'by {number}' where id between {from} and {from} + 299"
                    ),
                    2 => format!("delete from wide where id between {from} and {from} + 149"),
                    _ => format!(
                        "insert into wide select i, 'again {number}' from generate_series({from}, {from} + 149) i
                         on conflict do nothing"
                    ),
                };
                // A deadlock with an applier may end it.
                let _ = session.batch_execute(&sql).await;
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    cluster.assert_equal_rows().await;
    for node in cluster.nodes() {
        assert_eq!(node.value("select count(*) from synapsedb.quarantine").await, "0");
    }
}

/// The sessions of the workers, which come back by themselves.
async fn await_workers(receiver: &Node) {
    let workers = "select count(*) from pg_stat_activity
                   where application_name like 'synapsedb apply 1 worker %' and state = 'idle'";
    eventually("both workers are there", NOTICED, async || {
        agent(receiver).shows(workers, &["2"]).await
    })
    .await;
}

/// The session of the worker that waits for its turn, on a node where the transaction before it waits for a lock.
async fn waiting_worker(receiver: &Node) -> String {
    let waits = "select pid from pg_stat_activity
                 where application_name like 'synapsedb apply 1 worker %' and backend_xid is not null";
    eventually("a worker waits for its turn", NOTICED, async || {
        match agent(receiver).rows(waits).await.len() {
            1 => Ok(()),
            others => Err(format!("{others} workers do")),
        }
    })
    .await;
    agent(receiver).value(waits).await
}

/// Lets the lane wait for a lock of `locker` while a worker has done the transaction behind.
async fn hold_back(cluster: &Cluster, locker: &Session) -> String {
    let (origin, receiver) = (cluster.node(1), cluster.node(2));
    for n in 1..=2 {
        origin.sql(&insert(n)).await;
    }
    cluster.assert_equal_rows().await;
    await_workers(receiver).await;
    locker.batch_execute("begin; select from wide where id = 1000 for update").await.unwrap();
    receiver.pause_agent();
    for from in [1000, 2000] {
        let update = format!("update wide set n = n + 1 where id between {from} and {from} + 299");
        origin.sql(&update).await;
    }
    receiver.resume();
    waiting_worker(receiver).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_lets_go_of_what_others_wait_for() {
    let cluster = cluster(2).await;
    let receiver = cluster.node(2);
    let session = receiver.session().await;
    // Before anything is held: on a slow machine the worker may let go of it before this session asks.
    let before = refusals(receiver).await;
    hold_back(&cluster, &session).await;
    // The lane waits for this session, and this session for the worker, which waits for the lane.
    let begun = Instant::now();
    session.batch_execute("update wide set v = 'local' where id = 2000; commit").await.unwrap();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "it took {took:?}");
    // The lane hears of it when it has its own lock.
    eventually("a worker is told to have let go", NOTICED, async || {
        if refusals(receiver).await > before { Ok(()) } else { Err("none has".to_owned()) }
    })
    .await;
    cluster.assert_equal_rows().await;
    cluster.all_show("select n from wide where id = 1000", &["1"]).await;
    cluster.all_show("select v from wide where id = 2000", &["local"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_ended_leaves_its_transaction_to_the_lane() {
    let cluster = cluster(2).await;
    let receiver = cluster.node(2);
    let session = receiver.session().await;
    let worker = hold_back(&cluster, &session).await;
    agent(receiver).sql(&format!("select pg_terminate_backend({worker})")).await;
    session.batch_execute("commit").await.unwrap();
    cluster.assert_equal_rows().await;
    let once = "select count(*) from wide where n = 1";
    cluster.all_show(once, &["600"]).await;
    await_workers(receiver).await;
    receiver.pause_agent();
    for n in 11..=30 {
        cluster.node(1).sql(&insert(n)).await;
    }
    receiver.resume();
    cluster.assert_equal_rows().await;
    assert!(by_workers(receiver).await > 0.0);
}
