//! The router's status as JSON: part of `GET /status`.

use serde::Serialize;
use utoipa::ToSchema;

use super::Endpoint;

/// What the router of this agent does now, and what it did since it started.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Status {
    /// Where the read endpoint listens, `host:port`.
    pub read_listen: String,
    /// Where the write endpoint listens, `host:port`.
    pub write_listen: String,
    /// Whether clients may use TLS.
    pub tls: bool,
    /// The node that write sessions go to; null while there is none.
    pub primary: Option<u16>,
    /// Open sessions by endpoint and node; pairs without a session are left out.
    pub sessions: Vec<Sessions>,
    /// Clients that hold one of the `clients_max` places.
    pub clients: usize,
    /// The places there are.
    pub clients_max: usize,
    /// Whether the agent is stopping and takes no new session.
    pub draining: bool,
    /// Counters since the agent started.
    pub totals: Totals,
}

/// The open sessions of one endpoint on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Sessions {
    /// Where the clients came in.
    pub endpoint: Endpoint,
    /// The node that serves them.
    pub node: u16,
    /// How many.
    pub sessions: u64,
}

/// Counters since the agent started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Totals {
    /// Sessions that reached a server, read endpoint.
    pub read_sessions: u64,
    /// Sessions that reached a server, write endpoint.
    pub write_sessions: u64,
    /// Connections that were refused, for whatever reason.
    pub refused: u64,
    /// Attempts to reach a node's server that failed.
    pub connect_failures: u64,
    /// Sessions that were ended because the primary changed.
    pub ended_primary_changed: u64,
    /// Sessions whose server connection broke.
    pub ended_server_lost: u64,
    /// Cancel requests passed on.
    pub cancels: u64,
}
