//! The greeting after the handshake: both sides say who they are, and each checks the other.

use std::io;

use serde::{Deserialize, Serialize};
use synapsedb_core::ids::{Incarnation, NodeId};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use uuid::Uuid;

use super::{Shared, frame};
use crate::tls::Refusal;

/// The version of what is said after the greeting.
const PROTOCOL: u16 = 1;
/// The longest greeting.
const HELLO_BYTES_MAX: usize = 4096;
/// The service of a connection for calls.
pub(super) const CALLS: &str = "calls";

/// What each side says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) protocol: u16,
    pub(super) cluster_id: Uuid,
    pub(super) node: u16,
    pub(super) uuid: Uuid,
    pub(super) incarnation: Incarnation,
    /// What the dialling side wants.
    pub(super) service: String,
}

/// What the accepting side answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// Who it is: the connection is open.
    Welcome(Hello),
    /// The connection ends here.
    Refused { reason: String, message: String },
}

impl Shared {
    /// What this node says of itself.
    pub(super) fn hello(&self, service: &str) -> Hello {
        Hello {
            protocol: PROTOCOL,
            cluster_id: self.identity.cluster_id,
            node: self.identity.node.get(),
            uuid: self.identity.uuid,
            incarnation: self.identity.incarnation,
            service: service.to_owned(),
        }
    }

    /// Checks what the node `certified` by its certificate says of itself.
    pub(super) fn check_hello(
        &self,
        certified: NodeId,
        hello: &Hello,
    ) -> Result<(), (Refusal, String)> {
        let refuse = |reason, message| Err((reason, message));
        if hello.protocol != PROTOCOL {
            let text = format!("it speaks protocol {}, this node {PROTOCOL}", hello.protocol);
            return refuse(Refusal::OtherProtocol, text);
        }
        if hello.cluster_id != self.identity.cluster_id {
            let (theirs, ours) = (hello.cluster_id, self.identity.cluster_id);
            let text = format!("it belongs to cluster {theirs}, this node to {ours}");
            return refuse(Refusal::OtherCluster, text);
        }
        if hello.node != certified.get() {
            let text =
                format!("it says it is node {}, its certificate says {certified}", hello.node);
            return refuse(Refusal::WrongNode, text);
        }
        if self.link(certified).is_none() {
            let text = format!("node {certified} is not another member of this cluster");
            return refuse(Refusal::UnknownNode, text);
        }
        Ok(())
    }
}

/// Sends a greeting or an answer.
pub(super) async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&json);
    to.write_all(&bytes).await?;
    to.flush().await
}

/// Receives a greeting or an answer; `None` when it is malformed or too long.
pub(super) async fn receive<T: for<'de> Deserialize<'de>>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    match frame::read_block(from, HELLO_BYTES_MAX).await {
        Ok(Some(bytes)) => Ok(serde_json::from_slice(&bytes).ok()),
        Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error)
            if error.kind() == io::ErrorKind::InvalidData
                && error.get_ref().is_some_and(|inner| !inner.is::<rustls::Error>()) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
