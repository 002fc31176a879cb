//! Which ports a cluster on one machine uses, and who holds one that is taken.

use std::fmt;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::NodeId;

/// The ports of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// The PostgreSQL server.
    pub postgres: u16,
    /// HTTP: raft.
    pub raft: u16,
    /// HTTP: gossip.
    pub gossip: u16,
    /// HTTP: deadlock.
    pub deadlock: u16,
    /// HTTP: backup.
    pub backup: u16,
    /// Agents among each other, TCP and UDP.
    pub peers: u16,
}

/// The ports of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The read endpoint.
    pub read: u16,
    /// The write endpoint.
    pub write: u16,
    /// The split endpoint, if there is one.
    pub split: Option<u16>,
    /// The router's statistics, by HTTP.
    pub stats: u16,
    /// Those of the nodes, node 1 first.
    pub nodes: Vec<(NodeId, Ports)>,
}

/// How far above the base the last port of a plan may lie.
const SPAN: u16 = 80 + 4 * NodeId::MAX;

/// The ports of `nodes` nodes: the well-known ones, or a block that begins at `base`.
///
/// # Errors
/// When the number of nodes or the base is out of range.
pub fn plan(nodes: u16, base: Option<u16>) -> Result<Plan> {
    if !(1..=NodeId::MAX).contains(&nodes) {
        bail!("--nodes is {nodes}; allowed: 1 to {}", NodeId::MAX);
    }
    if let Some(base) = base.filter(|base| !(1024..=u16::MAX - SPAN).contains(base)) {
        bail!("--port-base is {base}; allowed: 1024 to {}", u16::MAX - SPAN);
    }
    let (read, write, peers, postgres, http) = match base {
        None => (5001, 5002, 7401, 5432, 8080),
        Some(base) => (base + 1, base + 2, base + 10, base + 32, base + 80),
    };
    let node = |id: NodeId| {
        let i = id.offset();
        let http = http + 4 * i;
        let ports = Ports {
            postgres: postgres + i,
            raft: http,
            gossip: http + 1,
            deadlock: http + 2,
            backup: http + 3,
            peers: peers + i,
        };
        (id, ports)
    };
    Ok(Plan {
        read,
        write,
        split: None,
        stats: stats(base),
        nodes: (1..=nodes).filter_map(NodeId::new).map(node).collect(),
    })
}

/// The port of the router's statistics, which the agents share as they do the endpoints.
pub fn stats(base: Option<u16>) -> u16 {
    base.map_or(8404, |base| base + 3)
}

/// A port that another process holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The port.
    pub port: u16,
    /// What it is needed for.
    pub purpose: String,
    /// Who holds it, if that can be seen: pid and name.
    pub holder: Option<(u32, String)>,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {} ({}) is taken by ", self.port, self.purpose)?;
        match &self.holder {
            Some((pid, name)) => write!(f, "process {pid} ({name})"),
            None => f.write_str("a process that this user cannot see; try as root: ss -lntup"),
        }
    }
}

impl Plan {
    /// Every port with what it is for, in ascending order of the nodes.
    pub fn all(&self) -> Vec<(u16, String)> {
        let mut all = vec![
            (self.read, "the read endpoint".to_owned()),
            (self.write, "the write endpoint".to_owned()),
            (self.stats, "HTTP, statistics".to_owned()),
        ];
        all.extend(self.split.map(|port| (port, "the split endpoint".to_owned())));
        for (id, ports) in &self.nodes {
            for (port, what) in [
                (ports.postgres, "PostgreSQL"),
                (ports.raft, "HTTP, raft"),
                (ports.gossip, "HTTP, gossip"),
                (ports.deadlock, "HTTP, deadlock"),
                (ports.backup, "HTTP, backup"),
                (ports.peers, "the agents among each other"),
            ] {
                all.push((port, format!("{what}, of node {id}")));
            }
        }
        all
    }

    /// Whether the split endpoint's port has another purpose, too.
    pub fn used_twice(&self) -> Option<(u16, String)> {
        let others = Self { split: None, ..self.clone() };
        others.all().into_iter().find(|(port, _)| Some(*port) == self.split)
    }

    /// The ports that are taken, apart from those of the nodes in `running`.
    pub fn taken(&self, running: &[NodeId]) -> Vec<Taken> {
        let ours = |port: u16| {
            let of_node = |ports: &Ports| {
                let Ports { postgres, raft, gossip, deadlock, backup, peers } = *ports;
                [postgres, raft, gossip, deadlock, backup, peers].contains(&port)
            };
            let of_endpoint =
                [self.read, self.write, self.stats].contains(&port) || self.split == Some(port);
            (of_endpoint && !running.is_empty())
                || self.nodes.iter().any(|(id, ports)| running.contains(id) && of_node(ports))
        };
        let wanted = self.all().into_iter().filter(|(port, _)| !ours(*port) && !is_free(*port));
        wanted.map(|(port, purpose)| Taken { port, purpose, holder: holder(port) }).collect()
    }
}

/// Whether 127.0.0.1 with this port can be listened on, TCP and UDP.
fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The process that listens on a port: pid and name, if it can be seen.
pub fn holder(port: u16) -> Option<(u32, String)> {
    let inodes: Vec<String> = ["tcp", "tcp6", "udp", "udp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(format!("/proc/net/{table}")).ok())
        .flat_map(|text| listeners(&text, port))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        holds(&process.path(), &inodes).then(|| {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            (pid, name.trim().to_owned())
        })
    })
}

/// The socket inodes in a table of `/proc/net` that are bound to a port: of TCP those that listen, of UDP all.
fn listeners(table: &str, port: u16) -> Vec<String> {
    /// `TCP_LISTEN` and, for UDP, `TCP_CLOSE`: the state of a bound datagram socket.
    const STATES: [&str; 2] = ["0A", "07"];
    let row = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let local = u16::from_str_radix(columns.get(1)?.rsplit_once(':')?.1, 16).ok()?;
        (local == port && STATES.contains(columns.get(3)?))
            .then(|| columns.get(9).map(|inode| (*inode).to_owned()))?
    };
    table.lines().skip(1).filter_map(row).collect()
}

fn holds(process: &Path, inodes: &[String]) -> bool {
    let Ok(files) = std::fs::read_dir(process.join("fd")) else { return false };
    files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok()).any(|target| {
        let target = target.to_string_lossy();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        inode.is_some_and(|inode| inodes.iter().any(|known| known == inode))
    })
}
