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
    let mut text = format!(
        r#"# The agent of node {id}. Every key that is not here has its default; `synapsedb config check` this file.

[cluster]
id = "{cluster_id}"
name = "{name}"

[node]
id = {id}
data_dir = {data_dir}

[postgres]
mode = "managed"
{bin_dir}data_dir = {pgdata}
socket_dir = {socket_dir}
listen = "127.0.0.1"
port = {postgres}
cluster_name = "{name}-{id}"
password_file = {password_file}
role_verifier_file = {verifier_file}
log_file = {log_file}

[peers]
listen = "127.0.0.1:{peers}"

[tls]
ca = {ca}
certificate = {certificate}
key = {key}
gossip_key = {gossip_key}

[raft]
dir = {raft_dir}

[router]
read_listen = "127.0.0.1:{read}"
write_listen = "127.0.0.1:{write}"

[http]
raft = "127.0.0.1:{raft}"
gossip = "127.0.0.1:{gossip}"
deadlock = "127.0.0.1:{deadlock}"
backup = "127.0.0.1:{backup}"
"#,
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
        raft = ports.raft,
        gossip = ports.gossip,
        deadlock = ports.deadlock,
        backup = ports.backup,
    );
    for member in &cluster.nodes {
        let Node { id, ports, .. } = member;
        let _ = write!(
            text,
            "\n[[member]]\nid = {id}\npeers = \"127.0.0.1:{}\"\npostgres = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{}\"\n",
            ports.peers, ports.postgres, ports.raft
        );
    }
    text
}
