//! Asks the agents of a cluster on this machine, and has them change its members.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::state::{ClusterState, Member, MemberStatus};

use crate::cli::progress::Progress;
use crate::cli::status;
use crate::layout::{Cluster, Node};
use crate::raft::api::ChangeBody;

/// How often is looked whether something is done.
const POLL: Duration = Duration::from_millis(250);
/// How often a change is tried that no majority has agreed to.
const TRIES: u32 = 5;

/// The agents of a cluster.
pub(super) struct Agents<'a> {
    cluster: &'a Cluster,
}

impl<'a> Agents<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        Self { cluster }
    }

    /// What each agent that answers has applied of what the cluster agreed.
    pub(super) fn states(&self) -> BTreeMap<NodeId, ClusterState> {
        let ask = |node: &Node| {
            let body = json(node, "/raft/status").ok()?;
            Some((node.id, serde_json::from_value(body.get("state")?.clone()).ok()?))
        };
        self.cluster.nodes.iter().filter_map(ask).collect()
    }

    /// What the cluster has agreed, as an agent knows it that follows a leader.
    pub(super) fn state(&self) -> Result<ClusterState> {
        let follows = |node: &Node| {
            let body = json(node, "/raft/status").ok()?;
            body.get("leader")?.as_u64()?;
            serde_json::from_value(body.get("state")?.clone()).ok()
        };
        self.cluster.nodes.iter().find_map(follows).with_context(|| {
            format!(
                "no agent of the cluster in {} follows a leader; nothing was changed. `synapsedb status` shows what \
                 is wrong",
                self.cluster.data.display()
            )
        })
    }

    /// Has the cluster agree to a change of its members.
    pub(super) fn change(&self, change: &ChangeBody) -> Result<()> {
        let body = serde_json::to_string(change)?;
        let mut failed = anyhow!("no agent answers");
        for _ in 0..TRIES {
            for node in &self.cluster.nodes {
                match status::post(node.ports.raft, "/raft/members", &body) {
                    Ok((200, _)) => return Ok(()),
                    Ok((409, answer)) => bail!("the cluster refuses: {}", message(&answer)),
                    Ok((_, answer)) => failed = anyhow!("node {}: {}", node.id, message(&answer)),
                    Err(_) => {}
                }
            }
            std::thread::sleep(POLL);
        }
        Err(failed.context("the members were not changed"))
    }

    /// Waits until `look` finds nothing to wait for.
    pub(super) fn wait(
        &self,
        progress: &mut Progress,
        what: &str,
        patience: Duration,
        mut look: impl FnMut(&Self) -> Result<(), String>,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let Err(why) = look(self) else { return Ok(()) };
            progress.tell(&format!("{what}: {why}"));
            if Instant::now() > deadline {
                bail!("{what}: {why}, for {patience:?}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Whether every member but `not` knows `node` in this status.
    pub(super) fn all_know(
        &self,
        node: NodeId,
        status: MemberStatus,
        not: NodeId,
    ) -> Result<(), String> {
        let states = self.states();
        for (member, _) in self.others(&states, not)? {
            let known = states.get(&member).ok_or(format!("node {member} does not answer"))?;
            if known.members.get(&node).is_none_or(|known| known.status != status) {
                return Err(format!("node {member} has not heard of it"));
            }
        }
        Ok(())
    }

    /// Whether the other agents that answer are no majority of those that vote.
    pub(super) fn few_without(&self, gone: NodeId, state: &ClusterState) -> bool {
        // A node that is joining for the first time does not vote yet.
        let votes = |member: &Member| {
            member.status != MemberStatus::Joining || member.incarnation > Incarnation::FIRST
        };
        let voters: Vec<NodeId> =
            state.present().filter(|(_, member)| votes(member)).map(|(node, _)| node).collect();
        let answers = self.states();
        let others = voters.iter().filter(|node| **node != gone && answers.contains_key(node));
        others.count() <= voters.len() / 2
    }

    /// Whether all members but `gone` have received and applied the same of it; answers up to where. With `through`
    /// that must reach at least so far.
    pub(super) fn equal(&self, gone: NodeId, through: Lsn) -> Result<Lsn, String> {
        let states = self.states();
        let mut all = Vec::new();
        for (member, _) in self.others(&states, gone)? {
            let node = self.cluster.node(member.get()).map_err(|error| error.to_string())?;
            let body = json(node, "/replication/status")?;
            let lanes = body.get("lanes").and_then(Value::as_array).cloned().unwrap_or_default();
            let lane = lanes
                .into_iter()
                .find(|lane| {
                    lane.get("origin").and_then(Value::as_u64) == Some(u64::from(gone.get()))
                })
                .ok_or(format!("node {member} knows nothing of node {gone}"))?;
            let at = |key: &str| -> Result<Lsn, String> {
                let text = lane.get(key).and_then(Value::as_str).unwrap_or_default();
                text.parse().map_err(|_| format!("node {member} says no {key}"))
            };
            all.push((member, at("received_lsn")?, at("applied_lsn")?));
        }
        let most = all.iter().map(|(_, received, _)| *received).max().unwrap_or_default();
        if most < through {
            return Err(format!("nobody has received what it committed until {through} yet"));
        }
        let goal = if through > Lsn::ZERO { through } else { most };
        match all.iter().find(|(_, _, applied)| *applied < goal) {
            Some((member, _, applied)) => {
                Err(format!("node {member} has applied its transactions until {applied} of {goal}"))
            }
            None => Ok(most),
        }
    }

    /// Where the WAL of a node has been read; nothing when its agent does not answer.
    pub(super) fn published(&self, node: NodeId) -> Option<Lsn> {
        let body = json(self.cluster.node(node.get()).ok()?, "/replication/status").ok()?;
        let publisher = body.get("publisher")?;
        publisher.get("running")?.as_bool().filter(|running| *running)?;
        publisher.get("read_lsn")?.as_str()?.parse().ok()
    }

    /// Waits until everything that the server of a node committed before `lsn` is in its spool.
    pub(super) fn await_spooled(&self, node: NodeId, lsn: Lsn, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.published(node).is_none_or(|read| read < lsn) {
            if Instant::now() > deadline {
                bail!("node {node} has not read its WAL until {lsn}, for {patience:?}");
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The members that are neither removed nor `not`.
    fn others(
        &self,
        states: &BTreeMap<NodeId, ClusterState>,
        not: NodeId,
    ) -> Result<Vec<(NodeId, MemberStatus)>, String> {
        let newest = states.values().max_by_key(|state| state.members.len());
        let newest = newest.ok_or("no agent answers")?;
        let others = newest.present().filter(|(node, _)| *node != not);
        Ok(others.map(|(node, member)| (node, member.status)).collect())
    }
}

/// The node whose server is copied: the one that was asked for, else the first that is ready.
pub(super) fn choose_source<'c>(
    cluster: &'c Cluster,
    state: &ClusterState,
    asked: Option<u16>,
    not: NodeId,
) -> Result<&'c Node> {
    let fits = |node: &&Node| node.id != not && state.active(node.id).is_some();
    let ready = |node: &Node| matches!(status::get(node.ports.raft, "/ready"), Ok((200, _)));
    if let Some(asked) = asked {
        let node = cluster.node(asked)?;
        if !fits(&node) || !ready(node) {
            bail!(
                "node {asked} is not an active member that is ready; nothing was changed, choose another --source"
            );
        }
        return Ok(node);
    }
    cluster.nodes.iter().find(|node| fits(node) && ready(node)).context(
        "no active member is ready to be copied; nothing was changed, `synapsedb status` shows what is wrong",
    )
}

fn json(node: &Node, path: &str) -> Result<Value, String> {
    let answer = status::get(node.ports.raft, path);
    let (code, body) = answer.map_err(|_| format!("node {} does not answer", node.id))?;
    if code != 200 {
        return Err(format!("node {}: {}", node.id, message(&body)));
    }
    serde_json::from_str(&body).map_err(|error| format!("node {}: {error}", node.id))
}

fn message(body: &str) -> String {
    let json: Value = serde_json::from_str(body).unwrap_or_default();
    json.get("message").and_then(Value::as_str).map_or_else(|| body.to_owned(), str::to_owned)
}
