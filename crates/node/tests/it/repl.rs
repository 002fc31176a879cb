//! `synapsedb repl` and `conflicts`: a lag that cannot lie, and what is kept of conflicts and of the quarantine.

use std::time::Duration;

use serde_json::{Value, json};
use synapsedb_dev::{Cluster, HttpPort, eventually};

use crate::{NOTICED, agent, binary, cluster};

pub(crate) fn run(cluster: &Cluster, words: &[&str], arguments: &[&str]) -> (i32, String, String) {
    let data = ["--data", cluster.data().to_str().unwrap()];
    let all: Vec<_> = words.iter().chain(&data).chain(arguments).copied().collect();
    let output = binary().run(&all);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn lane(status: &Value, receiver: u64, origin: u64) -> Option<Value> {
    let rows = status["matrix"].as_array()?;
    let row = rows.iter().find(|row| row["node"] == receiver)?;
    row["lanes"].as_array()?.iter().find(|lane| lane["origin"] == origin).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_is_measured_between_all_nodes_and_never_made_up() {
    let cluster = cluster(3).await;
    let look =
        async |node: u16| cluster.node(node).http(HttpPort::Raft, "/replication/status").await;
    eventually("every node is up to date with every other", NOTICED, async || {
        let (code, text, _) = run(&cluster, &["repl"], &["-o", "json"]);
        let matrix: Value =
            serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        for (receiver, origin) in [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)] {
            let lane = lane(&matrix, receiver, origin).ok_or(format!("no lane: {matrix:#}"))?;
            let behind = lane["lag_bytes"].as_u64().ok_or(format!("{lane}"))?;
            let age = lane["probe_age_ms"].as_u64().ok_or(format!("{lane}"))?;
            let time = lane["applied_commit_time"].as_str().unwrap_or_default();
            if behind > 64 << 10 || age > 5000 || !time.ends_with('Z') || code != 0 {
                return Err(format!("{code} {receiver} from {origin}: {lane}"));
            }
        }
        Ok(())
    })
    .await;
    let (code, text, _) = run(&cluster, &["repl"], &[]);
    assert!(code == 0 && text.contains("FROM 3") && text.contains(" ms, "), "{text}");

    a_held_sequence_holds_no_lag_up(&cluster).await;
    // A lane that stands still: its bytes and its age grow.
    cluster.node(1).sql("create table lagging (id int primary key, v text)").await;
    cluster.all_show("select count(*) from lagging", &["0"]).await;
    let lock = cluster.node(2).session().await;
    lock.rows("begin; lock table lagging").await.unwrap();
    cluster
        .node(1)
        .sql("insert into lagging select i, repeat('x', 1000) from generate_series(1, 2000) i")
        .await;
    eventually("node 2 says that it is behind node 1", NOTICED, async || {
        let lane = lane(&look(3).await, 2, 1).ok_or("no lane")?;
        let (bytes, age) = (lane["lag_bytes"].as_u64(), lane["probe_age_ms"].as_u64());
        if bytes > Some(1_000_000) && age > Some(3000) { Ok(()) } else { Err(format!("{lane}")) }
    })
    .await;
    assert!(cluster.node(2).metric("synapsedb_replication_lag_bytes", "origin=\"1\"").await > 1e6);
    lock.rows("commit").await.unwrap();
    cluster.all_show("select count(*) from lagging", &["2000"]).await;

    // An origin that is away: nobody knows how far it is, and the age says so.
    let before = lane(&look(1).await, 1, 3).unwrap();
    cluster.node(3).kill_agent();
    eventually("the lag behind node 3 is unknown and grows old", NOTICED, async || {
        let status = look(1).await;
        let lane = lane(&status, 1, 3).ok_or("no lane")?;
        let row = status["matrix"].as_array().unwrap().iter().find(|row| row["node"] == 3).unwrap();
        let known = !lane["lag_bytes"].is_null()
            || row["lanes"].is_array()
            || !row["unreachable"].is_string();
        if known || lane["probe_age_ms"].as_u64() < Some(6000) {
            return Err(format!("{lane} {row}"));
        }
        if lane["applied_commit_time"].as_str() < before["applied_commit_time"].as_str() {
            return Err(format!("the commit time went back: {lane}"));
        }
        Ok(())
    })
    .await;
    let metrics = cluster.node(1).try_http(HttpPort::Raft, "/metrics").await.unwrap().1;
    assert!(!metrics.contains("synapsedb_replication_lag_bytes{origin=\"3\"}"), "{metrics}");
    assert!(
        cluster.node(1).metric("synapsedb_replication_probe_age_ms", "origin=\"3\"").await > 6000.0
    );
    let (code, text, _) = run(&cluster, &["repl"], &[]);
    assert!(code == 3 && text.contains("unreachable") && text.contains("? B"), "{code} {text}");
}

/// A user's transaction that holds a sequence: nobody's probe waits for it.
async fn a_held_sequence_holds_no_lag_up(cluster: &Cluster) {
    cluster.node(2).sql("create sequence held").await;
    let holder = cluster.node(2).session().await;
    holder.rows("begin; alter sequence held cache 7").await.unwrap();
    for _ in 0..70 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let status = cluster.node(1).http(HttpPort::Raft, "/replication/status").await;
        let lane = lane(&status, 1, 2).unwrap();
        assert!(lane["probe_age_ms"].as_u64() < Some(5000), "{lane}");
    }
    holder.rows("rollback").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts_of_all_nodes_are_listed_and_filtered() {
    let cluster = cluster(3).await;
    for node in cluster.nodes() {
        let number = node.number();
        let sql = format!(
            "insert into synapsedb.conflict (at, schema_name, table_name, type, resolution, policy, key, local_row,
                 remote_row, local_node, local_time, remote_node, remote_lsn, remote_vector)
             select now() - i * interval '1 hour', 'public', 'clash', case i when 0 then 'insert_insert'
                 else 'update_update' end, 'remote', 'last_write_wins', jsonb_build_object('id', i), '{{\"v\": 1}}',
                 '{{\"v\": 2}}', {number}, now(), 9, '0/ABC', '{{\"1\": 5}}'
             from generate_series(0, 4) i"
        );
        agent(node).sql(&sql).await;
    }
    let list = |arguments: &[&str]| {
        let all: Vec<_> = ["-o", "json"].iter().chain(arguments).copied().collect();
        let (code, text, error) = run(&cluster, &["conflicts", "ls"], &all);
        assert_eq!(code, 0, "{text}{error}");
        serde_json::from_str::<Value>(&text).unwrap()["conflicts"].as_array().unwrap().clone()
    };
    let all = list(&[]);
    assert_eq!(all.len(), 15);
    assert!(all.is_sorted_by(|a, b| a["at"].as_str() >= b["at"].as_str()), "{all:#?}");
    assert_eq!(list(&["--node", "2"]).len(), 5);
    assert_eq!(list(&["--type", "insert_insert"]).len(), 3);
    assert_eq!(list(&["--table", "public.clash", "--since", "90m"]).len(), 6);
    assert_eq!(list(&["--table", "other"]).len(), 0);
    assert_eq!(list(&["--limit", "2"]).len(), 2);
    let (code, text, _) = run(&cluster, &["conflicts", "ls"], &["--node", "3"]);
    assert!(code == 0 && text.contains("3/5") && text.contains("public.clash"), "{text}");
    let (code, text, _) = run(&cluster, &["conflicts", "show"], &["3/5"]);
    let shown: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &shown["remote_row"], &shown["node"]), (0, &json!({"v": 2}), &json!(3)));
    assert_eq!(shown["remote_lsn"], "0/ABC");
    let (code, _, error) = run(&cluster, &["conflicts", "show"], &["3/99"]);
    assert!(code == 1 && error.contains("no conflict 99"), "{error}");
    let (code, _, error) = run(&cluster, &["conflicts", "ls"], &["--since", "the other day"]);
    assert!(code == 1 && error.contains("the other day"), "{error}");

    // Nothing of it is replicated, and a node that is away is said.
    cluster.node(3).kill_agent();
    let (code, text, error) = run(&cluster, &["conflicts", "ls"], &["-o", "json"]);
    let shown: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(shown["conflicts"].as_array().unwrap().len(), 10);
    assert!(code == 3 && error.contains("node 3 is not in it"), "{code} {error}");
    assert_eq!(agent(cluster.node(1)).value("select count(*) from synapsedb.conflict").await, "5");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_change_is_listed_and_given_up_on_request() {
    let cluster = crate::shared().await;
    let node = cluster.node(2);
    agent(node)
        .sql(
            "insert into synapsedb.quarantine (origin, incarnation, commit_lsn, commit_time, position, schema_name,
                 table_name, kind, new_row, relation, message, reason, sqlstate)
             values (1, 1, '0/AB', now(), 0, 'public', 'sick', 'insert', '{\"id\": 1}', 'r', 'm', 'it is too long',
                 '22001')",
        )
        .await;
    let (code, text, _) = run(&cluster, &["repl", "quarantine"], &["-o", "json"]);
    let shown: Value = serde_json::from_str(&text).unwrap();
    let entry = &shown["quarantined"][0];
    assert_eq!(
        (code, &entry["node"], &entry["sqlstate"]),
        (0, &json!(2), &json!("22001")),
        "{text}"
    );
    let id = format!("2/{}", entry["id"]);
    let (code, text, _) = run(&cluster, &["repl", "quarantine"], &[]);
    assert!(code == 0 && text.contains(&id) && text.contains("it is too long"), "{text}");

    let (code, _, error) = run(&cluster, &["repl", "retry"], &[&id]);
    assert!(code == 1 && error.contains("nothing was changed"), "{error}");
    let (code, _, error) = run(&cluster, &["repl", "skip"], &[&id]);
    assert!(code == 1 && error.contains("--yes"), "{error}");
    let (code, text, error) = run(&cluster, &["repl", "skip"], &[&id, "--yes"]);
    assert!(code == 0 && text.contains("public.sick"), "{text}{error}");
    assert!(node.log().contains("it is too long"), "the log does not keep it");
    let (code, text, _) = run(&cluster, &["repl", "quarantine"], &[]);
    assert!(code == 0 && text.contains("Nothing is in quarantine"), "{text}");
    let (code, _, error) = run(&cluster, &["repl", "skip"], &[&id, "--yes"]);
    assert!(code == 1 && error.contains("no change"), "{error}");
}
