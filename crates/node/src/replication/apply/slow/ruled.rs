//! A change of a table with a policy of its own: what is ruled upon, and how the outcome is written.

use synapsedb_core::change::{Change, Value};

use super::super::lane::Lane;
use super::row::{TRIES_MAX, Written, completed};
use super::{Settled, Trouble};
use crate::replication::recent::old_values;

impl Lane<'_> {
    /// A row of a table with a policy of its own. A change of the key is a delete and an insert.
    pub(super) async fn ruled_row(&mut self, plan: usize, change: &Change<'_>) -> Settled<()> {
        match change {
            Change::Insert { new, .. } => {
                let row = self.digest(plan, new)?;
                self.rule(plan, row, new, (None, Some(new))).await
            }
            Change::Update { old, new, .. } => {
                let new = &completed(old.as_ref(), new);
                let (before, row) = (old.as_ref().map(old_values), self.digest(plan, new)?);
                let left = before.and_then(|before| self.digest(plan, before).ok());
                if let (Some(before), Some(left)) = (before, left.filter(|left| *left != row)) {
                    self.rule(plan, left, before, (Some(before), None)).await?;
                    return self.rule(plan, row, new, (None, Some(new))).await;
                }
                self.rule(plan, row, new, (before, Some(new))).await
            }
            Change::Delete { old, .. } => {
                let old = old_values(old);
                let row = self.digest(plan, old)?;
                self.rule(plan, row, old, (Some(old), None)).await
            }
            Change::Truncate { .. } => Ok(()),
        }
    }

    /// Deletes the row that was here as its policy has ruled. What a local session has put where none was is not
    /// meant: it is decided upon when it is decoded.
    pub(super) async fn remove_ruled(
        &mut self,
        plan: usize,
        key: &[Value<'_>],
        was_here: bool,
    ) -> Settled<()> {
        if was_here { self.delete_here(plan, key).await } else { Ok(()) }
    }

    /// Writes a row as its policy has ruled; only a later claim on one of its unique values keeps it away. What it
    /// ruled counts only for the row that was here then, or none.
    pub(super) async fn write_ruled(
        &mut self,
        plan: usize,
        new: &[Value<'_>],
        was_here: bool,
    ) -> Settled<()> {
        let (row, incoming) = (self.digest(plan, new)?, self.incoming()?);
        for _ in 0..TRIES_MAX {
            let here = self.read_row(plan, new).await?;
            if here.is_some() && !was_here {
                return Err(Trouble::unmet("a local session has written the row just now"));
            }
            let holds = self.oust(plan, new, incoming).await?;
            let taken = self.facts(plan, row, new, here.as_ref()).taken.max(holds);
            if taken.is_some() {
                return self.give_way(plan, new, here, taken).await;
            }
            match self.write(plan, new, here.as_ref()).await? {
                Written::Done => return Ok(()),
                Written::Taken(index) => self.free_place(plan, new, &index).await?,
            }
        }
        Err(Trouble::row("other sessions keep changing the row"))
    }
}
