//! The split endpoint on three nodes: reads on all of them, writes on the primary, and each session sees what it has
//! written.

use std::collections::BTreeSet;
use std::process::Command;

use synapsedb_dev::client::Session;
use synapsedb_dev::{Cluster, HttpPort, eventually};

use crate::{NOTICED, shared, skip};

/// The node on which a statement has run that says so in its last column.
const NODE: &str = "current_setting('cluster_name')";

async fn one(session: &Session, sql: &str) -> String {
    session.rows(sql).await.unwrap().pop().unwrap_or_default()
}

/// The name of the primary's server.
async fn primary(cluster: &Cluster) -> String {
    cluster.write_endpoint().value(&format!("select {NODE}")).await
}

/// A function and an operator that write what nobody sees by the words, and a table.
async fn tables(cluster: &Cluster, schema: &str) {
    let sql = format!(
        "create schema {schema}; set search_path = {schema}; \
         create table item (id int primary key, v int not null); \
         create table written (id bigserial primary key, a int, at text default {NODE}); \
         create function hidden(a int, b int) returns int language plpgsql volatile as \
             'begin insert into {schema}.written (a) values (a); return a + b; end'; \
         create operator |+| (function = hidden, leftarg = int, rightarg = int); \
         create function fixed() returns text language sql immutable as 'select {node}'",
        node = NODE.replace('\'', "''"),
    );
    cluster.write_endpoint().sql(&sql).await;
    cluster.all_show(&format!("select {schema}.fixed() is null"), &["f"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_spread_and_writes_are_at_the_primary() {
    let cluster = shared().await;
    tables(&cluster, "split_spread").await;
    let primary = primary(&cluster).await;
    let mut sessions = Vec::new();
    let mut readers = BTreeSet::new();
    eventually("reads run on all nodes", NOTICED, async || {
        let session = cluster.split_endpoint().session().await;
        session.rows("set synapsedb.consistency = eventual").await.unwrap();
        for _ in 0..6 {
            readers.insert(one(&session, &format!("select {NODE}")).await);
        }
        sessions.push(session);
        if readers.len() == 3 { Ok(()) } else { Err(format!("{readers:?}")) }
    })
    .await;
    let session = cluster.split_endpoint().session().await;
    session.rows("set search_path = split_spread").await.unwrap();
    for (sql, why) in [
        ("insert into item values (1, 1) returning {}", "its words write"),
        ("select nextval('written_id_seq'), {}", "calls nextval()"),
        ("select v, {} from item for update", "its words write, lock rows"),
        ("select hidden(1, 1), {}", "calls hidden()"),
        ("/* synapsedb.route=write */ select {}", "synapsedb.route says so"),
    ] {
        let row = one(&session, &sql.replace("{}", NODE)).await;
        assert_eq!(row.rsplit('|').next(), Some(primary.as_str()), "{sql}");
        let route = one(&session, "show synapsedb.last_route").await;
        assert!(route.contains(&format!(": write: {why}")), "{sql}: {route}");
    }
    for number in 1..=3 {
        let hint = format!("/* synapsedb.route=node {number} */ select split_spread.fixed()");
        let name = cluster.node(number).value(&format!("select {NODE}")).await;
        assert_eq!(one(&session, &hint).await, name);
    }
    // What a session keeps is at the primary, and it with it.
    session.rows("create temp table mine as select 7 as a").await.unwrap();
    assert_eq!(one(&session, &format!("select a, {NODE} from mine")).await, format!("7|{primary}"));
    session.rows("drop table mine").await.unwrap();
    // A transaction by its first statement.
    session.rows("set synapsedb.route = 'node 3'; ").await.unwrap();
    let third = cluster.node(3).value(&format!("select {NODE}")).await;
    session.rows("begin read only").await.unwrap();
    assert_eq!(one(&session, &format!("select {NODE}")).await, third);
    session.rows("commit").await.unwrap();
    session.rows("reset synapsedb.route").await.unwrap();
    session.rows("begin; insert into item values (2, 2)").await.unwrap();
    assert_eq!(one(&session, &format!("select {NODE}")).await, primary);
    session.rows("commit").await.unwrap();
    let insert = session.prepare("insert into item values ($1, 0)").await.unwrap();
    let read = session.prepare("select count(*) from item where id >= $1").await.unwrap();
    for id in 10..20 {
        session.execute(&insert, &[&id]).await.unwrap();
        let count: i64 = session.query_one(&read, &[&10]).await.unwrap().get(0);
        assert_eq!(count, i64::from(id) - 9, "a session sees what it has written");
    }
    cluster.assert_equal_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_reads_what_it_has_written() {
    let cluster = shared().await;
    tables(&cluster, "split_own").await;
    let write = async |register: i32| {
        let session = cluster.split_endpoint().session().await;
        session.rows(&format!("insert into split_own.item values ({register}, 0)")).await.unwrap();
        let mut elsewhere = 0;
        let primary = primary(&cluster).await;
        for round in 1..=40 {
            let update = format!("update split_own.item set v = {round} where id = {register}");
            session.rows(&update).await.unwrap();
            let read = format!("select v, {NODE} from split_own.item where id = {register}");
            let row = one(&session, &read).await;
            let (v, node) = row.split_once('|').unwrap();
            assert_eq!(v, round.to_string(), "on {node}");
            elsewhere += u32::from(node != primary);
        }
        elsewhere
    };
    let (a, b, c) = tokio::join!(write(1), write(2), write(3));
    assert!(a + b + c > 0, "no read has left the primary");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_write_is_done_once_at_the_primary() {
    let cluster = shared().await;
    tables(&cluster, "split_hidden").await;
    let primary = primary(&cluster).await;
    let session = cluster.split_endpoint().session().await;
    session.rows("set search_path = split_hidden").await.unwrap();
    // To a node that is not the primary, if it can be.
    let mut expected = 0;
    for text in ["select 1 |+| 2", "select 1 |+| 2", "select 2 |+| 1", "select 1; select 1 |+| 2"] {
        assert_eq!(one(&session, text).await, "3", "{text}");
        expected += 1;
        let rows = one(&session, "select count(*), min(at), max(at) from written").await;
        assert_eq!(rows, format!("{expected}|{primary}|{primary}"), "{text}");
    }
    let sum = session.prepare("select $1::int |+| $2::int").await.unwrap();
    for _ in 0..3 {
        assert_eq!(session.query_one(&sum, &[&4, &5]).await.unwrap().get::<_, i32>(0), 9);
        expected += 1;
    }
    assert_eq!(one(&session, "select count(*) from written").await, expected.to_string());
    cluster.assert_equal_rows().await;
    // A function that is made anew, and may write from now on.
    let text = "select split_hidden.fixed()";
    session.rows(text).await.unwrap();
    assert!(one(&session, "show synapsedb.last_route").await.contains(": read: "));
    session.rows("alter function fixed() volatile").await.unwrap();
    session.rows(text).await.unwrap();
    let route = one(&session, "show synapsedb.last_route").await;
    assert!(route.contains(": write: calls fixed()"), "{route}");
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_and_psycopg_go_through_it() {
    let cluster = shared().await;
    tables(&cluster, "split_tools").await;
    let url = cluster.split_endpoint().url();
    let script = "\
        insert into split_tools.item values (1, 1);\n\
        select v from split_tools.item where id = 1;\n\
        begin;\nupdate split_tools.item set v = 2 where id = 1;\nselect v from split_tools.item;\ncommit;\n\
        select v from split_tools.item where id = 1;\n";
    let mut psql = Command::new("psql");
    psql.arg(&url).arg("-XAtq");
    for line in script.lines() {
        psql.args(["-c", line]);
    }
    let psql = psql.output().unwrap();
    let said = String::from_utf8_lossy(&psql.stdout).into_owned();
    assert_eq!(said, "1\n2\n2\n", "{}", String::from_utf8_lossy(&psql.stderr));
    let interpreter = "/usr/bin/python3";
    let there = Command::new(interpreter).args(["-c", "import psycopg"]).output();
    if !there.is_ok_and(|there| there.status.success()) {
        return skip("no psycopg");
    }
    let run =
        Command::new(interpreter).args(["-c", include_str!("split.py"), &url]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(String::from_utf8_lossy(&run.stdout), "done\n", "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_shown_where_the_others_are() {
    let cluster = shared().await;
    let session = cluster.split_endpoint().session().await;
    session.rows("select 1").await.unwrap();
    let stats = crate::stale_reads::statistics(&cluster).await.unwrap();
    let rows: Vec<_> = stats.lines().filter(|line| line.starts_with("split,")).collect();
    assert_eq!(rows.len(), 5, "{stats}");
    let status = cluster.node(1).http(HttpPort::Raft, "/status").await;
    let listens = format!("127.0.0.1:{}", cluster.ports().split());
    assert_eq!(status["components"]["router"]["status"]["split_listen"], listens);
    let mut console = cluster.split_endpoint();
    console.database = "synapsedb_admin".to_owned();
    let clients = console.rows("show clients").await;
    assert!(clients.iter().any(|row| row.contains("|split|")), "{clients:?}");
}
