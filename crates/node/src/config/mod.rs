//! The agent's configuration: one TOML file, nested by component, with overrides from the environment and errors that
//! name file, line, key and what is allowed.
//!
//! Every key has a default except those that say who the agent is. An environment variable
//! `SYNAPSEDB_<SECTION>__<KEY>` (for example `SYNAPSEDB_POSTGRES__PORT=5433`) replaces the key of the file.

mod check;
mod document;
mod problem;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use synapsedb_core::ids::{Incarnation, NodeId};

pub use problem::{Problem, Problems};

use crate::layout::Identity;
use crate::peers::PeerAddress;
use crate::{failover, gossip, http, peers, postgres, raft, replication, router, tls};

/// What an agent is told: who it is, who the others are, and the limits and addresses of every component.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// The cluster.
    pub cluster: Cluster,
    /// This node.
    pub node: Node,
    /// All nodes, this one included: one `[[member]]` table each.
    pub member: Vec<Member>,
    /// The PostgreSQL server beside the agent.
    pub postgres: postgres::Config,
    /// Connections between agents.
    pub peers: peers::Config,
    /// Certificates.
    pub tls: tls::Config,
    /// Failure detection.
    pub gossip: gossip::Config,
    /// Consensus.
    pub raft: raft::Config,
    /// Rows between the nodes.
    pub replication: replication::Config,
    /// The read and the write endpoint.
    pub router: router::Config,
    /// Choice of the primary.
    pub failover: failover::Config,
    /// The HTTP listeners.
    pub http: http::Config,
}

/// What a section, or the whole, says by its keys.
pub(crate) fn keys(section: &impl Serialize) -> serde_json::Map<String, serde_json::Value> {
    match serde_json::to_value(section) {
        Ok(serde_json::Value::Object(keys)) => keys,
        Ok(_) | Err(_) => serde_json::Map::new(),
    }
}

/// `[cluster]`: which cluster this is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// The same on all nodes; required.
    pub id: uuid::Uuid,
    /// A name for people.
    pub name: String,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { id: uuid::Uuid::nil(), name: "synapsedb".to_owned() }
    }
}

/// `[node]`: which node this is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// 1 to 16; required.
    pub id: u16,
    /// The directory that holds identity, log, spool and (managed) the database; required.
    pub data_dir: PathBuf,
    /// How long the agent waits for its components to stop, in milliseconds.
    pub stop_timeout_ms: u64,
}

impl Default for Node {
    fn default() -> Self {
        Self { id: 0, data_dir: PathBuf::new(), stop_timeout_ms: 45_000 }
    }
}

/// `[[member]]`: where a node is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Member {
    /// 1 to 16; required.
    pub id: u16,
    /// `host:port` of its agent, TCP for calls and streams, UDP for gossip; required.
    pub peers: String,
    /// `host:port` of its PostgreSQL server, for routers; required.
    pub postgres: String,
    /// `host:port` of its first HTTP listener; required.
    pub http: String,
}

impl AgentConfig {
    /// Reads and checks a file, with the overrides of this process's environment.
    ///
    /// # Errors
    /// All problems found, each with its place. Nothing is changed.
    pub fn load(file: &Path) -> Result<Self, Problems> {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| {
            Problems::one(&name, format!("cannot be read: {error}; name an existing file"))
        })?;
        let environment: Vec<_> = std::env::vars()
            .filter(|(key, _)| key.starts_with(document::PREFIX) && key.contains("__"))
            .collect();
        let config = Self::parse(&name, &text, &environment)?;
        let mut problems = Problems::new(&name);
        check::public_addresses(&config, &mut problems);
        problems.into_result(config)
    }

    /// How the router reads `file` again: what it says of the router, and the sections that say something else than
    /// this configuration, which needs another start.
    pub fn read_again(&self, file: PathBuf) -> router::ReadAgain {
        let now = keys(self);
        Box::new(move || {
            let read = Self::load(&file)?;
            let others = keys(&read).into_iter();
            let others =
                others.filter(|(name, said)| name != "router" && now.get(name) != Some(said));
            Ok((read.router, others.map(|(name, _)| name).collect()))
        })
    }

    /// Parses and checks the text of a file called `name`, overridden by `environment` (names with the prefix
    /// `SYNAPSEDB_` and `__` between section and key). Reads nothing else.
    ///
    /// # Errors
    /// All problems found, each with its place.
    pub fn parse(
        name: &str,
        text: &str,
        environment: &[(String, String)],
    ) -> Result<Self, Problems> {
        let mut problems = Problems::new(name);
        let variables = document::Variable::place_all(text.len(), environment);
        let Some((mut config, document)) = document::read(text, &variables, &mut problems) else {
            return Err(problems);
        };
        check::required(&document, &mut problems);
        check::ranges(&config, &document, &mut problems);
        problems.sort();
        config.resolve();
        problems.into_result(config)
    }

    /// Paths that are not given lie in the node's directory.
    fn resolve(&mut self) {
        let dir = &self.node.data_dir;
        let own = |path: &mut PathBuf, name: &str| {
            if path.as_os_str().is_empty() {
                *path = dir.join(name);
            }
        };
        own(&mut self.replication.spool_dir, "spool");
        own(&mut self.postgres.log_file, "postgres.log");
        if self.postgres.mode == postgres::Mode::Managed {
            own(&mut self.postgres.data_dir, "pgdata");
            own(&mut self.postgres.socket_dir, "run");
            own(&mut self.postgres.password_file, "secrets/agent.password");
        }
    }

    /// This node's number, checked when the file was read.
    pub fn node_id(&self) -> Option<NodeId> {
        NodeId::new(self.node.id)
    }

    /// Where the agents of all members are reached, this one included.
    pub fn peer_addresses(&self) -> Vec<PeerAddress> {
        self.member
            .iter()
            .filter_map(|member| {
                let node = NodeId::new(member.id)?;
                Some(PeerAddress { node, address: member.peers.clone() })
            })
            .collect()
    }

    /// The member table of this node.
    pub fn own_member(&self) -> Option<&Member> {
        self.member.iter().find(|member| member.id == self.node.id)
    }

    /// Reads `identity.json` of the node's directory, or makes a new one when neither it nor any other state of a
    /// node is there.
    ///
    /// # Errors
    /// When the file cannot be read or written, or belongs to another cluster or node: then nothing is changed.
    pub fn identity(&self) -> anyhow::Result<Identity> {
        let node = self.node_id().ok_or_else(|| anyhow::anyhow!("node.id is not set"))?;
        let fresh = Identity {
            cluster_id: self.cluster.id,
            node,
            uuid: uuid::Uuid::new_v4(),
            incarnation: Incarnation::FIRST,
        };
        crate::layout::identity_of(&self.node.data_dir, &fresh)
    }
}

#[cfg(test)]
mod tests;
