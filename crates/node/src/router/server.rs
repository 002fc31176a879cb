//! A connection to a node's PostgreSQL server: opening it as a client's role, and what is known of its session.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Buf as _, Bytes, BytesMut};
use postgres_protocol::message::frontend as sasl;
use synapsedb_core::ids::NodeId;
use synapsedb_pg::scram::{Channel, ClientExchange, Keys};
use synapsedb_pg::wire::{backend, frontend};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::expected::{Expected, StatementId};
use super::settings::Settings;
use super::socket::Socket;
use super::{Shared, startup};

/// The longest message of a login; PostgreSQL's are far shorter.
const LOGIN_MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Where a node's server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) node: NodeId,
    /// `host:port`.
    pub(super) tcp: String,
    /// Its unix socket, when it is beside this agent.
    pub(super) unix: Option<PathBuf>,
}

/// What lets somebody cancel what a server connection works on.
#[derive(Clone, Debug)]
pub(super) struct CancelKey {
    pub(super) address: Rc<Address>,
    /// The body of BackendKeyData: process id and secret.
    pub(super) data: Bytes,
    /// When the session was opened.
    pub(super) since: SystemTime,
}

/// What a server connection has prepared under our names, by the time of its last use.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    used: HashMap<StatementId, u64>,
    clock: u64,
}

impl Prepared {
    /// Whether it is there; it counts as used now.
    pub(super) fn touch(&mut self, id: StatementId) -> bool {
        self.clock += 1;
        match self.used.get_mut(&id) {
            Some(used) => {
                *used = self.clock;
                true
            }
            None => false,
        }
    }

    /// Adds one; the one that went unused for longest goes when there are more than `max`.
    pub(super) fn add(&mut self, id: StatementId, max: usize) -> Option<StatementId> {
        self.clock += 1;
        self.used.insert(id, self.clock);
        if self.used.len() <= max.max(1) {
            return None;
        }
        let others = self.used.iter().filter(|(other, _)| **other != id);
        let oldest = others.min_by_key(|(_, used)| **used).map(|(id, _)| *id);
        if let Some(oldest) = oldest {
            self.used.remove(&oldest);
        }
        oldest
    }

    pub(super) fn remove(&mut self, id: StatementId) {
        self.used.remove(&id);
    }

    pub(super) fn count(&self) -> usize {
        self.used.len()
    }

    pub(super) fn clear(&mut self) {
        self.used.clear();
    }
}

/// An open session on a server.
pub(super) struct Server {
    pub(super) io: Socket,
    pub(super) cancel: CancelKey,
    /// What its startup packet set: the values that RESET goes back to.
    pub(super) startup: Rc<Settings>,
    /// The settings that differ from those of a new session without startup settings.
    pub(super) applied: Rc<Settings>,
    /// Whether its transactions are read-only by a setting of the router's own, which is not in `applied`.
    pub(super) guarded: bool,
    /// What it has reported (ParameterStatus).
    pub(super) reported: Rc<Settings>,
    /// What it had reported when it was opened: the values that RESET goes back to.
    pub(super) reported_first: Rc<Settings>,
    pub(super) prepared: Prepared,
    /// Whose unnamed statement it has: the client's number, and its count of unnamed statements.
    pub(super) unnamed: Option<(u64, u64)>,
    pub(super) expected: Expected,
    /// As in the last ReadyForQuery.
    pub(super) status: u8,
    /// Read, and the end of its message is still to come.
    pub(super) inbox: Vec<u8>,
    /// Sent by the client and not taken yet.
    pub(super) unsent: Vec<u8>,
    /// So much of a message's body is still to be passed on to the client.
    pub(super) passing: usize,
    /// Notifications that came while the router asked something of its own.
    pub(super) heard: Vec<Bytes>,
    /// The ErrorResponse with which it ends the session.
    pub(super) fatal: Option<Bytes>,
    pub(super) opened: Instant,
    /// When it was last given back.
    pub(super) used: Instant,
}

impl Server {
    pub(super) fn node(&self) -> NodeId {
        self.cancel.address.node
    }

    /// Whether it can be lent as it is.
    pub(super) fn is_as(&self, wanted: &Rc<Settings>, guarded: bool) -> bool {
        Rc::ptr_eq(&self.applied, wanted) && self.guarded == guarded
    }

