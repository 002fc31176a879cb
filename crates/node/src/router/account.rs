//! A role in a database, as its clients have proved to be it: the keys to log in with, and its pools.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use synapsedb_pg::scram::Keys;
use tokio::sync::Notify;

use super::origin::{Origin, Parameters};
use super::pool::Pool;
use super::pooling::Pooling;
use super::server::Address;
use super::worker::Worker;

/// More origins than this are not remembered: the next is made anew at each login.
const ORIGINS_MAX: usize = 1_000;

/// Who connects to what.
pub(super) struct Account {
    pub(super) user: String,
    pub(super) database: String,
    keys: RefCell<Option<Arc<Keys>>>,
    pools: RefCell<Vec<Rc<Pool>>>,
    defaults: RefCell<String>,
    origins: RefCell<HashMap<Parameters, Rc<Origin>>>,
    pub(super) clients: Cell<usize>,
    pub(super) pooling: Cell<Pooling>,
    /// Its pools are kept filled.
    warm: Cell<bool>,
    pub(super) counters: Counters,
    /// An operator has paused the database: no transaction begins.
    held: Cell<bool>,
    resumed: Notify,
    /// The counters at the beginning of this period, and of the one before.
    periods: Cell<[(Instant, Totals); 2]>,
}

/// What the account's clients have done; only its worker counts.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// How often a client was lent a server connection.
    pub(super) assignments: Cell<u64>,
    pub(super) transactions: Cell<u64>,
    /// Requests that ended with a ReadyForQuery.
    pub(super) cycles: Cell<u64>,
    /// Simple queries.
    pub(super) queries: Cell<u64>,
    pub(super) received: Cell<u64>,
    pub(super) sent: Cell<u64>,
    pub(super) transaction_us: Cell<u64>,
    pub(super) wait_us: Cell<u64>,
    pub(super) parses: Cell<u64>,
    /// Statements that servers were made to prepare.
    pub(super) server_parses: Cell<u64>,
    pub(super) binds: Cell<u64>,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) assignments: u64,
    pub(super) transactions: u64,
    pub(super) cycles: u64,
    pub(super) queries: u64,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) transaction_us: u64,
    pub(super) wait_us: u64,
    pub(super) parses: u64,
    pub(super) server_parses: u64,
    pub(super) binds: u64,
}

impl Counters {
    fn totals(&self) -> Totals {
        Totals {
            assignments: self.assignments.get(),
            transactions: self.transactions.get(),
            cycles: self.cycles.get(),
            queries: self.queries.get(),
            received: self.received.get(),
            sent: self.sent.get(),
            transaction_us: self.transaction_us.get(),
            wait_us: self.wait_us.get(),
            parses: self.parses.get(),
            server_parses: self.server_parses.get(),
            binds: self.binds.get(),
        }
    }
}

impl Totals {
    pub(super) fn add(&mut self, other: &Self) {
        for (sum, more) in self.all_mut().into_iter().zip(Self::clone(other).all_mut()) {
            *sum = sum.wrapping_add(*more);
        }
    }

    /// What was counted since `before`.
    pub(super) fn since(mut self, mut before: Self) -> Self {
        for (sum, less) in self.all_mut().into_iter().zip(before.all_mut()) {
            *sum = sum.wrapping_sub(*less);
        }
        self
    }

    fn all_mut(&mut self) -> [&mut u64; 11] {
        let Self {
            assignments,
            transactions,
            cycles,
            queries,
            received,
            sent,
            transaction_us,
            wait_us,
            parses,
            server_parses,
            binds,
        } = self;
        [
            assignments,
            transactions,
            cycles,
            queries,
            received,
            sent,
            transaction_us,
            wait_us,
            parses,
            server_parses,
            binds,
        ]
    }
}

/// Adds to a counter.
pub(super) fn add(counter: &Cell<u64>, more: u64) {
    counter.set(counter.get().wrapping_add(more));
}

