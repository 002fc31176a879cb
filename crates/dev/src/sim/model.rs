//! The definition of convergence: the rows of a node as a pure function of the transactions that it knows, whatever
//! the order in which it met them. Slow and plain on purpose; nothing of the engine is used here.

use std::collections::{BTreeMap, BTreeSet};

use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::policy::{Effect, Policy};
use synapsedb_core::version::{RowVersion, VersionVector};

/// How many columns a row of the model has.
pub const COLUMNS: u16 = 4;
/// The first columns have a unique index each; the others have none.
pub const UNIQUE: u16 = 2;
/// The column that adds up in a table with a delta column.
pub const DELTA: u16 = 3;

/// A primary key.
pub type Key = u8;
/// The columns of a row beside its primary key.
pub type Row = [i64; COLUMNS as usize];
/// What a node shows.
pub type Rows = BTreeMap<Key, Row>;

/// What settles concurrent writes on the one table of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The policy.
    pub policy: Policy,
    /// Whether column [`DELTA`] adds up.
    pub sums: bool,
}

/// What a transaction did to one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    /// Which row.
    pub key: Key,
    /// What was done.
    pub effect: Effect,
    /// The row after it.
    pub row: Option<Row>,
    /// The columns that were changed, all of them by an insert.
    pub changed: BTreeSet<u16>,
    /// New − old of column [`DELTA`], by an update.
    pub difference: i64,
}

/// A committed transaction: of one statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Who wrote and when.
    pub version: RowVersion,
    /// What the writer had seen of the other nodes.
    pub seen: VersionVector,
    /// What it did to rows.
    pub changes: Vec<RowChange>,
    /// Whether it emptied the table.
    pub truncates: bool,
}

impl Rules {
    /// Every policy, and a table with a delta column.
    pub fn all() -> Vec<Self> {
        let rules = |policy, sums| Self { policy, sums };
        let second = NodeId::new(2).unwrap_or_else(|| unreachable!("2 is a node id"));
        vec![
            rules(Policy::LastWriteWins, false),
            rules(Policy::LastWriteWins, true),
            rules(Policy::FirstWriteWins, false),
            rules(Policy::OriginWins(second), false),
            rules(Policy::MergeColumns, false),
            rules(Policy::Function("more".to_owned()), false),
        ]
    }

    /// The unique values that a change takes: all that the row has, or where columns are merged, those it changed.
    pub fn claims(&self, change: &RowChange) -> Vec<(u16, i64)> {
        let Some(row) = change.row else { return Vec::new() };
        let merges = self.policy == Policy::MergeColumns;
        let columns = (0..UNIQUE).filter(|column| !merges || change.changed.contains(column));
        columns.map(|column| (column, row[usize::from(column)])).collect()
    }
}

/// The user's function of the model: the row with more in the last column but one; a row that is gone gives way.
pub fn more(first: Option<Row>, second: Option<Row>) -> Option<Row> {
    match (first, second) {
        (Some(first), Some(second)) if first[2] >= second[2] => Some(first),
        (Some(_), Some(second)) => Some(second),
        (first, second) => first.or(second),
    }
}

impl Transaction {
    /// Whether the writer had seen the other one (or is it).
    pub fn covers(&self, other: RowVersion) -> bool {
        match self.version.origin == other.origin {
            true => self.version.lsn >= other.lsn,
            false => self.seen.get(other.origin) >= other.lsn,
        }
    }

    /// Its position.
    pub fn position(&self) -> (NodeId, Lsn) {
        (self.version.origin, self.version.lsn)
    }
}

/// A write of the definition.
struct Written<'t> {
    transaction: &'t Transaction,
    change: &'t RowChange,
    killed: bool,
    truncated: bool,
}

impl Written<'_> {
    fn version(&self) -> RowVersion {
        self.transaction.version
    }

    fn alive(&self) -> Option<Row> {
        self.change.row.filter(|_| !self.killed && !self.truncated)
    }
}

/// The rows that a node shows that knows exactly these transactions (which are causally closed).
pub fn defined(rules: &Rules, known: &[&Transaction]) -> Rows {
    let mut writes: BTreeMap<Key, Vec<Written<'_>>> = BTreeMap::new();
    for transaction in known {
        for change in &transaction.changes {
            let killed = known
                .iter()
                .any(|other| other.version > transaction.version && takes(rules, other, change));
            let truncated =
                known.iter().any(|other| other.truncates && other.covers(transaction.version));
            let written = Written { transaction, change, killed, truncated };
            writes.entry(change.key).or_default().push(written);
        }
    }
    let mut rows = Rows::new();
    for (key, mut written) in writes {
        written.sort_by_key(Written::version);
        if let Some(row) = defined_row(rules, &written) {
            rows.insert(key, row);
        }
    }
    rows
}

/// Whether a transaction takes a unique value of this change for another row.
fn takes(rules: &Rules, other: &Transaction, change: &RowChange) -> bool {
    let claims = rules.claims(change);
    let others = other.changes.iter().filter(|taking| taking.key != change.key);
    others.flat_map(|taking| rules.claims(taking)).any(|claim| claims.contains(&claim))
}

fn defined_row(rules: &Rules, written: &[Written<'_>]) -> Option<Row> {
    let latest = written.last()?;
    let covered = |write: &Written<'_>| {
        let others = written.iter().filter(|other| other.version() != write.version());
        others.into_iter().any(|other| other.transaction.covers(write.version()))
    };
    let heads: Vec<&Written<'_>> = written.iter().filter(|write| !covered(write)).collect();
    match &rules.policy {
        Policy::LastWriteWins if rules.sums => {
            let mut row = latest.alive()?;
            let unseen = written.iter().filter(|write| !latest.transaction.covers(write.version()));
            row[usize::from(DELTA)] += unseen.map(|write| write.change.difference).sum::<i64>();
            Some(row)
        }
        Policy::LastWriteWins => latest.alive(),
        Policy::FirstWriteWins => heads.first()?.alive(),
        Policy::OriginWins(node) => {
            let of_node = heads.iter().rfind(|write| write.version().origin == *node);
            of_node.or(heads.last())?.alive()
        }
        Policy::MergeColumns => {
            let mut row = latest.alive()?;
            for column in 0..COLUMNS {
                let changer = written.iter().rfind(|write| {
                    write.change.row.is_some() && write.change.changed.contains(&column)
                })?;
                if column < UNIQUE && changer.killed {
                    return None;
                }
                row[usize::from(column)] = changer.change.row?[usize::from(column)];
            }
            Some(row)
        }
        Policy::Function(_) => heads.iter().map(|head| head.alive()).reduce(more).flatten(),
    }
}
