//! Gossip: who is alive, seen by every node.

use serde_json::Value;
use synapsedb_dev::{Cluster, HttpPort, eventually};

use crate::{NOTICED, cluster, skip};

/// The states of all members as one node sees them, in order.
async fn states(cluster: &Cluster, number: u16) -> Result<Vec<String>, String> {
    let answer = cluster.node(number).try_http(HttpPort::Gossip, "/gossip/members").await;
    let (status, text) = answer.map_err(|error| format!("{error:#}"))?;
    let body: Value =
        serde_json::from_str(&text).map_err(|error| format!("{status} {text}: {error}"))?;
    let members = match &body["members"] {
        Value::Array(members) => members.iter().collect::<Vec<_>>(),
        Value::Object(members) => members.values().collect(),
        _ => return Err(format!("no members in {text}")),
    };
    let mut states: Vec<_> = members
        .iter()
        .map(|member| member["state"].as_str().unwrap_or("?").to_ascii_lowercase())
        .collect();
    states.sort();
    Ok(states)
}

async fn sees(cluster: &Cluster, number: u16, expected: &[&str]) {
    eventually(&format!("node {number} sees {expected:?}"), NOTICED, async || {
        let states = states(cluster, number).await?;
        if states == expected { Ok(()) } else { Err(format!("it sees {states:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_agent_is_noticed_and_welcomed_back() {
    let cluster = cluster(3).await;
    for node in cluster.nodes() {
        sees(&cluster, node.number(), &["alive", "alive", "alive"]).await;
    }
    cluster.node(3).kill_agent();
    for number in [1, 2] {
        sees(&cluster, number, &["alive", "alive", "down"]).await;
    }
    cluster.node(3).start();
    for node in cluster.nodes() {
        sees(&cluster, node.number(), &["alive", "alive", "alive"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_of_a_cut_see_the_others_down() {
    let cluster = cluster(3).await;
    if let Err(reason) = cluster.node(1).can_be_cut_off() {
        return skip(&reason);
    }
    cluster.node(1).cut_off();
    sees(&cluster, 1, &["alive", "down", "down"]).await;
    sees(&cluster, 2, &["alive", "alive", "down"]).await;
    cluster.node(1).rejoin();
    for node in cluster.nodes() {
        sees(&cluster, node.number(), &["alive", "alive", "alive"]).await;
    }
}
