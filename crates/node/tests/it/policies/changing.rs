//! Policies that change while nodes write: the newest that any writer of a row had seen settles it, everywhere alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use synapsedb_dev::{Cluster, Node};
use tokio::task::JoinSet;

use super::{cluster, table};
use crate::conflicts::concurrently;

#[tokio::test(flavor = "multi_thread")]
async fn who_had_seen_the_new_policy_goes_first() {
    let (cluster, _turn) = cluster().await;
    table(&cluster, "turned", "v text", "last_write_wins").await;
    cluster.node(1).sql("insert into turned select i, '-' from generate_series(1, 4) i").await;
    cluster.all_show("select count(*) from turned", &["4"]).await;
    concurrently(
        &cluster,
        &[
            (2, "update turned set v = 'two' where id <= 2"),
            (1, "select synapsedb.set_policy('turned', 'first_write_wins')"),
            (1, "update turned set v = 'one' where id in (1, 3, 4)"),
            (1, "insert into turned values (5, 'one')"),
            // The latest of all, but who wrote it knew no policy.
            (3, "update turned set v = 'three' where id <= 2"),
            (3, "delete from turned where id = 3"),
            (3, "insert into turned values (5, 'three')"),
        ],
    )
    .await;
    let expected = ["1|one", "2|three", "3|one", "4|one", "5|one"];
    cluster.all_show("select id, v from turned order by id", &expected).await;
    cluster.assert_equal_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_policy_again_is_settled_by_who_knew() {
    let (cluster, _turn) = cluster().await;
    table(&cluster, "returned", "a text, b text", "merge_columns").await;
    cluster
        .node(1)
        .sql("insert into returned select i, '-', '-' from generate_series(1, 3) i")
        .await;
    cluster.all_show("select count(*) from returned", &["3"]).await;
    concurrently(
        &cluster,
        &[
            (2, "update returned set a = 'two'"),
            (1, "select synapsedb.set_policy('returned', 'last_write_wins')"),
            (1, "update returned set a = 'one' where id = 1"),
            (3, "update returned set b = 'three' where id <= 2"),
        ],
    )
    .await;
    let expected = ["1|one|-", "2|two|three", "3|two|-"];
    cluster.all_show("select id, a, b from returned order by id", &expected).await;
    // Behind it the latest write wins again.
    concurrently(
        &cluster,
        &[
            (2, "update returned set a = 'second' where id = 3"),
            (3, "update returned set b = 'third' where id = 3"),
        ],
    )
    .await;
    cluster.all_show("select a, b from returned where id = 3", &["two|third"]).await;
    cluster.assert_equal_rows().await;
}

/// How long nodes write while the policy changes.
const TURMOIL: Duration = Duration::from_secs(12);

const POLICIES: [&str; 6] = [
    "last_write_wins",
    "first_write_wins",
    "merge_columns",
    "origin_wins(2)",
    "last_write_wins, delta(\"n\")",
    "function(public.greater)",
];

/// How many rows are written at a time, and for how long: a row whose last write was concurrent with a change of the
/// policy is not mended by a later one.
const ROWS: u64 = 4;
const ROWS_MS: u64 = 400;

/// Writes on a few rows, always other ones, until it is over.
async fn write(server: synapsedb_dev::client::Server, seed: u64, over: Arc<AtomicBool>) {
    let mut random = StdRng::seed_from_u64(seed);
    let session = server.session().await;
    session.rows("set lock_timeout = '1s'").await.unwrap();
    while !over.load(Ordering::SeqCst) {
        let since_ms = UNIX_EPOCH.elapsed().unwrap().as_millis() as u64 % 100_000_000;
        let id = since_ms / ROWS_MS * ROWS + random.random_range(0..2 * ROWS);
        let value = random.random_range(0..1000);
        let sql = match random.random_range(0..8) {
            0 => {
                format!("insert into unruly values ({id}, 'new {value}', 0) on conflict do nothing")
            }
            1 => format!("delete from unruly where id = {id}"),
            2..=4 => format!("update unruly set n = n + {value} where id = {id}"),
            _ => format!("update unruly set v = 'v{value}' where id = {id}"),
        };
        // A policy's own DDL may be in its way.
        let _ = session.rows(&sql).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(5..60))).await;
    }
}

/// Changes the policy again and again, now here, now there, and holds agents back, or ends them, so that nodes know
/// different ones.
async fn turn(cluster: &Cluster, random: &mut StdRng) {
    let nodes: Vec<&Node> = cluster.nodes().iter().collect();
    let begun = std::time::Instant::now();
    while begun.elapsed() < TURMOIL {
        let [held, setter, other] = [0; 3].map(|_| nodes[random.random_range(0..nodes.len())]);
        // One in four begins again, with what its spools tell.
        let restarts = random.random_range(0..4) == 0;
        if restarts {
            held.kill_agent();
        } else {
            held.pause_agent();
        }
        for node in [setter, other] {
            let policy = POLICIES[random.random_range(0..POLICIES.len())];
            // What the agent that is held was about to apply holds locks.
            let sql = format!(
                "set lock_timeout = '200ms'; select synapsedb.set_policy('unruly', '{policy}')"
            );
            let _ = node.server().try_rows(&sql).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(50..400))).await;
        if restarts {
            held.start();
        } else {
            held.resume();
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_agree_while_everybody_writes_and_changes_the_policy() {
    let (cluster, _turn) = cluster().await;
    cluster
        .node(1)
        .sql(
            "create table unruly (id int primary key, v text, n int);
             create function greater(a jsonb, b jsonb) returns jsonb language sql as
                 $$ select case when a is null or a::text < b::text then b else a end $$",
        )
        .await;
    cluster.all_show("select count(*) from pg_proc where proname = 'greater'", &["1"]).await;
    let seed = rand::rng().random();
    eprintln!("seed {seed}");
    let over = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for node in cluster.nodes() {
        let server = node.server().clone();
        writers.spawn(write(server, seed ^ u64::from(node.number()), over.clone()));
    }
    turn(&cluster, &mut StdRng::seed_from_u64(seed)).await;
    over.store(true, Ordering::SeqCst);
    writers.join_all().await;
    cluster.assert_equal_rows().await;
    let aside = "select count(*) from synapsedb.quarantine where table_name = 'unruly'";
    cluster.all_show(aside, &["0"]).await;
}
