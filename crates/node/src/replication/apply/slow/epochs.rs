//! Which policy settles a write, while the policy of its table changes.

use synapsedb_core::policy::{self, Decision, Epochs, Ruling, TablePolicy};

use super::super::lane::{Lane, UNMET};
use super::super::session::Parameter;
use super::{Settled, Trouble, column};
use crate::replication::keys::RowKeys;

impl Lane<'_> {
    /// Whether the table of a plan without a policy still has none: what has just been written here, and is not decoded
    /// yet, may have seen another one.
    pub(super) async fn still_has_no_policy(&mut self, plan: usize) -> Settled<()> {
        let described = &self.plans[plan];
        if described.keys.as_ref().is_none_or(|keys| keys.policy().is_some()) {
            return Ok(());
        }
        let table = [&described.schema, &described.name].map(|name| name.clone().into_bytes());
        let parameters = table.each_ref().map(|name| Parameter::Text(name));
        let answer = self.ask(include_str!("../../sql/any_policy.sql"), &parameters).await?;
        match answer.rows.first().map(|row| column(row, 0)).transpose()? {
            Some("true") => Err(Trouble::Row {
                reason: "the table has been given a policy just now".to_owned(),
                sqlstate: Some(UNMET.to_owned()),
            }),
            _ => Ok(()),
        }
    }

    /// By which policy a write is settled, and what that decides; nothing where the row that is here tells it.
    pub(super) fn ruling(
        &self,
        plan: usize,
        own: &policy::Write<'_>,
        others: &[policy::Write<'_>],
    ) -> (TablePolicy, Option<Decision>) {
        let described = &self.plans[plan];
        let now = described.keys.as_ref().and_then(RowKeys::policy).cloned().unwrap_or_default();
        let unchanged = Epochs::default();
        let history = self.shared.recent.lock();
        let epochs = history.policy_changes(described.digest).unwrap_or(&unchanged);
        match epochs.decide(&now, own, others) {
            Ruling::By(table, decision) => (table.clone(), Some(decision)),
            Ruling::Plain => (TablePolicy::default(), None),
        }
    }
}
