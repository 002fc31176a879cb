//! A clash on a secondary unique key: the later writer keeps the value, the row of the other one goes to the log.

use synapsedb_core::change::Value;
use synapsedb_core::history::Writer;
use synapsedb_core::version::{RowVersion, VersionVector};

use super::super::lane::Lane;
use super::super::plan::parameter;
use super::log::Conflict;
use super::row::LocalRow;
use super::statement;
use super::{Settled, Trouble};

impl Lane<'_> {
    /// Removes the rows that hold a unique value of the incoming row and were written earlier, unseen. Whether the
    /// incoming row stays itself does not matter: its claim counts. Answers the latest writer that holds one of the
    /// values and is later, if there is one.
    pub(super) async fn oust(
        &mut self,
        plan: usize,
        new: &[Value<'_>],
        incoming: RowVersion,
    ) -> Settled<Option<RowVersion>> {
        let mut taken = None;
        for index in self.plans[plan].indexes.clone() {
            if index.is_primary {
                continue;
            }
            let Some(holder) = self.holder(plan, new, &index.columns).await? else { continue };
            let Some(version) = holder.version.filter(|_| holder.concurrent) else { continue };
            if version > incoming {
                taken = taken.max(Some(version));
                continue;
            }
            self.delete_here(plan, &holder.tuple()).await?;
            self.bury(plan, &holder.tuple(), version);
            self.bereave(plan, &holder.tuple(), incoming);
            let conflict = Conflict::new("unique", "apply_remote").remote(new).local(Some(&holder));
            self.log(plan, conflict).await?;
        }
        Ok(taken)
    }

    /// A unique index still refuses the new row. Its place is free afterwards, or it cannot be freed.
    ///
    /// The row that holds the value was written by somebody whom the writer had seen, who let it go since then there
    /// and not here; what it became waits behind this transaction or in the quarantine.
    pub(super) async fn free_place(
        &mut self,
        plan: usize,
        new: &[Value<'_>],
        index: &str,
    ) -> Settled<()> {
        let Some(found) = self.plans[plan].indexes.iter().find(|known| known.name == index) else {
            return Err(Trouble::row(format!(
                "unique index \"{index}\" is violated, which is partial or of expressions: \
                 which of the rows stays cannot be decided alike everywhere"
            )));
        };
        if found.is_primary {
            // Another session inserted the key since it was looked for: the row is read again.
            return Ok(());
        }
        let columns = found.columns.clone();
        let Some(holder) = self.holder(plan, new, &columns).await? else { return Ok(()) };
        if holder.concurrent {
            return Ok(());
        }
        self.delete_here(plan, &holder.tuple()).await?;
        let conflict = Conflict::new("unique", "apply_remote").remote(new).local(Some(&holder));
        self.log(plan, conflict.detail("the writer had seen the other row let the value go")).await
    }

    /// A row loses its place to the write of this version, unseen: its children are orphans, also those that come
    /// later.
    pub(super) fn bereave(&self, plan: usize, row: &[Value<'_>], winner: RowVersion) {
        let foreign = &self.plans[plan].foreign;
        if foreign.is_empty() {
            return;
        }
        // What the winner had seen is not known here, and only saves a look.
        let nothing = VersionVector::new();
        let writer = Writer { version: winner, vector: &nothing };
        let mut orphans = Vec::new();
        foreign.lost(&mut self.shared.recent.lock(), row, &writer, &mut orphans);
        self.shared.look_for_orphans(orphans);
    }

    fn bury(&self, plan: usize, row: &[Value<'_>], version: RowVersion) {
        let digest = self.plans[plan].keys.as_ref().and_then(|keys| keys.row(row));
        if let Some(digest) = digest {
            self.shared.recent.lock().deleted(digest, version);
        }
    }

    /// Reads and locks the row that holds the values of `columns` in the place of the new one.
    async fn holder(
        &mut self,
        plan: usize,
        new: &[Value<'_>],
        columns: &[String],
    ) -> Settled<Option<LocalRow>> {
        let condition = statement::holder(&self.plans[plan], columns);
        let sql = statement::read(&self.plans[plan], &condition);
        let mut parameters = Vec::with_capacity(columns.len() + 1);
        for name in columns {
            let places = &self.plans[plan].columns;
            let at = places.iter().position(|column| column.local.name == *name);
            let value = at.and_then(|at| new.get(at)).copied().unwrap_or(Value::Null);
            if matches!(value, Value::Null | Value::Unchanged) {
                return Ok(None);
            }
            parameters.push(parameter(value));
        }
        self.plans[plan].push_key(new, &mut parameters);
        self.read_one(plan, &sql, &parameters).await
    }
}

/// The name of the index in the message of a unique violation.
pub(super) fn violated(reason: &str) -> &str {
    reason.split('"').nth(1).unwrap_or_default()
}
