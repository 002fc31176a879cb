//! One thread of the router: its listeners, its clients and their server connections, none of them shared.
//!
//! A client stays on the worker that accepted it, and is served by that worker's server connections: no lock, no
//! wake-up of another thread, nothing moved between cores while a query passes.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::TcpListener as StdListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use synapsedb_core::ids::NodeId;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::accept::{accept, accept_waiting};
use super::account::Account;
use super::breaker::{Breakers, Passage};
use super::choose::{Choice, Why, behind, choose};
use super::console::holds::{self, Holds, Order};
use super::entry::{End, Entry};
use super::outcome::Marks;
use super::roles::Roles;
use super::server::{self, Address, ConnectError};
use super::settings::Interner;
use super::split::Names;
use super::statements::Statements;
use super::survey::Surveys;
use super::token::Reading;
use super::traffic::Traffic;
use super::{Endpoint, Shared, Snapshot, fresh, warm};

/// Between two looks at what has been idle for too long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// So long a connection may be idle that no client can want: PostgreSQL waits five seconds for the sessions of a
/// database that is to be dropped.
const CLIENTLESS_MAX: Duration = Duration::from_secs(2);
/// What one read takes at most, in bytes.
const READ_BYTES: usize = 64 * 1024;
/// The console's averages are those of so many sweeps.
const SWEEPS_OF_PERIOD: u32 = 60;

/// What a worker is told from outside.
pub(super) enum Command {
    /// Cancel what a session works on, if the secret is right; answers when the server has been told.
    Cancel { pid: u32, key: bytes::Bytes, done: oneshot::Sender<()> },
    /// Say what goes on.
    Look(oneshot::Sender<Snapshot>),
    /// Carry out what an operator has said; answers when it is done.
    Order(Order, oneshot::Sender<u64>),
    /// End all sessions, and then the worker.
    Drain,
}

/// The worker's state; everything that belongs to one client is in its session.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) index: u16,
    pub(super) settings: Interner,
    pub(super) statements: Statements,
    pub(super) marks: Marks,
    pub(super) roles: Roles,
    pub(super) sessions: RefCell<HashMap<u32, Rc<Entry>>>,
    pub(super) traffic: Traffic,
    /// What operators hold back.
    pub(super) holds: RefCell<Holds>,
    /// Where bytes are read to, for the moment in which they are looked at.
    pub(super) scratch: RefCell<Box<[u8]>>,
    /// Where bytes are put together that do not go on as they came.
    pub(super) spliced: RefCell<Vec<u8>>,
    accounts: RefCell<HashMap<(String, String), Rc<Account>>>,
    routes: RefCell<Routes>,
    lent: RefCell<HashMap<NodeId, Rc<Cell<u64>>>>,
    homed: RefCell<HashMap<NodeId, Rc<Cell<u64>>>>,
    breakers: RefCell<Breakers>,
    pub(super) surveys: Surveys,
    /// What is known of the databases' functions.
    pub(super) names: Names,
    /// For sessions that wait at other nodes.
    pub(super) waits: Semaphore,
    next_session: Cell<u32>,
}

/// Where transactions may go at this moment.
struct Routes {
    primary: Result<Rc<Address>, Why>,
    readers: Result<Vec<Reader>, Why>,
}

struct Reader {
    address: Rc<Address>,
    /// It is too far behind, by so many milliseconds, and another is not.
    behind_ms: Option<u64>,
    lent: Rc<Cell<u64>>,
    homed: Rc<Cell<u64>>,
}

impl Worker {
    fn new(shared: Arc<Shared>, index: u16) -> Rc<Self> {
        let roles = Roles::new(shared.local.as_ref().map(|local| local.control.clone()));
        let nowhere = Routes { primary: Err(Why::NoPrimary), readers: Err(Why::NoPrimary) };
        let worker = Rc::new(Self {
            marks: Marks::new(&shared),
            shared,
            index,
            settings: Interner::default(),
            statements: Statements::default(),
            roles,
            sessions: RefCell::default(),
            traffic: Traffic::default(),
            holds: RefCell::default(),
            scratch: RefCell::new(vec![0; READ_BYTES].into()),
            spliced: RefCell::default(),
            accounts: RefCell::default(),
            routes: RefCell::new(nowhere),
            lent: RefCell::default(),
            homed: RefCell::default(),
            breakers: RefCell::default(),
            surveys: Surveys::default(),
            names: Names::default(),
            waits: Semaphore::new(fresh::WAITS_MAX),
            next_session: Cell::new(0),
        });
        worker.reroute();
        worker
    }

