//! A session by our own framing: messages in and out without copies, pipelining left to the caller.
//!
//! A [`Reader`] hands out bodies as slices of its read buffer, so it makes about one system call per 64 KiB of small
//! messages; a [`Writer`] collects messages in one buffer and sends them with one call. Split, they serve two tasks:
//! one that sends a pipeline and one that reads the answers, which is needed as soon as both directions carry more
//! than the sockets hold. A body that is kept keeps its read chunk (64 KiB) alive: copy what must live long.

pub(crate) mod session;

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::transport::{self, ReadHalf, WriteHalf};
use crate::wire::backend::{self, Row, ServerError};
use crate::wire::frontend;

pub use session::SERVER_VERSION_MIN;

/// The size of a read chunk, in bytes.
const READ_BYTES: usize = 64 * 1024;
/// With less room than this a new chunk is made before the next read, in bytes.
const READ_ROOM_BYTES_MIN: usize = 16 * 1024;
/// A write buffer larger than this is given back after it was sent, in bytes.
const WRITE_KEEP_BYTES: usize = 1024 * 1024;
/// The longest message a server may send unless [`Reader::set_message_bytes_max`] says else: a field has at most 1 GiB.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024 * 1024 + 64 * 1024;

/// A logged-in session, not yet split.
pub struct Connection {
    reader: Reader,
    writer: Writer,
    parameters: BTreeMap<String, String>,
    server_version: Option<u32>,
    cancel: CancelToken,
}

/// The receiving half of a session.
pub struct Reader {
    half: ReadHalf,
    buffer: BytesMut,
    message_bytes_max: usize,
}

/// The sending half of a session.
pub struct Writer {
    half: WriteHalf,
    buffer: BytesMut,
}

/// The right to cancel whatever statement a session is running.
#[derive(Clone)]
pub struct CancelToken {
    config: Config,
    pid: u32,
    key: Bytes,
}

impl Connection {
    /// Opens a session, `replication` making it a logical walsender.
    ///
    /// Errors say address, role and database; see [`crate::ErrorKind`] for the cases.
    pub async fn connect(config: &Config, replication: bool) -> Result<Self> {
        transport::in_time(config, async {
            let (read, write) = transport::open(config).await?.split()?;
            session::start(config, replication, Reader::new(read), Writer::new(write)).await
        })
        .await
    }

    /// The settings the server has reported at the start (`server_version`, `TimeZone`, …).
    pub fn parameters(&self) -> &BTreeMap<String, String> {
        &self.parameters
    }

    /// The server's major version; `None` when it does not say (a pooler).
    pub fn server_version(&self) -> Option<u32> {
        self.server_version
    }

    /// The process id of the server's side.
    pub fn backend_pid(&self) -> u32 {
        self.cancel.pid
    }

    /// The right to cancel this session's statements.
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// The receiving half, while unsplit.
    pub fn reader(&mut self) -> &mut Reader {
        &mut self.reader
    }

    /// The sending half, while unsplit.
    pub fn writer(&mut self) -> &mut Writer {
        &mut self.writer
    }

    /// Both halves, for two tasks. The session ends when the writer is dropped.
    pub fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }

    /// Runs statements by the simple protocol and returns the rows of all of them in text form. Nothing may be in
    /// flight. Not cancel safe: a session whose query was dropped must be dropped too.
    ///
    /// Errors with the server's first error ([`crate::ErrorKind::Server`]), after which the session is usable unless
    /// it was fatal.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Row>> {
        frontend::query(self.writer.buffer(), sql)?;
        self.writer.flush().await?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let (tag, body) = match self.reader.next().await {
                Ok(message) => message,
                Err(closed) => return Err(failed.unwrap_or(closed)),
            };
            match tag {
                backend::DATA_ROW => rows.push(Row::parse(&body)?),
                backend::ERROR_RESPONSE => {
                    let error = || Error::server("", ServerError::parse(&body));
                    failed = Some(failed.unwrap_or_else(error));
                }
                backend::READY_FOR_QUERY => return failed.map_or(Ok(rows), Err),
                backend::COPY_IN_RESPONSE
                | backend::COPY_OUT_RESPONSE
                | backend::COPY_BOTH_RESPONSE => {
                    return Err(Error::protocol(
                        "the statement began a COPY, which this call does not serve",
                    ));
                }
                _ => {}
            }
        }
    }

    /// Says goodbye and closes.
    pub async fn close(mut self) {
        self.writer.close().await;
    }
}

impl Reader {
    pub(crate) fn new(half: ReadHalf) -> Self {
        Self { half, buffer: BytesMut::new(), message_bytes_max: MESSAGE_BYTES_MAX }
    }

    /// Limits a message to `bytes`, its five bytes of header not counted.
    pub fn set_message_bytes_max(&mut self, bytes: usize) {
        self.message_bytes_max = bytes;
    }

