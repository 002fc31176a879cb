//! Adds a node to the directory of a cluster, and takes one out of it.

use anyhow::{Context as _, Result, bail};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::state::Addresses;

use super::files::{write_atomic, write_json};
use super::make::{make_node, socket_dir};
use super::{CLUSTER_FILE, Cluster, Identity, Node, ports};
use crate::pid_file;

/// Makes the directory of another node, with the agent's password of `source`, whose server it will be a copy of.
/// `cluster.json` is not changed: [`keep`] does that when the node has its data. What an interrupted call left is used.
///
/// # Errors
/// A port is taken, or the disk refuses.
pub fn prepare_node(cluster: &Cluster, id: NodeId, source: NodeId) -> Result<Cluster> {
    let plan = ports::plan(id.get(), cluster.port_base)?;
    let (_, ports) = *plan.nodes.last().context("a plan has nodes")?;
    let alone = ports::Plan { nodes: vec![(id, ports)], ..plan };
    // The endpoints are shared by all nodes.
    // A node that is catching up has its ports already.
    let running = pid_file::holder(&cluster.node_dir(id).join("agent.pid")).map(|_| id);
    let taken = alone.taken(running.as_slice());
    let shared = [cluster.read_port, cluster.write_port, ports::stats(cluster.port_base)];
    let own = |port: u16| !shared.contains(&port);
    let taken: Vec<_> = taken.iter().filter(|taken| own(taken.port)).collect();
    if !taken.is_empty() {
        let list: Vec<String> = taken.iter().map(|taken| format!("  {taken}")).collect();
        bail!("ports are taken, nothing was made:\n{}\nstop these processes", list.join("\n"));
    }
    let socket_dir = socket_dir(&cluster.data, cluster.cluster_id, id, ports.postgres);
    let mut node = Node { id, uuid: uuid::Uuid::new_v4(), ports, socket_dir };
    let dir = cluster.node_dir(id);
    if let Ok(text) = std::fs::read_to_string(dir.join("identity.json")) {
        let known: Identity = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged", dir.join("identity.json").display()))?;
        node.uuid = known.uuid;
    }
    let mut grown = cluster.clone();
    grown.nodes.retain(|known| known.id != id);
    grown.nodes.push(node.clone());
    make_node(&grown, &node)?;
    let password = cluster.node_dir(source).join("secrets/agent.password");
    let password =
        std::fs::read(&password).with_context(|| format!("cannot read {}", password.display()))?;
    write_atomic(&dir.join("secrets/agent.password"), &password, 0o600)?;
    Ok(grown)
}

/// Writes `cluster.json`.
///
/// # Errors
/// The disk refuses; the old file is unchanged then.
pub fn keep(cluster: &Cluster) -> Result<()> {
    write_json(&cluster.data.join(CLUSTER_FILE), cluster, 0o600)
}

/// Writes a node's `identity.json`.
///
/// # Errors
/// The disk refuses; the old file is unchanged then.
pub fn put_identity(cluster: &Cluster, identity: &Identity) -> Result<()> {
    write_json(&cluster.node_dir(identity.node).join("identity.json"), identity, 0o644)
}

/// Reads a node's `identity.json`.
///
/// # Errors
/// It is not there or damaged.
pub fn identity(cluster: &Cluster, node: NodeId) -> Result<Identity> {
    let path = cluster.node_dir(node).join("identity.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

impl Node {
    /// Where it listens, as the cluster is told.
    pub fn addresses(&self) -> Addresses {
        let here = |port: u16| format!("127.0.0.1:{port}");
        let (peers, postgres, http) = (self.ports.peers, self.ports.postgres, self.ports.raft);
        Addresses { peers: here(peers), postgres: here(postgres), http: here(http) }
    }

    /// Who it is in its first life.
    pub fn first_identity(&self, cluster: &Cluster) -> Identity {
        Identity {
            cluster_id: cluster.cluster_id,
            node: self.id,
            uuid: self.uuid,
            incarnation: Incarnation::FIRST,
        }
    }
}
