//! The socket to a server: TCP or unix, with TLS when it is asked for, and its two halves.

mod unix;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{Config, Host};
use crate::error::{Error, ErrorKind, Result};

/// An open connection to a server, before or after its start-up.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The reading half.
pub(crate) enum ReadHalf {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::UnixReader),
    Tls(tokio::io::ReadHalf<TlsStream<TcpStream>>),
}

/// The writing half.
pub(crate) enum WriteHalf {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::UnixWriter),
    Tls(tokio::io::WriteHalf<TlsStream<TcpStream>>),
}

/// Runs a connection attempt within the config's time limit.
pub(crate) async fn in_time<T>(
    config: &Config,
    attempt: impl Future<Output = Result<T>>,
) -> Result<T> {
    let limit = Duration::from_millis(config.connect_timeout_ms);
    match tokio::time::timeout(limit, attempt).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::Timeout,
            format!(
                "PostgreSQL at {} has not let role \"{}\" into \"{}\" within {} ms",
                config.address(),
                config.user,
                config.database,
                config.connect_timeout_ms
            ),
        )),
    }
}

/// Opens the socket, and TLS on it if the config asks for it.
pub(crate) async fn open(config: &Config) -> Result<Socket> {
    let unreachable = |error: io::Error| {
        let text = format!(
            "cannot reach PostgreSQL at {} (role \"{}\", database \"{}\")",
            config.address(),
            config.user,
            config.database
        );
        Error::with_source(ErrorKind::Unreachable, text, Box::new(error))
    };
    match &config.host {
        Host::Unix(_) => {
            let stream = UnixStream::connect(config.socket_path()).await.map_err(unreachable)?;
            Ok(Socket::Unix(stream))
        }
        Host::Tcp(host) => {
            let stream = TcpStream::connect((host.as_str(), config.port)).await;
            let stream = stream.map_err(unreachable)?;
            stream.set_nodelay(true).map_err(unreachable)?;
            match &config.tls {
                None => Ok(Socket::Tcp(stream)),
                Some(tls) => {
                    let stream = start_tls(config, host, TlsConnector::from(tls.clone()), stream);
                    Ok(Socket::Tls(Box::new(stream.await?)))
                }
            }
        }
    }
}

/// Asks the server for TLS and does the handshake.
async fn start_tls(
    config: &Config,
    host: &str,
    connector: TlsConnector,
    mut stream: TcpStream,
) -> Result<TlsStream<TcpStream>> {
    let failed = |why: &str, error: Option<io::Error>| {
        let text = format!("no TLS with PostgreSQL at {}: {why}", config.address());
        match error {
            Some(error) => Error::with_source(ErrorKind::Tls, text, Box::new(error)),
            None => Error::new(ErrorKind::Tls, text),
        }
    };
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| failed("its host name cannot be in a certificate", None))?;
    let mut request = BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(|error| failed("cannot ask for it", Some(error)))?;
    // Exactly one byte is read before the handshake: nothing an attacker slipped in front of it is ever used.
    let answer = stream.read_u8().await.map_err(|error| failed("no answer", Some(error)))?;
    if answer != b'S' {
        return Err(failed("the server has it switched off (setting ssl)", None));
    }
    connector
        .connect(name, stream)
        .await
        .map_err(|error| failed("the handshake failed", Some(error)))
}

impl Socket {
    /// The two halves, for two tasks.
    pub(crate) fn split(self) -> Result<(ReadHalf, WriteHalf)> {
        Ok(match self {
            Self::Tcp(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Self::Unix(stream) => {
                let halves = unix::split(stream);
                let (read, write) = halves
                    .map_err(|error| Error::io("splitting a connection to PostgreSQL", error))?;
                (ReadHalf::Unix(read), WriteHalf::Unix(write))
            }
            Self::Tls(stream) => {
                let (read, write) = tokio::io::split(*stream);
                (ReadHalf::Tls(read), WriteHalf::Tls(write))
            }
        })
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl ReadHalf {
    /// Reads what is there into the free room of `buffer`; zero at the end. Cancel safe.
    pub(crate) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => half.read_buf(buffer).await,
            Self::Unix(half) => half.read(buffer).await,
            Self::Tls(half) => half.read_buf(buffer).await,
        }
    }

    /// Until the next read nobody need be woken by what arrives.
    pub(crate) fn rest(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) | Self::Tls(_) => Ok(()),
            Self::Unix(half) => half.rest(),
        }
    }
}

impl WriteHalf {
    /// Writes and removes a prefix of `buffer`; zero when the connection takes no more. Cancel safe.
    pub(crate) async fn write(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => half.write_buf(buffer).await,
            Self::Unix(half) => half.write(buffer).await,
            Self::Tls(half) => half.write_buf(buffer).await,
        }
    }

    /// Sends what the TLS layer holds back.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
            Self::Tls(half) => half.flush().await,
        }
    }

    /// Tells the server that nothing more comes.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(half) => half.shutdown().await,
            Self::Unix(half) => half.shutdown(),
            Self::Tls(half) => half.shutdown().await,
        }
    }
}
