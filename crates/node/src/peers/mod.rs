//! The one way between agents: mutually authenticated TLS connections for calls and for streams.
//!
//! **Runs on:** every node. **Invariant:** not one byte of a peer is read by anyone else before the peer has proved
//! with a certificate of this cluster's CA which node it is.
//!
//! Calls to one peer share one connection and are told apart by numbers, so a slow call delays no other
//! ([`link`] dials and calls, [`serve`] answers). A stream is a connection of its own. Both begin with a greeting
//! ([`hello`]) in which cluster, node and service are checked.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use prometheus_client::registry::Registry;
use synapsedb_core::ids::{Incarnation, NodeId};
use tokio_util::sync::CancellationToken;

use crate::layout::Identity;
use crate::tls;

mod dial;
mod frame;
mod hello;
mod link;
mod metrics;
mod serve;
#[cfg(test)]
pub(crate) mod tests;

pub use serve::Task;

/// The addresses and limits of the connections between agents.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where this agent listens (`host:port`): TCP here, and gossip by UDP on the same number.
    pub listen: String,
    /// How long a call may take, the dialling included.
    pub call_timeout_ms: u64,
    /// How long the TCP connection may take.
    pub connect_timeout_ms: u64,
    /// How long the TLS handshake and the greeting may take, together, on either side.
    pub handshake_timeout_ms: u64,
    /// The longest call or answer.
    pub frame_bytes_max: usize,
    /// How many accepted connections may be open at once.
    pub connections_max: usize,
    /// How many accepted connections may be in their handshake at once.
    pub handshakes_max: usize,
    /// How many calls of one peer are worked on at once; more are answered with an error.
    pub calls_in_flight_max: usize,
    /// How long after the first failure a peer is dialled again.
    pub backoff_min_ms: u64,
    /// The longest time between two attempts to dial a peer.
    pub backoff_max_ms: u64,
    /// A connection on which calls time out is given up when nothing has arrived on it for this long.
    pub silence_max_ms: u64,
    /// After this long without traffic, the kernel asks whether the other side still lives.
    pub keepalive_ms: u64,
    /// How long sent bytes may stay unacknowledged before the kernel gives the connection up.
    pub unacknowledged_max_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7401".to_owned(),
            call_timeout_ms: 5_000,
            connect_timeout_ms: 1_000,
            handshake_timeout_ms: 3_000,
            frame_bytes_max: 16 * 1024 * 1024,
            connections_max: 256,
            handshakes_max: 32,
            calls_in_flight_max: 256,
            backoff_min_ms: 20,
            backoff_max_ms: 500,
            silence_max_ms: 2_000,
            keepalive_ms: 2_000,
            unacknowledged_max_ms: 10_000,
        }
    }
}

impl Config {
    fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }
}

/// Where a member's agent is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// The member.
    pub node: NodeId,
    /// `host:port`, TCP for calls and streams, UDP for gossip.
    pub address: String,
}

/// A dedicated connection to or from a peer.
pub struct PeerStream {
    /// Who is at the other end, proved by its certificate.
    pub peer: NodeId,
    /// The life of its data, as it said.
    pub peer_incarnation: Incarnation,
    /// The bytes.
    pub io: tokio_rustls::TlsStream<tokio::net::TcpStream>,
}

