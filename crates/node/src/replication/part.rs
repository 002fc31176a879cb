//! The end of a node's part: its server is given back as one that stands alone, and the others clean up after it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::state::{ClusterState, MemberStatus};
use synapsedb_pg::client::Client;

use super::durability::settings;
use super::{Shared, origin_name};

/// How long the server may take with it.
const LIMIT: Duration = Duration::from_secs(10);

/// How often what is still in use is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// What the server says of a slot or an origin whose session has not ended yet.
const IN_USE: &str = "55006";

/// Whether the cluster has removed a node.
pub(crate) fn is_removed(state: &ClusterState, node: NodeId) -> bool {
    state.members.get(&node).is_some_and(|member| member.status == MemberStatus::Removed)
}

/// Waits until the cluster has removed this node; for ever when Raft ends before that.
pub(crate) async fn removed(shared: &Shared) {
    let mut state = shared.raft.watch();
    if state.wait_for(|state| is_removed(state, shared.identity.node)).await.is_err() {
        std::future::pending().await
    }
}

/// Takes back what was set on this server, so that nothing waits for a cluster to which it does not belong: the
/// settings of its commits, the slot, the capture of DDL, the origins. The rows and the schema `synapsedb` stay. What
/// cannot be taken back is told in the log.
///
/// To be called when the loops of replication have ended.
pub(crate) async fn give_back(shared: &Shared) {
    let why = match tokio::time::timeout(LIMIT, take_back(shared)).await {
        Ok(Ok(())) => return tracing::info!("the server stands alone from now on"),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => format!("the server takes longer than {LIMIT:?}"),
    };
    let slot = origin_name(shared.identity.node, shared.identity.incarnation);
    tracing::error!(
        "what the cluster had set on this server is not all taken back: {why}. If the server is to go on alone: ALTER \
         SYSTEM RESET synchronous_standby_names, ALTER SYSTEM RESET synchronous_commit, SELECT \
         pg_drop_replication_slot('{slot}')"
    );
}

async fn take_back(shared: &Shared) -> Result<()> {
    let client = shared.sql("part").await?;
    settings::lift(&client).await?;
    client.batch_execute(include_str!("sql/part.sql")).await.context("drop the event triggers")?;
    let slot = origin_name(shared.identity.node, shared.identity.incarnation);
    while !dropped(client.query(include_str!("sql/drop_slot.sql"), &[&slot]).await)? {
        tokio::time::sleep(PAUSE).await;
    }
    while !dropped(client.query(include_str!("sql/drop_origins.sql"), &[]).await)? {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Drops the replication origin of a life that has ended, when everybody has seen all of it. Answers whether it is
/// gone: it stays as long as it is what tells how far its node has been applied here.
///
/// # Errors
/// The server cannot be asked.
pub(crate) async fn drop_origin(
    shared: &Shared,
    client: &Client,
    origin: NodeId,
    ended: Incarnation,
) -> Result<bool> {
    let state = shared.raft.state();
    let now = state.present().find(|(node, _)| *node == origin);
    // Of this node itself nothing is applied, and of one that has left nothing will come.
    let now = now.filter(|(node, _)| *node != shared.identity.node);
    let now = now.map(|(_, member)| origin_name(origin, member.incarnation)).unwrap_or_default();
    let ended = origin_name(origin, ended);
    if !dropped(client.query(include_str!("sql/drop_origin.sql"), &[&ended, &now]).await)? {
        return Ok(false);
    }
    let left = client.query(include_str!("sql/has_origin.sql"), &[&ended]).await?;
    Ok(left.is_empty())
}

/// Whether that was done; not, when something is in use still.
fn dropped<T>(answer: Result<T, tokio_postgres::Error>) -> Result<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(error) if error.code().is_some_and(|code| code.code() == IN_USE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Why the agent of a removed node ends.
///
/// # Errors
/// Always.
pub(crate) fn end(node: NodeId) -> Result<()> {
    bail!(
        "node {node} was removed from the cluster (synapsedb node part): this agent and its server stop. Its data is \
         left as it is; what the other nodes have does not need it"
    )
}
