//! One client from its first byte to its last: greeting, choice of a node, passing on, and a proper end.

use std::sync::Arc;
use std::time::Duration;

use synapsedb_core::ids::NodeId;
use synapsedb_core::state::MemberStatus;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::backend::{self, Backend, ConnectError};
use super::choose::{Choice, Why, choose};
use super::client::Client;
use super::metrics::{EndedBy, Refused};
use super::relay::{Ended, Relay, Until};
use super::sessions::{End, Entry};
use super::startup::{self, Fatal, FirstPacket, Startup, StartupError};
use super::{Endpoint, Shared, listen};

/// A client may ask for GSSAPI, then for TLS, and must then begin.
const FIRST_PACKETS_MAX: usize = 3;

/// Serves a connection to its end. `starting` is its place among those that have not said who they are.
pub(super) async fn serve(
    shared: Arc<Shared>,
    endpoint: Endpoint,
    stream: TcpStream,
    starting: OwnedSemaphorePermit,
) {
    if let Err(error) = listen::tune(&stream, shared.config.keepalive_ms) {
        tracing::debug!(endpoint = endpoint.name(), "a client vanished at once: {error}");
        return;
    }
    let patience = Duration::from_millis(shared.config.startup_timeout_ms);
    let Ok(greeted) = timeout(patience, greet(&shared, stream)).await else {
        // As PostgreSQL does: a client that takes so long to say who it is is told nothing.
        shared.metrics.refused(Refused::Slow);
        return;
    };
    drop(starting);
    match greeted {
        Some((client, First::Session(startup))) => {
            session(&shared, endpoint, client, &startup).await;
        }
        Some((client, First::Cancel(request))) => {
            cancel_everywhere(&shared, &request).await;
            client.part(b"", farewell(&shared)).await;
        }
        None => {}
    }
}

/// What a client wants once encryption is settled.
enum First {
    Cancel(bytes::Bytes),
    Session(Startup),
}

/// Settles encryption and reads what the client wants; `None` if it was refused (and told so) or has gone.
async fn greet(shared: &Shared, stream: TcpStream) -> Option<(Client, First)> {
    let mut client = Client::Plain(stream);
    for _ in 0..FIRST_PACKETS_MAX {
        let packet = startup::read(&mut client, shared.config.startup_bytes_max).await;
        match (packet, client) {
            (Ok(FirstPacket::Startup(startup)), client) => {
                return Some((client, First::Session(startup)));
            }
            (Ok(FirstPacket::Cancel(request)), client) => {
                return Some((client, First::Cancel(request)));
            }
            (Ok(FirstPacket::Ssl), Client::Plain(stream)) => {
                client = encrypt(shared, stream).await?;
            }
            (Ok(FirstPacket::Gss), Client::Plain(mut stream)) => {
                stream.write_all(b"N").await.ok()?;
                client = Client::Plain(stream);
            }
            (Ok(FirstPacket::Ssl | FirstPacket::Gss), client @ Client::Tls(_)) => {
                let error = StartupError::Layout("the connection is encrypted already");
                refuse_startup(shared, client, &error).await;
                return None;
            }
            (Err(error), client) => {
                refuse_startup(shared, client, &error).await;
                return None;
            }
        }
    }
    let error = StartupError::Layout("encryption was asked for again and again");
    refuse_startup(shared, client, &error).await;
    None
}

async fn encrypt(shared: &Shared, mut stream: TcpStream) -> Option<Client> {
    let Some(tls) = &shared.tls else {
        stream.write_all(b"N").await.ok()?;
        return Some(Client::Plain(stream));
    };
    stream.write_all(b"S").await.ok()?;
    match tls.accept(stream).await {
        Ok(stream) => Some(Client::Tls(Box::new(stream))),
        Err(error) => {
            shared.metrics.refused(Refused::Tls);
            tracing::debug!("a client's TLS handshake failed: {error}");
            None
        }
    }
}

