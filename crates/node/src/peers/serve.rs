//! Accepts the connections of peers, checks them, answers their calls and hands out their streams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use synapsedb_core::ids::NodeId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use super::frame::Frame;
use super::hello::{self, Answer, Hello};
use super::link::write_frames;
use super::{PeerStream, Shared, StreamHandler, dial};
use crate::tasks::Shutdown;
use crate::tls::Refusal;

/// How long accepting pauses when the system cannot give another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How many bytes of a refused peer are read before the connection is closed.
const DRAIN_BYTES_MAX: usize = 64 * 1024;

/// The listener for peers.
pub struct Task {
    listener: std::net::TcpListener,
    shared: Arc<Shared>,
}

/// What a checked peer wants.
enum Wanted {
    Calls,
    Stream(StreamHandler),
}

impl Task {
    pub(super) fn new(listener: std::net::TcpListener, shared: Arc<Shared>) -> Self {
        Self { listener, shared }
    }

    /// Accepts peers until `stop`; then every connection, also the outgoing ones, is ended.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub async fn run(self, stop: Shutdown) -> Result<()> {
        let Self { listener, shared } = self;
        // However this future ends, the connections end with it.
        let _close = shared.closed.clone().drop_guard();
        let listener = TcpListener::from_std(listener)?;
        let connections = Arc::new(Semaphore::new(shared.config.connections_max));
        let handshakes = Arc::new(Semaphore::new(shared.config.handshakes_max));
        loop {
            let (tcp, from) = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!("cannot accept a peer's connection: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let permits =
                (connections.clone().try_acquire_owned(), handshakes.clone().try_acquire_owned());
            let (Ok(connection), Ok(handshake)) = permits else {
                let text = "too many connections or handshakes at once";
                shared.metrics.refuse(Refusal::TooMany, &from.to_string(), text);
                continue;
            };
            tokio::spawn(receive(shared.clone(), tcp, from, connection, handshake));
        }
    }
}

async fn receive(
    shared: Arc<Shared>,
    tcp: TcpStream,
    from: SocketAddr,
    _connection: OwnedSemaphorePermit,
    handshake: OwnedSemaphorePermit,
) {
    let work = async {
        let greeted = timeout(shared.config.handshake_timeout(), greet(&shared, tcp)).await;
        drop(handshake);
        let (peer, wanted, stream) = match greeted {
            Ok(Ok(greeted)) => greeted,
            Ok(Err((reason, detail))) => {
                return shared.metrics.refuse(reason, &from.to_string(), &detail);
            }
            Err(_) => {
                let text = format!("no greeting within {} ms", shared.config.handshake_timeout_ms);
                return shared.metrics.refuse(Refusal::Timeout, &from.to_string(), &text);
            }
        };
        if let Some(link) = shared.link(peer) {
            link.peer_is_back();
        }
        let _accepted = shared.metrics.accepted();
        match wanted {
            Wanted::Calls => answer_calls(&shared, peer, stream.io).await,
            Wanted::Stream(handler) => handler(stream).await,
        }
    };
    tokio::select! {
        () = work => {}
        () = shared.closed.cancelled() => {}
    }
}

/// The handshake and the greeting; a refusal has been told to the peer as far as it can be.
async fn greet(
    shared: &Shared,
    tcp: TcpStream,
) -> Result<(NodeId, Wanted, PeerStream), (Refusal, String)> {
    let by_io = |error: std::io::Error| (Refusal::of_io(&error), error.to_string());
    dial::tune(&tcp, &shared.config).map_err(by_io)?;
    let stream = match shared.tls.acceptor().accept(tcp).into_fallible().await {
        Ok(stream) => stream,
        Err((error, tcp)) => {
            let refusal = by_io(error);
            tokio::spawn(timeout(shared.config.handshake_timeout(), drain(tcp)));
            return Err(refusal);
        }
    };
    let mut io = TlsStream::Server(stream);
    let certified = shared.tls.peer_node(&io);
    let hello = hello::receive::<Hello>(&mut io).await.map_err(by_io)?;
    let checked = check(shared, certified, hello);
    let (reason, message) = match checked {
        Ok((peer, hello, wanted)) => {
            let welcome = Answer::Welcome(shared.hello(&hello.service));
            hello::send(&mut io, &welcome).await.map_err(by_io)?;
            return Ok((
                peer,
                wanted,
                PeerStream { peer, peer_incarnation: hello.incarnation, io },
            ));
        }
        Err(refusal) => refusal,
    };
    let answer = Answer::Refused { reason: reason.label().to_owned(), message: message.clone() };
    if hello::send(&mut io, &answer).await.is_ok() {
        let _ = io.shutdown().await;
    }
    Err((reason, message))
}

