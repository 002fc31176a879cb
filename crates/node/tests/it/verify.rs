//! `synapsedb verify`: nothing is called different that is on its way, all that differs is found, and repairs mend it.

use std::time::{Duration, Instant};

use serde_json::Value;
use synapsedb_dev::client::Session;
use synapsedb_dev::load::{self, Load};
use synapsedb_dev::{Cluster, Node, eventually};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::{NOTICED, agent, binary, cluster, shared};

mod cancelled;

/// What makes a session one whose changes the agents do not see.
const ORIGIN: &str = "select pg_replication_origin_create('synapsedb_settle')
    where not exists (select from pg_replication_origin where roname = 'synapsedb_settle');
    set session_replication_role = replica;
    select pg_replication_origin_session_setup('synapsedb_settle')";

/// The comparisons of a cluster come one after another, and so do the tests that share one.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A session whose changes the agents do not see: what a defect of replication would leave behind.
async fn behind_the_back(node: &Node) -> Session {
    let session = agent(node).session().await;
    // The session before may still be ending.
    eventually("the origin is free", NOTICED, async || {
        let taken = session.rows(ORIGIN).await;
        taken.map(|_| ()).map_err(|error| synapsedb_dev::client::words(&error))
    })
    .await;
    session
}

/// Changes rows on one node only.
async fn spoil(node: &Node, sql: &str) {
    behind_the_back(node).await.rows(sql).await.unwrap();
}

/// Rows that every node writes all the time, and rows that come and go.
async fn hot_rows(cluster: &Cluster) -> JoinSet<()> {
    cluster
        .node(1)
        .sql(
            "create table hot (id int primary key, v int);
             create table queue (node int, id int, v text, primary key (node, id));
             insert into hot select i, 0 from generate_series(1, 20) i",
        )
        .await;
    cluster.all_show("select count(*) from hot", &["20"]).await;
    let mut writers = JoinSet::new();
    for node in cluster.nodes() {
        let (session, number) = (node.session().await, node.number());
        writers.spawn(async move {
            for round in 0.. {
                let (hot, job) = (round % 20 + 1, round % 7);
                let update = format!("update hot set v = {round} * 3 + {number} where id = {hot}");
                session.rows(&update).await.unwrap();
                let come = format!("insert into queue values ({number}, {job}, 'job {round}')");
                session.rows(&come).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
                let go = format!("delete from queue where node = {number} and id = {job}");
                session.rows(&go).await.unwrap();
            }
        });
    }
    writers
}

/// Runs `synapsedb verify`: the exit code and the comparison.
fn verify(cluster: &Cluster, arguments: &[&str]) -> (i32, Value) {
    let data = cluster.data().to_str().unwrap();
    let all: Vec<_> = ["verify", "--data", data, "-o", "json"]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect();
    let output = binary().run(&all);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let job = serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
    });
    (output.status.code().unwrap(), job)
}

fn table(job: &Value) -> &Value {
    assert_eq!(job["tables"].as_array().map(Vec::len), Some(1), "{job:#}");
    &job["tables"][0]
}

