//! All small histories in all groups: a stamp says as much of a row as the commit time of its writer.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::{Group, MAX, Nobody};
use crate::history::{Commit, History};
use crate::ids::NodeId;
use crate::lsn::Lsn;
use crate::time::Timestamp;
use crate::version::VersionVector;

/// A transaction of the origin: its commit time and the row that it writes, by number.
type Transaction = (i64, usize);

fn node(number: u16) -> NodeId {
    NodeId::new(number).unwrap()
}

fn lsn(at: usize) -> Lsn {
    Lsn(100 * (at as u64 + 1))
}

/// All histories of `length` transactions on two rows whose times go back by at most a little.
fn histories(length: usize) -> Vec<Vec<Transaction>> {
    let mut all: Vec<Vec<Transaction>> = vec![Vec::new()];
    for at in 0..length {
        all = all
            .into_iter()
            .flat_map(|history| {
                [10, 20, 30].into_iter().flat_map(move |late| {
                    let history = history.clone();
                    [0, 1].into_iter().map(move |row| {
                        let mut longer = history.clone();
                        longer.push((10 * at as i64 + late, row));
                        longer
                    })
                })
            })
            .collect();
    }
    all
}

/// What every row shows after the transactions were applied in groups, where one ends behind each transaction of
/// `ends` too: its stamp, and the place of its true writer.
fn apply(
    history: &[Transaction],
    ends: u32,
    takes: impl Fn(&mut Group, Timestamp) -> bool,
) -> BTreeMap<usize, (Timestamp, usize)> {
    let mut shown = BTreeMap::new();
    let mut group = Group::default();
    let mut open: Vec<(usize, usize)> = Vec::new();
    for (at, (time, row)) in history.iter().enumerate() {
        let time = Timestamp(*time);
        let ended = at > 0 && ends & (1 << (at - 1)) != 0;
        if ended || !takes(&mut group, time) {
            group = Group::of(time);
            open.clear();
        }
        open.push((*row, at));
        for (row, writer) in &open {
            shown.insert(*row, (time, *writer));
        }
    }
    shown
}

fn remembered(history: &[Transaction]) -> History {
    let mut remembered = History::new(0);
    for (at, (time, _)) in history.iter().enumerate() {
        let commit = Commit { lsn: lsn(at), time: Timestamp(*time), xid: 0, alone: false };
        remembered.committed(node(1), commit, &VersionVector::new());
    }
    remembered
}

/// Why the rows would be taken for another writer's, if they would.
fn wrong(
    history: &[Transaction],
    ends: u32,
    takes: impl Fn(&mut Group, Timestamp) -> bool,
) -> Option<String> {
    let known = remembered(history);
    for (row, (stamp, writer)) in apply(history, ends, takes) {
        let told = format!("row {row} of {history:?} with the stamp {stamp:?}, ends {ends:b}");
        let true_time = Timestamp(history[writer].0);
        if stamp < true_time {
            return Some(format!("{told}: earlier than its writer"));
        }
        let Some(stamped) = known.stamped(node(1), stamp) else {
            return Some(format!("{told}: unknown"));
        };
        let span = stamped.span;
        let is_in = |at: &usize| lsn(*at) > span.after && lsn(*at) <= span.through;
        let wrote = (0..history.len()).filter(is_in).filter(|at| history[*at].1 == row);
        // A time that two transactions have may stand for the later one, which is not in the group.
        let later = history
            .iter()
            .enumerate()
            .any(|(at, (time, _))| at > writer && Timestamp(*time) == stamp);
        if wrote.max() != Some(writer) && !later {
            return Some(format!("{told}: another writer is found"));
        }
        // Whoever is certain by the stamp to have seen the row, has seen its writer.
        for seen in 0..=history.len() {
            let mut vector = VersionVector::new();
            if seen > 0 {
                vector.advance(node(1), lsn(seen - 1));
            }
            // The node that applies has commits of its own, or no bound is known.
            let mut known = known.clone();
            let own = Commit { lsn: Lsn(1), time: Timestamp(1_000_000), xid: 0, alone: true };
            known.committed(node(2), own, &VersionVector::new());
            let bound = known.bound(node(2), node(3), &vector, Timestamp(2_000_000));
            if stamp <= bound && writer >= seen {
                return Some(format!("{told}: passes for seen by who has seen {seen}"));
            }
        }
    }
    None
}

