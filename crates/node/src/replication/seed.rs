//! Makes a node of a physical copy of another node's server: who it is, whose its rows are, where each origin stands.
//!
//! It runs on a server that nobody else reaches, before the agent of the new node does.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;
use synapsedb_pg::{Config as PgConfig, client, replication};

use super::spool::{self, SpoolId};
use super::{origin_name, parse_origin_name};
use crate::layout::Identity;

/// The node whose server was copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copied {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
}

/// Changes the copy's identity. Answers what it holds of every origin.
///
/// `replayed` is where the recovery of the copy ended: every commit of the copied node before it is here, none after.
///
/// # Errors
/// The server refuses a statement. The copy is thrown away then.
pub(crate) async fn adopt(
    server: &PgConfig,
    identity: &Identity,
    copied: Copied,
    replayed: Lsn,
) -> Result<VersionVector> {
    let client = client::connect(&server.named("synapsedb seed")).await?;
    client
        .batch_execute("set session_replication_role = replica; set client_min_messages = warning")
        .await?;
    for row in client.query(include_str!("sql/seed_prepared.sql"), &[]).await? {
        client.batch_execute(row.get(0)).await.context("roll back a prepared transaction")?;
    }
    for sql in [include_str!("sql/schema.sql"), include_str!("sql/upkeep.sql")] {
        client.batch_execute(sql).await.context("install the schema synapsedb")?;
    }
    let source = i32::from(copied.node.get());
    client
        .query_one(include_str!("sql/seed_inherit.sql"), &[&source])
        .await
        .context("write down whose rows these are")?;
    let (node, incarnation) = (i32::from(identity.node.get()), i64::from(identity.incarnation.0));
    let row = client
        .query_one(include_str!("sql/seed_node.sql"), &[&node, &incarnation])
        .await
        .context("write down which node this server is")?;
    let cluster: String = row.get(0);
    ensure!(
        cluster == identity.cluster_id.to_string(),
        "the copied server belongs to cluster {cluster}, this node to {}",
        identity.cluster_id
    );
    client
        .batch_execute(include_str!("sql/seed_sequences.sql"))
        .await
        .context("move the sequences into this node's class")?;
    // A commit may begin exactly where the replay ended: that one is not here.
    let through = Lsn(replayed.0.saturating_sub(1));
    let name = origin_name(copied.node, copied.incarnation);
    client.query(include_str!("sql/put_origin.sql"), &[&name]).await?;
    client
        .query(include_str!("sql/seed_origin.sql"), &[&name, &through.to_string()])
        .await
        .with_context(|| format!("set replication origin {name} to {through}"))?;
    let mut holds = VersionVector::new();
    for row in client.query(include_str!("sql/seed_positions.sql"), &[]).await? {
        if let Some((origin, _)) = parse_origin_name(row.get(0))
            && origin != identity.node
        {
            holds.advance(origin, row.get::<_, String>(1).parse()?);
        }
    }
    Ok(holds)
}

/// Where the recovery of a copy ended; known only while the server runs that has replayed it.
///
/// # Errors
/// The server does not say.
pub(crate) async fn replayed(server: &PgConfig) -> Result<Lsn> {
    let client = client::connect(&server.named("synapsedb seed")).await?;
    let row = client.query_one(include_str!("sql/seed_replayed.sql"), &[]).await?;
    let lsn: Option<String> = row.get(0);
    Ok(lsn.context("the copied server does not say how far it has replayed its WAL")?.parse()?)
}

/// Where the WAL of a server ends.
///
/// # Errors
/// The server does not say.
pub(crate) async fn wal_end(server: &PgConfig) -> Result<Lsn> {
    let client = client::connect(&server.named("synapsedb seed")).await?;
    let row = client.query_one(include_str!("sql/wal_end.sql"), &[]).await?;
    Ok(row.get::<_, String>(0).parse()?)
}

/// Makes the slot of the new node, and its spool, which begins with what the copy holds.
///
/// # Errors
/// The server refuses the slot, or the spool cannot be written.
pub(crate) async fn begin_wal(
    server: &PgConfig,
    identity: &Identity,
    spool_dir: &Path,
    limits: spool::Config,
    holds: &VersionVector,
) -> Result<Lsn> {
    let slot = origin_name(identity.node, identity.incarnation);
    let start = replication::create_slot(server, &slot).await?;
    let dir = spool_dir.join(format!("{}-{}", identity.node, identity.incarnation));
    let id = SpoolId {
        cluster: identity.cluster_id,
        origin: identity.node,
        incarnation: identity.incarnation,
    };
    let (mut writer, _spool) = spool::open(&dir, id, limits)?;
    writer.checkpoint(start, holds)?;
    writer.sync().await?;
    Ok(start)
}
