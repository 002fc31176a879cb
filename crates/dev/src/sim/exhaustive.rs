//! Every order of delivery of every history up to a size: all nodes end as the definition says, and are as it says at
//! every moment before.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::policy::Policy;
use synapsedb_core::time::Timestamp;
use synapsedb_core::version::{RowVersion, VersionVector};

use super::model::{DELTA, Rules, Transaction, defined};
use super::replica::{Breakage, Replica};
use super::statement::{Statement, committed};

const KEYS: [u8; 2] = [1, 2];
const VALUES: [i64; 2] = [1, 2];

fn nodes() -> impl Iterator<Item = NodeId> {
    (1..=3).filter_map(NodeId::new)
}

/// The statements that make a difference under these rules.
fn statements(rules: &Rules) -> Vec<Statement> {
    let mut statements = vec![Statement::Truncate];
    let merges = rules.policy == Policy::MergeColumns;
    for key in KEYS {
        statements.push(Statement::Delete(key));
        if merges || !rules.sums {
            statements.push(Statement::Update(key, 2, 0));
        }
        if merges || rules.sums {
            statements.push(Statement::Update(key, DELTA, 1));
        }
        statements.push(Statement::Move(key, 3 - key));
        for value in VALUES {
            statements.push(Statement::Insert(key, value));
            statements.push(Statement::Update(key, 0, value));
        }
    }
    statements
}

/// A history: its transactions in the order of versions, which extends causality.
type History = Vec<Transaction>;

/// Every vector over the history that `origin` may have when it commits next.
fn pasts(history: &History, origin: NodeId) -> Vec<VersionVector> {
    let mut pasts = vec![VersionVector::new()];
    for other in nodes().filter(|other| *other != origin) {
        let count = history.iter().filter(|t| t.version.origin == other).count() as u64;
        let with = |past: &VersionVector, lsn| {
            let mut past = past.clone();
            past.advance(other, Lsn(lsn));
            past
        };
        pasts = pasts.iter().flat_map(|past| (0..=count).map(|lsn| with(past, lsn))).collect();
    }
    let before = history.iter().rfind(|t| t.version.origin == origin);
    pasts.retain(|past| {
        let causes = |t: &Transaction| {
            t.seen.iter().all(|(node, lsn)| node == origin || past.get(node) >= lsn)
        };
        let known = history.iter().filter(|t| past.get(t.version.origin) >= t.version.lsn);
        before.is_none_or(|before| past.covers(&before.seen)) && known.into_iter().all(causes)
    });
    pasts
}

fn known<'h>(history: &'h History, vector: &VersionVector) -> Vec<&'h Transaction> {
    history.iter().filter(|t| vector.get(t.version.origin) >= t.version.lsn).collect()
}

/// Every history that is longer by one transaction, which is the latest.
fn longer(rules: &Rules, history: &History, statements: &[Statement]) -> Vec<History> {
    let mut all = Vec::new();
    let number = history.len() as i64 + 1;
    for origin in nodes() {
        let own = history.iter().filter(|t| t.version.origin == origin).count() as u64;
        let commit_time = Timestamp(number);
        let version = RowVersion { commit_time, origin, lsn: Lsn(own + 1) };
        for past in pasts(history, origin) {
            let mut sees = past.clone();
            sees.advance(origin, Lsn(own));
            let shown = defined(rules, &known(history, &sees));
            for statement in statements {
                // Values that differ between writers and do not grow with them.
                let value = number * 10 % 7 + 10 * number;
                let statement = match *statement {
                    Statement::Update(key, 2, _) => Statement::Update(key, 2, -value),
                    Statement::Update(key, DELTA, _) => Statement::Update(key, DELTA, 1 << number),
                    other => other,
                };
                if let Some(next) = committed(statement, &shown, version, &past, value) {
                    let mut history = history.clone();
                    history.push(next);
                    all.push(history);
                }
            }
        }
    }
    all
}

