//! The convergence matrix: concurrent writes of every kind on three nodes, which meet each other in every order; all
//! nodes must end with the row that must win.

use std::time::Duration;

use synapsedb_dev::cluster::EQUAL_TIMEOUT;
use synapsedb_dev::{Cluster, eventually};

use crate::{NOTICED, cluster};

/// Concurrent writes, in the order of their commits. `$k` is another number in every round.
struct Case {
    name: &'static str,
    /// What all nodes have before.
    before: &'static str,
    /// On which node what is written while nobody hears of anybody.
    writes: &'static [(u16, &'static str)],
    /// What is asked in the end.
    query: &'static str,
    /// The rows of it, with `$k` as in the rest.
    expected: &'static [&'static str],
}

/// The tables of the cases.
const TABLES: &str = "
    create table met (id int primary key, v text);
    create table met_unique (id int primary key, u int unique, w int unique, v text);
    create table met_large (id int primary key, v text, large text);
    alter table met_large alter large set storage external;
    create table met_parent (id int primary key);
    create table met_child (id int primary key, parent int references met_parent (id));
    create table met_round (node int, round int, primary key (node, round))";

const MET: &str = "select id - $k, v from met where id between $k and $k + 9 order by id";

const CASES: &[Case] = &[
    Case {
        name: "D1: two updates, the one of the higher node later",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (1, "update met set v = 'one' where id = $k"),
            (2, "update met set v = 'two' where id = $k"),
        ],
        query: MET,
        expected: &["0|two"],
    },
    Case {
        name: "D1: two updates, the one of the lower node later",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (2, "update met set v = 'two' where id = $k"),
            (1, "update met set v = 'one' where id = $k"),
        ],
        query: MET,
        expected: &["0|one"],
    },
    Case {
        name: "D1: three updates",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (3, "update met set v = 'three' where id = $k"),
            (1, "update met set v = 'one' where id = $k"),
            (2, "update met set v = 'two' where id = $k"),
        ],
        query: MET,
        expected: &["0|two"],
    },
    Case {
        name: "two inserts of one key",
        before: "",
        writes: &[
            (2, "insert into met values ($k, 'two')"),
            (3, "insert into met values ($k, 'three')"),
        ],
        query: MET,
        expected: &["0|three"],
    },
    Case {
        name: "two deletes",
        before: "insert into met values ($k, 'old')",
        writes: &[(1, "delete from met where id = $k"), (2, "delete from met where id = $k")],
        query: MET,
        expected: &[],
    },
    Case {
        name: "D8: a delete that is later than an update",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (1, "update met set v = 'one' where id = $k"),
            (2, "delete from met where id = $k"),
        ],
        query: MET,
        expected: &[],
    },
    Case {
        name: "D13: the versions of frozen rows count",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (1, "update met set v = 'one' where id = $k"),
            (2, "update met set v = 'two' where id = $k"),
            (1, "vacuum freeze met"),
            (2, "vacuum freeze met"),
            (3, "vacuum freeze met"),
        ],
        query: MET,
        expected: &["0|two"],
    },
];

/// Replaces the number of the round.
fn numbered(sql: &str, number: usize) -> String {
    sql.replace("$k", &number.to_string())
}

/// Which two nodes meet first, and who comes last.
const ORDERS: [[u16; 3]; 6] = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];

/// Runs all cases beside each other in one round: everything is written while the agents stand still, then they go on
/// in this order.
async fn meet(cluster: &Cluster, cases: &[&Case], round: usize, order: [u16; 3]) -> Vec<String> {
    let number = |case: usize| 10_000 * (round + 1) + 10 * case;
    for (index, case) in cases.iter().enumerate().filter(|(_, case)| !case.before.is_empty()) {
        cluster.node(1).sql(&numbered(case.before, number(index))).await;
    }
    let began = format!("insert into met_round values (0, {round})");
    cluster.node(1).sql(&began).await;
    let here = format!("select count(*) from met_round where node = 0 and round = {round}");
    cluster.all_show(&here, &["1"]).await;
    cluster.nodes().iter().for_each(|node| node.pause_agent());
    for (index, case) in cases.iter().enumerate() {
        for (node, sql) in case.writes {
            cluster.node(*node).sql(&numbered(sql, number(index))).await;
        }
    }
    for node in cluster.nodes() {
        node.sql(&format!("insert into met_round values ({}, {round})", node.number())).await;
    }
    let [first, second, last] = order;
    cluster.node(first).resume();
    cluster.node(second).resume();
    let met = format!(
        "select count(*) from met_round where node in ({first}, {second}) and round = {round}"
    );
    for node in [first, second] {
        eventually("two nodes have met", NOTICED, async || {
            cluster.node(node).shows(&met, &["2"]).await
        })
        .await;
    }
    cluster.node(last).resume();
    let whole = format!("select count(*) from met_round where round = {round}");
    cluster.all_show(&whole, &["4"]).await;
    let mut wrong = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let query = numbered(case.query, number(index));
        for node in cluster.nodes() {
            if let Err(reason) = node.shows(&query, case.expected).await {
                wrong.push(format!("{}, met in the order {order:?}: {reason}", case.name));
            }
        }
    }
    wrong
}

async fn check(cases: &[&Case]) {
    let cluster = cluster(3).await;
    cluster.node(1).sql(TABLES).await;
    cluster.all_show("select count(*) from met_round", &["0"]).await;
    let mut wrong = Vec::new();
    for (round, order) in ORDERS.into_iter().enumerate() {
        wrong.extend(meet(&cluster, cases, round, order).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cluster.equal_rows_within(EQUAL_TIMEOUT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_end_alike_on_all_nodes_whoever_meets_first() {
    check(&CASES.iter().collect::<Vec<_>>()).await;
}

/// D5 and D6: node 3 hears of what followed before it hears of the row.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_an_insert_never_overtakes_it() {
    let cluster = cluster(3).await;
    let tables = "create table overtaken (id int primary key, v text)";
    cluster.node(1).sql(tables).await;
    cluster.all_show("select count(*) from overtaken", &["0"]).await;
    cluster.node(3).pause_agent();
    cluster.node(1).sql("insert into overtaken values (1, 'first'), (2, 'first')").await;
    eventually("node 2 has the rows", NOTICED, async || {
        cluster.node(2).shows("select count(*) from overtaken", &["2"]).await
    })
    .await;
    let follow =
        "update overtaken set v = 'second' where id = 1; delete from overtaken where id = 2";
    cluster.node(2).sql(follow).await;
    cluster.node(1).pause_agent();
    cluster.node(3).resume();
    // What node 2 wrote reaches node 3 alone; it must not be seen there without its cause.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let early = cluster.node(3).rows("select id, v from overtaken order by id").await;
    assert!(early.is_empty() || early == ["1|second"], "node 3 shows {early:?}");
    cluster.node(1).resume();
    cluster.all_show("select id, v from overtaken order by id", &["1|second"]).await;
}
