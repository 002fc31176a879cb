//! Rows of tables without a primary key.

use synapsedb_core::change::Change;

use super::super::lane::Lane;
use super::super::plan::{RowChange, Shape};
use super::log::Conflict;
use super::{Settled, Trouble};

impl Lane<'_> {
    /// A row of a table without a primary key: one of the equal rows is changed, or there is none.
    pub(super) async fn keyless(&mut self, plan: usize, change: &Change<'_>) -> Settled<()> {
        let width = self.plans[plan].width();
        let Some(row_change) = RowChange::of(change) else { return Ok(()) };
        let (RowChange::Insert(told) | RowChange::Update(_, told) | RowChange::Delete(told)) =
            row_change;
        let shape = row_change.shape();
        if told.len() != width {
            return Err(Trouble::row(format!("a row has {} columns, not {width}", told.len())));
        }
        let sql = self.plans[plan].unchecked(&shape);
        let parameters = self.plans[plan].parameters(&row_change, None);
        let answer = self.ask(&sql, &parameters).await?;
        if answer.affected == 0 && shape != Shape::Insert {
            let conflict = Conflict::new("missing", "skipped").remote(told);
            self.log(plan, conflict).await?;
        }
        Ok(())
    }
}
