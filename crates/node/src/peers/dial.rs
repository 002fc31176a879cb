//! Makes a connection to a peer: TCP, TLS, greeting, each within its limit of time.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use synapsedb_core::ids::NodeId;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use super::hello::{self, Answer};
use super::{Config, PeerStream, Shared};
use crate::tls::Refusal;

/// Dials `node` at `address` for `service`; the error is a text for the log and the caller.
pub(super) async fn dial(
    shared: &Shared,
    node: NodeId,
    address: &str,
    service: &str,
) -> Result<PeerStream, String> {
    let tcp = timeout(shared.config.connect_timeout(), TcpStream::connect(address))
        .await
        .map_err(|_| format!("no connection within {} ms", shared.config.connect_timeout_ms))?
        .map_err(|error| error.to_string())?;
    tune(&tcp, &shared.config).map_err(|error| error.to_string())?;
    timeout(shared.config.handshake_timeout(), greet(shared, node, tcp, address, service))
        .await
        .map_err(|_| format!("no handshake within {} ms", shared.config.handshake_timeout_ms))?
}

async fn greet(
    shared: &Shared,
    node: NodeId,
    tcp: TcpStream,
    address: &str,
    service: &str,
) -> Result<PeerStream, String> {
    let name = shared.tls.server_name(node);
    let stream = shared.tls.connector().connect(name, tcp).await.map_err(|error| {
        let reason = Refusal::of_io(&error);
        if reason != Refusal::ByPeer {
            shared.metrics.refuse(reason, address, &error.to_string());
        }
        format!("the TLS handshake failed ({reason}): {error}")
    })?;
    let mut io = TlsStream::Client(stream);
    // A server of TLS 1.3 looks at our certificate only after our side of the handshake is done, so its refusal
    // arrives here, as an alert.
    let refused = |error: std::io::Error| format!("the peer refused this node: {error}");
    hello::send(&mut io, &shared.hello(service)).await.map_err(refused)?;
    let answer = hello::receive::<Answer>(&mut io).await.map_err(refused)?;
    let theirs = match answer {
        Some(Answer::Welcome(hello)) => hello,
        Some(Answer::Refused { reason, message }) => {
            return Err(format!("the peer refused this node ({reason}): {message}"));
        }
        None => {
            shared.metrics.refuse(Refusal::BadHello, address, "its greeting is malformed");
            return Err("its greeting is malformed".to_owned());
        }
    };
    shared.check_hello(node, &theirs).map_err(|(reason, message)| {
        shared.metrics.refuse(reason, address, &message);
        message
    })?;
    Ok(PeerStream { peer: node, peer_incarnation: theirs.incarnation, io })
}

/// Sends small messages at once, and notices a peer that has vanished without a word.
pub(super) fn tune(tcp: &TcpStream, config: &Config) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let idle = Duration::from_millis(config.keepalive_ms).max(Duration::from_secs(1));
    let keepalive =
        TcpKeepalive::new().with_time(idle).with_interval(idle).with_retries(KEEPALIVE_RETRIES);
    let socket = SockRef::from(tcp);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(Duration::from_millis(config.unacknowledged_max_ms)))
}

/// How many questions of the kernel may stay unanswered.
const KEEPALIVE_RETRIES: u32 = 3;
