//! Every policy against its definition, over every small history of one row and over random longer ones.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::lsn::Lsn;
use crate::time::Timestamp;

pub(super) const COLUMNS: usize = 2;
pub(super) type Row = Option<[i64; COLUMNS]>;

/// One write of a history: the n-th in the order of versions.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) version: RowVersion,
    pub(super) seen: VersionVector,
    pub(super) effect: Effect,
    pub(super) changed: BTreeSet<u16>,
    pub(super) row: Row,
    /// New − old per column, of an update.
    pub(super) difference: [i64; COLUMNS],
}

impl Written {
    pub(super) fn write(&self) -> Write<'_> {
        let Self { version, ref seen, effect, ref changed, .. } = *self;
        Write { version, seen, effect, changed }
    }
}

/// What a table does, and the definition of it.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) policy: Policy,
    pub(super) sums: bool,
}

fn rules() -> Vec<Rules> {
    let rules = |policy, sums| Rules { policy, sums };
    vec![
        rules(Policy::LastWriteWins, false),
        rules(Policy::LastWriteWins, true),
        rules(Policy::FirstWriteWins, false),
        rules(Policy::OriginWins(node(2)), false),
        rules(Policy::MergeColumns, false),
        rules(Policy::Function("larger".to_owned()), false),
    ]
}

pub(super) fn node(number: u16) -> NodeId {
    NodeId::new(number).unwrap()
}

/// A user's function: the larger of each column; a deleted row gives way.
fn larger(first: Row, second: Row) -> Row {
    match (first, second) {
        (Some(first), Some(second)) => {
            Some(std::array::from_fn(|column| first[column].max(second[column])))
        }
        (first, second) => first.or(second),
    }
}

fn covers(by: &Written, what: &Written) -> bool {
    by.write().covers(what.version)
}

/// The definition: what the row is when exactly these writes are known, earliest first.
pub(super) fn defined(rules: &Rules, known: &[&Written]) -> Row {
    let latest = *known.last()?;
    let covered = |write: &&Written| {
        known.iter().any(|other| other.version != write.version && covers(other, write))
    };
    let heads: Vec<&Written> = known.iter().copied().filter(|write| !covered(write)).collect();
    match &rules.policy {
        Policy::LastWriteWins if rules.sums => {
            let mut row = latest.row?;
            for update in known.iter().filter(|write| !covers(latest, write)) {
                (0..COLUMNS).for_each(|column| row[column] += update.difference[column]);
            }
            Some(row)
        }
        Policy::LastWriteWins => latest.row,
        Policy::FirstWriteWins => heads[0].row,
        Policy::OriginWins(node) => {
            let of_node = heads.iter().rfind(|write| write.version.origin == *node);
            of_node.or(heads.last()).unwrap().row
        }
        Policy::MergeColumns => {
            latest.row?;
            Some(std::array::from_fn(|column| {
                let changes = |write: &&&Written| write.changed.contains(&(column as u16));
                // What was there before all of them is as the latest found it.
                known.iter().rfind(changes).unwrap_or(&latest).row.unwrap()[column]
            }))
        }
        Policy::Function(_) => heads.iter().map(|write| write.row).reduce(larger).unwrap(),
    }
}

/// Carries out a decision on the row that is here.
pub(super) fn carried_out(
    decision: &Decision,
    here: Row,
    incoming: &Written,
    known: &[&Written],
) -> Row {
    let of = |version: RowVersion| match version == incoming.version {
        true => incoming,
        false => known.iter().find(|write| write.version == version).unwrap(),
    };
    match decision {
        Decision::Keep => here,
        Decision::Take(version) => of(*version).row,
        Decision::SetColumns(columns) => {
            let mut row = here.unwrap();
            for &column in columns {
                row[usize::from(column)] = incoming.row.unwrap()[usize::from(column)];
            }
            Some(row)
        }
        Decision::TakeBut(columns) => {
            let mut row = incoming.row.unwrap();
            for (&column, &version) in columns {
                let from = here.unwrap_or_else(|| of(version).row.unwrap());
                row[usize::from(column)] = from[usize::from(column)];
            }
            Some(row)
        }
        Decision::Add => here.map(|row| std::array::from_fn(|c| row[c] + incoming.difference[c])),
        Decision::TakeAndAdd(updates) => {
            let mut row = incoming.row.unwrap();
            for update in updates.iter().map(|version| of(*version)) {
                (0..COLUMNS).for_each(|column| row[column] += update.difference[column]);
            }
            Some(row)
        }
        Decision::Fold(heads) => {
            heads.iter().map(|version| of(*version).row).reduce(larger).unwrap()
        }
    }
}

