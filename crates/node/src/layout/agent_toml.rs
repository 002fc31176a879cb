//! The text of a node's `agent.toml`.

use std::fmt::Write as _;
use std::path::Path;

use super::{Cluster, Node};

/// The configuration of one node of a cluster on one machine: only what differs from the defaults.
pub(super) fn text(cluster: &Cluster, node: &Node) -> String {
    let dir = cluster.node_dir(node.id);
    let quoted = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
    let ports = &node.ports;
    let bin_dir = cluster
        .bin_dir
        .as_deref()
        .map_or(String::new(), |dir| format!("bin_dir = {}\n", quoted(dir)));
    let split = cluster
        .split_port
        .map_or(String::new(), |port| format!("split_listen = \"127.0.0.1:{port}\"\n"));
    let mut text = format!(
        include_str!("agent.toml.in"),
        bin_dir = bin_dir,
        id = node.id,
        cluster_id = cluster.cluster_id,
        name = cluster.name,
        data_dir = quoted(&dir),
        pgdata = quoted(&dir.join("pgdata")),
        socket_dir = quoted(&node.socket_dir),
        postgres = ports.postgres,
        password_file = quoted(&dir.join("secrets/agent.password")),
        verifier_file = quoted(&dir.join("secrets/role.verifier")),
        log_file = quoted(&dir.join("postgres.log")),
        peers = ports.peers,
        ca = quoted(&dir.join("tls/ca.crt")),
        certificate = quoted(&dir.join("tls/node.crt")),
        key = quoted(&dir.join("tls/node.key")),
        gossip_key = quoted(&dir.join("tls/gossip.key")),
        raft_dir = quoted(&dir.join("raft")),
        read = cluster.read_port,
        write = cluster.write_port,
        split = split,
        raft = ports.raft,
        gossip = ports.gossip,
        deadlock = ports.deadlock,
        backup = ports.backup,
        stats = super::ports::stats(cluster.port_base),
    );
    members(&mut text, cluster);
    text
}

/// One table per node, this one included.
fn members(text: &mut String, cluster: &Cluster) {
    for member in &cluster.nodes {
        let Node { id, ports, .. } = member;
        let _ = write!(
            text,
            "\n[[member]]\nid = {id}\npeers = \"127.0.0.1:{}\"\npostgres = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{}\"\n",
            ports.peers, ports.postgres, ports.raft
        );
    }
}
