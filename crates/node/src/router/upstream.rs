//! What a client says, on its way to the server: named statements get the router's names, statements that the
//! server connection lacks are prepared first, and everything is noted that an answer or a trace will follow from.

mod mark;

use std::rc::Rc;

use bytes::BufMut as _;
use synapsedb_pg::sql::statement::{self, Deallocate};
use synapsedb_pg::sql::traits::{Flags, Traits};

use super::account::add;
use super::outcome::Batch;
use super::own_statements;
use super::server::Server;
use super::session::Session;
use super::splice::Splice;
use super::startup::{Failure, put_message, split_text};
use super::statements::{self, NAME_PREFIX, Statement};

/// Tag and length of a message.
pub(super) const HEADER_BYTES: usize = 5;
/// The names in front of a Bind's values must end within this.
const NAMES_BYTES_MAX: usize = 8 * 1024;
/// The longest COPY FORMAT, Describe or Close message.
const SHORT_BYTES_MAX: usize = 16 * 1024;
/// A statement that is never there: to close it is answered as any Close is.
const NOBODY: &[u8] = b"__synapsedb_nobody";

/// What a text may do that nobody looks at.
pub(super) const ANYTHING: Flags = Flags::MAY_SET
    .with(Flags::MAY_HOLD)
    .with(Flags::MAY_RELEASE)
    .with(Flags::WRITES)
    .with(Flags::UTILITY)
    .with(Flags::CHANNELS);

/// What became of a client's bytes.
pub(super) struct Taken<'a> {
    /// What goes to the server.
    pub(super) onward: &'a [u8],
    /// How many bytes were used up; the rest is the beginning of a message.
    pub(super) used: usize,
    /// The client has said goodbye.
    pub(super) terminated: bool,
}

/// A message's header: its tag and the length of its body; `None` while it is cut off.
///
/// # Errors
/// The length is impossible.
pub(super) fn header(data: &[u8]) -> Result<Option<(u8, usize)>, Failure> {
    let Some(&[tag, a, b, c, d]) = data.first_chunk() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]);
    match length.checked_sub(4) {
        Some(body) if length <= i32::MAX as u32 => Ok(Some((tag, body as usize))),
        _ => Err(violation(format!("invalid message length {length}"))),
    }
}

pub(super) fn violation(message: String) -> Failure {
    Failure { sqlstate: "08P01", message, hint: String::new() }
}

/// Looks at `data`, the client's bytes from a place where a message begins or goes on.
///
/// # Errors
/// The client breaks the protocol: what it is told before its session ends.
pub(super) fn take<'a>(
    session: &mut Session,
    server: &mut Server,
    data: &'a [u8],
    out: &'a mut Vec<u8>,
) -> Result<Taken<'a>, Failure> {
    let mut up = Up { session, server, data, splice: Splice::new(data, out), at: 0 };
    let mut terminated = false;
    while up.at < data.len() {
        let passing = up.session.passing.min(data.len() - up.at);
        if passing > 0 {
            up.session.passing -= passing;
            up.at += passing;
            continue;
        }
        if up.session.holds_back(up.server) {
            break;
        }
        let Some((tag, length)) = header(&data[up.at..])? else { break };
        match up.message(tag, length)? {
            Step::Next => {}
            Step::More => break,
            Step::Terminate => {
                terminated = true;
                break;
            }
        }
    }
    let used = up.at;
    Ok(Taken { onward: up.splice.finish(used), used, terminated })
}

enum Step {
    Next,
    /// The message is not there as far as it must be.
    More,
    Terminate,
}

pub(super) struct Up<'a, 'b> {
    pub(super) session: &'b mut Session,
    pub(super) server: &'b mut Server,
    pub(super) data: &'a [u8],
    pub(super) splice: Splice<'a>,
    pub(super) at: usize,
}

