//! One turn of a session that has a server connection: both sides' bytes are passed on until nothing is under way, or
//! something has gone wrong.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use synapsedb_pg::sql::traits::Flags;

use super::account::add;
use super::entry::End;
use super::metrics::EndedBy;
use super::server::Server;
use super::session::{Lent, Session};
use super::startup::Failure;
use super::{PoolMode, downstream, upstream};

/// A request's buffer up to this size is kept for the next one, in bytes.
const INBOX_KEPT_BYTES: usize = 1024;

/// What ends an exchange between client and server.
pub(super) enum Turn {
    /// Nothing is under way and no transaction is open.
    Quiet,
    /// A transaction is open that there must not be.
    LeftOpen,
    ServerLost(String),
    ClientLost(EndedBy),
    /// The session is told to end, or to let go of its server, and something is under way.
    Told(End),
    /// What was taken for a read wanted to write, and its client has seen nothing of that.
    Misjudged,
    /// A transaction begins that must wait until the node shows what it must see.
    Gate,
    Violation(Failure),
}

/// What a session does with its requests on the connection that it has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turns {
    /// One request at a time: it is on a reader.
    pub(super) one_by_one: bool,
    /// One is under way, and what follows waits for its answer.
    pub(super) waits: bool,
    /// Nobody but the router has taken it for a read.
    pub(super) is_guess: bool,
    /// It has turned out to write, and what is left of its answer is nobody's.
    pub(super) is_misjudged: bool,
}

