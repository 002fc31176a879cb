//! The calls to one peer: one connection, dialled when it is needed, shared by all calls at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use synapsedb_core::ids::NodeId;
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_rustls::TlsStream;
use tokio_util::sync::CancellationToken;

use super::frame::Frame;
use super::{CallError, Shared, dial, hello};

/// How many frames are written in one go.
const WRITE_BATCH: usize = 64;

/// The way to one peer.
pub(super) struct Link {
    node: NodeId,
    address: String,
    state: watch::Sender<State>,
}

#[derive(Clone)]
enum State {
    /// Nothing was tried, or the last connection has ended.
    Idle,
    /// Somebody dials.
    Dialling { failures: u32 },
    /// Calls may be sent.
    Open(Arc<Connection>),
    /// The last attempt failed; the next is allowed at `again`.
    Failed { failures: u32, again: Instant, reason: String },
}

impl Link {
    pub(super) fn new(node: NodeId, address: String) -> Self {
        Self { node, address, state: watch::Sender::new(State::Idle) }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Ends the connection; the calls that wait on it fail.
    pub(super) fn close(&self) {
        if let State::Open(connection) = &*self.state.borrow() {
            connection.close();
        }
    }

    /// The peer has just shown that it lives: do not wait any longer before dialling it.
    pub(super) fn peer_is_back(&self) {
        self.state.send_if_modified(|state| {
            let waits = matches!(state, State::Failed { .. });
            if waits {
                *state = State::Idle;
            }
            waits
        });
    }

    pub(super) async fn call(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        service: &'static str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let max = shared.config.frame_bytes_max;
        if body.len() > max {
            return Err(CallError::TooLong { bytes: body.len(), max });
        }
        let attempt = async {
            let connection = self.connection(shared).await?;
            connection.call(self.node, service, body).await
        };
        match tokio::time::timeout(timeout, attempt).await {
            Ok(answer) => answer,
            Err(_) => {
                self.give_up_if_silent(Duration::from_millis(shared.config.silence_max_ms));
                let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                Err(CallError::Timeout { node: self.node, service, timeout_ms })
            }
        }
    }

    /// The open connection; if there is none, one is dialled in a task of its own, so that a caller who gives up
    /// early does not undo the work that the next one needs.
    async fn connection(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
    ) -> Result<Arc<Connection>, CallError> {
        let mut watch = self.state.subscribe();
        loop {
            let state = watch.borrow_and_update().clone();
            match state {
                State::Open(connection) if !connection.closed.is_cancelled() => {
                    return Ok(connection);
                }
                State::Failed { again, reason, .. } if again > Instant::now() => {
                    return Err(self.unreachable(reason));
                }
                State::Dialling { .. } => {
                    if watch.changed().await.is_err() {
                        return Err(self.unreachable("the agent stops".to_owned()));
                    }
                }
                State::Idle | State::Open(_) | State::Failed { .. } => self.start_dialling(shared),
            }
        }
    }

    fn unreachable(&self, reason: String) -> CallError {
        CallError::Unreachable { node: self.node, address: self.address.clone(), reason }
    }

    fn start_dialling(self: &Arc<Self>, shared: &Arc<Shared>) {
        let mine = self.state.send_if_modified(|state| {
            let failures = match state {
                State::Dialling { .. } => return false,
                State::Open(connection) if !connection.closed.is_cancelled() => return false,
                State::Failed { failures, .. } => *failures,
                State::Idle | State::Open(_) => 0,
            };
            *state = State::Dialling { failures };
            true
        });
        if !mine {
            return;
        }
        let (link, shared) = (self.clone(), shared.clone());
        tokio::spawn(async move {
            let dialled = tokio::select! {
                dialled = dial::dial(&shared, link.node, &link.address, hello::CALLS) => dialled,
                () = shared.closed.cancelled() => Err("the agent stops".to_owned()),
            };
            link.state.send_modify(|state| {
                *state = match dialled {
                    Ok(stream) => State::Open(Connection::start(&shared, stream.io)),
                    Err(reason) => failed(state, &shared, reason),
                };
            });
        });
    }

    /// A connection on which nothing arrives although calls wait is dead, whatever the kernel says.
    fn give_up_if_silent(&self, silence_max: Duration) {
        if let State::Open(connection) = &*self.state.borrow()
            && connection.last_received().elapsed() >= silence_max
        {
            connection.close();
        }
    }
}

fn failed(before: &State, shared: &Shared, reason: String) -> State {
    let failures = match before {
        State::Dialling { failures } => failures.saturating_add(1),
        State::Idle | State::Open(_) | State::Failed { .. } => 1,
    };
    let doubled =
        shared.config.backoff_min_ms.saturating_mul(1 << failures.min(16).saturating_sub(1));
    let limit = doubled.clamp(1, shared.config.backoff_max_ms.max(1));
    // Between half the delay and all of it, so that peers do not dial in step.
    let delay = Duration::from_millis(rand::random_range(limit / 2..=limit));
    State::Failed { failures, again: Instant::now() + delay, reason }
}

type Pending = BTreeMap<u64, oneshot::Sender<Result<Bytes, Bytes>>>;

/// An open connection for calls, seen from the side that calls.
struct Connection {
    requests: mpsc::Sender<Frame>,
    /// Calls beyond the limit wait here for their turn.
    in_flight: Semaphore,
    pending: Mutex<Pending>,
    next: AtomicU64,
    received: Mutex<Instant>,
    closed: CancellationToken,
}

impl Connection {
    fn start(shared: &Arc<Shared>, io: TlsStream<TcpStream>) -> Arc<Self> {
        let (requests, queue) = mpsc::channel(shared.config.calls_in_flight_max);
        let connection = Arc::new(Self {
            requests,
            in_flight: Semaphore::new(shared.config.calls_in_flight_max),
            pending: Mutex::default(),
            next: AtomicU64::new(0),
            received: Mutex::new(Instant::now()),
            closed: shared.closed.child_token(),
        });
        let (read, write) = tokio::io::split(io);
        tokio::spawn(write_frames(write, queue, connection.closed.clone()));
        tokio::spawn(connection.clone().receive(read, shared.config.frame_bytes_max));
        connection
    }

