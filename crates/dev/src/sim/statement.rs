//! What users do on a node of the model: statements on the rows that the node shows, and the transactions they become.

use std::collections::BTreeSet;

use synapsedb_core::policy::Effect;
use synapsedb_core::version::{RowVersion, VersionVector};

use super::model::{COLUMNS, DELTA, Key, Row, RowChange, Rows, Transaction, UNIQUE};

/// A statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statement {
    /// A row with this value in all its unique columns.
    Insert(Key, i64),
    /// Another value in a column; what is added, in the last one.
    Update(Key, u16, i64),
    /// The row away.
    Delete(Key),
    /// The row under another key.
    Move(Key, Key),
    /// All rows away.
    Truncate,
}

/// The transaction that a statement becomes, or `None` where the server refuses it or it does nothing.
pub fn committed(
    statement: Statement,
    shown: &Rows,
    version: RowVersion,
    seen: &VersionVector,
    value: i64,
) -> Option<Transaction> {
    let changes = changes(statement, shown, value)?;
    let taken = |change: &RowChange| {
        let others = shown.iter().filter(|(key, _)| changes.iter().all(|gone| gone.key != **key));
        others.into_iter().any(|(_, row)| {
            let same = |column: usize| change.row.is_some_and(|new| new[column] == row[column]);
            (0..usize::from(UNIQUE)).any(same)
        })
    };
    if changes.iter().any(taken) {
        return None;
    }
    let truncates = statement == Statement::Truncate;
    Some(Transaction { version, seen: seen.clone(), changes, truncates })
}

fn changes(statement: Statement, shown: &Rows, value: i64) -> Option<Vec<RowChange>> {
    let all: BTreeSet<u16> = (0..COLUMNS).collect();
    let inserted = |key, row| RowChange {
        key,
        effect: Effect::Insert,
        row: Some(row),
        changed: all.clone(),
        difference: 0,
    };
    let deleted = |key| RowChange {
        key,
        effect: Effect::Delete,
        row: None,
        changed: BTreeSet::new(),
        difference: 0,
    };
    match statement {
        Statement::Insert(key, unique) => {
            let row: Row = [unique, unique, value, value];
            (!shown.contains_key(&key)).then(|| vec![inserted(key, row)])
        }
        Statement::Update(key, column, to) => {
            let old = *shown.get(&key)?;
            let mut new = old;
            let place = usize::from(column);
            new[place] = if column == DELTA { old[place] + to } else { to };
            let difference = new[usize::from(DELTA)] - old[usize::from(DELTA)];
            let changed = BTreeSet::from([column]);
            let (effect, row) = (Effect::Update, Some(new));
            (old != new).then(|| vec![RowChange { key, effect, row, changed, difference }])
        }
        Statement::Delete(key) => shown.contains_key(&key).then(|| vec![deleted(key)]),
        Statement::Move(from, to) => {
            let row = *shown.get(&from)?;
            let free = from != to && !shown.contains_key(&to);
            free.then(|| vec![deleted(from), inserted(to, row)])
        }
        Statement::Truncate => Some(Vec::new()),
    }
}
