//! Decides how far a commit may be reported as safe: which members have it, and what happens when too few of them do.
//!
//! A *position* is an LSN of the own server. Peers acknowledge *commit* LSNs, and the server waits for the *end* of a
//! commit, so the pairs are remembered until enough members have acknowledged them.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;

/// What a commit waits for.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// The own disk.
    #[default]
    Local,
    /// The disks of enough members.
    Quorum,
    /// That readers on enough members see it; they have it on their disks too.
    Applied,
}

/// What happens while too few members can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLostQuorum {
    /// Commits wait until enough members are back.
    #[default]
    Block,
    /// Commits wait for the own disk only until enough members are back and have caught up.
    Degrade,
}

/// How many members, the origin among them, must have a commit: the configured number, or a majority when that is 0.
pub fn needed(members: usize, configured: usize) -> usize {
    if configured == 0 { members / 2 + 1 } else { configured }
}

/// Through which commit enough members have everything, given what each peer has acknowledged. `None` when the origin
/// alone is enough: there is no limit then.
pub fn reached(acknowledged: impl IntoIterator<Item = Lsn>, needed: usize) -> Option<Lsn> {
    let peers_needed = needed.saturating_sub(1);
    let nth = peers_needed.checked_sub(1)?;
    let mut sorted: Vec<Lsn> = acknowledged.into_iter().collect();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    Some(sorted.get(nth).copied().unwrap_or(Lsn::ZERO))
}

/// A commit, or several that are answered for together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Commit {
    commit_lsn: Lsn,
    end_lsn: Lsn,
    /// When the first of them came, in milliseconds.
    at_ms: u64,
}

/// The commits that too few members have acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    commits: VecDeque<Commit>,
    /// The end of the last commit that enough members have.
    safe: Lsn,
    entries_max: usize,
}

impl Pending {
    /// Nothing waits. At most `entries_max` entries are kept (at least 2): beyond that, neighbours are answered for
    /// together, which may only delay the answer to the earlier one.
    pub fn new(entries_max: usize) -> Self {
        Self { commits: VecDeque::new(), safe: Lsn::ZERO, entries_max: entries_max.max(2) }
    }

    /// A commit was made; commits come in the order of their LSNs.
    pub fn push(&mut self, commit_lsn: Lsn, end_lsn: Lsn, now_ms: u64) {
        if self.commits.len() >= self.entries_max {
            self.halve();
        }
        self.commits.push_back(Commit { commit_lsn, end_lsn, at_ms: now_ms });
    }

    /// Enough members have everything through `reached` (see [`reached`]). Answers whether anything became safe.
    pub fn acknowledge(&mut self, reached: Option<Lsn>) -> bool {
        let before = self.commits.len();
        while let Some(first) = self.commits.front() {
            if reached.is_some_and(|reached| first.commit_lsn > reached) {
                break;
            }
            self.safe = first.end_lsn;
            self.commits.pop_front();
        }
        self.commits.len() < before
    }

    /// The position through which everything is safe, given what is on the own disk: all of that when nothing waits.
    pub fn position(&self, own: Lsn) -> Lsn {
        if self.commits.is_empty() { own } else { own.min(self.safe) }
    }

    /// How long the oldest commit has been waiting.
    pub fn age_ms(&self, now_ms: u64) -> Option<u64> {
        self.commits.front().map(|oldest| now_ms.saturating_sub(oldest.at_ms))
    }

    /// Every two neighbours become one, which is safe when the later one is.
    fn halve(&mut self) {
        let old = std::mem::take(&mut self.commits);
        let mut old = old.into_iter();
        while let Some(first) = old.next() {
            let last = old.next().unwrap_or(first);
            self.commits.push_back(Commit { at_ms: first.at_ms, ..last });
        }
    }
}

/// Whether enough members acknowledge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quorum {
    /// They do, or nothing was asked of them for long enough to tell.
    #[default]
    Met,
    /// They do not, since then (milliseconds), and commits wait.
    Lost(u64),
    /// They do not, since then (milliseconds), and commits do not wait for them.
    Degraded(u64),
}

/// What a [`Watch`] looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// How many members are there, the origin among them.
    pub connected: usize,
    /// How many are needed.
    pub needed: usize,
    /// How long the oldest commit has been waiting, if one is.
    pub waiting_ms: Option<u64>,
}

/// Follows whether there is a quorum.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    on_lost: OnLostQuorum,
    after_ms: u64,
    short_since_ms: Option<u64>,
    state: Quorum,
}

impl Watch {
    /// The quorum counts as lost when a commit has waited, or too few members were there, for `after_ms`.
    pub fn new(on_lost: OnLostQuorum, after_ms: u64) -> Self {
        Self { on_lost, after_ms, short_since_ms: None, state: Quorum::Met }
    }

