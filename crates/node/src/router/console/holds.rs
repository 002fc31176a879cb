//! What operators hold back: paused and disabled databases, and the orders that a worker carries out for them.

use std::collections::BTreeSet;
use std::rc::Rc;

use tokio::sync::oneshot;

use crate::router::Shared;
use crate::router::entry::End;
use crate::router::worker::{Command, Worker};

/// The databases that are paused and disabled, on one worker; those of one agent agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::router) struct Holds {
    all: bool,
    paused: BTreeSet<String>,
    disabled: BTreeSet<String>,
}

impl Holds {
    /// Whether no transaction may begin in the database.
    pub(in crate::router) fn holds(&self, database: &str) -> bool {
        self.all || self.paused.contains(database)
    }

    /// Whether no client may come in to the database.
    pub(in crate::router) fn refuses(&self, database: &str) -> bool {
        self.disabled.contains(database)
    }

    /// Whether all databases are paused.
    pub(super) fn is_paused(&self) -> bool {
        self.all
    }

    /// Whether any database is paused.
    pub(in crate::router) fn pauses_any(&self) -> bool {
        self.all || !self.paused.is_empty()
    }

    /// The databases that are named in it.
    pub(super) fn databases(&self) -> impl Iterator<Item = &String> {
        self.paused.union(&self.disabled)
    }
}

/// What a worker is told to do; `None` for all databases.
#[derive(Clone, Debug)]
pub(in crate::router) enum Order {
    /// Lets no transaction begin, and closes server connections as they become free.
    Pause(Option<String>),
    /// As [`Order::Pause`], and ends the clients' sessions at once.
    Kill(Option<String>),
    Resume(Option<String>),
    /// Closes server connections as they become free; new ones take their place.
    Reconnect(Option<String>),
    /// Changes nothing: tells how many server connections are open.
    Count(Option<String>),
    Disable(String),
    Enable(String),
    /// Ends the session of one client.
    KillClient(u32),
    /// Closes the connections to a database that nobody has now.
    CloseIdle(String),
    /// Closes the connections of a role that nobody has now.
    CloseIdleOf(String),
    /// Goes by the configuration that is in force now.
    Reload,
}

impl Order {
    fn database(&self) -> Option<&str> {
        match self {
            Self::Pause(name)
            | Self::Kill(name)
            | Self::Resume(name)
            | Self::Reconnect(name)
            | Self::Count(name) => name.as_deref(),
            Self::Disable(name) | Self::Enable(name) | Self::CloseIdle(name) => Some(name),
            Self::KillClient(_) | Self::CloseIdleOf(_) | Self::Reload => None,
        }
    }
}

impl Shared {
    /// Has every worker carry out an order; the sum of what they answer.
    pub(in crate::router) async fn order(&self, order: &Order) -> u64 {
        let mut answers = Vec::with_capacity(self.commands.len());
        for commands in &self.commands {
            let (done, answer) = oneshot::channel();
            // A worker that has ended has nothing to do it to.
            if commands.send(Command::Order(order.clone(), done)).is_ok() {
                answers.push(answer);
            }
        }
        let mut sum = 0;
        for answer in answers {
            sum += answer.await.unwrap_or(0);
        }
        sum
    }
}

/// Carries an order out on one worker: the number of server connections that are open in the databases it is about,
/// or of sessions that were ended.
pub(in crate::router) fn obey(worker: &Rc<Worker>, order: &Order) -> u64 {
    change(worker, order);
    let meant = |database: &str| order.database().is_none_or(|name| name == database);
    let (mut open, mut ended) = (0, 0);
    for account in worker.accounts() {
        account.hold(worker.holds.borrow().holds(&account.database));
        if !meant(&account.database) {
            continue;
        }
        if matches!(order, Order::Reload) {
            let config = worker.shared.config();
            account.pooling.set(config.pooling(&account.user, &account.database));
        }
        for pool in account.pools() {
            match order {
                Order::Reload => pool.fit(),
                Order::Pause(_) | Order::Kill(_) | Order::Reconnect(_) => pool.renew(),
                Order::CloseIdle(_) => {
                    account.cool();
                    pool.close_idle();
                }
                Order::CloseIdleOf(user) if account.user == *user => pool.close_idle(),
                Order::Resume(_)
                | Order::Count(_)
                | Order::Disable(_)
                | Order::Enable(_)
                | Order::KillClient(_)
                | Order::CloseIdleOf(_) => {}
            }
            open += pool.counts().open as u64;
        }
    }
    for entry in worker.sessions.borrow().values() {
        let kill = match order {
            Order::Kill(_) => {
                entry.client.database != super::DATABASE && meant(&entry.client.database)
            }
            Order::KillClient(pid) => entry.client.pid == *pid,
            Order::Pause(_)
            | Order::Resume(_)
            | Order::Reconnect(_)
            | Order::Count(_)
            | Order::Disable(_)
            | Order::Enable(_)
            | Order::CloseIdle(_)
            | Order::CloseIdleOf(_)
            | Order::Reload => false,
        };
        if kill {
            entry.tell(End::Killed);
            ended += 1;
        }
        // A connection that a session has for itself is in no pool.
        if entry.dedicated.get()
            && meant(&entry.client.database)
            && entry.current.borrow().is_some()
        {
            open += 1;
        }
    }
    if matches!(order, Order::KillClient(_)) { ended } else { open }
}

fn change(worker: &Worker, order: &Order) {
    let mut holds = worker.holds.borrow_mut();
    match order {
        Order::Pause(Some(name)) | Order::Kill(Some(name)) => {
            holds.paused.insert(name.clone());
        }
        Order::Pause(None) | Order::Kill(None) => holds.all = true,
        Order::Resume(Some(name)) => {
            holds.paused.remove(name);
        }
        Order::Resume(None) => {
            holds.all = false;
            holds.paused.clear();
        }
        Order::Disable(name) => {
            holds.disabled.insert(name.clone());
        }
        Order::Enable(name) => {
            holds.disabled.remove(name);
        }
        Order::Reload => worker.reroute(),
        Order::Reconnect(_)
        | Order::Count(_)
        | Order::KillClient(_)
        | Order::CloseIdle(_)
        | Order::CloseIdleOf(_) => {}
    }
}
