//! Which transactions of an origin are applied together, and who wrote a row that came with others.
//!
//! A *group* is some consecutive transactions of one origin that a node applies as one local transaction. Readers see
//! all of it or nothing: the state behind it is one that the origin had too. A row that a group has written carries the
//! commit time of the group's last transaction, its *stamp*, and not that of its writer; so groups are made such that
//! the stamp still says enough:
//!
//! * A stamp is never earlier than the commit time of the writer ([`Group::takes`]), and no transaction of the group
//!   commits behind the last. So who has seen the transaction of the stamp has seen the writer, and what is taken for
//!   older by the stamp is older.
//! * The writer is the last transaction up to that of the stamp that wrote the row, and at most [`MAX`] before it. So
//!   it is found in what the origin has sent ([`History::stamped`]), and nothing about groups need be remembered.

use crate::history::History;
use crate::ids::NodeId;
use crate::lsn::Lsn;
use crate::time::Timestamp;

/// The most transactions that a group may ever have: so far back the writer of a row is looked for.
pub const MAX: usize = 64;

/// A group that is being gathered; by default there is none, which takes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    transactions: usize,
    last_time: Timestamp,
}

impl Group {
    /// The group of one transaction.
    pub fn of(time: Timestamp) -> Self {
        Self { transactions: 1, last_time: time }
    }

    /// Takes the next transaction of the origin, unless the group has `max` already or the transaction has an earlier
    /// commit time than the last: PostgreSQL takes the time before it writes the record. Whether it was taken.
    pub fn takes(&mut self, time: Timestamp, max: usize) -> bool {
        let has_room = (1..max.min(MAX)).contains(&self.transactions);
        let takes = has_room && time >= self.last_time;
        if takes {
            *self = Self { transactions: self.transactions + 1, last_time: time };
        }
        takes
    }
}

/// Some consecutive transactions of an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// They are behind this one.
    pub after: Lsn,
    /// The last of them.
    pub through: Lsn,
}

/// The transactions of an origin among which is the writer of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// The last of them that wrote the row is its writer.
    pub span: Span,
    /// Whether no group can reach further back. If not, what is before the span may be forgotten: everybody had seen
    /// it.
    pub is_whole: bool,
}

impl Stamped {
    /// Who wrote the row when none of the transactions did that are kept, of which `first_kept` is the position before
    /// the first.
    pub fn nobody(&self, first_kept: Lsn) -> Nobody {
        let is_kept = first_kept <= self.span.after && (self.is_whole || first_kept == Lsn::ZERO);
        if is_kept { Nobody::OfTheStamp } else { Nobody::Earlier }
    }
}

/// The writer of a row that none of the transactions wrote which are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nobody {
    /// One before them: everybody has seen it.
    Earlier,
    /// That of the stamp, which did it here only: what a trigger writes is not sent.
    OfTheStamp,
}

impl History {
    /// The transactions of `origin` among which is the writer of a row with this stamp. Nothing when it is that of the
    /// stamp, or when none of this time is remembered: everybody has seen it.
    pub fn stamped(&self, origin: NodeId, stamp: Timestamp) -> Option<Stamped> {
        let commits = self.commits_of(origin)?;
        let last = commits.iter().rposition(|commit| commit.time == stamp && !commit.alone)?;
        let before = commits.range(..last).rev().take(MAX - 1);
        let first = last - before.take_while(|commit| !commit.alone).count();
        let after = Lsn(commits.get(first)?.lsn.0.saturating_sub(1));
        let span = Span { after, through: commits.get(last)?.lsn };
        Some(Stamped { span, is_whole: first > 0 || last + 1 >= MAX })
    }
}

#[cfg(test)]
mod tests;
