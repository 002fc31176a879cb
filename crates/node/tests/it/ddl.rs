//! DDL typed on any node reaches all of them, in order with the rows.

use crate::{cluster, shared};

/// A statement, and a query that shows 1 once the statement has arrived.
const KINDS: &[(&str, &str)] = &[
    ("create schema ddl_kinds", "select count(*) from pg_namespace where nspname = 'ddl_kinds'"),
    (
        "create table ddl_kinds.t (id int primary key, v text)",
        "select count(*) from pg_class where relname = 't' and relnamespace = to_regnamespace('ddl_kinds')",
    ),
    (
        "create index t_v on ddl_kinds.t (lower(v)) where v is not null",
        "select count(*) from pg_class where relname = 't_v'",
    ),
    (
        "create unique index concurrently t_u on ddl_kinds.t (v)",
        "select count(*) from pg_index where indexrelid = to_regclass('ddl_kinds.t_u') and indisvalid",
    ),
    (
        "create view ddl_kinds.view as select v from ddl_kinds.t",
        "select count(*) from pg_views where viewname = 'view'",
    ),
    (
        "create materialized view ddl_kinds.mat as select count(*) from ddl_kinds.t",
        "select count(*) from pg_matviews where matviewname = 'mat'",
    ),
    (
        "create function ddl_kinds.f(a int) returns int language sql as 'select a + 1'",
        "select count(*) from pg_proc where proname = 'f' and pronamespace = to_regnamespace('ddl_kinds')",
    ),
    (
        "create procedure ddl_kinds.p() language plpgsql as $$ begin null; end $$",
        "select count(*) from pg_proc where proname = 'p' and prokind = 'p'",
    ),
    (
        "create type ddl_kinds.pair as (a int, b int)",
        "select count(*) from pg_type where typname = 'pair'",
    ),
    (
        "create domain ddl_kinds.short as varchar(5)",
        "select count(*) from pg_type where typname = 'short'",
    ),
    (
        "comment on table ddl_kinds.t is 'it''s a comment'",
        "select count(*) from pg_description where description = 'it''s a comment'",
    ),
    (
        "create table ddl_kinds.copied as select 1 as id, 'x' as v",
        "select count(*) from pg_class where relname = 'copied'",
    ),
    (
        "create table ddl_kinds.parts (id int, at date, primary key (id, at)) partition by range (at)",
        "select count(*) from pg_partitioned_table where partrelid = to_regclass('ddl_kinds.parts')",
    ),
    (
        "create table ddl_kinds.parts_2024 partition of ddl_kinds.parts
             for values from ('2024-01-01') to ('2025-01-01')",
        "select count(*) from pg_inherits where inhparent = to_regclass('ddl_kinds.parts')",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_table_lives_through_its_changes() {
    let cluster = shared().await;
    cluster.node(1).sql("create table changed (id int primary key, a text)").await;
    cluster.node(1).sql("insert into changed values (1, 'one')").await;
    cluster.all_show("select a from changed", &["one"]).await;
    cluster
        .node(2)
        .sql("alter table changed add column b int not null default 7, add column c text")
        .await;
    cluster.all_show("select a, b, c from changed", &["one|7|"]).await;
    cluster.node(3).sql("insert into changed values (2, 'two', 8, 'c')").await;
    cluster.all_show("select count(*) from changed", &["2"]).await;
    cluster
        .node(1)
        .sql("alter table changed rename column a to letters; alter table changed drop column c")
        .await;
    cluster.all_show("select letters, b from changed order by id", &["one|7", "two|8"]).await;
    cluster.node(2).sql("alter table changed alter column b type text using b::text || '!'").await;
    cluster.all_show("select b from changed order by id", &["7!", "8!"]).await;
    cluster.node(3).sql("alter table changed rename to changed_again").await;
    cluster.all_show("select count(*) from changed_again", &["2"]).await;
    cluster.node(1).sql("insert into changed_again values (3, 'three', '9!')").await;
    cluster.all_show("select count(*) from changed_again", &["3"]).await;
    cluster.node(2).sql("drop table changed_again").await;
    cluster.all_show("select to_regclass('changed_again') is null", &["t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_object_arrives() {
    let cluster = shared().await;
    for (number, (statement, look)) in KINDS.iter().enumerate() {
        let node = cluster.node(number as u16 % 3 + 1);
        node.sql(statement).await;
        cluster.all_show(look, &["1"]).await;
    }
    cluster.all_show("select id, v from ddl_kinds.copied", &["1|x"]).await;
    cluster.node(2).sql("insert into ddl_kinds.parts values (1, '2024-05-05')").await;
    cluster.all_show("select id, at from ddl_kinds.parts_2024", &["1|2024-05-05"]).await;
    cluster.node(3).sql("drop schema ddl_kinds cascade").await;
    cluster.all_show("select count(*) from pg_namespace where nspname = 'ddl_kinds'", &["0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ddl_and_rows_of_one_transaction_arrive_together() {
    let cluster = shared().await;
    cluster
        .node(1)
        .sql(
            "begin;
             create table together (id int primary key, v text);
             insert into together values (1, 'before');
             alter table together add column w text default 'w';
             insert into together values (2, 'after', 'x');
             commit",
        )
        .await;
    cluster
        .all_show("select id, v, w from together order by id", &["1|before|w", "2|after|x"])
        .await;
    cluster.node(2).sql("begin; create table never (id int primary key); insert into never values (1); rollback").await;
    cluster.node(2).sql("insert into together values (3, 'later', 'y')").await;
    cluster.all_show("select count(*) from together", &["3"]).await;
    cluster.all_show("select to_regclass('never') is null", &["t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_tables_stay_where_they_are() {
    let cluster = shared().await;
    let session = cluster.node(1).session().await;
    session
        .batch_execute("create temp table passing (id int); insert into passing values (1)")
        .await
        .unwrap();
    cluster.node(1).sql("create table after_passing (id int primary key)").await;
    cluster
        .all_show(
            "select to_regclass('after_passing') is not null, to_regclass('passing') is null",
            &["t|t"],
        )
        .await;
    assert_eq!(session.rows("select id from passing").await.unwrap(), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_search_path_of_the_session_counts() {
    let cluster = shared().await;
    cluster.node(1).sql("create schema elsewhere").await;
    cluster
        .node(1)
        .sql(
            "set search_path = elsewhere;
             create table placed (id int primary key);
             insert into placed values (1)",
        )
        .await;
    cluster.all_show("select id from elsewhere.placed", &["1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ddl_waits_for_a_node_that_was_away() {
    let cluster = cluster(3).await;
    cluster.node(3).stop();
    cluster.node(1).sql("create table while_away (id int primary key, v text)").await;
    cluster.node(2).server().shows("select 1", &["1"]).await.unwrap();
    cluster
        .node(1)
        .sql(
            "insert into while_away values (1, 'a');
             alter table while_away add column w int;
             insert into while_away values (2, 'b', 3)",
        )
        .await;
    cluster.node(3).start();
    cluster.wait_ready().await;
    cluster.all_show("select id, v, w from while_away order by id", &["1|a|", "2|b|3"]).await;
    cluster.assert_equal_rows().await;
}

/// Whoever could forge a DDL message would be superuser on every other node.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_forge_ddl() {
    let cluster = shared().await;
    let forged = r#"{"tag":"CREATE TABLE","query":"create table forged (i int)","ordinal":1,"whole":true,
        "creates":null,"role":"synapsedb_agent","search_path":"public"}"#;
    let server = cluster.node(1).server();
    for (attempt, sqlstate) in [
        (format!("select synapsedb.record_ddl('{forged}')"), "P0001"),
        (format!("do $$ begin perform synapsedb.record_ddl('{forged}'); end $$"), "P0001"),
        (format!("insert into synapsedb.ddl (payload) values ('{forged}')"), "42501"),
        ("select synapsedb.run_ddl('synapsedb_agent', 'public', 'select 1')".to_owned(), "42501"),
        ("create function synapsedb.capture_ddl(int) returns int return 1".to_owned(), "42501"),
    ] {
        assert_eq!(server.sqlstate(&attempt).await, sqlstate, "{attempt}");
    }
    // Messages are free for everybody, and mean nothing.
    let message = "select pg_logical_emit_message(true, 'synapsedb.ddl', $1)";
    cluster.node(1).sql(&message.replace("$1", &format!("'{forged}'"))).await;
    // A name that only looks like the trigger's is quoted where the caller is told.
    cluster
        .node(1)
        .sql(&format!(
            "create function \"synapsedb.capture_ddl\"() returns text language plpgsql as
             $f$ declare b boolean; begin b := synapsedb.record_ddl('{forged}'); return 'done'; end $f$"
        ))
        .await;
    assert_eq!(server.sqlstate("select \"synapsedb.capture_ddl\"()").await, "P0001");
    cluster.node(1).sql("create table after_the_forgery (i int primary key)").await;
    cluster.all_show("select count(*) from after_the_forgery", &["0"]).await;
    cluster.all_show("select to_regclass('public.forged') is null", &["t"]).await;
}
