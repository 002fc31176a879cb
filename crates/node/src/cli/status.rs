//! `synapsedb status`: how every node is, asked over HTTP; a node that does not answer is part of the answer.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::{DEGRADED, Data, FAILURE, table};
use crate::layout::{Cluster, Node};
use crate::supervisor;

/// How long a node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How long a change may take, which a majority has to agree to.
const POST_TIMEOUT: Duration = Duration::from_secs(12);

/// The arguments of `status`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    data: Data,
    /// How it is printed
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// How the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Every node is ready.
    Healthy,
    /// A majority is ready and there is a primary.
    Degraded,
    /// Less than that.
    Down,
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) verdict: Verdict,
    /// What is wrong, a sentence each.
    pub(super) reasons: Vec<String>,
    pub(super) data: String,
    pub(super) cluster_id: String,
    pub(super) leader: Option<u64>,
    pub(super) term: Option<u64>,
    pub(super) primary: Option<u64>,
    pub(super) epoch: Option<u64>,
    pub(super) read_port: u16,
    pub(super) write_port: u16,
    /// Of the split endpoint, if it is switched on.
    pub(super) split_port: Option<u16>,
    pub(super) nodes: Vec<NodeReport>,
}

/// What is known of a node.
#[derive(Debug, Serialize)]
pub(super) struct NodeReport {
    pub(super) id: u16,
    /// The agent's pid, if it runs.
    pub(super) agent_pid: Option<u32>,
    /// Whether it answers HTTP.
    pub(super) answers: bool,
    pub(super) ready: bool,
    /// Why it is not ready.
    pub(super) reason: Option<String>,
    pub(super) postgres: Option<String>,
    pub(super) postgres_version: Option<u64>,
    pub(super) postgres_port: u16,
    pub(super) http_port: u16,
    /// How the other nodes see it.
    pub(super) gossip: Option<String>,
    /// How far the node may be behind the other nodes, in milliseconds: the worst of all origins.
    pub(super) lag_ms: Option<u64>,
    /// What keeps rows from arriving, a sentence per origin.
    pub(super) stuck: Vec<String>,
    /// The answers as they came.
    pub(super) status: Option<Value>,
    pub(super) raft: Option<Value>,
    pub(super) members: Option<Value>,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let cluster = arguments.data.cluster()?;
    let report = ask(&cluster);
    match arguments.output {
        Output::Json => super::say(serde_json::to_string_pretty(&report)?),
        Output::Table => super::say(table::render(&report)),
    }
    Ok(match report.verdict {
        Verdict::Healthy => ExitCode::SUCCESS,
        Verdict::Degraded => ExitCode::from(DEGRADED),
        Verdict::Down => ExitCode::from(FAILURE),
    })
}

/// Asks all nodes at once.
fn ask(cluster: &Cluster) -> Report {
    let nodes: Vec<NodeReport> = std::thread::scope(|scope| {
        let asked: Vec<_> =
            cluster.nodes.iter().map(|node| scope.spawn(|| ask_node(cluster, node))).collect();
        asked.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    judge(cluster, nodes)
}

fn ask_node(cluster: &Cluster, node: &Node) -> NodeReport {
    let json =
        |port, path| get(port, path).ok().and_then(|(_, body)| serde_json::from_str(&body).ok());
    let ready = get(node.ports.raft, "/ready");
    let answers = ready.is_ok();
    // Without an answer to the first question the others would only cost time.
    let json = |port, path| if answers { json(port, path) } else { None };
    let status: Option<Value> = json(node.ports.raft, "/status");
    let raft: Option<Value> = json(node.ports.raft, "/raft/status");
    let members: Option<Value> = json(node.ports.gossip, "/gossip/members");
    let process = supervisor::running_agent(cluster, node);
    let postgres = status.as_ref().and_then(|status| component(status, "postgres"));
    let lanes = status.as_ref().map(lanes).unwrap_or_default();
    NodeReport {
        id: node.id.get(),
        agent_pid: process.map(|process| process.pid()),
        answers,
        ready: matches!(ready, Ok((200, _))),
        reason: match &ready {
            Ok((200, _)) => None,
            Ok((_, body)) => Some(reason(body)),
            Err(error) if process.is_some() => Some(format!("its agent does not answer ({error})")),
            Err(_) => Some("its agent does not run".to_owned()),
        },
        postgres: postgres.and_then(|p| text(p.get("state")?)),
        postgres_version: postgres.and_then(|p| p.get("version")?.as_u64()),
        postgres_port: node.ports.postgres,
        http_port: node.ports.raft,
        gossip: None,
        lag_ms: lanes.iter().filter_map(|lane| number(lane, &["probe_age_ms"])).max(),
        stuck: lanes.iter().filter_map(stuck).collect(),
        status,
        raft,
        members,
    }
}

/// What a component said in `/status`.
fn component<'s>(status: &'s Value, name: &str) -> Option<&'s Value> {
    status.get("components")?.get(name)?.get("status")
}

/// The ways of the other nodes' rows to a node.
fn lanes(status: &Value) -> Vec<Value> {
    let lanes = component(status, "replication").and_then(|status| status.get("lanes")?.as_array());
    lanes.cloned().unwrap_or_default()
}