async fn refuse_startup(shared: &Shared, client: Client, error: &StartupError) {
    // Whoever connects and goes without a word is a port probe, not worth a count.
    let Some(sqlstate) = error.sqlstate() else { return };
    let fatal = Fatal {
        sqlstate,
        message: error.to_string(),
        hint: "This port speaks PostgreSQL's protocol, version 3.".to_owned(),
    };
    refuse(shared, client, Refused::Malformed, &fatal.encode()).await;
}

async fn refuse(shared: &Shared, client: Client, why: Refused, message: &[u8]) {
    shared.metrics.refused(why);
    client.part(message, farewell(shared)).await;
}

fn farewell(shared: &Shared) -> Duration {
    Duration::from_millis(shared.config.farewell_ms)
}

async fn session(shared: &Shared, endpoint: Endpoint, client: Client, startup: &Startup) {
    let Ok(_place) = Arc::clone(&shared.clients).try_acquire_owned() else {
        let fatal = Fatal {
            sqlstate: "53300",
            message: format!(
                "sorry, too many clients already: this agent serves {} at once",
                shared.config.clients_max
            ),
            hint: "Close sessions that are not in use, or raise router.clients_max.".to_owned(),
        };
        return refuse(shared, client, Refused::TooManyClients, &fatal.encode()).await;
    };
    let (entry, backend) = match reach(shared, endpoint, startup).await {
        Ok(reached) => reached,
        Err((why, message)) => return refuse(shared, client, why, &message).await,
    };
    shared.metrics.opened(endpoint);
    tracing::debug!(
        endpoint = endpoint.name(),
        node = %entry.node,
        user = startup.parameter("user"),
        database = startup.parameter("database"),
        "session opened"
    );
    let metrics = &shared.metrics;
    let address = backend.stream.peer_addr().ok();
    let (up, down) = (metrics.bytes_to_servers.clone(), metrics.bytes_to_clients.clone());
    let mut relay = Relay::new(client, backend, up, down);
    let finish = converse(shared, &mut relay, &entry).await;
    metrics.ended(finish.by);
    if finish.cancel
        && let (Some(address), Some(key_data)) = (address, relay.key_data())
    {
        let request = backend::cancel_request(&key_data);
        let _ = backend::cancel(&address.to_string(), &request, farewell(shared)).await;
    }
    let client = relay.into_client();
    drop(entry);
    client
        .part(&finish.tell.map(|fatal| fatal.encode()).unwrap_or_default(), farewell(shared))
        .await;
}

/// Connects to a node that can serve the session, waiting for one as long as the endpoint allows.
async fn reach<'a>(
    shared: &'a Shared,
    endpoint: Endpoint,
    startup: &Startup,
) -> Result<(Entry<'a>, Backend), (Refused, bytes::Bytes)> {
    let wait_ms = match endpoint {
        Endpoint::Read => shared.config.read_wait_ms,
        Endpoint::Write => shared.config.write_wait_ms,
    };
    let deadline = Instant::now() + Duration::from_millis(wait_ms);
    let mut state = shared.state.clone();
    loop {
        if shared.draining.is_cancelled() {
            return Err((Refused::Draining, end_of(End::Draining).encode()));
        }
        let choice = {
            let state = state.borrow_and_update();
            let view = shared.view.borrow();
            choose(endpoint, &state, &view, &shared.sessions.per_node(), shared.own)
        };
        let failure = match choice {
            Choice::Nobody(why) => Failure::Nobody(why),
            Choice::Try(targets) => {
                let mut failure = None;
                for target in targets {
                    match attempt(shared, endpoint, &target.address, target.node, startup).await {
                        Attempt::Reached(entry, backend) => return Ok((entry, backend)),
                        Attempt::Failed(error) => {
                            failure = Some(Failure::Connect(target.node, error));
                        }
                        Attempt::Overtaken => {
                            failure = None;
                            break;
                        }
                    }
                }
                match failure {
                    Some(failure) => failure,
                    None => continue,
                }
            }
        };
        if Instant::now() >= deadline || !failure.is_worth_waiting_for() {
            return Err(failure.told(endpoint));
        }
        let changed = async {
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = changed => {}
            () = shared.draining.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(shared.config.retry_ms)) => {}
        }
    }
}

