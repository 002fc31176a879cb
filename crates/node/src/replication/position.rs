//! How far a node is at this moment, asked of its server, and the wait until another node is as far: what a read that
//! must not be stale stands on.
//!
//! All positions are commit LSNs of their origins, so that "has applied up to here" needs no knowledge of the WAL
//! behind the last commit.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;
use synapsedb_pg::client::Client;
use tokio::runtime;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{Handle, Shared, parse_origin_name};

/// Tells a peer how far this node is.
const POSITION: &str = "replication.position";
/// Waits until this node has applied what a peer names.
const REACH: &str = "replication.reach";
/// A server that commits takes its WAL to the disk by itself within this; an idle one must be made to.
const FLUSHED_WITHIN: Duration = Duration::from_millis(2);
/// What an answer may take longer than the wait that it tells of.
const WAY: Duration = Duration::from_millis(200);

/// How far a node was at a moment after the question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Its WAL has been read up to here.
    pub read: Lsn,
    /// The last of its own transactions that was committed by then.
    pub published: Lsn,
    /// What its readers can have seen of every other origin.
    pub applied: VersionVector,
    /// What it can hand on of every origin.
    pub received: VersionVector,
    /// Before where in the WAL of every origin that is all there is.
    pub received_ends: VersionVector,
}

/// What a peer is to wait for.
#[derive(Debug, Serialize, Deserialize)]
struct Reach {
    target: VersionVector,
    within_ms: u64,
}

/// The session by which the server is asked, and where its work is done: callers may live on loops of their own.
pub(crate) struct Asked {
    session: Mutex<Option<Client>>,
    runtime: runtime::Handle,
}

impl Asked {
    pub(crate) fn new() -> Self {
        Self { session: Mutex::new(None), runtime: runtime::Handle::current() }
    }
}

impl Handle {
    /// How far a member is, as of a moment after this call.
    ///
    /// # Errors
    /// It does not answer in time, or cannot say: the reason.
    pub async fn position_of(&self, node: NodeId, patience: Duration) -> Result<Position, String> {
        if node != self.shared.identity.node {
            let answer = self.shared.peers.call_within(node, POSITION, Bytes::new(), patience);
            return read(&answer.await.map_err(|error| error.to_string())?);
        }
        let shared = Arc::clone(&self.shared);
        let asked =
            async move { own(&shared, patience).await.map_err(|error| format!("{error:#}")) };
        joined(self.shared.positions.runtime.spawn(asked).await)?
    }

    /// Waits until readers of a member can see everything through `target`.
    ///
    /// # Errors
    /// It is not so far in time, or does not answer: what is lacking.
    pub async fn reach(
        &self,
        node: NodeId,
        target: VersionVector,
        within: Duration,
    ) -> Result<(), String> {
        if node != self.shared.identity.node {
            let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
            let body = serde_json::to_vec(&Reach { target, within_ms });
            let body = Bytes::from(body.map_err(|error| error.to_string())?);
            let answer = self.shared.peers.call_within(node, REACH, body, within + WAY);
            return answer.await.map(drop).map_err(|error| error.to_string());
        }
        let shared = Arc::clone(&self.shared);
        let waited = async move { reach(&shared, &target, within).await };
        joined(self.shared.positions.runtime.spawn(waited).await)?
    }
}

/// The agent stops when its work is cut.
fn joined<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T, String> {
    outcome.map_err(|error| error.to_string())
}

fn read<T: serde::de::DeserializeOwned>(answer: &Bytes) -> Result<T, String> {
    serde_json::from_slice(answer).map_err(|error| format!("it is not understood: {error}"))
}

