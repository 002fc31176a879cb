//! Brings a command to the leader, wherever it is, and its outcome back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{ClientWriteError, RaftError};
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::NodeId;
use synapsedb_core::state::{Command, Outcome};
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::machine::Request;
use super::{Shared, node_id};

const PROPOSE: &str = "raft.propose";
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(25);
/// How long an answered proposal waits until this node has applied it too.
const LOCAL_WAIT: Duration = Duration::from_secs(1);

/// Why a proposal was not answered with an outcome.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// No majority agreed in time.
    #[error(
        "no majority agreed within {timeout_ms} ms (raft.propose_timeout_ms): {reason}; the command may still be \
         committed later"
    )]
    Timeout {
        /// The limit that applied.
        timeout_ms: u64,
        /// What the last attempt met.
        reason: String,
    },
    /// Raft has stopped on this node.
    #[error("Raft has stopped on this node: {0}")]
    Stopped(String),
}

/// What one attempt came to; it travels from the leader to the node that asked.
#[derive(Debug, Serialize, Deserialize)]
enum Attempt {
    /// It is committed and applied at this index.
    Done { outcome: Outcome, index: u64 },
    /// Another node leads, or none.
    NotLeader { leader: Option<u64> },
    /// It failed here, for now.
    Failed { reason: String },
    /// Raft has stopped here.
    Stopped { reason: String },
}

/// Tries until the outcome is known or the time is up.
pub(super) async fn propose(
    shared: &Arc<Shared>,
    command: Command,
) -> Result<Outcome, ProposeError> {
    let timeout_ms = shared.config.propose_timeout_ms;
    let deadline = Instant::now() + Duration::from_millis(timeout_ms);
    let request = Request { id: Uuid::new_v4(), command };
    let mut reason = "there is no leader".to_owned();
    let mut hint = None;
    while Instant::now() < deadline {
        let leader = hint.take().or_else(|| shared.leader());
        let attempt = match leader {
            None => Attempt::NotLeader { leader: None },
            Some(leader) => {
                timeout_at(deadline, attempt(shared, leader, &request)).await.unwrap_or_else(|_| {
                    Attempt::Failed { reason: format!("node {leader} did not answer in time") }
                })
            }
        };
        match attempt {
            Attempt::Done { outcome, index } => {
                await_applied(shared, index, deadline).await;
                return Ok(outcome);
            }
            Attempt::NotLeader { leader: Some(other) } if leader != node_id(other) => {
                // Told where to go: no pause, but only if that is somewhere else.
                hint = node_id(other);
                reason = format!("node {other} should lead");
                if hint != Some(shared.identity.node) || shared.leads() {
                    tokio::task::yield_now().await;
                    continue;
                }
                hint = None;
            }
            Attempt::NotLeader { .. } => reason = "there is no leader".to_owned(),
            Attempt::Failed { reason: failed } => reason = failed,
            Attempt::Stopped { reason } if leader == Some(shared.identity.node) => {
                return Err(ProposeError::Stopped(reason));
            }
            Attempt::Stopped { reason: stopped } => reason = stopped,
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(ProposeError::Timeout { timeout_ms, reason })
}

async fn attempt(shared: &Arc<Shared>, leader: NodeId, request: &Request) -> Attempt {
    if leader == shared.identity.node {
        return write(shared, request.clone()).await;
    }
    let answer = async {
        let body = serde_json::to_vec(request).map_err(|error| error.to_string())?;
        // The leader answers within its own limit for an attempt; a little is added for the way.
        let limit = shared.attempt_timeout() * 2;
        let call = shared.peers.call_within(leader, PROPOSE, Bytes::from(body), limit);
        let answer = call.await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&answer).map_err(|error| error.to_string())
    };
    answer.await.unwrap_or_else(|reason| Attempt::Failed { reason })
}

/// Writes as the leader, if this node is it.
async fn write(shared: &Arc<Shared>, request: Request) -> Attempt {
    if !shared.leads() {
        let leader = shared.leader().map(|leader| u64::from(leader.get()));
        return Attempt::NotLeader { leader };
    }
    match timeout(shared.attempt_timeout(), shared.raft.client_write(request)).await {
        Ok(Ok(written)) => Attempt::Done { outcome: written.data, index: written.log_id.index },
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
            Attempt::NotLeader { leader: forward.leader_id }
        }
        Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
            Attempt::Failed { reason: error.to_string() }
        }
        Ok(Err(RaftError::Fatal(error))) => Attempt::Stopped { reason: error.to_string() },
        Err(_) => Attempt::Failed { reason: "the leader waits for a majority".to_owned() },
    }
}

/// The proposer's own state shall include what it was just told.
async fn await_applied(shared: &Shared, index: u64, deadline: Instant) {
    let mut applied = shared.applied.clone();
    let until = deadline.min(Instant::now() + LOCAL_WAIT);
    let reached = applied.wait_for(|applied| *applied >= Some(index));
    // This node may be behind or stopping: the outcome is known all the same.
    let _ = timeout_at(until, reached).await;
}

/// Answers the proposals of the other members, as far as this node leads.
pub(super) fn serve(shared: &Arc<Shared>) {
    let peers = shared.peers.clone();
    let shared = Arc::downgrade(shared);
    peers.serve(PROPOSE, move |_, body| {
        let shared = shared.upgrade();
        Box::pin(async move {
            let shared = shared.ok_or("Raft has stopped")?;
            let request = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
            let answer = serde_json::to_vec(&write(&shared, request).await);
            answer.map(Bytes::from).map_err(|error| error.to_string())
        })
    });
}
