//! Every order of events around an interrupted COMMIT, up to a stated depth: no answer is ever wrong, and each fact
//! that an answer stands on is needed.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::*;

const SEEN: Seen = Seen { promise: Promise::Local, lsn: Lsn(9) };

fn id(count: u64) -> Id {
    Id::new(NodeId::new(3).unwrap(), 0x0123_4567_89ab_cdef, count)
}

#[test]
fn an_id_is_read_as_it_is_written() {
    let one = id(7);
    assert_eq!(one.to_string(), "00030123456789abcdef000000000007");
    assert_eq!(one.to_string().parse(), Ok(one));
    assert_eq!(one.digits(), one.to_string().as_bytes());
    for wrong in ["", "7", "+0030123456789abcdef000000000007", "x0030123456789abcdef000000000007"] {
        assert!(wrong.parse::<Id>().is_err(), "{wrong}");
    }
    assert_ne!(id(1), id(2));
}

#[test]
fn what_is_forgotten_is_not_covered() {
    let mut index = Index::new(3, 100, 1_000);
    assert!(!index.covers(1_000) && index.covers(1_001));
    index.filled_from(900);
    assert!(!index.covers(900) && index.covers(901));
    for (count, at_ms) in [(1, 1_010), (2, 1_020), (3, 1_030)] {
        index.note(id(count), SEEN, at_ms);
    }
    assert!(index.covers(901) && index.len() == 3);
    // Too many: the oldest goes, and whatever was committed up to then may have been it.
    let other = Seen { promise: Promise::Members, ..SEEN };
    index.note(id(4), other, 1_040);
    assert_eq!((index.get(id(1)), index.get(id(4))), (None, Some(other)));
    assert!(!index.covers(1_010) && index.covers(1_011));
    // Too old.
    index.note(id(5), SEEN, 1_131);
    assert_eq!((index.get(id(3)), index.len()), (None, 2));
    assert!(!index.covers(1_030) && index.covers(1_031));
    // An index that is full may have lost what filled it.
    let mut full = Index::new(1, 100, 1_000);
    full.note(id(1), SEEN, 1_000);
    full.filled_from(900);
    assert!(!full.covers(1_000));
}

/// The node of a transaction, its agent, and one question about the transaction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    /// The session that works on the COMMIT.
    session: bool,
    /// Its commit record, behind which the WAL ended then.
    commit: Option<u64>,
    /// Where the WAL ends, and up to where it is on the disk.
    inserted: u64,
    flushed: u64,
    server: bool,
    /// Up to where the agent has read the WAL, what it knows from there, and what it keeps in its spool.
    read: u64,
    seen: bool,
    covers: bool,
    spooled: bool,
    agent: bool,
    question: Question,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    gone: Option<bool>,
    end: Option<u64>,
    read: Option<u64>,
    seen: Option<(bool, bool)>,
    answer: Option<bool>,
}

const NOT_ASKED: Question =
    Question { gone: None, end: None, read: None, seen: None, answer: None };

/// What a careless agent does otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// It takes a session for gone that is not.
    GoneNotAsked,
    /// It looks where the WAL ends before it asks for the session.
    EndFirst,
    /// It takes what is on the disk for the end of the WAL.
    EndOnDisk,
    /// It does not wait for the WAL to be read.
    NotRead,
    /// It looks into its index before that.
    IndexFirst,
    /// It takes an index that has forgotten something for a whole one.
    Forgetful,
}

impl World {
    fn new() -> Self {
        Self {
            session: true,
            commit: None,
            inserted: 1,
            flushed: 1,
            server: true,
            read: 1,
            seen: false,
            covers: true,
            spooled: false,
            agent: true,
            question: NOT_ASKED,
        }
    }