/// Why a call or stream to a peer failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The node is not in the list of members, or is this node.
    #[error("node {node} is not another member of this cluster")]
    UnknownPeer {
        /// The node that was asked for.
        node: NodeId,
    },
    /// No connection could be made.
    #[error("node {node} cannot be reached at {address}: {reason}")]
    Unreachable {
        /// The node that was asked for.
        node: NodeId,
        /// Where it should be.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The connection broke after the call was sent: it may or may not have been worked on.
    #[error(
        "the connection to node {node} broke during a call of {service}; it may have been worked on"
    )]
    Disconnected {
        /// The node that was called.
        node: NodeId,
        /// The service that was called.
        service: &'static str,
    },
    /// No answer came in time: the call may or may not have been worked on.
    #[error("node {node} did not answer a call of {service} within {timeout_ms} ms")]
    Timeout {
        /// The node that was called.
        node: NodeId,
        /// The service that was called.
        service: &'static str,
        /// The limit that applied.
        timeout_ms: u64,
    },
    /// The peer answered with an error.
    #[error("node {node} answered a call of {service} with an error: {message}")]
    Remote {
        /// The node that was called.
        node: NodeId,
        /// The service that was called.
        service: &'static str,
        /// Its error.
        message: String,
    },
    /// The call is longer than the limit; nothing was sent.
    #[error("a call of {bytes} bytes exceeds peers.frame_bytes_max = {max}; it was not sent")]
    TooLong {
        /// The length of the call.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

/// A boxed future.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

type CallHandler = Arc<dyn Fn(NodeId, Bytes) -> BoxFuture<Result<Bytes, String>> + Send + Sync>;
type StreamHandler = Arc<dyn Fn(PeerStream) -> BoxFuture<()> + Send + Sync>;

/// What the handle, the listener and the connections share.
struct Shared {
    config: Config,
    identity: Identity,
    tls: tls::Handle,
    links: RwLock<BTreeMap<NodeId, Arc<link::Link>>>,
    calls: RwLock<BTreeMap<&'static str, CallHandler>>,
    streams: RwLock<BTreeMap<&'static str, StreamHandler>>,
    metrics: metrics::Metrics,
    local_address: SocketAddr,
    /// Ends every connection.
    closed: CancellationToken,
}

impl Shared {
    fn call_handler(&self, service: &str) -> Option<CallHandler> {
        self.calls.read().unwrap_or_else(PoisonError::into_inner).get(service).cloned()
    }

    fn link(&self, node: NodeId) -> Option<Arc<link::Link>> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    fn stream_handler(&self, service: &str) -> Option<StreamHandler> {
        self.streams.read().unwrap_or_else(PoisonError::into_inner).get(service).cloned()
    }
}

/// The way to the peers.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// Binds the listener and prepares a link to every other member of `addresses`; nothing is dialled before it is
/// called, and nothing is accepted before the task runs.
///
/// # Errors
/// The listen address cannot be bound, or this node is not among the members.
pub fn new(
    config: Config,
    identity: Identity,
    addresses: Vec<PeerAddress>,
    tls: &tls::Handle,
    registry: &mut Registry,
) -> Result<(Handle, Task)> {
    ensure!(
        addresses.iter().any(|member| member.node == identity.node),
        "node {} is not in the list of members; add a [[member]] table for it",
        identity.node
    );
    let listener = TcpListener::bind(&config.listen).with_context(|| {
        format!("cannot listen for peers on {} (peers.listen); is it in use?", config.listen)
    })?;
    listener.set_nonblocking(true)?;
    let local_address = listener.local_addr()?;
    let links = addresses
        .into_iter()
        .filter(|member| member.node != identity.node)
        .map(|member| (member.node, Arc::new(link::Link::new(member.node, member.address))))
        .collect();
    let links = RwLock::new(links);
    let shared = Arc::new(Shared {
        config,
        identity,
        tls: tls.clone(),
        links,
        calls: RwLock::default(),
        streams: RwLock::default(),
        metrics: metrics::Metrics::new(registry),
        local_address,
        closed: CancellationToken::new(),
    });
    Ok((Handle { shared: shared.clone() }, Task::new(listener, shared)))
}

impl Handle {
    /// Answers calls of `service` with `handler`; a later handler of the same service replaces it. The handler
    /// learns which node calls, and its error text goes to the caller.
    pub fn serve(
        &self,
        service: &'static str,
        handler: impl Fn(NodeId, Bytes) -> BoxFuture<Result<Bytes, String>> + Send + Sync + 'static,
    ) {
        let mut calls = self.shared.calls.write().unwrap_or_else(PoisonError::into_inner);
        calls.insert(service, Arc::new(handler));
    }

    /// Gives the streams that peers open for `service` to `handler`; when the agent stops, its future is dropped.
    pub fn serve_stream(
        &self,
        service: &'static str,
        handler: impl Fn(PeerStream) -> BoxFuture<()> + Send + Sync + 'static,
    ) {
        let mut streams = self.shared.streams.write().unwrap_or_else(PoisonError::into_inner);
        streams.insert(service, Arc::new(handler));
    }

    /// Calls `service` of `node` and waits for its answer, at most `peers.call_timeout_ms`.
    ///
    /// # Errors
    /// [`CallError`]: all but `Disconnected`, `Timeout` and `Remote` mean that the call was not worked on.
    pub async fn call(
        &self,
        node: NodeId,
        service: &'static str,
        body: Bytes,
    ) -> Result<Bytes, CallError> {
        let timeout = Duration::from_millis(self.shared.config.call_timeout_ms);
        self.call_within(node, service, body, timeout).await
    }

    /// [`Handle::call`] with another limit of time.
    ///
    /// # Errors
    /// As [`Handle::call`].
    pub async fn call_within(
        &self,
        node: NodeId,
        service: &'static str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let answer = match self.link(node) {
            Ok(link) => link.call(&self.shared, service, body, timeout).await,
            Err(error) => Err(error),
        };
        self.shared.metrics.called(service, answer.as_ref().err());
        answer
    }

    /// Opens a connection of its own to `service` of `node`, within the limits of dialling.
    ///
    /// # Errors
    /// [`CallError::UnknownPeer`] and [`CallError::Unreachable`].
    pub async fn open(&self, node: NodeId, service: &'static str) -> Result<PeerStream, CallError> {
        let link = self.link(node)?;
        dial::dial(&self.shared, node, link.address(), service).await.map_err(|reason| {
            CallError::Unreachable { node, address: link.address().to_owned(), reason }
        })
    }

    /// The members are these from now on, this node apart: links to others end, an address that has changed is dialled
    /// anew.
    pub fn set_members(&self, members: &BTreeMap<NodeId, String>) {
        let mut links = self.shared.links.write().unwrap_or_else(PoisonError::into_inner);
        links.retain(|node, link| {
            let kept = members.get(node).is_some_and(|address| address == link.address());
            if !kept {
                link.close();
            }
            kept
        });
        for (&node, address) in
            members.iter().filter(|(node, _)| **node != self.shared.identity.node)
        {
            links.entry(node).or_insert_with(|| Arc::new(link::Link::new(node, address.clone())));
        }
    }

    /// The other members, in order.
    pub fn others(&self) -> Vec<NodeId> {
        let links = self.shared.links.read().unwrap_or_else(PoisonError::into_inner);
        links.keys().copied().collect()
    }

    /// Where another member is reached, if it is one.
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.link(node).ok().map(|link| link.address().to_owned())
    }

    /// Where this agent listens: the port is the real one when the configuration said 0.
    pub fn local_address(&self) -> SocketAddr {
        self.shared.local_address
    }

    fn link(&self, node: NodeId) -> Result<Arc<link::Link>, CallError> {
        self.shared.link(node).ok_or(CallError::UnknownPeer { node })
    }
}
