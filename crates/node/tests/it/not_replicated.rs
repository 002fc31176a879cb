//! What stays on its node is said to whoever makes it; partitioned tables are replicated like others.

use std::process::Command;
use std::time::Duration;

use synapsedb_dev::{HttpPort, Node, eventually};

use crate::{NOTICED, shared};

/// What `psql` shows of statements on a node, with all notices.
fn psql(node: &Node, sql: &str) -> String {
    let output = Command::new("psql")
        .args(["-X", "-v", "ON_ERROR_STOP=1", "-c", sql, &node.server().url()])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{sql}: {text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_are_warned_of() {
    let cluster = shared().await;
    let node = cluster.node(3);
    let warned = "there are large objects on this node: they are not replicated";
    assert!(!node.log().contains(warned), "{}", node.log_tail());
    let number = node.value("select lo_from_bytea(0, 'large')").await;
    eventually("the status tells of it", NOTICED, async || {
        let status = node.http(HttpPort::Raft, "/replication/status").await;
        let told = status["not_replicated"]["large_objects"] == 1;
        if told { Ok(()) } else { Err(status["not_replicated"].to_string()) }
    })
    .await;
    assert!(node.log().contains(warned), "{}", node.log_tail());
    assert!(node.metric("synapsedb_replication_large_objects", "").await >= 1.0);
    for statement in
        ["comment on large object $ is 'mine'", "grant select on large object $ to public"]
    {
        let text = psql(node, &statement.replace('$', &number));
        assert!(text.contains("large objects are not replicated"), "{text}");
    }
    psql(node, &format!("alter large object {number} owner to synapsedb"));
    node.sql(&format!("select lo_unlink({number})")).await;
    cluster.node(3).sql("create table after_the_large_object (id int primary key)").await;
    cluster.all_show("select count(*) from after_the_large_object", &["0"]).await;
    for node in cluster.nodes() {
        let kept = "select statement from synapsedb.quarantine where statement ~* 'large object'";
        assert_eq!(node.rows(kept).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unlogged_and_temporary_tables_stay_and_commands_say_what_they_do() {
    let cluster = shared().await;
    let [one, two] = [1, 2].map(|number| cluster.node(number));
    let text = psql(one, "create unlogged table loose (id int primary key)");
    assert!(text.contains("table public.loose is unlogged: its rows stay on this node"), "{text}");
    cluster.all_show("select count(*) from loose", &["0"]).await;
    one.sql("insert into loose values (1)").await;
    let text = psql(
        one,
        "create temp table fleeting (id int); insert into fleeting values (1); drop table fleeting",
    );
    assert!(!text.contains("NOTICE"), "{text}");
    let text = psql(one, "create table marked (id int primary key, v text)");
    assert!(!text.contains("NOTICE"), "{text}");
    let text = psql(two, "select 1");
    assert!(!text.contains("NOTICE"), "{text}");
    cluster.all_show("select count(*) from marked", &["0"]).await;
    let text = psql(one, "create index concurrently marked_v on marked (v)");
    assert!(text.contains("the other nodes repeat CREATE INDEX without CONCURRENTLY"), "{text}");
    cluster.all_show("select count(*) from pg_class where relname = 'marked_v'", &["1"]).await;
    let text =
        psql(one, "create publication of_my_own for table marked; drop publication of_my_own");
    assert!(text.contains("CREATE PUBLICATION is not replicated"), "{text}");
    two.shows("select count(*) from loose", &["0"]).await.unwrap();
    eventually("the status counts it", Duration::from_secs(10), async || {
        let status = one.http(HttpPort::Raft, "/replication/status").await;
        let counted = status["not_replicated"]["unlogged_tables"].as_u64() >= Some(1);
        if counted { Ok(()) } else { Err(status["not_replicated"].to_string()) }
    })
    .await;
    one.sql("drop table loose").await;
    cluster.all_show("select to_regclass('loose') is null", &["t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_partitioned_tables_arrive_wherever_they_go() {
    let cluster = shared().await;
    let [one, two, three] = [1, 2, 3].map(|number| cluster.node(number));
    one.sql(
        "create table sliced (id int, at date, v text, primary key (id, at)) partition by range (at);
         create table sliced_24 partition of sliced for values from ('2024-01-01') to ('2025-01-01');
         create table sliced_25 partition of sliced for values from ('2025-01-01') to ('2026-01-01')
             partition by hash (id);
         create table sliced_25_0 partition of sliced_25 for values with (modulus 2, remainder 0);
         create table sliced_25_1 partition of sliced_25 for values with (modulus 2, remainder 1);
         create table sliced_rest partition of sliced default",
    )
    .await;
    cluster.all_show("select count(*) from sliced", &["0"]).await;
    two.sql("insert into sliced select n, date '2024-06-01' + 300 * (n % 3), 'v' || n from generate_series(1, 30) n")
        .await;
    let look = "select tableoid::regclass, count(*), sum(id) from sliced group by 1 order by 1";
    cluster.all_show("select count(*) from sliced", &["30"]).await;
    cluster.all_show_as(2, look).await;
    // Rows go to other partitions, one of them is taken off, filled alone and put back, another is made of the default.
    three.sql("update sliced set at = at + 365 where id <= 10").await;
    cluster.all_show("select count(*) from sliced_24", &["7"]).await;
    cluster.all_show_as(3, look).await;
    one.sql("alter table sliced detach partition sliced_24; insert into sliced_24 values (100, '2024-12-31', 'alone')")
        .await;
    cluster.all_show("select count(*) from sliced_24", &["8"]).await;
    let attach = "alter table sliced attach partition sliced_24 for values from ('2024-01-01') to ('2025-01-01')";
    two.sql(attach).await;
    cluster.all_show("select v from sliced where id = 100", &["alone"]).await;
    three
        .sql("delete from sliced where at < '2025-01-01' and id % 2 = 0; truncate sliced_25_1")
        .await;
    cluster.all_show_as(3, "select count(*) from sliced").await;
    cluster.all_show_as(3, look).await;
    one.sql("drop table sliced").await;
    cluster.all_show("select to_regclass('sliced_25_0') is null", &["t"]).await;
}
