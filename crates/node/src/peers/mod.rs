//! The one way between agents: mutually authenticated TLS connections for calls and for streams.
//!
//! **Runs on:** every node. **Invariant:** not one byte of a peer is read by anyone else before the peer has proved
//! with a certificate of this cluster's CA which node it is.
/// The limits and addresses of this component.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use synapsedb_core::ids::{Incarnation, NodeId};

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
#[error("stub")]
pub struct CallError;

/// A boxed future.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// The way to the peers.
#[derive(Clone)]
pub struct Handle;

#[allow(clippy::unimplemented, unused_variables, missing_docs)]
impl Handle {
    pub fn serve(
        &self,
        service: &'static str,
        handler: impl Fn(NodeId, Bytes) -> BoxFuture<Result<Bytes, String>> + Send + Sync + 'static,
    ) {
        unimplemented!()
    }
    pub fn serve_stream(
        &self,
        service: &'static str,
        handler: impl Fn(PeerStream) -> BoxFuture<()> + Send + Sync + 'static,
    ) {
        unimplemented!()
    }
    pub async fn call(
        &self,
        node: NodeId,
        service: &'static str,
        body: Bytes,
    ) -> Result<Bytes, CallError> {
        unimplemented!()
    }
    pub async fn open(&self, node: NodeId, service: &'static str) -> Result<PeerStream, CallError> {
        unimplemented!()
    }
    pub fn others(&self) -> Vec<NodeId> {
        unimplemented!()
    }
}
