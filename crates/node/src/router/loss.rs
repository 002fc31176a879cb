//! What a client is told when it cannot go on as it would have: no server, or a server lost on the way.

use bytes::Bytes;
use synapsedb_core::ids::NodeId;
use synapsedb_core::outcome::{Answer, Promise, Seen};
use synapsedb_pg::sql::traits::{Flags, Traits};

use super::metrics::EndedBy;
use super::outcome::Batch;
use super::server::Server;
use super::session::{Ended, Session};
use super::startup::{self, Failure};
use super::upstream::{HEADER_BYTES, header};

/// Whether the client is in a transaction that was lost with its server connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aborted {
    No,
    Yes,
    /// Its ROLLBACK has come, as far as its Parse or Bind.
    Ending,
    /// Its COMMIT has.
    Committing,
}

const LOOK: &str = "Connect again. A transaction in progress was rolled back, unless its COMMIT had been sent: then \
                    look whether it took effect.";

/// The node is no longer the primary: its open transaction was given up.
pub(super) fn moved(node: NodeId, primary: Option<NodeId>) -> String {
    match primary {
        Some(primary) => format!("the primary is now node {primary}, no longer node {node}"),
        None => format!("node {node} is no longer the primary"),
    }
}

/// A session that cannot move must end.
pub(super) fn primary_changed(primary: Option<NodeId>) -> Failure {
    let message = match primary {
        Some(primary) => {
            format!("terminating connection because the primary is now node {primary}")
        }
        None => "terminating connection because its node is no longer the primary".to_owned(),
    };
    Failure { sqlstate: "57P01", message, hint: LOOK.to_owned() }
}

/// How a statement ends its transaction, if it does.
fn ending(flags: Flags) -> Option<Aborted> {
    let how = if flags.has(Flags::COMMITS) { Aborted::Committing } else { Aborted::Ending };
    flags.has(Flags::END).then_some(how)
}