    /// The next message: its tag and body, a slice of the read buffer. Cancel safe.
    ///
    /// Errors when the server has closed ([`crate::ErrorKind::Closed`]), on IO, and on a length that is impossible
    /// or over the limit ([`crate::ErrorKind::Protocol`]); the session is then over.
    #[inline]
    pub async fn next(&mut self) -> Result<(u8, Bytes)> {
        loop {
            if let Some(message) = self.try_next()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// The next message if it is here as a whole, without a system call.
    #[inline]
    pub fn try_next(&mut self) -> Result<Option<(u8, Bytes)>> {
        let Some(length) = self.message_bytes()? else { return Ok(None) };
        if self.buffer.len() < length {
            return Ok(None);
        }
        let mut message = self.buffer.split_to(length).freeze();
        let tag = message[0];
        message.advance(5);
        Ok(Some((tag, message)))
    }

    /// Whether [`Reader::next`] would return at once, without a system call.
    #[inline]
    pub fn buffered(&self) -> bool {
        match self.message_bytes() {
            Ok(length) => length.is_some_and(|length| self.buffer.len() >= length),
            Err(_) => true,
        }
    }

    /// Tells that nothing will be read for a while: until the next read, what arrives wakes nobody.
    ///
    /// Errors when the system does not let go of the socket; the session is then over.
    pub fn rest(&mut self) -> Result<()> {
        self.half.rest().map_err(|error| Error::io("resting from PostgreSQL", error))
    }

    /// The bytes of the next message with its header, once the header is here.
    #[inline]
    fn message_bytes(&self) -> Result<Option<usize>> {
        let Some(header) = self.buffer.first_chunk::<5>() else { return Ok(None) };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length < 4 || length - 4 > self.message_bytes_max {
            let (tag, max) = (header[0].escape_ascii(), self.message_bytes_max);
            return Err(Error::protocol(format!(
                "the server announces a message '{tag}' of {length} bytes (the limit is {max})"
            )));
        }
        Ok(Some(1 + length))
    }

    /// Reads once. The buffer grows with what has come, never with what a length promises.
    async fn fill(&mut self) -> Result<()> {
        let have = self.buffer.len();
        if self.buffer.capacity() - have < READ_ROOM_BYTES_MIN {
            let missing = self.message_bytes()?.unwrap_or(0).saturating_sub(have);
            self.buffer.reserve(READ_BYTES.max(missing.min(have)));
        }
        match self.half.read(&mut self.buffer).await {
            Ok(0) => Err(Error::closed()),
            Ok(_) => Ok(()),
            Err(error) => Err(Error::io("reading from PostgreSQL", error)),
        }
    }
}

impl Writer {
    pub(crate) fn new(half: WriteHalf) -> Self {
        Self { half, buffer: BytesMut::new() }
    }

    /// Where messages are appended ([`frontend`]); they are sent by [`Writer::flush`].
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Sends what the buffer holds, by one system call if the socket takes it. Cancel safe: what was not sent stays
    /// in the buffer.
    pub async fn flush(&mut self) -> Result<()> {
        let failed = |error| Error::io("writing to PostgreSQL", error);
        let large = self.buffer.len() > WRITE_KEEP_BYTES;
        while self.buffer.has_remaining() {
            if self.half.write(&mut self.buffer).await.map_err(failed)? == 0 {
                return Err(Error::closed());
            }
        }
        if large {
            self.buffer = BytesMut::new();
        }
        self.half.flush().await.map_err(failed)
    }

    /// Says goodbye and closes this direction; failures do not matter any more.
    pub async fn close(&mut self) {
        frontend::terminate(&mut self.buffer);
        if self.flush().await.is_ok() {
            let _ = self.half.shutdown().await;
        }
    }
}

impl CancelToken {
    /// Asks the server to cancel the session's running statement, and waits until the server has taken the request.
    /// Whether there was a statement to cancel is not told.
    pub async fn cancel(&self) -> Result<()> {
        transport::in_time(&self.config, async {
            let mut socket = transport::open(&self.config).await?;
            let mut request = BytesMut::new();
            frontend::cancel_request(&mut request, self.pid, &self.key);
            let failed = |error| Error::io("sending a cancel request to PostgreSQL", error);
            socket.write_all(&request).await.map_err(failed)?;
            socket.flush().await.map_err(failed)?;
            // The server closes the connection when it has signalled the session.
            let mut end = BytesMut::new();
            let _ = tokio::io::AsyncReadExt::read_buf(&mut socket, &mut end).await;
            Ok(())
        })
        .await
    }
}

impl std::fmt::Debug for CancelToken {
    /// Everything but the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelToken").field("config", &self.config).field("pid", &self.pid).finish()
    }
}
