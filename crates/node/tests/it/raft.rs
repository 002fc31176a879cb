//! Raft: one leader, another one when it is lost, and the state of an agent that was killed comes back.

use std::time::Duration;

use serde_json::Value;
use synapsedb_dev::{Cluster, HttpPort, eventually};

use crate::{NOTICED, cluster, skip};

/// The first value of `key` anywhere in a document.
fn find<'v>(value: &'v Value, key: &str) -> Option<&'v Value> {
    match value {
        Value::Object(fields) => {
            fields.get(key).or_else(|| fields.values().find_map(|field| find(field, key)))
        }
        Value::Array(items) => items.iter().find_map(|item| find(item, key)),
        _ => None,
    }
}

/// The leader as one node knows it.
async fn leader(cluster: &Cluster, number: u16) -> Result<u16, String> {
    let answer = cluster.node(number).try_http(HttpPort::Raft, "/raft/status").await;
    let (status, text) = answer.map_err(|error| format!("{error:#}"))?;
    let body: Value =
        serde_json::from_str(&text).map_err(|error| format!("{status} {text}: {error}"))?;
    let leader = find(&body, "leader").and_then(Value::as_u64);
    leader
        .map(|leader| leader as u16)
        .ok_or_else(|| format!("node {number} knows no leader: {text}"))
}

/// Waits until these nodes agree on a leader other than `not`.
async fn agreed_leader(cluster: &Cluster, numbers: &[u16], not: Option<u16>) -> u16 {
    let mut agreed = 0;
    eventually(&format!("the nodes {numbers:?} agree on a leader"), NOTICED, async || {
        agreed = leader(cluster, numbers[0]).await?;
        for number in numbers {
            let known = leader(cluster, *number).await?;
            if known != agreed || Some(known) == not {
                return Err(format!("node {number} follows {known}"));
            }
        }
        Ok(())
    })
    .await;
    agreed
}

#[tokio::test(flavor = "multi_thread")]
async fn another_leader_is_elected_and_the_old_one_follows() {
    let cluster = cluster(3).await;
    let first = agreed_leader(&cluster, &[1, 2, 3], None).await;
    cluster.node(first).kill_agent();
    let others: Vec<_> = (1..=3).filter(|number| *number != first).collect();
    let second = agreed_leader(&cluster, &others, Some(first)).await;
    assert_ne!(first, second);
    cluster.node(first).start();
    agreed_leader(&cluster, &[1, 2, 3], None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_quorum_steps_down() {
    let cluster = cluster(3).await;
    let first = agreed_leader(&cluster, &[1, 2, 3], None).await;
    if let Err(reason) = cluster.node(first).can_be_cut_off() {
        return skip(&reason);
    }
    cluster.node(first).cut_off();
    let others: Vec<_> = (1..=3).filter(|number| *number != first).collect();
    agreed_leader(&cluster, &others, Some(first)).await;
    eventually("the old leader no longer claims to lead", NOTICED, async || {
        match leader(&cluster, first).await {
            Ok(known) if known == first => Err("it does".to_owned()),
            Ok(_) | Err(_) => Ok(()),
        }
    })
    .await;
    cluster.node(first).rejoin();
    agreed_leader(&cluster, &[1, 2, 3], None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_survives_kills_at_any_moment() {
    let cluster = cluster(3).await;
    for round in 0..6u64 {
        let node = cluster.node((round % 3) as u16 + 1);
        node.kill_agent();
        tokio::time::sleep(Duration::from_millis(100 * round)).await;
        node.start();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    cluster.wait_ready().await;
    agreed_leader(&cluster, &[1, 2, 3], None).await;
    let mut members = Vec::new();
    for node in cluster.nodes() {
        let body = node.http(HttpPort::Raft, "/raft/status").await;
        members.push(find(&body, "members").cloned());
    }
    assert!(members[0].is_some());
    assert!(members.iter().all(|other| *other == members[0]), "{members:?}");
}

/// A vote is two flushes; with 150 ms each nobody was elected within the 300 to 600 ms of the settings.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_on_slow_disks_elect_too() {
    let cluster = cluster(3).await;
    agreed_leader(&cluster, &[1, 2, 3], None).await;
    for number in 1..=3 {
        cluster.node(number).kill_agent();
        cluster.node(number).slow_disk(Duration::from_millis(150));
    }
    for number in 1..=3 {
        cluster.node(number).start();
    }
    cluster.wait_ready().await;
    let first = agreed_leader(&cluster, &[1, 2, 3], None).await;
    // It holds: no election follows another.
    let term = |body: &Value| find(body, "term").and_then(Value::as_u64);
    let before = term(&cluster.node(first).http(HttpPort::Raft, "/raft/status").await);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(agreed_leader(&cluster, &[1, 2, 3], None).await, first);
    assert_eq!(term(&cluster.node(first).http(HttpPort::Raft, "/raft/status").await), before);
    cluster.node(first).kill_agent();
    let others: Vec<_> = (1..=3).filter(|number| *number != first).collect();
    agreed_leader(&cluster, &others, Some(first)).await;
}

/// One slow disk among fast ones: whoever leads is heard often enough by all.
#[tokio::test(flavor = "multi_thread")]
async fn one_slow_disk_does_not_unsettle_the_others() {
    let cluster = cluster(3).await;
    cluster.node(2).kill_agent();
    cluster.node(2).slow_disk(Duration::from_millis(150));
    cluster.node(2).start();
    cluster.wait_ready().await;
    let first = agreed_leader(&cluster, &[1, 2, 3], None).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(agreed_leader(&cluster, &[1, 2, 3], None).await, first);
}
