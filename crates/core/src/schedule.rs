//! Which transactions of one origin are applied at the same time: by the lane itself in their order, and by its workers
//! ahead of their turn.
//!
//! A worker begins a transaction only when it writes nothing that one before it writes which has not committed, and
//! commits it only when all before it have. So the origin's progress stays a prefix, and readers see its commits in
//! their order. What a worker cannot do, for whatever reason, the lane does itself when its turn comes.

use std::collections::VecDeque;

use crate::lsn::Lsn;
use crate::writeset::WriteSet;

/// One of the lane's workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Worker(pub usize);

/// What has happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The next transaction of the origin was read.
    Read {
        /// Its commit LSN.
        lsn: Lsn,
        /// What it writes.
        set: WriteSet,
        /// Whether it is worth a hand-over and may be applied here now: else the lane does it itself.
        suits: bool,
    },
    /// A worker has nothing to do and can be given a transaction.
    Free(Worker),
    /// A worker has done all of its transaction but the commit.
    Executed(Worker),
    /// A worker has taken back its transaction, and is free.
    Refused(Worker),
    /// A worker is gone, and what it had begun is taken back. Not while it commits: then nobody knows.
    Gone(Worker),
    /// Everything through this one is committed; what a worker has committed is its last.
    Committed(Lsn),
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The worker is given the transaction.
    Begin(Worker, Lsn),
    /// The worker commits: all before it are committed.
    Commit(Worker, Lsn),
    /// The lane applies it itself, behind what it has sent before; it need not wait for the commit.
    Own(Lsn),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum State {
    /// Nobody has begun it.
    Waiting,
    /// A worker has it.
    Given(Worker),
    /// A worker has done all of it but the commit.
    Executed(Worker),
    /// A worker commits it.
    Committing(Worker),
    /// The lane has it.
    Own,
}

#[derive(Clone, Debug)]
struct Entry {
    lsn: Lsn,
    set: WriteSet,
    /// Whether a worker may be given it.
    suits: bool,
    /// The last one before it that writes what it does: a worker has to wait for that.
    follows: Option<Lsn>,
    state: State,
}

/// Which rule is broken on purpose, to show that it is needed.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Broken {
    #[default]
    Nothing,
    /// Write sets are not compared.
    Sets,
    /// Workers commit as soon as they can.
    Order,
}

/// The transactions that were read and are not known to be committed, in the order of the origin.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    entries: VecDeque<Entry>,
    free: Vec<Worker>,
    #[cfg(test)]
    broken: Broken,
}

impl Schedule {
    /// Whether everything that was read is committed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many transactions were read and are not committed.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether anything large is under way: as long as there is not, reading on is of no use.
    pub fn has_for_workers(&self) -> bool {
        self.entries.iter().any(|entry| match entry.state {
            State::Given(_) | State::Executed(_) | State::Committing(_) => true,
            // While the lane does a large one, workers may do those behind it.
            State::Waiting | State::Own => entry.suits,
        })
    }

    /// What the worker commits at this moment: if it is lost, nobody knows the outcome.
    pub fn committing(&self, worker: Worker) -> Option<Lsn> {
        let found = self.entries.iter().find(|entry| entry.state == State::Committing(worker));
        found.map(|entry| entry.lsn)
    }

    /// The lane begins anew behind what is committed: everything that was read will be read again. Answers the workers
    /// that have to take back what they were given; each of them then says that it has refused it.
    pub fn clear(&mut self) -> Vec<Worker> {
        let given = self.entries.drain(..).filter_map(|entry| match entry.state {
            State::Given(worker) | State::Executed(worker) | State::Committing(worker) => {
                Some(worker)
            }
            State::Waiting | State::Own => None,
        });
        given.collect()
    }

    /// Takes note of an event; what is to be done then says [`Schedule::due`].
    pub fn step(&mut self, event: Event) {
        match event {
            Event::Read { lsn, set, suits } => {
                let meets = |entry: &&Entry| self.compares() && entry.set.meets(&set);
                let follows = self.entries.iter().rev().find(meets).map(|entry| entry.lsn);
                self.entries.push_back(Entry { lsn, set, suits, follows, state: State::Waiting });
            }
            Event::Free(worker) => {
                if !self.free.contains(&worker) {
                    self.free.push(worker);
                }
            }
            Event::Executed(worker) => {
                if let Some(entry) = self.entry(State::Given(worker)) {
                    entry.state = State::Executed(worker);
                }
            }
            Event::Refused(worker) => {
                self.refused(worker);
                self.step(Event::Free(worker));
            }
            Event::Gone(worker) => {
                self.refused(worker);
                self.free.retain(|free| *free != worker);
            }
            Event::Committed(lsn) => {
                while self.entries.front().is_some_and(|first| first.lsn <= lsn) {
                    if let Some(Entry { state: State::Committing(worker), .. }) =
                        self.entries.pop_front()
                    {
                        self.step(Event::Free(worker));
                    }
                }
            }
        }
    }

    /// What is to be done next, which counts as begun; nothing when something must happen first.
    pub fn due(&mut self) -> Option<Effect> {
        self.begin().or_else(|| self.commit()).or_else(|| self.own())
    }

    fn begin(&mut self) -> Option<Effect> {
        let worker = *self.free.last()?;
        let first = self.entries.front()?.lsn;
        // What the lane comes to now it does itself, unless it has a large one under way: its order needs no hand-over.
        let own = || self.entries.iter().take_while(|entry| entry.state == State::Own);
        let skipped = own().count() + usize::from(!own().any(|entry| entry.suits));
        let fit = |entry: &&mut Entry| {
            let alone = entry.follows.is_none_or(|before| before < first);
            entry.state == State::Waiting && entry.suits && alone
        };
        let entry = self.entries.iter_mut().skip(skipped).find(fit)?;
        entry.state = State::Given(worker);
        self.free.pop();
        Some(Effect::Begin(worker, entry.lsn))
    }

    fn commit(&mut self) -> Option<Effect> {
        let executed = |entry: &Entry| match entry.state {
            State::Executed(worker) => Some(worker),
            State::Waiting | State::Given(_) | State::Committing(_) | State::Own => None,
        };
        #[cfg(test)]
        if self.broken == Broken::Order {
            let entry = self.entries.iter_mut().find(|entry| executed(entry).is_some())?;
            let worker = executed(entry)?;
            entry.state = State::Committing(worker);
            return Some(Effect::Commit(worker, entry.lsn));
        }
        let first = self.entries.front_mut()?;
        let worker = executed(first)?;
        first.state = State::Committing(worker);
        Some(Effect::Commit(worker, first.lsn))
    }

    fn own(&mut self) -> Option<Effect> {
        let entry = self.entries.iter_mut().find(|entry| entry.state != State::Own)?;
        if entry.state != State::Waiting {
            return None;
        }
        entry.state = State::Own;
        Some(Effect::Own(entry.lsn))
    }

    /// Its turn will come, and the lane does it.
    fn refused(&mut self, worker: Worker) {
        let given = [State::Given(worker), State::Executed(worker), State::Committing(worker)];
        if let Some(entry) = self.entries.iter_mut().find(|entry| given.contains(&entry.state)) {
            (entry.state, entry.suits) = (State::Waiting, false);
        }
    }

    fn entry(&mut self, state: State) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.state == state)
    }

    #[cfg(test)]
    fn compares(&self) -> bool {
        self.broken != Broken::Sets
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "tests break it on purpose")]
    fn compares(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