    /// This worker's part of a number that is meant for all.
    pub(super) fn part_of(&self, all: usize) -> usize {
        all.div_ceil(self.shared.workers.max(1))
    }

    /// Where transactions may go at this moment.
    pub(super) fn addresses(&self) -> Vec<Rc<Address>> {
        let routes = self.routes.borrow();
        let mut addresses: Vec<Rc<Address>> = routes.primary.iter().cloned().collect();
        for reader in routes.readers.iter().flatten() {
            if !addresses.iter().any(|known| known.node == reader.address.node) {
                addresses.push(Rc::clone(&reader.address));
            }
        }
        addresses
    }

    /// A number for a new session, its process id as the client sees it: it says whom to ask for a cancel request.
    pub(super) fn next_pid(&self) -> u32 {
        loop {
            let next = self.next_session.get().wrapping_add(1) % super::pid::SESSIONS_MAX;
            self.next_session.set(next);
            let pid = super::pid::make(self.shared.own, self.index, next);
            if !self.sessions.borrow().contains_key(&pid) {
                return pid;
            }
        }
    }

    pub(super) fn account(&self, user: &str, database: &str) -> Rc<Account> {
        let mut accounts = self.accounts.borrow_mut();
        let key = (user.to_owned(), database.to_owned());
        let known = accounts.entry(key).or_insert_with(|| {
            let pooling = self.shared.config().pooling(user, database);
            let account = Account::new(user, database, pooling);
            account.hold(self.holds.borrow().holds(database));
            Rc::new(account)
        });
        Rc::clone(known)
    }

    /// How long is waited for a client to take the last message.
    pub(super) fn farewell(&self) -> Duration {
        Duration::from_millis(self.shared.config().farewell_ms)
    }

    pub(super) fn accounts(&self) -> Vec<Rc<Account>> {
        self.accounts.borrow().values().cloned().collect()
    }

    /// The node for a transaction that begins now. A session stays where it has read before, if that may be; others
    /// go to the node with the fewest transactions of this worker, on a tie to that with the fewest sessions, and then
    /// to the agent's own.
    pub(super) fn pick(&self, endpoint: Endpoint, reading: &Reading) -> Result<Rc<Address>, Why> {
        let routes = self.routes.borrow();
        let readers = match endpoint {
            Endpoint::Write | Endpoint::Split => return routes.primary.clone(),
            Endpoint::Read => routes.readers.as_ref().map_err(Why::clone)?,
        };
        if let Some(only) = reading.only {
            let mut named = readers.iter().filter(|reader| reader.address.node == only);
            return named.next().map(|one| Rc::clone(&one.address)).ok_or(Why::NotReadable(only));
        }
        let now = Instant::now();
        let is_home = |reader: &Reader| Some(reader.address.node) == reading.home;
        if (reading.consistency.keeps_home() || reading.listens)
            && !reading.leaves
            && !reading.roams
            && let Some(home) = readers.iter().find(|reader| is_home(reader))
            && home.behind_ms.is_none()
            && self.passage(home, now) == Passage::Closed
        {
            return Ok(Rc::clone(&home.address));
        }
        let rank = |reader: &&Reader| {
            let left = reading.leaves && is_home(reader);
            let behind = reader.behind_ms.is_some();
            (self.passage(reader, now), behind, left, reader.lent.get(), reader.homed.get())
        };
        let best = readers.iter().min_by_key(rank).ok_or(Why::NobodyReady(Vec::new()))?;
        if self.passage(best, now) == Passage::HalfOpen {
            self.breakers.borrow_mut().tried(best.address.node, now, self.rest());
        }
        Ok(Rc::clone(&best.address))
    }

    /// The nodes that are not read from since they are too far behind, each with by how many milliseconds.
    pub(super) fn behind(&self) -> Vec<(NodeId, u64)> {
        let routes = self.routes.borrow();
        let readers = routes.readers.as_deref().unwrap_or_default();
        readers.iter().filter_map(|reader| Some((reader.address.node, reader.behind_ms?))).collect()
    }