/// Answers the routers of the other members.
pub(crate) fn serve(shared: &Arc<Shared>) {
    let serving = Arc::clone(shared);
    shared.peers.serve(POSITION, move |_, _| {
        let shared = Arc::clone(&serving);
        Box::pin(async move {
            let limit = Duration::from_millis(shared.config.decode_wait_max_ms);
            let position = own(&shared, limit).await.map_err(|error| format!("{error:#}"))?;
            serde_json::to_vec(&position).map(Bytes::from).map_err(|error| error.to_string())
        })
    });
    let serving = Arc::clone(shared);
    shared.peers.serve(REACH, move |_, body| {
        let shared = Arc::clone(&serving);
        Box::pin(async move {
            let Reach { target, within_ms } = read(&body)?;
            reach(&shared, &target, Duration::from_millis(within_ms)).await?;
            Ok(Bytes::new())
        })
    });
}

/// How far this node is. Whatever a client has been told of by now is in it: its commit record is in the WAL, and the
/// WAL is read beyond it.
async fn own(shared: &Shared, limit: Duration) -> Result<Position> {
    let asked = async {
        let mut session = shared.positions.session.lock().await;
        if session.as_ref().is_none_or(|client| client.is_closed()) {
            *session = Some(shared.sql("position").await?);
        }
        let client = session.as_ref().context("the session that was just opened")?;
        let (read, applied) = look(client).await?;
        if shared.recent.wait_decoded(read, FLUSHED_WITHIN).await.is_err() {
            client
                .query_one(include_str!("sql/flush_wal.sql"), &[])
                .await
                .context("flush the WAL")?;
        }
        anyhow::Ok((read, applied))
    };
    let Ok(asked) = timeout(limit, asked).await else {
        bail!("its server does not answer within {} ms", limit.as_millis());
    };
    let (read, applied) = asked?;
    shared.recent.wait_decoded(read, limit).await?;
    // First where it ends, then what it is: what comes in between is only more than that.
    let received_ends = shared.spools.tail_ends();
    let received = shared.spools.tails();
    let published = received.get(shared.identity.node);
    Ok(Position { read, published, applied, received, received_ends })
}

async fn look(client: &Client) -> Result<(Lsn, VersionVector)> {
    let (mut read, mut applied) = (Lsn::ZERO, VersionVector::new());
    for row in client.query(include_str!("sql/position.sql"), &[]).await? {
        read = read.max(row.get::<_, String>(0).parse()?);
        let name: Option<String> = row.get(1);
        let origin = name.as_deref().and_then(parse_origin_name);
        if let (Some((origin, _)), Some(lsn)) = (origin, row.get::<_, Option<String>>(2)) {
            applied.advance(origin, lsn.parse()?);
        }
    }
    Ok((read, applied))
}

/// Waits until readers here can see everything through `target`, the node's own commits included: peers may know of
/// them before they are visible here.
async fn reach(shared: &Shared, target: &VersionVector, within: Duration) -> Result<(), String> {
    let here = shared.identity.node;
    let waited = timeout(within, async {
        let mut visible = shared.applied.watch_visible();
        let covered = |visible: &VersionVector| lacking(here, target, visible).is_none();
        visible.wait_for(covered).await.map_err(|_| "the agent is stopping".to_owned())?;
        let own = target.get(here);
        if own > shared.spools.tails().get(here) {
            return Err(format!("it has not committed what lies at {own} of its own WAL"));
        }
        let shown = shared.own_commits.wait_visible(shared, own).await;
        shown.map_err(|error| format!("{error:#}"))
    });
    match waited.await {
        Ok(outcome) => outcome,
        Err(_) => Err(match lacking(here, target, &shared.applied.visible()) {
            Some((origin, lsn, applied)) => {
                format!("it has applied node {origin} up to {applied}, not up to {lsn}")
            }
            None => format!("its own commits up to {} are not visible yet", target.get(here)),
        }),
    }
}

/// The first origin of which `visible` lacks something of the target, with what is wanted and what is there.
fn lacking(
    here: NodeId,
    target: &VersionVector,
    visible: &VersionVector,
) -> Option<(NodeId, Lsn, Lsn)> {
    let mut all = target.iter().map(|(origin, lsn)| (origin, lsn, visible.get(origin)));
    all.find(|(origin, lsn, applied)| *origin != here && applied < lsn)
}