impl Session {
    /// Whether a request is there that needs a server; those that need none are answered.
    ///
    /// # Errors
    /// The session has ended.
    pub(super) fn needs_server(&mut self) -> Result<bool, Ended> {
        loop {
            let discarded = self.discarding.min(self.inbox.len());
            if discarded > 0 {
                self.inbox.drain(..discarded);
                self.discarding -= discarded;
            }
            let (tag, length) = match header(&self.inbox) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(false),
                Err(failure) => return Err(Ended::telling(EndedBy::Client, &failure)),
            };
            let whole = HEADER_BYTES + length;
            // A server connection is not held by half a request.
            let needed = whole.min(self.worker.shared.config().query_bytes_max);
            let is_there =
                self.inbox.len() >= needed && (!self.is_judged() || self.is_request_there());
            match tag {
                b'X' => return Err(Ended::quietly(EndedBy::Client)),
                b'S' => {
                    if let Some(failure) = self.doomed.take() {
                        self.unsent.extend_from_slice(&failure.error());
                    }
                    self.skipping = false;
                    self.ready();
                }
                // Flush, and what is left of a COPY that has failed.
                b'H' | b'd' | b'c' | b'f' => {}
                _ if self.skipping => {}
                _ if !is_there => return Ok(false),
                _ if self.aborted != Aborted::No => self.in_aborted_transaction(tag, length),
                _ => match self.doomed.take() {
                    Some(failure) => self.answer_with(&failure, tag),
                    None => return Ok(true),
                },
            }
            self.discarding = whole;
        }
    }

    /// ReadyForQuery, in the state that the client is in.
    fn ready(&mut self) {
        let status = if self.aborted == Aborted::No { b'I' } else { b'E' };
        self.unsent.extend_from_slice(&[b'Z', 0, 0, 0, 5, status]);
    }

    /// Answers a request of this kind with an error.
    fn answer_with(&mut self, failure: &Failure, tag: u8) {
        self.unsent.extend_from_slice(&failure.error());
        if matches!(tag, b'Q' | b'F') {
            self.ready();
        } else {
            self.skipping = true;
        }
    }

    /// Answers a request in a transaction that was lost with its server connection: as PostgreSQL does in one that
    /// has failed, so that nothing meant for the transaction is done outside it.
    fn in_aborted_transaction(&mut self, tag: u8, length: usize) {
        let body = self.inbox.get(HEADER_BYTES..HEADER_BYTES + length).unwrap_or_default();
        let split = |bytes| startup::split_text(bytes).unwrap_or((bytes, &[]));
        let (first, rest) = split(body);
        let ends = |text: &[u8]| ending(Traits::of(text).flags);
        let answer: &[u8] = match tag {
            b'Q' if ends(first).is_some() => match self.ended(ends(first)) {
                Some(failure) => return self.answer_with(&failure, tag),
                None => b"C\0\0\0\x0dROLLBACK\0",
            },
            b'P' if ends(split(rest).0).is_some() => {
                self.aborted = ends(split(rest).0).unwrap_or(Aborted::Ending);
                b"1\0\0\0\x04"
            }
            b'B' => {
                let known = self.prepared.get(split(rest).0);
                if let Some(ending) = known.and_then(|statement| ending(statement.traits)) {
                    self.aborted = ending;
                }
                if self.aborted == Aborted::Yes { b"" } else { b"2\0\0\0\x04" }
            }
            b'D' if self.aborted != Aborted::Yes && first.first() == Some(&b'S') => {
                b"t\0\0\0\x06\0\0n\0\0\0\x04"
            }
            b'D' if self.aborted != Aborted::Yes => b"n\0\0\0\x04",
            b'E' if self.aborted != Aborted::Yes => match self.ended(Some(self.aborted)) {
                Some(failure) => return self.answer_with(&failure, tag),
                None => b"C\0\0\0\x0dROLLBACK\0",
            },
            b'C' => {
                if let Some(name) = first.strip_prefix(b"S") {
                    self.prepared.remove(name);
                }
                b"3\0\0\0\x04"
            }
            _ => b"",
        };
        self.unsent.extend_from_slice(answer);
        if answer.is_empty() {
            let failure = self.doomed.take().unwrap_or_else(|| Failure {
                sqlstate: "25P02",
                message: "current transaction is aborted, commands ignored until end of transaction block"
                    .to_owned(),
                hint: String::new(),
            });
            self.answer_with(&failure, tag);
        } else if tag == b'Q' {
            self.ready();
        }
    }

    /// The lost transaction has ended. A COMMIT of one that the client believes to be alive is answered with what has
    /// happened to it: many drivers take any other answer for a success.
    fn ended(&mut self, ending: Option<Aborted>) -> Option<Failure> {
        self.aborted = Aborted::No;
        self.doomed.take().filter(|_| ending == Some(Aborted::Committing))
    }

    /// There is no server for the request at hand: it is answered with the reason, and the session goes on.
    pub(super) fn refuse(&mut self, failure: Failure) {
        self.fresh = false;
        self.doomed = Some(failure);
    }

    /// The server connection broke. The session's end, if it cannot go on.
    pub(super) fn server_lost(&mut self, lost: &Lost, why: &str, known: Answer) -> Option<Ended> {
        let node = lost.node;
        tracing::debug!(%node, "a server connection was lost: {why}");
        if lost.kept {
            if lost.is_cut {
                return Some(Ended::quietly(EndedBy::ServerLost));
            }
            let last = lost.fatal.clone().unwrap_or_else(|| {
                let message = format!(
                    "the connection to the PostgreSQL server of node {node} was lost: {why}"
                );
                Failure { sqlstate: "08006", message, hint: LOOK.to_owned() }.fatal()
            });
            let said = lost.cycles == 0 && lost.fatal.is_none();
            let by = if said { EndedBy::Server } else { EndedBy::ServerLost };
            return Some(Ended { by, last });
        }
        self.worker.shared.metrics.ended(EndedBy::ServerLost);
        let said = lost.fatal.as_ref();
        let said = said.and_then(|message| startup::error_field(&message[HEADER_BYTES..], b'M'));
        self.transaction_lost(
            lost,
            &format!("the server connection to node {node} was lost: {}", said.unwrap_or(why)),
            known,
        )
    }

    /// What was under way on a server connection has no answer: the client gets what is known in its place and keeps
    /// its session, unless it is in the middle of a message.
    pub(super) fn transaction_lost(
        &mut self,
        lost: &Lost,
        why: &str,
        known: Answer,
    ) -> Option<Ended> {
        let pending = self.pending.take();
        let completed = std::mem::take(&mut self.completed);
        self.batch = Batch::default();
        if lost.is_cut {
            return Some(Ended::quietly(EndedBy::ServerLost));
        }
        let in_transaction = lost.status != b'I';
        if lost.cycles == 0 && !self.batch_open && !in_transaction {
            return None;
        }
        let in_flight = lost.cycles > 0 || self.batch_open;
        let failure = lost.failure(in_flight, why, known);
        if in_flight && lost.may_have_committed() {
            self.worker.shared.metrics.outcome(known);
        }
        if in_transaction && !(in_flight && lost.traits.has(Flags::END)) {
            self.aborted = Aborted::Yes;
        }
        let mut cycles = lost.cycles;
        let mut failure = failure;
        if let (Some(pending), Answer::Committed(Seen { promise: Promise::Local, .. })) =
            (pending, known)
        {
            let chains = pending.chains();
            if let Some(answer) = pending.answer(completed) {
                self.unsent.extend_from_slice(&answer);
                (cycles, failure) =
                    (cycles.saturating_sub(1), lost.failure(true, why, Answer::Unknown));
                if chains {
                    // The transaction that it began is lost.
                    self.aborted = Aborted::Yes;
                    failure = rolled_back(why);
                }
                self.ready();
                if cycles == 0 && !self.batch_open && !chains {
                    self.discarding = std::mem::take(&mut self.passing);
                    return None;
                }
            }
        }
        let error = failure.error();
        for _ in 0..cycles {
            self.unsent.extend_from_slice(&error);
            self.ready();
        }
        if self.batch_open {
            self.unsent.extend_from_slice(&error);
            self.skipping = true;
        } else if cycles == 0 {
            self.doomed = Some(failure);
        }
        self.discarding = std::mem::take(&mut self.passing);
        self.batch_open = false;
        None
    }
}

