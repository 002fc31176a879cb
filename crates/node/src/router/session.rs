//! One client's session: it waits for a request, is lent a server connection, passes both sides' bytes on, and gives
//! the connection back when the transaction has ended.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use synapsedb_pg::sql::statement::{self, Own};
use synapsedb_pg::sql::traits::Flags;

use super::account::{Account, add};
use super::begun::Begun;
use super::ending::{draining, killed};
use super::entry::{Activity, End, Entry};
use super::expected::StatementId;
use super::limits::Place;
use super::loss::Aborted;
use super::metrics::EndedBy;
use super::origin::{self, Greeting, Origin};
use super::outcome::{Batch, Pending};
use super::pool::Pool;
use super::repeat::{Repeat, calls_nothing_unknown};
use super::server::Server;
use super::settings::Settings;
use super::socket::Socket;
use super::split::Split;
use super::startup::Failure;
use super::statements::Statement;
use super::token::Reading;
use super::traffic::Flow;
use super::turn::{Turn, Turns};
use super::worker::Worker;
use super::{Endpoint, upstream};

/// Settings of two-part names that are followed for one client.
const CUSTOM_MAX: usize = 1_000;

/// A client's session.
pub(super) struct Session {
    pub(super) worker: Rc<Worker>,
    pub(super) io: Socket,
    pub(super) account: Rc<Account>,
    pub(super) origin: Rc<Origin>,
    pub(super) entry: Rc<Entry>,
    pub(super) greeting: Option<Greeting>,
    _place: Place,
    /// The settings that its server connections must have.
    pub(super) wanted: Rc<Settings>,
    /// What its servers have reported to it.
    pub(super) reported: Rc<Settings>,
    /// Its prepared statements, by its names.
    pub(super) prepared: HashMap<Box<[u8]>, Rc<Statement>>,
    /// Its unnamed statement, as the Parse message has it behind the name; empty if there is none.
    pub(super) unnamed: Vec<u8>,
    pub(super) unnamed_count: u64,
    /// The unnamed statement is about a setting of the router's own.
    pub(super) unnamed_own: Option<Own>,
    /// What its text may do.
    pub(super) unnamed_traits: Flags,
    /// Names it has given to prepared statements since the last ReadyForQuery.
    pub(super) parsing: Vec<(Box<[u8]>, StatementId)>,
    /// Names that turned out not to be prepared, while an error may still tell of them.
    pub(super) unprepared: Vec<(Box<[u8]>, Rc<Statement>)>,
    /// The prepared statements it has used since the last ReadyForQuery.
    pub(super) used: Vec<Rc<Statement>>,
    /// Names of two-part settings that it may have set.
    pub(super) custom: BTreeSet<String>,
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
    /// Its messages since the last Sync.
    pub(super) batch: Batch,
    /// So many of its statements have been completed since the last ReadyForQuery.
    pub(super) completed: u32,
    /// What is under way begins a transaction block and does not end it.
    pub(super) opens: bool,
    /// What was sent with a marker and is not answered.
    pub(super) pending: Option<Box<Pending>>,
    /// It was told of an error, and its messages up to the next Sync are skipped.
    pub(super) skipping: bool,
    /// Something was said on the lent connection since the last look at what it has left there.
    pub(super) active: bool,
    /// What the statements since then may have done.
    pub(super) traits: Flags,
    /// CommandCompletes of statements that were put in for it, which it must not see.
    pub(super) swallow_tags: usize,
    /// What it is told at its next request: its transaction was lost while it said nothing.
    pub(super) doomed: Option<Failure>,
    /// Whether it is in a transaction that was lost.
    pub(super) aborted: Aborted,
    /// The session ends as soon as nothing is under way.
    pub(super) ending: bool,
    /// Where it may read.
    pub(super) reading: Reading,
    /// The transaction at hand, or the next one, may begin on the connection that it has.
    pub(super) cleared: bool,
    /// What its startup packet has set of the router's own settings.
    pub(super) begun: Begun,
    /// It is told its token after each write.
    pub(super) reports_token: bool,
    /// A write was acknowledged whose place is not known yet.
    pub(super) has_written: bool,
    /// A ReadyForQuery waits for the token.
    pub(super) kept_ready: bool,
    /// Counts it at its home.
    pub(super) home: Option<Rc<Cell<u64>>>,
    /// The request at hand, while it may be repeated on another node.
    pub(super) repeat: Repeat,
    /// What is known of it when not all of its requests go where its endpoint leads.
    pub(super) split: Option<Box<Split>>,
    pub(super) turns: Turns,
    /// Bytes that it has sent and got since it was lent its connection.
    pub(super) moved: (u64, u64),
}

