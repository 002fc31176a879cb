//! The split endpoint: each request outside a transaction, and each transaction by its first one, goes to a reader or
//! to the primary. What was taken for a read runs where the server refuses to write; when it wants to all the same, it
//! is run again on the primary before the client has seen anything of it.
//!
//! On a reader one request at a time is under way: what the client has sent behind it waits until it is known whether
//! that goes there too.

mod kept;
mod names;
mod request;
mod verdict;

use std::rc::Rc;
use std::sync::atomic::Ordering;

use synapsedb_core::ids::NodeId;
use synapsedb_pg::sql::reads::touches_read_only;
use synapsedb_pg::sql::traits::Flags;

use super::Endpoint;
use super::entry::Route;
use super::server::Server;
use super::session::{Lent, Session};
use super::startup::{self, Failure, second_text, split_text};
use super::statements;
use super::turn::Turns;
pub(super) use names::Names;
use names::{Asker, Database, Fresh, Known};
use request::messages;
pub(super) use request::{Extent, extent};
use verdict::{Decision, Why, decide};
pub(super) use verdict::{Hint, Judged};

/// "cannot execute … in a read-only transaction"
const READ_ONLY: &str = "25006";

/// What is known of a session whose requests do not all go where its endpoint leads.
pub(super) struct Split {
    /// Its database, if it is of the split endpoint.
    database: Option<Rc<Database>>,
    /// `synapsedb.route`, as it was set.
    hint: Option<Hint>,
    /// The length of the request at hand, in bytes.
    length: usize,
    /// The request at hand is the one that was taken for a read and wanted to write.
    misjudged: bool,
    /// So many of its statements had been answered then.
    completed: u32,
    /// Where the last request went that was not about the router's own settings.
    writes: bool,
    why: Option<Why>,
    node: Option<NodeId>,
}

impl Split {
    fn new(database: Option<Rc<Database>>) -> Self {
        Self {
            database,
            hint: None,
            length: 0,
            misjudged: false,
            completed: 0,
            writes: false,
            why: None,
            node: None,
        }
    }

    /// Of a session that comes in at this endpoint.
    pub(super) fn at(endpoint: Endpoint, names: &Names, database: &str) -> Option<Box<Self>> {
        match endpoint {
            Endpoint::Split => Some(Box::new(Self::new(Some(names.of(database))))),
            Endpoint::Read | Endpoint::Write => None,
        }
    }
}

impl Session {
    /// Whether reads may go to another node than where the session writes.
    pub(super) fn may_read_elsewhere(&self) -> bool {
        self.entry.client.endpoint != Endpoint::Write && !self.entry.route.get().guarded
    }

    /// Whether the transaction at hand makes no home of its node: it went there to write.
    pub(super) fn roams(&self) -> bool {
        let writes = self.entry.route.get().to == Endpoint::Write;
        writes && self.entry.client.endpoint == Endpoint::Split
    }

    /// Whether the request in the inbox is there as far as it must be before it is sent anywhere.
    pub(super) fn is_request_there(&self) -> bool {
        let max = self.worker.shared.config().query_bytes_max;
        extent(&self.inbox, max) != Extent::Partial
    }

    /// Whether requests must be there as a whole before they are sent anywhere.
    pub(super) fn is_judged(&self) -> bool {
        self.split.as_ref().is_some_and(|split| split.database.is_some())
    }

    /// The value that `synapsedb.route` was set to.
    pub(super) fn hint(&self) -> Option<Hint> {
        self.split.as_ref().and_then(|split| split.hint)
    }

    /// Sets `synapsedb.route`, or takes back what was set.
    ///
    /// # Errors
    /// It cannot be followed at this endpoint: why.
    pub(super) fn set_hint(&mut self, hint: Option<Hint>) -> Result<(), String> {
        hint.map_or(Ok(()), |hint| hint.check_at(self.entry.client.endpoint))?;
        match &mut self.split {
            Some(split) => split.hint = hint,
            None if hint.is_none() => {}
            None => {
                let mut split = Split::new(None);
                split.hint = hint;
                self.split = Some(Box::new(split));
            }
        }
        Ok(())
    }

