//! Histories of one row while its policy changes, against the definition.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::super::Policy;
use super::super::tests::{
    Row, Rules, STATEMENTS, Statement, Written, carried_out, defined, known_to, next, node, vectors,
};
use super::*;
use crate::time::Timestamp;

/// The policies of a table: before any change, and what each change makes it.
struct Course {
    base: Rules,
    changes: Vec<Rules>,
}

fn course(rules: [(Policy, bool); 3]) -> Course {
    let [base, first, second] = rules.map(|(policy, sums)| Rules { policy, sums });
    Course { base, changes: vec![first, second] }
}

fn courses() -> Vec<Course> {
    let plain = || (Policy::LastWriteWins, false);
    let sums = || (Policy::LastWriteWins, true);
    let larger = || (Policy::Function("larger".to_owned()), false);
    vec![
        course([plain(), (Policy::MergeColumns, false), plain()]),
        course([plain(), sums(), (Policy::FirstWriteWins, false)]),
        course([larger(), plain(), (Policy::OriginWins(node(2)), false)]),
        course([sums(), larger(), sums()]),
    ]
}

fn table(rules: &Rules) -> TablePolicy {
    let delta = if rules.sums { ["n".to_owned()].into() } else { BTreeSet::new() };
    TablePolicy { policy: rules.policy.clone(), delta }
}

/// A history, and which of its transactions change the policy instead of the row: its place, and which change it is.
#[derive(Clone, Debug, Default)]
struct Story {
    all: Vec<Written>,
    changes: Vec<(usize, usize)>,
}

impl Story {
    fn change(&self, write: &Written) -> Option<usize> {
        let at = self.all.iter().position(|known| known.version == write.version).unwrap();
        self.changes.iter().find(|(place, _)| *place == at).map(|(_, number)| *number)
    }

    /// What of these writes changes the policy, and what the row.
    fn parts<'w>(&self, known: &[&'w Written]) -> (Vec<&'w Written>, Vec<&'w Written>) {
        known.iter().copied().partition(|write| self.change(write).is_some())
    }

    /// The definition.
    fn defined(&self, course: &Course, known: &[&Written]) -> Row {
        let (changes, writes) = self.parts(known);
        let epoch = |write: &Written| {
            changes
                .iter()
                .rev()
                .find(|change| write.write().covers(change.version))
                .map(|c| c.version)
        };
        let latest = writes.iter().map(|write| epoch(write)).max().flatten();
        let counts: Vec<_> = writes.into_iter().filter(|write| epoch(write) == latest).collect();
        let of = |version| changes.iter().find(|change| Some(change.version) == version);
        let rules = of(latest).map_or(&course.base, |c| &course.changes[self.change(c).unwrap()]);
        defined(rules, &counts)
    }

    /// What a node knows of the policy, told in a wrong order; and what the table has.
    fn epochs(&self, course: &Course, known: &[&Written]) -> (Epochs, TablePolicy) {
        let (changes, _) = self.parts(known);
        let mut epochs = Epochs::default();
        let after = |change: &Written| table(&course.changes[self.change(change).unwrap()]);
        for change in changes.iter().rev() {
            let seen = changes.iter().rev().find(|other| {
                other.version != change.version && change.write().covers(other.version)
            });
            let before = seen.map_or_else(|| table(&course.base), |seen| after(seen));
            epochs.changed(Change::new(change.version, before, after(change)));
        }
        let now = changes.last().map_or_else(|| table(&course.base), |change| after(change));
        (epochs, now)
    }

    /// All stories that are one transaction longer.
    fn longer(&self, course: &Course) -> Vec<Story> {
        let mut all = Vec::new();
        for origin in (1..=3).map(node) {
            for seen in vectors(&self.all, origin) {
                let before = self.defined(course, &known_to(&self.all, origin, &seen));
                let written = STATEMENTS.into_iter();
                let written = written.filter_map(|s| next(&self.all, before, origin, &seen, s));
                all.extend(written.map(|write| self.with(write, None)));
                let number = self.changes.len();
                if number < course.changes.len() && !self.all.is_empty() {
                    // A transaction whose row nobody looks at.
                    let change = next(&self.all, Some([0, 0]), origin, &seen, Statement::Delete);
                    all.push(self.with(change.unwrap(), Some(number)));
                }
            }
        }
        all
    }

    fn with(&self, write: Written, change: Option<usize>) -> Story {
        let mut story = self.clone();
        story.changes.extend(change.map(|number| (story.all.len(), number)));
        story.all.push(write);
        story
    }
}

