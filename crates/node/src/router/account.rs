//! A role in a database, as its clients have proved to be it: the keys to log in with, and its pools.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use synapsedb_pg::scram::Keys;

use super::login::Origin;
use super::pool::Pool;
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
    origins: RefCell<HashMap<Vec<(String, String)>, Rc<Origin>>>,
    pub(super) clients: Cell<usize>,
    pub(super) counters: Counters,
}

/// What the account's clients have done; only its worker counts.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) transactions: Cell<u64>,
    pub(super) queries: Cell<u64>,
    pub(super) received: Cell<u64>,
    pub(super) sent: Cell<u64>,
    pub(super) transaction_us: Cell<u64>,
    pub(super) wait_us: Cell<u64>,
    pub(super) parses: Cell<u64>,
    pub(super) binds: Cell<u64>,
}

/// Adds to a counter.
pub(super) fn add(counter: &Cell<u64>, more: u64) {
    counter.set(counter.get().wrapping_add(more));
}

impl Account {
    pub(super) fn new(user: &str, database: &str) -> Self {
        Self {
            user: user.to_owned(),
            database: database.to_owned(),
            keys: RefCell::default(),
            pools: RefCell::default(),
            defaults: RefCell::default(),
            origins: RefCell::default(),
            clients: Cell::new(0),
            counters: Counters::default(),
        }
    }

    /// What lets the router log in as the role.
    pub(super) fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.borrow().clone()
    }

    /// A client has proved to be the role.
    pub(super) fn proved(&self, keys: Keys) {
        *self.keys.borrow_mut() = Some(Arc::new(keys));
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
    pub(super) fn origin(&self, parameters: &[(String, String)]) -> Option<Rc<Origin>> {
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
