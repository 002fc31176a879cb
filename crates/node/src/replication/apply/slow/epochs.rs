//! A table is given a policy while its rows are written.

use super::super::lane::Lane;
use super::{Settled, Trouble, column};

impl Lane<'_> {
    /// Whether the table of a plan without a policy still has none: what has just been written here, and is not decoded
    /// yet, may have seen another one.
    pub(super) async fn still_has_no_policy(&mut self, plan: usize) -> Settled<()> {
        let described = &self.plans[plan];
        if described.keys.as_ref().is_none_or(|keys| keys.policy().is_some()) {
            return Ok(());
        }
        let answer = self.ask_of_table(plan, include_str!("../../sql/any_policy.sql")).await?;
        match answer.rows.first().map(|row| column(row, 0)).transpose()? {
            Some("true") => Err(Trouble::unmet("the table has been given a policy just now")),
            _ => Ok(()),
        }
    }
}