/// A connection that a session has, and where it came from.
pub(super) struct Lent {
    pub(super) server: Box<Server>,
    /// `None` for one that was opened for this session alone.
    pub(super) pool: Option<Rc<Pool>>,
    pub(super) flow: Rc<Flow>,
    pub(super) since: Instant,
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

impl Session {
    pub(super) fn new(
        worker: Rc<Worker>,
        io: Socket,
        account: Rc<Account>,
        origin: Rc<Origin>,
        entry: Rc<Entry>,
        greeting: Greeting,
        place: Place,
    ) -> Self {
        account.clients.set(account.clients.get() + 1);
        let consistency = worker.shared.config().consistency;
        let split = Split::at(entry.client.endpoint, &worker.names, &account.database);
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
            unnamed_own: None,
            unnamed_traits: Flags::default(),
            parsing: Vec::new(),
            unprepared: Vec::new(),
            used: Vec::new(),
            custom: BTreeSet::new(),
            inbox: Vec::new(),
            fresh: false,
            unsent: Vec::new(),
            passing: 0,
            discarding: 0,
            batch_open: false,
            batch: Batch::default(),
            completed: 0,
            opens: false,
            pending: None,
            skipping: false,
            active: false,
            traits: Flags::default(),
            swallow_tags: 0,
            doomed: None,
            aborted: Aborted::No,
            ending: false,
            reading: Reading { consistency, ..Reading::default() },
            cleared: false,
            begun: Begun::new(),
            reports_token: false,
            has_written: false,
            kept_ready: false,
            home: None,
            repeat: Repeat::default(),
            split,
            turns: Turns::default(),
            moved: (0, 0),
        }
    }

    /// Serves the client until one of the two ends it.
    pub(super) async fn run(mut self: Box<Self>) {
        tracing::debug!(
            endpoint = self.entry.client.endpoint.name(),
            user = self.account.user,
            database = self.account.database,
            pid = self.entry.client.pid,
            "session opened"
        );
        let ended = self.live().await;
        self.worker.shared.metrics.ended(ended.by);
        self.account.clients.set(self.account.clients.get().saturating_sub(1));
        self.worker.sessions.borrow_mut().remove(&self.entry.client.pid);
        if let Some(home) = self.home.take() {
            home.set(home.get().saturating_sub(1));
        }
        if let Some(ear) = self.entry.ear.get() {
            ear.leave();
        }
        let mut last = std::mem::take(&mut self.unsent);
        last.extend_from_slice(&ended.last);
        self.io.part(&last, self.worker.farewell()).await;
    }

