//! The cluster tests: real agents, real PostgreSQL servers, three nodes; one module per component or promise.
//!
//! Tests that only write and look share one cluster; tests that break something have one of their own.
#![allow(clippy::unwrap_used)]

mod attached;
mod bad_input;
mod causality;
mod chaos;
mod cli;
mod configuration;
mod conflicts;
mod convergence;
mod corruption;
mod ddl;
mod disk;
mod doors;
mod drivers;
mod durability;
mod gossip;
mod groups;
mod guide;
mod http;
mod incarnation;
mod join;
mod lanes;
mod large;
mod listening;
mod not_replicated;
mod outcome;
mod policies;
mod raft;
mod repl;
mod routed;
mod router;
mod router_transparency;
mod rows;
mod runs;
mod sequences;
mod split;
mod stale_reads;
mod tls;
mod values;
mod verify;

use std::time::Duration;

use synapsedb_dev::client::Server;
use synapsedb_dev::shared::Borrowed;
use synapsedb_dev::{Binary, Cluster, Node, Shared};

/// How long a change of health may take to be seen.
const NOTICED: Duration = Duration::from_secs(30);

static CLUSTER: Shared = Shared::new();

/// The binary of this build.
fn binary() -> Binary {
    synapsedb_dev::binary(env!("CARGO_BIN_EXE_synapsedb"))
}

/// The cluster that all tests share which break nothing.
async fn shared() -> Borrowed {
    CLUSTER.configured(binary(), Cluster::switch_split_on).await
}

/// A cluster of a test's own.
async fn cluster(nodes: u16) -> Cluster {
    binary().cluster(nodes).await
}

/// A node's server with the role of its agent.
fn agent(node: &Node) -> Server {
    let password = std::fs::read_to_string(node.folder().join("secrets/agent.password")).unwrap();
    let mut server = node.server().clone();
    server.user = "synapsedb_agent".to_owned();
    server.password = password.trim().to_owned();
    server
}

/// Says why a test shows nothing on this machine.
fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}
