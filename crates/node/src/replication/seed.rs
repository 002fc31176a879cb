//! Makes a node of a physical copy of another node's server: who it is, whose its rows are, where each origin stands.
//!
//! It runs on a server that nobody else reaches, before the agent of the new node does.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use synapsedb_core::guard::Mark;
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;
use synapsedb_pg::{Config as PgConfig, client, replication};
use tokio_postgres::Row;

use super::spool::{self, SpoolError, SpoolId};
use super::{guard, origin_name, parse_origin_name, spools};
use crate::layout::Identity;

/// How often a spool is copied that is written at the same time.
const COPIES_MAX: u32 = 5;

/// The node whose server was copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copied {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
}

/// Changes the copy's identity. Answers what it holds of every origin but the copied node.
///
/// # Errors
/// The server refuses a statement. The copy is thrown away then.
pub(crate) async fn adopt(
    server: &PgConfig,
    identity: &Identity,
    copied: Copied,
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

/// What an earlier life of the node gave from a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    schema: String,
    sequence: String,
    last_value: i64,
}

/// What the ending life of the node gave from its sequences, by its own server: nothing, when that is not the one that
/// wrote the transaction `last`, which all others have received, but an older copy of it.
///
/// # Errors
/// The server does not say.
pub(crate) async fn given(server: &PgConfig, last: Mark) -> Result<Option<Vec<Given>>> {
    let Some((time, xid)) = last.content else { return Ok(None) };
    let client = client::connect(&server.named("synapsedb seed")).await?;
    let xid = xid.to_string();
    let met = client.query_one(include_str!("sql/commit_time.sql"), &[&xid]).await?;
    if met.get::<_, Option<i64>>(0) != Some(time.unix_us()) {
        return Ok(None);
    }
    let rows = client.query(include_str!("sql/seed_given.sql"), &[]).await?;
    let given =
        |row: &Row| Given { schema: row.get(0), sequence: row.get(1), last_value: row.get(2) };
    Ok(Some(rows.iter().map(given).collect()))
}

/// The last transaction of a life of a node that another one has received, by the spools of that one; nothing when it
/// is not kept any more. `scratch` is a directory that does not exist, and does not afterwards.
pub(crate) fn last_received(
    spool_dir: &Path,
    scratch: &Path,
    life: SpoolId,
    limits: spool::Config,
) -> Option<Mark> {
    let dir = spool_dir.join(format!("{}-{}", life.origin, life.incarnation));
    let copied = spool::copy(&dir, scratch, life, limits);
    let last = copied.and_then(|()| Ok(guard::last(&spool::open(scratch, life, limits)?.1)));
    let _ = std::fs::remove_dir_all(scratch);
    last.ok().flatten()
}

/// Moves the sequences into this node's class, after what the copied node had given, and after what an earlier life of
/// this node gave. Where that is unknown, a range is skipped that no life uses up. Answers the sequences that are too
/// short for that: their values may come again.
///
/// # Errors
/// The server refuses.
pub(crate) async fn reseat_sequences(
    server: &PgConfig,
    given: Option<&[Given]>,
) -> Result<Vec<String>> {
    let client = client::connect(&server.named("synapsedb seed")).await?;
    client
        .batch_execute("set session_replication_role = replica; set client_min_messages = warning")
        .await?;
    client.batch_execute(include_str!("sql/seed_tables.sql")).await?;
    let known = given.is_some();
    let given = given.unwrap_or_default();
    let schemas: Vec<&str> = given.iter().map(|given| given.schema.as_str()).collect();
    let sequences: Vec<&str> = given.iter().map(|given| given.sequence.as_str()).collect();
    let values: Vec<i64> = given.iter().map(|given| given.last_value).collect();
    client
        .execute(include_str!("sql/seed_put_given.sql"), &[&known, &schemas, &sequences, &values])
        .await?;
    client
        .batch_execute(include_str!("sql/seed_sequences.sql"))
        .await
        .context("move the sequences into this node's class")?;
    let short = client.query(include_str!("sql/seed_short.sql"), &[]).await?;
    Ok(short.iter().map(|row| row.get(0)).collect())
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

/// Gives the new node the spools of the copied one, also those of lives that have ended: what these remember of deletes
/// and unique values, a write that is on its way must meet here as it does there.
///
/// To be called when the server's copy is complete, and the copied node has spooled what it had committed: all that the
/// copy holds is in them then. From when the node is joining, the copied node keeps them.
///
/// # Errors
/// One cannot be read, is damaged or cannot be written.
pub(crate) fn copy_spools(
    from: &Path,
    to: &Path,
    identity: &Identity,
    limits: spool::Config,
) -> Result<()> {
    for (origin, incarnation, dir) in spools::lives(from)? {
        if origin == identity.node && incarnation >= identity.incarnation {
            continue;
        }
        let id = SpoolId { cluster: identity.cluster_id, origin, incarnation };
        let copy = to.join(format!("{origin}-{incarnation}"));
        let mut tries = 0;
        // Its writer may undo a transaction at this moment, and write another in its place.
        while let Err(error) = spool::copy(&dir, &copy, id, limits) {
            tries += 1;
            if tries == COPIES_MAX || !matches!(error, SpoolError::Corrupt { .. }) {
                return Err(error).with_context(|| format!("copy the spool {}", dir.display()));
            }
            std::fs::remove_dir_all(&copy)?;
        }
    }
    Ok(())
}

/// Adds to `holds` what only the spool of the copied node tells: the last of its own commits before `replayed`, where
/// the recovery of the copy ended, which is answered too; and all of the nodes that have left (`departed`), whose
/// replication origins may be gone.
///
/// # Errors
/// That spool cannot be read, or has less.
pub(crate) fn hold_copied(
    spool_dir: &Path,
    identity: &Identity,
    copied: Copied,
    limits: spool::Config,
    replayed: Lsn,
    departed: &BTreeSet<NodeId>,
    holds: &mut VersionVector,
) -> Result<Lsn> {
    let (origin, incarnation) = (copied.node, copied.incarnation);
    let id = SpoolId { cluster: identity.cluster_id, origin, incarnation };
    let dir = spool_dir.join(format!("{origin}-{incarnation}"));
    let (writer, spool) = spool::open(&dir, id, limits)?;
    // A commit may begin exactly where the replay ended: that one is not here. Peers ask for the transaction at the
    // position that is told, so it must be one.
    let through =
        spool.commit_before(replayed).with_context(|| format!("look into {}", dir.display()))?;
    holds.advance(origin, through);
    // Everybody has applied all of them. What the copied node has applied of others since the copy is not held.
    for (node, lsn) in writer.tail().vector.iter().filter(|(node, _)| departed.contains(node)) {
        holds.advance(node, lsn);
    }
    Ok(through)
}

/// Makes the replication origin of the copied node, from which on its transactions are applied.
///
/// # Errors
/// The server refuses.
pub(crate) async fn begin_origin(server: &PgConfig, copied: Copied, through: Lsn) -> Result<()> {
    let client = client::connect(&server.named("synapsedb seed")).await?;
    let name = origin_name(copied.node, copied.incarnation);
    client.query(include_str!("sql/put_origin.sql"), &[&name]).await?;
    if through == Lsn::ZERO {
        // It has committed nothing in this life.
        return Ok(());
    }
    client
        .query(include_str!("sql/seed_origin.sql"), &[&name, &through.to_string()])
        .await
        .with_context(|| format!("set replication origin {name} to {through}"))?;
    Ok(())
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