    /// The other nodes that may be read from and whose breaker is closed, the one with the least to do first.
    pub(super) fn readers_but(&self, node: NodeId) -> Vec<Rc<Address>> {
        let (routes, now) = (self.routes.borrow(), Instant::now());
        let Ok(readers) = &routes.readers else { return Vec::new() };
        let mut others: Vec<_> =
            readers.iter().filter(|reader| reader.address.node != node).collect();
        others.retain(|reader| {
            reader.behind_ms.is_none() && self.passage(reader, now) == Passage::Closed
        });
        others.sort_by_key(|reader| (reader.lent.get(), reader.homed.get()));
        others.into_iter().map(|reader| Rc::clone(&reader.address)).collect()
    }

    fn passage(&self, reader: &Reader, now: Instant) -> Passage {
        self.breakers.borrow().passage(reader.address.node, now)
    }

    /// The number of this worker's sessions whose home a node is.
    pub(super) fn homed(&self, node: NodeId) -> Rc<Cell<u64>> {
        Rc::clone(self.homed.borrow_mut().entry(node).or_default())
    }

    /// Whether a transaction of this endpoint may still begin on the node.
    pub(super) fn may_serve(&self, endpoint: Endpoint, node: NodeId) -> bool {
        match endpoint {
            Endpoint::Write | Endpoint::Split => {
                matches!(&self.routes.borrow().primary, Ok(primary) if primary.node == node)
            }
            Endpoint::Read => true,
        }
    }

    /// The number of this worker's transactions on a node.
    pub(super) fn lent(&self, node: NodeId) -> Rc<Cell<u64>> {
        Rc::clone(self.lent.borrow_mut().entry(node).or_default())
    }

    pub(super) fn reached(&self, node: NodeId) {
        self.breakers.borrow_mut().reached(node);
    }

    /// Only a server that cannot be reached opens the breaker: one that refuses is there.
    pub(super) fn failed_to_reach(&self, node: NodeId, error: &ConnectError) {
        self.shared.metrics.connect_failure(node.get());
        tracing::debug!(%node, "a server connection could not be opened: {error}");
        if matches!(error, ConnectError::Unreachable { .. }) {
            self.breakers.borrow_mut().failed(node, Instant::now(), self.rest());
        }
    }

    /// A server has no room for one more connection of the role: those that nobody has now make some.
    pub(super) fn make_room(&self, user: &str, error: &ConnectError) {
        if !error.is_too_many() {
            return;
        }
        let (shared, order) = (Arc::clone(&self.shared), Order::CloseIdleOf(user.to_owned()));
        tokio::task::spawn_local(async move { shared.order(&order).await });
    }

    fn rest(&self) -> Duration {
        Duration::from_millis(self.shared.config().retry_ms)
    }

    /// Works out anew where transactions may go.
    pub(super) fn reroute(&self) {
        let shared = &self.shared;
        let state = Arc::clone(&shared.state.borrow());
        let view = Arc::clone(&shared.view.borrow());
        let address = |target: &super::choose::Target| {
            let local = shared.local.as_ref().filter(|_| target.node == shared.own);
            Rc::new(Address {
                node: target.node,
                tcp: target.address.clone(),
                unix: local.and_then(|local| local.socket.clone()),
            })
        };
        let targets = |endpoint| match choose(endpoint, &state, &view, shared.own) {
            Choice::Try(targets) => Ok(targets),
            Choice::Nobody(why) => Err(why),
        };
        let primary = targets(Endpoint::Write).map(|targets| address(&targets[0]));
        let readers = targets(Endpoint::Read).map(|targets| {
            let behind = behind(&targets, &view, shared.config().read_lag_max_ms);
            let behind_ms = |node| behind.iter().find(|(one, _)| *one == node).map(|(_, ms)| *ms);
            let reader = |target: &super::choose::Target| Reader {
                address: address(target),
                behind_ms: behind_ms(target.node),
                lent: self.lent(target.node),
                homed: self.homed(target.node),
            };
            targets.iter().map(reader).collect()
        });
        *self.routes.borrow_mut() = Routes { primary, readers };
    }

    /// Follows the cluster's state and what gossip sees.
    async fn follow(self: Rc<Self>) {
        let (mut state, mut view) = (self.shared.state.clone(), self.shared.view.clone());
        loop {
            let (primary, _) = (state.borrow_and_update().primary, view.borrow_and_update());
            self.reroute();
            for entry in self.sessions.borrow().values() {
                entry.primary_is(primary);
            }
            let changed = tokio::select! {
                changed = state.changed() => changed,
                changed = view.changed() => changed,
            };
            if changed.is_err() {
                // The state has no owner any more: the agent is stopping.
                return;
            }
        }
    }

