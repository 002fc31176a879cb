//! All interleavings of all small histories: commits in order, nothing at the same time that meets, everything done.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::*;
use crate::history::Digest;

const TABLE: Digest = Digest(1);

/// What a transaction of the histories writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    A,
    B,
    Both,
    Table,
    Everything,
}

impl Writes {
    const ALL: [Self; 5] = [Self::A, Self::B, Self::Both, Self::Table, Self::Everything];

    fn set(self) -> WriteSet {
        let mut set = WriteSet::default();
        let values: &[u128] = match self {
            Self::A => &[1],
            Self::B => &[2],
            Self::Both => &[1, 2],
            Self::Table => {
                set.whole(TABLE);
                &[]
            }
            Self::Everything => return WriteSet::everything(),
        };
        values.iter().for_each(|value| set.value(TABLE, Digest(*value), 10));
        set.seal()
    }
}

#[derive(Clone, Copy, Debug)]
struct Transaction {
    writes: Writes,
    suits: bool,
}

/// What is really going on, told by the effects alone.
#[derive(Clone)]
struct World<'t> {
    schedule: Schedule,
    history: &'t [Transaction],
    read: usize,
    committed: usize,
    /// What the workers have, and whether it is executed, or is being committed.
    given: Vec<Option<(usize, State)>>,
    /// What the lane has sent and not heard of.
    sent: VecDeque<usize>,
    /// How often workers may still refuse or vanish.
    failures: u32,
}

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// What is to be done next is done; other things may happen before.
    Act,
    Read,
    Executed(usize),
    Refused(usize),
    Gone(usize),
    CommittedByWorker(usize),
    CommittedByLane,
    LaneFails,
}

fn lsn(index: usize) -> Lsn {
    Lsn(index as u64 + 1)
}

impl World<'_> {
    fn at_the_same_time(&self) -> Vec<usize> {
        let given = self.given.iter().flatten().map(|(index, _)| *index);
        given.chain(self.sent.iter().copied()).collect()
    }

    /// Does what is to be done next. Answers what is violated.
    fn act(&mut self) -> Result<(), String> {
        if let Some(effect) = self.schedule.due() {
            match effect {
                Effect::Begin(Worker(worker), begun) => {
                    let index = begun.0 as usize - 1;
                    let set = self.history[index].writes.set();
                    if self.given[worker].is_some() || index < self.committed {
                        return Err(format!("{effect:?} to a busy worker or of the past"));
                    }
                    for before in self.committed..index {
                        if self.history[before].writes.set().meets(&set) {
                            return Err(format!("{effect:?} while {before} is not committed"));
                        }
                    }
                    self.given[worker] = Some((index, State::Given(Worker(worker))));
                }
                Effect::Commit(Worker(worker), commit) => {
                    let index = commit.0 as usize - 1;
                    let executed = Some((index, State::Executed(Worker(worker))));
                    if index != self.committed || self.given[worker] != executed {
                        return Err(format!("{effect:?} when {} is next", self.committed));
                    }
                    self.given[worker] = Some((index, State::Committing(Worker(worker))));
                }
                Effect::Own(own) => {
                    let index = own.0 as usize - 1;
                    if index != self.committed + self.sent.len() {
                        return Err(format!("{effect:?} behind {:?}", self.sent));
                    }
                    // What workers do meanwhile comes later and must not be in its way.
                    let set = self.history[index].writes.set();
                    let met = |other: &usize| self.history[*other].writes.set().meets(&set);
                    if self.given.iter().flatten().any(|(other, _)| met(other)) {
                        return Err(format!("{effect:?} while a worker has what it writes"));
                    }
                    self.sent.push_back(index);
                }
            }
        }
        Ok(())
    }

    fn possible(&self) -> Vec<Happens> {
        let mut possible = Vec::new();
        if self.schedule.clone().due().is_some() {
            possible.push(Happens::Act);
        }
        if self.read < self.history.len() {
            possible.push(Happens::Read);
        }
        for (worker, given) in self.given.iter().enumerate() {
            match given {
                Some((_, State::Given(_))) => possible.push(Happens::Executed(worker)),
                Some((_, State::Committing(_))) => {
                    possible.push(Happens::CommittedByWorker(worker));
                }
                Some(_) | None => {}
            }
            if self.failures > 0 && given.is_some() {
                possible.push(Happens::Refused(worker));
                if !matches!(given, Some((_, State::Committing(_)))) {
                    possible.push(Happens::Gone(worker));
                }
            }
        }
        if !self.sent.is_empty() {
            possible.push(Happens::CommittedByLane);
            if self.failures > 0 {
                possible.push(Happens::LaneFails);
            }
        }
        possible
    }

    fn happen(&mut self, what: Happens) -> Result<(), String> {
        match what {
            Happens::Act => self.act()?,
            Happens::Read => {
                let Transaction { writes, suits } = self.history[self.read];
                let (lsn, set) = (lsn(self.read), writes.set());
                self.schedule.step(Event::Read { lsn, set, suits });
                self.read += 1;
            }
            Happens::Executed(worker) => {
                let (index, _) = self.given[worker].unwrap();
                self.given[worker] = Some((index, State::Executed(Worker(worker))));
                self.schedule.step(Event::Executed(Worker(worker)));
            }
            Happens::Refused(worker) => {
                self.failures -= 1;
                self.given[worker] = None;
                self.schedule.step(Event::Refused(Worker(worker)));
            }
            Happens::Gone(worker) => {
                self.failures -= 1;
                self.given[worker] = None;
                self.schedule.step(Event::Gone(Worker(worker)));
            }
            Happens::CommittedByWorker(worker) => {
                self.given[worker] = None;
                self.committed += 1;
                self.schedule.step(Event::Committed(lsn(self.committed - 1)));
            }
            Happens::CommittedByLane => {
                self.sent.pop_front();
                self.committed += 1;
                self.schedule.step(Event::Committed(lsn(self.committed - 1)));
            }
            Happens::LaneFails => {
                self.failures -= 1;
                self.sent.clear();
                for Worker(worker) in self.schedule.clear() {
                    self.given[worker] = None;
                    self.schedule.step(Event::Refused(Worker(worker)));
                }
                // The lane does by itself what had failed.
                self.committed += 1;
                self.read = self.committed;
            }
        }
        Ok(())
    }
}

