//! What a server says, on its way to the client: answers to the router's own messages are kept back, and the state of
//! the session is followed.

use std::rc::Rc;

use bytes::{BufMut as _, Bytes, BytesMut};
use synapsedb_pg::sql::traits::Flags;
use synapsedb_pg::wire::backend;

use super::expected::Verdict;
use super::server::Server;
use super::session::Session;
use super::settings::Settings;
use super::splice::Splice;
use super::startup;
use super::statements::NAME_PREFIX;
use super::upstream::HEADER_BYTES;

/// Longer messages of the kinds that are looked at pass unseen.
const LOOKED_AT_BYTES_MAX: usize = 64 * 1024;

/// What became of a server's bytes.
pub(super) struct Taken<'a> {
    /// What goes to the client.
    pub(super) onward: &'a [u8],
    /// How many bytes were used up; the rest is the beginning of a message.
    pub(super) used: usize,
}

/// Looks at `data`, the server's bytes from a place where a message begins or goes on.
///
/// # Errors
/// The server breaks the protocol.
pub(super) fn take<'a>(
    session: &mut Session,
    server: &mut Server,
    data: &'a [u8],
    out: &'a mut Vec<u8>,
) -> Result<Taken<'a>, String> {
    let mut splice = Splice::new(data, out);
    let mut at = 0;
    while at < data.len() {
        let passing = server.passing.min(data.len() - at);
        if passing > 0 {
            server.passing -= passing;
            at += passing;
            continue;
        }
        let Some(&[tag, a, b, c, d]) = data[at..].first_chunk() else { break };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let whole = length + 1;
        if length < 4 {
            return Err(format!("it sent a message of length {length}"));
        }
        let looked_at = is_looked_at(tag) || server.expected.is_marking();
        if whole > LOOKED_AT_BYTES_MAX || !looked_at {
            let here = whole.min(data.len() - at);
            at += here;
            server.passing = whole - here;
            continue;
        }
        let Some(message) = data.get(at..at + whole) else { break };
        match look(session, server, tag, &message[HEADER_BYTES..]) {
            Fate::Pass => {}
            Fate::Drop => splice.drop(at, at + whole),
            Fate::Replace(other) => {
                splice.drop(at, at + whole);
                splice.output().put_slice(&other);
            }
        }
        at += whole;
    }
    Ok(Taken { onward: splice.finish(at), used: at })
}

/// The messages whose content matters here; all others pass by their length.
fn is_looked_at(tag: u8) -> bool {
    matches!(
        tag,
        backend::READY_FOR_QUERY
            | backend::COMMAND_COMPLETE
            | backend::PARSE_COMPLETE
            | backend::CLOSE_COMPLETE
            | backend::ERROR_RESPONSE
            | backend::PARAMETER_STATUS
            | backend::NOTIFICATION_RESPONSE
            | backend::COPY_IN_RESPONSE
            | backend::COPY_BOTH_RESPONSE
    )
}

enum Fate {
    Pass,
    Drop,
    Replace(Bytes),
}

