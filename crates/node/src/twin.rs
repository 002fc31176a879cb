//! Finds a second agent under this node's identity: a copy of its directory that was started elsewhere.
//!
//! Every start of an agent has a number of its own. Peers are asked to call this node at the address that the cluster
//! knows; if somebody with another number answers there, this process is the copy, or has been replaced by one.

use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use futures_util::future::join_all;
use synapsedb_core::ids::NodeId;
use uuid::Uuid;

use crate::peers;
use crate::tasks::Shutdown;

/// Asks an agent for the number of its start.
const BOOT: &str = "agent.boot";
/// Asks a peer to ask that of the node that calls.
const TWIN: &str = "agent.twin";
/// How long the node at the known address may take to answer.
const CALL_BACK: Duration = Duration::from_secs(1);
/// How long a peer may take with all of that.
const ANSWER: Duration = Duration::from_secs(2);
/// The pause between two looks.
const INTERVAL: Duration = Duration::from_secs(5);

/// Looks for a twin as long as the agent runs.
pub(crate) struct Watch {
    peers: peers::Handle,
    node: NodeId,
    boot: Uuid,
}

/// Serves the two questions, and looks once before anything else of this node is heard.
///
/// # Errors
/// Another agent answers as this node. Nothing was changed.
pub(crate) async fn watch(peers: &peers::Handle, node: NodeId) -> Result<Watch> {
    let boot = Uuid::new_v4();
    peers.serve(BOOT, move |_, _| {
        Box::pin(async move { Ok(Bytes::copy_from_slice(boot.as_bytes())) })
    });
    let caller = peers.clone();
    peers.serve(TWIN, move |from, boot| {
        let peers = caller.clone();
        Box::pin(async move {
            // Who cannot be reached is nobody's twin now.
            let there = peers.call_within(from, BOOT, Bytes::new(), CALL_BACK).await.ok();
            let other = there.filter(|there| *there != boot).and_then(|_| peers.address(from));
            Ok(Bytes::from(other.unwrap_or_default()))
        })
    });
    let watch = Watch { peers: peers.clone(), node, boot };
    watch.look().await?;
    Ok(watch)
}

impl Watch {
    /// Looks again and again until `stop`.
    ///
    /// # Errors
    /// As [`watch`].
    pub(crate) async fn run(self, stop: Shutdown) -> Result<()> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(INTERVAL) => self.look().await?,
            }
        }
    }

    async fn look(&self) -> Result<()> {
        let question = Bytes::copy_from_slice(self.boot.as_bytes());
        let calls = self.peers.others().into_iter().map(|peer| {
            let question = question.clone();
            async move {
                let answer = self.peers.call_within(peer, TWIN, question, ANSWER).await.ok()?;
                let address = String::from_utf8_lossy(&answer).into_owned();
                (!address.is_empty()).then_some((peer, address))
            }
        });
        match join_all(calls).await.into_iter().flatten().next() {
            None => Ok(()),
            Some((peer, address)) => bail!(
                "another agent runs as node {} at {address}, says node {peer}: this one has a copy of its directory. \
                 Nothing was changed; remove the copy, or make a node of its own (synapsedb node join)",
                self.node
            ),
        }
    }
}
