//! What is forgotten, and when: everything that each member is known to have seen.

use std::collections::{BTreeSet, VecDeque};

use super::{Commit, Entry, History};
use crate::group;
use crate::ids::NodeId;
use crate::lsn::Lsn;
use crate::version::{RowVersion, VersionVector};

impl History {
    /// What every one of `members` has seen of every origin, also of those that are no members any more, as far as is
    /// known here, where `applied` has been applied: no transaction that has not seen it can come any more.
    ///
    /// Only what is applied counts: a transaction that is known and not applied may still have to be looked at closely.
    pub fn stable(
        &mut self,
        here: NodeId,
        applied: &VersionVector,
        members: impl Iterator<Item = NodeId> + Clone,
    ) -> VersionVector {
        for (origin, growing) in &mut self.growing {
            // What is written here is applied here.
            let through = if *origin == here { Lsn(u64::MAX) } else { applied.get(*origin) };
            while growing.front().is_some_and(|(lsn, _)| *lsn <= through) {
                if let Some((_, vector)) = growing.pop_front() {
                    self.seen.entry(*origin).or_default().merge(&vector);
                }
            }
        }
        let nothing = VersionVector::new();
        let known = self.commits.keys().copied();
        let origins: BTreeSet<_> = members.clone().chain([here]).chain(known).collect();
        let least = |origin: NodeId| {
            let seen = members
                .clone()
                .filter(|member| *member != origin)
                .map(|member| self.seen.get(&member).unwrap_or(&nothing).get(origin));
            let here = (origin != here).then(|| applied.get(origin));
            // Where nobody else is, nobody can write concurrently; but somebody may come before the next write.
            seen.chain(here).min().unwrap_or_else(|| self.known_through(origin))
        };
        origins.into_iter().map(|origin| (origin, least(origin))).collect()
    }

    /// The last commit of `origin` that is known.
    fn known_through(&self, origin: NodeId) -> Lsn {
        self.commits.get(&origin).and_then(VecDeque::back).map_or(Lsn::ZERO, |last| last.lsn)
    }

    /// What of `stable` may be forgotten: everything that committed before the first transaction which is not stable.
    /// So what takes a unique value is remembered as long as what loses it.
    pub fn in_order(&self, stable: &VersionVector) -> VersionVector {
        let first_unstable = |(origin, commits): (&NodeId, &VecDeque<Commit>)| {
            let at = commits.partition_point(|commit| commit.lsn <= stable.get(*origin));
            commits.get(at).map(|commit| commit.time)
        };
        let Some(before) = self.commits.iter().filter_map(first_unstable).min() else {
            return stable.clone();
        };
        let through = |(origin, lsn): (NodeId, Lsn)| {
            let Some(commits) = self.commits.get(&origin) else { return (origin, lsn) };
            let late = commits.iter().find(|commit| commit.lsn <= lsn && commit.time >= before);
            (origin, late.map_or(lsn, |late| Lsn(late.lsn.0.saturating_sub(1))))
        };
        stable.iter().map(through).collect()
    }

    /// Forgets what is stable, but at most `max` deletes, claims and writes: a transaction may have had very many. The
    /// last stable commits of each origin stay, as many as one group may have. Whether there is more.
    pub fn forget(&mut self, stable: &VersionVector, max: usize) -> bool {
        let mut left = max;
        self.forgotten.merge(stable);
        for (origin, commits) in &mut self.commits {
            let through = stable.get(*origin);
            while commits.get(group::MAX).is_some_and(|next| next.lsn <= through) {
                commits.pop_front();
            }
        }
        for (origin, entries) in &mut self.entries {
            let through = stable.get(*origin);
            while let Some((_, entry)) = entries.front().filter(|(lsn, _)| *lsn <= through) {
                if left == 0 {
                    return true;
                }
                left -= 1;
                let is_stable = |version: &RowVersion| version.lsn <= stable.get(version.origin);
                match *entry {
                    Entry::Tombstone(row) => {
                        if self.tombstones.get(&row).is_some_and(is_stable) {
                            self.tombstones.remove(&row);
                        }
                    }
                    Entry::Write(row) => {
                        if let Some(writes) = self.writes.get_mut(&row) {
                            // The earliest first: a later one decides as long as an earlier one is remembered.
                            let kept = writes.iter().position(|known| !is_stable(&known.version));
                            writes.drain(..kept.unwrap_or(writes.len()));
                            if writes.is_empty() {
                                self.writes.remove(&row);
                            }
                        }
                    }
                    Entry::Claim(value) => {
                        if let Some(claims) = self.claims.get_mut(&value) {
                            claims.retain(|claim| !is_stable(&claim.version));
                            if claims.is_empty() {
                                self.claims.remove(&value);
                            }
                        }
                    }
                }
                entries.pop_front();
            }
        }
        false
    }

    /// Up to where everything may be forgotten.
    pub fn forgotten(&self) -> &VersionVector {
        &self.forgotten
    }

    /// Whether everything is remembered that a transaction may have met: then it can be settled now as well as in its
    /// turn.
    pub fn remembers(&self, origin: NodeId, lsn: Lsn) -> bool {
        lsn > self.forgotten.get(origin) && self.commit(origin, lsn).is_some()
    }
}
