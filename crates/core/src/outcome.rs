//! What became of a transaction whose COMMIT was interrupted: which facts prove that it took effect, and which that it
//! never will.
//!
//! A router puts a *marker* with a number of its own into a transaction that has written. Whoever reads the marker in
//! the WAL of the transaction's node knows that it has committed. That it has not is harder to know: only the agent of
//! that node can, in this order ([`at_origin`]): the server's session is gone, so nothing of it is still to come; the
//! WAL ends *there*, wherever that is; the WAL has been read up to there; the marker was not in it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::lsn::Lsn;

/// The number of a transaction, unique over all routers and their lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(u128);

impl Id {
    /// Bits of the count of one life's transactions.
    const COUNT_BITS: u32 = 48;

    /// The transaction with this count of a life of a router, which drew `life` at random when it began.
    pub fn new(node: NodeId, life: u64, count: u64) -> Self {
        let count = count & ((1 << Self::COUNT_BITS) - 1);
        let life = u128::from(life) << Self::COUNT_BITS;
        Self(u128::from(node.get()) << 112 | life | u128::from(count))
    }

    /// As it is written: 32 hexadecimal digits.
    pub fn digits(self) -> [u8; 32] {
        let (mut digits, mut rest) = ([0; 32], self.0);
        for digit in digits.iter_mut().rev() {
            *digit = b"0123456789abcdef"[(rest & 15) as usize];
            rest >>= 4;
        }
        digits
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Text that is no [`Id`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not the number of a transaction (32 hexadecimal digits)")]
pub struct NotAnId(String);

impl FromStr for Id {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or_else(|| NotAnId(text.to_owned()))
    }
}

impl TryFrom<String> for Id {
    type Error = NotAnId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.to_string()
    }
}

/// What the commit had to wait for before it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Promise {
    /// At most for the disk of its node.
    Local,
    /// For other members.
    Members,
}

impl Promise {
    /// Of the transaction's `synchronous_commit`.
    pub fn of(synchronous_commit: &str) -> Self {
        match synchronous_commit {
            "off" | "local" => Self::Local,
            _ => Self::Members,
        }
    }
}

/// A marker that was read: its transaction has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// What the commit had to wait for.
    pub promise: Promise,
    /// Its commit LSN at its origin.
    pub lsn: Lsn,
}

/// What one agent knows of a transaction, and in the end what is known at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It took effect.
    Committed(Seen),
    /// It did not, and never will.
    Aborted,
    /// Nobody can tell now.
    Unknown,
}

/// What the agent of the transaction's node has found out, each fact after the one above it.
#[derive(Clone, Copy, Debug)]
pub struct AtOrigin {
    /// The server has no session of that number.
    pub session_gone: bool,
    /// Where the WAL ended after that.
    pub wal_end: Lsn,
    /// Up to where the WAL had been read after that.
    pub read: Lsn,
    /// What the index said after that.
    pub seen: Option<Seen>,
    /// Whether the index had forgotten nothing that the transaction could have been, and had read all of it.
    pub index_covers: bool,
}

/// What the agent of the transaction's node may answer.
pub fn at_origin(facts: &AtOrigin) -> Answer {
    match facts.seen {
        Some(seen) => Answer::Committed(seen),
        None if facts.session_gone && facts.read >= facts.wal_end && facts.index_covers => {
            Answer::Aborted
        }
        None => Answer::Unknown,
    }
}

/// The transactions that were seen committed lately.
#[derive(Debug)]
pub struct Index {
    seen: BTreeMap<Id, Seen>,
    /// In the order in which they were seen, with the instants.
    order: VecDeque<(u64, Id)>,
    count_max: usize,
    keep_ms: u64,
    /// What was committed at or before this instant may have been seen and be forgotten.
    horizon_ms: u64,
}

impl Index {
    /// An index that knows nothing of what was before `now_ms`; it keeps at most so many, each at least so long if it
    /// can. Instants are of any clock that only goes forward.
    pub fn new(count_max: usize, keep_ms: u64, now_ms: u64) -> Self {
        let (seen, order) = (BTreeMap::new(), VecDeque::new());
        Self { seen, order, count_max, keep_ms, horizon_ms: now_ms }
    }

    /// All that was committed after this instant, and before the index began, has been noted.
    pub fn filled_from(&mut self, since_ms: u64) {
        // What was forgotten meanwhile stays forgotten: then there were more than can be kept.
        if self.order.len() < self.count_max {
            self.horizon_ms = self.horizon_ms.min(since_ms);
        }
    }

    /// The marker of a transaction that has committed was seen.
    pub fn note(&mut self, id: Id, seen: Seen, now_ms: u64) {
        if self.seen.insert(id, seen).is_none() {
            self.order.push_back((now_ms, id));
        }
        while let Some(&(at_ms, oldest)) = self.order.front() {
            let old = at_ms.saturating_add(self.keep_ms) < now_ms;
            if !old && self.order.len() <= self.count_max {
                break;
            }
            self.order.pop_front();
            self.seen.remove(&oldest);
            self.horizon_ms = self.horizon_ms.max(at_ms);
        }
    }

    /// Whether a transaction was seen.
    pub fn get(&self, id: Id) -> Option<Seen> {
        self.seen.get(&id).copied()
    }

    /// Whether every transaction that was begun to be committed after this instant and was seen is known.
    pub fn covers(&self, since_ms: u64) -> bool {
        since_ms > self.horizon_ms
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests;
