//! A listener with limits: so many connections, and none that sits there without getting anything done.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Port;

/// Connections that the kernel holds for us until they are accepted.
const BACKLOG: i32 = 128;
/// After a failed accept (no file descriptor left, mostly): a rest instead of a spin.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Binds the port of a component.
///
/// # Errors
/// The address cannot be bound; names the component, the address and what to do.
pub(super) fn bind(port: Port, address: SocketAddr) -> Result<TcpListener> {
    listen(address, port == Port::Stats).with_context(|| {
        let (name, number) = (port.name(), address.port());
        format!(
            "http: the {name} port cannot listen on {address}: the port is taken by another program, or the address \
             is not of this machine; free it or set http.{name} (`ss -ltnp sport = :{number}` shows who has it)"
        )
    })
}

/// A shared port may be bound by all agents of a machine that run as the same user.
fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts while fewer than `connections_max` connections are open.
pub(super) struct Limited {
    listener: TcpListener,
    places: Arc<Semaphore>,
    idle: Duration,
}

impl Limited {
    pub(super) fn new(listener: TcpListener, connections_max: usize, idle: Duration) -> Self {
        let places = connections_max.clamp(1, Semaphore::MAX_PERMITS);
        Self { listener, places: Arc::new(Semaphore::new(places)), idle }
    }
}

impl axum::serve::Listener for Limited {
    type Io = Watched;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Watched, SocketAddr) {
        let place = loop {
            match Arc::clone(&self.places).acquire_owned().await {
                Ok(place) => break place,
                // The semaphore is never closed.
                Err(_) => std::future::pending().await,
            }
        };
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    let idle = self.idle;
                    let deadline = Box::pin(sleep_until(Instant::now() + idle));
                    return (Watched { stream, deadline, idle, _place: place }, from);
                }
                Err(error) => {
                    tracing::warn!("http: cannot accept: {error}");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when too much time passes without an answer going out on it.
///
/// Only answers count: a client that sends a header byte now and then holds a place for no longer than an idle one.
pub(super) struct Watched {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    idle: Duration,
    _place: OwnedSemaphorePermit,
}

impl Watched {
    fn check<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match polled {
            Poll::Ready(ready) => Poll::Ready(ready),
            Poll::Pending => self.deadline.as_mut().poll(cx).map(|()| {
                Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was asked for too long"))
            }),
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        this.check(cx, polled)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, bytes);
        if matches!(polled, Poll::Ready(Ok(written)) if written > 0) {
            this.deadline.as_mut().reset(Instant::now() + this.idle);
        }
        this.check(cx, polled)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