/// What a run of all interleavings has shown.
#[derive(Default)]
struct Shown {
    states: usize,
    /// The most transactions that were under way at once.
    at_once: usize,
}

fn explore(
    world: &World<'_>,
    seen: &mut BTreeSet<String>,
    shown: &mut Shown,
) -> Result<(), String> {
    let name = format!(
        "{:?}{:?}{:?}{:?}{} {} {}",
        world.schedule.entries.iter().map(|entry| (entry.state, entry.suits)).collect::<Vec<_>>(),
        world.given,
        world.schedule.free,
        world.sent,
        world.read,
        world.committed,
        world.failures
    );
    if !seen.insert(name) {
        return Ok(());
    }
    shown.states += 1;
    shown.at_once = shown.at_once.max(world.at_the_same_time().len());
    let possible = world.possible();
    if possible.is_empty() && world.committed < world.history.len() {
        return Err(format!("nothing happens any more after {} commits", world.committed));
    }
    for what in possible {
        let mut next = world.clone();
        next.happen(what).map_err(|violated| format!("{violated}, after {what:?}"))?;
        explore(&next, seen, shown)?;
    }
    Ok(())
}

fn all_interleavings(
    history: &[Transaction],
    workers: usize,
    broken: Broken,
    failures: u32,
) -> Result<Shown, String> {
    let mut schedule = Schedule { broken, ..Schedule::default() };
    (0..workers).for_each(|worker| schedule.step(Event::Free(Worker(worker))));
    let world = World {
        schedule,
        history,
        read: 0,
        committed: 0,
        given: vec![None; workers],
        sent: VecDeque::new(),
        failures,
    };
    let mut shown = Shown::default();
    explore(&world, &mut BTreeSet::new(), &mut shown)?;
    Ok(shown)
}

fn histories(length: usize) -> Vec<Vec<Transaction>> {
    let mut histories = vec![Vec::new()];
    for _ in 0..length {
        let longer = histories.iter().flat_map(|history: &Vec<Transaction>| {
            Writes::ALL.into_iter().flat_map(move |writes| {
                [true, false].map(|suits| {
                    let mut longer = history.clone();
                    longer.push(Transaction { writes, suits });
                    longer
                })
            })
        });
        histories = longer.collect();
    }
    histories
}

#[test]
fn commits_are_in_order_and_what_meets_is_never_under_way_at_once() {
    let mut shown = Shown::default();
    for (length, workers, failures) in [(3, 1, 2), (3, 2, 2), (4, 2, 0)] {
        for history in histories(length) {
            match all_interleavings(&history, workers, Broken::Nothing, failures) {
                Ok(of_one) => {
                    shown.states += of_one.states;
                    shown.at_once = shown.at_once.max(of_one.at_once);
                }
                Err(violated) => panic!("{violated}: {history:?}"),
            }
        }
    }
    assert!(shown.states > 100_000, "only {} states", shown.states);
}

#[test]
fn disjoint_transactions_are_under_way_at_once() {
    let mut schedule = Schedule::default();
    schedule.step(Event::Free(Worker(0)));
    for (index, writes) in [Writes::A, Writes::B].into_iter().enumerate() {
        schedule.step(Event::Read { lsn: lsn(index), set: writes.set(), suits: true });
    }
    assert_eq!(schedule.due(), Some(Effect::Begin(Worker(0), lsn(1))));
    assert_eq!(schedule.due(), Some(Effect::Own(lsn(0))), "the lane does the first itself");
    schedule.step(Event::Executed(Worker(0)));
    assert_eq!(schedule.due(), None, "it is not its turn");
    schedule.step(Event::Committed(lsn(0)));
    assert_eq!(schedule.due(), Some(Effect::Commit(Worker(0), lsn(1))));
    let history = [Writes::A, Writes::A].map(|writes| Transaction { writes, suits: true });
    let mut schedule = Schedule::default();
    schedule.step(Event::Free(Worker(0)));
    for (index, transaction) in history.iter().enumerate() {
        let set = transaction.writes.set();
        schedule.step(Event::Read { lsn: lsn(index), set, suits: true });
    }
    assert_eq!(schedule.due(), Some(Effect::Own(lsn(0))));
    assert_eq!(schedule.due(), Some(Effect::Own(lsn(1))), "behind it in the lane's own session");
    assert_eq!(schedule.due(), None);
}

#[test]
fn what_is_broken_on_purpose_is_found() {
    let found = |broken: Broken| {
        histories(3).iter().any(|history| all_interleavings(history, 2, broken, 1).is_err())
    };
    assert!(found(Broken::Sets), "write sets are not compared");
    assert!(found(Broken::Order), "workers commit as soon as they can");
}