impl Session {
    /// Passes both sides' bytes on until something ends that.
    pub(super) fn poll_turn(&mut self, cx: &mut Context<'_>, lent: &mut Lent) -> Poll<Turn> {
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
            if self.leaves_open(server) {
                return Poll::Ready(Turn::LeftOpen);
            }
            if self.turns.is_misjudged && self.is_quiet(server) {
                return Poll::Ready(Turn::Misjudged);
            }
            if self.is_quiet(server) && (self.ending || (self.active && self.lets_go())) {
                return Poll::Ready(Turn::Quiet);
            }
            if !up && !down {
                return Poll::Pending;
            }
        }
    }

    /// Whether nothing is under way, and no transaction is open.
    pub(super) fn is_quiet(&self, server: &Server) -> bool {
        server.status == b'I'
            && !self.batch_open
            && self.passing == 0
            && !self.fresh
            && server.is_quiet()
    }

    /// Whether the connection need not, or may not be needed to, stay with the client.
    pub(super) fn lets_go(&self) -> bool {
        !self.keeps_server()
            || self.kept_ready
            || self.entry.pin.get() == Some(super::hearing::BORROWED)
            || (self.origin.dedicated.is_none() && self.may_have_changed())
    }

    pub(super) fn may_have_changed(&self) -> bool {
        self.traits.has(Flags::MAY_SET.with(Flags::MAY_HOLD).with(Flags::MAY_RELEASE))
    }

    /// Whether the session keeps its server connection between transactions.
    pub(super) fn keeps_server(&self) -> bool {
        self.entry.pin.get().is_some()
    }

    /// Whether the transaction that ended can have left nothing on the connection.
    pub(super) fn leaves_nothing(&self) -> bool {
        !self.keeps_server()
            && !self.traits.has(Flags::MAY_SET.with(Flags::MAY_HOLD))
            && !self.ending
    }

    /// Whether one request is sent at a time: on a reader, and where none may leave a transaction open.
    pub(super) fn is_one_by_one(&self) -> bool {
        self.turns.one_by_one || self.account.pooling.get().mode == PoolMode::Statement
    }

    /// A request has been sent.
    pub(super) fn sent_one(&mut self) {
        self.turns.waits = self.is_one_by_one();
    }

    /// Whether what the client sends waits until its request is answered. A COPY of its data ends with what it sends,
    /// and when it came by Execute or has failed there, so does the Sync that must follow.
    pub(super) fn holds_back(&self, server: &Server) -> bool {
        self.turns.waits && server.expected.cycles() > 0 && !server.expected.is_copying()
    }

    /// The server has begun or given up a COPY of the client's data: what waits may not need to any more.
    pub(super) fn may_go_on(&mut self, server: &Server) {
        self.fresh |= self.turns.waits && !self.inbox.is_empty() && !self.holds_back(server);
    }

    /// A ReadyForQuery came. The client's next request may go on if it belongs to the same transaction, or to the same
    /// connection, on which there is nothing to look at in between.
    pub(super) fn answered(&mut self, status: u8) {
        if self.turns.waits {
            self.turns.waits = false;
            let same = status != b'I' || (self.keeps_server() && !self.lets_go());
            self.fresh = same && !self.inbox.is_empty();
        }
    }

    /// From the client to the server. Whether anything was done.
    pub(super) fn poll_up(
        &mut self,
        cx: &mut Context<'_>,
        server: &mut Server,
    ) -> Result<bool, Turn> {
        let lost = |error: io::Error| Turn::ServerLost(error.to_string());
        if !server.unsent.is_empty() || server.io.holds_back() {
            match server.io.poll_unsent(cx, &mut server.unsent) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(lost(error)),
                Poll::Pending => return Ok(false),
            }
        }
        let worker = Rc::clone(&self.worker);
        let mut spliced = worker.spliced.borrow_mut();
        spliced.clear();
        if self.passing == 0 && self.holds_back(server) {
            return self.collect(cx);
        }
        let gated = self.must_gate(server);
        if gated && !self.is_quiet(server) {
            return Ok(false);
        }
        let fresh = std::mem::take(&mut self.fresh);
        if !fresh && (self.ending && self.is_between_requests(server)) {
            return Ok(false);
        }
        let mut scratch = worker.scratch.borrow_mut();
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut read = 0;
        if !fresh {
            match self.poll_client(cx, &mut scratch)? {
                Some(more) => read = more,
                None => {
                    self.inbox = inbox;
                    return Ok(false);
                }
            }
            if !inbox.is_empty() {
                inbox.extend_from_slice(&scratch[..read]);
            }
        }
        if gated {
            if inbox.is_empty() {
                inbox.extend_from_slice(&scratch[..read]);
            }
            self.inbox = inbox;
            return Err(Turn::Gate);
        }
        let data = if inbox.is_empty() { &scratch[..read] } else { &inbox[..] };
        self.active = true;
        self.keep_for_repeat(server, fresh, data, &scratch[..read]);
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

    /// Keeps what the client sends while its request is under way alone. Whether anything came.
    fn collect(&mut self, cx: &mut Context<'_>) -> Result<bool, Turn> {
        if self.inbox.len() >= self.worker.shared.config().query_bytes_max {
            return Ok(false);
        }
        let worker = Rc::clone(&self.worker);
        let mut scratch = worker.scratch.borrow_mut();
        let Some(read) = self.poll_client(cx, &mut scratch)? else { return Ok(false) };
        self.inbox.extend_from_slice(&scratch[..read]);
        Ok(true)
    }

    /// Reads what the client has sent, and answers how much; `None` while there is nothing.
    fn poll_client(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Result<Option<usize>, Turn> {
        match self.io.poll_take(cx, scratch) {
            Poll::Ready(Ok(0)) => Err(Turn::ClientLost(EndedBy::Client)),
            Poll::Ready(Ok(read)) => {
                add(&self.account.counters.received, read as u64);
                self.moved.0 += read as u64;
                Ok(Some(read))
            }
            Poll::Ready(Err(error)) => {
                tracing::debug!("a client was lost: {error}");
                Err(Turn::ClientLost(EndedBy::ClientLost))
            }
            Poll::Pending => Ok(None),
        }
    }

    /// Whether the client is not in the middle of anything that a Sync must end.
    pub(super) fn is_between_requests(&self, server: &Server) -> bool {
        server.status == b'I' && !self.batch_open && self.passing == 0
    }

    /// From the server to the client. Whether anything was done.
    pub(super) fn poll_down(
        &mut self,
        cx: &mut Context<'_>,
        server: &mut Server,
    ) -> Result<bool, Turn> {
        let client_lost = |error: io::Error| {
            tracing::debug!("a client was lost: {error}");
            Turn::ClientLost(EndedBy::ClientLost)
        };
        if !self.unsent.is_empty() || self.io.holds_back() {
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
        let whole = server.passing == 0;
        let taken = downstream::take(self, server, data, &mut spliced).map_err(Turn::ServerLost)?;
        let used = taken.used;
        // Of one that is run again nothing was passed on before, and nothing is now.
        let onward = if self.turns.is_misjudged { &[] } else { taken.onward };
        if !onward.is_empty() {
            self.repeat.forbid();
        }
        add(&self.account.counters.sent, onward.len() as u64);
        self.moved.1 += onward.len() as u64;
        if self.keeps_back(onward, whole) {
            // It goes on with what ends it.
        } else if self.unsent.is_empty() {
            self.io.send(cx, onward, &mut self.unsent).map_err(client_lost)?;
        } else {
            self.unsent.extend_from_slice(onward);
            if let Poll::Ready(Err(error)) = self.io.poll_unsent(cx, &mut self.unsent) {
                return Err(client_lost(error));
            }
        }
        server.inbox.extend_from_slice(&data[used..]);
        Ok(true)
    }
}