/// A user's statement on the one row of the model.
#[derive(Clone, Copy, Debug)]
pub(super) enum Statement {
    Insert,
    Update(u16),
    Delete,
}

pub(super) const STATEMENTS: [Statement; 4] =
    [Statement::Insert, Statement::Update(0), Statement::Update(1), Statement::Delete];

/// The writes of a history that `vector` and its own earlier ones stand for, earliest first.
pub(super) fn known_to<'h>(
    history: &'h [Written],
    origin: NodeId,
    vector: &VersionVector,
) -> Vec<&'h Written> {
    let known = |write: &&Written| {
        write.version.origin == origin || vector.get(write.version.origin) >= write.version.lsn
    };
    history.iter().filter(known).collect()
}

fn is_closed(history: &[Written], origin: NodeId, vector: &VersionVector) -> bool {
    let known = known_to(history, origin, vector);
    known
        .iter()
        .all(|write| write.seen.iter().all(|(seen, lsn)| seen == origin || vector.get(seen) >= lsn))
}

/// The history with one more write, unless the statement would do nothing there.
fn longer(
    rules: &Rules,
    history: &[Written],
    origin: NodeId,
    seen: &VersionVector,
    statement: Statement,
) -> Option<Vec<Written>> {
    let before = defined(rules, &known_to(history, origin, seen));
    let mut longer = history.to_vec();
    longer.push(next(history, before, origin, seen, statement)?);
    Some(longer)
}

/// The next write of a history, where the row was as `before`; nothing if the statement would do nothing.
pub(super) fn next(
    history: &[Written],
    before: Row,
    origin: NodeId,
    seen: &VersionVector,
    statement: Statement,
) -> Option<Written> {
    let number = history.len() as i64 + 1;
    let own = history.iter().filter(|write| write.version.origin == origin).count() as u64;
    let version = RowVersion { commit_time: Timestamp(number), origin, lsn: Lsn(own + 1) };
    // Values that differ between writers and do not grow with them.
    let value = number * 10 % 7 + number * 100;
    let (effect, row) = match (statement, before) {
        (Statement::Insert, None) => (Effect::Insert, Some([value, value + 1])),
        (Statement::Update(column), Some(mut row)) => {
            row[usize::from(column)] += 1000 - value;
            (Effect::Update, Some(row))
        }
        (Statement::Delete, Some(_)) => (Effect::Delete, None),
        (Statement::Insert, Some(_)) | (Statement::Update(_) | Statement::Delete, None) => {
            return None;
        }
    };
    let changed = match statement {
        Statement::Insert => BTreeSet::from([0, 1]),
        Statement::Update(column) => BTreeSet::from([column]),
        Statement::Delete => BTreeSet::new(),
    };
    let difference = match (effect, before, row) {
        (Effect::Update, Some(old), Some(new)) => std::array::from_fn(|c| new[c] - old[c]),
        _ => [0; COLUMNS],
    };
    Some(Written { version, seen: seen.clone(), effect, changed, row, difference })
}

/// All histories that are one write longer than one of these.
fn all_longer(rules: &Rules, histories: &[Vec<Written>]) -> Vec<Vec<Written>> {
    let mut all = Vec::new();
    for history in histories {
        for origin in (1..=3).map(node) {
            for seen in vectors(history, origin) {
                let longer = |statement| longer(rules, history, origin, &seen, statement);
                all.extend(STATEMENTS.into_iter().filter_map(longer));
            }
        }
    }
    all
}

/// Every causally closed vector over a history, without the entry of `origin`, that has seen what its last write had.
pub(super) fn vectors(history: &[Written], origin: NodeId) -> Vec<VersionVector> {
    let before = history.iter().rfind(|write| write.version.origin == origin);
    let mut vectors = vec![VersionVector::new()];
    for other in (1..=3).map(node).filter(|other| *other != origin) {
        let count = history.iter().filter(|write| write.version.origin == other).count() as u64;
        let with = |vector: &VersionVector, lsn| {
            let mut vector = vector.clone();
            vector.advance(other, Lsn(lsn));
            vector
        };
        vectors = vectors.iter().flat_map(|v| (0..=count).map(|lsn| with(v, lsn))).collect();
    }
    vectors.retain(|vector| {
        before.is_none_or(|before| vector.covers(&before.seen))
            && is_closed(history, origin, vector)
    });
    vectors
}

