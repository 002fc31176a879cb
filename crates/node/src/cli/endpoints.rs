//! Where a cluster on this machine is reached, with a line to try for each.

use crate::config::AgentConfig;
use crate::layout::Cluster;

/// An URL of the database through a port of this machine.
pub(super) fn url(cluster: &Cluster, port: u16) -> String {
    let password = if cluster.default_password { ":synapsedb" } else { "" };
    format!("postgresql://synapsedb{password}@127.0.0.1:{port}/synapsedb")
}

/// The list that `up` ends with.
pub(super) fn list(cluster: &Cluster) -> String {
    let mut lines = Vec::new();
    let mut row = |what: &str, command: String| lines.push(format!("  {what:<22}{command}"));
    let psql = |port| format!("psql \"{}\"", url(cluster, port));
    row("read (any node)", psql(cluster.read_port));
    row("write (the primary)", psql(cluster.write_port));
    if let Some(port) = split_port(cluster) {
        row("split (both)", psql(port));
    }
    for node in &cluster.nodes {
        row(&format!("node {}", node.id), psql(node.ports.postgres));
    }
    if let Some(first) = cluster.nodes.first() {
        row("cluster state", format!("curl http://127.0.0.1:{}/status", first.ports.raft));
    }
    for node in &cluster.nodes {
        let (raft, gossip) = (node.ports.raft, node.ports.gossip);
        row(
            &format!("API of node {}", node.id),
            format!(
                "curl http://127.0.0.1:{raft}/raft/status http://127.0.0.1:{gossip}/gossip/members"
            ),
        );
    }
    let stats = crate::layout::ports::stats(cluster.port_base);
    row("router", format!("curl 'http://127.0.0.1:{stats}/stats;csv'"));
    if cluster.default_password {
        lines.push(
            "  The password is the development default; nothing listens beyond this machine. POSTGRES_PASSWORD sets \
             another for a new cluster."
                .to_owned(),
        );
    }
    lines.join("\n")
}

/// The port of the split endpoint, if the first node's configuration switches it on.
pub(super) fn split_port(cluster: &Cluster) -> Option<u16> {
    let first = cluster.nodes.first()?;
    let config = AgentConfig::load(&cluster.node_dir(first.id).join("agent.toml")).ok()?;
    config.router.split_listen.map(|address| address.port())
}