    /// What may happen next, by itself and by the agent.
    fn next(&self, fault: Fault) -> Vec<Self> {
        let mut worlds = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            worlds.push(world);
        };
        if self.server && self.session {
            if self.commit.is_none() {
                add(&|world| {
                    world.inserted += 1;
                    world.commit = Some(world.inserted);
                });
            }
            add(&|world| world.session = false);
        }
        if self.server {
            if self.inserted < 3 {
                add(&|world| world.inserted += 1);
            }
            add(&|world| world.flushed = world.inserted);
            add(&|world| {
                (world.server, world.session, world.inserted) = (false, false, world.flushed);
                world.commit = world.commit.filter(|at| *at <= world.flushed);
                // A restarted server has another number for everything: what was being asked is asked again.
                world.ask_again();
            });
        } else {
            add(&|world| world.server = true);
        }
        if self.agent && self.server && self.read < self.flushed {
            add(&|world| {
                world.read += 1;
                if world.commit == Some(world.read) {
                    (world.seen, world.spooled) = (true, true);
                }
            });
        }
        if self.agent {
            // Others push it out.
            add(&|world| (world.seen, world.covers) = (false, false));
            add(&|world| {
                world.agent = false;
                world.ask_again();
            });
        } else {
            // It reads its spool at the start, or had lost too much of it.
            add(&|world| {
                (world.agent, world.seen, world.covers) = (true, world.spooled, true);
            });
            add(&|world| {
                (world.agent, world.seen, world.covers) = (true, false, false);
            });
        }
        if self.agent && self.server && self.question.answer.is_none() {
            worlds.push(self.ask(fault));
        }
        worlds
    }

    fn ask_again(&mut self) {
        if self.question.answer.is_none() {
            self.question = NOT_ASKED;
        }
    }

    /// The next step of the question.
    fn ask(&self, fault: Fault) -> Self {
        let mut world = self.clone();
        let end = if fault == Fault::EndOnDisk { self.flushed } else { self.inserted };
        let index = (self.seen, self.covers || fault == Fault::Forgetful);
        let question = &mut world.question;
        match self.question {
            Question { end: None, .. } if fault == Fault::EndFirst => question.end = Some(end),
            Question { seen: None, .. } if fault == Fault::IndexFirst => {
                question.seen = Some(index)
            }
            Question { gone: None, .. } => {
                question.gone = Some(!self.session || fault == Fault::GoneNotAsked);
            }
            Question { end: None, .. } => question.end = Some(end),
            Question { read: None, end: Some(end), .. } => {
                let read = if fault == Fault::NotRead { end } else { self.read };
                question.read = Some(read);
            }
            Question { seen: None, .. } => question.seen = Some(index),
            Question {
                gone: Some(gone),
                end: Some(end),
                read: Some(read),
                seen: Some(seen),
                ..
            } => {
                let answer = at_origin(&AtOrigin {
                    session_gone: gone,
                    wal_end: Lsn(end),
                    read: Lsn(read),
                    seen: seen.0.then_some(SEEN),
                    index_covers: seen.1,
                });
                match answer {
                    Answer::Committed(_) => question.answer = Some(true),
                    Answer::Aborted => question.answer = Some(false),
                    Answer::Unknown => *question = NOT_ASKED,
                }
            }
        }
        world
    }

    /// The answer, if it is wrong: what was told as committed is on the disk, what was told as aborted is nowhere.
    fn is_wrong(&self) -> bool {
        match self.question.answer {
            None => false,
            Some(true) => self.commit.is_none_or(|at| at > self.flushed),
            Some(false) => self.commit.is_some(),
        }
    }
}

/// All worlds that can come about; the answers that were given, and whether one was or became wrong.
fn explore(fault: Fault) -> (BTreeSet<bool>, bool) {
    let (mut known, mut ahead) = (BTreeSet::from([World::new()]), vec![World::new()]);
    let (mut answers, mut wrong) = (BTreeSet::new(), false);
    while let Some(world) = ahead.pop() {
        answers.extend(world.question.answer);
        wrong |= world.is_wrong();
        for next in world.next(fault) {
            if known.insert(next.clone()) {
                ahead.push(next);
            }
        }
    }
    assert!(known.len() > 1_000, "{fault:?}: {} worlds", known.len());
    (answers, wrong)
}

#[test]
fn no_order_of_events_leads_to_a_wrong_answer() {
    assert_eq!(explore(Fault::None), (BTreeSet::from([false, true]), false));
}

#[test]
fn every_fact_is_needed() {
    for fault in [
        Fault::GoneNotAsked,
        Fault::EndFirst,
        Fault::EndOnDisk,
        Fault::NotRead,
        Fault::IndexFirst,
        Fault::Forgetful,
    ] {
        assert!(explore(fault).1, "{fault:?} is never wrong");
    }
}
