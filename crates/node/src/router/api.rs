//! The router's status as JSON: part of `GET /status`.

use serde::Serialize;
use utoipa::ToSchema;

use super::{Endpoint, PoolMode};

/// What the router of this agent does now, and what it did since it started.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Status {
    /// Where the read endpoint listens, `host:port`.
    pub read_listen: String,
    /// Where the write endpoint listens, `host:port`.
    pub write_listen: String,
    /// Where the split endpoint listens, `host:port`; not there if it is not switched on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_listen: Option<String>,
    /// Whether clients may use TLS.
    pub tls: bool,
    /// The node that writes go to; null while there is none.
    pub primary: Option<u16>,
    /// When a client gets a server connection, and for how long.
    pub pool_mode: PoolMode,
    /// Clients that hold one of the `clients_max` places.
    pub clients: usize,
    /// The places there are.
    pub clients_max: usize,
    /// The clients by endpoint.
    pub endpoints: Vec<EndpointClients>,
    /// The server connections by role, database and node.
    pub pools: Vec<Pool>,
    /// Whether the agent is stopping and takes no new session.
    pub draining: bool,
    /// Counters since the agent started.
    pub totals: Totals,
}

/// The clients of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct EndpointClients {
    /// Where they came in.
    pub endpoint: Endpoint,
    /// How many.
    pub clients: usize,
    /// Those of them that have a server connection now.
    pub active: usize,
    /// Those of them that wait for one.
    pub waiting: usize,
}

/// The server connections of one role in one database on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Pool {
    /// The database.
    pub database: String,
    /// The role.
    pub user: String,
    /// The node.
    pub node: u16,
    /// Connections that clients have now.
    pub active: usize,
    /// Connections that nobody has now.
    pub idle: usize,
    /// Connections that are being opened.
    pub connecting: usize,
    /// Clients that wait for one.
    pub waiting: usize,
}

/// Counters since the agent started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Totals {
    /// Sessions that began, read endpoint.
    pub read_sessions: u64,
    /// Sessions that began, write endpoint.
    pub write_sessions: u64,
    /// Sessions that began, split endpoint.
    pub split_sessions: u64,
    /// Connections that were refused, for whatever reason.
    pub refused: u64,
    /// Attempts to reach a node's server that failed.
    pub connect_failures: u64,
    /// Sessions that were ended because the primary changed.
    pub ended_primary_changed: u64,
    /// Server connections that broke while a client had them.
    pub ended_server_lost: u64,
    /// Cancel requests passed on.
    pub cancels: u64,
}
