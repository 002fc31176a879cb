//! A client from its first byte to the moment in which it is a session: encryption, who it is, and what it may expect.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use synapsedb_pg::scram::{Keys, ScramError, ServerExchange, Verifier};
use synapsedb_pg::wire::startup as wire;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::account::Account;
use super::begun::{self, Begun};
use super::console::{self, Console};
use super::entry::{self, Entry};
use super::limits::Place;
use super::metrics::Refused;
use super::origin;
pub(super) use super::origin::Origin;
use super::roles::Role;
use super::session::Session;
use super::socket::Socket;
use super::startup::{self, Failure, FirstPacket, StartupError};
use super::worker::Worker;
use super::{Endpoint, certificate, listen, places};
use crate::tls::clients::Served;

/// A client may ask for GSSAPI, then for TLS, and must then begin.
const FIRST_PACKETS_MAX: usize = 3;
/// The longest message of a SASL exchange.
const SASL_BYTES_MAX: usize = 2_048;
/// The newest minor version of the protocol that is spoken, whatever the servers speak. All that 3.2 changed is that a
/// cancel key may have 4 to 256 bytes; ours have 4.
const MINOR_MAX: u16 = 2;

/// Serves a connection to its end. `starting` is its place among those that have not said who they are.
pub(super) async fn serve(
    worker: Rc<Worker>,
    endpoint: Endpoint,
    stream: TcpStream,
    starting: places::Taken,
) {
    // Boxed, so that an idle session does not keep what it took to come in.
    let welcome = Box::pin(come_in(worker, endpoint, stream, starting)).await;
    match welcome {
        Some(Welcome::Session(session)) => session.run().await,
        Some(Welcome::Console(console)) => Box::pin(console.run()).await,
        None => {}
    }
}

/// Finds out what a client wants and whether it may have it; `None` when that was all.
async fn come_in(
    worker: Rc<Worker>,
    endpoint: Endpoint,
    stream: TcpStream,
    starting: places::Taken,
) -> Option<Welcome> {
    let shared = Arc::clone(&worker.shared);
    if let Err(error) = listen::tune(&stream, shared.config().keepalive_ms) {
        tracing::debug!(endpoint = endpoint.name(), "a client vanished at once: {error}");
        return None;
    }
    let from = stream.peer_addr().ok();
    let patience = Duration::from_millis(shared.config().startup_timeout_ms);
    let Ok(greeted) = timeout(patience, greet(&worker, endpoint, stream)).await else {
        // As PostgreSQL does: a client that takes so long to say who it is is told nothing.
        shared.metrics.refused(endpoint, Refused::Slow);
        return None;
    };
    let ((client, shown), first) = greeted?;
    match first {
        First::Cancel { pid, key } => {
            drop(starting);
            super::cancel::pass_on(&worker, pid, key).await;
            client.part(b"", worker.farewell()).await;
            None
        }
        First::Session(startup) => {
            let arrival = Arrival { worker: Rc::clone(&worker), endpoint, client, shown, from };
            let welcomed = timeout(patience, arrival.welcome(startup)).await;
            drop(starting);
            welcomed.unwrap_or_else(|_| {
                shared.metrics.refused(endpoint, Refused::Slow);
                None
            })
        }
    }
}

/// What a client wants once encryption is settled.
enum First {
    Cancel { pid: u32, key: Bytes },
    Session(Startup),
}

/// What a client says of itself.
struct Startup {
    minor: u16,
    /// Without options of the protocol (`_pq_.`).
    parameters: Vec<(String, String)>,
    /// The protocol's options that it asked for.
    protocol_options: Vec<String>,
    /// Settings of the router's own, which are not among the parameters.
    begun: Begun,
}

