//! Decides what a row becomes when writes on it were concurrent: one policy per table, a pure function of the writers.
//!
//! Two writes on a row are *concurrent* when neither had seen the other; a write that had seen another one *covers*
//! it. The *heads* are the writes that no other one covers. Every policy is a function of the set of all writes on the
//! row, so nodes that know the same writes have the same row, in whatever order they met them. [`decide`] is the step
//! of that function, told as what is to be done to the row that is here.
//!
//! Two premises come from elsewhere: [`crate::delivery`] delivers causally, and commit-wait makes the order of
//! [`RowVersion`] extend causality. A write that could not be applied in its turn may come late, behind writes that
//! cover it: as long as nobody counts it among the known ones meanwhile, and nothing that it met is forgotten.
//!
//! | policy | the row is |
//! |---|---|
//! | `last_write_wins` | as the latest write left it |
//! | `first_write_wins` | as the earliest head left it |
//! | `origin_wins(2)` | as the latest head of node 2 left it, or else the latest head |
//! | `merge_columns` | there as the latest write decides; each column as the latest write that changed it left it |
//! | `function(f)` | `f(f(first, second), third)` over the rows of the heads, earliest first |
//! | delta columns | the latest write's, plus new − old of every update that it had not seen; the rest as that write |
//!
//! A policy may change while nodes write: see [`Epochs`].

mod epochs;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use epochs::{Change, Epochs, Ruling};

use crate::ids::NodeId;
use crate::version::{RowVersion, VersionVector};

/// What settles concurrent writes on the rows of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Policy {
    /// The latest write stays.
    #[default]
    LastWriteWins,
    /// The earliest of the heads stays.
    FirstWriteWins,
    /// Heads of this node go before all others; then the latest stays.
    OriginWins(NodeId),
    /// Every column has its own latest write. Needs REPLICA IDENTITY FULL, to know what an update changed.
    MergeColumns,
    /// A function of the user's, by its name, makes one row of two.
    Function(String),
}

/// What settles concurrent writes on a table, and which of its columns add up instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TablePolicy {
    /// What settles whole rows or columns.
    pub policy: Policy,
    /// Names of columns in which every update counts. Only with [`Policy::LastWriteWins`]; needs REPLICA IDENTITY FULL.
    pub delta: BTreeSet<String>,
}

/// A text that is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a policy (last_write_wins, first_write_wins, origin_wins(NODE), merge_columns, function(NAME), \
     or last_write_wins with delta(COLUMN, …))"
)]
pub struct NotAPolicy(pub String);

/// What a write did to its row. A change of the primary key is a delete of the old row and an insert of the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// The row was made: every column counts as changed.
    Insert,
    /// The row was changed.
    Update,
    /// The row was removed.
    Delete,
}

/// A write on one row, as far as policies look at it. What one transaction does to one row is one write.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Who wrote and when.
    pub version: RowVersion,
    /// What the writer had seen of the other nodes.
    pub seen: &'a VersionVector,
    /// What was done.
    pub effect: Effect,
    /// The columns that an update changed, or all columns for an insert, by any numbering that is the same for all
    /// writes. Columns of one unique index belong together ([`with_groups`]). Only [`Policy::MergeColumns`] looks.
    pub changed: &'a BTreeSet<u16>,
}

/// What the row becomes. A row that is taken from a delete, or from a write that lost a unique value to a later one
/// or was truncated, is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The row stays as it is here.
    Keep,
    /// The row is as this write left it. Nothing is to be done where it is so already.
    Take(RowVersion),
    /// The row as it is here, but these columns as the incoming write left them.
    SetColumns(BTreeSet<u16>),
    /// The row as the incoming write left it, but these columns as those other writes left them (which is how they
    /// are here, if the row is here).
    TakeBut(BTreeMap<u16, RowVersion>),
    /// The row as it is here, but new − old of the incoming update is added to each delta column.
    Add,
    /// The row as the incoming write left it, and new − old of each of these updates added to its delta columns.
    TakeAndAdd(Vec<RowVersion>),
    /// The user's function over the rows of these writes in this order. That of a delete is NULL.
    Fold(Vec<RowVersion>),
}

impl Write<'_> {
    /// Whether this write had seen the other one (or is it).
    pub fn covers(&self, other: RowVersion) -> bool {
        match self.version.origin == other.origin {
            true => self.version.lsn >= other.lsn,
            false => self.seen.get(other.origin) >= other.lsn,
        }
    }

    /// Whether neither of the two had seen the other.
    pub fn is_concurrent_with(&self, other: &Write<'_>) -> bool {
        !self.covers(other.version) && !other.covers(self.version)
    }
}

