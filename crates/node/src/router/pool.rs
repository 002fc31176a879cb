//! The server connections of one role in one database of one node: lent to clients, in the order in which they ask.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::timeout;

use super::account::Account;
use super::hub::Hub;
use super::login::Origin;
use super::server::{self, Address, ConnectError, Server};
use super::settings::{Settings, can_serve};
use super::worker::Worker;

/// What a pool has done and does, for those who look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Connections to the server, those in the making included.
    pub(super) open: usize,
    pub(super) idle: usize,
    pub(super) connecting: usize,
    /// Clients that wait for a connection.
    pub(super) waiting: usize,
}

/// Connections of one kind.
pub(super) struct Pool {
    worker: Weak<Worker>,
    account: Weak<Account>,
    pub(super) address: Rc<Address>,
    #[expect(clippy::vec_box, reason = "a connection goes to and from clients as its box")]
    idle: RefCell<Vec<Box<Server>>>,
    open: Cell<usize>,
    connecting: Cell<usize>,
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
    /// Connections that were opened before then are not lent again.
    opened_after: Cell<Option<Instant>>,
    /// It has become smaller: what is too much is closed when it comes back.
    shrinks: Cell<bool>,
    /// Transactions of this worker on the node, those of all its pools.
    pub(super) lent: Rc<Cell<u64>>,
    /// What listens for the clients.
    hub: Mutex<Option<Rc<Hub>>>,
}

/// What a connection is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A client waits for one.
    Waited,
    /// Clients may come.
    Ahead,
}

/// A client that waits.
struct Waiter {
    origin: Rc<Origin>,
    wanted: Rc<Settings>,
    guarded: bool,
    since: Instant,
    got: RefCell<Option<Result<Box<Server>, ConnectError>>>,
    waker: RefCell<Option<Waker>>,
    /// It waits no more.
    gone: Cell<bool>,
}

