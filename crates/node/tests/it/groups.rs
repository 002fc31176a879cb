//! Transactions that are applied as one: every row still counts as its writer's, and nobody waits for what they lock.

use std::time::Duration;

use synapsedb_dev::{Cluster, Node, Shared, eventually};
use tokio::sync::{Mutex, MutexGuard};

use crate::{NOTICED, binary};

static CLUSTER: Shared = Shared::new();
/// One test at a time: each stops agents for a moment.
static TURN: Mutex<()> = Mutex::const_new(());

/// How often it is tried to have transactions in one group: which come together is a matter of time.
const TRIES: i32 = 8;

async fn cluster() -> (impl std::ops::Deref<Target = Cluster>, MutexGuard<'static, ()>) {
    let turn = TURN.lock().await;
    (CLUSTER.cluster(binary()).await, turn)
}

/// Repeats a statement with `i` from `from` to `to`, each time as a transaction of its own.
async fn repeat(node: &Node, from: i32, to: i32, statement: &str) {
    let body = format!("for i in {from}..{to} loop {statement}; commit; end loop");
    node.sql(&format!("do $$ begin {body}; end $$")).await;
    // What is written after it elsewhere is later.
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// A table on all nodes, of which node 2 applies inserts and updates of node 1 by procedures.
async fn table(cluster: &Cluster, table: &str) {
    let origin = cluster.node(1);
    origin.sql(&format!("create table {table} (id int primary key, v text)")).await;
    repeat(origin, -60, -1, &format!("insert into {table} values (i, 'warm')")).await;
    repeat(origin, -60, -1, &format!("update {table} set v = 'warmer' where id = i")).await;
    cluster.all_show(&format!("select count(*) from {table} where v = 'warmer'"), &["60"]).await;
}

/// Whether two rows were written by one transaction of the node.
async fn are_together(node: &Node, table: &str, ids: [i32; 2]) -> bool {
    let [one, other] = ids;
    let sql =
        format!("select count(distinct xmin::text) from {table} where id in ({one}, {other})");
    node.value(&sql).await == "1"
}

async fn shows(node: &Node, sql: &str, expected: &str) {
    eventually(sql, NOTICED, async || node.shows(sql, &[expected]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_came_with_later_ones_gives_way_to_a_write_in_between() {
    let (cluster, _turn) = cluster().await;
    table(&cluster, "in_between").await;
    let [origin, receiver, other] = [1, 2, 3].map(|number| cluster.node(number));
    let mut met = false;
    for first in (0..TRIES).map(|attempt| 100 * attempt + 1) {
        origin.pause_agent();
        other.pause_agent();
        let insert = "insert into in_between values (i, 'early')";
        repeat(origin, first, first + 9, insert).await;
        // Seen by nobody of the others: as late as it commits, it is between the rows of node 1.
        other.sql(&format!("insert into in_between values ({}, 'between')", first + 5)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        repeat(origin, first + 10, first + 19, insert).await;
        origin.resume();
        shows(receiver, &format!("select v from in_between where id = {}", first + 19), "early")
            .await;
        met |= are_together(receiver, "in_between", [first + 5, first + 15]).await;
        other.resume();
        let after = format!("select v from in_between where id = {}", first + 5);
        cluster.all_show(&after, &["between"]).await;
        if met {
            break;
        }
    }
    assert!(met, "never was a row before applied together with a row behind");
    cluster.assert_equal_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_removes_of_a_group_what_it_had_seen() {
    let (cluster, _turn) = cluster().await;
    table(&cluster, "emptied_between").await;
    let [origin, receiver, other] = [1, 2, 3].map(|number| cluster.node(number));
    let mut met = false;
    for first in (0..TRIES).map(|attempt| 100 * attempt + 1) {
        receiver.pause_agent();
        let insert = "insert into emptied_between values (i, 'x')";
        repeat(origin, first, first + 9, insert).await;
        shows(other, &format!("select v from emptied_between where id = {}", first + 9), "x").await;
        other.pause_agent();
        repeat(origin, first + 10, first + 19, insert).await;
        other.sql("truncate emptied_between").await;
        receiver.resume();
        shows(receiver, &format!("select v from emptied_between where id = {}", first + 19), "x")
            .await;
        met |= are_together(receiver, "emptied_between", [first + 5, first + 15]).await;
        other.resume();
        let left: Vec<String> = (first + 10..first + 20).map(|id| id.to_string()).collect();
        let left: Vec<&str> = left.iter().map(String::as_str).collect();
        cluster.all_show("select id from emptied_between order by id", &left).await;
        if met {
            break;
        }
        origin.sql("truncate emptied_between").await;
        cluster.all_show("select count(*) from emptied_between", &["0"]).await;
    }
    assert!(met, "never was a row before applied together with a row behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_is_decoded_late_removes_an_older_row_of_a_group() {
    let (cluster, _turn) = cluster().await;
    table(&cluster, "deleted_between").await;
    let [origin, receiver] = [1, 2].map(|number| cluster.node(number));
    let mut met = false;
    for first in (0..TRIES).map(|attempt| 100 * attempt + 1) {
        origin.pause_agent();
        receiver.pause_decoding().await;
        let insert = "insert into deleted_between values (i, 'x')";
        repeat(origin, first, first + 9, insert).await;
        let id = first + 5;
        receiver.sql(&format!("insert into deleted_between values ({id}, 'later')")).await;
        receiver.sql(&format!("delete from deleted_between where id = {id}")).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        repeat(origin, first + 10, first + 19, insert).await;
        origin.resume();
        shows(receiver, &format!("select v from deleted_between where id = {}", first + 19), "x")
            .await;
        met |= are_together(receiver, "deleted_between", [id, first + 15]).await;
        receiver.resume_decoding().await;
        let left = format!("select count(*) from deleted_between where id >= {first}");
        cluster.all_show(&left, &["19"]).await;
        cluster.all_show(&format!("{left} and id = {id}"), &["0"]).await;
        if met {
            break;
        }
    }
    assert!(met, "never was the row applied together with one behind");
    cluster.assert_equal_rows().await;
}

/// The row in question is locked by a user, for long. What came before it is seen meanwhile, and free.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_meets_a_lock_lets_go_of_its_own() {
    let (cluster, _turn) = cluster().await;
    table(&cluster, "locked_between").await;
    let [origin, receiver] = [1, 2].map(|number| cluster.node(number));
    repeat(origin, 1, 20, "insert into locked_between values (i, 'x')").await;
    shows(receiver, "select v from locked_between where id = 20", "x").await;
    let user = receiver.session().await;
    user.batch_execute("begin; update locked_between set v = 'mine' where id = 10").await.unwrap();
    origin.pause_agent();
    repeat(origin, 1, 20, "update locked_between set v = 'y' where id = i").await;
    origin.resume();
    let seen = "select count(*) from locked_between where v = 'y'";
    eventually("what came before is seen", Duration::from_secs(5), async || {
        receiver.shows(seen, &["9"]).await
    })
    .await;
    user.batch_execute("update locked_between set v = 'mine' where id = 3").await.unwrap();
    user.batch_execute("commit").await.unwrap();
    cluster.all_show("select count(*) from locked_between where v = 'mine'", &["2"]).await;
    cluster.all_show(seen, &["18"]).await;
    cluster.assert_equal_rows().await;
}
