//! The rows of one pure node and what it remembers of recent writes: the engine of the simulation, which carries out
//! what `synapsedb_core::policy` decides, one transaction after the other.

use std::collections::BTreeMap;

use synapsedb_core::policy::{self, Decision, Effect, Policy, Write};
use synapsedb_core::version::{RowVersion, VersionVector};

use super::model::{DELTA, Key, Row, RowChange, Rows, Rules, Transaction, UNIQUE, more};

/// What is left out on purpose, so that the checkers can be seen to find it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breakage {
    /// Deletes are not remembered.
    pub without_tombstones: bool,
    /// Only the row that holds a unique value now claims it, not one that has moved on.
    pub claims_of_present_rows_only: bool,
}

/// A write that is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    seen: VersionVector,
    change: RowChange,
    fate: Fate,
}

/// Why a write leaves no row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fate {
    /// It lost a unique value to a later write on another row.
    killed: bool,
    /// A truncate had seen it.
    truncated: bool,
}

/// What a write decides of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Whether it is there, and all that nobody else decides.
    Whole,
    /// A unique column of a table whose columns are merged.
    Column(u16),
    /// A head, of a table with a function.
    Head(RowVersion),
}

/// A write that decides a part of a row, which is durable with the row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decider {
    version: RowVersion,
    claims: Vec<(u16, i64)>,
    row: Option<Row>,
    fate: Fate,
}

/// A row, or what is kept of one that is not shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stored {
    content: Option<Row>,
    deciders: BTreeMap<Part, Decider>,
}

/// What survives a crash: the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durable(BTreeMap<Key, Stored>);

/// The rows of a node and its index of recent writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    rules: Rules,
    breakage: Breakage,
    rows: Durable,
    known: BTreeMap<Key, BTreeMap<RowVersion, Known>>,
}

impl Stored {
    fn shown(&self, rules: &Rules) -> Option<Row> {
        if matches!(rules.policy, Policy::Function(_)) {
            let row = |head: &Decider| head.row.filter(|_| head.fate == Fate::default());
            return self.deciders.values().map(row).reduce(more).flatten();
        }
        let killed = self.deciders.values().any(|decider| decider.fate.killed);
        let whole = self.deciders.get(&Part::Whole);
        let truncated = whole.is_some_and(|decider| decider.fate.truncated);
        self.content.filter(|_| !killed && !truncated)
    }
}

impl Replica {
    /// Without rows.
    pub fn new(rules: Rules, breakage: Breakage) -> Self {
        Self { rules, breakage, rows: Durable::default(), known: BTreeMap::new() }
    }

    /// What a reader sees.
    pub fn shown(&self) -> Rows {
        let shown =
            self.rows.0.iter().map(|(key, stored)| Some((*key, stored.shown(&self.rules)?)));
        shown.flatten().collect()
    }

    /// What is durable of it.
    pub fn durable(&self) -> Durable {
        self.rows.clone()
    }

