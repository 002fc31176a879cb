//! The agent's HTTP API: five ports, one for each component that has routes, and the common routes on each of them.
//!
//! **Runs on:** every node. **Invariant:** every answer that is not a success is one JSON object `{code, message}`,
//! whoever refused the request; no request can take more than its limits or stop the agent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use crate::layout::Identity;

pub mod api;
mod guard;
mod listen;
mod openapi;
pub mod planned;
mod task;
#[cfg(test)]
mod tests;

pub use api::ReadyCheck;
pub use task::Task;

/// The addresses and limits of the HTTP API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where `/raft/*` is served.
    pub raft: SocketAddr,
    /// Where `/gossip/*` is served.
    pub gossip: SocketAddr,
    /// Where `/deadlock/*` is served.
    pub deadlock: SocketAddr,
    /// Where `/backup/*` is served.
    pub backup: SocketAddr,
    /// Where `/stats` is served, the router's statistics. The agents of one machine share the port.
    pub stats: SocketAddr,
    /// Connections at once on each port; more wait in the kernel.
    pub connections_max: usize,
    /// From a complete request head to the answer.
    pub request_timeout_ms: u64,
    /// How long a connection may take from one answer to the next, idle or sending its request.
    pub idle_timeout_ms: u64,
    /// The largest request body.
    pub body_bytes_max: usize,
    /// The largest request head: address and headers.
    pub header_bytes_max: usize,
    /// How long requests may go on when the agent stops.
    pub drain_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            raft: loopback(8080),
            gossip: loopback(8081),
            deadlock: loopback(8082),
            backup: loopback(8083),
            stats: loopback(8404),
            connections_max: 128,
            request_timeout_ms: 10_000,
            idle_timeout_ms: 60_000,
            body_bytes_max: 1024 * 1024,
            header_bytes_max: 16 * 1024,
            drain_ms: 1_000,
        }
    }
}

impl Config {
    /// The address of a port.
    pub fn address(&self, port: Port) -> SocketAddr {
        match port {
            Port::Raft => self.raft,
            Port::Gossip => self.gossip,
            Port::Deadlock => self.deadlock,
            Port::Backup => self.backup,
            Port::Stats => self.stats,
        }
    }
}

/// One of the five ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// `/raft/*`
    Raft,
    /// `/gossip/*`
    Gossip,
    /// `/deadlock/*`
    Deadlock,
    /// `/backup/*`
    Backup,
    /// `/stats`
    Stats,
}

impl Port {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Raft, Self::Gossip, Self::Deadlock, Self::Backup, Self::Stats];

    /// The component's name, which is the first segment of its routes and its key in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raft => "raft",
            Self::Gossip => "gossip",
            Self::Deadlock => "deadlock",
            Self::Backup => "backup",
            Self::Stats => "stats",
        }
    }

    /// The port that serves a path, if it is one of a component.
    pub fn of_path(path: &str) -> Option<Self> {
        let first = path.strip_prefix('/')?.split(['/', ';']).next()?;
        Self::ALL.into_iter().find(|port| port.name() == first)
    }
}

/// Tells now whether and why (not) the agent is ready; one check per thing it needs.
pub type Readiness = Arc<dyn Fn() -> Vec<ReadyCheck> + Send + Sync>;
/// Tells a component's status now.
pub type StatusSource = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What is served.
pub struct Parts {
    /// Who this agent is.
    pub identity: Identity,
    /// The routes of the components, each on its port. `/deadlock` and `/backup` are answered here as yet.
    pub routes: Vec<(Port, axum::Router)>,
    /// OpenAPI documents of those routes; they take precedence over the general description of a route here.
    pub documents: Vec<utoipa::openapi::OpenApi>,
    /// What `/metrics` shows.
    pub registry: Arc<Registry>,
    /// What `/ready` asks.
    pub ready: Readiness,
    /// What `/status` shows, in this order.
    pub status: Vec<(&'static str, StatusSource)>,
}

/// Where the API is.
#[derive(Clone, Debug)]
pub struct Handle {
    addresses: BTreeMap<Port, SocketAddr>,
}

impl Handle {
    /// Where a port really is (another than configured if that was port 0).
    pub fn address(&self, port: Port) -> SocketAddr {
        // Every port is bound in `new`, so the fallback is never taken; it spares a panic.
        self.addresses.get(&port).copied().unwrap_or_else(|| Config::default().address(port))
    }
}

/// What the handlers share.
struct Served {
    identity: Identity,
    started: SystemTime,
    registry: Arc<Registry>,
    ready: Readiness,
    status: Vec<(&'static str, StatusSource)>,
    openapi: String,
    addresses: BTreeMap<Port, SocketAddr>,
}

/// Binds the five ports.
///
/// # Errors
/// A port cannot be bound, mostly because another program has it; names the port's component, its address and what
/// to do. Must be called within a tokio runtime.
pub fn new(config: Config, parts: Parts) -> Result<(Handle, Task)> {
    let mut listeners = Vec::new();
    let mut addresses = BTreeMap::new();
    for port in Port::ALL {
        let listener = listen::bind(port, config.address(port))?;
        let address =
            listener.local_addr().with_context(|| format!("http: port {port:?} has no address"))?;
        addresses.insert(port, address);
        listeners.push((port, listener));
    }
    let document = openapi::document(parts.documents, &addresses);
    let served = Arc::new(Served {
        identity: parts.identity,
        started: SystemTime::now(),
        registry: parts.registry,
        ready: parts.ready,
        status: parts.status,
        openapi: document.to_json().context("http: the OpenAPI document cannot be written")?,
        addresses: addresses.clone(),
    });
    let mut routes = parts.routes;
    routes.push((Port::Deadlock, planned::deadlock_routes()));
    routes.push((Port::Backup, planned::backup_routes()));
    let servers = listeners
        .into_iter()
        .map(|(port, listener)| {
            let own = routes.iter().filter(|(of, _)| *of == port).map(|(_, routes)| routes.clone());
            let router = own.fold(api::common_routes(port, &served), axum::Router::merge);
            (listener, guard::around(router, &config))
        })
        .collect();
    Ok((Handle { addresses }, Task::new(config, servers)))
}