    async fn receive(self: Arc<Self>, mut read: ReadHalf<TlsStream<TcpStream>>, bytes_max: usize) {
        loop {
            let frame = tokio::select! {
                frame = Frame::read(&mut read, bytes_max) => frame,
                () = self.closed.cancelled() => break,
            };
            *self.received.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            let (number, answer) = match frame {
                Ok(Some(Frame::Answer { number, body })) => (number, Ok(body)),
                Ok(Some(Frame::Error { number, message })) => (number, Err(message)),
                Ok(Some(Frame::Request { .. })) | Ok(None) | Err(_) => break,
            };
            if let Some(caller) = self.pending().remove(&number) {
                // The caller may have given up: then nobody wants the answer.
                let _ = caller.send(answer);
            }
        }
        self.close();
    }

    async fn call(
        self: &Arc<Self>,
        node: NodeId,
        service: &'static str,
        body: Bytes,
    ) -> Result<Bytes, CallError> {
        let disconnected = || CallError::Disconnected { node, service };
        let _turn = self.in_flight.acquire().await.map_err(|_| disconnected())?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut pending = self.pending();
            // Under the lock: `close` cancels first and then empties the map, so nobody is left waiting in it.
            if self.closed.is_cancelled() {
                return Err(disconnected());
            }
            pending.insert(number, sender);
        }
        let _forget = Forget { connection: self, number };
        let service_name = Bytes::from_static(service.as_bytes());
        let request = Frame::Request { number, service: service_name, body };
        self.requests.send(request).await.map_err(|_| disconnected())?;
        match answer.await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(message)) => {
                let message = String::from_utf8_lossy(&message).into_owned();
                Err(CallError::Remote { node, service, message })
            }
            Err(_) => Err(disconnected()),
        }
    }

    fn close(&self) {
        self.closed.cancel();
        self.pending().clear();
    }

    fn last_received(&self) -> Instant {
        *self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a call out of the list when its caller leaves, however that happens.
struct Forget<'a> {
    connection: &'a Connection,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.connection.pending().remove(&self.number);
    }
}

/// Writes frames as they come, many at once when there are many, until the queue or the connection ends.
pub(super) async fn write_frames(
    mut write: WriteHalf<TlsStream<TcpStream>>,
    mut queue: mpsc::Receiver<Frame>,
    closed: CancellationToken,
) {
    let mut frames = Vec::with_capacity(WRITE_BATCH);
    let mut bytes = BytesMut::new();
    let work = async {
        while queue.recv_many(&mut frames, WRITE_BATCH).await > 0 {
            frames.drain(..).for_each(|frame| frame.encode(&mut bytes));
            if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                break;
            }
            // A large frame is not kept in memory for ever.
            bytes = BytesMut::new();
        }
    };
    tokio::select! {
        () = work => {}
        () = closed.cancelled() => {}
    }
    closed.cancel();
    let _ = tokio::time::timeout(FAREWELL, write.shutdown()).await;
}

/// How long the end of a connection may take.
const FAREWELL: Duration = Duration::from_millis(200);
