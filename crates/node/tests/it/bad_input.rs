//! What should never come: garbage from a peer, lost slots and WAL, types and tables that differ, functions that throw
//! or never return, a full disk. The stream stops at a defined point or sets aside what it cannot apply, says why,
//! loses nothing, and goes on when the cause is mended.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use synapsedb::replication::spool::{self, SpoolId};
use synapsedb_core::lsn::Lsn;
use synapsedb_dev::disk::SmallDisk;
use synapsedb_dev::{Cluster, HttpPort, Node, Shared, eventually};
use tokio::sync::{Mutex, MutexGuard};

use crate::{NOTICED, binary, skip};

mod impostor;
pub(crate) mod late;
mod lost_wal;

static CLUSTER: Shared = Shared::new();
/// One test at a time: each blocks a lane or stops a node for a moment.
static TURN: Mutex<()> = Mutex::const_new(());

/// How long a row may take on the shared cluster.
const ROW_TIMEOUT_MS: i64 = 500;

/// The cluster of the tests that mend what they break.
async fn cluster() -> (impl std::ops::Deref<Target = Cluster>, MutexGuard<'static, ()>) {
    let turn = TURN.lock().await;
    let cluster = CLUSTER
        .configured(binary(), |cluster| {
            for node in cluster.nodes() {
                node.configure("replication.row_timeout_ms", ROW_TIMEOUT_MS);
                node.configure("replication.lock_timeout_ms", ROW_TIMEOUT_MS / 2);
                node.configure("replication.retry_max_ms", 300);
            }
        })
        .await;
    (cluster, turn)
}

/// Runs statements on this node only.
pub(crate) async fn only_here(node: &Node, sql: &str) {
    node.agent_server().sql(&format!("set session_replication_role = replica; {sql}")).await;
}

/// What a node says of the lane of an origin.
async fn lane(node: &Node, origin: u16) -> Result<Value, String> {
    let (_, text) = node
        .try_http(HttpPort::Raft, "/replication/status")
        .await
        .map_err(|error| format!("{error:#}"))?;
    let body: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    let lanes = body["lanes"].as_array().cloned().unwrap_or_default();
    lanes.into_iter().find(|lane| lane["origin"] == origin).ok_or(format!("no lane: {body}"))
}

/// Waits until a node says that an origin's transactions are blocked, for a reason that holds these words.
async fn blocked(node: &Node, origin: u16, words: &str) {
    eventually(&format!("it is blocked since {words:?}"), NOTICED, async || {
        let lane = lane(node, origin).await?;
        let told = lane["detail"].as_str().unwrap_or_default().contains(words);
        if lane["state"] == "blocked" && told { Ok(()) } else { Err(lane.to_string()) }
    })
    .await;
    assert!(node.log().contains(words), "the log does not say {words:?}:\n{}", node.log_tail());
}

/// The lane of another origin flows, up to what has seen the transaction that is blocked: that waits for it.
async fn goes_on_up_to_it(node: &Node, origin: u16) {
    // A lane that begins again is starting for a moment.
    eventually(&format!("the lane of node {origin} goes on"), NOTICED, async || {
        let lane = lane(node, origin).await?;
        let goes = matches!(lane["state"].as_str(), Some("flowing" | "waiting"));
        if goes { Ok(()) } else { Err(lane.to_string()) }
    })
    .await;
}

/// What is in quarantine of a table on a node, oldest first: kind and SQLSTATE.
async fn quarantined(node: &Node, expected: &[&str]) {
    let kept = "select kind, coalesce(sqlstate, '') from synapsedb.quarantine order by id";
    eventually(&format!("node {} sets aside {expected:?}", node.number()), NOTICED, async || {
        node.shows(kept, expected).await
    })
    .await;
}

