//! The directory of a cluster on one machine: who the nodes are, which ports they have and where their files lie.
//!
//! `DATA/cluster.json` is written first, as the intent, and once more when everything it names is there. Every node's
//! directory is made under another name and renamed into place, so that it is complete or not there; an interrupted
//! [`init`] is finished by the next one.

mod agent_toml;
mod files;
mod grow;
mod make;
pub mod ports;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::{Incarnation, NodeId};

pub use files::write_atomic;
pub use grow::{identity, keep, prepare_node, put_identity};
pub use make::init;
pub use ports::Ports;

/// The name of the file that makes a directory a cluster's.
pub const CLUSTER_FILE: &str = "cluster.json";

/// The form of `cluster.json` that this version writes.
const FORMAT: u32 = 1;

/// Who this agent is, kept in `identity.json` beside its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster to which the data belongs.
    pub cluster_id: uuid::Uuid,
    /// The node's number.
    pub node: NodeId,
    /// The data's own identity: another one under the same number is another node.
    pub uuid: uuid::Uuid,
    /// The life of the data.
    pub incarnation: Incarnation,
}

/// What to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's directory, absolute.
    pub data: PathBuf,
    /// How many nodes, 1 to 16.
    pub nodes: u16,
    /// `None` for the default ports.
    pub port_base: Option<u16>,
    /// Where the split endpoint is; `None` for none.
    pub split_port: Option<u16>,
    /// Where PostgreSQL's programs are; `None` to look for them.
    pub bin_dir: Option<PathBuf>,
    /// The password of the role `synapsedb`; `None` for the development default.
    pub password: Option<String>,
}

/// A cluster on one machine, as `cluster.json` has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// The form of the file.
    format: u32,
    /// Whether everything named here has been made.
    complete: bool,
    /// The cluster's identity.
    pub cluster_id: uuid::Uuid,
    /// A name for people.
    pub name: String,
    /// Where reads go.
    pub read_port: u16,
    /// Where writes go.
    pub write_port: u16,
    /// Where the split endpoint is, if the cluster was made with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_port: Option<u16>,
    /// The base the ports were counted from; `None` for the default ports.
    pub port_base: Option<u16>,
    /// The programs asked for; `None` to look for them.
    pub bin_dir: Option<PathBuf>,
    /// Whether the role has the development default password.
    pub default_password: bool,
    /// The SCRAM verifier of the role's password, the same on all nodes.
    role_verifier: String,
    /// The nodes, node 1 first.
    pub nodes: Vec<Node>,
    /// The cluster's directory: where the file was found.
    #[serde(skip)]
    pub data: PathBuf,
}

/// A node of a [`Cluster`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    /// 1 to 16.
    pub id: NodeId,
    /// The data's own identity.
    pub uuid: uuid::Uuid,
    /// Its ports, all on 127.0.0.1.
    pub ports: Ports,
    /// Where its PostgreSQL server makes its unix socket.
    pub socket_dir: PathBuf,
}

impl Cluster {
    /// The directory of a node.
    pub fn node_dir(&self, node: NodeId) -> PathBuf {
        self.data.join(format!("node-{node}"))
    }

    /// A node by its number.
    ///
    /// # Errors
    /// When the cluster has no such node; the text names those it has.
    pub fn node(&self, number: u16) -> Result<&Node> {
        self.nodes.iter().find(|node| node.id.get() == number).with_context(|| {
            format!(
                "the cluster in {} has the nodes {}",
                self.data.display(),
                self.nodes.iter().map(|node| node.id.to_string()).collect::<Vec<_>>().join(", ")
            )
        })
    }

    /// The pid and lock file of the supervisor.
    pub fn supervisor_pid_file(&self) -> PathBuf {
        self.data.join("supervisor.pid")
    }