/// Columns that a write changed, with all columns of every unique index that has one of them: taken from two writes,
/// the columns of one index would be a value that nobody has claimed.
pub fn with_groups(changed: &BTreeSet<u16>, unique_indexes: &[BTreeSet<u16>]) -> BTreeSet<u16> {
    let mut whole = changed.clone();
    loop {
        let before = whole.len();
        for index in unique_indexes {
            if !index.is_disjoint(&whole) {
                whole.extend(index);
            }
        }
        if whole.len() == before {
            return whole;
        }
    }
}

/// The writes that no other one covers, earliest first.
pub fn heads<'w, 'a>(writes: &'w [Write<'a>]) -> Vec<&'w Write<'a>> {
    let covered = |write: &Write<'_>| {
        writes.iter().any(|other| other.version != write.version && other.covers(write.version))
    };
    let mut heads: Vec<_> = writes.iter().filter(|write| !covered(write)).collect();
    heads.sort_by_key(|write| write.version);
    heads
}

/// Decides what the row becomes by the `incoming` write, when `known` are the other writes on it that are known here.
/// With `sums`, the table has delta columns.
///
/// Known writes may be forgotten, always the earliest ones first, and only those that every write still to come
/// covers: then what is decided does not change.
pub fn decide(policy: &Policy, sums: bool, incoming: &Write<'_>, known: &[Write<'_>]) -> Decision {
    let mut writes = known.to_vec();
    writes.push(*incoming);
    let latest = |write: &&&Write<'_>| write.version;
    match policy {
        Policy::LastWriteWins if sums => add(incoming, &writes),
        Policy::LastWriteWins => match latest_of(&writes, incoming).version == incoming.version {
            true => Decision::Take(incoming.version),
            false => Decision::Keep,
        },
        Policy::FirstWriteWins => {
            let first = heads(&writes).first().map_or(incoming.version, |write| write.version);
            Decision::Take(first)
        }
        Policy::OriginWins(node) => {
            let heads = heads(&writes);
            let of_node = heads.iter().filter(|write| write.version.origin == *node);
            let winner = of_node.max_by_key(latest).or_else(|| heads.iter().max_by_key(latest));
            Decision::Take(winner.map_or(incoming.version, |write| write.version))
        }
        Policy::MergeColumns => merge(incoming, &writes),
        Policy::Function(_) => {
            let heads: Vec<_> = heads(&writes).iter().map(|write| write.version).collect();
            match heads[..] {
                [only] => Decision::Take(only),
                _ => Decision::Fold(heads),
            }
        }
    }
}

fn latest_of<'w, 'a>(writes: &'w [Write<'a>], incoming: &'w Write<'a>) -> &'w Write<'a> {
    writes.iter().max_by_key(|write| write.version).unwrap_or(incoming)
}

fn add(incoming: &Write<'_>, writes: &[Write<'_>]) -> Decision {
    let latest = latest_of(writes, incoming);
    if latest.version != incoming.version {
        let adds = latest.effect != Effect::Delete && incoming.effect == Effect::Update;
        // What comes late may be in the latest row already.
        return match adds && !latest.covers(incoming.version) {
            true => Decision::Add,
            false => Decision::Keep,
        };
    }
    let unseen = writes.iter().filter(|write| !incoming.covers(write.version));
    let updates = unseen.filter(|write| write.effect == Effect::Update);
    let mut updates: Vec<_> = updates.map(|write| write.version).collect();
    updates.sort_unstable();
    match updates.is_empty() || incoming.effect == Effect::Delete {
        true => Decision::Take(incoming.version),
        false => Decision::TakeAndAdd(updates),
    }
}

