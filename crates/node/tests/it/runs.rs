//! Transactions of one shape, which are applied by procedures inside the server: values, changes of the table, limits.

use crate::{cluster, shared};

/// Comes often enough for a procedure: single-row transactions.
fn often(count: u32, statement: &str) -> String {
    format!("do $$ begin for n in 1..{count} loop {statement}; commit; end loop; end $$")
}

const PROCEDURES: &str =
    "select count(*) > 0 from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'synapsedb' and p.proname like 'apply\\_1\\_%'";

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_quick_type_arrive_as_they_are() {
    let cluster = shared().await;
    let origin = cluster.node(1);
    origin
        .sql(
            "create table run_types (id bigint primary key, b boolean, i2 smallint, i4 integer, f4 real,
                 f8 double precision, bytes bytea, uuid uuid, day date, at timestamp, zoned timestamptz,
                 short varchar(5), padded char(4), exact numeric(12, 3), document jsonb)",
        )
        .await;
    let row = "insert into run_types values (
        case when n % 2 = 0 then n else -n end * 1000000007, n % 2 = 0, (n - 50) * 655, 2147483647 - n,
        (n / 3.0)::real, exp(n)::float8, sha256(n::text::bytea), md5(n::text)::uuid, date '1900-02-28' + n * 997,
        timestamp '1969-12-31 23:59:59.999999' + n * interval '11 days 1.000001 s',
        timestamptz '2026-10-25 00:30:00+00' + n * interval '0.123456 s', left(md5(n::text), n % 6), n::text,
        n * 1.001, jsonb_build_object('n', n))";
    origin.sql(&often(100, row)).await;
    // What is not read in a quick way, what is at a limit, and what is nothing.
    let odd = "insert into run_types (id, f4, f8, day, at, zoned) values
        (n, 'NaN', '-Infinity', case when n % 2 = 0 then 'infinity' else '0044-03-15 BC' end::date,
         case when n % 3 = 0 then '-infinity' else '12026-01-01 00:00:00' end::timestamp, 'infinity')";
    origin.sql(&often(60, odd)).await;
    let all = "select count(*), md5(string_agg(r::text, ';' order by r.id)) from run_types r";
    cluster.all_show("select count(*) from run_types", &["160"]).await;
    cluster.all_show_as(1, all).await;
    assert_eq!(cluster.node(2).value(PROCEDURES).await, "t", "the shape has a procedure");
    origin
        .sql(&often(100, "update run_types set i4 = -n, at = null, padded = 'x' where id = n"))
        .await;
    origin.sql(&often(30, "delete from run_types where id = n")).await;
    cluster.all_show("select count(*) from run_types", &["130"]).await;
    cluster.all_show_as(1, all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn procedures_outlive_changes_of_their_table_and_stay_on_their_node() {
    let cluster = cluster(3).await;
    let origin = cluster.node(1);
    origin.sql("create table run_changes (id bigint primary key, v int)").await;
    let insert = |from: u32| often(60, &format!("insert into run_changes values ({from} + n, n)"));
    origin.sql(&insert(0)).await;
    cluster.all_show("select count(*), sum(v) from run_changes", &["60|1830"]).await;
    assert_eq!(cluster.node(2).value(PROCEDURES).await, "t", "the shape has a procedure");
    assert_eq!(origin.value(PROCEDURES).await, "f", "nobody applies node 1's transactions there");
    for change in [
        "alter table run_changes alter v type bigint",
        "alter table run_changes add w text default 'new'",
        "alter table run_changes drop v; alter table run_changes add v text",
        "alter table run_changes rename to run_changed; create table run_changes (id text primary key, v text)",
    ] {
        let before: u32 = origin.value("select count(*) from run_changes").await.parse().unwrap();
        origin.sql(&insert(before)).await;
        origin.sql(change).await;
        let after: u32 = origin.value("select count(*) from run_changes").await.parse().unwrap();
        origin.sql(&insert(after)).await;
    }
    let all = "select md5(string_agg(r::text, ';' order by r.id)) from run_changes r";
    cluster.all_show_as(1, "select count(*) from run_changes").await;
    cluster.all_show_as(1, all).await;
    cluster.assert_equal_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_key_ends_a_run_and_the_later_writer_wins() {
    let cluster = cluster(3).await;
    cluster.node(1).sql("create table run_clash (id int primary key, v text)").await;
    cluster.all_show("select count(*) from run_clash", &["0"]).await;
    cluster.node(1).sql(&often(60, "insert into run_clash values (-n, 'before')")).await;
    cluster.all_show("select count(*) from run_clash", &["60"]).await;
    // Node 2 sees nothing of node 1 while it takes keys in the middle of what comes.
    cluster.node(2).pause_agent();
    cluster.node(1).sql(&often(200, "insert into run_clash values (n, 'one')")).await;
    cluster
        .node(2)
        .sql("insert into run_clash select n, 'two' from generate_series(50, 150, 50) n")
        .await;
    cluster.node(2).resume();
    cluster.all_show("select count(*) from run_clash", &["260"]).await;
    cluster
        .all_show(
            "select string_agg(id::text, ' ' order by id) from run_clash where v = 'two'",
            &["50 100 150"],
        )
        .await;
    cluster.assert_equal_rows().await;
}