impl Waiter {
    fn give(&self, got: Result<Box<Server>, ConnectError>) {
        *self.got.borrow_mut() = Some(got);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Why a client got no connection.
#[derive(Debug)]
pub(super) enum NoServer {
    /// The server could not be reached, or refused.
    Connect(ConnectError),
    /// All connections were in use for too long.
    Timeout { waited: Duration, size: usize },
}

impl Pool {
    pub(super) fn new(worker: &Rc<Worker>, account: &Rc<Account>, address: Rc<Address>) -> Self {
        Self {
            worker: Rc::downgrade(worker),
            account: Rc::downgrade(account),
            idle: RefCell::default(),
            open: Cell::new(0),
            connecting: Cell::new(0),
            waiting: RefCell::default(),
            opened_after: Cell::new(None),
            shrinks: Cell::new(false),
            lent: worker.lent(address.node),
            hub: Mutex::default(),
            address,
        }
    }

    /// A connection that is idle now, one with the wanted settings first; `None` when there is none, or others wait.
    pub(super) fn take(&self, wanted: &Rc<Settings>, guarded: bool) -> Option<Box<Server>> {
        if !self.waiting.borrow().is_empty() {
            return None;
        }
        self.take_idle(wanted, guarded)
    }

    fn take_idle(&self, wanted: &Rc<Settings>, guarded: bool) -> Option<Box<Server>> {
        loop {
            let mut idle = self.idle.borrow_mut();
            let same = idle.iter().rposition(|server| server.is_as(wanted, guarded));
            let place = same
                .or_else(|| idle.iter().rposition(|server| can_serve(&server.startup, wanted)))?;
            let mut server = idle.remove(place);
            // Whatever an idle server has to say, it is most often its end.
            if !server.io.has_news() {
                return Some(server);
            }
            drop(idle);
            self.lost();
        }
    }

    /// Waits for a connection.
    pub(super) async fn wait(
        self: &Rc<Self>,
        origin: &Rc<Origin>,
        (wanted, guarded): (&Rc<Settings>, bool),
        patience: Duration,
    ) -> Result<Box<Server>, NoServer> {
        let waiter = Rc::new(Waiter {
            origin: Rc::clone(origin),
            wanted: Rc::clone(wanted),
            guarded,
            since: Instant::now(),
            got: RefCell::default(),
            waker: RefCell::default(),
            gone: Cell::new(false),
        });
        self.waiting.borrow_mut().push_back(Rc::clone(&waiter));
        let place = Place { pool: self, waiter: &waiter };
        self.serve_waiting();
        let got = poll_fn(|cx| match waiter.got.borrow_mut().take() {
            Some(got) => Poll::Ready(got),
            None => {
                *waiter.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        });
        let got = timeout(patience, got).await;
        drop(place);
        match got {
            Ok(Ok(server)) => Ok(server),
            Ok(Err(error)) => Err(NoServer::Connect(error)),
            Err(_) => {
                let waited = waiter.since.elapsed();
                Err(NoServer::Timeout { waited, size: self.size_max() })
            }
        }
    }

    /// Takes a connection back that was lent and is quiet, outside a transaction.
    pub(super) fn give_back(self: &Rc<Self>, mut server: Box<Server>) {
        server.used = Instant::now();
        if self.is_worn_out(&server) || self.is_one_too_many() {
            self.lost();
            self.serve_waiting();
            return;
        }
        let first = self.first_waiting();
        match first {
            Some(waiter) if can_serve(&server.startup, &waiter.wanted) => {
                self.waiting.borrow_mut().pop_front();
                waiter.give(Ok(server));
            }
            Some(_) => {
                // It has a startup setting that the next client has not: only a new connection is without it.
                self.lost();
                self.serve_waiting();
            }
            None => self.idle.borrow_mut().push(server),
        }
    }

    /// A connection that was lent has ended.
    pub(super) fn end(self: &Rc<Self>) {
        self.lost();
        self.serve_waiting();
    }

    /// Takes a new connection in that counts, and lends it to whoever opened it.
    pub(super) fn count_new(&self) {
        self.open.set(self.open.get() + 1);
    }

    fn lost(&self) {
        self.open.set(self.open.get().saturating_sub(1));
    }

    fn first_waiting(&self) -> Option<Rc<Waiter>> {
        let mut waiting = self.waiting.borrow_mut();
        while waiting.front().is_some_and(|waiter| waiter.gone.get()) {
            waiting.pop_front();
        }
        waiting.front().cloned()
    }

    /// Gives the first who wait what there is, and opens connections for the others as far as the size allows.
    fn serve_waiting(self: &Rc<Self>) {
        while let Some(waiter) = self.first_waiting() {
            let Some(server) = self.take_idle(&waiter.wanted, waiter.guarded) else { break };
            self.waiting.borrow_mut().pop_front();
            waiter.give(Ok(server));
        }
        let mut unserved = self.waiting.borrow().iter().filter(|waiter| !waiter.gone.get()).count();
        unserved = unserved.saturating_sub(self.connecting.get());
        while unserved > 0 {
            if self.open.get() >= self.size_max() {
                // Idle ones that are left do not fit who waits: one makes room.
                if self.idle.borrow_mut().pop().is_none() {
                    return;
                }
                self.lost();
            }
            let Some(waiter) = self.first_waiting() else { return };
            self.connect(Rc::clone(&waiter.origin), Purpose::Waited);
            unserved -= 1;
        }
    }

    /// Opens connections until there are so many.
    pub(super) fn fill(self: &Rc<Self>, least: usize) {
        let (Some(worker), Some(account)) = (self.worker.upgrade(), self.account.upgrade()) else {
            return;
        };
        let least = least.min(self.size_max());
        if self.open.get() >= least {
            return;
        }
        let origin = Origin::plain(&worker, &account);
        while self.open.get() < least {
            self.connect(Rc::clone(&origin), Purpose::Ahead);
        }
    }

    /// Opens a connection with this startup packet, which then goes to whoever waits first.
    fn connect(self: &Rc<Self>, origin: Rc<Origin>, purpose: Purpose) {
        let (Some(worker), Some(account)) = (self.worker.upgrade(), self.account.upgrade()) else {
            return;
        };
        self.open.set(self.open.get() + 1);
        self.connecting.set(self.connecting.get() + 1);
        let pool = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let keys = account.keys();
            let opened =
                server::open(&pool.address, &origin.parameters, keys.as_ref(), &worker.shared)
                    .await;
            pool.connecting.set(pool.connecting.get() - 1);
            match opened {
                Ok(opened) => {
                    worker.reached(pool.address.node);
                    let mut server = opened.server;
                    server.reported = worker.settings.intern(Settings::clone(&server.reported));
                    server.reported_first = Rc::clone(&server.reported);
                    server.startup = Rc::clone(&origin.settings);
                    server.applied = Rc::clone(&origin.settings);
                    pool.give_back(Box::new(server));
                }
                Err(error) => {
                    worker.failed_to_reach(pool.address.node, &error);
                    pool.lost();
                    match purpose {
                        Purpose::Waited => {
                            worker.make_room(&account.user, &error);
                            pool.fail(&error);
                        }
                        Purpose::Ahead => {
                            if matches!(error, ConnectError::Refused { .. }) {
                                account.cool();
                            }
                            pool.serve_waiting();
                        }
                    }
                }
            }
        });
    }

    /// A connection could not be opened: whoever waits is told, unless other connections are there to wait for.
    fn fail(self: &Rc<Self>, error: &ConnectError) {
        if error.is_passing() && self.open.get() > self.connecting.get() {
            return;
        }
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for waiter in waiting {
            waiter.give(Err(error.clone()));
        }
    }

    fn size_max(&self) -> usize {
        let size = self.account.upgrade().map_or(1, |account| account.pooling.get().size);
        self.worker.upgrade().map_or(1, |worker| worker.part_of(size).max(1))
    }

    /// Whether a connection must go since there may be fewer now.
    fn is_one_too_many(&self) -> bool {
        if self.shrinks.get() && self.open.get() <= self.size_max() {
            self.shrinks.set(false);
        }
        self.shrinks.get()
    }

    /// The size may be another one now: closes what is idle and too much, and opens for those who wait.
    pub(super) fn fit(self: &Rc<Self>) {
        self.shrinks.set(true);
        while self.is_one_too_many() && self.idle.borrow_mut().pop().is_some() {
            self.lost();
        }
        self.serve_waiting();
    }

    fn is_worn_out(&self, server: &Server) -> bool {
        let lifetime =
            self.worker.upgrade().map(|worker| worker.shared.config().server_lifetime_ms);
        let lifetime = Duration::from_millis(lifetime.unwrap_or(0));
        (!lifetime.is_zero() && server.opened.elapsed() >= lifetime)
            || self.opened_after.get().is_some_and(|after| server.opened <= after)
    }

    /// Closes idle connections that have been so for too long, but for the `least` that there should be, or live for
    /// too long, or have ended.
    pub(super) fn sweep(self: &Rc<Self>, idle_max: Duration, least: usize) {
        let mut spare = self.open.get().saturating_sub(least);
        let keep = |server: &mut Box<Server>| {
            if self.is_worn_out(server) || server.io.has_news() {
                return false;
            }
            let unused = !idle_max.is_zero() && server.used.elapsed() >= idle_max && spare > 0;
            spare -= usize::from(unused);
            !unused
        };
        let before = self.idle.borrow().len();
        self.idle.borrow_mut().retain_mut(keep);
        let closed = before - self.idle.borrow().len();
        for _ in 0..closed {
            self.lost();
        }
        self.serve_waiting();
    }

    /// Closes all idle connections, and lets those that are lent end when they come back.
    pub(super) fn renew(self: &Rc<Self>) {
        self.opened_after.set(Some(Instant::now()));
        self.sweep(Duration::ZERO, 0);
    }

    /// Closes the connections that nobody has now.
    pub(super) fn close_idle(self: &Rc<Self>) {
        let closed = std::mem::take(&mut *self.idle.borrow_mut());
        closed.iter().for_each(|_| self.lost());
        self.sweep_hub();
        self.serve_waiting();
    }

    /// Looks at the connections that nobody has now.
    pub(super) fn each_idle(&self, mut look: impl FnMut(&Server)) {
        self.idle.borrow().iter().for_each(|server| look(server));
    }

    /// The shared listener, opened if there is none.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub(super) async fn hub(
        &self,
        worker: &Rc<Worker>,
        account: &Rc<Account>,
    ) -> Result<Rc<Hub>, ConnectError> {
        // Others who want it wait until it is there.
        let mut hub = self.hub.lock().await;
        if let Some(hub) = hub.as_ref().filter(|hub| !hub.is_lost()) {
            return Ok(Rc::clone(hub));
        }
        let opened = Hub::open(worker, account, self).await?;
        Ok(Rc::clone(hub.insert(opened)))
    }

