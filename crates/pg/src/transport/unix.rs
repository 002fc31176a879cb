//! The two halves of a unix socket, each a descriptor of its own that the runtime watches for one direction only.
//!
//! A server sends a logical replication stream message by message, and each of them would wake the runtime, which
//! costs both sides more than the message itself. A reader that is going to wait for a while anyway
//! [rests](UnixReader::rest): then nobody is woken.

use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as Blockable;

use bytes::{Buf as _, BytesMut};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::UnixStream;

/// The two halves of a socket.
///
/// # Errors
/// The process has no descriptors left.
#[allow(
    deprecated,
    reason = "its successor is unsafe; an owned socket stays open as long as its half lives"
)]
pub(crate) fn split(stream: UnixStream) -> io::Result<(UnixReader, UnixWriter)> {
    let stream = stream.into_std()?;
    let other = AsyncFd::with_interest(stream.try_clone()?, Interest::WRITABLE)?;
    let reader = UnixReader(Registration::Watched(UnixStream::from_std(stream)?));
    Ok((reader, UnixWriter(other)))
}

/// The reading half.
pub(crate) struct UnixReader(Registration);

enum Registration {
    /// The runtime is told of what arrives.
    Watched(UnixStream),
    /// It is not, until the next read.
    Resting(Blockable),
    /// Between the two, or after a failure of the change.
    Lost,
}

impl UnixReader {
    /// Reads what is there into the free room of `buffer`; zero at the end. Cancel safe.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        self.watch()?.read_buf(buffer).await
    }

    /// Until the next read nobody is woken by what arrives.
    ///
    /// # Errors
    /// The system does not let go of the socket; then it is closed.
    pub(super) fn rest(&mut self) -> io::Result<()> {
        self.0 = match std::mem::replace(&mut self.0, Registration::Lost) {
            Registration::Watched(stream) => Registration::Resting(stream.into_std()?),
            other @ (Registration::Resting(_) | Registration::Lost) => other,
        };
        Ok(())
    }

    fn watch(&mut self) -> io::Result<&mut UnixStream> {
        if let Registration::Resting(_) = self.0
            && let Registration::Resting(stream) =
                std::mem::replace(&mut self.0, Registration::Lost)
        {
            self.0 = Registration::Watched(UnixStream::from_std(stream)?);
        }
        match &mut self.0 {
            Registration::Watched(stream) => Ok(stream),
            Registration::Resting(_) | Registration::Lost => {
                Err(io::Error::new(io::ErrorKind::NotConnected, "the socket was let go of"))
            }
        }
    }
}

/// The writing half. The server sees the end when it is dropped.
pub(crate) struct UnixWriter(AsyncFd<Blockable>);

impl UnixWriter {
    /// Writes and removes a prefix of `buffer`; zero when the connection takes no more. Cancel safe.
    pub(super) async fn write(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        let write = |socket: &Blockable| (&*socket).write(buffer);
        let written = self.0.async_io(Interest::WRITABLE, write).await?;
        buffer.advance(written);
        Ok(written)
    }

    /// Tells the server that nothing more comes.
    pub(super) fn shutdown(&self) -> io::Result<()> {
        self.0.get_ref().shutdown(Shutdown::Write)
    }
}

impl Drop for UnixWriter {
    fn drop(&mut self) {
        // The reading half may live on: closing this descriptor alone would tell the server nothing.
        let _ = self.shutdown();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn what_arrives_while_the_reader_rests_is_read_after_it() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let (mut reader, mut writer) = split(here).unwrap();
        let mut buffer = BytesMut::with_capacity(64);
        reader.rest().unwrap();
        reader.rest().unwrap();
        there.write_all(b"one").await.unwrap();
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 3);
        let waits = tokio::time::timeout(Duration::from_millis(20), reader.read(&mut buffer)).await;
        assert!(waits.is_err());
        there.write_all(b"two").await.unwrap();
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 3);
        assert_eq!(&buffer[..], b"onetwo");
        let mut answer = BytesMut::from(&b"three"[..]);
        assert_eq!(writer.write(&mut answer).await.unwrap(), 5);
        drop(writer);
        let mut all = Vec::new();
        there.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"three", "the end is seen although the reader lives");
        drop(there);
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 0);
    }
}
