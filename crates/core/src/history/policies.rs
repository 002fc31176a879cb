//! Changes of tables' policies that a write may still come without.

use super::{Digest, History};
use crate::lsn::Lsn;
use crate::policy::{Change, Epochs};
use crate::version::VersionVector;

impl History {
    /// The policy of a table was changed.
    pub fn policy_changed(&mut self, table: Digest, change: Change) {
        self.policies.entry(table).or_default().changed(change);
    }

    /// The changes of a table's policy that are remembered: while there are any, all its writes are noted.
    pub fn policy_changes(&self, table: Digest) -> Option<&Epochs> {
        self.policies.get(&table)
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
