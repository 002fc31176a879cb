//! A client's connection, in clear or in TLS, and how to part from it without losing the last message.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// At most this much of what a client still sends is read and thrown away while we part.
const DISCARD_BYTES_MAX: usize = 64 * 1024;

/// A client's connection.
pub(super) enum Client {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Client {
    /// Sends a last message, closes our side, and waits (at most `patience`) for the client to close its own.
    ///
    /// A socket that is closed with bytes unread resets the connection, and the client may then never see what was
    /// sent last: so what it still sends is read and thrown away.
    pub(super) async fn part(mut self, last: &[u8], patience: Duration) {
        let parted = tokio::time::timeout(patience, async {
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
        });
        // The client may be gone or deaf: either way this was the last that is done for it.
        let _ = parted.await;
    }
}

impl AsyncRead for Client {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
