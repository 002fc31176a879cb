//! The convergence matrix: concurrent writes of every kind on three nodes, which meet each other in every order; all
//! nodes must end with the row that must win.

mod cases;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use synapsedb_dev::cluster::EQUAL_TIMEOUT;
use synapsedb_dev::{Cluster, HttpPort, Node, eventually};

use cases::{AT_ONCE, CASES, Case, TABLES};

use crate::repl::run;
use crate::{NOTICED, binary, cluster, skip};

/// Replaces the number of the round.
fn numbered(sql: &str, number: usize) -> String {
    sql.replace("$k", &number.to_string())
}

/// Which two nodes meet first, and who comes last.
const ORDERS: [[u16; 3]; 6] = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];

/// When the writes of a round are committed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Times {
    /// One after the other.
    InOrder,
    /// All in one microsecond: the clocks of all nodes stand still.
    AtOnce,
    /// One after the other, and a node rewrites the table in between, which is no write of its rows.
    Rewritten,
}

/// Stores all rows anew of the table to which `sql` writes, if it has the column for it.
fn rewrite(sql: &str) -> Option<String> {
    let tables = ["met", "met_unique", "met_large", "met_toast"];
    let table = sql.split_whitespace().find(|word| tables.contains(word))?;
    Some(format!("alter table {table} alter v type text using v || ''"))
}

/// Lets the clocks of all nodes stand still at the next full second, which comes later for everybody.
fn stop_clocks(cluster: &Cluster) -> u64 {
    let second = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 1;
    cluster.nodes().iter().for_each(|node| node.stop_clock(second));
    second
}

/// The clocks go on when the time has come at which they stood still, so that none is set back.
async fn let_clocks_go_on(cluster: &Cluster, second: u64) {
    let until = UNIX_EPOCH + Duration::from_secs(second);
    let left = until.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left + Duration::from_millis(1)).await;
    cluster.nodes().iter().for_each(|node| node.set_clock(0));
}