    /// The layout with every path spelled out, for tools.
    pub fn to_json(&self) -> serde_json::Value {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                let dir = self.node_dir(node.id);
                serde_json::json!({
                    "id": node.id, "uuid": node.uuid, "ports": node.ports, "dir": dir,
                    "socket_dir": node.socket_dir, "config": dir.join("agent.toml"),
                    "agent_log": dir.join("agent.log"), "agent_pid": dir.join("agent.pid"),
                    "postgres_log": dir.join("postgres.log"), "pgdata": dir.join("pgdata"),
                    "agent_password_file": dir.join("secrets/agent.password"),
                })
            })
            .collect();
        serde_json::json!({
            "data": self.data, "cluster_id": self.cluster_id, "name": self.name,
            "read_port": self.read_port, "write_port": self.write_port, "split_port": self.split_port,
            "port_base": self.port_base,
            "database": "synapsedb", "role": "synapsedb", "default_password": self.default_password,
            "nodes": nodes,
        })
    }
}

/// Reads the cluster of a directory; `None` when there is none.
///
/// # Errors
/// When `cluster.json` cannot be read or was not written by this or an earlier version.
pub fn find(data: &Path) -> Result<Option<Cluster>> {
    let path = data.join(CLUSTER_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| {
                format!("{} cannot be read; run as the user who made the cluster", path.display())
            });
        }
    };
    let mut cluster: Cluster = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a SynapseDB cluster file", path.display()))?;
    if cluster.format != FORMAT {
        bail!(
            "{} has the form {}, this version knows {FORMAT}; nothing was changed, use the version that made it",
            path.display(),
            cluster.format
        );
    }
    cluster.data = data.to_owned();
    Ok(Some(cluster))
}

/// Reads the complete cluster of a directory.
///
/// # Errors
/// When there is none, or its making was interrupted, or a node's directory is gone.
pub fn load(data: &Path) -> Result<Cluster> {
    let cluster = find(data)?.with_context(|| {
        format!("there is no cluster in {}; `synapsedb up --data DIR` makes one", data.display())
    })?;
    if !cluster.complete {
        bail!(
            "the making of the cluster in {} was interrupted; `synapsedb up` or `synapsedb init` finishes it",
            data.display()
        );
    }
    for node in &cluster.nodes {
        let dir = cluster.node_dir(node.id);
        if !dir.join("identity.json").is_file() {
            bail!(
                "{} is gone or damaged (no identity.json), but the cluster in {} counts on node {}; nothing was \
                 changed. Put the directory back, or start afresh with `synapsedb down --destroy`",
                dir.display(),
                data.display(),
                node.id
            );
        }
    }
    Ok(cluster)
}

/// Reads a node's `identity.json`, or writes `fresh` when nothing of a node is in `dir` yet.
///
/// # Errors
/// When the file is damaged, belongs to another cluster or node, or is missing beside existing data: a node that lost
/// its identity must not join as if it were new. Nothing is changed then.
pub fn identity_of(dir: &Path, fresh: &Identity) -> Result<Identity> {
    let path = dir.join("identity.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            for state in ["raft", "spool", "pgdata"] {
                if dir.join(state).exists() {
                    bail!(
                        "{} is missing, but {} is there: this node lost its identity; nothing was changed. Put the \
                         file back, or empty the directory to begin a new node",
                        path.display(),
                        dir.join(state).display()
                    );
                }
            }
            std::fs::create_dir_all(dir)
                .with_context(|| format!("cannot make {}", dir.display()))?;
            files::write_json(&path, fresh, 0o644)?;
            return Ok(fresh.clone());
        }
        Err(error) => {
            return Err(error).with_context(|| format!("{} cannot be read", path.display()));
        }
    };
    let known: Identity = serde_json::from_str(&text).with_context(|| {
        format!("{} is damaged; nothing was changed, put back a copy", path.display())
    })?;
    if known.cluster_id != fresh.cluster_id || known.node != fresh.node {
        bail!(
            "{} says node {} of cluster {}, the configuration says node {} of cluster {}; nothing was changed, \
             correct node.id, cluster.id or node.data_dir",
            path.display(),
            known.node,
            known.cluster_id,
            fresh.node,
            fresh.cluster_id
        );
    }
    Ok(known)
}

#[cfg(test)]
mod tests;
