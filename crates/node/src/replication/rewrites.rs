//! The tables that were rewritten here, and who had written their rows before: read from the spools.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use synapsedb_core::change::Change;
use synapsedb_core::history::Digest;
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::rewrite::{self, Writers};
use synapsedb_core::version::{RowVersion, VersionVector};
use synapsedb_pg::client::Client;
use synapsedb_pg::pgoutput::{self, Message};

use super::keys::{LocalKeys, RowKeys};
use super::recent::{self, relation_id};
use super::spool::{Spool, SpoolError};
use super::{Shared, task};

/// A spool that is cut while it is read is read anew so often: what was cut, everybody had seen.
const READS_MAX: u32 = 5;

/// What is known of rewrites that are not settled yet.
#[derive(Default)]
pub(crate) struct Rewrites {
    noticed: Mutex<rewrite::Rewrites>,
    /// Who had written the rows of a table that a transaction has rewritten, once somebody has asked. One lane at a
    /// time reads the spools.
    pub(crate) writers: tokio::sync::Mutex<BTreeMap<Rewritten, Arc<Writers>>>,
}

/// A table and the `xmin` with which its rows were stored anew.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rewritten {
    pub(crate) xmin: String,
    pub(crate) schema: String,
    pub(crate) table: String,
}

/// Notices new rewrites, and forgets those of which every transaction that may still be applied here has seen all that
/// they hide.
///
/// # Errors
/// The server cannot be asked.
pub(crate) async fn settle(shared: &Shared, client: &Client, stable: &VersionVector) -> Result<()> {
    let rows = client.query(include_str!("sql/open_alterations.sql"), &[]).await?;
    // While a lane reads the spools, this does not wait for it.
    if let Ok(mut writers) = shared.rewrites.writers.try_lock() {
        writers.retain(|known, _| rows.iter().any(|row| row.get::<_, &str>(1) == known.xmin));
    }
    if rows.is_empty() {
        return Ok(());
    }
    // Asked for after the rewrites were seen: nothing that any of them hides can be missing.
    let (mut applied, _, wal) = task::progress_of(shared, client).await?;
    applied.advance(shared.identity.node, wal);
    let settled = {
        let mut noticed = shared.rewrites.noticed.lock().unwrap_or_else(PoisonError::into_inner);
        rows.iter().for_each(|row| noticed.noticed(row.get(0), &applied));
        noticed.settled(stable)
    };
    if settled.is_empty() {
        return Ok(());
    }
    client.execute(include_str!("sql/settle_alterations.sql"), &[&settled]).await?;
    // The plans of the lanes still keep their rows apart.
    shared.catalog_changed();
    Ok(())
}

/// Who wrote the rows of a table last, of the transactions that were applied here up to `applied`.
///
/// # Errors
/// A spool cannot be read.
pub(crate) async fn writers(
    shared: &Shared,
    rewritten: &Rewritten,
    keys: LocalKeys,
    applied: VersionVector,
) -> Result<Writers> {
    let ended = shared.spools.ended().into_iter().map(|((origin, _), spool)| (origin, spool));
    let open = shared.spools.all().into_iter().map(|(origin, (_, spool))| (origin, spool));
    let spools: Vec<(NodeId, Spool)> = ended.chain(open).collect();
    let here = shared.identity.node;
    let rewritten = rewritten.clone();
    let read = move || {
        let mut of_origins: BTreeMap<NodeId, Writers> = BTreeMap::new();
        for (origin, spool) in spools {
            let through = if origin == here { Lsn(u64::MAX) } else { applied.get(origin) };
            let writers = of_origins.entry(origin).or_default();
            let what = Reading { origin, through, rewritten: &rewritten, keys: &keys };
            read(&spool, &what, writers).with_context(|| {
                format!("read the spool of node {origin} for the writers of rows")
            })?;
        }
        let mut all = Writers::default();
        of_origins.into_values().for_each(|writers| all.merge(writers));
        Ok(all)
    };
    tokio::task::spawn_blocking(read).await.context("the reading of the spools panicked")?
}

/// What of a spool is read.
struct Reading<'r> {
    origin: NodeId,
    through: Lsn,
    rewritten: &'r Rewritten,
    keys: &'r LocalKeys,
}

fn read(spool: &Spool, what: &Reading<'_>, writers: &mut Writers) -> Result<()> {
    let mut reads = 0;
    loop {
        reads += 1;
        let Err(error) = read_once(spool, what, writers) else { return Ok(()) };
        let cut = matches!(error.downcast_ref(), Some(SpoolError::Gone { .. }));
        if !cut || reads == READS_MAX {
            return Err(error);
        }
    }
}

fn read_once(spool: &Spool, what: &Reading<'_>, writers: &mut Writers) -> Result<()> {
    let mut reader = spool.reader_after(spool.first_available())?;
    let mut relations: BTreeMap<u32, Option<RowKeys>> = BTreeMap::new();
    let mut version = None;
    while let Some(frame) = reader.try_next()? {
        if let Some(header) = frame.header() {
            if header.commit_lsn > what.through {
                break;
            }
            version = Some(recent::version(what.origin, &header));
        }
        let Some(version) = version else { continue };
        for raw in frame.messages() {
            let relation = relation_id(&raw);
            match raw.first() {
                Some(b'R') => drop(relations.insert(relation, keys_of(&raw, what)?)),
                Some(b'I' | b'U') => {
                    if let Some(Some(keys)) = relations.get(&relation) {
                        note(&raw, keys, version, writers)?;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Where the key of the rewritten table stands; nothing for another table, or one that had another key.
fn keys_of(raw: &[u8], what: &Reading<'_>) -> Result<Option<RowKeys>> {
    let Message::Relation(relation) = pgoutput::decode(raw)? else { return Ok(None) };
    let Rewritten { schema, table, .. } = what.rewritten;
    let is_it = (&relation.schema, &relation.name) == (schema, table);
    Ok(if is_it { RowKeys::new(&relation, what.keys) } else { None })
}

fn note(raw: &[u8], keys: &RowKeys, version: RowVersion, writers: &mut Writers) -> Result<()> {
    let written: Option<Digest> = match pgoutput::decode(raw)? {
        Message::Change(Change::Insert { new, .. } | Change::Update { new, .. }) => keys.row(&new),
        Message::Change(Change::Delete { .. } | Change::Truncate { .. })
        | Message::LogicalMessage { .. }
        | Message::Begin { .. }
        | Message::Commit { .. }
        | Message::Origin { .. }
        | Message::Relation(_)
        | Message::Type { .. } => None,
    };
    written.into_iter().for_each(|row| writers.wrote(row, version));
    Ok(())
}