    pub(super) async fn live(&mut self) -> Ended {
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
                    // Of one whose server was lost no answer comes.
                    self.turns.waits = false;
                    if self.split.is_some()
                        && let Err(failure) = self.find_route().await
                    {
                        self.refuse(failure);
                        continue;
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
            if self.must_take_channels() {
                held = match Box::pin(self.take_channels(held)).await {
                    Ok(held) => held,
                    Err(ended) => return ended,
                };
            }
            let turn = std::future::poll_fn(|cx| self.poll_turn(cx, &mut held)).await;
            lent = match turn {
                Turn::Quiet if self.leaves_nothing() && !self.must_sample() => {
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
    pub(super) async fn greet(&mut self) -> io::Result<Option<Lent>> {
        let Some(greeting) = self.greeting.take() else { return Ok(None) };
        let (pid, secret) = (self.entry.client.pid.to_be_bytes(), self.entry.secret);
        let own = [pid, secret].concat();
        // Whoever keeps one server connection has its process id, as without the router.
        let key = greeting.server.as_ref().map_or(&own[..], |server| &server.cancel.data);
        let (pid, secret) = key.split_first_chunk().unwrap_or((&pid, &[]));
        let hello = origin::hello(&self.origin, u32::from_be_bytes(*pid), secret);
        self.io.say(&hello).await?;
        self.entry.pin.set(self.origin.dedicated);
        Ok(greeting.server.map(|server| {
            *self.entry.current.borrow_mut() = Some(server.cancel.clone());
            let (flow, since) = self.flow(&server);
            Lent { server, pool: None, flow, since }
        }))
    }

    /// Waits for a request that needs a server, and answers those that need none.
    pub(super) fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Option<Ended>> {
        self.entry.activity.set(Activity::Idle);
        // Its server was lost before the token was known.
        self.release_ready();
        match self.entry.told(cx) {
            Some(End::Draining) => {
                return Poll::Ready(Some(Ended::telling(EndedBy::Draining, &draining())));
            }
            Some(End::Killed) => {
                return Poll::Ready(Some(Ended::telling(EndedBy::Killed, &killed())));
            }
            Some(End::Deaf | End::Missed) => return Poll::Ready(Some(self.deafened())),
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
            self.take_mail();
            if !self.unsent.is_empty() || self.io.holds_back() {
                match self.io.poll_unsent(cx, &mut self.unsent) {
                    Poll::Ready(Ok(())) if self.has_mail() => continue,
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
                    self.moved.0 += read as u64;
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

    /// A transaction has ended, and nothing is left of it on the connection.
    pub(super) fn give_back(&mut self, lent: Lent) {
        self.unprepared.clear();
        self.repeat.done();
        self.account_for(lent.pool.as_ref(), &lent.flow, lent.since);
        self.has_written = false;
        self.active = false;
        self.traits = Flags::default();
        self.entry.settled();
        self.entry.current.borrow_mut().take();
        match lent.pool {
            Some(pool) => pool.give_back(lent.server),
            None => drop(lent.server),
        }
    }

    /// Looks at what the transaction may have left on the connection: settings go with the client, everything else
    /// keeps the connection with it.
    pub(super) async fn settle(&mut self, mut lent: Lent) -> Option<Lent> {
        if self.must_sample() {
            self.sample(&mut lent.server).await;
            if self.leaves_nothing() {
                self.give_back(lent);
                return None;
            }
        }
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
                self.report_set(&lent.server, &found.session);
                let wanted = found.wanted(&self.origin.settings);
                self.wanted = self.worker.settings.intern(wanted);
                let placed = self.place_channels(&mut lent, found.channels, found.pin);
                match Box::pin(placed).await {
                    Ok(pin) => self.entry.pin.set(pin),
                    Err(_) => {
                        // The session was told, and ends before anything else.
                        self.end_lent(lent);
                        return None;
                    }
                }
            }
            // Whatever is there, it stays with the client.
            Err(error) => {
                tracing::debug!(
                    pid = self.entry.client.pid,
                    "the state of a session is unknown: {error}"
                );
                self.entry.pin.set(Some("its state on the server is unknown"));
                self.must_hear(lent.server.node(), &error.to_string());
            }
        }
        if self.keeps_server() {
            let server = &mut lent.server;
            if !Rc::ptr_eq(&server.applied, &self.wanted) {
                // RESET goes back to what this client began with, not to what the connection's first one did.
                let _ =
                    super::state::restore(server, &self.wanted, server.guarded, &self.worker).await;
            }
            self.report(&lent.server);
            self.pass_on_heard(&mut lent.server);
            // What has waited for an answer goes to the same server now.
            self.fresh |= self.is_one_by_one() && !self.inbox.is_empty();
            self.turns = Turns::default();
            return Some(lent);
        }
        self.give_back(lent);
        None
    }

    /// A ReadyForQuery came.
    pub(super) fn cycle_ended(&mut self, status: u8) {
        self.used.clear();
        self.parsing.clear();
        (self.completed, self.opens) = (0, false);
        self.not_pending();
        add(&self.account.counters.cycles, 1);
        if status == b'I' {
            add(&self.account.counters.transactions, 1);
            self.transaction_ended();
            self.has_written |= self.traits.has(Flags::WRITES);
            self.note_definitions();
        }
        self.answered(status);
    }

    /// A statement's text passes.
    pub(super) fn note_text(&mut self, text: &[u8], seen: Flags) {
        self.traits = self.traits.with(seen);
        let may_repeat = self.entry.route.get().to == Endpoint::Read;
        // What the router has taken for a read calls nothing that would not be undone.
        if may_repeat && !self.turns.is_guess && !calls_nothing_unknown(text) {
            self.repeat.forbid();
        }
        // To a session that takes backslashes in plain strings the text may be another one.
        let escapes = |value: &String| value == "off";
        if seen.has(Flags::BACKSLASH)
            && self.reported.get("standard_conforming_strings").is_some_and(escapes)
        {
            self.traits = self.traits.with(upstream::ANYTHING);
        }
        if seen.has(Flags::OTHER_DATABASE_DROP)
            && let Some(name) = statement::drop_database(text)
        {
            super::console::drop_database::begin(&self.worker, name);
        }
        if seen.has(Flags::MAY_SET) && self.custom.len() < CUSTOM_MAX {
            self.custom.extend(statement::custom_names(text));
        }
    }

    /// The connection stays with the client from now on.
    pub(super) fn hold(&mut self, why: &'static str) {
        self.entry.pin.set(Some(why));
    }
}
