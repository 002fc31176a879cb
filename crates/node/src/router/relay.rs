//! Passes bytes between a client and a server in both directions, and can stop between two messages.
//!
//! Nothing is buffered while all goes well: a chunk is read onto the stack and written on at once; only what the
//! other side does not take is kept, at most one chunk, and reading in that direction rests until it has gone.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use super::backend::Backend;
use super::client::Client;
use super::framing::{Framer, Message};
use super::startup;

/// What is read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// How long to go on, if neither side ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// To the end.
    Forever,
    /// Until the session is idle: all that was asked is answered and no transaction is open.
    Idle,
    /// To the end of the message that is on its way to the client; nothing more goes to the server.
    Boundary,
}

/// Why passing on has stopped.
#[derive(Debug)]
pub(super) enum Ended {
    /// The [`Until`] has come.
    Reached,
    /// The client will send no more.
    ClientClosed,
    /// The client is gone.
    ClientLost(io::Error),
    /// The server will send no more.
    ServerClosed,
    /// The server is gone.
    ServerLost(io::Error),
}

/// One direction.
struct Direction {
    framer: Framer,
    pending: BytesMut,
    unflushed: bool,
    bytes: Counter,
}

enum Stopped {
    Boundary,
    Closed,
    ReadFailed(io::Error),
    WriteFailed(io::Error),
}

/// What the messages say about where the conversation stands.
#[derive(Debug)]
struct Talk {
    /// ReadyForQuery messages that the server still owes.
    owed: u64,
    /// `I`, `T` or `E`, from the last ReadyForQuery.
    transaction: u8,
    client_terminated: bool,
    server_was_fatal: bool,
    /// Body of BackendKeyData.
    key_data: Option<Bytes>,
}

impl Talk {
    fn client_said(&mut self, message: &Message<'_>) {
        match message.tag {
            b'Q' | b'S' | b'F' => self.owed += 1,
            b'X' => self.client_terminated = true,
            _ => {}
        }
    }

    fn server_said(&mut self, message: &Message<'_>) {
        match message.tag {
            b'Z' => {
                self.owed = self.owed.saturating_sub(1);
                self.transaction = message.head.first().copied().unwrap_or(b'?');
            }
            b'K' => self.key_data = Some(Bytes::copy_from_slice(message.head)),
            b'E' => {
                let severity = startup::error_field(message.head, b'V')
                    .or_else(|| startup::error_field(message.head, b'S'));
                self.server_was_fatal |= matches!(severity, Some("FATAL" | "PANIC"));
            }
            _ => {}
        }
    }
}

fn keep_of_server(tag: u8) -> usize {
    match tag {
        b'Z' => 1,
        b'E' => 64,
        b'K' => usize::MAX,
        _ => 0,
    }
}

/// A client and its server.
pub(super) struct Relay {
    client: Client,
    server: TcpStream,
    up: Direction,
    down: Direction,
    up_is_open: bool,
    talk: Talk,
}

impl Relay {
    /// Begins with the server's first answer. The counters take the bytes of each direction.
    pub(super) fn new(client: Client, backend: Backend, up: Counter, down: Counter) -> Self {
        let mut talk = Talk {
            owed: 1,
            transaction: b'?',
            client_terminated: false,
            server_was_fatal: false,
            key_data: None,
        };
        let mut down = Direction::new(Framer::new(keep_of_server), down);
        down.bytes.inc_by(backend.said.len() as u64);
        down.framer.follow(&backend.said, |message| talk.server_said(&message));
        down.pending = backend.said;
        let up = Direction::new(Framer::new(|_| 0), up);
        Self { client, server: backend.stream, up, down, up_is_open: true, talk }
    }