impl Startup {
    fn new(minor: u16, parameters: Vec<(String, String)>) -> Self {
        let (options, mut parameters): (Vec<_>, Vec<_>) =
            parameters.into_iter().partition(|(name, _)| name.starts_with("_pq_."));
        let protocol_options = options.into_iter().map(|(name, _)| name).collect();
        let begun = begun::take(&mut parameters);
        Self { minor, parameters, protocol_options, begun }
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// What a client that asks for more of the protocol is told first: as PostgreSQL 18 does, the version that will be
    /// spoken, which is never newer than the one asked for.
    fn negotiation(&self) -> BytesMut {
        let mut out = BytesMut::new();
        if self.minor > MINOR_MAX || !self.protocol_options.is_empty() {
            let unknown: Vec<&str> = self.protocol_options.iter().map(String::as_str).collect();
            wire::negotiate_protocol_version(&mut out, self.minor.min(MINOR_MAX), &unknown);
        }
        out
    }

    /// Whether it wants a replication session.
    fn replicates(&self) -> bool {
        !matches!(
            self.parameter("replication"),
            None | Some("false" | "off" | "no" | "0" | "f" | "n" | "of")
        )
    }
}

/// Settles encryption and reads what the client wants; `None` if it was refused (and told so) or has gone.
async fn greet(
    worker: &Worker,
    endpoint: Endpoint,
    stream: TcpStream,
) -> Option<(certificate::Begun, First)> {
    let (mut client, mut shown) = certificate::begin(worker, endpoint, stream).await?;
    for _ in 0..FIRST_PACKETS_MAX {
        let packet = startup::read(&mut client, worker.shared.config().startup_bytes_max).await;
        match (packet, client) {
            (Ok(FirstPacket::Startup { minor, parameters, .. }), client) => {
                return Some(((client, shown), First::Session(Startup::new(minor, parameters))));
            }
            (Ok(FirstPacket::Cancel { pid, key }), client) => {
                return Some(((client, shown), First::Cancel { pid, key }));
            }
            (Ok(FirstPacket::Ssl), Socket::Tcp(stream)) => {
                (client, shown) = encrypt(worker, endpoint, stream).await?;
            }
            (Ok(FirstPacket::Gss), Socket::Tcp(mut stream)) => {
                stream.write_all(b"N").await.ok()?;
                client = Socket::Tcp(stream);
            }
            (Ok(FirstPacket::Ssl | FirstPacket::Gss), client) => {
                let error = StartupError::Layout("the connection is encrypted already");
                refuse_startup(worker, endpoint, client, &error).await;
                return None;
            }
            (Err(error), client) => {
                refuse_startup(worker, endpoint, client, &error).await;
                return None;
            }
        }
    }
    let error = StartupError::Layout("encryption was asked for again and again");
    refuse_startup(worker, endpoint, client, &error).await;
    None
}

async fn encrypt(
    worker: &Worker,
    endpoint: Endpoint,
    mut stream: TcpStream,
) -> Option<certificate::Begun> {
    if worker.shared.tls.is_none() {
        stream.write_all(b"N").await.ok()?;
        return Some((Socket::Tcp(stream), None));
    }
    stream.write_all(b"S").await.ok()?;
    certificate::encrypt(worker, endpoint, stream).await
}

async fn refuse_startup(worker: &Worker, endpoint: Endpoint, client: Socket, error: &StartupError) {
    // Whoever connects and goes without a word is a port probe, not worth a count.
    let Some(sqlstate) = error.sqlstate() else { return };
    let failure = Failure {
        sqlstate,
        message: error.to_string(),
        hint: "This port speaks PostgreSQL's protocol, version 3.".to_owned(),
    };
    worker.shared.metrics.refused(endpoint, Refused::Malformed);
    client.part(&failure.fatal(), worker.farewell()).await;
}

/// Why a client does not become a session, and what it is told; empty when it has gone.
pub(super) struct Turned {
    pub(super) why: Refused,
    pub(super) last: Bytes,
}

impl Turned {
    pub(super) fn new(why: Refused, failure: &Failure) -> Self {
        Self { why, last: failure.fatal() }
    }
}

fn gone(_: std::io::Error) -> Turned {
    Turned { why: Refused::Gone, last: Bytes::new() }
}

/// What a client has become.
enum Welcome {
    Session(Box<Session>),
    /// An operator's.
    Console(Box<Console>),
}

/// A client that has said what it wants.
struct Arrival {
    worker: Rc<Worker>,
    endpoint: Endpoint,
    client: Socket,
    /// The certificate that it was shown.
    shown: Option<Arc<Served>>,
    from: Option<SocketAddr>,
}

impl Arrival {
    /// Makes it a session, or tells it why not.
    async fn welcome(mut self, startup: Startup) -> Option<Welcome> {
        match self.admit(&startup).await {
            Ok(admitted) => Some(self.begin(&startup, admitted)),
            Err(turned) => {
                self.worker.shared.metrics.refused(self.endpoint, turned.why);
                self.client.part(&turned.last, self.worker.farewell()).await;
                None
            }
        }
    }