/// Tries everything again that a node has in quarantine, oldest first.
pub(crate) async fn retry_all(cluster: &Cluster, node: &Node) {
    for id in node.rows("select id from synapsedb.quarantine order by id").await {
        let id = format!("{}/{id}", node.number());
        let (code, text, error) = crate::repl::run(cluster, &["repl", "retry"], &[&id]);
        assert!(code == 0 && text.contains("is applied"), "{text}{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_throws_or_never_returns_sets_its_row_aside() {
    let (cluster, _turn) = cluster().await;
    let [one, two] = [1, 2].map(|number| cluster.node(number));
    one.sql(
        "create table hooked (id serial primary key, v text);
         create function hook() returns trigger language plpgsql as $$ begin
             if new.v = 'throws' then raise exception 'I will not have it'; end if;
             if new.v = 'loops' then loop perform 1; end loop; end if;
             return new;
         end $$;
         create trigger hook before insert on hooked for each row execute function hook()",
    )
    .await;
    cluster.all_show("select count(*) from pg_trigger where tgname = 'hook'", &["1"]).await;
    only_here(two, "alter table hooked enable always trigger hook").await;
    only_here(one, "alter table hooked disable trigger hook").await;
    let session = one.session().await;
    // Enough of one shape that runs are applied by procedures, with what cannot be applied in their middle.
    for n in 0..150 {
        let v = match n {
            20 | 90 => "throws",
            40 | 120 => "loops",
            _ => "fine",
        };
        session.rows(&format!("insert into hooked (v) values ('{v}')")).await.unwrap();
    }
    session.rows("insert into hooked (v) values ('fine'), ('loops'), ('last')").await.unwrap();
    let set_aside = ["insert|P0001", "insert|57014"];
    let expected: Vec<_> =
        set_aside.iter().cycle().take(4).copied().chain([set_aside[1]]).collect();
    quarantined(two, &expected).await;
    eventually("node 2 has everything else", NOTICED, async || {
        two.shows("select count(*), max(v) from hooked", &["148|last"]).await
    })
    .await;
    assert!(two.metric("synapsedb_replication_quarantined_rows_total", "").await >= 5.0);
    assert!(two.log().contains("I will not have it"), "{}", two.log_tail());
    only_here(two, "alter table hooked disable trigger hook").await;
    retry_all(&cluster, two).await;
    cluster.all_show("select count(*) from hooked", &["153"]).await;
    cluster.assert_equal_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_throws_or_never_returns_sets_its_row_aside() {
    let (cluster, _turn) = cluster().await;
    cluster
        .node(1)
        .sql(
            "create table merged_badly (id int primary key, v text);
             create function merge_badly(a jsonb, b jsonb) returns jsonb language plpgsql as $$ begin
                 if a ->> 'id' = '1' then raise exception 'no merge today'; end if;
                 loop perform 1; end loop;
             end $$;
             insert into merged_badly values (1, 'old'), (2, 'old'), (3, 'old');
             select synapsedb.set_policy('merged_badly', 'function(public.merge_badly)')",
        )
        .await;
    cluster
        .all_show(
            "select policy from synapsedb.policies() where relation = to_regclass('merged_badly')",
            &["function(public.merge_badly)"],
        )
        .await;
    let updates = ["update merged_badly set v = 'one'", "update merged_badly set v = 'two'"];
    crate::conflicts::concurrently(
        &cluster,
        &[
            (1, &format!("{} where id = 1", updates[0])),
            (2, &format!("{} where id = 1", updates[1])),
            (1, &format!("{} where id = 2", updates[0])),
            (2, &format!("{} where id = 2", updates[1])),
            (1, "update merged_badly set v = 'last' where id = 3"),
        ],
    )
    .await;
    cluster.all_show("select v from merged_badly where id = 3", &["last"]).await;
    quarantined(cluster.node(1), &["update|P0001", "update|57014"]).await;
    quarantined(cluster.node(2), &["update|P0001", "update|57014"]).await;
    quarantined(cluster.node(3), &["update|P0001", "update|57014"]).await;
    cluster
        .node(1)
        .sql(
            "create or replace function merge_badly(a jsonb, b jsonb) returns jsonb language sql as
             $$ select case when a ->> 'v' > b ->> 'v' then a else b end $$",
        )
        .await;
    let mended =
        "select prolang <> (select oid from pg_language where lanname = 'plpgsql') from pg_proc
        where proname = 'merge_badly'";
    cluster.all_show(mended, &["t"]).await;
    for node in cluster.nodes() {
        retry_all(&cluster, node).await;
    }
    cluster.assert_equal_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_is_missing_on_one_node_sets_aside_what_needs_it() {
    let (cluster, _turn) = cluster().await;
    let [one, two, three] = [1, 2, 3].map(|number| cluster.node(number));
    one.sql("create type shade as enum ('red', 'green'); create table shaded (id int primary key, s shade)")
        .await;
    cluster.all_show("select count(*) from shaded", &["0"]).await;
    // A label that node 2 lacks, and a type that only node 1 has.
    only_here(one, "alter type shade add value 'teal'").await;
    only_here(three, "alter type shade add value 'teal'").await;
    only_here(
        one,
        "create type pair_of_one as (a int, b int); alter type pair_of_one owner to synapsedb",
    )
    .await;
    one.sql("insert into shaded values (1, 'red'), (2, 'teal'), (3, 'green')").await;
    one.sql("create table paired (id int primary key, p pair_of_one)").await;
    one.sql("insert into paired values (1, (1, 2)), (2, null)").await;
    one.sql("insert into shaded values (4, 'red')").await;
    eventually("the others go on", NOTICED, async || {
        two.shows("select id from shaded order by id", &["1", "3", "4"]).await?;
        three.shows("select id from shaded order by id", &["1", "2", "3", "4"]).await
    })
    .await;
    quarantined(two, &["insert|22P02", "ddl|42704", "insert|", "insert|"]).await;
    quarantined(three, &["ddl|42704", "insert|", "insert|"]).await;
    let why = two.rows("select reason from synapsedb.quarantine order by id").await;
    assert!(why[1].contains("pair_of_one") && why[2].contains("public.paired"), "{why:?}");

    only_here(two, "alter type shade add value 'teal'").await;
    for node in [two, three] {
        let mend = "create type public.pair_of_one as (a int, b int); alter type pair_of_one owner to synapsedb";
        only_here(node, mend).await;
        retry_all(&cluster, node).await;
    }
    cluster.all_show("select id, p from paired order by id", &["1|(1,2)", "2|"]).await;
    cluster.all_show("select id, s from shaded where id = 2", &["2|teal"]).await;
    two.sql("insert into paired values (3, (5, 6))").await;
    cluster.all_show("select count(*) from paired", &["3"]).await;
    cluster.assert_equal_rows().await;
}

/// A small disk for the server of a node, with a tablespace on it.
fn small_tablespace(node: &Node) -> Result<(SmallDisk, PathBuf), String> {
    use std::os::unix::fs::{MetadataExt as _, chown};
    let folder = node.folder().join("small");
    fs::create_dir_all(&folder).unwrap();
    let owner = fs::metadata(node.pgdata()).unwrap();
    chown(&folder, Some(owner.uid()), Some(owner.gid())).map_err(|error| error.to_string())?;
    let disk = SmallDisk::mount(&folder, 4 << 20).map_err(|error| format!("{error:#}"))?;
    Ok((disk, folder))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_in_the_middle_of_an_apply_loses_nothing() {
    let (cluster, _turn) = cluster().await;
    let [one, two] = [1, 2].map(|number| cluster.node(number));
    one.sql("create table packed (id int primary key, v text)").await;
    one.sql("alter table packed alter v set storage external").await;
    cluster.all_show("select count(*) from packed", &["0"]).await;
    let (_disk, folder) = match small_tablespace(two) {
        Ok(disk) => disk,
        Err(reason) => return skip(&reason),
    };
    let server = two.agent_server();
    server.sql(&format!("create tablespace small location '{}'", folder.display())).await;
    only_here(two, "alter table packed set tablespace small").await;
    one.sql("insert into packed select n, repeat('x', 8000) from generate_series(1, 1000) n").await;
    one.sql("insert into packed values (1001, 'after')").await;
    blocked(two, 1, "No space left on device").await;
    // What has not seen it goes on, and nothing was set aside.
    goes_on_up_to_it(two, 3).await;
    assert_eq!(
        two.value("select count(*) from packed").await,
        "0",
        "a part of a transaction is seen"
    );
    quarantined(two, &[]).await;
    only_here(two, "alter table packed set tablespace pg_default").await;
    cluster.all_show("select count(*), max(id) from packed", &["1001|1001"]).await;
    cluster.assert_equal_rows().await;
    server.sql("drop tablespace small").await;
}

/// The largest segment of a node's spool of an origin.
fn segment(node: &Node, origin: u16) -> PathBuf {
    let folder = node.folder().join(format!("spool/{origin}-1"));
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let segments = entries.filter(|path| path.extension().is_some_and(|ending| ending == "seg"));
    segments.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn cut_in_half(path: &PathBuf) -> Vec<u8> {
    let whole = fs::read(path).unwrap();
    fs::write(path, &whole[..whole.len() / 2]).unwrap();
    whole
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_spool_segment_is_fetched_again_or_refused() {
    let (cluster, _turn) = cluster().await;
    let [one, two, three] = [1, 2, 3].map(|number| cluster.node(number));
    one.sql("create table halved (id int primary key, v text)").await;
    cluster.all_show("select count(*) from halved", &["0"]).await;
    // Node 3 is away, so that everybody keeps the rows; node 2 has them all and has applied none of them.
    three.stop();
    let lock = two.session().await;
    lock.rows("begin; lock table halved").await.unwrap();
    let insert = "insert into halved select n, repeat('h', 500) from generate_series(1, 2000) n";
    one.sql(insert).await;
    let written = one.value("select pg_current_wal_lsn() - '0/0'").await.parse::<f64>().unwrap();
    eventually("node 2 has received them", NOTICED, async || {
        let lane = lane(two, 1).await?;
        let lsn = lane["received_lsn"].as_str().unwrap_or_default().to_owned();
        let received = two.value(&format!("select '{lsn}'::pg_lsn - '0/0'")).await;
        let far = received.parse::<f64>().unwrap_or(0.0) > written - 1_000_000.0;
        if far { Ok(()) } else { Err(lane.to_string()) }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    two.kill_agent();
    cut_in_half(&segment(two, 1));
    lock.rows("rollback").await.unwrap();
    two.start();
    eventually("node 2 has the rows from node 1 again", NOTICED, async || {
        two.shows("select count(*) from halved", &["2000"]).await
    })
    .await;
    assert!(two.log().contains("is corrupt: it is kept as"), "{}", two.log_tail());

    // Its own spool is what nobody else may have: it is refused, and works when it is put back.
    one.stop();
    let file = segment(one, 1);
    let whole = cut_in_half(&file);
    let log = one.refuses_to_start(NOTICED * 2);
    assert!(log.contains("corrupt") && log.contains(".seg"), "{log}");
    fs::write(&file, &whole).unwrap();
    one.start();
    three.start();
    cluster.wait_ready().await;
    one.sql("insert into halved values (2001, 'on')").await;
    cluster.all_show("select count(*) from halved", &["2001"]).await;
    cluster.assert_equal_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spooled_message_that_cannot_be_read_blocks_its_lane_only() {
    let (cluster, _turn) = cluster().await;
    let [one, two, three] = [1, 2, 3].map(|number| cluster.node(number));
    one.sql("create table unreadable (id int primary key)").await;
    cluster.all_show("select count(*) from unreadable", &["0"]).await;
    // As if another version had written it: no checksum is wrong.
    one.stop();
    let who = impostor::identity(&cluster, 3);
    let id = SpoolId { cluster: who.cluster_id, origin: who.node, incarnation: who.incarnation };
    let folder = one.folder().join("spool/3-1");
    let (mut writer, _spool) = spool::open(&folder, id, spool::Config::default()).unwrap();
    let next = Lsn(writer.tail().end_lsn.0 + 1);
    writer.append_frame(&impostor::frame(id, next, b"I\0\0\x40"), |_| Ok(())).unwrap();
    writer.show().unwrap();
    drop(writer);
    one.start();
    blocked(one, 3, "cannot be read here").await;
    two.sql("insert into unreadable values (2)").await;
    three.sql("insert into unreadable values (3)").await;
    goes_on_up_to_it(one, 2).await;
    let anew = || one.log().matches("the lanes of replication start anew").count();
    let before = anew();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(anew(), before, "all lanes start anew for one of them");
    one.stop();
    fs::rename(&folder, one.folder().join("moved-away")).unwrap();
    one.start();
    cluster.wait_ready().await;
    cluster.all_show("select id from unreadable order by id", &["2", "3"]).await;
    cluster.assert_equal_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_differs_sets_aside_and_goes_on() {
    let (cluster, _turn) = cluster().await;
    let [one, two, three] = [1, 2, 3].map(|number| cluster.node(number));
    one.sql("create table drifted (id int primary key, a text, b text)").await;
    cluster.all_show("select count(*) from drifted", &["0"]).await;
    // Another order and one more column on node 2; one column less on node 3.
    only_here(two, "drop table drifted; create table drifted (b text, more int default 7, id int primary key, a text)")
        .await;
    only_here(two, "alter table drifted owner to synapsedb").await;
    only_here(three, "alter table drifted drop column b").await;
    one.sql("insert into drifted values (1, 'a', 'b')").await;
    one.sql("create table after_drift (id int primary key)").await;
    cluster.all_show("select count(*) from after_drift", &["0"]).await;
    eventually("columns are matched by name", NOTICED, async || {
        two.shows("select id, a, b, more from drifted", &["1|a|b|7"]).await
    })
    .await;
    quarantined(three, &["insert|"]).await;
    let why = three.value("select reason from synapsedb.quarantine").await;
    assert!(why.contains("has no column \"b\" here"), "{why}");
    only_here(three, "alter table drifted add column b text").await;
    retry_all(&cluster, three).await;
    cluster.all_show("select id, a, b from drifted", &["1|a|b"]).await;
    only_here(two, "alter table drifted drop column more").await;
    one.sql("drop table drifted").await;
    cluster.all_show("select to_regclass('drifted') is null", &["t"]).await;
}

/// Waits until a node is not ready for a reason that holds these words.
async fn not_ready(node: &Node, words: &str) {
    let begun = Instant::now();
    eventually(&format!("it is not ready: {words}"), NOTICED, async || match node.ready().await {
        Err(why) if why.contains(words) => Ok(()),
        other => Err(format!("{:?}: {other:?}", begun.elapsed())),
    })
    .await;
}