fn look(session: &mut Session, server: &mut Server, tag: u8, body: &[u8]) -> Fate {
    if server.expected.is_marking() && answers_marker(server, tag) {
        return Fate::Drop;
    }
    match tag {
        backend::READY_FOR_QUERY => {
            server.status = body.first().copied().unwrap_or(b'I');
            let (prepared, unnamed) = (&mut server.prepared, &mut server.unnamed);
            let clients = server.expected.ready(|lost| {
                match lost.id {
                    Some(id) if lost.on_server => prepared.remove(id),
                    Some(_) => {}
                    None => *unnamed = None,
                }
                if lost.by_client {
                    session.not_prepared(lost.id);
                }
            });
            if !clients {
                return Fate::Drop;
            }
            if session.turns.is_misjudged {
                session.forget_parsed();
            }
            session.cycle_ended(server.status);
            if session.turns.is_misjudged {
                return Fate::Drop;
            }
            // What the client is told instead follows.
            let kept = session.leaves_open(server) || session.keeps_back_ready(server);
            if kept { Fate::Drop } else { Fate::Pass }
        }
        backend::COMMAND_COMPLETE => completed(session, server, body),
        backend::PARSE_COMPLETE | backend::CLOSE_COMPLETE => match server.expected.completed() {
            Verdict::Pass => Fate::Pass,
            Verdict::Swallow => Fate::Drop,
            Verdict::AsParse => Fate::Replace(Bytes::from_static(b"1\0\0\0\x04")),
        },
        backend::ERROR_RESPONSE => {
            let was_copying = server.expected.is_copying();
            let fate = failed(session, server, body);
            // By Execute: the server passes over all that precedes a Sync, and has ignored those in front of the data.
            session.batch_open |= was_copying && server.expected.cycles() == 0;
            session.may_go_on(server);
            fate
        }
        backend::PARAMETER_STATUS => {
            backend::parameter_status(body).map_or(Fate::Pass, |(name, value)| {
                server.reported = session.worker.settings.with(&server.reported, name, value);
                session.hears_of_parameter(server, name, value)
            })
        }
        // A client that listens keeps its connection; to all others it is the leftover of somebody else's.
        backend::NOTIFICATION_RESPONSE if !session.may_listen() => Fate::Drop,
        backend::NOTIFICATION_RESPONSE if session.is_delivered_elsewhere(body) => Fate::Drop,
        backend::NOTIFICATION_RESPONSE => own_notification(session, server, body),
        backend::COPY_IN_RESPONSE | backend::COPY_BOTH_RESPONSE => {
            server.expected.copy_begins();
            session.may_go_on(server);
            Fate::Pass
        }
        _ => Fate::Pass,
    }
}

/// Whether a message is part of the answer to a marker; others may come in between.
fn answers_marker(server: &mut Server, tag: u8) -> bool {
    match tag {
        backend::COMMAND_COMPLETE => {
            server.expected.marked();
            true
        }
        backend::BIND_COMPLETE | backend::DATA_ROW => true,
        _ => false,
    }
}

/// A client knows its own notifications by its process id, which is not the server's.
fn own_notification(session: &Session, server: &Server, body: &[u8]) -> Fate {
    let pid = body.first_chunk::<4>();
    if session.origin.dedicated.is_some() || pid != server.cancel.data.first_chunk() {
        return Fate::Pass;
    }
    let mut own = session.entry.client.pid.to_be_bytes().to_vec();
    own.extend_from_slice(&body[4..]);
    let mut message = Vec::new();
    startup::put_message(&mut message, backend::NOTIFICATION_RESPONSE, &[&own]);
    Fate::Replace(message.into())
}

fn completed(session: &mut Session, server: &mut Server, body: &[u8]) -> Fate {
    if session.swallow_tags > 0 {
        session.swallow_tags -= 1;
        return Fate::Drop;
    }
    session.completed = session.completed.saturating_add(1);
    if matches!(body, b"DISCARD ALL\0" | b"DEALLOCATE ALL\0") {
        session.prepared.clear();
        server.prepared.clear();
        server.unnamed = None;
    }
    Fate::Pass
}

fn failed(session: &mut Session, server: &mut Server, body: &[u8]) -> Fate {
    let severity = startup::error_field(body, b'V').unwrap_or_default();
    if matches!(severity, "FATAL" | "PANIC") && !session.keeps_server() {
        // The server ends its session, not ours: what the client is told depends on what it had under way.
        let mut message = Vec::new();
        startup::put_message(&mut message, backend::ERROR_RESPONSE, &[body]);
        server.fatal = Some(message.into());
        return Fate::Drop;
    }
    if session.takes_back(server, body) {
        server.expected.failed();
        return Fate::Drop;
    }
    let hidden = server.expected.is_hidden();
    server.expected.failed();
    if hidden && startup::error_field(body, b'C') == Some("25P02") {
        // The transaction had failed before: its COMMIT will say so.
        return Fate::Drop;
    }
    // A COMMIT in front of which a marker fails is answered with that error, not with a ROLLBACK behind it.
    session.swallow_tags = usize::from(hidden);
    // "cached plan must not change result type": who prepares the text again gets a new plan.
    if startup::error_field(body, b'C') == Some("0A000")
        && startup::error_field(body, b'R') == Some("RevalidateCachedQuery")
    {
        session.plans_are_stale();
    }
    match session.with_own_names(body) {
        Some(body) => {
            let mut message = Vec::new();
            startup::put_message(&mut message, backend::ERROR_RESPONSE, &[&body]);
            Fate::Replace(message.into())
        }
        None => Fate::Pass,
    }
}