    async fn admit(&mut self, startup: &Startup) -> Result<Admitted, Turned> {
        let user = startup.parameter("user").ok_or_else(|| {
            let message = "no PostgreSQL user name specified in startup packet".to_owned();
            let failure = Failure { sqlstate: "28000", message, hint: String::new() };
            Turned::new(Refused::Malformed, &failure)
        })?;
        let database = startup.parameter("database").unwrap_or(user);
        let place = self.place(startup)?;
        self.refuse_the_agents_role(user)?;
        certificate::check(&self.worker.shared.config(), &self.client, user)
            .map_err(|failure| Turned::new(Refused::Password, &failure))?;
        let role = self.worker.roles.look_up(user, database).await.map_err(|why| {
            let failure = Failure {
                sqlstate: "57P03",
                message: format!("the password of role \"{user}\" cannot be checked: {why}"),
                hint: "Try again in a moment: the PostgreSQL server beside this agent does not answer."
                    .to_owned(),
            };
            Turned::new(Refused::NoNode, &failure)
        })?;
        let keys = self.authenticate(startup, user, role.as_ref()).await?;
        begun::check(&startup.begun, self.endpoint)
            .map_err(|failure| Turned::new(Refused::Malformed, &failure))?;
        if database == console::DATABASE {
            let may_change = console::admit(&self.worker, user, role.as_ref())?;
            return Ok(Admitted::Operator { user: user.to_owned(), may_change, place });
        }
        if self.worker.holds.borrow().refuses(database) {
            return Err(Turned::new(Refused::Server, &console::disabled(database)));
        }
        let account = self.worker.account(user, database);
        account.proved(keys);
        let shared = &self.worker.shared;
        let place = shared.counted.enter(&shared.config(), role.as_ref(), user, database, place);
        let place = place.map_err(|failure| Turned::new(Refused::TooManyClients, &failure))?;
        if let Some(role) = &role {
            account.begins_with(&role.defaults);
        }
        let known = role.is_some_and(|role| role.may_login && role.may_connect);
        let replicates = startup.replicates();
        if account.is_held() && account.origin(&startup.parameters).is_none() {
            console::wait_to_come_in(&self.worker, &account).await?;
        }
        let wish = origin::Wish { endpoint: self.endpoint, known, replicates };
        let (origin, greeting) =
            origin::find(&self.worker, &account, &startup.parameters, wish).await?;
        Ok(Admitted::Client(Box::new(Client { account, origin, greeting, place })))
    }

    /// One of the `clients_max` places.
    fn place(&self, startup: &Startup) -> Result<places::Taken, Turned> {
        let shared = &self.worker.shared;
        if shared.draining.is_cancelled() {
            let draining = super::ending::draining();
            return Err(Turned::new(Refused::Draining, &draining));
        }
        let max = shared.config().clients_max;
        shared.clients.take(max).ok_or_else(|| {
            tracing::debug!(user = startup.parameter("user"), "no place for a client");
            let failure = Failure {
                sqlstate: "53300",
                message: format!(
                    "sorry, too many clients already: this agent serves {max} at once"
                ),
                hint: "Close sessions that are not in use, or raise router.clients_max.".to_owned(),
            };
            Turned::new(Refused::TooManyClients, &failure)
        })
    }

    /// The agent's superuser comes from this machine and past the router only, as pg_hba.conf says.
    fn refuse_the_agents_role(&self, user: &str) -> Result<(), Turned> {
        let local = self.worker.shared.local.as_ref();
        if local.is_none_or(|local| local.reserved.as_deref() != Some(user)) {
            return Ok(());
        }
        let failure = Failure {
            sqlstate: "28000",
            message: format!(
                "role \"{user}\" is the agent's own and may not connect through the router"
            ),
            hint: "Use a role of your own.".to_owned(),
        };
        Err(Turned::new(Refused::Password, &failure))
    }

    /// Has the client prove that it is the role, by SCRAM-SHA-256.
    async fn authenticate(
        &mut self,
        startup: &Startup,
        user: &str,
        role: Option<&Role>,
    ) -> Result<Keys, Turned> {
        let shared = Arc::clone(&self.worker.shared);
        let verifier = role.and_then(|role| Verifier::parse(role.verifier.as_deref()?));
        let verifier = verifier.unwrap_or_else(|| Verifier::mock(user, &shared.mock_secret));
        let end_point = match &self.client {
            Socket::Tls(_) => self.shown.as_ref().and_then(|shown| shown.end_point.clone()),
            Socket::Tcp(_) | Socket::Unix(_) => None,
        };
        let mut exchange = ServerExchange::new(verifier, end_point, rand::random());
        let mut out = startup.negotiation();
        wire::authentication_sasl(&mut out, exchange.mechanisms());
        self.client.say(&out).await.map_err(gone)?;

        let first = self.sasl_message().await?;
        let refused = |error: ScramError| Wrong::of(error, user);
        let outcome = match sasl_initial(&first) {
            Some((mechanism, data)) => exchange.first(mechanism, data).map_err(refused),
            None => Err(Wrong::malformed("malformed SASLInitialResponse")),
        };
        let reply = self.or_slowly(outcome).await?;
        out.clear();
        wire::authentication_sasl_continue(&mut out, &reply);
        self.client.say(&out).await.map_err(gone)?;

        let last = self.sasl_message().await?;
        let outcome = exchange.finish(&last).map_err(refused);
        let (reply, keys) = self.or_slowly(outcome).await?;
        out.clear();
        wire::authentication_sasl_final(&mut out, &reply);
        wire::authentication_ok(&mut out);
        self.client.say(&out).await.map_err(gone)?;
        Ok(keys)
    }

