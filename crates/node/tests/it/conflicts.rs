//! Concurrent writes: every node ends with the same rows, the later writer wins, and nothing passes unseen.

use std::time::Duration;

use synapsedb_dev::{Cluster, Shared, eventually};
use tokio::sync::{Mutex, MutexGuard};

use crate::{NOTICED, agent, binary};

static CLUSTER: Shared = Shared::new();
/// One test at a time: each stops the agents for a moment.
static TURN: Mutex<()> = Mutex::const_new(());

async fn cluster() -> (impl std::ops::Deref<Target = Cluster>, MutexGuard<'static, ()>) {
    let turn = TURN.lock().await;
    (CLUSTER.cluster(binary()).await, turn)
}

/// Runs statements while no agent moves, so that none of the nodes sees what the others do; a later statement has a
/// later commit time.
pub(crate) async fn concurrently(cluster: &Cluster, statements: &[(u16, &str)]) {
    for node in cluster.nodes() {
        node.pause_agent();
    }
    for (number, sql) in statements {
        cluster.node(*number).sql(sql).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for node in cluster.nodes() {
        node.resume();
    }
}

/// Types and resolutions of the conflicts that all nodes have logged for a table.
async fn logged(cluster: &Cluster, table: &str) -> Vec<String> {
    let sql = format!(
        "select type || ' ' || resolution from synapsedb.conflict where table_name = '{table}' order by 1"
    );
    let mut all = Vec::new();
    for node in cluster.nodes() {
        all.extend(node.rows(&sql).await);
    }
    all
}

async fn logs(cluster: &Cluster, table: &str, expected: &[&str]) {
    eventually("the conflicts are logged", Duration::from_secs(20), async || {
        let mut found = logged(cluster, table).await;
        found.sort();
        if found == expected { Ok(()) } else { Err(format!("logged: {found:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_later_of_two_inserts_stays() {
    let (cluster, _turn) = cluster().await;
    cluster.node(1).sql("create table twins (id int primary key, v text)").await;
    cluster.all_show("select count(*) from twins", &["0"]).await;
    concurrently(
        &cluster,
        &[(2, "insert into twins values (1, 'two')"), (1, "insert into twins values (1, 'one')")],
    )
    .await;
    cluster.all_show("select v from twins", &["one"]).await;
    let found = ["insert_insert apply_remote", "insert_insert keep_local"];
    eventually("both are logged", Duration::from_secs(20), async || {
        let all = logged(&cluster, "twins").await;
        let both = found.iter().all(|found| all.iter().any(|logged| logged == found));
        if both && all.len() == 3 { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_and_a_delete_end_alike_in_both_orders() {
    let (cluster, _turn) = cluster().await;
    cluster.node(1).sql("create table pairs (id int primary key, v text)").await;
    cluster.node(1).sql("insert into pairs select i, 'old' from generate_series(1, 4) i").await;
    cluster.all_show("select count(*) from pairs", &["4"]).await;
    concurrently(
        &cluster,
        &[
            (1, "delete from pairs where id = 1"),
            (2, "update pairs set v = 'updated later' where id = 1"),
            (3, "update pairs set v = 'updated first' where id = 2"),
            (1, "delete from pairs where id = 2"),
            (1, "delete from pairs where id = 3"),
            (3, "delete from pairs where id = 3"),
        ],
    )
    .await;
    cluster.all_show("select id, v from pairs order by id", &["1|updated later", "4|old"]).await;
    cluster.assert_equal_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_large_transaction_that_others_have_written_are_told_and_settled_alike() {
    let (cluster, _turn) = cluster().await;
    cluster.node(1).sql("create table many (id int primary key, v text)").await;
    cluster.node(1).sql("insert into many select i, 'old' from generate_series(1, 600) i").await;
    cluster.all_show("select count(*) from many", &["600"]).await;
    concurrently(
        &cluster,
        &[
            (2, "update many set v = 'two' where id in (1, 2)"),
            (1, "begin; update many set v = 'one' where id <= 300; delete from many where id > 300; commit"),
            (3, "update many set v = 'three' where id = 3"),
            (3, "update many set v = 'kept' where id = 301"),
        ],
    )
    .await;
    let expected = ["kept|1", "one|299", "three|1"];
    cluster.all_show("select v, count(*) from many group by v order by v", &expected).await;
    cluster.all_show("select v from many where id = 301", &["kept"]).await;
    cluster.all_show("select v from many where id = 1", &["one"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_value_goes_to_the_later_writer_wherever_its_row_is() {
    let (cluster, _turn) = cluster().await;
    cluster
        .node(1)
        .sql("create table named (id int primary key, name text unique, nick text unique)")
        .await;
    cluster.all_show("select count(*) from named", &["0"]).await;
    concurrently(
        &cluster,
        &[
            (1, "insert into named values (1, 'a', 'x')"),
            (2, "insert into named values (2, 'a', 'y')"),
            (3, "insert into named values (3, 'b', 'y')"),
            // The winner of 'b' moves on before the loser arrives anywhere.
            (1, "insert into named values (4, 'c', 'z')"),
            (2, "insert into named values (5, 'c', 'w')"),
            (2, "update named set name = 'd' where id = 5"),
        ],
    )
    .await;
    cluster.assert_equal_rows().await;
    cluster.all_show("select id, name, nick from named order by id", &["3|b|y", "5|d|w"]).await;
    cluster.node(3).sql("insert into named values (6, 'c', 'z')").await;
    cluster.all_show("select id from named order by id", &["3", "5", "6"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_leaves_what_it_had_not_seen() {
    let (cluster, _turn) = cluster().await;
    cluster.node(1).sql("create table emptied_concurrently (id int primary key, v text)").await;
    cluster.node(1).sql("insert into emptied_concurrently values (1, 'old'), (2, 'old')").await;
    cluster.all_show("select count(*) from emptied_concurrently", &["2"]).await;
    concurrently(
        &cluster,
        &[
            (2, "insert into emptied_concurrently values (3, 'before')"),
            (1, "truncate emptied_concurrently"),
            (3, "update emptied_concurrently set v = 'updated' where id = 2"),
        ],
    )
    .await;
    let expected = ["2|updated", "3|before"];
    cluster.all_show("select id, v from emptied_concurrently order by id", &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_changed_concurrently_end_alike() {
    let (cluster, _turn) = cluster().await;
    cluster.node(1).sql("create table moved (id int primary key, v text)").await;
    cluster.node(1).sql("insert into moved values (1, 'one'), (3, 'three')").await;
    cluster.all_show("select count(*) from moved", &["2"]).await;
    concurrently(
        &cluster,
        &[
            (1, "update moved set id = 10 where id = 3"),
            (2, "update moved set id = 20 where id = 3"),
            (3, "update moved set v = 'touched' where id = 1"),
            (1, "update moved set id = 11 where id = 1"),
        ],
    )
    .await;
    cluster.assert_equal_rows().await;
    cluster
        .all_show("select id, v from moved order by id", &["10|three", "11|one", "20|three"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_had_seen_each_other_are_no_conflict() {
    let (cluster, _turn) = cluster().await;
    cluster.node(1).sql("create table passed_on (id int primary key, n int)").await;
    cluster.node(1).sql("insert into passed_on values (1, 0)").await;
    for n in 1..=30 {
        let seen = format!("select n from passed_on where id = 1 and n = {}", n - 1);
        let node = cluster.node(n % 3 + 1);
        eventually("the last value is here", Duration::from_secs(20), async || {
            node.shows(&seen, &[&(n - 1).to_string()]).await
        })
        .await;
        node.sql(&format!("update passed_on set n = {n} where id = 1")).await;
    }
    cluster.all_show("select n from passed_on", &["30"]).await;
    logs(&cluster, "passed_on", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_applied_is_quarantined_and_the_stream_goes_on() {
    let (cluster, _turn) = cluster().await;
    cluster.node(1).sql("create table checked (id int primary key, v int)").await;
    cluster.all_show("select count(*) from checked", &["0"]).await;
    let local = "set session_replication_role = replica; \
                 alter table checked add constraint positive check (v > 0)";
    cluster.node(2).agent_server().sql(local).await;
    cluster.node(1).sql("insert into checked values (1, 5), (2, -5), (3, 7)").await;
    cluster.node(1).sql("insert into checked values (4, 8)").await;
    eventually("node 2 has the rows that it can have", Duration::from_secs(20), async || {
        cluster.node(2).shows("select id from checked order by id", &["1", "3", "4"]).await
    })
    .await;
    let kept = "select kind, new_row ->> 'id', sqlstate from synapsedb.quarantine where table_name = 'checked'";
    assert_eq!(cluster.node(2).rows(kept).await, ["insert|2|23514"]);
    let id = cluster.node(2).value("select id from synapsedb.quarantine").await;
    let (code, _, error) = crate::repl::run(&cluster, &["repl", "retry"], &[&format!("2/{id}")]);
    assert!(code == 1 && error.contains("violates check constraint"), "{error}");
    cluster
        .node(2)
        .agent_server()
        .sql("set session_replication_role = replica; alter table checked drop constraint positive")
        .await;
    let id = cluster.node(2).value("select id from synapsedb.quarantine").await;
    let (code, text, error) = crate::repl::run(&cluster, &["repl", "retry"], &[&format!("2/{id}")]);
    assert!(code == 0 && text.contains("is applied"), "{text}{error}");
    cluster.all_show("select id, v from checked order by id", &["1|5", "2|-5", "3|7", "4|8"]).await;
    assert!(cluster.node(2).rows("select id from synapsedb.quarantine").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_that_the_winner_left_out_is_what_the_winner_had() {
    let (cluster, _turn) = cluster().await;
    cluster.node(1).sql("create table toasted (id int primary key, v text, large text)").await;
    cluster.node(1).sql("alter table toasted alter large set storage external").await;
    let rows = "insert into toasted select i, 'old', repeat(md5('old' || i), 2000) from generate_series(1, 3) i";
    cluster.node(1).sql(rows).await;
    cluster.all_show("select count(*) from toasted", &["3"]).await;
    concurrently(
        &cluster,
        &[
            (1, "update toasted set large = repeat('changed', 3000) where id = 1"),
            (2, "update toasted set v = 'later' where id = 1"),
            (1, "delete from toasted where id = 2"),
            (3, "update toasted set v = 'later' where id = 2"),
        ],
    )
    .await;
    let expected = "select id, v, large = repeat(md5('old' || id), 2000) from toasted order by id";
    cluster.all_show(expected, &["1|later|t", "2|later|t", "3|old|t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_composite_with_a_null_field_passes_the_slow_path() {
    let (cluster, _turn) = cluster().await;
    cluster
        .node(1)
        .sql(
            "create type slow_pair as (a int, b text);
             create table composed (id int primary key, p slow_pair, v text, w text);
             create table carried (id int primary key, p slow_pair, v text);
             insert into composed select n, row(n, null)::slow_pair, 'old', 'old' from generate_series(1, 3) n;
             insert into composed values (4, null, 'old', 'old'), (5, row(null, null), 'old', 'old');
             insert into carried values (1, row(1, null), 'old'), (2, row(null, null), 'old'), (3, null, 'old');
             select synapsedb.set_policy('composed', 'merge_columns')",
        )
        .await;
    let policy = "select policy from synapsedb.policies() where relation = to_regclass('composed')";
    cluster.all_show(policy, &["merge_columns"]).await;
    cluster.all_show("select count(*) from carried", &["3"]).await;
    concurrently(
        &cluster,
        &[
            // Columns of two writers make one row; what neither of them changed is kept.
            (1, "update composed set v = 'one'"),
            (2, "update composed set w = 'two' where id <> 2"),
            (2, "update composed set p.b = null, p.a = 20 where id = 2"),
            // The row that moves is the one that is here.
            (1, "update carried set id = id + 10"),
            (3, "update carried set v = 'three' where id = 3"),
        ],
    )
    .await;
    cluster.assert_equal_rows().await;
    let rows = "select id, p::text, p is null, num_nulls(p), v, w from composed order by id";
    let expected = [
        "1|(1,)|f|0|one|two",
        "2|(20,)|f|0|one|old",
        "3|(3,)|f|0|one|two",
        "4||t|1|one|two",
        "5|(,)|t|0|one|two",
    ];
    cluster.all_show(rows, &expected).await;
    let rows = "select id, p::text, num_nulls(p) from carried where id in (11, 12) order by id";
    cluster.all_show(rows, &["11|(1,)|0", "12|(,)|0"]).await;
}

/// Node 1 has deleted row 1 of `table`, and for a moment had the unique value of row 8, which is decoded there while
/// the older inserts of both by node 2 are about to commit there, behind what the session that is returned holds back.
async fn delete_under_an_insert_on_its_way(
    cluster: &Cluster,
    table: &str,
) -> synapsedb_dev::client::Session {
    let (here, origin) = (cluster.node(1), cluster.node(2));
    here.sql(&format!("create table {table} (id int primary key, v text unique)")).await;
    here.sql(&format!("insert into {table} values (2, 'held')")).await;
    cluster.all_show(&format!("select count(*) from {table}"), &["1"]).await;
    // What node 2 has not seen of node 3 is later than row 2 then: its transaction is not looked at closely.
    cluster.node(3).sql(&format!("insert into {table} values (4, 'seen')")).await;
    cluster.all_show(&format!("select count(*) from {table}"), &["2"]).await;
    origin.pause_agent();
    let insert = format!("insert into {table} values (1, 'older'), (8, 'taken')");
    origin
        .sql(&format!("begin; {insert}; update {table} set v = 'two' where id = 2; commit"))
        .await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    here.pause_decoding().await;
    let holder = here.session().await;
    holder
        .batch_execute(&format!("begin; select from {table} where id = 2 for update"))
        .await
        .unwrap();
    here.sql(&format!("insert into {table} values (1, 'later')")).await;
    here.sql(&format!("insert into {table} values (7, 'taken')")).await;
    here.sql(&format!("delete from {table} where id in (1, 7)")).await;
    origin.resume();
    let held = "select count(*) from pg_stat_activity
                where application_name = 'synapsedb apply 2' and wait_event_type = 'Lock'";
    eventually("the insert is held back", NOTICED, async || agent(here).shows(held, &["1"]).await)
        .await;
    here.resume_decoding().await;
    // Behind the delete: who has it, has the delete.
    here.sql(&format!("insert into {table} values (3, 'behind')")).await;
    let behind = format!("select count(*) from {table} where id = 3");
    eventually("the delete is decoded", NOTICED, async || {
        cluster.node(3).shows(&behind, &["1"]).await
    })
    .await;
    // Whoever looks at once, too early, has looked by now.
    tokio::time::sleep(Duration::from_millis(300)).await;
    holder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_is_decoded_while_an_older_insert_is_on_its_way_removes_it() {
    let (cluster, _turn) = cluster().await;
    let holder = delete_under_an_insert_on_its_way(&cluster, "on_its_way").await;
    holder.batch_execute("commit").await.unwrap();
    cluster.all_show("select id from on_its_way order by id", &["2", "3", "4"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lost_to_a_local_write_goes_also_after_a_restart() {
    let (cluster, _turn) = cluster().await;
    let holder = delete_under_an_insert_on_its_way(&cluster, "not_looked_at").await;
    let here = cluster.node(1);
    // Has the table as soon as the insert has committed, so that the row stays for now.
    let table_holder = here.session().await;
    let lock = "begin; lock table not_looked_at in share mode";
    let (locked, held_back) = tokio::join!(table_holder.batch_execute(lock), async {
        let waits = "select count(*) from pg_locks
                     where locktype = 'relation' and mode = 'ShareLock' and not granted";
        eventually("the table is waited for", NOTICED, async || here.shows(waits, &["1"]).await)
            .await;
        holder.batch_execute("commit").await
    });
    locked.and(held_back).unwrap();
    let rows = "select id, v from not_looked_at where id in (1, 8) order by id";
    let older = ["1|older", "8|taken"];
    eventually("the insert commits", NOTICED, async || here.shows(rows, &older).await).await;
    // It has been decoded when what is written upon it has been.
    here.sql("create table upon_it (id int primary key)").await;
    cluster.all_show("select count(*) from upon_it", &["0"]).await;
    here.kill_agent();
    here.start();
    cluster.wait_ready().await;
    here.shows(rows, &older).await.unwrap();
    table_holder.batch_execute("commit").await.unwrap();
    cluster.all_show("select id from not_looked_at order by id", &["2", "3", "4"]).await;
}

/// Who had lost a parent by the log of a node: child, parent, their writers, and whether their times are told.
const BEREAVED: &str =
    "select table_name, local_row ->> 'id', remote_row ->> 'id', local_node, remote_node,
        key ->> 'id', local_time is not null, remote_time is not null
    from synapsedb.conflict where type = 'foreign_key' and resolution = 'keep_child'
        and table_name like 'bereaved%' order by table_name, (local_row ->> 'id')::int";

async fn all_tell(cluster: &Cluster, expected: &[&str]) {
    for node in cluster.nodes() {
        eventually("who lost a parent is told", Duration::from_secs(20), async || {
            node.shows(BEREAVED, expected).await
        })
        .await;
    }
    // Nothing more comes later, such as the same again.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for node in cluster.nodes() {
        node.shows(BEREAVED, expected).await.unwrap();
    }
}

/// Parents and children of every kind.
const FAMILIES: &str = "
    create table parents_that_go (id int primary key, v text);
    create table bereaved (id int primary key, parent int references parents_that_go on delete cascade);
    create table parts_that_go (id int primary key) partition by range (id);
    create table parts_that_go_1 partition of parts_that_go for values from (0) to (100);
    create table bereaved_parts (id int, parent int references parts_that_go, primary key (id, parent))
    partition by list (parent);
    create table bereaved_parts_1 partition of bereaved_parts for values in (1, 2);
    create table emptied_parents (id int primary key);
    create table bereaved_by_truncate (id int primary key, parent int references emptied_parents);
    create table rivals (id int primary key, name text unique);
    create table bereaved_by_rivals (id int primary key, parent int references rivals);
    insert into parents_that_go select n, 'old' from generate_series(1, 6) n;
    insert into parts_that_go values (1), (2);
    insert into emptied_parents values (1), (2)";

/// What is written while no node hears of another.
const APART: &[(u16, &str)] = &[
    // The delete first, the child first, and a key that changes.
    (1, "delete from parents_that_go where id = 1"),
    (2, "insert into bereaved values (11, 1)"),
    (3, "insert into bereaved values (12, 2)"),
    (1, "delete from parents_that_go where id = 2"),
    (2, "update parents_that_go set id = 30 where id = 3"),
    (3, "insert into bereaved values (13, 3)"),
    // Nobody's child, and children of parents that stay.
    (2, "insert into bereaved values (14, null)"),
    (3, "insert into bereaved values (15, 5)"),
    (1, "delete from parents_that_go where id = 6"),
    (1, "insert into parents_that_go values (6, 'again')"),
    (3, "insert into bereaved values (16, 6)"),
    // Between partitions, and by a truncate.
    (1, "delete from parts_that_go where id = 1"),
    (2, "insert into bereaved_parts values (1, 1), (2, 2)"),
    (3, "truncate emptied_parents cascade"),
    (2, "insert into bereaved_by_truncate values (1, 1)"),
    // By a parent that takes the other's unique value.
    (1, "insert into rivals values (1, 'same')"),
    (1, "insert into bereaved_by_rivals values (1, 1)"),
    (2, "insert into rivals values (2, 'same')"),
    (2, "insert into bereaved_by_rivals values (2, 2)"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_child_whose_parent_goes_concurrently_stays_and_every_node_tells() {
    let (cluster, _turn) = cluster().await;
    cluster.node(1).sql(FAMILIES).await;
    cluster.all_show("select count(*) from emptied_parents", &["2"]).await;
    concurrently(&cluster, APART).await;
    let children = "select id, parent from bereaved order by id";
    cluster.all_show(children, &["11|1", "12|2", "13|3", "14|", "15|5", "16|6"]).await;
    cluster.assert_equal_rows().await;
    let expected = [
        "bereaved|11|1|2|1|11|t|t",
        "bereaved|12|2|3|1|12|t|t",
        "bereaved|13|3|3|2|13|t|t",
        "bereaved_by_rivals|1|1|1|2|1|t|t",
        "bereaved_by_truncate|1|1|2||1|t|f",
        "bereaved_parts|1|1|2|1|1|t|t",
    ];
    all_tell(&cluster, &expected).await;
    let counted = cluster
        .node(3)
        .metric(
            "synapsedb_replication_conflicts_total",
            "kind=\"foreign_key\",table=\"public.bereaved\"",
        )
        .await;
    assert!(counted >= 3.0, "{counted}");
    let (code, text, error) =
        crate::repl::run(&cluster, &["conflicts", "ls"], &["--type", "foreign_key", "--node", "2"]);
    assert!(code == 0 && text.contains("public.bereaved_parts"), "{text}{error}");

    // Who knows of a delete is refused at home, and is no conflict; a restart tells nothing again.
    let refused = cluster.node(3).server().sqlstate("insert into bereaved values (17, 1)").await;
    assert_eq!(refused, "23503");
    cluster.node(2).kill_agent();
    cluster.node(2).start();
    cluster.wait_ready().await;
    cluster.node(2).sql("insert into bereaved values (18, 5)").await;
    cluster.all_show("select count(*) from bereaved", &["7"]).await;
    all_tell(&cluster, &expected).await;
}