impl Account {
    pub(super) fn new(user: &str, database: &str, pooling: Pooling) -> Self {
        Self {
            user: user.to_owned(),
            database: database.to_owned(),
            keys: RefCell::default(),
            pools: RefCell::default(),
            defaults: RefCell::default(),
            origins: RefCell::default(),
            clients: Cell::new(0),
            pooling: Cell::new(pooling),
            warm: Cell::new(false),
            counters: Counters::default(),
            held: Cell::new(false),
            resumed: Notify::new(),
            periods: Cell::new([(Instant::now(), Totals::default()); 2]),
        }
    }

    /// Whether no transaction may begin at this moment.
    pub(super) fn is_held(&self) -> bool {
        self.held.get()
    }

    /// An operator pauses or resumes the database.
    pub(super) fn hold(&self, held: bool) {
        if self.held.replace(held) && !held {
            self.resumed.notify_waiters();
        }
    }

    /// Waits until transactions may begin.
    pub(super) async fn resumed(&self) {
        loop {
            let resumed = self.resumed.notified();
            if !self.held.get() {
                return;
            }
            resumed.await;
        }
    }

    pub(super) fn totals(&self) -> Totals {
        self.counters.totals()
    }

    /// What was counted in the last period and a part of this one, and how long that is.
    pub(super) fn lately(&self) -> (Duration, Totals) {
        let [(begun, before), _] = self.periods.get();
        (begun.elapsed(), self.totals().since(before))
    }

    /// A period has ended.
    pub(super) fn next_period(&self) {
        let [_, last] = self.periods.get();
        self.periods.set([last, (Instant::now(), self.totals())]);
    }

    /// What lets the router log in as the role.
    pub(super) fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.borrow().clone()
    }

    /// A client has proved to be the role.
    pub(super) fn proved(&self, keys: Keys) {
        *self.keys.borrow_mut() = Some(Arc::new(keys));
        self.warm.set(true);
    }

    pub(super) fn is_warm(&self) -> bool {
        self.warm.get()
    }

    /// No connection is opened ahead until somebody logs in again.
    pub(super) fn cool(&self) {
        self.warm.set(false);
    }

    /// The pool at a node; one whose address has changed is given up.
    pub(super) fn pool(self: &Rc<Self>, worker: &Rc<Worker>, address: &Rc<Address>) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        if let Some(pool) = pools.iter().find(|pool| Rc::ptr_eq(&pool.address, address)) {
            return Rc::clone(pool);
        }
        if let Some(pool) = pools.iter_mut().find(|pool| pool.address.node == address.node) {
            if *pool.address != **address {
                *pool = Rc::new(Pool::new(worker, self, Rc::clone(address)));
            }
            return Rc::clone(pool);
        }
        let pool = Rc::new(Pool::new(worker, self, Rc::clone(address)));
        pools.push(Rc::clone(&pool));
        pool
    }

    pub(super) fn pools(&self) -> Vec<Rc<Pool>> {
        self.pools.borrow().clone()
    }

    /// What a startup packet like this came to before.
    pub(super) fn origin(&self, parameters: &Parameters) -> Option<Rc<Origin>> {
        self.origins.borrow().get(parameters).cloned()
    }

    pub(super) fn remember(&self, origin: &Rc<Origin>) {
        let mut origins = self.origins.borrow_mut();
        if origins.len() < ORIGINS_MAX {
            origins.insert(origin.parameters.clone(), Rc::clone(origin));
        }
    }

    /// The role, or what its sessions begin with, may be another than before: then no connection from before serves a
    /// transaction any more.
    pub(super) fn begins_with(&self, defaults: &str) {
        if *self.defaults.borrow() == defaults {
            return;
        }
        let known = !self.defaults.replace(defaults.to_owned()).is_empty();
        if known {
            self.origins.borrow_mut().clear();
            self.pools().iter().for_each(Pool::renew);
        }
    }
}
