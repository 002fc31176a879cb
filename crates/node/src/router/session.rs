//! One client's session: it waits for a request, is lent a server connection, passes both sides' bytes on, and gives
//! the connection back when the transaction has ended.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use synapsedb_pg::sql::statement;
use synapsedb_pg::sql::traits::Flags;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::account::{Account, add};
use super::entry::{Activity, End, Entry};
use super::loss::Aborted;
use super::metrics::EndedBy;
use super::origin::{self, Greeting, Origin};
use super::pool::{NoServer, Pool};
use super::reach::{Unreached, reach};
use super::server::{self, Server};
use super::settings::Settings;
use super::socket::Socket;
use super::startup::Failure;
use super::statements::Statement;
use super::worker::Worker;
use super::{downstream, upstream};

/// A request's buffer up to this size is kept for the next one, in bytes.
const INBOX_KEPT_BYTES: usize = 1024;
/// Settings of two-part names that are followed for one client.
const CUSTOM_MAX: usize = 1_000;

/// A client's session.
pub(super) struct Session {
    pub(super) worker: Rc<Worker>,
    pub(super) io: Socket,
    pub(super) account: Rc<Account>,
    pub(super) origin: Rc<Origin>,
    pub(super) entry: Rc<Entry>,
    greeting: Option<Greeting>,
    _place: OwnedSemaphorePermit,
    /// The settings that its server connections must have.
    pub(super) wanted: Rc<Settings>,
    /// What its servers have reported to it.
    pub(super) reported: Rc<Settings>,
    /// Its prepared statements, by its names.
    pub(super) prepared: HashMap<Box<[u8]>, Rc<Statement>>,
    /// Its unnamed statement, as the Parse message has it behind the name; empty if there is none.
    pub(super) unnamed: Vec<u8>,
    pub(super) unnamed_count: u64,
    /// The prepared statements it has used since the last ReadyForQuery.
    used: Vec<Rc<Statement>>,
    /// Names of two-part settings that it may have set.
    custom: BTreeSet<String>,
    /// Read and not passed on: the beginning of a message, or a request that waits for a connection.
    pub(super) inbox: Vec<u8>,
    /// Whether what is in the inbox has not been looked at.
    pub(super) fresh: bool,
    /// For the client, and not taken by it yet.
    pub(super) unsent: Vec<u8>,
    /// So much of a message's body is still to be passed on to the server.
    pub(super) passing: usize,
    /// So much of a message's body is still to be thrown away.
    pub(super) discarding: usize,
    /// It has sent messages that no Sync has followed yet.
    pub(super) batch_open: bool,
    /// It was told of an error, and its messages up to the next Sync are skipped.
    pub(super) skipping: bool,
    /// Something was said on the lent connection since the last look at what it has left there.
    active: bool,
    /// What the statements since then may have done.
    pub(super) traits: Flags,
    /// CommandCompletes of statements that were put in for it, which it must not see.
    pub(super) swallow_tags: usize,
    /// What it is told at its next request: its transaction was lost while it said nothing.
    pub(super) doomed: Option<Failure>,
    /// Whether it is in a transaction that was lost.
    pub(super) aborted: Aborted,
    /// The session ends as soon as nothing is under way.
    ending: bool,
}

/// A connection that a session has, and where it came from.
pub(super) struct Lent {
    pub(super) server: Box<Server>,
    /// `None` for one that was opened for this session alone.
    pool: Option<Rc<Pool>>,
    since: Instant,
}

/// How a session ended.
pub(super) struct Ended {
    pub(super) by: EndedBy,
    /// The client is told this last.
    pub(super) last: bytes::Bytes,
}

impl Ended {
    pub(super) fn quietly(by: EndedBy) -> Self {
        Self { by, last: bytes::Bytes::new() }
    }

    pub(super) fn telling(by: EndedBy, failure: &Failure) -> Self {
        Self { by, last: failure.fatal() }
    }
}

/// What ends an exchange between client and server.
enum Turn {
    /// Nothing is under way and no transaction is open.
    Quiet,
    ServerLost(String),
    ClientLost(EndedBy),
    /// The session is told to end, or to let go of its server, and something is under way.
    Told(End),
    Violation(Failure),
}

/// The agent is stopping.
pub(super) fn draining() -> Failure {
    Failure {
        sqlstate: "57P01",
        message: "terminating connection because this agent is stopping".to_owned(),
        hint: "Connect again. A transaction in progress was rolled back, unless its COMMIT had been sent: then look \
               whether it took effect."
            .to_owned(),
    }
}