/// A node of no writes receives the history: in every causally closed set of it, every write that may come next is
/// decided as the definition says; so every order of delivery ends alike. Answers the number of decisions.
fn every_step_is_as_defined(rules: &Rules, history: &[Written]) -> usize {
    let mut steps = 0;
    let receiver = node(4);
    let mut all = vec![VersionVector::new()];
    all.extend(vectors(history, receiver));
    for vector in all {
        let known = known_to(history, receiver, &vector);
        for incoming in history {
            let RowVersion { origin, lsn, .. } = incoming.version;
            let next = vector.get(origin).0 + 1 == lsn.0;
            let caused = incoming.seen.iter().all(|(seen, lsn)| vector.get(seen) >= lsn);
            if !next || !caused {
                continue;
            }
            let here = defined(rules, &known);
            let writes: Vec<_> = known.iter().map(|write| write.write()).collect();
            let decision = decide(&rules.policy, rules.sums, &incoming.write(), &writes);
            let row = carried_out(&decision, here, incoming, &known);
            if matches!(decision, Decision::TakeBut(_)) {
                // They are here as those writes left them.
                assert_eq!(row, carried_out(&decision, None, incoming, &known));
            }
            let mut then: Vec<&Written> = known.clone();
            then.push(incoming);
            then.sort_by_key(|write| write.version);
            let expected = defined(rules, &then);
            assert_eq!(row, expected, "{rules:?} {decision:?} at {vector} of {history:#?}");
            steps += 1;
        }
    }
    steps
}

#[test]
fn every_step_of_every_small_history_is_as_the_policy_is_defined() {
    for rules in rules() {
        let (mut histories, mut steps) = (vec![Vec::new()], 0);
        for _ in 0..4 {
            histories = all_longer(&rules, &histories);
            let taken = histories.iter().map(|history| every_step_is_as_defined(&rules, history));
            steps += taken.sum::<usize>();
        }
        assert!(steps > 50_000, "{rules:?}: only {steps} steps of {} histories", histories.len());
    }
}

/// A node that sets one write aside when it comes, as one that cannot be applied, goes on as if it did not know it, and
/// applies it at some later time: then its row is as the definition says. Answers how often that was tried.
fn a_late_write_ends_as_defined(rules: &Rules, history: &[Written]) -> usize {
    let mut tries = 0;
    for late in history {
        let mut met = vec![(VersionVector::new(), None, Vec::new())];
        while let Some((vector, here, known)) = met.pop() {
            if vector.get(late.version.origin) >= late.version.lsn {
                let row = stepped(rules, here, late, &known);
                let expected = defined(rules, &known_to(history, node(4), &vector));
                assert_eq!(row, expected, "{rules:?} {late:#?} late at {vector} of {history:#?}");
                tries += 1;
            }
            for incoming in history {
                let RowVersion { origin, lsn, .. } = incoming.version;
                let next = vector.get(origin).0 + 1 == lsn.0;
                if !next || !incoming.seen.iter().all(|(seen, lsn)| vector.get(seen) >= lsn) {
                    continue;
                }
                let mut vector = vector.clone();
                vector.advance(origin, lsn);
                if incoming.version == late.version {
                    met.push((vector, here, known.clone()));
                    continue;
                }
                let row = stepped(rules, here, incoming, &known);
                let mut then = known.clone();
                then.push(incoming);
                met.push((vector, row, then));
            }
        }
    }
    tries
}

/// What one more write makes of the row that is here.
fn stepped(rules: &Rules, here: Row, incoming: &Written, known: &[&Written]) -> Row {
    let writes: Vec<_> = known.iter().map(|write| write.write()).collect();
    let decision = decide(&rules.policy, rules.sums, &incoming.write(), &writes);
    carried_out(&decision, here, incoming, known)
}

#[test]
fn what_was_set_aside_and_comes_late_counts_as_if_it_had_come_in_time() {
    for rules in rules() {
        let (mut histories, mut tries) = (vec![Vec::new()], 0);
        for length in 1..=4 {
            histories = all_longer(&rules, &histories);
            // Each with all orders of delivery: of the longest, some.
            let some = histories.iter().step_by(if length == 4 { 7 } else { 1 });
            tries +=
                some.map(|history| a_late_write_ends_as_defined(&rules, history)).sum::<usize>();
        }
        assert!(tries > 20_000, "{rules:?}: only {tries}");
    }
}

/// A history made of random choices.
fn chosen(rules: &Rules, choices: &[(u16, prop::sample::Index, usize)]) -> Vec<Written> {
    let mut history = Vec::new();
    for (origin, past, statement) in choices {
        let origin = node(*origin);
        let vectors = vectors(&history, origin);
        let seen = past.get(&vectors);
        let mut tries = (0..STATEMENTS.len()).map(|shift| STATEMENTS[(statement + shift) % 4]);
        let next = tries.find_map(|statement| longer(rules, &history, origin, seen, statement));
        history = next.unwrap();
    }
    history
}