/// Runs all cases beside each other in one round: everything is written while the agents stand still, then they go on
/// in this order.
async fn meet(
    cluster: &Cluster,
    cases: &[&Case],
    times: Times,
    round: usize,
    order: [u16; 3],
) -> Vec<String> {
    let number = |case: usize| 10_000 * (round + 1) + 10 * case;
    for (index, case) in cases.iter().enumerate().filter(|(_, case)| !case.before.is_empty()) {
        cluster.node(1).sql(&numbered(case.before, number(index))).await;
    }
    let began = format!("insert into met_round values (0, {round})");
    cluster.node(1).sql(&began).await;
    let here = format!("select count(*) from met_round where node = 0 and round = {round}");
    cluster.all_show(&here, &["1"]).await;
    cluster.nodes().iter().for_each(Node::pause_agent);
    let second = (times == Times::AtOnce).then(|| stop_clocks(cluster));
    for (index, case) in cases.iter().enumerate() {
        for (place, (node, sql)) in case.writes.iter().enumerate() {
            cluster.node(*node).sql(&numbered(sql, number(index))).await;
            let rewritten = times == Times::Rewritten && place == round % 2;
            if let Some(rewrite) = rewrite(sql).filter(|_| rewritten) {
                cluster.node(order[(round + 2) % 3]).sql(&rewrite).await;
            }
        }
    }
    for node in cluster.nodes() {
        let (number, sql) = (node.number(), "extract(epoch from pg_xact_commit_timestamp(xmin))");
        node.sql(&format!("insert into met_round values ({number}, {round})")).await;
        let when = format!("select {sql} from met_round where node = {number} and round = {round}");
        let when: f64 = node.value(&when).await.parse().unwrap();
        assert!(second.is_none_or(|second| when == second as f64), "{when} is not {second:?}");
    }
    if let Some(second) = second {
        let_clocks_go_on(cluster, second).await;
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

async fn check(cluster: &Cluster, cases: &[&Case], times: Times) {
    cluster.node(1).sql(TABLES).await;
    cluster.all_show("select count(*) from met_round", &["0"]).await;
    let mut wrong = Vec::new();
    for (round, order) in ORDERS.into_iter().enumerate() {
        // Each pair that meets first once, and another node that rewrites.
        if times != Times::Rewritten || [0, 3, 5].contains(&round) {
            wrong.extend(meet(cluster, cases, times, round, order).await);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cluster.equal_rows_within(EQUAL_TIMEOUT).await.unwrap();
}

/// A cluster whose nodes have clocks of their own, or why there is none.
async fn cluster_with_clocks() -> Result<Cluster, String> {
    Node::can_have_own_clock()?;
    let cluster = binary().lay_out(3);
    cluster.nodes().iter().for_each(|node| node.own_clock(0));
    cluster.start().await;
    Ok(cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_end_alike_on_all_nodes_whoever_meets_first() {
    let cluster = cluster(3).await;
    check(&cluster, &CASES.iter().collect::<Vec<_>>(), Times::InOrder).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_between_concurrent_writes_changes_nothing() {
    let cluster = cluster(3).await;
    check(&cluster, &CASES.iter().collect::<Vec<_>>(), Times::Rewritten).await;
    for node in cluster.nodes() {
        let aside = "select reason from synapsedb.quarantine";
        assert_eq!(node.rows(aside).await, [""; 0], "quarantined on node {}", node.number());
        eventually("everybody has seen what the rewrites hide", NOTICED, async || {
            node.shows("select count(*) from synapsedb.altered", &["0"]).await
        })
        .await;
    }
}

/// D2, D3 and D4: equal commit times, a clock that is ahead within the guard, and one that is ahead beyond it.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_end_alike_whatever_their_clocks_show() {
    let cluster = match cluster_with_clocks().await {
        Ok(cluster) => cluster,
        Err(reason) => return skip(&reason),
    };
    check(&cluster, &AT_ONCE.iter().collect::<Vec<_>>(), Times::AtOnce).await;
    a_clock_ahead_never_beats_a_later_write(&cluster).await;
    a_clock_beyond_the_guard_holds_its_node_back(&cluster).await;
    a_clock_that_is_set_back_gives_up_the_primary(&cluster).await;
    cluster.equal_rows_within(EQUAL_TIMEOUT).await.unwrap();
}

/// D4: what node 2 writes with a clock that is ahead, others overwrite as soon as they see it; that is what stays.
async fn a_clock_ahead_never_beats_a_later_write(cluster: &Cluster) {
    cluster.node(2).set_clock(400);
    for round in 1..=3_u16 {
        let (id, other) = (100 + round, if round == 2 { 3 } else { 1 });
        let written = format!("insert into met values ({id}, 'ahead'), (-{id}, 'ahead')");
        cluster.node(2).sql(&written).await;
        let seen = format!("select v from met where id = {id}");
        eventually("the row is seen", NOTICED, async || {
            cluster.node(other).shows(&seen, &["ahead"]).await
        })
        .await;
        let follow =
            format!("update met set v = 'later' where id = {id}; delete from met where id = -{id}");
        cluster.node(other).sql(&follow).await;
        cluster
            .all_show(
                &format!("select id, v from met where abs(id) = {id}"),
                &[&format!("{id}|later")],
            )
            .await;
    }
    let conflicts = "select count(*) from synapsedb.conflict where abs((key ->> 'id')::int) < 1000";
    cluster.all_show(conflicts, &["0"]).await;
}

/// Setting a clock back is said, and moves the primary away until it has caught up; nobody keeps other rows.
async fn a_clock_that_is_set_back_gives_up_the_primary(cluster: &Cluster) {
    let port = "select current_setting('port')";
    let written_at = async || cluster.write_endpoint().value(port).await;
    let before = written_at().await;
    let at = |node: &&Node| node.server().port.to_string() == before;
    let primary = cluster.nodes().iter().find(at).unwrap();
    primary.set_clock(8_000);
    primary.sql("insert into met values (211, 'ahead')").await;
    primary.set_clock(0);
    eventually("another node is the primary", NOTICED, async || {
        if written_at().await == before { Err(before.clone()) } else { Ok(()) }
    })
    .await;
    let (_, ready) = primary.try_http(HttpPort::Raft, "/ready").await.unwrap();
    assert!(ready.contains("the clock was set back"), "{ready}");
    let behind = "synapsedb_replication_clock_behind_milliseconds";
    assert!(primary.metric(behind, "").await > 0.0);
    assert!(primary.log().contains("the clock of this node was set back"));
    cluster.write_endpoint().sql("insert into met values (212, 'elsewhere')").await;
    cluster
        .all_show("select id from met where id in (211, 212) order by id", &["211", "212"])
        .await;
    cluster.wait_ready().await;
    eventually("the clock is no longer told to be behind", NOTICED, async || {
        let ms = primary.metric(behind, "").await;
        if ms == 0.0 { Ok(()) } else { Err(format!("{ms} ms")) }
    })
    .await;
    primary.sql("update met set v = 'later' where id = 211").await;
    cluster.all_show("select v from met where id = 211", &["later"]).await;
}

/// What node 2 writes with a clock that is too far ahead waits, and is told; the rest flows; nothing is lost.
async fn a_clock_beyond_the_guard_holds_its_node_back(cluster: &Cluster) {
    cluster.node(2).set_clock(3_000);
    cluster.node(2).sql("insert into met values (201, 'ahead')").await;
    cluster.node(3).sql("insert into met values (202, 'right')").await;
    eventually("the others say that a clock is wrong", NOTICED, async || {
        let status = cluster.node(1).http(HttpPort::Raft, "/replication/status").await;
        let told = status["matrix"].to_string() + &status["lanes"].to_string();
        if told.contains("clock_skew") { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    let seen = "select id from met where id in (201, 202) order by id";
    for node in [1, 2] {
        eventually("the row of a right clock is there", NOTICED, async || {
            cluster.node(node).shows("select v from met where id = 202", &["right"]).await
        })
        .await;
    }
    assert_eq!(cluster.node(1).rows(seen).await, ["202"], "it was applied before its time");
    assert!(cluster.node(1).metric("synapsedb_replication_clock_skew_waits_total", "").await > 0.0);
    assert!(cluster.node(1).log().contains("one of the two clocks is wrong"));
    // When its time has come here, what is written here is later.
    eventually("the row is seen", NOTICED, async || {
        cluster.node(1).shows(seen, &["201", "202"]).await
    })
    .await;
    cluster.node(1).sql("update met set v = 'later' where id = 201").await;
    let later = "select v from met where id = 201";
    cluster.all_show(later, &["later"]).await;
}

/// D15: a row that cannot be applied is kept and told, nothing else is skipped with it, what comes later is applied,
/// and giving it up is a difference that a comparison finds.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_skipped_unseen() {
    let cluster = cluster(3).await;
    cluster.node(1).sql("create table met_skipped (id int primary key, v int)").await;
    cluster.all_show("select count(*) from met_skipped", &["0"]).await;
    let local = |change: &str| {
        format!("set session_replication_role = replica; alter table met_skipped {change}")
    };
    let node = cluster.node(2).agent_server();
    node.sql(&local("add constraint positive check (v > 0)")).await;
    let kept = "select new_row ->> 'id' from synapsedb.quarantine order by 1";
    cluster.node(1).sql("insert into met_skipped values (1, 5), (2, -5), (3, 7), (4, -7)").await;
    cluster.node(1).sql("insert into met_skipped values (5, 9)").await;
    eventually("node 2 has what it can have", NOTICED, async || {
        let here = "select id from met_skipped order by id";
        cluster.node(2).shows(here, &["1", "3", "5"]).await?;
        cluster.node(2).shows(kept, &["2", "4"]).await
    })
    .await;
    let (code, text, _) = run(&cluster, &["verify", "met_skipped"], &[]);
    assert!(code == 4, "the difference is not told: {code} {text}");
    // The next write on a row makes it whole, and what was kept of before loses against it.
    cluster.node(3).sql("update met_skipped set v = 8 where id = 2").await;
    let right = "select v from met_skipped where id = 2";
    cluster.all_show(right, &["8"]).await;
    node.sql(&local("drop constraint positive")).await;
    let id =
        |row: u8| format!("select id from synapsedb.quarantine where new_row ->> 'id' = '{row}'");
    let kept_id = format!("2/{}", cluster.node(2).value(&id(2)).await);
    let (code, text, error) = run(&cluster, &["repl", "retry"], &[&kept_id]);
    assert!(code == 0, "{text}{error}");
    cluster.all_show(right, &["8"]).await;
    // What is given up stays different until it is repaired.
    let kept_id = format!("2/{}", cluster.node(2).value(&id(4)).await);
    let (code, text, error) = run(&cluster, &["repl", "skip"], &[&kept_id, "--yes"]);
    assert!(code == 0, "{text}{error}");
    assert!(cluster.node(2).rows(kept).await.is_empty());
    let (code, text, _) =
        run(&cluster, &["verify", "met_skipped"], &["--repair", "--from", "1", "--yes"]);
    assert!(code == 0 && text.contains("met_skipped"), "{code} {text}");
    cluster.all_show("select count(*) from met_skipped", &["5"]).await;
    cluster.equal_rows_within(EQUAL_TIMEOUT).await.unwrap();
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
        let wrong = meet(&cluster, &[&case], Times::InOrder, round, order).await;
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        cluster.node(1).sql("delete from met_emptied").await;
        cluster.all_show("select count(*) from met_emptied", &["0"]).await;
    }
}
