//! Finds a node that serves a transaction, waiting for one as long as the endpoint allows.

use std::rc::Rc;
use std::time::Duration;

use synapsedb_core::ids::NodeId;
use tokio::time::Instant;

use super::Endpoint;
use super::choose::Why;
use super::fresh::{self, Where};
use super::pool::NoServer;
use super::server::{Address, ConnectError};
use super::startup::Failure;
use super::token::Reading;
use super::worker::Worker;

/// Why no node was reached.
#[derive(Debug)]
pub(super) enum Unreached {
    /// There is no node to go to.
    Nobody(Why),
    /// The last one that was tried.
    Connect(NodeId, ConnectError),
    /// Its connections were all in use.
    Busy { waited: Duration, size: usize },
}

/// Tries nodes with `attempt` until one serves, or the endpoint's patience ends.
///
/// # Errors
/// [`Unreached`], of the last attempt.
pub(super) async fn reach<T>(
    worker: &Rc<Worker>,
    endpoint: Endpoint,
    reading: &Reading,
    patience: Duration,
    attempt: impl AsyncFn(Rc<Address>) -> Result<T, NoServer>,
) -> Result<T, Unreached> {
    let deadline = Instant::now() + patience;
    let mut state = worker.shared.state.clone();
    loop {
        state.borrow_and_update();
        if worker.shared.draining.is_cancelled() {
            return Err(Unreached::Nobody(Why::Draining));
        }
        let picked = match worker.pick(endpoint, reading) {
            Ok(address) if reading.must_settle(address.node) => {
                let place = match endpoint {
                    Endpoint::Read if reading.only.is_none() => Where::Rather(address),
                    Endpoint::Read | Endpoint::Write | Endpoint::Split => Where::There(address),
                };
                fresh::find(worker, reading, place, deadline).await
            }
            picked => picked,
        };
        let unreached = match picked {
            Err(why) => Unreached::Nobody(why),
            Ok(address) => {
                let node = address.node;
                match attempt(address).await {
                    // The primary may have changed while we waited: then this node must not take the write.
                    Ok(reached) if worker.may_serve(endpoint, node) => return Ok(reached),
                    Ok(_) => continue,
                    Err(NoServer::Timeout { waited, size }) => {
                        return Err(Unreached::Busy { waited, size });
                    }
                    Err(NoServer::Connect(error)) => Unreached::Connect(node, error),
                }
            }
        };
        let passing = match &unreached {
            Unreached::Connect(_, error) => error.is_passing(),
            Unreached::Nobody(_) | Unreached::Busy { .. } => true,
        };
        if Instant::now() >= deadline || !passing {
            if let Unreached::Nobody(Why::Stale(..) | Why::Unheard(_)) = &unreached {
                worker.shared.metrics.not_shown();
            }
            return Err(unreached);
        }
        let changed = async {
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = changed => {}
            () = worker.shared.draining.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(worker.shared.config().retry_ms)) => {}
        }
    }
}

impl Unreached {
    /// What the client is told.
    pub(super) fn failure(&self, endpoint: Endpoint) -> Failure {
        if let Self::Connect(node, ConnectError::Refused { sqlstate, .. }) = self
            && sqlstate == "28P01"
        {
            return other_verifier(*node);
        }
        let message = match self {
            Self::Nobody(why) => why.to_string(),
            Self::Connect(node, error) => match endpoint {
                Endpoint::Read => format!("no node could be reached; node {node}: {error}"),
                Endpoint::Write | Endpoint::Split => {
                    format!("the primary, node {node}, takes no sessions: {error}")
                }
            },
            Self::Busy { waited, size } => format!(
                "query_wait_timeout: all {size} server connections of this role and database were in use for {} ms",
                waited.as_millis()
            ),
        };
        let sqlstate = match (self, endpoint) {
            (Self::Nobody(Why::Stale(..) | Why::Unheard(_)), _) => "SY002",
            (Self::Connect(..), Endpoint::Read) => "08006",
            (Self::Nobody(_), _) | (Self::Connect(..), Endpoint::Write | Endpoint::Split) => {
                "57P03"
            }
            (Self::Busy { .. }, _) => "53300",
        };
        let hint = match (self, endpoint) {
            (Self::Busy { .. }, _) => {
                "Raise router.pool_size or router.query_wait_timeout_ms, or end long transactions: `show clients` in \
                 database synapsedb_admin shows who holds a connection."
            }
            (Self::Nobody(Why::Unheard(_)), _) => {
                "Try again when the node answers (`synapsedb status`), or without its latest writes: `set \
                 synapsedb.consistency = session`. A node that is gone for good is taken out by `synapsedb node part`."
            }
            (Self::Nobody(Why::Stale(..)), _) => {
                "Try again in a moment. If the node that took the writes does not come back, they may be lost: `set \
                 synapsedb.consistency = eventual` reads without them."
            }
            (_, Endpoint::Read) => "Try again in a moment; `synapsedb status` shows the nodes.",
            (_, Endpoint::Write | Endpoint::Split) => {
                "Try again in a moment: if the primary has failed, the cluster appoints another one. \
                 `synapsedb status` shows the nodes."
            }
        };
        Failure { sqlstate, message, hint: hint.to_owned() }
    }
}

/// The client has proved to know the password as it is on this agent's server, and that is not the other's.
pub(super) fn other_verifier(node: NodeId) -> Failure {
    Failure {
        sqlstate: "28P01",
        message: format!(
            "node {node} does not accept the role's password: it has another password there, or another salt"
        ),
        hint: "Give the role the same verifier on every node: read pg_authid.rolpassword on one and set it on the \
               others with ALTER ROLE … PASSWORD."
            .to_owned(),
    }
}