enum Attempt<'a> {
    Reached(Entry<'a>, Backend),
    Failed(ConnectError),
    /// The primary changed meanwhile, or the agent is stopping: choose again.
    Overtaken,
}

async fn attempt<'a>(
    shared: &'a Shared,
    endpoint: Endpoint,
    address: &str,
    node: NodeId,
    startup: &Startup,
) -> Attempt<'a> {
    let entry = shared.sessions.open(endpoint, node);
    // Whoever changes the primary or stops the agent tells the sessions that are open then; this one is open from
    // now on, so that is either seen here or told by the signal.
    let elsewhere = endpoint == Endpoint::Write && shared.state.borrow().primary != Some(node);
    if elsewhere || shared.draining.is_cancelled() {
        return Attempt::Overtaken;
    }
    let opened = tokio::select! {
        opened = backend::open(address, &startup.raw, &shared.config) => opened,
        _ = entry.signal.raised() => return Attempt::Overtaken,
    };
    match opened {
        Ok(backend) => Attempt::Reached(entry, backend),
        Err(error) => {
            shared.metrics.connect_failure(node.get());
            tracing::debug!(%node, "a session could not be opened: {error}");
            Attempt::Failed(error)
        }
    }
}

/// Why no node was reached.
enum Failure {
    Nobody(Why),
    Connect(NodeId, ConnectError),
}

impl Failure {
    fn is_worth_waiting_for(&self) -> bool {
        match self {
            Self::Nobody(_) => true,
            Self::Connect(_, error) => error.is_worth_waiting_for(),
        }
    }

    /// What the client is told.
    fn told(self, endpoint: Endpoint) -> (Refused, bytes::Bytes) {
        let message = match &self {
            Self::Connect(_, ConnectError::Refused { raw, .. }) => {
                return (Refused::ServerNotNow, raw.clone());
            }
            Self::Nobody(why) => why.to_string(),
            Self::Connect(node, error) => match endpoint {
                Endpoint::Read => format!("no node could be reached; node {node}: {error}"),
                Endpoint::Write => format!("the primary, node {node}, takes no sessions: {error}"),
            },
        };
        let sqlstate = match (&self, endpoint) {
            (Self::Connect(..), Endpoint::Read) => "08006",
            (Self::Nobody(_), _) | (Self::Connect(..), Endpoint::Write) => "57P03",
        };
        let hint = match endpoint {
            Endpoint::Read => "Try again in a moment; `synapsedb status` shows the nodes.",
            Endpoint::Write => {
                "Try again in a moment: if the primary has failed, the cluster appoints another one. \
                 `synapsedb status` shows the nodes."
            }
        };
        (Refused::NoNode, Fatal { sqlstate, message, hint: hint.to_owned() }.encode())
    }
}

/// How to part from a client.
struct Finish {
    by: EndedBy,
    tell: Option<Fatal>,
    /// The server still works for a client that will not take the answer.
    cancel: bool,
}

impl Finish {
    fn quietly(by: EndedBy) -> Self {
        Self { by, tell: None, cancel: false }
    }
}

/// Passes bytes on until the session ends, by whomever.
async fn converse(shared: &Shared, relay: &mut Relay, entry: &Entry<'_>) -> Finish {
    let end = tokio::select! {
        ended = relay.run(Until::Forever) => return finish(shared, relay, entry.node, ended).await,
        end = entry.signal.raised() => end,
    };
    let (by, grace_ms) = match end {
        End::PrimaryChanged(_) => (EndedBy::PrimaryChanged, shared.config.primary_change_grace_ms),
        End::Draining => (EndedBy::Draining, shared.config.drain_ms),
    };
    match timeout(Duration::from_millis(grace_ms), relay.run(Until::Idle)).await {
        Ok(Ended::Reached) => return Finish { by, tell: Some(end_of(end)), cancel: false },
        Ok(ended) => return finish(shared, relay, entry.node, ended).await,
        Err(_) => {}
    }
    match timeout(farewell(shared), relay.run(Until::Boundary)).await {
        Ok(Ended::Reached) => Finish { by, tell: Some(end_of(end)), cancel: true },
        Ok(ended) => finish(shared, relay, entry.node, ended).await,
        // In the middle of a message there is no way to say anything.
        Err(_) => Finish { by, tell: None, cancel: true },
    }
}