    /// Whether nothing is due and nothing is half said.
    pub(super) fn is_quiet(&self) -> bool {
        self.expected.is_settled()
            && self.passing == 0
            && self.unsent.is_empty()
            && self.inbox.is_empty()
    }

    /// Runs statements of the router's own by the simple protocol while nothing else is due; the rows, in text.
    ///
    /// # Errors
    /// The connection broke, or the server's error.
    pub(super) async fn ask(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, AskError> {
        let mut request = BytesMut::new();
        frontend::query(&mut request, sql)
            .map_err(|error| AskError::Broken(io::Error::other(error.to_string())))?;
        self.io.say(&request).await.map_err(AskError::Broken)?;
        let (mut rows, mut failed) = (Vec::new(), None);
        let mut buffer = BytesMut::from(std::mem::take(&mut self.inbox).as_slice());
        loop {
            let (tag, body) = next_message(&mut self.io, &mut buffer, usize::MAX)
                .await
                .map_err(AskError::Broken)?;
            match tag {
                backend::DATA_ROW => rows.push(row(&body).map_err(AskError::Broken)?),
                backend::ERROR_RESPONSE => {
                    failed = startup::error_field(&body, b'M').map(str::to_owned);
                    self.note_last_words(&body);
                }
                backend::PARAMETER_STATUS => self.note_parameter(&body),
                backend::NOTIFICATION_RESPONSE => self.heard.push(body),
                backend::READY_FOR_QUERY => {
                    self.status = body.first().copied().unwrap_or(b'I');
                    self.hear(&mut buffer);
                    return failed.map_or(Ok(rows), |text| Err(AskError::Refused(text)));
                }
                _ => {}
            }
        }
    }

    /// Takes the notifications that came behind an answer; whatever else did is kept for whoever reads next.
    fn hear(&mut self, buffer: &mut BytesMut) {
        while buffer.first() == Some(&backend::NOTIFICATION_RESPONSE)
            && let Some(&[_, a, b, c, d]) = buffer.first_chunk()
            && let length @ 4.. = u32::from_be_bytes([a, b, c, d]) as usize
            && buffer.len() > length
        {
            self.heard.push(buffer.split_to(length + 1).freeze().slice(5..));
        }
        self.inbox = buffer.to_vec();
    }

    /// Takes note of an ErrorResponse body with which the server ends the session.
    fn note_last_words(&mut self, body: &[u8]) {
        if matches!(startup::error_field(body, b'V'), Some("FATAL" | "PANIC")) {
            let mut message = Vec::new();
            startup::put_message(&mut message, backend::ERROR_RESPONSE, &[body]);
            self.fatal = Some(message.into());
        }
    }

    /// Takes note of a ParameterStatus body.
    fn note_parameter(&mut self, body: &[u8]) {
        if let Ok((name, value)) = backend::parameter_status(body) {
            Rc::make_mut(&mut self.reported).insert(name.to_owned(), value.to_owned());
        }
    }
}

/// Why a statement of the router's own did not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    #[error("{0}")]
    Refused(String),
}

/// The fields of a DataRow in text.
fn row(body: &Bytes) -> io::Result<Vec<Option<String>>> {
    let row = backend::Row::parse(body)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    let text = |value: &Bytes| String::from_utf8_lossy(value).into_owned();
    Ok(row.values().iter().map(|value| value.as_ref().map(text)).collect())
}

/// Why a node's server cannot be used now.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{address} cannot be reached: {why}")]
    Unreachable { address: String, why: String },
    #[error("{address} answered: {text}")]
    Refused { address: String, text: String, sqlstate: String, raw: Bytes },
}

impl ConnectError {
    /// Whether another node, or the same a moment later, may well answer otherwise.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            // It starts or stops, or is full.
            Self::Refused { sqlstate, .. } => sqlstate == "57P03" || self.is_too_many(),
        }
    }

    /// Whether the server has too many connections, be it in all, of the role or of the database.
    pub(super) fn is_too_many(&self) -> bool {
        matches!(self, Self::Refused { sqlstate, .. } if sqlstate == "53300")
    }
}

/// A login's outcome: the session, and what the server said that a client should see.
pub(super) struct Opened {
    pub(super) server: Server,
    /// NoticeResponses, as they came.
    pub(super) notices: Vec<u8>,
}