    /// Closes the shared listener when nobody listens.
    pub(super) fn sweep_hub(&self) {
        if let Ok(mut hub) = self.hub.try_lock() {
            hub.take_if(|hub| hub.is_idle() && Rc::strong_count(hub) == 1);
        }
    }

    /// Looks at the shared listener.
    pub(super) fn see_hub<T>(&self, look: impl FnOnce(&Hub) -> T) -> Option<T> {
        let hub = self.hub.try_lock().ok()?;
        hub.as_ref().filter(|hub| !hub.is_lost()).map(|hub| look(hub))
    }

    pub(super) fn counts(&self) -> Counts {
        let waiting = self.waiting.borrow();
        let waits = || waiting.iter().filter(|waiter| !waiter.gone.get());
        Counts {
            open: self.open.get(),
            idle: self.idle.borrow().len(),
            connecting: self.connecting.get(),
            waiting: waits().count(),
        }
    }
}

/// A client's place in the queue; dropped, it is given up, and a connection that was just handed over goes back.
struct Place<'a> {
    pool: &'a Rc<Pool>,
    waiter: &'a Rc<Waiter>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiter.gone.set(true);
        let got = self.waiter.got.borrow_mut().take();
        if let Some(Ok(server)) = got {
            self.pool.give_back(server);
        }
    }
}