fn killed() -> Failure {
    Failure {
        sqlstate: "57P01",
        message: "terminating connection due to administrator command".to_owned(),
        hint: String::new(),
    }
}

impl Session {
    pub(super) fn new(
        worker: Rc<Worker>,
        io: Socket,
        account: Rc<Account>,
        origin: Rc<Origin>,
        entry: Rc<Entry>,
        greeting: Greeting,
        place: OwnedSemaphorePermit,
    ) -> Self {
        account.clients.set(account.clients.get() + 1);
        let (wanted, reported) = (Rc::clone(&origin.settings), Rc::clone(&origin.reported));
        Self {
            worker,
            io,
            account,
            origin,
            entry,
            greeting: Some(greeting),
            _place: place,
            wanted,
            reported,
            prepared: HashMap::new(),
            unnamed: Vec::new(),
            unnamed_count: 0,
            used: Vec::new(),
            custom: BTreeSet::new(),
            inbox: Vec::new(),
            fresh: false,
            unsent: Vec::new(),
            passing: 0,
            discarding: 0,
            batch_open: false,
            skipping: false,
            active: false,
            traits: Flags::default(),
            swallow_tags: 0,
            doomed: None,
            aborted: Aborted::No,
            ending: false,
        }
    }

    /// Serves the client until one of the two ends it.
    pub(super) async fn run(mut self) {
        tracing::debug!(
            endpoint = self.entry.endpoint.name(),
            user = self.account.user,
            database = self.account.database,
            pid = self.entry.pid,
            "session opened"
        );
        let ended = self.live().await;
        self.worker.shared.metrics.ended(ended.by);
        self.account.clients.set(self.account.clients.get().saturating_sub(1));
        self.worker.sessions.borrow_mut().remove(&self.entry.pid);
        let mut last = std::mem::take(&mut self.unsent);
        last.extend_from_slice(&ended.last);
        self.io.part(&last, self.worker.farewell()).await;
    }

    async fn live(&mut self) -> Ended {
        let mut lent = match Box::pin(self.greet()).await {
            Ok(lent) => lent,
            Err(_) => return Ended::quietly(EndedBy::ClientLost),
        };
        loop {
            let mut held = match lent.take() {
                Some(held) => held,
                None => {
                    if let Some(ended) = std::future::poll_fn(|cx| self.poll_request(cx)).await {
                        return ended;
                    }
                    match self.lend_now() {
                        Some(held) => held,
                        None => match Box::pin(self.lend()).await {
                            Ok(held) => held,
                            Err(failure) => {
                                self.refuse(failure);
                                continue;
                            }
                        },
                    }
                }
            };
            self.entry.activity.set(Activity::Active);
            let turn = std::future::poll_fn(|cx| self.poll_turn(cx, &mut held)).await;
            lent = match turn {
                Turn::Quiet if self.leaves_nothing() => {
                    self.give_back(held);
                    None
                }
                Turn::Quiet if !self.ending => Box::pin(self.settle(held)).await,
                other => match Box::pin(self.turned(other, held)).await {
                    Ok(lent) => lent,
                    Err(ended) => return ended,
                },
            };
        }
    }

    /// The last messages of the login.
    async fn greet(&mut self) -> io::Result<Option<Lent>> {
        let Some(greeting) = self.greeting.take() else { return Ok(None) };
        let (pid, secret) = (self.entry.pid.to_be_bytes(), self.entry.secret);
        let own = [pid, secret].concat();
        // Whoever keeps one server connection has its process id, as without the router.
        let key = greeting.server.as_ref().map_or(&own[..], |server| &server.cancel.data);
        let (pid, secret) = key.split_first_chunk().unwrap_or((&pid, &[]));
        let hello =
            origin::hello(&self.origin, &greeting.notices, u32::from_be_bytes(*pid), secret);
        self.io.write_all(&hello).await?;
        self.io.flush().await?;
        self.entry.pin.set(self.origin.dedicated);
        Ok(greeting.server.map(|server| {
            *self.entry.current.borrow_mut() = Some(server.cancel.clone());
            Lent { server, pool: None, since: Instant::now() }
        }))
    }