/// Key, fault and node of every named difference.
fn found(table: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for difference in table["differences"].as_array().unwrap() {
        let key: Vec<_> = difference["key"]
            .as_array()
            .unwrap()
            .iter()
            .map(|part| part.as_str().unwrap())
            .collect();
        for (node, fault) in difference["faults"].as_object().unwrap() {
            found.push(format!("{} {} {node}", key.join(","), fault.as_str().unwrap()));
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_named_and_mended() {
    let _alone = ALONE.lock().await;
    let cluster = shared().await;
    cluster
        .node(1)
        .sql(
            "create table verified (id int, part text, v text, at timestamptz,
                 twice int generated always as (id * 2) stored,
                 primary key (id, part));
             insert into verified select i, 'p', 'v' || i, now() from generate_series(1, 1000) i",
        )
        .await;
    cluster.all_show("select count(*) from verified", &["1000"]).await;
    let (code, job) = verify(&cluster, &["verified"]);
    assert_eq!((code, job["verdict"].as_str()), (0, Some("equal")), "{job:#}");
    assert_eq!(table(&job)["rows"], 1000, "{job:#}");

    let written = cluster
        .node(1)
        .value("select pg_xact_commit_timestamp(xmin) from verified where id = 7")
        .await;
    spoil(cluster.node(2), "update verified set v = 'wrong' where id = 7").await;
    spoil(cluster.node(3), "delete from verified where id in (500, 501)").await;
    spoil(cluster.node(1), "insert into verified values (5000, 'it''s', 'extra')").await;
    let (code, job) = verify(&cluster, &["public.verified"]);
    assert_eq!((code, job["verdict"].as_str()), (4, Some("different")), "{job:#}");
    let expected = ["500,p missing 3", "5000,it's extra 1", "501,p missing 3", "7,p different 2"];
    assert_eq!(found(table(&job)), expected, "{job:#}");
    assert_eq!(
        (&table(&job)["different"], &table(&job)["left"]),
        (&4.into(), &4.into()),
        "{job:#}"
    );
    assert_eq!(table(&job)["faults"]["3"]["missing"], 2, "{job:#}");

    // Without --yes and without a terminal nothing is set.
    let output = binary().run(&[
        "verify",
        "--data",
        cluster.data().to_str().unwrap(),
        "verified",
        "--repair",
        "--from",
        "2",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--yes"), "{output:?}");

    let (code, job) = verify(&cluster, &["verified", "--repair", "--from", "1", "--yes"]);
    assert_eq!((code, job["verdict"].as_str()), (0, Some("repaired")), "{job:#}");
    assert_eq!(table(&job)["left"], 0, "{job:#}");
    // The extra row of node 1 on two nodes, the others on one.
    assert_eq!(table(&job)["repaired"], 5, "{job:#}");
    let (code, job) = verify(&cluster, &["verified"]);
    assert_eq!(code, 0, "{job:#}");
    for node in cluster.nodes() {
        node.shows("select v from verified where id = 7", &["v7"]).await.unwrap();
        node.shows("select count(*), sum(twice) from verified", &["1001|1011000"]).await.unwrap();
    }
    the_log_has_both_rows(&cluster, &written).await;
    // What is written next reaches everybody.
    cluster.node(3).sql("update verified set v = 'next' where id in (7, 500, 5000)").await;
    cluster.all_show("select count(*) from verified where v = 'next'", &["3"]).await;
    let (code, job) = verify(&cluster, &["verified"]);
    assert_eq!(code, 0, "{job:#}");
}

/// The repaired row has its writer's time, and the log of its node has both rows.
async fn the_log_has_both_rows(cluster: &Cluster, written: &str) {
    let repaired = "select pg_xact_commit_timestamp(xmin) from verified where id = 7";
    assert_eq!(cluster.node(2).value(repaired).await, written);
    let logged =
        "select key->>'id', local_row->>'v', remote_row->>'v', remote_node from synapsedb.conflict
                  where type = 'repair' and table_name = 'verified' order by (key->>'id')::int";
    assert_eq!(agent(cluster.node(2)).rows(logged).await, ["7|wrong|v7|1", "5000||extra|1"]);
    assert_eq!(agent(cluster.node(1)).rows(logged).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_one_node_has_alone_can_be_deleted_by_a_repair() {
    let _alone = ALONE.lock().await;
    let cluster = shared().await;
    cluster.node(1).sql("create table lonely (id int primary key, v int unique)").await;
    cluster.all_show("select count(*) from lonely", &["0"]).await;
    // Two values that swapped places: a repair must not stumble over the unique index.
    cluster.node(1).sql("insert into lonely values (1, 1), (2, 2), (3, 3)").await;
    cluster.all_show("select count(*) from lonely", &["3"]).await;
    spoil(
        cluster.node(2),
        "delete from lonely where id = 3; update lonely set v = -v where id < 3;
         update lonely set v = 3 + v where id < 3;
         insert into lonely select i, i from generate_series(100, 3000) i",
    )
    .await;
    let (code, job) = verify(&cluster, &["lonely"]);
    assert_eq!(code, 4, "{job:#}");
    assert_eq!(table(&job)["faults"]["2"]["extra"], 2901, "{job:#}");
    assert_eq!(table(&job)["differences"].as_array().unwrap().len(), 1000);
    let (code, job) = verify(&cluster, &["lonely", "--repair", "--from", "3", "--yes"]);
    assert_eq!(code, 0, "{:#}", table(&job)["faults"]);
    cluster.all_show("select id, v from lonely order by id", &["1|1", "2|2", "3|3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_compared_and_set() {
    let _alone = ALONE.lock().await;
    let cluster = shared().await;
    cluster
        .node(1)
        .sql(
            "create type verified_mood as enum ('sad', 'it''s fine');
             create domain verified_code as text check (length(value) < 9);
             create type verified_pair as (a int, b text);
             create table \"Verified Types\" (
                 mood verified_mood, \"Code\" verified_code, padded char(6), at timestamptz,
                 primary key (mood, \"Code\", padded, at),
                 number bigint generated always as identity, truth bool, small real, large double precision,
                 exact numeric(20, 5), bytes bytea, day date, span interval, address inet, document jsonb,
                 pair verified_pair,
                 list text[], pairs verified_pair[], part int4range, bits bit varying, id uuid,
                 other xml, spot point)",
        )
        .await;
    cluster.all_show("select count(*) from \"Verified Types\"", &["0"]).await;
    cluster
        .node(2)
        .sql(
            "insert into \"Verified Types\" values
                 ('it''s fine', E'a''\\\\\"', 'ab', '2026-01-02 03:04:05.678901+00', default, true,
                  0.1, 1e-300, 12345.6789, '\\x00ff', '2026-01-02', '1 mon -3 days 04:05:06.7', '10.0.0.1',
                  '{\"a\": [1, null]}', (1, null), '{a,null,\"b,c\"}', array[(1, 'x,y')::verified_pair, null],
                  '[1,5)', '101', gen_random_uuid(), '<a/>', '(1,2)'),
                 ('sad', '', '', 'infinity', default, null, 'nan', '-infinity', null, null, null,
                  null, null, null, (null, null), '{}', null, 'empty', null, null, null, null)",
        )
        .await;
    cluster.all_show("select count(*) from \"Verified Types\"", &["2"]).await;
    let (code, job) = verify(&cluster, &["\"Verified Types\""]);
    assert_eq!(code, 0, "{job:#}");
    let rows = "select t::text, (pair is null)::text, num_nulls(pair) from \"Verified Types\" t order by mood";
    let expected = cluster.node(2).rows(rows).await;
    spoil(cluster.node(1), "delete from \"Verified Types\"").await;
    spoil(
        cluster.node(3),
        "update \"Verified Types\" set truth = false, pair = null, padded = 'x'",
    )
    .await;
    let (code, job) = verify(&cluster, &["\"Verified Types\"", "--repair", "--from", "2", "--yes"]);
    assert_eq!(code, 0, "{job:#}");
    assert_eq!(table(&job)["different"], 4, "{job:#}");
    for node in cluster.nodes() {
        assert_eq!(node.rows(rows).await, expected, "node {}", node.number());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_or_altered_meanwhile_is_no_difference() {
    let _alone = ALONE.lock().await;
    let cluster = shared().await;
    cluster
        .node(1)
        .sql("create table dropped (id int primary key); create table altered (id int primary key)")
        .await;
    cluster.node(1).sql("insert into altered values (1)").await;
    cluster.all_show("select count(*) from altered", &["1"]).await;
    for (table, ddl, tables) in [
        ("dropped", "drop table dropped", 0),
        ("altered", "alter table altered add column v int, drop column id, add primary key (v)", 1),
    ] {
        let ddl_session = cluster.node(1).session().await;
        if table == "altered" {
            cluster.node(1).sql("delete from altered").await;
        }
        ddl_session.rows(&format!("begin; {ddl}")).await.unwrap();
        let data = cluster.data().to_str().unwrap().to_owned();
        let running = tokio::task::spawn_blocking(move || {
            binary().run(&["verify", "--data", &data, "-o", "json", "--node", "1", table])
        });
        eventually("the comparison waits for the lock", NOTICED, async || {
            let waiting = "select count(*) from pg_stat_activity
                           where application_name = 'synapsedb verify' and wait_event_type = 'Lock'";
            agent(cluster.node(1)).shows(waiting, &["1"]).await
        })
        .await;
        ddl_session.rows("commit").await.unwrap();
        let output = running.await.unwrap();
        let job: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (output.status.code(), job["verdict"].as_str()),
            (Some(0), Some("equal")),
            "{job:#}"
        );
        assert_eq!(job["tables"].as_array().unwrap().len(), tables, "{job:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keyless_and_different_tables_are_told_apart() {
    let _alone = ALONE.lock().await;
    let cluster = shared().await;
    cluster
        .node(1)
        .sql(
            "create table verified_keyless (a int, b text);
             insert into verified_keyless select i % 10, 'x' from generate_series(1, 100) i;
             create table verified_drift (id int primary key, v int)",
        )
        .await;
    cluster.all_show("select count(*) from verified_keyless", &["100"]).await;
    cluster.all_show("select count(*) from verified_drift", &["0"]).await;
    let (code, job) = verify(&cluster, &["verified_keyless"]);
    assert_eq!(code, 0, "{job:#}");
    assert_eq!((&table(&job)["keyless"], &table(&job)["rows"]), (&true.into(), &100.into()));
    // As many rows, one of them another one.
    spoil(
        cluster.node(3),
        "update verified_keyless set b = 'y' where ctid = (select min(ctid) from verified_keyless)",
    )
    .await;
    let (code, job) = verify(&cluster, &["verified_keyless"]);
    assert_eq!(code, 4, "{job:#}");
    assert_eq!(found(table(&job)), [" different 3"], "{job:#}");
    let (code, job) = verify(&cluster, &["verified_keyless", "--repair", "--from", "1", "--yes"]);
    assert_eq!(code, 4, "{job:#}");
    assert!(job.to_string().contains("no primary key"), "{job:#}");
    spoil(
        cluster.node(3),
        "update verified_keyless set b = 'x' where b = 'y'; alter table verified_drift add column w int",
    )
    .await;
    let (code, job) = verify(&cluster, &["verified_keyless"]);
    assert_eq!(code, 0, "{job:#}");
    let (code, job) = verify(&cluster, &["verified_drift"]);
    assert_eq!(code, 4, "{job:#}");
    let said = table(&job)["schema_difference"].as_str().unwrap();
    assert!(said.contains("only node 3 has w integer"), "{said}");
    spoil(cluster.node(3), "alter table verified_drift drop column w").await;

    let data = cluster.data().to_str().unwrap();
    let output = binary().run(&["verify", "--data", data, "no_such_table"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("there is no table no_such_table"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_equal_cluster_is_equal_while_it_is_written_and_a_large_table_takes_bounded_time() {
    let cluster = cluster(3).await;
    cluster
        .node(1)
        .sql(
            "create table large (id int primary key, v text);
             insert into large select i, md5(i::text) from generate_series(1, 200000) i",
        )
        .await;
    let config = load::Config { writers: 2, rate_per_s: Some(20.0) };
    load::prepare(&cluster, &config).await;
    cluster.all_show("select count(*) from large", &["200000"]).await;
    let begun = Instant::now();
    let (code, job) = verify(&cluster, &["large"]);
    let quiet = begun.elapsed();
    assert_eq!(code, 0, "{job:#}");
    assert_eq!((&table(&job)["rows"], &table(&job)["ranges"]), (&200_000.into(), &21.into()));
    assert!(quiet < Duration::from_secs(60), "{quiet:?}");

    let writing = Load::start(&cluster, &config);
    for round in 0..3 {
        let node = (round % 3 + 1).to_string();
        let begun = Instant::now();
        let (code, job) = verify(&cluster, &["--node", &node]);
        assert_eq!((code, job["verdict"].as_str()), (0, Some("equal")), "{job:#}");
        eprintln!("compared {} rows under load in {:?}", job["progress"]["rows"], begun.elapsed());
    }
    // A row that is really different is found among those in flight.
    spoil(cluster.node(2), "update large set v = 'wrong' where id = 123456").await;
    let (code, job) = verify(&cluster, &[]);
    assert_eq!(code, 4, "{job:#}");
    let tables = job["tables"].as_array().unwrap();
    let named: Vec<_> = tables.iter().flat_map(found).collect();
    assert_eq!(named, ["123456 different 2"], "{job:#}");
    let (code, job) = verify(&cluster, &["--repair", "--from", "3", "--yes"]);
    assert_eq!(code, 0, "{job:#}");
    let accounts = writing.finish().await;
    cluster.assert_equal_rows().await;
    load::verify(&cluster, 2, &accounts).await.unwrap();
    eprintln!("200,000 rows on three nodes in {quiet:?}");

    let mut hot = hot_rows(&cluster).await;
    for table in ["hot", "queue", "hot"] {
        let (code, job) = verify(&cluster, &[table]);
        // A node that is too slow to keep up may leave something undecided, but nothing differs.
        assert_ne!(code, 4, "{job:#}");
        eprintln!(
            "{table} under load: {}, {} in flight",
            job["verdict"], job["tables"][0]["in_flight"]
        );
    }
    hot.shutdown().await;
    cluster.assert_equal_rows().await;
    let (code, job) = verify(&cluster, &["hot"]);
    assert_eq!(code, 0, "{job:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_away_is_said_and_the_others_are_compared() {
    let cluster = cluster(3).await;
    cluster
        .node(1)
        .sql("create table apart (id int primary key); insert into apart values (1)")
        .await;
    cluster.all_show("select count(*) from apart", &["1"]).await;
    cluster.node(3).kill_agent();
    let (code, job) = verify(&cluster, &["apart"]);
    assert_eq!((code, job["verdict"].as_str()), (1, Some("incomplete")), "{job:#}");
    assert_eq!(job["unreachable"][0]["node"], 3, "{job:#}");
    assert_eq!(job["nodes"], serde_json::json!([1, 2]));
    spoil(cluster.node(2), "insert into apart values (2)").await;
    let (code, job) = verify(&cluster, &["apart"]);
    assert_eq!(code, 4, "{job:#}");
    let (code, job) = verify(&cluster, &["apart", "--repair", "--from", "3", "--yes"]);
    assert_eq!((code, job["state"].as_str()), (1, Some("failed")), "{job:#}");
    cluster.node(3).start();
    cluster.wait_ready().await;
    let again = async || {
        let (code, job) = verify(&cluster, &["apart", "--repair", "--from", "3", "--yes"]);
        if code == 0 { Ok(()) } else { Err(format!("{code}: {job:#}")) }
    };
    eventually("node 3 takes part again", NOTICED, again).await;
    cluster.all_show("select id from apart", &["1"]).await;
}