    /// Finds out where the request at hand goes.
    ///
    /// # Errors
    /// What the client has said of it is wrong: what it is told.
    pub(super) async fn find_route(&mut self) -> Result<(), Failure> {
        match self.route_now()? {
            true => Ok(()),
            false => Box::pin(self.route_later()).await,
        }
    }

    /// Finds out where the request in the inbox goes. Whether that is known: if not, the functions of the database must
    /// be asked for first.
    ///
    /// # Errors
    /// What the client has said of it is wrong: what it is told.
    fn route_now(&mut self) -> Result<bool, Failure> {
        let Some(database) = self.split.as_ref().and_then(|split| split.database.clone()) else {
            self.follow_hint();
            return Ok(true);
        };
        let known = match database.fresh(&self.worker.shared) {
            Fresh::Yes(known) => known,
            Fresh::Aging(known) => {
                database.learn_later(&self.worker, self.asker());
                known
            }
            Fresh::No => return Ok(false),
        };
        self.route_by(&database, &known).map(|()| true)
    }

    /// Asks for the functions of the database, and finds out where the request goes.
    ///
    /// # Errors
    /// As [`route_now`](Self::route_now).
    async fn route_later(&mut self) -> Result<(), Failure> {
        let Some(database) = self.split.as_ref().and_then(|split| split.database.clone()) else {
            return Ok(());
        };
        let learns = Rc::clone(&database).learn(Rc::clone(&self.worker), self.asker());
        // In a task of its own: a connection that is lent for it comes back whatever becomes of us.
        let _ = tokio::task::spawn_local(learns).await;
        match database.known() {
            Some(known) => self.route_by(&database, &known),
            None => {
                self.go(Decision::write(Why::Said("the functions of the database are not known")));
                Ok(())
            }
        }
    }

    fn asker(&self) -> Asker {
        Asker {
            account: Rc::clone(&self.account),
            origin: Rc::clone(&self.origin),
            wanted: Rc::clone(&self.wanted),
        }
    }

    /// A session of the other endpoints goes where it was told to, whatever it says.
    fn follow_hint(&mut self) {
        let (mut route, mut only) = (Route::at(self.entry.client.endpoint), None);
        match self.hint() {
            Some(Hint::Write) => route.to = Endpoint::Write,
            Some(Hint::Node(node)) => only = Some(node),
            Some(Hint::Read) | None => {}
        }
        self.reading.only = only;
        self.entry.route.set(route);
    }

    fn route_by(&mut self, database: &Database, known: &Known) -> Result<(), Failure> {
        let misjudged =
            self.split.as_mut().is_some_and(|split| std::mem::take(&mut split.misjudged));
        if misjudged {
            self.go(Decision::write(Why::Said("it wanted to write when it was taken for a read")));
            return Ok(());
        }
        let max = self.worker.shared.config().query_bytes_max;
        let Extent::Whole(length) = extent(&self.inbox, max) else {
            self.go(Decision::write(Why::Said("it was not there as a whole")));
            return Ok(());
        };
        let mut judged = Vec::new();
        let mut other = None;
        let mut parsed: Vec<&[u8]> = Vec::new();
        for (tag, body) in messages(&self.inbox[..length]) {
            match tag {
                b'Q' => {
                    judged.push(database.judge(known, body.strip_suffix(b"\0").unwrap_or(body)))
                }
                b'P' => {
                    let (name, rest) = split_text(body).unwrap_or((b"", body));
                    parsed.push(name);
                    judged.push(database.judge(known, statements::text(rest)));
                }
                b'B' => {
                    let name = second_text(body).unwrap_or_default();
                    if !parsed.contains(&name) {
                        judged.extend(self.judged_statement(database, known, name));
                    }
                }
                b'D' | b'C' | b'E' | b'S' => {}
                _ => other = Some(Why::Said("it is a function call by its number, or a copy")),
            }
        }
        let session = verdict::Session { hint: self.hint(), reads_only: self.reads_only() };
        let decided = decide(&judged, session);
        let mut decision = decided.map_err(|message| {
            let hint = "Nothing was sent to a server.".to_owned();
            Failure { sqlstate: "22023", message, hint }
        })?;
        if let Some(why) = other {
            decision = Decision::write(why);
        }
        self.go(decision);
        if let Some(split) = &mut self.split {
            split.length = length;
        }
        Ok(())
    }

