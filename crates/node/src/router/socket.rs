//! A connection's bytes: TCP in clear or in TLS, or the unix socket of the server beside the agent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::unix::UnixSocket;

/// At most this much of what a client still sends is read and thrown away while we part.
const DISCARD_BYTES_MAX: usize = 64 * 1024;

/// One connection.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixSocket),
    /// With a client or with a server.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Reads what is there into `buffer`: how many bytes, zero at the end of the stream.
    pub(super) fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(self).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(buffer.filled().len())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Sends `bytes`; what the peer does not take now is put into `unsent`, which must be empty.
    pub(super) fn send(
        &mut self,
        cx: &mut Context<'_>,
        mut bytes: &[u8],
        unsent: &mut Vec<u8>,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            match Pin::new(&mut *self).poll_write(cx, bytes) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(sent)) => bytes = &bytes[sent..],
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    unsent.extend_from_slice(bytes);
                    break;
                }
            }
        }
        self.flush_now(cx)
    }

    /// Sends what could not be sent before; `Ready` when all of it has gone.
    pub(super) fn poll_unsent(
        &mut self,
        cx: &mut Context<'_>,
        unsent: &mut Vec<u8>,
    ) -> Poll<io::Result<()>> {
        let mut done = 0;
        while done < unsent.len() {
            match Pin::new(&mut *self).poll_write(cx, &unsent[done..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(sent)) => done += sent,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    unsent.drain(..done);
                    return Poll::Pending;
                }
            }
        }
        // Given back, not kept: an idle connection holds no buffer.
        *unsent = Vec::new();
        match self {
            Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    /// Only TLS has anything to flush; what it cannot send now it [holds back](Self::holds_back).
    fn flush_now(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
            Self::Tls(stream) => match Pin::new(stream.as_mut()).poll_flush(cx) {
                Poll::Ready(Err(error)) => Err(error),
                Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
            },
        }
    }

    /// Whether TLS has taken bytes that the peer has not: [`poll_unsent`](Self::poll_unsent) sends them.
    pub(super) fn holds_back(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => false,
            Self::Tls(stream) => stream.get_ref().1.wants_write(),
        }
    }

    /// Sends all of `bytes`.
    pub(super) async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await?;
        self.flush().await
    }

    /// Whether anything has come, the end of the stream included, since all was read; what has come may be lost. No
    /// system call when nothing has.
    pub(super) fn has_news(&mut self) -> bool {
        let mut byte = [0];
        let peeked = match self {
            Self::Tcp(stream) => stream.try_read(&mut byte),
            Self::Unix(stream) => stream.try_read(&mut byte),
            Self::Tls(stream) => {
                // Nobody need be woken: whoever uses the connection next asks again.
                let mut cx = Context::from_waker(Waker::noop());
                let read =
                    Pin::new(stream.as_mut()).poll_read(&mut cx, &mut ReadBuf::new(&mut byte));
                return read.is_ready();
            }
        };
        !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a last message, closes our side, and waits (at most `patience`) for the peer to close its own.
    ///
    /// A socket that is closed with bytes unread resets the connection, and the peer may then never see what was sent
    /// last: so what it still sends is read and thrown away.
    pub(super) async fn part(mut self, last: &[u8], patience: Duration) {
        // Boxed, so that what waits for it long before has no room for it.
        let parted = Box::pin(tokio::time::timeout(patience, async {
            self.write_all(last).await?;
            self.shutdown().await?;
            let mut discarded = 0;
            let mut scratch = [0_u8; 1024];
            while discarded < DISCARD_BYTES_MAX {
                match self.read(&mut scratch).await? {
                    0 => break,
                    more => discarded += more,
                }
            }
            io::Result::Ok(())
        }));
        // The client may be gone or deaf: either way this was the last that is done for it.
        let _ = parted.await;
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
