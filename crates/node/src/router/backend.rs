//! The server's side of a session: connecting, the first answer, and cancel requests.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Config, listen, startup};

/// The longest first message that is waited for; longer ones are passed on in parts.
const FIRST_MESSAGE_BYTES_MAX: usize = 16 * 1024;
const HEADER_BYTES: usize = 5;

/// A server that has begun to answer.
pub(super) struct Backend {
    pub(super) stream: TcpStream,
    /// What it has said so far, to be passed on to the client first.
    pub(super) said: BytesMut,
}

/// Why a node's server cannot serve a session now.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{address} cannot be reached: {why}")]
    Unreachable { address: String, why: String },
    #[error("{address} closed the connection instead of answering")]
    Mute { address: String },
    #[error("{address} answered: {text}")]
    Refused { address: String, text: String, sqlstate: String, raw: Bytes },
}

impl ConnectError {
    /// Whether the same server may well answer a moment later.
    pub(super) fn is_worth_waiting_for(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Mute { .. } => true,
            Self::Refused { sqlstate, .. } => sqlstate == "57P03",
        }
    }
}

/// Connects to a server, passes the startup packet on and waits for the beginning of the answer.
///
/// The answer decides whether another node should be tried, so only the errors that say "not now" (57P03, it starts
/// or stops; 53300, it is full) are failures here. A wrong password is the client's own affair and is passed on.
pub(super) async fn open(
    address: &str,
    startup: &[u8],
    config: &Config,
) -> Result<Backend, ConnectError> {
    let unreachable = |why: String| ConnectError::Unreachable { address: address.to_owned(), why };
    let patience = Duration::from_millis(config.connect_timeout_ms);
    let answer = timeout(patience, async {
        let mut stream = TcpStream::connect(address).await?;
        listen::tune(&stream, config.keepalive_ms)?;
        stream.write_all(startup).await?;
        let said = first_message(&mut stream).await?;
        io::Result::Ok(Backend { stream, said })
    });
    let backend = match answer.await {
        Ok(Ok(backend)) => backend,
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => return Err(unreachable(format!("no answer within {patience:?}"))),
    };
    if backend.said.is_empty() {
        return Err(ConnectError::Mute { address: address.to_owned() });
    }
    match not_now(&backend.said) {
        None => Ok(backend),
        Some((sqlstate, text)) => Err(ConnectError::Refused {
            address: address.to_owned(),
            text,
            sqlstate,
            raw: backend.said.freeze(),
        }),
    }
}

/// Reads until a whole message is there, or as much of it as is waited for, or the server closes.
async fn first_message(stream: &mut TcpStream) -> io::Result<BytesMut> {
    let mut said = BytesMut::with_capacity(1024);
    loop {
        let length = said.get(1..HEADER_BYTES).and_then(|length| length.try_into().ok());
        if let Some(length) = length.map(u32::from_be_bytes) {
            let whole = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(1);
            if said.len() >= whole.min(FIRST_MESSAGE_BYTES_MAX) {
                return Ok(said);
            }
        }
        if stream.read_buf(&mut said).await? == 0 {
            return Ok(said);
        }
    }
}

/// The SQLSTATE and text of an error that another node, or a moment's patience, may avoid.
fn not_now(said: &[u8]) -> Option<(String, String)> {
    if said.first() != Some(&b'E') {
        return None;
    }
    let body = said.get(HEADER_BYTES..)?;
    let sqlstate = startup::error_field(body, b'C')?;
    let text = startup::error_field(body, b'M').unwrap_or_default();
    matches!(sqlstate, "57P03" | "53300").then(|| (sqlstate.to_owned(), text.to_owned()))
}

/// Sends a cancel request to a server. As in PostgreSQL nobody learns whether it hit anything.
pub(super) async fn cancel(address: &str, request: &[u8], patience: Duration) -> io::Result<()> {
    let sent = timeout(patience, async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request).await?;
        // The server closes when it has acted; waiting for that keeps the order of cancel and next query.
        stream.read(&mut [0; 1]).await
    });
    match sent.await {
        Ok(done) => done.map(drop),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The cancel request for the session that was told this BackendKeyData body (process id and key).
pub(super) fn cancel_request(key_data: &[u8]) -> Bytes {
    let mut request = Vec::with_capacity(8 + key_data.len());
    request.extend(u32::try_from(8 + key_data.len()).unwrap_or(u32::MAX).to_be_bytes());
    request.extend(startup::CANCEL.to_be_bytes());
    request.extend(key_data);
    request.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::startup::{Fatal, FirstPacket, parse};
    use super::*;

    #[test]
    fn a_cancel_request_is_what_it_should_be() {
        let request = cancel_request(&[0, 0, 0, 7, 1, 2, 3, 4]);
        assert!(matches!(parse(request), Ok(FirstPacket::Cancel(_))));
    }

    #[test]
    fn only_errors_that_another_node_avoids_are_failures() {
        let error =
            |sqlstate| Fatal { sqlstate, message: "m".to_owned(), hint: String::new() }.encode();
        assert_eq!(not_now(&error("57P03")).unwrap().0, "57P03");
        assert_eq!(not_now(&error("53300")).unwrap().0, "53300");
        assert_eq!(not_now(&error("28P01")), None);
        assert_eq!(not_now(b"R\0\0\0\x08\0\0\0\0"), None);
        assert_eq!(not_now(b"E\0\0\0\x05"), None);
    }
}
