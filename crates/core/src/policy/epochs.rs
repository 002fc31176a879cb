//! Policies of one table, one after another, while nodes write.
//!
//! A change of a policy is a transaction like any other, so of every write it is known which changes its writer had
//! seen. The latest of them, in the order of versions, is the write's *epoch*. Of all writes on a row only those of the
//! latest epoch count, and that epoch's policy settles them: a write that had seen a newer policy goes before one that
//! had not. That is a function of the set of writes, as the policies themselves are, so nodes that know the same writes
//! and changes have the same row, whenever the changes came.

use super::{Decision, TablePolicy, Write, decide};
use crate::ids::NodeId;
use crate::lsn::Lsn;
use crate::version::{RowVersion, VersionVector};

/// A change of a table's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Who changed it and when.
    pub version: RowVersion,
    /// What it was, where it was changed.
    pub before: TablePolicy,
    /// What it is from then on.
    pub after: TablePolicy,
    /// Since all writes to come have seen it: up to where transactions may not have.
    unseen_through: Option<VersionVector>,
}

impl Change {
    /// A change that somebody may not have seen.
    pub fn new(version: RowVersion, before: TablePolicy, after: TablePolicy) -> Self {
        Self { version, before, after, unseen_through: None }
    }
}

/// The changes of one table's policy that a write may still come without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epochs {
    /// The policy before the earliest of them, if an earlier one was forgotten.
    base: Option<TablePolicy>,
    /// The earliest first.
    changes: Vec<Change>,
}

/// What is decided upon a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It and all others are of a time before any change, when the latest write won and nobody noted them: that is told
    /// by the row that is here.
    Plain,
    /// By this policy.
    By(TablePolicy, Decision),
}

impl Epochs {
    /// The policy was changed; told twice, it is one change.
    pub fn changed(&mut self, change: Change) {
        if let Err(at) = self.changes.binary_search_by_key(&change.version, |known| known.version) {
            self.changes.insert(at, change);
        }
    }

    /// Whether no change is remembered: then one policy is everybody's.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The first of the changes of an origin that are remembered.
    pub fn first_of(&self, origin: NodeId) -> Option<Lsn> {
        let of_origin = self.changes.iter().filter(|change| change.version.origin == origin);
        of_origin.map(|change| change.version.lsn).min()
    }

    /// How many changes, in their order, lead to the one that the writer had seen: 0 if it had seen none.
    fn epoch(&self, write: &Write<'_>) -> usize {
        let seen = self.changes.iter().rposition(|change| write.covers(change.version));
        seen.map_or(0, |at| at + 1)
    }

    fn policy<'e>(&'e self, epoch: usize, now: &'e TablePolicy) -> &'e TablePolicy {
        match epoch.checked_sub(1).and_then(|at| self.changes.get(at)) {
            Some(change) => &change.after,
            None => {
                let first = self.changes.first().map(|change| &change.before);
                self.base.as_ref().or(first).unwrap_or(now)
            }
        }
    }

    /// Decides as [`decide`] does, where `now` is the policy that the table has if no change is remembered.
    pub fn decide(&self, now: &TablePolicy, incoming: &Write<'_>, known: &[Write<'_>]) -> Ruling {
        let own = self.epoch(incoming);
        let latest = known.iter().map(|write| self.epoch(write)).fold(own, usize::max);
        let table = self.policy(latest, now);
        if own < latest {
            return Ruling::By(table.clone(), Decision::Keep);
        }
        if latest == 0 && *table == TablePolicy::default() {
            return Ruling::Plain;
        }
        let counts = known.iter().filter(|write| self.epoch(write) == latest);
        let counts: Vec<Write<'_>> = counts.copied().collect();
        let decision = decide(&table.policy, table.sums(), incoming, &counts);
        Ruling::By(table.clone(), decision)
    }

    /// Forgets a change when every transaction that had not seen it is stable itself. `now` is up to where transactions
    /// of each origin are known: of those to come all have seen what is stable.
    pub fn forget(&mut self, stable: &VersionVector, now: &VersionVector) {
        let is_past = |change: &Change| {
            let unseen = change.unseen_through.as_ref();
            unseen
                .is_some_and(|unseen| unseen.iter().all(|(origin, lsn)| lsn <= stable.get(origin)))
        };
        while let Some(first) = self.changes.first().filter(|first| is_past(first)) {
            self.base = Some(first.after.clone());
            self.changes.remove(0);
        }
        for change in &mut self.changes {
            if change.version.lsn <= stable.get(change.version.origin) {
                change.unseen_through.get_or_insert_with(|| now.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests;