fn merge(incoming: &Write<'_>, writes: &[Write<'_>]) -> Decision {
    let latest = latest_of(writes, incoming);
    if latest.version != incoming.version && latest.effect == Effect::Delete {
        return Decision::Keep;
    }
    let mut changers: BTreeMap<u16, RowVersion> = BTreeMap::new();
    for write in writes.iter().filter(|write| write.effect != Effect::Delete) {
        for &column in write.changed {
            let changer = changers.entry(column).or_insert(write.version);
            *changer = write.version.max(*changer);
        }
    }
    if latest.version != incoming.version {
        changers.retain(|_, changer| *changer == incoming.version);
        return match changers.is_empty() {
            true => Decision::Keep,
            false => Decision::SetColumns(changers.into_keys().collect()),
        };
    }
    // What the incoming write had seen is in its row.
    changers.retain(|_, changer| !incoming.covers(*changer));
    match changers.is_empty() || incoming.effect == Effect::Delete {
        true => Decision::Take(incoming.version),
        false => Decision::TakeBut(changers),
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LastWriteWins => f.write_str("last_write_wins"),
            Self::FirstWriteWins => f.write_str("first_write_wins"),
            Self::OriginWins(node) => write!(f, "origin_wins({node})"),
            Self::MergeColumns => f.write_str("merge_columns"),
            Self::Function(name) => write!(f, "function({name})"),
        }
    }
}

/// The text between `name(` and the last `)`, without the spaces around it.
fn argument<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let inner = text.strip_prefix(name)?.trim_start().strip_prefix('(')?.strip_suffix(')')?.trim();
    (!inner.is_empty()).then_some(inner)
}

impl FromStr for Policy {
    type Err = NotAPolicy;

    fn from_str(text: &str) -> Result<Self, NotAPolicy> {
        let trimmed = text.trim();
        match trimmed {
            "last_write_wins" => return Ok(Self::LastWriteWins),
            "first_write_wins" => return Ok(Self::FirstWriteWins),
            "merge_columns" => return Ok(Self::MergeColumns),
            _ => {}
        }
        let node = argument(trimmed, "origin_wins").and_then(|node| node.parse().ok());
        let function = || argument(trimmed, "function").map(|name| Self::Function(name.to_owned()));
        node.map(Self::OriginWins).or_else(function).ok_or_else(|| NotAPolicy(text.to_owned()))
    }
}

impl TablePolicy {
    /// Whether the table has delta columns.
    pub fn sums(&self) -> bool {
        !self.delta.is_empty()
    }
}

impl fmt::Display for TablePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.policy)?;
        for (index, column) in self.delta.iter().enumerate() {
            f.write_str(if index == 0 { ", delta(\"" } else { "\", \"" })?;
            f.write_str(&column.replace('"', "\"\""))?;
        }
        f.write_str(if self.sums() { "\")" } else { "" })
    }
}

impl FromStr for TablePolicy {
    type Err = NotAPolicy;

    fn from_str(text: &str) -> Result<Self, NotAPolicy> {
        let error = || NotAPolicy(text.to_owned());
        let trimmed = text.trim();
        let Some(rest) = trimmed.strip_prefix("last_write_wins").map(str::trim_start) else {
            return trimmed.parse().map(|policy| Self { policy, delta: BTreeSet::new() });
        };
        let delta = match rest.strip_prefix(',').map(str::trim_start) {
            Some(list) => argument(list, "delta").and_then(columns).ok_or_else(error)?,
            None if rest.is_empty() => BTreeSet::new(),
            None => return Err(error()),
        };
        Ok(Self { policy: Policy::LastWriteWins, delta })
    }
}

/// The column names of a list: as they are, or in double quotes, in which a double quote is written twice.
fn columns(list: &str) -> Option<BTreeSet<String>> {
    let mut columns = BTreeSet::new();
    let mut rest = list.trim();
    loop {
        let mut name = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted;
            loop {
                let (before, after) = rest.split_once('"')?;
                name.push_str(before);
                let Some(more) = after.strip_prefix('"') else {
                    rest = after.trim_start();
                    break;
                };
                name.push('"');
                rest = more;
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            name.push_str(rest[..end].trim());
            rest = &rest[end..];
            if name.contains('"') {
                return None;
            }
        }
        if name.is_empty() {
            return None;
        }
        columns.insert(name);
        if rest.is_empty() {
            return Some(columns);
        }
        rest = rest.strip_prefix(',')?.trim_start();
    }
}

impl TryFrom<String> for Policy {
    type Error = NotAPolicy;

    fn try_from(text: String) -> Result<Self, NotAPolicy> {
        text.parse()
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> Self {
        policy.to_string()
    }
}

impl TryFrom<String> for TablePolicy {
    type Error = NotAPolicy;

    fn try_from(text: String) -> Result<Self, NotAPolicy> {
        text.parse()
    }
}

impl From<TablePolicy> for String {
    fn from(policy: TablePolicy) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests;
