//! Who wrote rows, where the server does not tell: read from the spools, which hold every transaction that somebody may
//! not have seen.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use synapsedb_core::change::Change;
use synapsedb_core::group::{Nobody, Span};
use synapsedb_core::history::Digest;
use synapsedb_core::ids::NodeId;
use synapsedb_core::rewrite::Writers;
use synapsedb_core::version::RowVersion;
use synapsedb_pg::pgoutput::{self, Message};

use super::Shared;
use super::keys::{LocalKeys, RowKeys};
use super::recent::{self, relation_id};
use super::spool::{Spool, SpoolError};

/// A spool that is cut while it is read is read anew so often: what was cut, everybody had seen.
const READS_MAX: u32 = 5;

/// The table whose rows are meant.
pub(crate) struct Table {
    pub(crate) schema: String,
    pub(crate) name: String,
    /// The unique indexes of the local table.
    pub(crate) keys: LocalKeys,
}

/// Who wrote a row of another node that carries a stamp.
pub(crate) enum Found {
    /// This one.
    Writer(RowVersion),
    /// The transaction of the stamp itself, or nothing is known of it.
    OfTheStamp,
    /// Somebody whom every transaction that may still come has seen.
    Earlier,
}

/// Who wrote a row that carries this stamp of node `stamp.origin`: it may have come in a group.
///
/// # Errors
/// A spool cannot be read.
pub(crate) fn of_stamp(
    shared: &Shared,
    stamp: RowVersion,
    table: &Table,
    row: Digest,
) -> Result<Found> {
    let origin = stamp.origin;
    let stamped = shared.recent.lock().stamped(origin, stamp.commit_time);
    let Some(stamped) = stamped else { return Ok(Found::OfTheStamp) };
    // The lives that have ended first.
    let ended = shared.spools.ended().into_iter().filter(|((of, _), _)| *of == origin);
    let ended = ended.map(|(_, spool)| spool);
    let spools: Vec<Spool> =
        ended.chain(shared.spools.get(origin).map(|(_, spool)| spool)).collect();
    let reading = Reading { origin, span: stamped.span, table };
    let mut writers = Writers::default();
    for spool in &spools {
        reading.read(spool, &mut writers)?;
    }
    let first_kept = spools.iter().map(Spool::first_available).min().unwrap_or_default();
    Ok(match (writers.of(row), stamped.nobody(first_kept)) {
        (Some(version), _) => Found::Writer(version),
        (None, Nobody::OfTheStamp) => Found::OfTheStamp,
        (None, Nobody::Earlier) => Found::Earlier,
    })
}

/// What of a spool is read.
pub(crate) struct Reading<'r> {
    pub(crate) origin: NodeId,
    pub(crate) span: Span,
    pub(crate) table: &'r Table,
}

impl Reading<'_> {
    /// Reads who wrote the rows of the table last, of the transactions of the span.
    ///
    /// # Errors
    /// The spool of the origin cannot be read.
    pub(crate) fn read(&self, spool: &Spool, writers: &mut Writers) -> Result<()> {
        let mut reads = 0;
        loop {
            reads += 1;
            let Err(error) = self.read_once(spool, writers) else { return Ok(()) };
            let cut = matches!(error.downcast_ref(), Some(SpoolError::Gone { .. }));
            if !cut || reads == READS_MAX {
                let origin = self.origin;
                return Err(error
                    .context(format!("read the spool of node {origin} for the writers of rows")));
            }
        }
    }

    fn read_once(&self, spool: &Spool, writers: &mut Writers) -> Result<()> {
        let mut reader = spool.reader_after(self.span.after.max(spool.first_available()))?;
        let mut relations: BTreeMap<u32, Option<RowKeys>> = BTreeMap::new();
        let mut version = None;
        while let Some(frame) = reader.try_next()? {
            if let Some(header) = frame.header() {
                if header.commit_lsn > self.span.through {
                    break;
                }
                version = Some(recent::version(self.origin, &header));
            }
            let Some(version) = version else { continue };
            for raw in frame.messages() {
                let relation = relation_id(&raw);
                match raw.first() {
                    Some(b'R') => drop(relations.insert(relation, keys_of(&raw, self.table)?)),
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
}

/// Where the key of the table stands; nothing for another table, or one that had another key.
fn keys_of(raw: &[u8], table: &Table) -> Result<Option<RowKeys>> {
    let Message::Relation(relation) = pgoutput::decode(raw).context("decode a relation")? else {
        return Ok(None);
    };
    let is_it = (&relation.schema, &relation.name) == (&table.schema, &table.name);
    Ok(if is_it { RowKeys::new(&relation, &table.keys) } else { None })
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
