//! A row whose table was rewritten: the server tells the rewriting transaction as its writer, the spools tell the true
//! one.

use std::sync::Arc;

use bytes::Bytes;
use synapsedb_core::history::Writer;
use synapsedb_core::rewrite::Writers;
use synapsedb_core::version::RowVersion;

use super::super::lane::Lane;
use super::{Settled, Trouble, column};
use crate::replication::rewrites::{self, Rewritten};

impl Lane<'_> {
    /// As [`Lane::writer_of`], of a row that was rewritten.
    pub(super) async fn writer_before(
        &mut self,
        plan: usize,
        row: &[Option<Bytes>],
    ) -> Settled<(Option<RowVersion>, bool, bool)> {
        // The fast way would fail at the next of these rows too.
        self.conflicting += 1;
        let Some(digest) = self.digest_told(plan, row) else { return Ok((None, false, false)) };
        let writers = self.writers_before(plan, row).await?;
        let Some(header) = &self.header else { return Ok((None, false, false)) };
        let forgotten = self.is_forgotten();
        match writers.of(digest) {
            Some(version) => {
                let vector = &header.vector;
                let writer = Writer { version: self.incoming()?, vector };
                Ok((Some(version), !writer.has_seen(&version), false))
            }
            // A change out of the quarantine is older than what the spools hold: the rewrite is no younger than the
            // writer that it hides.
            None if forgotten => self.writer_of(plan, row),
            None => Ok((None, false, false)),
        }
    }

    /// Who wrote the rows of a table before the rewrite that this row tells.
    async fn writers_before(
        &mut self,
        plan: usize,
        row: &[Option<Bytes>],
    ) -> Settled<Arc<Writers>> {
        let described = &self.plans[plan];
        let rewritten = Rewritten {
            xmin: column(row, 0)?.to_owned(),
            schema: described.schema.clone(),
            table: described.name.clone(),
        };
        let table = self.table_of(plan);
        let shared = self.shared;
        let mut known = shared.rewrites.writers.lock().await;
        if let Some(known) = known.get(&rewritten) {
            return Ok(known.clone());
        }
        self.await_decoded().await?;
        let mut applied = self.applied_now().await?;
        if row.get(2).is_none_or(Option::is_none) {
            // This very transaction has rewritten the table: what it wrote before counts as well.
            let version = self.incoming()?;
            applied.advance(version.origin, version.lsn);
        }
        let writers = rewrites::writers(shared, table, applied).await;
        let writers = Arc::new(writers.map_err(Trouble::from)?);
        known.insert(rewritten, writers.clone());
        Ok(writers)
    }
}