    /// After a crash: the durable rows, and the index made of the transactions that the spools still hold, of those
    /// that have been applied, causes first.
    pub fn recover<'t>(
        &mut self,
        durable: Durable,
        spooled: impl Iterator<Item = &'t Transaction>,
    ) {
        self.rows = durable;
        self.known.clear();
        for transaction in spooled {
            self.note(transaction);
        }
    }

    /// The writes that are remembered.
    pub fn versions(&self) -> Vec<RowVersion> {
        self.known.values().flat_map(BTreeMap::keys).copied().collect()
    }

    /// How many writes are remembered.
    pub fn remembered(&self) -> usize {
        self.known.values().map(BTreeMap::len).sum()
    }

    /// Applies the next transaction, a local or a remote one.
    pub fn apply(&mut self, transaction: &Transaction) {
        for change in &transaction.changes {
            self.decide(transaction, change);
        }
        self.note(transaction);
        for (key, stored) in &mut self.rows.0 {
            for decider in stored.deciders.values_mut() {
                let taken = |change: &RowChange| {
                    change.key != *key
                        && transaction.version > decider.version
                        && meet(&self.rules.claims(change), &decider.claims)
                };
                decider.fate.killed |= transaction.changes.iter().any(taken);
                decider.fate.truncated |=
                    transaction.truncates && transaction.covers(decider.version);
            }
        }
    }

    /// Forgets the writes of these keys up to a version, as [`policy::decide`] allows it.
    pub fn forget(&mut self, may_forget: impl Fn(RowVersion) -> bool) {
        for known in self.known.values_mut() {
            while let Some(entry) = known.first_entry().filter(|first| may_forget(*first.key())) {
                entry.remove();
            }
        }
        self.known.retain(|_, known| !known.is_empty());
    }

    /// Remembers what a transaction wrote and what it did to the writes that are remembered.
    fn note(&mut self, transaction: &Transaction) {
        let version = transaction.version;
        if transaction.truncates {
            let known = self.known.values_mut().flatten();
            for (_, write) in known.filter(|(version, _)| transaction.covers(**version)) {
                write.fate.truncated = true;
            }
        }
        for change in &transaction.changes {
            let claims = self.rules.claims(change);
            let mut killed = false;
            for (key, known) in &mut self.known {
                let stored = self.rows.0.get(key);
                for (other, write) in known.iter_mut().filter(|_| *key != change.key) {
                    if !meet(&claims, &self.rules.claims(&write.change)) {
                        continue;
                    }
                    let whole = stored.and_then(|stored| stored.deciders.get(&Part::Whole));
                    let present = whole.is_some_and(|decider| decider.version == *other);
                    if self.breakage.claims_of_present_rows_only && !present {
                        continue;
                    }
                    killed |= *other > version;
                    write.fate.killed |= *other < version;
                }
            }
            let fate = Fate { killed, truncated: false };
            let known = Known { seen: transaction.seen.clone(), change: change.clone(), fate };
            self.known.entry(change.key).or_default().insert(version, known);
            if let Some(stored) = self.rows.0.get_mut(&change.key) {
                let own = stored.deciders.values_mut().filter(|own| own.version == version);
                own.for_each(|own| own.fate.killed |= killed);
            }
        }
        if self.breakage.without_tombstones {
            self.known.values_mut().for_each(|known| {
                known.retain(|_, write| write.change.effect != Effect::Delete);
            });
        }
    }

    fn decide(&mut self, transaction: &Transaction, change: &RowChange) {
        let none = BTreeMap::new();
        let known = self.known.get(&change.key).unwrap_or(&none);
        let writes: Vec<_> = known.iter().map(|(version, known)| known.write(*version)).collect();
        let incoming =
            Known { seen: transaction.seen.clone(), change: change.clone(), fate: Fate::default() };
        let version = transaction.version;
        let write = incoming.write(version);
        let decision = policy::decide(&self.rules.policy, self.rules.sums, &write, &writes);
        let of = |taken: RowVersion| match taken == version {
            true => Some(&incoming),
            false => known.get(&taken),
        };
        let mut stored = self.rows.0.get(&change.key).cloned().unwrap_or_default();
        carry_out(&self.rules, &decision, &mut stored, (version, &incoming), of);
        if self.rules.policy == Policy::MergeColumns && change.row.is_some() {
            for &column in change.changed.iter().filter(|column| **column < UNIQUE) {
                let part = Part::Column(column);
                if stored.deciders.get(&part).is_none_or(|decider| decider.version < version) {
                    stored.deciders.insert(part, incoming.decider(&self.rules, version));
                }
            }
        }
        self.rows.0.insert(change.key, stored);
    }
}

impl Known {
    fn write(&self, version: RowVersion) -> Write<'_> {
        let RowChange { effect, ref changed, .. } = self.change;
        Write { version, seen: &self.seen, effect, changed }
    }

    fn decider(&self, rules: &Rules, version: RowVersion) -> Decider {
        let claims = rules.claims(&self.change);
        Decider { version, claims, row: self.change.row, fate: self.fate }
    }
}

fn meet(claims: &[(u16, i64)], others: &[(u16, i64)]) -> bool {
    claims.iter().any(|claim| others.contains(claim))
}

/// Carries out a decision on the row that is stored.
fn carry_out<'k>(
    rules: &Rules,
    decision: &Decision,
    stored: &mut Stored,
    (version, incoming): (RowVersion, &'k Known),
    of: impl Fn(RowVersion) -> Option<&'k Known>,
) {
    let set = |content: &mut Option<Row>, column: u16, from: Option<Row>| {
        if let (Some(row), Some(from)) = (content.as_mut(), from) {
            row[usize::from(column)] = from[usize::from(column)];
        }
    };
    match decision {
        Decision::Keep => {}
        Decision::Take(taken) => {
            // What is forgotten is the row that is here.
            let Some(write) = of(*taken) else { return };
            stored.content = write.change.row;
            stored.deciders.retain(|part, _| matches!(part, Part::Column(_)));
            let part = match rules.policy {
                Policy::Function(_) => Part::Head(*taken),
                _ => Part::Whole,
            };
            stored.deciders.insert(part, write.decider(rules, *taken));
        }
        Decision::SetColumns(columns) => {
            for &column in columns {
                set(&mut stored.content, column, incoming.change.row);
            }
        }
        Decision::TakeBut(columns) => {
            stored.content = incoming.change.row;
            for (&column, &from) in columns {
                let from = of(from).and_then(|write| write.change.row);
                set(&mut stored.content, column, from);
            }
            stored.deciders.insert(Part::Whole, incoming.decider(rules, version));
        }
        Decision::Add => {
            if let Some(row) = &mut stored.content {
                row[usize::from(DELTA)] += incoming.change.difference;
            }
        }
        Decision::TakeAndAdd(updates) => {
            stored.content = incoming.change.row;
            let differences = updates.iter().filter_map(|update| of(*update));
            let sum: i64 = differences.map(|write| write.change.difference).sum();
            if let Some(row) = &mut stored.content {
                row[usize::from(DELTA)] += sum;
            }
            stored.deciders.insert(Part::Whole, incoming.decider(rules, version));
        }
        Decision::Fold(heads) => {
            let head = |version| Some((Part::Head(version), of(version)?.decider(rules, version)));
            stored.content = None;
            stored.deciders = heads.iter().filter_map(|version| head(*version)).collect();
        }
    }
}
