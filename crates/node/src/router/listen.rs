//! Opens an endpoint's listening socket, shared by all agents of one machine.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::net::TcpListener;
use tokio::net::TcpStream;

use super::Endpoint;
use super::worker::Listeners;

/// Connections that the kernel holds for us until they are accepted.
const BACKLOG: i32 = 1024;

/// Binds an endpoint with SO_REUSEPORT, so that each agent of a machine listens on the same address.
///
/// # Errors
/// The address cannot be bound; names the endpoint, the address and what to do.
pub(super) fn bind(address: SocketAddr, endpoint: Endpoint) -> Result<TcpListener> {
    listen(address).with_context(|| {
        let name = endpoint.name();
        format!(
            "router: the {name} endpoint cannot listen on {address}: the port is taken by another program, or the \
             address is not of this machine; free it or set router.{name}_listen (`ss -ltnp sport = :{port}` shows \
             who has it)",
            port = address.port()
        )
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Binds the endpoints.
///
/// # Errors
/// As [`bind`].
pub(super) fn all(
    read: SocketAddr,
    write: SocketAddr,
    split: Option<SocketAddr>,
) -> Result<Listeners> {
    let split = split.map(|address| bind(address, Endpoint::Split)).transpose()?;
    Ok(Listeners { read: bind(read, Endpoint::Read)?, write: bind(write, Endpoint::Write)?, split })
}

/// Small messages go out at once, and a peer that vanished is noticed.
pub(super) fn tune(stream: &TcpStream, keepalive_ms: u64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let idle = Duration::from_millis(keepalive_ms.max(1_000));
    let probe = TcpKeepalive::new().with_time(idle).with_interval(idle / 3).with_retries(3);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&probe)?;
    // Bytes that stay unacknowledged this long mean the same as probes that stay unanswered.
    socket.set_tcp_user_timeout(Some(idle * 2))
}