    async fn sweep(self: Rc<Self>) {
        let mut sweeps = 0_u32;
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            let idle_max = Duration::from_millis(self.shared.config().server_idle_timeout_ms);
            sweeps += 1;
            let period_ends = sweeps.is_multiple_of(SWEEPS_OF_PERIOD);
            for account in self.accounts() {
                let idle_max = if account.clients.get() == 0 { CLIENTLESS_MAX } else { idle_max };
                let least = warm::least(&self, &account);
                for pool in account.pools() {
                    pool.sweep(idle_max, least);
                    pool.sweep_hub();
                }
                warm::keep(&self, &account);
                if period_ends {
                    account.next_period();
                }
            }
            self.publish();
        }
    }

    /// Tells the rest of the agent what goes on.
    fn publish(&self) {
        let snapshot = Snapshot::of(self);
        let slot = &self.shared.snapshots[usize::from(self.index)];
        *slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = snapshot;
        if self.index == 0 {
            self.shared.note_most_clients();
        }
    }
}

/// The listeners of one worker.
pub(super) struct Listeners {
    pub(super) read: StdListener,
    pub(super) write: StdListener,
    pub(super) split: Option<StdListener>,
}

/// Runs a worker to its end, which a [`Command::Drain`] begins.
pub(super) async fn run(
    shared: Arc<Shared>,
    index: u16,
    listeners: Listeners,
    mut commands: mpsc::UnboundedReceiver<Command>,
) -> std::io::Result<()> {
    let (read, write) =
        (TcpListener::from_std(listeners.read)?, TcpListener::from_std(listeners.write)?);
    let split = listeners.split.map(TcpListener::from_std).transpose()?;
    let worker = Worker::new(shared, index);
    tokio::task::spawn_local(Rc::clone(&worker).follow());
    tokio::task::spawn_local(Rc::clone(&worker).sweep());
    let accepting = async {
        tokio::join!(
            accept(&worker, Endpoint::Read, &read),
            accept(&worker, Endpoint::Write, &write),
            async {
                match &split {
                    Some(split) => accept(&worker, Endpoint::Split, split).await,
                    None => std::future::pending().await,
                }
            },
        )
    };
    tokio::select! {
        _ = accepting => {}
        () = obey(&worker, &mut commands) => {}
    }
    // Connections that the kernel had taken for us are answered, not reset.
    accept_waiting(&worker, Endpoint::Read, &read).await;
    accept_waiting(&worker, Endpoint::Write, &write).await;
    if let Some(split) = &split {
        accept_waiting(&worker, Endpoint::Split, split).await;
    }
    drop((read, write, split));
    for entry in worker.sessions.borrow().values() {
        entry.tell(End::Draining);
    }
    let config = &worker.shared.config();
    let patience = config.drain_ms.saturating_add(config.farewell_ms.saturating_mul(3));
    let ended = async {
        while worker.shared.running.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(Duration::from_millis(patience), ended).await.is_err() {
        let left = worker.shared.running.load(Ordering::Acquire);
        tracing::warn!("router: {left} sessions did not end in time and are cut");
    }
    worker.publish();
    Ok(())
}

/// Does what it is told until it must drain.
async fn obey(worker: &Rc<Worker>, commands: &mut mpsc::UnboundedReceiver<Command>) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::Cancel { pid, key, done } => {
                let worker = Rc::clone(worker);
                tokio::task::spawn_local(async move {
                    cancel(&worker, pid, &key).await;
                    let _ = done.send(());
                });
            }
            Command::Look(answer) => {
                worker.publish();
                let _ = answer.send(Snapshot::of(worker));
            }
            Command::Order(order, done) => {
                let _ = done.send(holds::obey(worker, &order));
            }
            Command::Drain => return,
        }
    }
}

/// Cancels what a session works on, if there is such a session, with such a key, and it works.
async fn cancel(worker: &Worker, pid: u32, key: &[u8]) {
    let target = {
        let sessions = worker.sessions.borrow();
        let entry = sessions.get(&pid).filter(|entry| entry.secret == key);
        entry.and_then(|entry| entry.current.borrow().clone())
    };
    let Some(target) = target else { return };
    if let Err(error) = server::cancel(&target, &worker.shared).await {
        let address = &target.address.tcp;
        tracing::debug!("a cancel request did not reach {address}: {error}");
    }
}