    /// Waits for a request that needs a server, and answers those that need none.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Option<Ended>> {
        self.entry.activity.set(Activity::Idle);
        match self.entry.told(cx) {
            Some(End::Draining) => {
                return Poll::Ready(Some(Ended::telling(EndedBy::Draining, &draining())));
            }
            Some(End::Killed) => {
                return Poll::Ready(Some(Ended::telling(EndedBy::Killed, &killed())));
            }
            Some(End::PrimaryChanged(_)) => self.entry.settled(),
            None => {}
        }
        let worker = Rc::clone(&self.worker);
        loop {
            match self.needs_server() {
                Ok(true) => {
                    self.fresh = true;
                    return Poll::Ready(None);
                }
                Ok(false) => {}
                Err(ended) => return Poll::Ready(Some(ended)),
            }
            if !self.unsent.is_empty() {
                match self.io.poll_unsent(cx, &mut self.unsent) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => {
                        return Poll::Ready(Some(Ended::quietly(EndedBy::ClientLost)));
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
            let mut scratch = worker.scratch.borrow_mut();
            match self.io.poll_take(cx, &mut scratch) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Some(Ended::quietly(EndedBy::Client)));
                }
                Poll::Ready(Ok(read)) => {
                    add(&self.account.counters.received, read as u64);
                    self.inbox.extend_from_slice(&scratch[..read]);
                }
                Poll::Ready(Err(error)) => {
                    tracing::debug!("a client was lost: {error}");
                    return Poll::Ready(Some(Ended::quietly(EndedBy::ClientLost)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// A connection for a transaction that begins now, if one is idle that is as the client wants it.
    fn lend_now(&mut self) -> Option<Lent> {
        let address = self.worker.pick(self.entry.endpoint).ok()?;
        let pool = self.account.pool(&self.worker, &address);
        let server = pool.take(&self.wanted)?;
        if !Rc::ptr_eq(&server.applied, &self.wanted) {
            // Rare enough to be done by the long way.
            pool.give_back(server);
            return None;
        }
        Some(self.lent(server, pool))
    }

    fn lent(&mut self, server: Box<Server>, pool: Rc<Pool>) -> Lent {
        if !Rc::ptr_eq(&server.reported, &self.reported) {
            self.report(&server);
        }
        pool.lent.set(pool.lent.get() + 1);
        *self.entry.current.borrow_mut() = Some(server.cancel.clone());
        Lent { server, pool: Some(pool), since: Instant::now() }
    }

    /// Tells the client what this server reports that the last one did not.
    fn report(&mut self, server: &Server) {
        let mut out = bytes::BytesMut::new();
        for (name, value) in server.reported.iter() {
            if self.reported.get(name) != Some(value) {
                synapsedb_pg::wire::startup::parameter_status(&mut out, name, value);
            }
        }
        self.unsent.extend_from_slice(&out);
        self.reported = Rc::clone(&server.reported);
    }

    /// Waits for a connection, and gives it the client's settings.
    async fn lend(&mut self) -> Result<Lent, Failure> {
        let endpoint = self.entry.endpoint;
        let since = Instant::now();
        self.entry.activity.set(Activity::Waiting);
        let patience = origin::patience(&self.worker, endpoint);
        let wait_max = Duration::from_millis(self.worker.shared.config.query_wait_timeout_ms);
        let got = reach(&self.worker, endpoint, patience, async |address| {
            let pool = self.account.pool(&self.worker, &address);
            let server = match pool.take(&self.wanted) {
                Some(server) => server,
                None => pool.wait(&self.origin, &self.wanted, wait_max).await?,
            };
            self.restore(server, &pool).await.map(|server| (server, pool))
        });
        let (server, pool) =
            got.await.map_err(|unreached: Unreached| unreached.failure(endpoint))?;
        add(&self.account.counters.wait_us, since.elapsed().as_micros() as u64);
        Ok(self.lent(server, pool))
    }

    /// Gives a connection the client's settings.
    async fn restore(
        &self,
        mut server: Box<Server>,
        pool: &Rc<Pool>,
    ) -> Result<Box<Server>, NoServer> {
        if Rc::ptr_eq(&server.applied, &self.wanted) {
            return Ok(server);
        }
        match super::state::restore(&mut server, &self.wanted, &self.worker).await {
            Ok(()) => Ok(server),
            Err(error) => {
                pool.end();
                let address = server.cancel.address.tcp.clone();
                let why = format!("the settings of the session cannot be restored: {error}");
                Err(NoServer::Connect(server::ConnectError::Unreachable { address, why }))
            }
        }
    }

    /// Passes both sides' bytes on until something ends that.
    fn poll_turn(&mut self, cx: &mut Context<'_>, lent: &mut Lent) -> Poll<Turn> {
        let server = &mut *lent.server;
        loop {
            if let Some(end) = self.entry.told(cx).filter(|_| !self.ending) {
                return Poll::Ready(Turn::Told(end));
            }
            let up = match self.poll_up(cx, server) {
                Ok(progress) => progress,
                Err(turn) => return Poll::Ready(turn),
            };
            let down = match self.poll_down(cx, server) {
                Ok(progress) => progress,
                Err(turn) => return Poll::Ready(turn),
            };
            if self.is_quiet(server) && (self.ending || (self.active && self.lets_go())) {
                return Poll::Ready(Turn::Quiet);
            }
            if !up && !down {
                return Poll::Pending;
            }
        }
    }

    /// Whether nothing is under way, and no transaction is open.
    fn is_quiet(&self, server: &Server) -> bool {
        server.status == b'I'
            && !self.batch_open
            && self.passing == 0
            && !self.fresh
            && server.is_quiet()
    }

    /// Whether the connection need not, or may not be needed to, stay with the client.
    fn lets_go(&self) -> bool {
        !self.keeps_server() || (self.origin.dedicated.is_none() && self.may_have_changed())
    }

    fn may_have_changed(&self) -> bool {
        self.traits.has(Flags::MAY_SET.with(Flags::MAY_HOLD).with(Flags::MAY_RELEASE))
    }

    /// Whether the session keeps its server connection between transactions.
    pub(super) fn keeps_server(&self) -> bool {
        self.entry.pin.get().is_some()
    }

    /// Whether the transaction that ended can have left nothing on the connection.
    fn leaves_nothing(&self) -> bool {
        !self.keeps_server()
            && !self.traits.has(Flags::MAY_SET.with(Flags::MAY_HOLD))
            && !self.ending
    }

    /// From the client to the server. Whether anything was done.
    fn poll_up(&mut self, cx: &mut Context<'_>, server: &mut Server) -> Result<bool, Turn> {
        let lost = |error: io::Error| Turn::ServerLost(error.to_string());
        if !server.unsent.is_empty() {
            match server.io.poll_unsent(cx, &mut server.unsent) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(lost(error)),
                Poll::Pending => return Ok(false),
            }
        }
        let worker = Rc::clone(&self.worker);
        let mut spliced = worker.spliced.borrow_mut();
        spliced.clear();
        let fresh = std::mem::take(&mut self.fresh);
        if !fresh && (self.ending && self.is_between_requests(server)) {
            return Ok(false);
        }
        let mut scratch = worker.scratch.borrow_mut();
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut read = 0;
        if !fresh {
            match self.io.poll_take(cx, &mut scratch) {
                Poll::Ready(Ok(0)) => return Err(Turn::ClientLost(EndedBy::Client)),
                Poll::Ready(Ok(more)) => read = more,
                Poll::Ready(Err(error)) => {
                    tracing::debug!("a client was lost: {error}");
                    return Err(Turn::ClientLost(EndedBy::ClientLost));
                }
                Poll::Pending => {
                    self.inbox = inbox;
                    return Ok(false);
                }
            }
            add(&self.account.counters.received, read as u64);
            if !inbox.is_empty() {
                inbox.extend_from_slice(&scratch[..read]);
            }
        }
        let data = if inbox.is_empty() { &scratch[..read] } else { &inbox[..] };
        self.active = true;
        let taken = upstream::take(self, server, data, &mut spliced).map_err(Turn::Violation)?;
        let (used, terminated) = (taken.used, taken.terminated);
        server.io.send(cx, taken.onward, &mut server.unsent).map_err(lost)?;
        if inbox.is_empty() {
            self.inbox.extend_from_slice(&data[used..]);
        } else {
            inbox.drain(..used);
            if inbox.capacity() > INBOX_KEPT_BYTES && inbox.is_empty() {
                inbox = Vec::new();
            }
            self.inbox = inbox;
        }
        if terminated {
            return Err(Turn::ClientLost(EndedBy::Client));
        }
        Ok(true)
    }

    /// Whether the client is not in the middle of anything that a Sync must end.
    fn is_between_requests(&self, server: &Server) -> bool {
        server.status == b'I' && !self.batch_open && self.passing == 0
    }

    /// From the server to the client. Whether anything was done.
    fn poll_down(&mut self, cx: &mut Context<'_>, server: &mut Server) -> Result<bool, Turn> {
        let client_lost = |error: io::Error| {
            tracing::debug!("a client was lost: {error}");
            Turn::ClientLost(EndedBy::ClientLost)
        };
        if !self.unsent.is_empty() {
            match self.io.poll_unsent(cx, &mut self.unsent) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(client_lost(error)),
                Poll::Pending => return Ok(false),
            }
        }
        let worker = Rc::clone(&self.worker);
        let mut spliced = worker.spliced.borrow_mut();
        spliced.clear();
        let mut scratch = worker.scratch.borrow_mut();
        let read = match server.io.poll_take(cx, &mut scratch) {
            Poll::Ready(Ok(0)) => {
                return Err(Turn::ServerLost("it closed the connection".to_owned()));
            }
            Poll::Ready(Ok(read)) => read,
            Poll::Ready(Err(error)) => return Err(Turn::ServerLost(error.to_string())),
            Poll::Pending => return Ok(false),
        };
        let mut inbox = std::mem::take(&mut server.inbox);
        if !inbox.is_empty() {
            inbox.extend_from_slice(&scratch[..read]);
        }
        let data = if inbox.is_empty() { &scratch[..read] } else { &inbox[..] };
        let taken = downstream::take(self, server, data, &mut spliced).map_err(Turn::ServerLost)?;
        let used = taken.used;
        add(&self.account.counters.sent, taken.onward.len() as u64);
        self.io.send(cx, taken.onward, &mut self.unsent).map_err(client_lost)?;
        server.inbox.extend_from_slice(&data[used..]);
        Ok(true)
    }

    /// A transaction has ended, and nothing is left of it on the connection.
    fn give_back(&mut self, lent: Lent) {
        self.account_for(&lent);
        self.active = false;
        self.traits = Flags::default();
        self.entry.settled();
        self.entry.current.borrow_mut().take();
        match lent.pool {
            Some(pool) => pool.give_back(lent.server),
            None => drop(lent.server),
        }
    }

    fn account_for(&mut self, lent: &Lent) {
        let counters = &self.account.counters;
        add(&counters.transaction_us, lent.since.elapsed().as_micros() as u64);
        if let Some(pool) = &lent.pool {
            pool.lent.set(pool.lent.get().saturating_sub(1));
        }
    }

    /// Looks at what the transaction may have left on the connection: settings go with the client, everything else
    /// keeps the connection with it.
    async fn settle(&mut self, mut lent: Lent) -> Option<Lent> {
        let names: BTreeSet<String> = {
            let of_two = |name: &&String| name.contains('.');
            let known = self.wanted.keys().chain(lent.server.applied.keys()).filter(of_two);
            self.custom.iter().chain(known).cloned().collect()
        };
        let found =
            super::state::look(&mut lent.server, &self.account.user, &names, &self.worker).await;
        self.traits = Flags::default();
        self.active = false;
        match found {
            Ok(found) => {
                let wanted = found.wanted(&self.origin.settings);
                self.wanted = self.worker.settings.intern(wanted);
                self.entry.pin.set(found.pin);
            }
            // Whatever is there, it stays with the client.
            Err(error) => {
                tracing::debug!(pid = self.entry.pid, "the state of a session is unknown: {error}");
                self.entry.pin.set(Some("its state on the server is unknown"));
            }
        }
        if self.keeps_server() {
            let server = &mut lent.server;
            if !Rc::ptr_eq(&server.applied, &self.wanted) {
                // RESET goes back to what this client began with, not to what the connection's first one did.
                let _ = super::state::restore(server, &self.wanted, &self.worker).await;
            }
            self.report(&lent.server);
            return Some(lent);
        }
        self.give_back(lent);
        None
    }

    /// What follows from a turn that is no plain end of a transaction.
    async fn turned(&mut self, turn: Turn, lent: Lent) -> Result<Option<Lent>, Ended> {
        match turn {
            Turn::Quiet => {
                self.end_lent(lent);
                Ok(None)
            }
            Turn::ServerLost(why) => {
                let ended = self.server_lost(&lent.server, &why);
                self.end_lent(lent);
                ended.map_or(Ok(None), Err)
            }
            Turn::ClientLost(by) => {
                self.client_lost(lent, by).await;
                Err(Ended::quietly(by))
            }
            Turn::Violation(failure) => {
                self.client_lost(lent, EndedBy::Client).await;
                Err(Ended::telling(EndedBy::Client, &failure))
            }
            Turn::Told(end) => self.end_soon(end, lent).await,
        }
    }

    /// Lets what is under way end within the time there is, and cuts it then.
    async fn end_soon(&mut self, end: End, mut lent: Lent) -> Result<Option<Lent>, Ended> {
        let config = &self.worker.shared.config;
        let grace = Duration::from_millis(match end {
            End::PrimaryChanged(_) => config.primary_change_grace_ms,
            End::Draining => config.drain_ms,
            End::Killed => 0,
        });
        self.ending = true;
        let turn = timeout(grace, std::future::poll_fn(|cx| self.poll_turn(cx, &mut lent))).await;
        self.ending = false;
        match (turn, end) {
            (Ok(Turn::Quiet), End::PrimaryChanged(_)) if !self.keeps_server() => {
                self.entry.settled();
                self.end_lent(lent);
                Ok(None)
            }
            (Ok(Turn::Quiet), _) => {
                self.end_lent(lent);
                Err(self.told(end))
            }
            (Ok(other), _) => Box::pin(self.turned(other, lent)).await,
            (Err(_), End::PrimaryChanged(primary)) if !self.keeps_server() => {
                self.entry.settled();
                let node = lent.server.node();
                cancel_if_busy(&lent.server, &self.worker).await;
                let ended = self.transaction_lost(&lent.server, &super::loss::moved(node, primary));
                self.end_lent(lent);
                ended.map_or(Ok(None), Err)
            }
            (Err(_), _) => {
                cancel_if_busy(&lent.server, &self.worker).await;
                let cut = lent.server.passing > 0;
                self.end_lent(lent);
                let ended = self.told(end);
                // In the middle of a message there is no way to say anything.
                Err(if cut { Ended::quietly(ended.by) } else { ended })
            }
        }
    }

    fn told(&self, end: End) -> Ended {
        match end {
            End::PrimaryChanged(primary) => {
                Ended::telling(EndedBy::PrimaryChanged, &super::loss::primary_changed(primary))
            }
            End::Draining => Ended::telling(EndedBy::Draining, &draining()),
            End::Killed => Ended::telling(EndedBy::Killed, &killed()),
        }
    }

    /// Closes the connection.
    fn end_lent(&mut self, lent: Lent) {
        self.account_for(&lent);
        self.active = false;
        self.traits = Flags::default();
        self.used.clear();
        self.entry.current.borrow_mut().take();
        if self.origin.dedicated.is_none() {
            self.entry.pin.set(None);
        }
        if let Some(pool) = &lent.pool {
            pool.end();
        }
    }

    /// The client has gone: what the server still does for it is ended, and a clean connection goes back.
    async fn client_lost(&mut self, lent: Lent, by: EndedBy) {
        if by == EndedBy::Client && self.is_quiet(&lent.server) && self.leaves_nothing() {
            self.give_back(lent);
            return;
        }
        cancel_if_busy(&lent.server, &self.worker).await;
        self.end_lent(lent);
    }

    /// A ReadyForQuery came.
    pub(super) fn cycle_ended(&mut self, status: u8) {
        self.used.clear();
        if status == b'I' {
            add(&self.account.counters.transactions, 1);
        }
    }

    /// A statement's text passes.
    pub(super) fn note_text(&mut self, text: &[u8], seen: Flags) {
        self.traits = self.traits.with(seen);
        // To a session that takes backslashes in plain strings the text may be another one.
        let escapes = |value: &String| value == "off";
        if seen.has(Flags::BACKSLASH)
            && self.reported.get("standard_conforming_strings").is_some_and(escapes)
        {
            self.traits = self.traits.with(upstream::ANYTHING);
        }
        if seen.has(Flags::MAY_SET) && self.custom.len() < CUSTOM_MAX {
            self.custom.extend(statement::custom_names(text));
        }
    }

    /// A prepared statement is used.
    pub(super) fn bound(&mut self, statement: Rc<Statement>) {
        self.used.push(statement);
    }

    /// The plans of the statements in use no longer fit the schema.
    pub(super) fn plans_are_stale(&mut self) {
        for statement in &self.used {
            statement.stale.set(true);
        }
    }

    /// The connection stays with the client from now on.
    pub(super) fn hold(&mut self, why: &'static str) {
        self.entry.pin.set(Some(why));
    }
}

/// Whatever the server still works on, nobody waits for it any more.
async fn cancel_if_busy(server: &Server, worker: &Worker) {
    if server.expected.cycles() > 0 {
        let _ = server::cancel(&server.cancel, &worker.shared.config).await;
    }
}