/// In every causally closed set of a story, every transaction that may come next leaves the row as it is defined.
fn every_step_is_as_defined(course: &Course, story: &Story) -> usize {
    let mut steps = 0;
    let mut all = vec![VersionVector::new()];
    all.extend(vectors(&story.all, node(4)));
    for vector in all {
        let known = known_to(&story.all, node(4), &vector);
        let here = story.defined(course, &known);
        for incoming in &story.all {
            let RowVersion { origin, lsn, .. } = incoming.version;
            let next = vector.get(origin).0 + 1 == lsn.0;
            if !next || !incoming.seen.iter().all(|(seen, lsn)| vector.get(seen) >= lsn) {
                continue;
            }
            let mut then: Vec<&Written> = known.clone();
            then.push(incoming);
            then.sort_by_key(|write| write.version);
            let (_, writes) = story.parts(&known);
            let row = match story.change(incoming) {
                Some(_) => here,
                None => {
                    let (epochs, now) = story.epochs(course, &known);
                    let others: Vec<_> = writes.iter().map(|write| write.write()).collect();
                    match epochs.decide(&now, &incoming.write(), &others) {
                        Ruling::By(_, decision) => carried_out(&decision, here, incoming, &writes),
                        Ruling::Plain => {
                            let latest = writes.iter().chain([&incoming]).max_by_key(|w| w.version);
                            latest.unwrap().row
                        }
                    }
                }
            };
            assert_eq!(row, story.defined(course, &then), "at {vector} of {story:#?}");
            steps += 1;
        }
    }
    steps
}

#[test]
fn every_step_of_every_small_history_is_as_defined_while_the_policy_changes() {
    for course in courses() {
        let (mut stories, mut steps) = (vec![Story::default()], 0);
        for length in 1..=4 {
            stories = stories.iter().flat_map(|story| story.longer(&course)).collect();
            let some = stories.iter().step_by(if length == 4 { 5 } else { 1 });
            steps += some.map(|story| every_step_is_as_defined(&course, story)).sum::<usize>();
        }
        let base = &course.base;
        assert!(steps > 50_000, "{base:?}: only {steps} steps of {} histories", stories.len());
    }
}

#[test]
fn a_change_is_forgotten_when_no_transaction_without_it_can_meet_another() {
    let version = |origin, lsn: u64| RowVersion {
        commit_time: Timestamp(lsn as i64),
        origin: node(origin),
        lsn: Lsn(lsn),
    };
    let vector = |entries: &[(u16, u64)]| -> VersionVector {
        entries.iter().map(|(origin, lsn)| (node(*origin), Lsn(*lsn))).collect()
    };
    let first: TablePolicy = "first_write_wins".parse().unwrap();
    let mut epochs = Epochs::default();
    let plain = TablePolicy::default();
    epochs.changed(Change::new(version(1, 10), plain.clone(), first.clone()));
    assert_eq!(epochs.first_of(node(1)), Some(Lsn(10)));
    let nothing = (VersionVector::new(), BTreeSet::new());
    let write = |version| Write {
        version,
        seen: &nothing.0,
        effect: super::super::Effect::Update,
        changed: &nothing.1,
    };
    // One that had not seen it, and was not noted: only the row tells.
    assert_eq!(epochs.decide(&first, &write(version(2, 20)), &[]), Ruling::Plain);
    // Not seen by all: all is kept.
    epochs.forget(&vector(&[(1, 9), (2, 50)]), &vector(&[(1, 30), (2, 60)]));
    epochs.forget(&vector(&[(1, 9), (2, 99)]), &vector(&[(1, 30), (2, 99)]));
    assert!(!epochs.is_empty());
    // Seen by all: what had not seen it lies before what is known now.
    epochs.forget(&vector(&[(1, 10), (2, 60)]), &vector(&[(1, 30), (2, 70)]));
    epochs.forget(&vector(&[(1, 30), (2, 69)]), &vector(&[(1, 30), (2, 90)]));
    assert!(!epochs.is_empty());
    epochs.forget(&vector(&[(1, 30), (2, 70)]), &vector(&[(1, 30), (2, 90)]));
    assert!(epochs.is_empty());
    assert_eq!(epochs.first_of(node(1)), None);
    let Ruling::By(policy, Decision::Take(_)) = epochs.decide(&first, &write(version(2, 80)), &[])
    else {
        panic!("the policy that the table has counts");
    };
    assert_eq!(policy, first);
}
