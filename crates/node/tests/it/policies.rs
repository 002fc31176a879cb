//! Policies per table: what settles concurrent writes, everywhere alike.

use std::time::Duration;

use synapsedb_dev::{Cluster, Shared, eventually};
use tokio::sync::{Mutex, MutexGuard};

use crate::binary;
use crate::conflicts::concurrently;

mod arriving;
mod changing;
mod window;

static CLUSTER: Shared = Shared::new();
static TURN: Mutex<()> = Mutex::const_new(());

async fn cluster() -> (impl std::ops::Deref<Target = Cluster>, MutexGuard<'static, ()>) {
    let turn = TURN.lock().await;
    (CLUSTER.cluster(binary()).await, turn)
}

async fn table(cluster: &Cluster, name: &str, columns: &str, policy: &str) {
    cluster.node(1).sql(&format!("create table {name} (id int primary key, {columns})")).await;
    cluster.node(1).sql(&format!("select synapsedb.set_policy('{name}', '{policy}')")).await;
    let shown =
        format!("select policy from synapsedb.policies() where relation = '{name}'::regclass");
    eventually("the policy is everywhere", Duration::from_secs(30), async || {
        for node in cluster.nodes() {
            node.shows(&shown, &[policy]).await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delta_columns_add_up() {
    let (cluster, _turn) = cluster().await;
    table(
        &cluster,
        "accounts",
        "owner text, balance bigint",
        "last_write_wins, delta(\"balance\")",
    )
    .await;
    cluster.node(1).sql("insert into accounts values (1, 'a', 100), (2, 'b', 100)").await;
    cluster.all_show("select count(*) from accounts", &["2"]).await;
    concurrently(
        &cluster,
        &[
            (1, "update accounts set balance = balance + 10 where id = 1"),
            (2, "update accounts set balance = balance - 25 where id = 1"),
            (3, "update accounts set balance = balance + 1, owner = 'c' where id = 1"),
            (1, "update accounts set balance = balance + 100 where id = 1"),
            (2, "update accounts set owner = 'd' where id = 2"),
            (3, "update accounts set balance = 0 where id = 2"),
        ],
    )
    .await;
    cluster.all_show("select balance from accounts order by id", &["186", "0"]).await;
    cluster.assert_equal_rows().await;
    cluster.node(2).sql("update accounts set balance = balance + 1").await;
    cluster.all_show("select balance from accounts order by id", &["187", "1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_merged() {
    let (cluster, _turn) = cluster().await;
    table(&cluster, "merged", "a text, b text, c text", "merge_columns").await;
    cluster.node(1).sql("insert into merged values (1, '-', '-', '-')").await;
    cluster.all_show("select count(*) from merged", &["1"]).await;
    concurrently(
        &cluster,
        &[
            (1, "update merged set a = 'one', c = 'one' where id = 1"),
            (2, "update merged set b = 'two' where id = 1"),
            (3, "update merged set c = 'three' where id = 1"),
        ],
    )
    .await;
    cluster.all_show("select a, b, c from merged", &["one|two|three"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_write_stays() {
    let (cluster, _turn) = cluster().await;
    table(&cluster, "firsts", "v text", "first_write_wins").await;
    concurrently(
        &cluster,
        &[
            (3, "insert into firsts values (1, 'three')"),
            (1, "insert into firsts values (1, 'one')"),
            (2, "insert into firsts values (1, 'two')"),
        ],
    )
    .await;
    cluster.all_show("select v from firsts", &["three"]).await;
    cluster.node(2).sql("update firsts set v = 'after'").await;
    cluster.all_show("select v from firsts", &["after"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_origin_goes_first() {
    let (cluster, _turn) = cluster().await;
    table(&cluster, "owned", "v text", "origin_wins(2)").await;
    cluster.node(1).sql("insert into owned values (1, '-')").await;
    cluster.all_show("select count(*) from owned", &["1"]).await;
    concurrently(
        &cluster,
        &[
            (2, "update owned set v = 'two'"),
            (1, "update owned set v = 'one'"),
            (3, "update owned set v = 'three'"),
        ],
    )
    .await;
    cluster.all_show("select v from owned", &["two"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_of_the_users_makes_one_row_of_two() {
    let (cluster, _turn) = cluster().await;
    let function = "create function public.longest(a jsonb, b jsonb) returns jsonb language sql immutable as \
                    $$ select case when length(a ->> 'v') > length(b ->> 'v') then a else b end $$";
    cluster.node(1).sql(function).await;
    table(&cluster, "folded", "v text", "function(public.longest)").await;
    cluster.node(1).sql("insert into folded values (1, '-')").await;
    cluster.all_show("select count(*) from folded", &["1"]).await;
    concurrently(
        &cluster,
        &[
            (2, "update folded set v = 'the longest of all'"),
            (1, "update folded set v = 'short'"),
            (3, "update folded set v = 'a bit longer'"),
        ],
    )
    .await;
    cluster.all_show("select v from folded", &["the longest of all"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_none_is_refused() {
    let (cluster, _turn) = cluster().await;
    cluster.node(1).sql("create table unruled (id int primary key, n int)").await;
    let session = cluster.node(1).session().await;
    for (sql, reason) in [
        ("select synapsedb.set_policy('unruled', 'best_write_wins')", "is not a policy"),
        ("select synapsedb.set_delta('unruled', 'nothing')", "has no column"),
        ("select synapsedb.set_policy('pg_catalog.pg_class', 'merge_columns')", "must be owner"),
    ] {
        let error = session.rows(sql).await.unwrap_err();
        let text = error.as_db_error().map(|error| error.message().to_owned()).unwrap_or_default();
        assert!(text.contains(reason), "{sql}: {text}");
    }
    cluster.node(1).sql("select synapsedb.set_delta('unruled', 'n')").await;
    let shown = "select policy from synapsedb.policies() where relation = 'unruled'::regclass";
    cluster.all_show(shown, &["last_write_wins, delta(\"n\")"]).await;
}
