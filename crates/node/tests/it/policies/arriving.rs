//! Rows that take long to arrive, while everybody writes on them and agents are killed: what is decided upon and what
//! is there then often differ.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use synapsedb_dev::client::Server;
use tokio::task::JoinSet;

use super::cluster;
use crate::bad_input::only_here;

/// Tables and their policies. Of two rows the larger one stays; beside a delete a row stays or goes by its number.
const TABLES: [(&str, &str); 5] = [
    ("arriving_first", "first_write_wins"),
    ("arriving_origin", "origin_wins(2)"),
    ("arriving_columns", "merge_columns"),
    ("arriving_sums", "last_write_wins, delta(\"n\")"),
    ("arriving_larger", "function(public.arriving_merge)"),
];

const FUNCTIONS: &str = "
    create function arriving_merge(a jsonb, b jsonb) returns jsonb language sql as $$
        select case when (coalesce(a, b) ->> 'id')::int % 2 = 0 and (a is null or b is null) then null
            when a is null or a::text < b::text then b else a end $$;
    create function arriving_late() returns trigger language plpgsql as $$ begin
        if random() < 0.5 then perform pg_sleep(random() * 0.02); end if;
        return new;
    end $$";

/// For how long everybody writes on each table.
const TURMOIL: Duration = Duration::from_secs(3);

/// How many rows are written at a time, and for how long: a row whose last write was not counted is not mended by a
/// later one.
const ROWS: u64 = 1;
const ROWS_MS: u64 = 80;

async fn write(server: Server, table: &str, seed: u64, over: Arc<AtomicBool>) {
    let mut random = StdRng::seed_from_u64(seed);
    let session = server.session().await;
    while !over.load(Ordering::SeqCst) {
        let since_ms = UNIX_EPOCH.elapsed().unwrap().as_millis() as u64 % 100_000_000;
        let id = since_ms / ROWS_MS * ROWS + random.random_range(0..ROWS);
        let value = random.random_range(0..1000);
        let sql = match random.random_range(0..10) {
            0..=3 => {
                format!("insert into {table} values ({id}, '{value}', 0) on conflict do nothing")
            }
            4..=6 => format!("delete from {table} where id = {id}"),
            7 => format!("update {table} set v = '{value}' where id = {id}"),
            _ => format!("update {table} set n = n + {value} where id = {id}"),
        };
        session.rows(&sql).await.unwrap();
        tokio::time::sleep(Duration::from_millis(random.random_range(5..25))).await;
    }
}

/// The turmoil until an agent is killed, while it is down, and behind it.
fn parts(random: &mut StdRng) -> [Duration; 3] {
    let before = TURMOIL.mul_f64(random.random_range(0.2..0.7));
    let down = Duration::from_millis(random.random_range(0..500));
    [before, down, TURMOIL.saturating_sub(before + down)]
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_agree_where_rows_take_long_to_arrive() {
    let (cluster, _turn) = cluster().await;
    cluster.node(1).sql(FUNCTIONS).await;
    let seed: u64 = rand::rng().random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for (name, policy) in TABLES {
        super::table(&cluster, name, "v text, n int", policy).await;
        for node in cluster.nodes() {
            let trigger = format!(
                "create trigger late before insert on {name} for each row execute function arriving_late();
                 alter table {name} enable replica trigger late"
            );
            only_here(node, &trigger).await;
        }
        let over = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for number in 0..3 {
            let server = cluster.nodes()[number].server().clone();
            let (seed, over) = (seed ^ number as u64, over.clone());
            writers.spawn(async move { write(server, name, seed, over).await });
        }
        // One of the three begins again, with what its spools tell.
        let [killed_at, down_for, rest] = parts(&mut random);
        tokio::time::sleep(killed_at).await;
        let killed = cluster.node(random.random_range(1..=3));
        killed.kill_agent();
        tokio::time::sleep(down_for).await;
        killed.start();
        tokio::time::sleep(rest).await;
        over.store(true, Ordering::SeqCst);
        writers.join_all().await;
    }
    cluster.assert_equal_rows().await;
    let aside = "select count(*) from synapsedb.quarantine where table_name like 'arriving%'";
    for node in cluster.nodes() {
        node.shows(aside, &["0"]).await.unwrap();
    }
}