/// Delivers a history in every causal order, and compares the node after every step with the definition and with what
/// another order has led to. Answers how many steps there were, or what differs.
fn deliver_in_every_order(
    rules: &Rules,
    breakage: Breakage,
    history: &History,
) -> Result<usize, String> {
    let mut reached: BTreeMap<u64, Replica> = BTreeMap::new();
    let mut open = vec![(0u64, VersionVector::new())];
    reached.insert(0, Replica::new(rules.clone(), breakage));
    let mut steps = 0;
    while let Some((set, vector)) = open.pop() {
        for (index, next) in history.iter().enumerate() {
            let (origin, lsn) = next.position();
            if vector.get(origin).0 + 1 != lsn.0 || !vector.covers(&next.seen) {
                continue;
            }
            steps += 1;
            let mut replica = reached[&set].clone();
            replica.apply(next);
            let (set, mut vector) = (set | 1 << index, vector.clone());
            vector.advance(origin, lsn);
            let expected = defined(rules, &known(history, &vector));
            if replica.shown() != expected {
                let shown = replica.shown();
                return Err(format!("{shown:?} instead of {expected:?} at {vector}: {history:#?}"));
            }
            match reached.get(&set) {
                None => {
                    reached.insert(set, replica);
                    open.push((set, vector));
                }
                Some(other) if *other != replica => {
                    return Err(format!("{other:#?}\nor\n{replica:#?} at {vector}: {history:#?}"));
                }
                Some(_) => {}
            }
        }
    }
    Ok(steps)
}

/// No two rows of a node may ever have one unique value.
fn has_unique_values(rules: &Rules, history: &History) -> bool {
    let rows = defined(rules, &history.iter().collect::<Vec<_>>());
    [0, 1].iter().all(|&column| {
        let values: std::collections::BTreeSet<_> = rows.values().map(|row| row[column]).collect();
        values.len() == rows.len()
    })
}

/// All histories of these statements: one insert that all have seen, and then up to `size` transactions.
fn check_all(rules: &Rules, breakage: Breakage, size: usize) -> Result<(usize, usize), String> {
    let statements = statements(rules);
    let origin = NodeId::new(1).unwrap();
    let version = RowVersion { commit_time: Timestamp(0), origin, lsn: Lsn(1) };
    let none = VersionVector::new();
    let insert = Statement::Insert(1, 1);
    let first = committed(insert, &BTreeMap::new(), version, &none, 100).unwrap();
    let mut histories = vec![vec![first], Vec::new()];
    let (mut count, mut steps) = (0, 0);
    for done in 0..size {
        if done + 1 == size {
            // The last size is that of the histories with the row that is there before.
            histories.retain(|history| history.len() > done);
        }
        let all = histories.iter().flat_map(|history| longer(rules, history, &statements));
        histories = all.collect();
        for history in &histories {
            steps += deliver_in_every_order(rules, breakage, history)?;
            assert!(has_unique_values(rules, history), "{rules:?}: {history:#?}");
        }
        count += histories.len();
    }
    Ok((count, steps))
}

fn every_small_history_ends_as_defined_in_every_order(rules: &Rules) {
    let begin = std::time::Instant::now();
    match check_all(rules, Breakage::default(), 3) {
        Ok((histories, steps)) => {
            eprintln!("{rules:?}: {histories} histories, {steps} steps, {:?}", begin.elapsed());
            assert!(histories > 10_000 && steps > 100_000);
        }
        Err(reason) => panic!("{rules:?}: {reason}"),
    }
}

// One test for each, so that they run beside each other.

#[test]
fn last_write_wins_is_as_defined() {
    every_small_history_ends_as_defined_in_every_order(&Rules::all()[0]);
}

#[test]
fn delta_columns_are_as_defined() {
    every_small_history_ends_as_defined_in_every_order(&Rules::all()[1]);
}

#[test]
fn first_write_wins_is_as_defined() {
    every_small_history_ends_as_defined_in_every_order(&Rules::all()[2]);
}

#[test]
fn origin_wins_is_as_defined() {
    every_small_history_ends_as_defined_in_every_order(&Rules::all()[3]);
}

#[test]
fn merged_columns_are_as_defined() {
    every_small_history_ends_as_defined_in_every_order(&Rules::all()[4]);
}

#[test]
fn a_function_is_as_defined() {
    every_small_history_ends_as_defined_in_every_order(&Rules::all()[5]);
}

#[test]
fn what_is_left_out_is_found() {
    let rules = &Rules::all()[0];
    for breakage in [
        Breakage { without_tombstones: true, ..Breakage::default() },
        Breakage { claims_of_present_rows_only: true, ..Breakage::default() },
    ] {
        assert!(check_all(rules, breakage, 3).is_err(), "{breakage:?} was not found");
    }
}