    /// How a statement that was prepared before was judged.
    fn judged_statement(
        &self,
        database: &Database,
        known: &Known,
        name: &[u8],
    ) -> Option<Rc<Judged>> {
        if name.is_empty() {
            if let Some(text) = self.unnamed_text().filter(|_| self.unnamed_own.is_none()) {
                return Some(database.judge(known, text));
            }
            return None;
        }
        let statement = self.prepared.get(name)?;
        if let Some((stamp, judged)) = &*statement.judged.borrow()
            && *stamp == known.stamp
        {
            return Some(Rc::clone(judged));
        }
        if statement.own.is_some() {
            return None;
        }
        let judged = database.judge(known, statements::text(&statement.body));
        *statement.judged.borrow_mut() = Some((known.stamp, Rc::clone(&judged)));
        Some(judged)
    }

    fn unnamed_text(&self) -> Option<&[u8]> {
        let text = statements::text(&self.unnamed);
        (!text.is_empty()).then_some(text)
    }

    /// Whether the session's transactions only read, unless they say otherwise.
    fn reads_only(&self) -> bool {
        self.reported.get("default_transaction_read_only").is_some_and(|value| value == "on")
    }

    fn go(&mut self, decision: Decision) {
        let Decision { writes, is_guess, only, why } = decision;
        let to = if writes { Endpoint::Write } else { Endpoint::Read };
        self.entry.route.set(Route { to, guarded: !writes });
        self.reading.only = only;
        self.turns =
            Turns { one_by_one: !writes, is_guess: !writes && is_guess, ..Turns::default() };
        if let (Some(split), Some(why)) = (&mut self.split, why) {
            (split.writes, split.why, split.node) = (writes, Some(why), None);
        }
    }

    /// The session has got a connection for the request at hand.
    pub(super) fn went_to(&mut self, node: NodeId) {
        if let Some(split) = &mut self.split {
            split.node = split.node.or(Some(node));
        }
    }

    /// Where the last request of a session went whose requests are judged, and why.
    pub(super) fn last_split(&self) -> Option<String> {
        let split = self.split.as_ref().filter(|split| split.database.is_some())?;
        if let Some(pin) = self.entry.pin.get() {
            let node = self.entry.current.borrow().as_ref().map(|key| key.address.node);
            let node = node.map_or(String::new(), |node| format!("node {node}: "));
            return Some(format!("{node}the session keeps its connection: {pin}"));
        }
        let Some(why) = &split.why else { return Some("nothing was sent yet".to_owned()) };
        let kind = if split.writes { "write" } else { "read" };
        let node = split.node.map_or(String::new(), |node| format!("node {node}: "));
        Some(format!("{node}{kind}: {why}"))
    }

