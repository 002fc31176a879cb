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
    alter table met_large replica identity full;
    create table met_parent (id int primary key);
    create table met_child (id int primary key, parent int references met_parent (id));
    create table met_round (node int, round int, primary key (node, round))";

const MET: &str = "select id - $k, v from met where id between $k and $k + 9 order by id";

const UNIQUE: &str =
    "select id - $k, u - $k, w - $k, v from met_unique where id between $k and $k + 9 order by id";

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
    Case {
        name: "D7: an update that is later than a delete",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (1, "delete from met where id = $k"),
            (2, "update met set v = 'two' where id = $k"),
        ],
        query: MET,
        expected: &["0|two"],
    },
    Case {
        name: "an insert after a delete, and an update of before",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (3, "update met set v = 'three' where id = $k"),
            (1, "delete from met where id = $k"),
            (1, "insert into met values ($k, 'new')"),
        ],
        query: MET,
        expected: &["0|new"],
    },
    Case {
        name: "a delete and an insert by one node, a later update by another",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (1, "delete from met where id = $k"),
            (1, "insert into met values ($k, 'new')"),
            (3, "update met set v = 'three' where id = $k"),
        ],
        query: MET,
        expected: &["0|three"],
    },
    Case {
        name: "D9: each of three rows shares a unique value with the next",
        before: "",
        writes: &[
            (1, "insert into met_unique values ($k + 1, $k + 1, $k + 1, 'one')"),
            (2, "insert into met_unique values ($k + 2, $k + 1, $k + 2, 'two')"),
            (3, "insert into met_unique values ($k + 3, $k + 3, $k + 2, 'three')"),
        ],
        query: UNIQUE,
        expected: &["3|3|2|three"],
    },
    Case {
        name: "D9: the row that took a value has moved on",
        before: "",
        writes: &[
            (1, "insert into met_unique values ($k + 1, $k + 1, $k + 1, 'one')"),
            (2, "insert into met_unique values ($k + 2, $k + 1, $k + 2, 'two')"),
            (2, "update met_unique set u = $k + 5 where id = $k + 2"),
        ],
        query: UNIQUE,
        expected: &["2|5|2|two"],
    },
    Case {
        name: "D9: the row that took a value is gone",
        before: "",
        writes: &[
            (3, "insert into met_unique values ($k + 1, $k + 1, $k + 1, 'three')"),
            (2, "insert into met_unique values ($k + 2, $k + 1, $k + 2, 'two')"),
            (2, "delete from met_unique where id = $k + 2"),
        ],
        query: UNIQUE,
        expected: &[],
    },
    Case {
        name: "D9: an update takes a value of a row that another node updates earlier",
        before: "insert into met_unique values ($k + 1, $k + 1, $k + 1, 'a'), ($k + 2, $k + 2, $k + 2, 'b')",
        writes: &[
            (1, "update met_unique set u = $k + 7 where id = $k + 1"),
            (2, "update met_unique set u = $k + 7 where id = $k + 2"),
        ],
        query: UNIQUE,
        expected: &["2|7|2|b"],
    },
    Case {
        name: "D10: one primary key becomes two others",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (1, "update met set id = $k + 1 where id = $k"),
            (2, "update met set id = $k + 2 where id = $k"),
        ],
        query: MET,
        expected: &["1|old", "2|old"],
    },
    Case {
        name: "D10: two rows get one primary key",
        before: "insert into met values ($k + 1, 'a'), ($k + 2, 'b')",
        writes: &[
            (1, "update met set id = $k where id = $k + 1"),
            (2, "update met set id = $k where id = $k + 2"),
        ],
        query: MET,
        expected: &["0|b"],
    },
    Case {
        name: "D11: a large value, with the whole old row sent, that only the earlier update changed",
        before: "insert into met_large values ($k, 'old', repeat('old ', 2000))",
        writes: &[
            (1, "update met_large set large = repeat('new ', 2000) where id = $k"),
            (2, "update met_large set v = 'two' where id = $k"),
        ],
        query: "select v, left(large, 3), length(large) from met_large where id = $k",
        expected: &["two|old|8000"],
    },
    Case {
        name: "D11: a large value, with the whole old row sent, that only the later update changed",
        before: "insert into met_large values ($k, 'old', repeat('old ', 2000))",
        writes: &[
            (2, "update met_large set v = 'two' where id = $k"),
            (1, "update met_large set large = repeat('new ', 2000) where id = $k"),
        ],
        query: "select v, left(large, 3), length(large) from met_large where id = $k",
        expected: &["old|new|8000"],
    },
    Case {
        name: "D17: a child of a parent that is deleted",
        before: "insert into met_parent values ($k), ($k + 1)",
        writes: &[
            (1, "delete from met_parent where id = $k"),
            (2, "insert into met_child values ($k, $k), ($k + 1, $k + 1)"),
        ],
        query: "select (select count(*) from met_parent where id in ($k, $k + 1)),
                (select count(*) from met_child where id = $k + 1)",
        expected: &["1|1"],
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

/// D12: rows that a truncate had not seen stay, whether they were written before or after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_and_concurrent_rows_end_alike_whoever_meets_first() {
    let cluster = cluster(3).await;
    let tables = format!("{TABLES}; create table met_emptied (id int primary key, v text)");
    cluster.node(1).sql(&tables).await;
    cluster.all_show("select count(*) from met_emptied", &["0"]).await;
    for (round, order) in ORDERS.into_iter().enumerate() {
        let case = Case {
            name: "D12: a truncate and rows that it had not seen",
            before: "insert into met_emptied values (1, 'old'), (2, 'old'), (3, 'old')",
            writes: &[
                (2, "insert into met_emptied values (4, 'before')"),
                (2, "update met_emptied set v = 'before' where id = 2"),
                (1, "truncate met_emptied"),
                (3, "insert into met_emptied values (5, 'after')"),
                (3, "update met_emptied set v = 'after' where id = 3"),
            ],
            query: "select id, v from met_emptied order by id",
            expected: &["2|before", "3|after", "4|before", "5|after"],
        };
        let wrong = meet(&cluster, &[&case], round, order).await;
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        cluster.node(1).sql("delete from met_emptied").await;
        cluster.all_show("select count(*) from met_emptied", &["0"]).await;
    }
}