/// Opens a session with this startup packet; the role is authenticated with what its client has proved.
///
/// # Errors
/// [`ConnectError`].
pub(super) async fn open(
    address: &Rc<Address>,
    parameters: &[(String, String)],
    keys: Option<&Arc<Keys>>,
    shared: &Shared,
) -> Result<Opened, ConnectError> {
    let patience = Duration::from_millis(shared.config().connect_timeout_ms);
    match timeout(patience, login(address, parameters, keys, shared)).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let why = format!("no answer within {patience:?}");
            Err(ConnectError::Unreachable { address: address.tcp.clone(), why })
        }
    }
}

async fn login(
    address: &Rc<Address>,
    parameters: &[(String, String)],
    keys: Option<&Arc<Keys>>,
    shared: &Shared,
) -> Result<Opened, ConnectError> {
    let unreachable = |why: String| ConnectError::Unreachable { address: address.tcp.clone(), why };
    let broken = |error: io::Error| unreachable(error.to_string());
    let mut io = shared.dialer.connect(address).await.map_err(broken)?;
    let end_point = io.end_point_of_server();
    let mut out = BytesMut::new();
    let pairs = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    frontend::startup(&mut out, pairs).map_err(|error| unreachable(error.to_string()))?;
    io.say(&out).await.map_err(broken)?;

    let mut buffer = BytesMut::new();
    let mut exchange = None;
    let (mut reported, mut notices, mut data) = (Settings::new(), Vec::new(), Bytes::new());
    loop {
        let (tag, body) =
            next_message(&mut io, &mut buffer, LOGIN_MESSAGE_BYTES_MAX).await.map_err(broken)?;
        match tag {
            backend::AUTHENTICATION => {
                out.clear();
                answer(&body, keys, &end_point, &mut exchange, &mut out).map_err(unreachable)?;
                io.say(&out).await.map_err(broken)?;
            }
            backend::PARAMETER_STATUS => {
                let pair = backend::parameter_status(&body);
                reported.extend(pair.map(|(name, value)| (name.to_owned(), value.to_owned())));
            }
            backend::BACKEND_KEY_DATA => data = body,
            backend::NOTICE_RESPONSE => startup::put_message(&mut notices, tag, &[&body]),
            backend::ERROR_RESPONSE if exchange.is_some() => {
                return Err(
                    not_the_server(address, &body).unwrap_or_else(|| refused(address, &body))
                );
            }
            backend::ERROR_RESPONSE => return Err(refused(address, &body)),
            backend::READY_FOR_QUERY => {
                let since = SystemTime::now();
                let cancel = CancelKey { address: Rc::clone(address), data, since };
                return Ok(Opened { server: new(io, cancel, reported), notices });
            }
            _ => {}
        }
    }
}

fn new(io: Socket, cancel: CancelKey, reported: Settings) -> Server {
    let (now, none) = (Instant::now(), Rc::new(Settings::new()));
    let reported = Rc::new(reported);
    Server {
        io,
        cancel,
        startup: Rc::clone(&none),
        applied: none,
        guarded: false,
        reported_first: Rc::clone(&reported),
        reported,
        prepared: Prepared::default(),
        unnamed: None,
        expected: Expected::default(),
        status: b'I',
        inbox: Vec::new(),
        unsent: Vec::new(),
        passing: 0,
        heard: Vec::new(),
        fatal: None,
        opened: now,
        used: now,
    }
}

/// The server says that it is not the one at the other end of our TLS. Its words would puzzle a client whose own TLS is
/// in order.
fn not_the_server(address: &Address, body: &[u8]) -> Option<ConnectError> {
    (startup::error_field(body, b'C') == Some("28000")).then(|| {
        let text = startup::error_field(body, b'M').unwrap_or_default();
        let why = format!(
            "what answers there by TLS is not the server that knows the password (\"{text}\"): a proxy that ends TLS \
             stands in between, or an attacker; router.server_tls = \"off\" would not notice"
        );
        ConnectError::Unreachable { address: address.tcp.clone(), why }
    })
}

fn refused(address: &Address, body: &[u8]) -> ConnectError {
    let field = |tag| startup::error_field(body, tag).unwrap_or_default().to_owned();
    let mut raw = Vec::new();
    startup::put_message(&mut raw, backend::ERROR_RESPONSE, &[body]);
    ConnectError::Refused {
        address: address.tcp.clone(),
        text: field(b'M'),
        sqlstate: field(b'C'),
        raw: raw.into(),
    }
}