    /// Passes bytes on until one side ends it or `until` has come. May be called again, also after being dropped
    /// half way.
    pub(super) async fn run(&mut self, until: Until) -> Ended {
        poll_fn(|cx| self.poll(cx, until)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, until: Until) -> Poll<Ended> {
        if self.up_is_open && until != Until::Boundary {
            let talk = &mut self.talk;
            let polled = self.up.poll(cx, &mut self.client, &mut self.server, false, |message| {
                talk.client_said(&message);
            });
            match polled {
                Poll::Pending => {}
                Poll::Ready(Stopped::Closed | Stopped::Boundary) => {
                    self.up_is_open = false;
                    return Poll::Ready(Ended::ClientClosed);
                }
                Poll::Ready(Stopped::ReadFailed(error)) => {
                    self.up_is_open = false;
                    return Poll::Ready(Ended::ClientLost(error));
                }
                // What the server said before it went is still to be read; the other direction tells its end.
                Poll::Ready(Stopped::WriteFailed(_)) => self.up_is_open = false,
            }
        }
        let talk = &mut self.talk;
        let cut = until == Until::Boundary;
        let polled = self.down.poll(cx, &mut self.server, &mut self.client, cut, |message| {
            talk.server_said(&message);
        });
        match polled {
            Poll::Pending if until == Until::Idle && self.is_idle() => Poll::Ready(Ended::Reached),
            Poll::Pending => Poll::Pending,
            Poll::Ready(Stopped::Boundary) => Poll::Ready(Ended::Reached),
            Poll::Ready(Stopped::Closed) => Poll::Ready(Ended::ServerClosed),
            Poll::Ready(Stopped::ReadFailed(error)) => Poll::Ready(Ended::ServerLost(error)),
            Poll::Ready(Stopped::WriteFailed(error)) => Poll::Ready(Ended::ClientLost(error)),
        }
    }

    /// All that was asked is answered, the answers have gone out, and no transaction is open.
    pub(super) fn is_idle(&self) -> bool {
        self.talk.owed == 0
            && self.talk.transaction == b'I'
            && self.up.is_clear()
            && self.down.is_clear()
    }

    /// Whether an error message would reach the client as a message of its own.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.down.is_clear()
    }

    /// Whether the client has said goodbye in the words of the protocol.
    pub(super) fn client_has_terminated(&self) -> bool {
        self.talk.client_terminated
    }

    /// Whether the server has told the client itself that the session is over.
    pub(super) fn server_was_fatal(&self) -> bool {
        self.talk.server_was_fatal
    }

    /// What is needed to cancel what the server runs for this client.
    pub(super) fn key_data(&self) -> Option<Bytes> {
        self.talk.key_data.clone()
    }

    /// Tells the server that the client will send no more.
    pub(super) async fn close_to_server(&mut self) {
        // A server that is gone already is found out by reading from it.
        let _ = self.server.shutdown().await;
    }

    /// The client's connection; the server's is closed.
    pub(super) fn into_client(self) -> Client {
        self.client
    }
}

impl Direction {
    fn new(framer: Framer, bytes: Counter) -> Self {
        Self { framer, pending: BytesMut::new(), unflushed: false, bytes }
    }

    fn is_clear(&self) -> bool {
        self.framer.at_boundary() && self.pending.is_empty() && !self.unflushed
    }

    /// Passes on what there is. With `cut`, not a byte beyond the end of the current message.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        cut: bool,
        mut seen: impl FnMut(Message<'_>),
    ) -> Poll<Stopped> {
        loop {
            if let Err(error) = ready!(self.poll_send(cx, to)) {
                return Poll::Ready(Stopped::WriteFailed(error));
            }
            if cut && self.framer.at_boundary() {
                return Poll::Ready(Stopped::Boundary);
            }
            let mut scratch = [MaybeUninit::<u8>::uninit(); CHUNK_BYTES];
            let mut chunk = ReadBuf::uninit(&mut scratch);
            if let Err(error) = ready!(Pin::new(&mut *from).poll_read(cx, &mut chunk)) {
                return Poll::Ready(Stopped::ReadFailed(error));
            }
            let bytes = chunk.filled();
            if bytes.is_empty() {
                return Poll::Ready(Stopped::Closed);
            }
            let bytes = if cut {
                &bytes[..self.framer.follow_to_boundary(bytes, &mut seen)]
            } else {
                self.framer.follow(bytes, &mut seen);
                bytes
            };
            self.bytes.inc_by(bytes.len() as u64);
            match Pin::new(&mut *to).poll_write(cx, bytes) {
                Poll::Ready(Ok(written)) => {
                    self.unflushed = true;
                    self.pending.extend_from_slice(&bytes[written..]);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Stopped::WriteFailed(error)),
                Poll::Pending => self.pending.extend_from_slice(bytes),
            }
        }
    }

    /// Sends what was kept, and flushes.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        if !self.pending.is_empty() {
            while !self.pending.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.pending))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.pending.advance(written);
                self.unflushed = true;
            }
            // An idle session holds no memory.
            self.pending = BytesMut::new();
        }
        if self.unflushed {
            ready!(Pin::new(to).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}