fn check(
    shared: &Shared,
    certified: Result<NodeId, Refusal>,
    hello: Option<Hello>,
) -> Result<(NodeId, Hello, Wanted), (Refusal, String)> {
    let peer = certified.map_err(|reason| {
        (reason, "its certificate does not name a node of this cluster".to_owned())
    })?;
    let hello = hello.ok_or_else(|| (Refusal::BadHello, "its greeting is malformed".to_owned()))?;
    shared.check_hello(peer, &hello)?;
    let wanted = if hello.service == hello::CALLS {
        Wanted::Calls
    } else {
        let handler = shared.stream_handler(&hello.service).ok_or_else(|| {
            let text =
                format!("node {} serves no stream \"{}\"", shared.identity.node, hello.service);
            (Refusal::UnknownService, text)
        })?;
        Wanted::Stream(handler)
    };
    Ok((peer, hello, wanted))
}

/// Reads what a refused peer still sends: closing with unread bytes would reset the connection, and the alert that
/// tells the peer why would be lost.
async fn drain(mut tcp: TcpStream) {
    if tcp.shutdown().await.is_err() {
        return;
    }
    let mut left = DRAIN_BYTES_MAX;
    let mut bytes = [0; 1024];
    while left > 0 {
        match tcp.read(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(count) => left = left.saturating_sub(count),
        }
    }
}

async fn answer_calls(shared: &Arc<Shared>, peer: NodeId, io: TlsStream<TcpStream>) {
    let (read, write) = tokio::io::split(io);
    let (answers, queue) = mpsc::channel(shared.config.calls_in_flight_max);
    let closed = shared.closed.child_token();
    let writing = tokio::spawn(write_frames(write, queue, closed.clone()));
    tokio::select! {
        () = read_calls(shared, peer, read, answers) => {}
        () = closed.cancelled() => {}
    }
    closed.cancel();
    let _ = writing.await;
}

async fn read_calls(
    shared: &Arc<Shared>,
    peer: NodeId,
    mut read: ReadHalf<TlsStream<TcpStream>>,
    answers: mpsc::Sender<Frame>,
) {
    let in_flight = Arc::new(Semaphore::new(shared.config.calls_in_flight_max));
    loop {
        let (number, service, body) =
            match Frame::read(&mut read, shared.config.frame_bytes_max).await {
                Ok(Some(Frame::Request { number, service, body })) => (number, service, body),
                Ok(None) => return,
                Ok(Some(Frame::Answer { .. } | Frame::Error { .. })) => {
                    return tracing::warn!(%peer, "a peer answered where it should ask");
                }
                Err(error) => return tracing::debug!(%peer, "a peer's connection ended: {error}"),
            };
        let Ok(permit) = in_flight.clone().try_acquire_owned() else {
            let limit = shared.config.calls_in_flight_max;
            let text = format!("too many calls at once (peers.calls_in_flight_max = {limit})");
            let busy = Frame::Error { number, message: text.into() };
            if answers.send(busy).await.is_err() {
                return;
            }
            continue;
        };
        let (shared, answers) = (shared.clone(), answers.clone());
        tokio::spawn(async move {
            let frame = match work(&shared, peer, &service, body).await {
                Ok(body) => Frame::Answer { number, body },
                Err(message) => Frame::Error { number, message: message.into() },
            };
            // The peer may be gone: then nobody wants the answer.
            if let Ok(place) = answers.reserve().await {
                // Before the answer is on its way: the peer may use its next turn as soon as it has it.
                drop(permit);
                place.send(frame);
            }
        });
    }
}

/// Runs the handler of a call; a handler that panics harms nobody else.
async fn work(
    shared: &Shared,
    peer: NodeId,
    service: &Bytes,
    body: Bytes,
) -> Result<Bytes, String> {
    let service = String::from_utf8_lossy(service);
    let Some(handler) = shared.call_handler(&service) else {
        return Err(format!("node {} serves no calls of \"{service}\"", shared.identity.node));
    };
    let done = tokio::spawn(async move { handler(peer, body).await }).await;
    let answer = done.unwrap_or_else(|error| Err(format!("the service failed: {error}")))?;
    let max = shared.config.frame_bytes_max;
    if answer.len() > max {
        let bytes = answer.len();
        return Err(format!("an answer of {bytes} bytes exceeds peers.frame_bytes_max = {max}"));
    }
    Ok(answer)
}