    /// A failed login is answered late, so that guessing takes time.
    async fn or_slowly<T>(&self, outcome: Result<T, Wrong>) -> Result<T, Turned> {
        match outcome {
            Ok(done) => Ok(done),
            Err(Wrong { failure, guess }) => {
                if guess {
                    let delay = self.worker.shared.config().failed_login_delay_ms;
                    tokio::time::sleep(Duration::from_millis(delay)).await;
                }
                let why = if guess { Refused::Password } else { Refused::Malformed };
                Err(Turned::new(why, &failure))
            }
        }
    }

    /// The body of the next message, which must be one of a SASL exchange.
    async fn sasl_message(&mut self) -> Result<Vec<u8>, Turned> {
        let mut header = [0; 5];
        self.client.read_exact(&mut header).await.map_err(gone)?;
        let [tag, length @ ..] = header;
        let length = u32::from_be_bytes(length) as usize;
        if tag != b'p' || !(4..=SASL_BYTES_MAX).contains(&length) {
            let wrong = Wrong::malformed("expected SASL response");
            return Err(Turned::new(Refused::Malformed, &wrong.failure));
        }
        let mut body = vec![0; length - 4];
        self.client.read_exact(&mut body).await.map_err(gone)?;
        Ok(body)
    }

    fn begin(self, startup: &Startup, admitted: Admitted) -> Welcome {
        let worker = self.worker;
        let pid = worker.next_pid();
        let (user, database) = match &admitted {
            Admitted::Client(client) => (&client.account.user, client.account.database.as_str()),
            Admitted::Operator { user, .. } => (user, console::DATABASE),
        };
        let client = entry::Client {
            pid,
            endpoint: self.endpoint,
            user: user.to_owned(),
            database: database.to_owned(),
            application: startup.parameter("application_name").unwrap_or_default().to_owned(),
            address: self.from,
            tls: matches!(self.client, Socket::Tls(_)),
            since: SystemTime::now(),
        };
        let entry = Rc::new(Entry::new(client, rand::random()));
        worker.sessions.borrow_mut().insert(pid, Rc::clone(&entry));
        worker.shared.metrics.opened(self.endpoint);
        match admitted {
            Admitted::Client(client) => {
                let Client { account, origin, greeting, place } = *client;
                entry.dedicated.set(origin.dedicated.is_some());
                let mut session =
                    Session::new(worker, self.client, account, origin, entry, greeting, place);
                session.begin_with(startup.begun.clone());
                Welcome::Session(Box::new(session))
            }
            Admitted::Operator { may_change, place, .. } => Welcome::Console(Box::new(
                Console::new(worker, self.client, entry, may_change, place),
            )),
        }
    }
}

/// A client that may come in.
enum Admitted {
    Client(Box<Client>),
    /// Somebody who asks for the console.
    Operator {
        user: String,
        may_change: bool,
        place: places::Taken,
    },
}

/// A client, and what its startup packet comes to.
struct Client {
    account: Rc<Account>,
    origin: Rc<Origin>,
    greeting: origin::Greeting,
    place: Place,
}

/// A login that failed.
struct Wrong {
    failure: Failure,
    /// It may be somebody who guesses passwords.
    guess: bool,
}

impl Wrong {
    fn of(error: ScramError, user: &str) -> Self {
        if error.sqlstate() != "28P01" {
            return Self::malformed(&error.to_string());
        }
        let message = format!("password authentication failed for user \"{user}\"");
        Self { failure: Failure { sqlstate: "28P01", message, hint: String::new() }, guess: true }
    }

    fn malformed(what: &str) -> Self {
        let failure = Failure { sqlstate: "08P01", message: what.to_owned(), hint: String::new() };
        Self { failure, guess: false }
    }
}

/// Mechanism and data of a SASLInitialResponse.
fn sasl_initial(body: &[u8]) -> Option<(&str, &[u8])> {
    let end = body.iter().position(|&byte| byte == 0)?;
    let mechanism = std::str::from_utf8(&body[..end]).ok()?;
    let (length, data) = body[end + 1..].split_first_chunk::<4>()?;
    (i32::from_be_bytes(*length) == data.len() as i32).then_some((mechanism, data))
}