/// One of the two sides has ended it.
async fn finish(shared: &Shared, relay: &mut Relay, node: NodeId, ended: Ended) -> Finish {
    match ended {
        Ended::ClientClosed if relay.client_has_terminated() => Finish::quietly(EndedBy::Client),
        Ended::ClientClosed => {
            relay.close_to_server().await;
            let patience = Duration::from_millis(shared.config.half_close_ms);
            let answered = timeout(patience, relay.run(Until::Forever)).await;
            let cancel = !matches!(answered, Ok(Ended::ServerClosed | Ended::ServerLost(_)));
            Finish { by: EndedBy::Client, tell: None, cancel }
        }
        Ended::ClientLost(error) => {
            tracing::debug!(%node, "a client was lost: {error}");
            Finish { by: EndedBy::ClientLost, tell: None, cancel: true }
        }
        Ended::ServerClosed if relay.server_was_fatal() || relay.client_has_terminated() => {
            Finish::quietly(EndedBy::Server)
        }
        Ended::ServerLost(_) if relay.server_was_fatal() => Finish::quietly(EndedBy::Server),
        Ended::Reached | Ended::ServerClosed => {
            server_lost(relay, node, "it closed the connection")
        }
        Ended::ServerLost(error) => server_lost(relay, node, &error.to_string()),
    }
}

fn server_lost(relay: &Relay, node: NodeId, why: &str) -> Finish {
    tracing::debug!(%node, "a server connection was lost: {why}");
    let tell = relay.is_at_boundary().then(|| Fatal {
        sqlstate: "08006",
        message: format!("the connection to the PostgreSQL server of node {node} was lost: {why}"),
        hint: "Connect again. A transaction in progress was rolled back, unless its COMMIT had been sent: then look \
               whether it took effect."
            .to_owned(),
    });
    Finish { by: EndedBy::ServerLost, tell, cancel: false }
}

fn end_of(end: End) -> Fatal {
    let message = match end {
        End::PrimaryChanged(Some(primary)) => {
            format!("terminating connection because the primary is now node {primary}")
        }
        End::PrimaryChanged(None) => {
            "terminating connection because its node is no longer the primary".to_owned()
        }
        End::Draining => "terminating connection because this agent is stopping".to_owned(),
    };
    Fatal {
        sqlstate: "57P01",
        message,
        hint: "Connect again. A transaction in progress was rolled back, unless its COMMIT had been sent: then look \
               whether it took effect."
            .to_owned(),
    }
}

/// Passes a cancel request to every member's server: process id and key match only the one that is meant.
async fn cancel_everywhere(shared: &Shared, request: &bytes::Bytes) {
    shared.metrics.cancels.inc();
    let addresses: Vec<String> = {
        let state = shared.state.borrow();
        let active = state.members.values().filter(|member| member.status == MemberStatus::Active);
        active.map(|member| member.addresses.postgres.clone()).collect()
    };
    let patience = Duration::from_millis(shared.config.connect_timeout_ms);
    let mut sent = JoinSet::new();
    for address in addresses.into_iter().filter(|address| !address.is_empty()) {
        let request = request.clone();
        sent.spawn(async move {
            if let Err(error) = backend::cancel(&address, &request, patience).await {
                tracing::debug!("a cancel request did not reach {address}: {error}");
            }
        });
    }
    while sent.join_next().await.is_some() {}
}
