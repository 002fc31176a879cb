//! The unix socket of the server beside the agent.
//!
//! A unix socket says that there is room to send each time its peer has read something: an event loop that watches for
//! both directions wakes up twice for one query. So only what is to be read is watched for, and room to send while
//! there was none.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// One connection.
pub(super) struct UnixSocket {
    /// Watched for what is to be read.
    stream: AsyncFd<StdUnixStream>,
    /// The same socket, watched for room to send; only while there was none.
    room: Option<Box<AsyncFd<StdUnixStream>>>,
}

impl UnixSocket {
    pub(super) async fn connect(path: &Path) -> io::Result<Self> {
        Self::new(UnixStream::connect(path).await?.into_std()?)
    }

    /// `stream` must not block.
    fn new(stream: StdUnixStream) -> io::Result<Self> {
        Ok(Self { stream: watch(stream, Interest::READABLE)?, room: None })
    }

    /// Reads if there may be something; no system call otherwise.
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.try_io(Interest::READABLE, |mut stream| stream.read(buffer))
    }
}

/// Has the event loop watch a socket in one direction.
#[expect(
    deprecated,
    reason = "its successor is unsafe code; this type keeps its descriptor open, as both ask"
)]
fn watch(stream: StdUnixStream, interest: Interest) -> io::Result<AsyncFd<StdUnixStream>> {
    AsyncFd::with_interest(stream, interest)
}

impl AsyncRead for UnixSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.stream.poll_read_ready(cx))?;
            let unfilled = buffer.initialize_unfilled();
            match guard.get_inner().read(unfilled) {
                Ok(read) => {
                    // What is shorter than it might be was all that was there. The end of the stream stays known.
                    if read > 0 && read < unfilled.len() {
                        guard.clear_ready();
                    }
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for UnixSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(room) = &self.room {
                ready!(room.poll_write_ready(cx))?.retain_ready();
                self.room = None;
            }
            match self.stream.get_ref().write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let again = self.stream.get_ref().try_clone()?;
                    self.room = Some(Box::new(watch(again, Interest::WRITABLE)?));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn pair() -> (UnixSocket, UnixStream) {
        let (own, peer) = UnixStream::pair().unwrap();
        (UnixSocket::new(own.into_std().unwrap()).unwrap(), peer)
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn what_the_peer_reads_wakes_nobody() {
        let (mut own, mut peer) = pair();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut cx = Context::from_waker(&waker);
        own.write_all(b"question").await.unwrap();
        let mut scratch = [0; 64];
        let mut buffer = ReadBuf::new(&mut scratch);
        assert!(Pin::new(&mut own).poll_read(&mut cx, &mut buffer).is_pending());
        peer.read_exact(&mut [0; 8]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
        peer.write_all(b"answer").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
        assert!(Pin::new(&mut own).poll_read(&mut cx, &mut buffer).is_ready());
        assert_eq!(buffer.filled(), b"answer");
    }

    #[tokio::test]
    async fn who_has_no_room_is_woken_when_there_is_some() {
        const BYTES: usize = 8 << 20;
        let (mut own, mut peer) = pair();
        let sent: Vec<u8> = (0..BYTES).map(|at| (at / 7) as u8).collect();
        let all = sent.clone();
        let writer = tokio::spawn(async move {
            own.write_all(&all).await.unwrap();
            assert!(own.room.is_none());
            own.shutdown().await.unwrap();
            own
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut got = Vec::new();
        peer.read_to_end(&mut got).await.unwrap();
        assert!(got == sent);
        let mut own = writer.await.unwrap();
        peer.write_all(b"and back").await.unwrap();
        drop(peer);
        got.clear();
        own.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"and back");
    }

    #[tokio::test]
    async fn an_idle_socket_tells_of_what_has_come_and_of_its_end() {
        let (own, mut peer) = pair();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let would_block = |own: &UnixSocket| {
            own.try_read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        assert!(would_block(&own));
        peer.write_all(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(own.try_read(&mut [0]).unwrap(), 1);
        assert!(would_block(&own));
        drop(peer);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(own.try_read(&mut [0]).unwrap(), 0);
    }
}
