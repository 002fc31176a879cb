//! Statements about the settings that are the router's own, as a client says them by either protocol.
//!
//! SET and RESET go on, so that the server judges them as it does all others. SHOW becomes a query that answers with
//! our value: of a prepared one the server gets a stand-in of the same columns, and what is bound is the answer of
//! that moment, under a name of its own.

use std::collections::HashMap;
use std::rc::Rc;

use bytes::BufMut as _;
use synapsedb_pg::quote;
use synapsedb_pg::sql::statement::{self, Own, OwnSetting};
use synapsedb_pg::sql::traits::{Flags, Traits};

use super::server::Server;
use super::session::Session;
use super::startup::{put_message, split_text};
use super::statements::{Facts, Statement};
use super::upstream::{HEADER_BYTES, Up, header};

/// What an answer is prepared as, for the moment in which it is bound.
const ANSWER: &[u8] = b"__synapsedb_answer";

/// What is to be known of a text that a client prepares.
pub(super) fn facts(text: &[u8]) -> Facts {
    let traits = Traits::of(text).flags;
    let own = if traits.has(Flags::OWN) { statement::own(text) } else { None };
    let sent = own.as_ref().and_then(stand_in);
    Facts { traits, own, sent }
}

/// The Parse body that the server gets in place of a statement that it would refuse.
fn stand_in(own: &Own) -> Option<Vec<u8>> {
    match own {
        Own::Show(setting) => {
            let column = quote::ident(setting.name());
            Some(format!("SELECT NULL::pg_catalog.text AS {column}\0\0\0").into_bytes())
        }
        Own::Set(..) | Own::Reset(_) | Own::Refused(..) => None,
    }
}

/// A statement by which a server says an error of ours.
pub(super) fn raise(sqlstate: &str, message: &str, hint: &str) -> String {
    let literal = |text: &str| quote::literal(&text.replace('$', ""));
    let hint = match hint.is_empty() {
        true => String::new(),
        false => format!(", HINT = {}", literal(hint)),
    };
    format!(
        "DO $synapsedb$ BEGIN RAISE EXCEPTION USING ERRCODE = {}, MESSAGE = {}{hint}; END $synapsedb$",
        literal(sqlstate),
        literal(message),
    )
}

impl Session {
    /// The statement that the server runs in place of one about our own settings; `None` when it runs that itself.
    /// What is set takes effect.
    pub(super) fn own_sql(&mut self, own: &Own, server: &Server) -> Option<String> {
        let (setting, value): (OwnSetting, &str) = match own {
            Own::Show(setting) => {
                let shown = self.shown(*setting, server);
                return Some(format!("SELECT {shown} AS {}", quote::ident(setting.name())));
            }
            Own::Set(setting, value) => (*setting, value),
            Own::Reset(setting) => (*setting, ""),
            Own::Refused(..) => return None,
        };
        let why = self.set_own(setting, value).err()?;
        Some(raise("22023", &why, ""))
    }

    /// The unnamed statement, if there is one and it is about our own settings.
    pub(super) fn own_unnamed(&self) -> Option<Own> {
        if self.unnamed.is_empty() { None } else { self.unnamed_own.clone() }
    }
}

impl Session {
    /// Whether the request at hand is about our own settings and nothing else: it reads nothing that could be stale.
    /// Who may not read may still say that he wants to read otherwise.
    pub(super) fn asks_only_own(&self) -> bool {
        let (mut rest, mut is_over) = (&self.inbox[..], false);
        let mut asked = Asked { unnamed: self.own_unnamed().is_some(), ..Asked::default() };
        while !rest.is_empty() {
            let Ok(Some((tag, length))) = header(rest) else { return false };
            let Some(body) = rest.get(HEADER_BYTES..HEADER_BYTES + length) else { return false };
            rest = &rest[HEADER_BYTES + length..];
            if is_over || !asked.takes(tag, body, &self.prepared) {
                return false;
            }
            is_over = matches!(tag, b'Q' | b'S');
        }
        is_over
    }
}