/// A server connection that was lost, as it was last.
pub(super) struct Lost {
    pub(super) node: NodeId,
    /// The process id of the server's session.
    pub(super) pid: u32,
    /// As in the last ReadyForQuery.
    status: u8,
    /// How many ReadyForQuery the client waits for.
    cycles: usize,
    /// It was lost in the middle of a message.
    is_cut: bool,
    /// The ErrorResponse with which the server ended the session.
    fatal: Option<Bytes>,
    /// The session keeps its server connection.
    kept: bool,
    /// All that is in flight is the beginning of a transaction block.
    opens: bool,
    traits: Flags,
}

impl Lost {
    pub(super) fn new(session: &Session, server: &Server) -> Self {
        Self {
            node: server.node(),
            pid: server.cancel.data.first_chunk().map_or(0, |pid| u32::from_be_bytes(*pid)),
            status: server.status,
            cycles: server.expected.cycles(),
            is_cut: server.passing > 0 || !server.inbox.is_empty(),
            fatal: server.fatal.clone(),
            kept: session.keeps_server(),
            opens: session.opens && server.expected.cycles() == 1 && !session.batch_open,
            traits: session.traits,
        }
    }

    /// Whether what is in flight ends a transaction that may have written.
    fn may_have_committed(&self) -> bool {
        let commits = (self.traits.has(Flags::END) || self.status == b'I') && !self.opens;
        // What a function does is not known.
        commits && self.traits.has(Flags::WRITES.with(Flags::CALLS))
    }

    /// What the outcome of the lost work is, as far as it is known.
    fn failure(&self, in_flight: bool, why: &str, known: Answer) -> Failure {
        if !in_flight || !self.may_have_committed() {
            return rolled_back(why);
        }
        match known {
            Answer::Unknown => Failure {
                sqlstate: "08007",
                message: format!("{why}; whether the transaction took effect is unknown"),
                hint: "Look whether it took effect before you repeat it.".to_owned(),
            },
            Answer::Aborted => Failure {
                sqlstate: "40001",
                message: format!("{why}; the transaction did not take effect"),
                hint: "Repeat the transaction: the session goes on.".to_owned(),
            },
            Answer::Committed(Seen { promise: Promise::Local, .. }) => Failure {
                sqlstate: "08007",
                message: format!("{why}; the transaction took effect, but its answer is lost"),
                hint: "Do not repeat it: look at what it has done.".to_owned(),
            },
            Answer::Committed(Seen { promise: Promise::Members, .. }) => Failure {
                sqlstate: "08007",
                message: format!(
                    "{why}; the transaction took effect, but whether the members that it waited for have it is unknown"
                ),
                hint: "Do not repeat it: look at what it has done.".to_owned(),
            },
        }
    }
}

fn rolled_back(why: &str) -> Failure {
    Failure {
        sqlstate: "40001",
        message: format!("{why}; the transaction was rolled back"),
        hint: "Repeat the transaction: the session goes on.".to_owned(),
    }
}