    /// Looks again; answers the new state when it has changed.
    ///
    /// The quorum is met again when enough members are there and the oldest commit has waited for less than a quarter
    /// of the limit: they have caught up.
    pub fn step(&mut self, now_ms: u64, facts: Facts) -> Option<Quorum> {
        let short = facts.connected < facts.needed;
        self.short_since_ms = short.then(|| self.short_since_ms.unwrap_or(now_ms));
        let short_ms = self.short_since_ms.map(|since| now_ms.saturating_sub(since));
        let longest_ms = short_ms.max(facts.waiting_ms);
        let state = match self.state {
            Quorum::Met => match longest_ms.filter(|ms| *ms >= self.after_ms) {
                None => Quorum::Met,
                Some(ms) => {
                    let since_ms = now_ms.saturating_sub(ms);
                    match self.on_lost {
                        OnLostQuorum::Block => Quorum::Lost(since_ms),
                        OnLostQuorum::Degrade => Quorum::Degraded(since_ms),
                    }
                }
            },
            lost @ (Quorum::Lost(_) | Quorum::Degraded(_)) => {
                let caught_up = facts.waiting_ms.is_none_or(|ms| ms <= self.after_ms / 4);
                if !short && caught_up { Quorum::Met } else { lost }
            }
        };
        let changed = state != self.state;
        self.state = state;
        changed.then_some(state)
    }

    /// The state that [`Watch::step`] answered last.
    pub fn state(&self) -> Quorum {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_majority_is_more_than_half() {
        let majorities: Vec<_> = (1..=6).map(|members| needed(members, 0)).collect();
        assert_eq!(majorities, [1, 2, 2, 3, 3, 4]);
        assert_eq!(needed(3, 3), 3);
    }

    #[test]
    fn the_last_peer_that_is_needed_decides() {
        let acknowledged = [Lsn(5), Lsn(9), Lsn(7)];
        assert_eq!(reached(acknowledged, 1), None);
        assert_eq!(reached(acknowledged, 2), Some(Lsn(9)));
        assert_eq!(reached(acknowledged, 4), Some(Lsn(5)));
        assert_eq!(reached(acknowledged, 5), Some(Lsn::ZERO), "there is no fifth member");
        assert_eq!(reached([], 0), None);
    }

    #[test]
    fn a_commit_is_safe_up_to_its_end() {
        let mut pending = Pending::new(8);
        pending.push(Lsn(10), Lsn(15), 100);
        pending.push(Lsn(20), Lsn(25), 200);
        assert_eq!(pending.position(Lsn(25)), Lsn::ZERO);
        assert!(!pending.acknowledge(Some(Lsn(9))));
        assert!(pending.acknowledge(Some(Lsn(10))));
        assert_eq!(pending.position(Lsn(25)), Lsn(15));
        assert_eq!(pending.position(Lsn(12)), Lsn(12), "never beyond the own disk");
        assert_eq!(pending.age_ms(250), Some(50));
        assert!(pending.acknowledge(Some(Lsn(20))));
        assert_eq!(pending.position(Lsn(40)), Lsn(40), "what follows holds nothing to wait for");
        assert_eq!(pending.age_ms(250), None);
    }

    fn facts(connected: usize, waiting_ms: Option<u64>) -> Facts {
        Facts { connected, needed: 2, waiting_ms }
    }

    #[test]
    fn a_quorum_is_lost_by_waiting_or_by_absence_and_found_by_catching_up() {
        let mut watch = Watch::new(OnLostQuorum::Degrade, 1000);
        assert_eq!(watch.step(5000, facts(2, Some(999))), None);
        assert_eq!(watch.step(6000, facts(2, Some(1000))), Some(Quorum::Degraded(5000)));
        assert_eq!(watch.step(6100, facts(2, Some(251))), None, "not caught up yet");
        assert_eq!(watch.step(6200, facts(1, None)), None, "nothing waits, but nobody is there");
        assert_eq!(watch.step(6300, facts(2, Some(250))), Some(Quorum::Met));
        assert_eq!(watch.step(6400, facts(1, None)), None);
        assert_eq!(watch.step(7399, facts(1, None)), None);
        assert_eq!(watch.step(7400, facts(1, None)), Some(Quorum::Degraded(6400)));
        let mut blocking = Watch::new(OnLostQuorum::Block, 0);
        assert_eq!(blocking.step(1, facts(1, None)), Some(Quorum::Lost(1)));
        assert_eq!(blocking.state(), Quorum::Lost(1));
    }

    proptest! {
        /// Whatever is forgotten to save memory: nothing is called safe that too few members have.
        #[test]
        fn nothing_is_safe_too_early(gaps in prop::collection::vec(2..9u64, 1..80), reached in 0..600u64) {
            let mut pending = Pending::new(4);
            let mut commits = Vec::new();
            let mut at = 0;
            for (gap, now) in gaps.iter().zip(0..) {
                at += gap;
                commits.push((Lsn(at), Lsn(at + 1)));
                pending.push(Lsn(at), Lsn(at + 1), now);
                prop_assert!(pending.commits.len() <= 4);
            }
            pending.acknowledge(Some(Lsn(reached)));
            let safe = pending.position(Lsn(at + 1));
            for (commit, end) in &commits {
                prop_assert!(end > &safe || commit <= &Lsn(reached), "{commit} is not acknowledged");
            }
            pending.acknowledge(Some(Lsn(at)));
            prop_assert_eq!(pending.position(Lsn(at + 1)), Lsn(at + 1), "the last one is never forgotten");
        }
    }
}