/// Answers a request for authentication.
fn answer(
    mut body: &[u8],
    keys: Option<&Arc<Keys>>,
    end_point: &Option<Vec<u8>>,
    exchange: &mut Option<ClientExchange>,
    out: &mut BytesMut,
) -> Result<(), String> {
    let kind = body.try_get_u32().map_err(|_| "it asked for nothing".to_owned())?;
    match kind {
        0 => {
            *exchange = None;
            Ok(())
        }
        10 => {
            let keys = keys.ok_or("it asks for a password, and the role has proved none")?;
            let offered: Vec<&[u8]> = body.split(|byte| *byte == 0).collect();
            let channel = Channel::choose(end_point.clone(), &offered)
                .ok_or("it offers no SCRAM-SHA-256, and nothing else is passed on")?;
            let begun = ClientExchange::new(Arc::clone(keys), channel, rand::random());
            sasl::sasl_initial_response(begun.mechanism(), &begun.first(), out)
                .map_err(|error| error.to_string())?;
            *exchange = Some(begun);
            Ok(())
        }
        11 => {
            let begun = exchange.as_mut().ok_or("it continued what had not begun")?;
            let reply = begun.reply(body).map_err(|error| error.to_string())?;
            sasl::sasl_response(&reply, out).map_err(|error| error.to_string())
        }
        12 => {
            let begun = exchange.as_ref().ok_or("it ended what had not begun")?;
            begun.verify(body).map_err(|error| error.to_string())
        }
        3 | 5 => {
            Err("it asks for a password in clear or by MD5; only scram-sha-256 is passed on: set \
                      password_encryption and the role's password anew"
                .to_owned())
        }
        other => {
            Err(format!("it asks for authentication by method {other}, which is not passed on"))
        }
    }
}

/// Reads one whole message: tag and body.
pub(super) async fn next_message(
    io: &mut Socket,
    buffer: &mut BytesMut,
    bytes_max: usize,
) -> io::Result<(u8, Bytes)> {
    loop {
        if let Some(&[tag, a, b, c, d]) = buffer.first_chunk() {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if length < 4 || length > bytes_max {
                let text = format!("a message of {length} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            if buffer.len() > length {
                let mut message = buffer.split_to(length + 1);
                message.advance(5);
                return Ok((tag, message.freeze()));
            }
        }
        if io.read_buf(buffer).await? == 0 {
            let text = "it closed the connection instead of answering";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
    }
}

/// Asks a server to cancel what a session works on. As in PostgreSQL nobody learns whether it hit anything.
pub(super) async fn cancel(key: &CancelKey, shared: &Shared) -> io::Result<()> {
    let patience = Duration::from_millis(shared.config().connect_timeout_ms);
    let sent = timeout(patience, async {
        let mut io = shared.dialer.connect(&key.address).await?;
        io.say(&startup::cancel_request(&key.data)).await?;
        // The server closes when it has acted; waiting for that keeps the order of cancel and next query.
        io.read(&mut [0; 1]).await
    });
    match sent.await {
        Ok(done) => done.map(drop),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_statement_that_went_unused_for_longest_goes() {
        let mut prepared = Prepared::default();
        assert_eq!(prepared.add(1, 2), None);
        assert_eq!(prepared.add(2, 2), None);
        assert!(prepared.touch(1));
        assert_eq!(prepared.add(3, 2), Some(2));
        assert!(prepared.touch(1) && prepared.touch(3) && !prepared.touch(2));
        prepared.remove(3);
        assert_eq!(prepared.add(4, 2), None);
    }

    #[test]
    fn rows_and_parameters_are_read_and_garbage_is_refused() {
        assert_eq!(
            row(&Bytes::from_static(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff")).unwrap(),
            [Some("a".to_owned()), None]
        );
        assert!(row(&Bytes::from_static(b"\0\x02\0\0\0\x09a")).is_err());
        assert_eq!(backend::parameter_status(b"TimeZone\0UTC\0").ok(), Some(("TimeZone", "UTC")));
        assert_eq!(backend::parameter_status(b"TimeZone\0UTC").ok(), None);
    }
}
