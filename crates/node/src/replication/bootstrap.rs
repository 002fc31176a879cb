//! Prepares the local server: the internal schema, the event triggers, the publication, the origins and the slot.

use anyhow::{Context as _, Result, bail};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_pg::Config as PgConfig;
use synapsedb_pg::{client, replication};

use super::guard::Refused;
use super::spool::{Tail, Writer};
use super::{Shared, origin_name, worker_origin_name};

/// What the own spool says before the slot is made: a slot beside an empty spool then means that the spool was lost.
const BEFORE_SLOT: Lsn = Lsn(1);

/// What was committed here since the end of the spool can no longer be read from the WAL, by nobody.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SlotLost(String);

/// Makes or updates everything that replication needs inside the server. Idempotent.
///
/// # Errors
/// The server refuses a statement, or the sequences were laid out for another stride.
pub(crate) async fn prepare(shared: &Shared) -> Result<()> {
    let identity = &shared.identity;
    let client = shared.sql("bootstrap").await?;
    // As replica, so that the capture of DDL does not see it.
    client
        .batch_execute("set session_replication_role = replica; set client_min_messages = warning")
        .await?;
    for (what, sql) in [
        ("schema synapsedb", include_str!("sql/schema.sql")),
        ("the capture of DDL", include_str!("sql/capture.sql")),
        ("the upkeep of sequences and keys", include_str!("sql/upkeep.sql")),
        ("the policies", include_str!("sql/policy.sql")),
        ("the repetition of DDL", include_str!("sql/run_ddl.sql")),
        ("the notes of alterations", include_str!("sql/altered.sql")),
        ("the durability classes", include_str!("sql/durability.sql")),
        ("the event triggers", include_str!("sql/triggers.sql")),
    ] {
        client.batch_execute(sql).await.with_context(|| format!("install {what}"))?;
    }
    let stride = i32::from(shared.config.sequence_stride);
    let node = i32::from(identity.node.get());
    let (cluster, incarnation) =
        (identity.cluster_id.to_string(), i64::from(identity.incarnation.0));
    let row = client
        .query_one(include_str!("sql/put_node.sql"), &[&node, &cluster, &incarnation, &stride])
        .await
        .context("write down which node this server is")?;
    let laid_out: i32 = row.get(0);
    if laid_out != stride {
        bail!(
            "replication.sequence_stride is {stride}, but the sequences were laid out for {laid_out}: \
             set it back to {laid_out}; nothing was changed"
        );
    }
    shared.outcomes.look_whether_allowed(&client).await?;
    client
        .query(include_str!("sql/adopt_existing.sql"), &[])
        .await
        .context("adopt existing tables")?;
    Ok(())
}

/// Makes the replication origins of the given members.
///
/// # Errors
/// The server refuses (`max_replication_slots` origins exist already).
pub(crate) async fn ensure_origins(
    shared: &Shared,
    members: impl IntoIterator<Item = (NodeId, Incarnation)>,
) -> Result<()> {
    let client = shared.sql("bootstrap").await?;
    for (node, incarnation) in members {
        // Those of the workers too, before any lane begins: every lane must know whose rows theirs are.
        let workers = 0..shared.config.apply_workers;
        let workers = workers.map(|worker| worker_origin_name(node, incarnation, worker));
        for name in [origin_name(node, incarnation)].into_iter().chain(workers) {
            client
                .query(include_str!("sql/put_origin.sql"), &[&name])
                .await
                .with_context(|| format!("create replication origin {name}"))?;
        }
    }
    Ok(())
}

/// Makes the slot if this is the node's first start, and checks that slot, WAL and spool belong together. Answers the
/// position from which to read.
///
/// # Errors
/// They do not: the slot was dropped, its WAL removed, or the server or the spool is an older copy. Nothing is changed
/// then, since going on would lose rows silently.
pub(crate) async fn ensure_slot(
    local: &PgConfig,
    slot: &str,
    tail: &Tail,
    writer: &mut Writer,
) -> Result<Lsn> {
    let client = client::connect(&local.named("synapsedb bootstrap")).await?;
    let row = client.query_one(include_str!("sql/slot_state.sql"), &[&slot]).await?;
    let lsn = |column: usize| -> Result<Lsn> { Ok(row.get::<_, String>(column).parse()?) };
    let (wal_end, exists, confirmed) = (lsn(0)?, row.get::<_, bool>(1), lsn(2)?);
    if tail.end_lsn > wal_end {
        return refuse(format!(
            "the WAL of this server ends at {wal_end}, but it was already published to {}: the server was \
             replaced by an older copy. Its peers have transactions that it lacks: re-seed this node",
            tail.end_lsn
        ));
    }
    if !exists {
        if tail.end_lsn > BEFORE_SLOT {
            return Err(lost(format!(
                "replication slot {slot} is gone, though the spool knows it until {}",
                tail.end_lsn
            )));
        }
        if tail.end_lsn < BEFORE_SLOT {
            writer.checkpoint(BEFORE_SLOT, &tail.vector)?;
            writer.sync().await?;
        }
        let start = replication::create_slot(local, slot).await?;
        tracing::info!(slot, lsn = %start, "made the replication slot");
        // A spool that knows nothing beside a slot that stands further on is an older copy.
        writer.checkpoint(start, &tail.vector)?;
        writer.sync().await?;
        return Ok(start);
    }
    if row.get::<_, String>(3) == "lost" {
        return Err(lost(format!(
            "the WAL that replication slot {slot} needs was removed (max_slot_wal_keep_size)"
        )));
    }
    if tail.end_lsn < BEFORE_SLOT {
        bail!(
            "the spool of this node is empty, though slot {slot} stands at {confirmed}: it was lost. Re-seed this node"
        );
    }
    if tail.end_lsn > BEFORE_SLOT && confirmed > tail.end_lsn {
        return refuse(format!(
            "replication slot {slot} stands at {confirmed}, behind the end of the spool at {}: the spool is an older \
             copy or was cut. Re-seed this node",
            tail.end_lsn
        ));
    }
    Ok(confirmed)
}

fn lost(what: String) -> anyhow::Error {
    let text = format!(
        "{what}: what was committed here since is unknown to the peers. Nothing was changed, and the slot is not made \
         again by itself. Take what only this node has to the others (synapsedb verify --repair --from this node), \
         then re-seed this node (synapsedb node reseed)"
    );
    SlotLost(text).into()
}

fn refuse(reason: String) -> Result<Lsn> {
    Err(Refused(reason).into())
}
