//! Changes of tables' policies that a write may still come without.

use super::{Digest, History};
use crate::lsn::Lsn;
use crate::policy::{Change, Epochs, Ruling, TablePolicy, Write};
use crate::version::VersionVector;

impl History {
    /// The policy of a table was changed.
    pub fn policy_changed(&mut self, table: Digest, change: Change) {
        self.policies.entry(table).or_default().changed(change);
    }

    /// Whether a change of a table's policy is remembered: while one is, all its writes are noted.
    pub fn has_policy_changes(&self, table: Digest) -> bool {
        self.policies.contains_key(&table)
    }

    /// Decides upon a write on a row of a table that has the policy `now`: see [`Epochs::decide`].
    pub fn rule(
        &self,
        table: Digest,
        now: &TablePolicy,
        incoming: &Write<'_>,
        known: &[Write<'_>],
    ) -> Ruling {
        match self.policies.get(&table) {
            Some(epochs) => epochs.decide(now, incoming, known),
            None => Epochs::default().decide(now, incoming, known),
        }
    }

    /// Forgets changes of policies that nothing can come without: see [`Epochs::forget`].
    pub fn forget_policies(&mut self, stable: &VersionVector, now: &VersionVector) {
        self.policies.retain(|_, epochs| {
            epochs.forget(stable, now);
            !epochs.is_empty()
        });
    }

    /// What of `stable` the spools need not hold any more: a change of a policy that is remembered is read again.
    pub fn but_policies(&self, stable: &VersionVector) -> VersionVector {
        let before = |(origin, lsn): (_, Lsn)| {
            let firsts = self.policies.values().filter_map(|epochs| epochs.first_of(origin));
            let first = firsts.min().map_or(lsn, |first| Lsn(first.0.saturating_sub(1)));
            (origin, lsn.min(first))
        };
        stable.iter().map(before).collect()
    }
}