#[test]
fn a_row_of_a_group_is_told_to_be_of_its_writer() {
    let mut looked_at = 0;
    for length in 1..=4 {
        for history in histories(length) {
            for ends in 0..1 << (length - 1) {
                for max in [1, 2, MAX] {
                    let takes = |group: &mut Group, time| group.takes(time, max);
                    assert_eq!(wrong(&history, ends, takes), None);
                    looked_at += 1;
                }
            }
        }
    }
    assert!(looked_at > 10_000, "{looked_at}");
}

#[test]
fn a_group_that_took_an_earlier_time_would_be_told_wrongly() {
    let careless = |group: &mut Group, time| {
        let any = *group != Group::default();
        *group = Group::of(time);
        any
    };
    let all = histories(3);
    assert!(all.iter().any(|history| wrong(history, 0, careless).is_some()));
}

#[test]
fn a_group_has_no_more_than_it_may() {
    let mut group = Group::default();
    assert!(!group.takes(Timestamp(5), 8), "there is none yet");
    group = Group::of(Timestamp(5));
    assert!(group.takes(Timestamp(5), 3));
    assert!(!group.takes(Timestamp(4), 3), "an earlier time");
    assert!(group.takes(Timestamp(6), 3));
    assert!(!group.takes(Timestamp(7), 3), "it has three");
    let taken = (1..).take_while(|_| group.takes(Timestamp(8), usize::MAX)).count();
    assert_eq!(3 + taken, MAX);
    let mut alone = Group::of(Timestamp(5));
    assert!(!alone.takes(Timestamp(6), 1));
}

#[test]
fn who_wrote_a_row_that_nobody_wrote_is_earlier_or_of_the_stamp() {
    let history: Vec<Transaction> = (0..MAX as i64 + 10).map(|at| (10 * at, 0)).collect();
    let known = remembered(&history);
    let early = known.stamped(node(1), Timestamp(10)).unwrap();
    assert_eq!((early.span.through, early.is_whole), (lsn(1), false));
    assert_eq!(early.nobody(Lsn::ZERO), Nobody::OfTheStamp, "all that the origin ever sent");
    assert_eq!(early.nobody(Lsn(1)), Nobody::Earlier, "what was before is gone");
    let late = known.stamped(node(1), Timestamp(10 * (MAX as i64 + 5))).unwrap();
    assert_eq!((late.span.through, late.is_whole), (lsn(MAX + 5), true));
    assert!(late.span.after < lsn(6) && late.span.after >= lsn(5), "{:?}", late.span);
    assert_eq!(late.nobody(Lsn(1)), Nobody::OfTheStamp);
    assert_eq!(late.nobody(lsn(6)), Nobody::Earlier, "a part of the span is gone");
    assert_eq!(known.stamped(node(1), Timestamp(15)), None);
    assert_eq!(known.stamped(node(2), Timestamp(10)), None);
}

#[test]
fn what_a_group_may_have_is_remembered_when_it_is_stable() {
    let history: Vec<Transaction> = (0..MAX as i64 + 10).map(|at| (10 * at, 0)).collect();
    let mut known = remembered(&history);
    let mut stable = VersionVector::new();
    stable.advance(node(1), lsn(MAX + 8));
    assert!(!known.forget(&stable, 1));
    let after = known.stamped(node(1), Timestamp(10 * (MAX as i64 + 9))).unwrap();
    assert!(after.is_whole, "the last is not stable, and may have come with all before it");
}

#[test]
fn what_was_applied_by_itself_is_in_no_group() {
    let mut known = remembered(&(0..9).map(|at| (10 * at, 0)).collect::<Vec<_>>());
    let commit = |at: usize, alone| {
        let time = Timestamp(10 * at as i64);
        Commit { lsn: lsn(at), time, xid: 0, alone }
    };
    known.committed(node(1), commit(9, true), &VersionVector::new());
    for at in 10..13 {
        known.committed(node(1), commit(at, false), &VersionVector::new());
    }
    assert_eq!(known.stamped(node(1), Timestamp(90)), None, "its stamp is its own");
    let behind = known.stamped(node(1), Timestamp(120)).unwrap();
    assert!(behind.is_whole && behind.span.after >= lsn(9), "{behind:?}");
    // It was not applied, and comes again with others.
    known.committed(node(1), commit(9, false), &VersionVector::new());
    let again = known.stamped(node(1), Timestamp(120)).unwrap();
    assert!(!again.is_whole && again.span.after < lsn(0), "{again:?}");
}