/// Why rows of an origin do not arrive, if they do not.
fn stuck(lane: &Value) -> Option<String> {
    let origin = number(lane, &["origin"])?;
    let state = text(lane.get("state")?)?;
    let detail = ["detail", "fetch_error"].iter().find_map(|key| lane.get(key)?.as_str());
    let detail = detail.map_or(String::new(), |detail| format!(": {detail}"));
    matches!(state.as_str(), "blocked" | "clock_skew")
        .then(|| format!("rows of node {origin} do not arrive ({state}){detail}"))
}

fn judge(cluster: &Cluster, mut nodes: Vec<NodeReport>) -> Report {
    let first = |key: &[&str]| {
        nodes.iter().filter_map(|node| node.raft.as_ref()).find_map(|raft| number(raft, key))
    };
    let (leader, term) = (first(&["leader", "leader_id"]), first(&["term"]));
    // The highest epoch is the newest truth: a node that was cut off may tell an old primary.
    let told = nodes.iter().filter_map(|node| node.raft.as_ref()).filter_map(|raft| {
        let state = raft.get("state").filter(|state| state.is_object()).unwrap_or(raft);
        Some((number(state, &["epoch"])?, number(state, &["primary"])))
    });
    let newest = told.max_by_key(|(epoch, _)| *epoch);
    let (primary, epoch) =
        (newest.and_then(|(_, primary)| primary), newest.map(|(epoch, _)| epoch));
    let seen: Vec<Option<String>> =
        nodes.iter().map(|node| seen_by_others(&nodes, node.id)).collect();
    for (node, seen) in nodes.iter_mut().zip(seen) {
        node.gossip = seen;
    }
    let mut reasons: Vec<String> = nodes
        .iter()
        .filter_map(|node| Some(format!("node {}: {}", node.id, node.reason.as_ref()?)))
        .collect();
    for node in &nodes {
        reasons.extend(node.stuck.iter().map(|stuck| format!("node {}: {stuck}", node.id)));
    }
    let ready = nodes.iter().filter(|node| node.ready).count();
    if leader.is_none() {
        reasons.push("there is no raft leader".to_owned());
    }
    if primary.is_none() {
        reasons.push("there is no primary: the write endpoint refuses".to_owned());
    }
    let verdict = if reasons.is_empty() {
        Verdict::Healthy
    } else if ready * 2 > nodes.len() && primary.is_some() {
        Verdict::Degraded
    } else {
        Verdict::Down
    };
    Report {
        verdict,
        reasons,
        data: cluster.data.display().to_string(),
        cluster_id: cluster.cluster_id.to_string(),
        leader,
        term,
        primary,
        epoch,
        read_port: cluster.read_port,
        write_port: cluster.write_port,
        split_port: super::endpoints::split_port(cluster),
        nodes,
    }
}

/// The worst that another node's gossip says of a node.
fn seen_by_others(nodes: &[NodeReport], id: u16) -> Option<String> {
    let rank =
        |state: &str| ["alive", "left", "suspect", "down"].iter().position(|known| *known == state);
    let others = nodes.iter().filter(|node| node.id != id).filter_map(|node| node.members.as_ref());
    let states = others.filter_map(|members| member_state(members, id));
    states.max_by_key(|state| rank(state))
}

/// The state of a member in an answer of `/gossip/members`: a list of members, or an object by number.
fn member_state(members: &Value, id: u16) -> Option<String> {
    let members = members.get("members").unwrap_or(members);
    let member = match members {
        Value::Array(list) => {
            list.iter().find(|member| number(member, &["node", "id"]) == Some(u64::from(id)))?
        }
        other => other.get(id.to_string())?,
    };
    text(member.get("state").or_else(|| member.get("status"))?)
}

fn number(value: &Value, keys: &[&str]) -> Option<u64> {
    keys.iter().find_map(|key| value.get(key)?.as_u64())
}

fn text(value: &Value) -> Option<String> {
    Some(value.as_str()?.to_lowercase())
}

/// What a node that is not ready says it waits for: the first check that fails; what follows rests on it.
pub(super) fn reason(body: &str) -> String {
    let json: Value = serde_json::from_str(body).unwrap_or_default();
    let failed = json.get("checks").and_then(Value::as_array).and_then(|checks| {
        let check = checks.iter().find(|check| check.get("ready") == Some(&Value::Bool(false)))?;
        let name = check.get("name")?.as_str()?;
        Some(format!("{name}: {}", check.get("reason")?.as_str()?))
    });
    let told = || json.get("message")?.as_str().map(str::to_owned);
    failed.or_else(told).unwrap_or_else(|| "it is not ready".to_owned())
}

/// Sends a JSON document to a port of this machine: status and body.
pub(super) fn post(port: u16, path: &str, body: &str) -> Result<(u16, String), ureq::Error> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(POST_TIMEOUT))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into();
    let request = agent.post(format!("http://127.0.0.1:{port}{path}"));
    let mut response = request.header("content-type", "application/json").send(body)?;
    Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
}

/// Asks a port of this machine: status and body.
pub(super) fn get(port: u16, path: &str) -> Result<(u16, String), ureq::Error> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into();
    let mut response = agent.get(format!("http://127.0.0.1:{port}{path}")).call()?;
    Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
}