impl<'a> Up<'a, '_> {
    fn message(&mut self, tag: u8, length: usize) -> Result<Step, Failure> {
        if let Some(ear) = self.session.entry.ear.get()
            && self.session.must_wait(ear, self.server, (tag, length), self.body(length))
        {
            return Ok(Step::More);
        }
        let of = self.data.get(self.at + HEADER_BYTES).copied();
        let step = self.pass_on(tag, length)?;
        if matches!((tag, &step), (b'P' | b'B' | b'D' | b'C' | b'E' | b'H', Step::Next)) {
            self.session.batch.note(tag, of);
        }
        if matches!(tag, b'Q' | b'S' | b'F') && matches!(step, Step::Next) {
            self.session.sent_one();
        }
        Ok(step)
    }

    fn pass_on(&mut self, tag: u8, length: usize) -> Result<Step, Failure> {
        match tag {
            b'Q' => self.query(length),
            b'P' => self.parse(length),
            b'B' => self.bind(length),
            b'D' | b'C' => self.describe_or_close(tag, length),
            b'E' | b'H' => {
                if tag == b'E' {
                    self.mark_execute();
                }
                self.session.batch_open = true;
                Ok(self.pass(length))
            }
            b'S' => {
                self.mark_sync();
                self.session.batch_open = false;
                self.server.expected.sync();
                Ok(self.pass(length))
            }
            b'F' => {
                self.server.expected.query();
                self.session.traits = self.session.traits.with(ANYTHING);
                Ok(self.pass(length))
            }
            b'c' | b'f' => {
                self.session.batch_open |= self.server.expected.copy_end();
                Ok(self.pass(length))
            }
            b'd' => Ok(self.pass(length)),
            b'X' => Ok(Step::Terminate),
            other => Err(violation(format!("invalid frontend message type {other}"))),
        }
    }

    /// Lets a message go on, as much of it as is there.
    fn pass(&mut self, length: usize) -> Step {
        let whole = HEADER_BYTES + length;
        let here = whole.min(self.data.len() - self.at);
        self.at += here;
        self.session.passing = whole - here;
        Step::Next
    }

    /// The body of a message, when it is there as a whole.
    fn body(&self, length: usize) -> Option<&'a [u8]> {
        let begin = self.at + HEADER_BYTES;
        self.data.get(begin..begin + length)
    }

    /// A statement's text that is longer than what is looked at may do anything.
    fn too_long(&mut self) {
        self.session.traits = self.session.traits.with(ANYTHING);
    }

    fn query(&mut self, length: usize) -> Result<Step, Failure> {
        if length > self.session.worker.shared.config().query_bytes_max {
            self.too_long();
        } else {
            let Some(body) = self.body(length) else { return Ok(Step::More) };
            let text = body.strip_suffix(b"\0").unwrap_or(body);
            let (seen, before) = (Traits::of(text).flags, self.session.traits);
            self.session.note_text(text, seen);
            if let Some(sql) = self.session.refusal(|| text, seen) {
                self.replace_query(&sql, length);
                return Ok(Step::Next);
            }
            if seen.has(Flags::OWN) && self.own(text, length) {
                return Ok(Step::Next);
            }
            if seen.has(Flags::MAY_RELEASE) && self.deallocate(text, length) {
                return Ok(Step::Next);
            }
            self.mark_query(seen, before);
        }
        self.session.batch = Batch::default();
        // A Query drops the unnamed statement.
        self.session.unnamed.clear();
        self.server.unnamed = None;
        self.session.batch_open = false;
        self.server.expected.query();
        add(&self.session.account.counters.queries, 1);
        Ok(self.pass(length))
    }

    /// `DEALLOCATE name` of a statement that the client prepared by Parse, which the server knows by another name.
    fn deallocate(&mut self, text: &[u8], length: usize) -> bool {
        let Some(Deallocate::Name(name)) = statement::deallocate(text) else { return false };
        if self.session.prepared.remove(name.as_bytes()).is_none() {
            return false;
        }
        // The server says what it would have said, about a statement made for this.
        let sql = b"PREPARE \"__synapsedb_gone\" AS SELECT; DEALLOCATE \"__synapsedb_gone\"\0";
        // Its first answer, that of PREPARE, is kept from the client.
        self.session.swallow_tags = 1;
        self.splice.drop(self.at, self.at + HEADER_BYTES + length);
        put_message(self.splice.output(), b'Q', &[sql]);
        self.at += HEADER_BYTES + length;
        self.server.expected.query();
        true
    }

    fn parse(&mut self, length: usize) -> Result<Step, Failure> {
        self.session.batch_open = true;
        if length > self.session.worker.shared.config().query_bytes_max {
            return self.parse_long(length);
        }
        let Some(body) = self.body(length) else { return Ok(Step::More) };
        let Some((name, rest)) = split_text(body) else {
            // The server says what is wrong with it.
            self.server.expected.parse(None);
            return Ok(self.pass(length));
        };
        let text = split_text(rest).map_or(rest, |(text, _)| text);
        add(&self.session.account.counters.parses, 1);
        if name.is_empty() {
            let seen = Traits::of(text).flags;
            self.session.note_text(text, seen);
            self.session.unnamed.clear();
            self.session.unnamed.extend_from_slice(rest);
            self.session.unnamed_own = None;
            self.session.unnamed_count += 1;
            self.session.unnamed_traits = seen;
            if seen.has(Flags::OWN) && self.parse_own_unnamed(text, length) {
                return Ok(Step::Next);
            }
            self.server.unnamed =
                Some((u64::from(self.session.entry.client.pid), self.session.unnamed_count));
            self.server.expected.parse(None);
            return Ok(self.pass(length));
        }
        let statement = self.session.worker.statements.intern(rest, || own_statements::facts(text));
        self.session.note_text(text, statement.traits);
        let whole = HEADER_BYTES + length;
        self.splice.drop(self.at, self.at + whole);
        self.at += whole;
        if let Some(known) = self.session.prepared.get(name).cloned() {
            // The server refuses a name that is taken: it is asked for one that is.
            self.ensure(&known);
            put_message(self.splice.output(), b'P', &[&known.name, b"\0", &known.body]);
            self.server.expected.parse(None);
            return Ok(Step::Next);
        }
        if self.server.prepared.touch(statement.id) {
            put_message(self.splice.output(), b'C', &[b"S", NOBODY, b"\0"]);
            self.server.expected.faked(statement.id);
        } else {
            self.prepare(&statement);
            self.server.expected.parse(Some(statement.id));
        }
        self.session.parsing.push((name.into(), statement.id));
        self.session.prepared.insert(name.into(), statement);
        Ok(Step::Next)
    }

    /// A statement whose text is too long to be kept: it exists on this server connection only, which the client
    /// keeps from now on.
    fn parse_long(&mut self, length: usize) -> Result<Step, Failure> {
        if self.session.turns.one_by_one {
            // It would keep the session on a reader.
            let max = self.session.worker.shared.config().query_bytes_max;
            let text = format!(
                "a Parse of {length} bytes on a reader; the most is router.query_bytes_max, {max}"
            );
            return Err(violation(text));
        }
        self.too_long();
        self.session.unnamed.clear();
        self.server.unnamed = None;
        self.session.hold("a prepared statement longer than router.query_bytes_max");
        self.server.expected.parse(None);
        Ok(self.pass(length))
    }

    fn bind(&mut self, length: usize) -> Result<Step, Failure> {
        self.session.batch_open = true;
        let begin = self.at + HEADER_BYTES;
        let there = &self.data[begin..self.data.len().min(begin + length.min(NAMES_BYTES_MAX))];
        let names = split_text(there)
            .and_then(|(portal, rest)| split_text(rest).map(|(name, rest)| (portal, name, rest)));
        let Some((portal, name, rest)) = names else {
            if there.len() < length.min(NAMES_BYTES_MAX) {
                return Ok(Step::More);
            }
            if length > NAMES_BYTES_MAX {
                let text = format!("names of more than {NAMES_BYTES_MAX} bytes in a Bind message");
                return Err(violation(text));
            }
            // The server says what is wrong with it.
            return Ok(self.pass(length));
        };
        add(&self.session.account.counters.binds, 1);
        if name.is_empty() {
            let traits = self.session.unnamed_traits;
            self.mark_bind(portal, traits);
            // It may have been parsed in an earlier transaction.
            self.session.traits = self.session.traits.with(traits);
            let own = self.session.own_unnamed();
            let own = own.and_then(|own| self.session.own_sql(&own, self.server));
            let session = &*self.session;
            let refusal = || session.refusal(|| statements::text(&session.unnamed), traits);
            if let Some(sql) = own.or_else(refusal) {
                self.bind_own(portal, &sql, length, there.len() - rest.len());
                return Ok(Step::Next);
            }
            self.ensure_unnamed();
            return Ok(self.pass(length));
        }
        let Some(statement) = self.session.prepared.get(name).cloned() else {
            self.mark_bind(portal, Flags::default());
            self.refuse_our_names(name)?;
            return Ok(self.pass(length));
        };
        self.mark_bind(portal, statement.traits);
        self.session.traits = self.session.traits.with(statement.traits);
        let values = there.len() - rest.len();
        let own = statement.own.as_ref().and_then(|own| self.session.own_sql(own, self.server));
        let text = || statements::text(&statement.body);
        let refusal = || self.session.refusal(text, statement.traits);
        if let Some(sql) = own.or_else(refusal) {
            self.bind_own(portal, &sql, length, values);
            return Ok(Step::Next);
        }
        self.ensure(&statement);
        let new_length = length - name.len() + statement.name.len();
        self.splice.drop(self.at, begin + values);
        let out = self.splice.output();
        out.put_u8(b'B');
        out.put_u32((new_length + 4) as u32);
        out.put_slice(portal);
        out.put_u8(0);
        out.put_slice(&statement.name);
        out.put_u8(0);
        self.at = begin + values;
        self.session.passing = length - values;
        self.session.bound(statement);
        Ok(Step::Next)
    }

    fn describe_or_close(&mut self, tag: u8, length: usize) -> Result<Step, Failure> {
        self.session.batch_open = true;
        if length > SHORT_BYTES_MAX {
            return Err(violation(format!("invalid message length {length}")));
        }
        let Some(body) = self.body(length) else { return Ok(Step::More) };
        let closes = tag == b'C';
        let name = body.strip_prefix(b"S").map(|name| name.strip_suffix(b"\0").unwrap_or(name));
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            if closes {
                self.server.expected.close();
                if body.first() == Some(&b'S') {
                    self.session.unnamed.clear();
                    self.server.unnamed = None;
                }
            } else if body.first() == Some(&b'S') {
                self.ensure_unnamed();
            }
            return Ok(self.pass(length));
        };
        if closes {
            self.server.expected.close();
            // Others may use it: it stays on the server.
            if self.session.prepared.remove(name).is_none() {
                self.refuse_our_names(name)?;
                return Ok(self.pass(length));
            }
            self.replace(tag, length, NOBODY);
            return Ok(Step::Next);
        }
        let Some(statement) = self.session.prepared.get(name).cloned() else {
            self.refuse_our_names(name)?;
            return Ok(self.pass(length));
        };
        self.ensure(&statement);
        self.replace(tag, length, &statement.name);
        self.session.bound(statement);
        Ok(Step::Next)
    }

    /// Puts a Describe or Close of another statement in place of the message.
    fn replace(&mut self, tag: u8, length: usize, name: &[u8]) {
        let whole = HEADER_BYTES + length;
        self.splice.drop(self.at, self.at + whole);
        self.at += whole;
        put_message(self.splice.output(), tag, &[b"S", name, b"\0"]);
    }

    /// A statement of another client's is nobody's business.
    fn refuse_our_names(&self, name: &[u8]) -> Result<(), Failure> {
        if name.starts_with(NAME_PREFIX.as_bytes()) {
            let text = format!("names that begin with {NAME_PREFIX} are the router's own");
            return Err(violation(text));
        }
        Ok(())
    }

    /// Has the server prepare a statement that it lacks, in front of the message at hand.
    fn ensure(&mut self, statement: &Rc<Statement>) {
        if !self.server.prepared.touch(statement.id) {
            let at = self.at;
            self.splice.output_at(at);
            self.prepare(statement);
            self.server.expected.injected(Some(statement.id));
        }
    }

    /// Has the server prepare the client's unnamed statement if it is not there.
    fn ensure_unnamed(&mut self) {
        let own = (u64::from(self.session.entry.client.pid), self.session.unnamed_count);
        if self.session.unnamed.is_empty() || self.server.unnamed == Some(own) {
            return;
        }
        self.server.unnamed = Some(own);
        let out = self.splice.output_at(self.at);
        put_message(out, b'P', &[b"\0", &self.session.unnamed]);
        self.server.expected.injected(None);
    }

    /// Puts a Parse out, and a Close of what has to make room for it.
    fn prepare(&mut self, statement: &Rc<Statement>) {
        let max = self.session.worker.shared.config().prepared_statements_max;
        if let Some(evicted) = self.server.prepared.add(statement.id, max) {
            let name = statements::name(evicted);
            put_message(self.splice.output(), b'C', &[b"S", &name, b"\0"]);
            self.server.expected.evicted();
        }
        add(&self.session.account.counters.server_parses, 1);
        put_message(self.splice.output(), b'P', &[&statement.name, b"\0", &statement.body]);
    }
}