impl Session {
    /// Whether it listens, or has just asked to.
    fn may_listen(&self) -> bool {
        self.keeps_server() || self.traits.has(Flags::MAY_HOLD)
    }

    /// A parameter has another value on the connection: the client is told if it has for the client, too.
    fn hears_of_parameter(&mut self, server: &Server, name: &str, value: &str) -> Fate {
        let theirs = self.own_start(server, name, value).unwrap_or(value);
        if self.reported.get(name).is_some_and(|told| told == theirs) {
            return Fate::Drop;
        }
        let fate = if theirs == value {
            Fate::Pass
        } else {
            let mut message = BytesMut::new();
            synapsedb_pg::wire::startup::parameter_status(&mut message, name, theirs);
            Fate::Replace(message.freeze())
        };
        self.reported = self.worker.settings.with(&self.reported, name, theirs);
        fate
    }

    /// RESET and SET TO DEFAULT go back to what the connection began with: what the client began with in its place, if
    /// that is another value. It gets that on the next connection.
    fn own_start<'a>(&'a self, server: &Server, name: &str, value: &str) -> Option<&'a str> {
        let began_otherwise = self.origin.settings.get(name) != server.startup.get(name);
        let is_first = || server.reported_first.get(name).is_some_and(|first| first == value);
        let own = self.origin.reported.get(name).filter(|_| began_otherwise && is_first());
        own.map(String::as_str)
    }

    /// Tells the client of what it has set to just what its connection began with, which was taken for a RESET.
    pub(super) fn report_set(&mut self, server: &Server, set: &Settings) {
        if Rc::ptr_eq(&server.reported, &self.reported) {
            return;
        }
        for name in set.keys() {
            let (now, told) = (server.reported.get(name), self.reported.get(name));
            if let Some(now) = now.filter(|now| told != Some(now)) {
                let mut message = BytesMut::new();
                synapsedb_pg::wire::startup::parameter_status(&mut message, name, now);
                self.unsent.extend_from_slice(&message);
                self.reported = self.worker.settings.with(&self.reported, name, now);
            }
        }
    }

    /// Passes on what was heard while the router asked something of its own.
    pub(super) fn pass_on_heard(&mut self, server: &mut Server) {
        for body in std::mem::take(&mut server.heard) {
            match own_notification(self, server, &body) {
                Fate::Replace(message) => self.unsent.extend_from_slice(&message),
                Fate::Pass | Fate::Drop => {
                    let tag = backend::NOTIFICATION_RESPONSE;
                    startup::put_message(&mut self.unsent, tag, &[&body]);
                }
            }
        }
    }

    /// An error's body with the client's names of its statements in place of ours; `None` if there are none in it.
    fn with_own_names(&self, body: &[u8]) -> Option<Vec<u8>> {
        let text = std::str::from_utf8(body).ok().filter(|text| text.contains(NAME_PREFIX))?;
        let mut text = text.to_owned();
        let gone = self.unprepared.iter().map(|(name, statement)| (name, statement));
        for (name, statement) in self.prepared.iter().chain(gone) {
            let ours = format!("\"{}\"", String::from_utf8_lossy(&statement.name));
            let theirs = format!("\"{}\"", String::from_utf8_lossy(name));
            text = text.replace(&ours, &theirs);
        }
        Some(text.into_bytes())
    }
}
