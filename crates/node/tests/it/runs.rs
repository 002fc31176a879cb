//! Plans and compiled procedures under changes of the schema: writes of a peer stream in meanwhile, nothing stops,
//! every value lands in its column, and the procedures stay few and where they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use synapsedb_dev::{Cluster, HttpPort, Node, Shared, eventually};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::{NOTICED, binary};

static CLUSTER: Shared = Shared::new();
static TURN: Mutex<()> = Mutex::const_new(());

/// How many procedures there may be of one lane.
const PROCEDURES_MAX: usize = 64;

/// The procedures of the lanes of a node, with the node whose transactions they repeat.
async fn procedures(node: &Node) -> Vec<String> {
    let sql = "select split_part(proname, '_', 2) from pg_proc
               where pronamespace = 'synapsedb'::regnamespace and proname ~ '^apply_[0-9]+_'";
    node.rows(sql).await
}

/// Writes rows of its own as fast as it can: every value tells its column.
async fn write(node: &Node, stop: Arc<AtomicBool>) -> Result<usize, String> {
    let (session, number) = (node.session().await, usize::from(node.number()));
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        written += 1;
        let id = 10 * written + number;
        let insert = format!("insert into changing (id, a, b) values ({id}, {id} * 2, 'b')");
        let update = format!("update changing set b = 'b{id}' where id = {id}");
        for sql in [insert, update] {
            // What an ALTER TABLE takes from under it is tried again.
            let mut tries = 0;
            while let Err(error) = session.rows(&sql).await {
                tries += 1;
                if tries > 100 {
                    return Err(format!("{sql}: {}", synapsedb_dev::client::words(&error)));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    Ok(written)
}

/// Nothing stands still and nothing was put aside.
async fn all_flows(cluster: &Cluster) {
    for node in cluster.nodes() {
        let aside = "select reason from synapsedb.quarantine";
        assert_eq!(node.rows(aside).await, [""; 0], "quarantined on node {}", node.number());
        let status = node.http(HttpPort::Raft, "/replication/status").await.to_string();
        assert!(!status.contains("blocked"), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_changes_while_writes_of_peers_stream_in() {
    let _turn = TURN.lock().await;
    let cluster = CLUSTER.cluster(binary()).await;
    let table = "create table changing (id int primary key, a int, b text)";
    cluster.node(1).sql(table).await;
    cluster.all_show("select count(*) from changing", &["0"]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for number in [1, 2] {
        let stop = stop.clone();
        let cluster = CLUSTER.cluster(binary()).await;
        writers.spawn(async move { write(cluster.node(number), stop).await });
    }
    for change in [
        "add column d int not null default 7",
        "alter a type bigint",
        "add column c text default 'new'",
        "add unique (id, a)",
        "add column e text default '12'",
        "alter b type varchar(100)",
        "alter e drop default, alter e type int using e::int, alter e set default 12",
        "alter d type text",
    ] {
        tokio::time::sleep(Duration::from_millis(400)).await;
        cluster.node(3).sql(&format!("alter table changing {change}")).await;
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    while let Some(count) = writers.join_next().await {
        written += count.unwrap().unwrap();
    }
    cluster.all_show("select count(*) from changing", &[&written.to_string()]).await;
    let right =
        "select count(*) from changing where a = id * 2 and b = 'b' || id and c = 'new' and e = 12
                 and d = '7'";
    cluster.all_show(right, &[&written.to_string()]).await;
    cluster.assert_equal_rows().await;
    all_flows(&cluster).await;
    assert!(!procedures(cluster.node(3)).await.is_empty(), "nothing was applied by a procedure");
}

/// What a peer writes with a column that was renamed here meanwhile, or with another key, is quarantined;
/// here all comes from one node.
#[tokio::test(flavor = "multi_thread")]
async fn columns_are_renamed_dropped_and_of_other_types_while_writes_stream_in() {
    let _turn = TURN.lock().await;
    let cluster = CLUSTER.cluster(binary()).await;
    let table = "create table altered (id int primary key, a int, b text, c numeric default 1.5, e text default '12')";
    let session = cluster.node(1).session().await;
    session.rows(table).await.unwrap();
    let changes = [
        "rename c to cc",
        "drop column cc",
        "add column c text default 'new'",
        "alter e drop default, alter e type int using e::int, alter e set default 12",
        "drop constraint altered_pkey, add primary key (id, e)",
        "drop constraint altered_pkey, add primary key (id)",
        "drop column a, add column a text",
        "drop column b, add column b bigint generated always as (id * 2) stored",
        "rename id to name",
    ];
    for (round, change) in changes.into_iter().enumerate() {
        let (from, to) = (round * 100 + 1, round * 100 + 100);
        let fill = format!(
            "do $$ begin for i in {from}..{to} loop insert into altered (id, a) values (i, i); commit; end loop; end $$"
        );
        session.rows(&fill).await.unwrap();
        session.rows(&format!("alter table altered {change}")).await.unwrap();
        session.rows("update altered set c = 'later' where id = 5").await.ok();
    }
    let rows = (changes.len() * 100).to_string();
    let right =
        "select count(*) from altered where b = name * 2 and e = 12 and c in ('new', 'later')
                 and (a is null or a = name::text and name > 700)";
    cluster.all_show(right, &[&rows]).await;
    cluster.assert_equal_rows().await;
    all_flows(&cluster).await;
}

/// What was written before a column came or went is, on every node, as if it had been there then.
#[tokio::test(flavor = "multi_thread")]
async fn columns_come_and_go_while_peers_who_have_not_heard_of_it_write() {
    let _turn = TURN.lock().await;
    let cluster = CLUSTER.cluster(binary()).await;
    cluster.node(1).sql("create table evolving (id int primary key, a text, b text)").await;
    cluster.node(1).sql("insert into evolving values (1, 'old', 'old'), (5, 'old', 'old')").await;
    cluster.all_show("select count(*) from evolving", &["2"]).await;
    cluster.nodes().iter().for_each(Node::pause_agent);
    let writes = "insert into evolving values (2, 'two', 'lost');
                  update evolving set a = 'new', b = 'lost' where id = 1;
                  update evolving set b = 'lost' where id = 5";
    cluster.node(1).sql(writes).await;
    cluster.node(2).sql("insert into evolving values (4, 'four', 'lost')").await;
    // As tools that migrate schemas do it: the default is for the rows that are there only.
    for change in
        ["add column d int not null default 7", "alter column d drop default", "drop column b"]
    {
        cluster.node(3).sql(&format!("alter table evolving {change}")).await;
    }
    cluster.node(3).sql("insert into evolving values (3, 'three', 9)").await;
    cluster.nodes().iter().for_each(Node::resume);
    let right = ["1|new|7", "2|two|7", "3|three|9", "4|four|7", "5|old|7"];
    cluster.all_show("select id, a, d from evolving order by id", &right).await;
    cluster.assert_equal_rows().await;
    all_flows(&cluster).await;
    cluster.all_show("select count(*) from synapsedb.altered", &["0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_made_anew_takes_nothing_that_was_written_to_the_old_one() {
    let _turn = TURN.lock().await;
    let cluster = CLUSTER.cluster(binary()).await;
    cluster.node(1).sql("create table remade (id int primary key, a text, b text)").await;
    cluster.node(1).sql("insert into remade values (1, 'old', 'old'), (5, 'old', 'old')").await;
    cluster.all_show("select count(*) from remade", &["2"]).await;
    cluster.nodes().iter().for_each(Node::pause_agent);
    let writes = "insert into remade values (2, 'two', 'lost');
                  update remade set a = 'new', b = 'lost' where id = 1;
                  update remade set b = 'lost' where id = 5";
    cluster.node(1).sql(writes).await;
    cluster.node(2).sql("insert into remade values (4, 'four', 'lost')").await;
    // The stream describes the table after this as before it.
    for change in ["drop column b", "add column b text default 'made'"] {
        cluster.node(3).sql(&format!("alter table remade {change}")).await;
    }
    cluster.node(3).sql("insert into remade values (3, 'three', 'mine')").await;
    cluster.nodes().iter().for_each(Node::resume);
    let right = ["1|new|made", "2|two|made", "3|three|mine", "4|four|made", "5|old|made"];
    cluster.all_show("select id, a, b from remade order by id", &right).await;
    cluster.node(2).sql("update remade set b = 'seen' where id = 1").await;
    cluster.all_show("select b from remade where id = 1", &["seen"]).await;
    cluster.assert_equal_rows().await;
    cluster.all_show("select count(*) from synapsedb.altered", &["0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_dropped_and_made_anew_between_writes() {
    let _turn = TURN.lock().await;
    let cluster = CLUSTER.cluster(binary()).await;
    let session = cluster.node(1).session().await;
    // Columns change their places, their types and their names, the table its identity.
    for (columns, values) in [
        ("id int primary key, v text, n int", "i, 'v', i"),
        ("n int, v text, id int primary key", "i, 'v', i"),
        ("id int, v text, n text primary key", "i, 'v', i"),
        ("id bigint primary key, n numeric, v text", "i, i, 'v'"),
    ] {
        let made = format!("drop table if exists anew; create table anew ({columns})");
        session.rows(&made).await.unwrap();
        let fill = format!(
            "do $$ begin for i in 1..100 loop insert into anew values ({values}); commit; end loop; end $$"
        );
        session.rows(&fill).await.unwrap();
        session.rows("update anew set v = 'w' where id::int % 2 = 0").await.unwrap();
    }
    let right = "select count(*), count(*) filter (where v = case id % 2 when 0 then 'w' else 'v' end and n = id)
                 from anew";
    cluster.all_show(right, &["100|100"]).await;
    all_flows(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compiled_procedures_stay_few_and_are_not_replicated() {
    let _turn = TURN.lock().await;
    let cluster = CLUSTER.cluster(binary()).await;
    let tables = "create table shape_0 (id bigserial primary key); create table shape_1 (id bigserial primary key);
                  create table shape_2 (id bigserial primary key)";
    cluster.node(1).sql(tables).await;
    cluster.all_show("select count(*) from shape_2", &["0"]).await;
    // 81 shapes, each often enough for a procedure, three times over.
    let fill = "do $$ begin for round in 1..66 loop for shape in 0..80 loop
                    for place in 0..3 loop
                        execute format('insert into shape_%s default values', shape / (3 ^ place)::int % 3);
                    end loop;
                    commit;
                end loop; end loop; end $$";
    let session = cluster.node(1).session().await;
    let filled = tokio::spawn(async move { session.rows(fill).await.map(|_| ()) });
    let (mut most, mut least) = (0, usize::MAX);
    while !filled.is_finished() {
        let of_one = procedures(cluster.node(2)).await.iter().filter(|node| *node == "1").count();
        assert!(of_one <= PROCEDURES_MAX, "{of_one} procedures");
        least = if of_one < most { least.min(of_one) } else { least };
        most = most.max(of_one);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    filled.await.unwrap().unwrap();
    let all = "select (select count(*) from shape_0) + (select count(*) from shape_1) + (select count(*) from shape_2)";
    cluster.all_show(all, &[&(66 * 81 * 4).to_string()]).await;
    assert!(least < most, "at most {most} procedures, and never fewer after that");
    for node in cluster.nodes() {
        let own = node.number().to_string();
        let found = procedures(node).await;
        assert!(!found.contains(&own), "a procedure of another node came to node {own}: {found:?}");
        assert!(found.len() <= 2 * PROCEDURES_MAX, "{found:?}");
    }
    // A lane that begins anew drops what the one before has left.
    cluster.node(2).kill_agent();
    cluster.node(2).start();
    eventually("the procedures of the life before are gone", NOTICED, async || {
        cluster.node(2).ready().await?;
        match procedures(cluster.node(2)).await.len() {
            0 => Ok(()),
            count => Err(format!("{count} procedures")),
        }
    })
    .await;
    all_flows(&cluster).await;
}
