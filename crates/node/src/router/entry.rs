//! A client's session as the rest of its worker sees it: who it is, what it does, and how it is told to end.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant, SystemTime};

use synapsedb_core::ids::NodeId;

use super::Endpoint;
use super::ear::Ear;
use super::metrics::EndedBy;
use super::server::CancelKey;

/// Why a session is told to end, or to let go of its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The primary is another node now, or none: the transaction on the old one must end.
    PrimaryChanged(Option<NodeId>),
    /// The agent stops.
    Draining,
    /// An operator has ended it.
    Killed,
    /// It does not hear any more what it listens to.
    Deaf,
    /// It may have missed something that it listens to: it ends as soon as nothing is under way, for in a transaction
    /// nobody is told of anything. Whatever else it is told stands before that.
    Missed,
}

/// What a client is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Activity {
    /// It has no server connection and wants none.
    Idle,
    /// It waits for a server connection.
    Waiting,
    /// It has a server connection.
    Active,
}

/// Where a session's transaction goes that is at hand, or the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// To any node that may be read from, or to the primary; never [`Endpoint::Split`].
    pub(super) to: Endpoint,
    /// It was taken for a read: the server does not let it write.
    pub(super) guarded: bool,
}

impl Route {
    /// As it is at an endpoint before anything is known of the transaction.
    pub(super) fn at(endpoint: Endpoint) -> Self {
        let to = match endpoint {
            Endpoint::Read => Endpoint::Read,
            Endpoint::Write | Endpoint::Split => Endpoint::Write,
        };
        Self { to, guarded: false }
    }
}

/// Who has a session: known from its beginning.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) pid: u32,
    pub(super) endpoint: Endpoint,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) application: String,
    pub(super) address: Option<SocketAddr>,
    pub(super) tls: bool,
    pub(super) since: SystemTime,
}

/// One session.
pub(super) struct Entry {
    pub(super) client: Arc<Client>,
    pub(super) secret: [u8; 4],
    pub(super) activity: Cell<Activity>,
    pub(super) route: Cell<Route>,
    /// The server connection it has, for cancel requests.
    pub(super) current: RefCell<Option<CancelKey>>,
    /// Why it keeps its server connection between transactions.
    pub(super) pin: Cell<Option<&'static str>>,
    /// The server connection that it has is its own, and in no pool.
    pub(super) dedicated: Cell<bool>,
    /// When it asked last for a server connection.
    pub(super) asked: Cell<Option<Instant>>,
    /// Prepared statements that it has by name.
    pub(super) prepared: Cell<usize>,
    /// Its part in shared listeners, if it has ever listened.
    pub(super) ear: OnceCell<Rc<Ear>>,
    end: Cell<Option<End>>,
    missed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Entry {
    pub(super) fn new(client: Client, secret: [u8; 4]) -> Self {
        Self {
            route: Cell::new(Route::at(client.endpoint)),
            client: Arc::new(client),
            secret,
            activity: Cell::new(Activity::Idle),
            current: RefCell::default(),
            pin: Cell::new(None),
            dedicated: Cell::new(false),
            asked: Cell::new(None),
            prepared: Cell::new(0),
            ear: OnceCell::new(),
            end: Cell::new(None),
            missed: Cell::new(false),
            waker: RefCell::default(),
        }
    }

    /// Tells the session; what ends it for good stands before what ends its transaction.
    pub(super) fn tell(&self, end: End) {
        match self.end.get() {
            Some(End::Draining | End::Killed | End::Deaf) => {}
            _ if end == End::Missed => self.missed.set(true),
            Some(End::PrimaryChanged(_) | End::Missed) | None => self.end.set(Some(end)),
        }
        self.wake();
    }

    /// Has the session look what there is for it.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// The cluster's primary is this one: a session that writes on another node is told.
    pub(super) fn primary_is(&self, primary: Option<NodeId>) {
        let node = self.current.borrow().as_ref().map(|key| key.address.node);
        let writes = self.route.get().to == Endpoint::Write;
        if writes && node.is_some_and(|node| Some(node) != primary) {
            self.tell(End::PrimaryChanged(primary));
        }
        let hub = self.ear.get().and_then(|ear| Some((ear, ear.hub()?)));
        if self.client.endpoint != Endpoint::Read
            && let Some((ear, hub)) = hub
            && Some(hub.node()) != primary
        {
            // What is notified there is not what the write endpoint and the split one promise.
            ear.end(EndedBy::PrimaryChanged, super::loss::primary_changed(primary));
        }
    }

    /// What the session was told; it is woken when it is told more.
    pub(super) fn told(&self, cx: &mut Context<'_>) -> Option<End> {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        self.end.get().or(self.missed.get().then_some(End::Missed))
    }

    /// The session has let go of the old primary.
    pub(super) fn settled(&self) {
        if let Some(End::PrimaryChanged(_)) = self.end.get() {
            self.end.set(None);
        }
    }

    /// How long it has waited for a server connection.
    pub(super) fn waited(&self) -> Duration {
        match (self.activity.get(), self.asked.get()) {
            (Activity::Waiting, Some(asked)) => asked.elapsed(),
            (Activity::Idle | Activity::Waiting | Activity::Active, _) => Duration::ZERO,
        }
    }
}
