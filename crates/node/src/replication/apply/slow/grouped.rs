//! A row that came in a group carries the commit time of the group's last transaction: who wrote it is read from the
//! spool of its origin.

use bytes::Bytes;
use synapsedb_core::history::Writer;
use synapsedb_core::version::RowVersion;

use super::super::lane::Lane;
use super::{Settled, Trouble};
use crate::replication::keys::LocalKeys;
use crate::replication::writers::{self, Found, Table};

impl Lane<'_> {
    /// The table of a plan, for the reading of spools.
    pub(super) fn table_of(&self, plan: usize) -> Table {
        let described = &self.plans[plan];
        Table {
            schema: described.schema.clone(),
            name: described.name.clone(),
            keys: LocalKeys { indexes: described.indexes.clone(), policy: None },
        }
    }

    /// As [`Lane::writer_of`], of a row that another node wrote with this `stamp`, which the open transaction had not
    /// seen: it may have seen the writer.
    pub(super) fn writer_in_group(
        &self,
        plan: usize,
        row: &[Option<Bytes>],
        stamp: RowVersion,
    ) -> Settled<(Option<RowVersion>, bool)> {
        let as_told = (Some(stamp), true);
        let Some(header) = &self.header else { return Ok(as_told) };
        let Some(digest) = self.digest_told(plan, row) else { return Ok(as_told) };
        let writer = Writer { version: self.incoming()?, vector: &header.vector };
        let forgotten = self.is_forgotten();
        let found = writers::of_stamp(self.shared, stamp, &self.table_of(plan), digest);
        Ok(match found.map_err(Trouble::from)? {
            Found::Writer(version) => (Some(version), !writer.has_seen(&version)),
            // A change out of the quarantine tells nothing of what its writer had seen.
            Found::Earlier if !forgotten => (Some(stamp), false),
            Found::Earlier | Found::OfTheStamp => as_told,
        })
    }
}
