//! Rows that take long to arrive, while everybody writes on them: what is decided upon and what is there then often
//! differ.

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
const TABLES: [(&str, &str); 3] = [
    ("arriving_first", "first_write_wins"),
    ("arriving_origin", "origin_wins(2)"),
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
const TURMOIL: Duration = Duration::from_secs(4);

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
            0..=4 => format!("insert into {table} values ({id}, '{value}') on conflict do nothing"),
            5..=8 => format!("delete from {table} where id = {id}"),
            _ => format!("update {table} set v = '{value}' where id = {id}"),
        };
        session.rows(&sql).await.unwrap();
        tokio::time::sleep(Duration::from_millis(random.random_range(5..25))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_agree_where_rows_take_long_to_arrive() {
    let (cluster, _turn) = cluster().await;
    cluster.node(1).sql(FUNCTIONS).await;
    let seed: u64 = rand::rng().random();
    eprintln!("seed {seed}");
    for (name, policy) in TABLES {
        super::table(&cluster, name, "v text", policy).await;
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
        tokio::time::sleep(TURMOIL).await;
        over.store(true, Ordering::SeqCst);
        writers.join_all().await;
    }
    cluster.assert_equal_rows().await;
    let aside = "select count(*) from synapsedb.quarantine where table_name like 'arriving%'";
    for node in cluster.nodes() {
        node.shows(aside, &["0"]).await.unwrap();
    }
}