    /// The bytes of the request at hand, at the front of `data`.
    pub(super) fn request<'a>(&self, data: &'a [u8]) -> &'a [u8] {
        let length =
            self.split.as_ref().filter(|_| self.turns.one_by_one).map(|split| split.length);
        length.and_then(|length| data.get(..length)).unwrap_or(data)
    }

    /// An error came. Whether it is the client's no more: what it answers is run again on the primary.
    pub(super) fn takes_back(&mut self, server: &Server, body: &[u8]) -> bool {
        if !self.turns.is_guess || startup::error_field(body, b'C') != Some(READ_ONLY) {
            return false;
        }
        self.worker.shared.metrics.misjudged();
        let possible = self.repeat.is_possible() && server.status == b'I' && !self.keeps_server();
        if let Some(split) = &mut self.split {
            split.completed = self.completed;
        }
        self.remember_write();
        self.turns.is_misjudged = possible;
        possible
    }

    /// The text that has just turned out to write is not taken for a read again.
    fn remember_write(&self) {
        let Some(split) = &self.split else { return };
        let Some(database) = &split.database else { return };
        let mut texts: Vec<Vec<u8>> = Vec::new();
        let mut parsed: Vec<(&[u8], &[u8])> = Vec::new();
        for (tag, body) in messages(self.repeat.bytes()) {
            match tag {
                b'Q' => texts.push(body.strip_suffix(b"\0").unwrap_or(body).to_vec()),
                b'P' => {
                    let (name, rest) = split_text(body).unwrap_or((b"", body));
                    parsed.push((name, statements::text(rest)));
                }
                b'B' => {
                    let name = second_text(body).unwrap_or_default();
                    let here = parsed.iter().rfind(|(parsed, _)| *parsed == name);
                    let before = || Some(statements::text(&self.prepared.get(name)?.body));
                    let text = here.map(|(_, text)| *text);
                    let text = match name.is_empty() {
                        true => text.or_else(|| self.unnamed_text()),
                        false => text.or_else(before),
                    };
                    texts.push(text.unwrap_or_default().to_vec());
                }
                _ => {}
            }
        }
        // Those before it were answered.
        let place = (split.completed as usize).min(texts.len().saturating_sub(1));
        if let Some(text) = texts.get(place) {
            database.wrote(text);
        }
        // What was prepared is judged again.
        self.used.iter().for_each(|statement| *statement.judged.borrow_mut() = None);
    }

    /// The answer that nobody gets has ended.
    pub(super) fn forget_parsed(&mut self) {
        self.parse_again();
        self.unprepared.clear();
    }

    /// Puts the request back that has turned out to write, for the primary.
    pub(super) fn run_again(&mut self, lent: Lent) {
        let mut inbox = self.repeat.take();
        inbox.append(&mut self.inbox);
        self.give_back(lent);
        self.inbox = inbox;
        self.turns = Turns::default();
        if let Some(split) = &mut self.split {
            split.misjudged = true;
        }
    }

    /// What a text that goes to a reader is answered with in its place, if it may not run there: it would leave there
    /// what must be on the primary, or would be let write.
    pub(super) fn refusal<'a>(
        &self,
        text: impl FnOnce() -> &'a [u8],
        traits: Flags,
    ) -> Option<String> {
        if !self.turns.one_by_one {
            return None;
        }
        let text = text();
        let leaves = traits.has(Flags::MAY_HOLD.with(Flags::SETS_UNNAMED));
        (leaves || may_set(text) && touches_read_only(text)).then(|| {
            super::own_statements::raise(
                "0A000",
                "this cannot run in a read-only transaction of the split endpoint: the transaction is on a reader, \
                 and what stays in the session, or may write, belongs to the primary",
                "Begin with /* synapsedb.route=write */ BEGIN, or set synapsedb.route = write.",
            )
        })
    }

    /// A transaction has ended: one that may have changed what functions and views there are is told to all.
    pub(super) fn note_definitions(&self) {
        if self.traits.has(Flags::DEFINES) {
            self.worker.shared.definitions.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Whether a text may have a SET, RESET, `set_config` or BEGIN in it.
fn may_set(text: &[u8]) -> bool {
    let has =
        |word: &[u8]| text.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word));
    has(b"set") || has(b"begin") || has(b"start")
}