/// What a request has prepared and bound so far.
#[derive(Default)]
struct Asked<'a> {
    unnamed: bool,
    named: Vec<&'a [u8]>,
    portals: Vec<&'a [u8]>,
}

impl<'a> Asked<'a> {
    /// Takes a message if it is only about our own settings.
    fn takes(
        &mut self,
        tag: u8,
        body: &'a [u8],
        prepared: &HashMap<Box<[u8]>, Rc<Statement>>,
    ) -> bool {
        let split = |bytes| split_text(bytes).unwrap_or((bytes, &[]));
        let (first, rest) = split(body);
        match tag {
            b'Q' => statement::own(first).is_some(),
            b'P' => {
                self.unnamed |= first.is_empty();
                self.named.push(first);
                statement::own(split(rest).0).is_some()
            }
            b'B' => {
                let name = split(rest).0;
                let is_own = |known: &Rc<Statement>| known.own.is_some();
                self.portals.push(first);
                match name.is_empty() {
                    true => self.unnamed,
                    false => self.named.contains(&name) || prepared.get(name).is_some_and(is_own),
                }
            }
            b'E' => self.portals.contains(&first),
            b'D' | b'C' | b'H' | b'S' => true,
            _ => false,
        }
    }
}

impl Up<'_, '_> {
    /// Takes such a statement of the simple protocol. Whether something else goes on in its place.
    pub(super) fn own(&mut self, text: &[u8], length: usize) -> bool {
        let Some(own) = statement::own(text) else { return false };
        let Some(sql) = self.session.own_sql(&own, self.server) else { return false };
        self.replace_query(&sql, length);
        true
    }

    /// Sends another Query in place of the one at hand.
    pub(super) fn replace_query(&mut self, sql: &str, length: usize) {
        self.splice.drop(self.at, self.at + HEADER_BYTES + length);
        put_message(self.splice.output(), b'Q', &[sql.as_bytes(), b"\0"]);
        self.at += HEADER_BYTES + length;
        self.session.unnamed.clear();
        self.server.unnamed = None;
        self.session.batch_open = false;
        self.server.expected.query();
    }

    /// Takes a Parse of the unnamed statement. Whether a stand-in goes on in its place.
    pub(super) fn parse_own_unnamed(&mut self, text: &[u8], length: usize) -> bool {
        let Facts { own, sent, .. } = facts(text);
        self.session.unnamed_own = own;
        let Some(body) = sent else { return false };
        self.session.unnamed.clone_from(&body);
        self.server.unnamed =
            Some((u64::from(self.session.entry.client.pid), self.session.unnamed_count));
        self.server.expected.parse(None);
        let whole = HEADER_BYTES + length;
        self.splice.drop(self.at, self.at + whole);
        self.at += whole;
        put_message(self.splice.output(), b'P', &[b"\0", &body]);
        true
    }

    /// Binds `sql` in place of a client's statement: `values` bytes of its Bind's body are the names.
    pub(super) fn bind_own(&mut self, portal: &[u8], sql: &str, length: usize, values: usize) {
        let begin = self.at + HEADER_BYTES;
        self.splice.drop(self.at, begin + values);
        let out = self.splice.output();
        put_message(out, b'C', &[b"S", ANSWER, b"\0"]);
        put_message(out, b'P', &[ANSWER, b"\0", sql.as_bytes(), b"\0\0\0"]);
        out.put_u8(b'B');
        let names = portal.len() + ANSWER.len() + 2;
        out.put_u32((length - values + names + 4) as u32);
        out.put_slice(portal);
        out.put_u8(0);
        out.put_slice(ANSWER);
        out.put_u8(0);
        self.server.expected.evicted();
        self.server.expected.answer();
        self.at = begin + values;
        self.session.passing = length - values;
    }
}