fn all_choices() -> impl Strategy<Value = Vec<(u16, prop::sample::Index, usize)>> {
    prop::collection::vec((1u16..=3, any::<prop::sample::Index>(), 0usize..4), 5..9)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn every_step_of_longer_histories_is_as_the_policy_is_defined(choices in all_choices()) {
        for rules in rules() {
            let history = chosen(&rules, &choices);
            every_step_is_as_defined(&rules, &history);
        }
    }

    #[test]
    fn every_update_counts_once_in_a_delta_column(choices in all_choices()) {
        let rules = Rules { policy: Policy::LastWriteWins, sums: true };
        let base = longer(&rules, &[], node(1), &VersionVector::new(), Statement::Insert).unwrap();
        let mut history = base.clone();
        for (origin, past, column) in &choices {
            let origin = node(*origin);
            let mut vectors = vectors(&history, origin);
            vectors.retain(|vector| origin == node(1) || vector.get(node(1)) >= Lsn(1));
            let statement = Statement::Update(*column as u16 % 2);
            history = longer(&rules, &history, origin, past.get(&vectors), statement).unwrap();
        }
        let known: Vec<_> = history.iter().collect();
        let sum = |column: usize| {
            base[0].row.unwrap()[column] + history.iter().map(|w| w.difference[column]).sum::<i64>()
        };
        prop_assert_eq!(defined(&rules, &known), Some([sum(0), sum(1)]));
    }

    #[test]
    fn texts_of_policies_round_trip(
        name in "[a-z_.\"() ]{1,12}", columns in prop::collection::btree_set(".{1,8}", 0..4),
    ) {
        let function = Policy::Function(name.trim().to_owned());
        prop_assume!(!name.trim().is_empty());
        prop_assert_eq!(function.to_string().parse(), Ok(function));
        let table = TablePolicy { policy: Policy::LastWriteWins, delta: columns };
        let json = serde_json::to_string(&table).unwrap();
        prop_assert_eq!(serde_json::from_str::<TablePolicy>(&json).unwrap(), table);
    }
}

#[test]
fn texts_are_read_as_they_are_written() {
    let cases = [
        ("last_write_wins", Policy::LastWriteWins),
        ("first_write_wins", Policy::FirstWriteWins),
        ("origin_wins(2)", Policy::OriginWins(node(2))),
        ("merge_columns", Policy::MergeColumns),
        ("function(app.mine)", Policy::Function("app.mine".to_owned())),
    ];
    for (text, policy) in cases {
        assert_eq!(policy.to_string(), text);
        assert_eq!(format!(" {text} ").parse(), Ok(policy.clone()));
        let table = TablePolicy { policy, delta: BTreeSet::new() };
        assert_eq!(text.parse(), Ok(table));
    }
    let delta: TablePolicy = "last_write_wins, delta( balance, \"the \"\"sum\" )".parse().unwrap();
    assert_eq!(delta.to_string(), "last_write_wins, delta(\"balance\", \"the \"\"sum\")");
    assert!(delta.sums() && delta.delta.contains("the \"sum"));
}

#[test]
fn what_is_no_policy_is_refused() {
    let cases = [
        "",
        "latest",
        "origin_wins",
        "origin_wins()",
        "origin_wins(0)",
        "origin_wins(17)",
        "function()",
        "function",
        "merge_columns, delta(a)",
        "last_write_wins, delta()",
        "last_write_wins, delta(a,)",
        "last_write_wins, delta(\"a)",
        "last_write_wins, delta(\"a\"b)",
        "last_write_wins delta(a)",
        "last_write_winsx",
    ];
    for text in cases {
        assert_eq!(text.parse::<TablePolicy>(), Err(NotAPolicy(text.to_owned())));
    }
}

#[test]
fn columns_of_one_unique_index_change_together() {
    let set = |columns: &[u16]| columns.iter().copied().collect::<BTreeSet<u16>>();
    let indexes = [set(&[1, 2]), set(&[2, 3]), set(&[5, 6])];
    assert_eq!(with_groups(&set(&[1]), &indexes), set(&[1, 2, 3]));
    assert_eq!(with_groups(&set(&[0, 5]), &indexes), set(&[0, 5, 6]));
    assert_eq!(with_groups(&set(&[]), &indexes), set(&[]));
}
