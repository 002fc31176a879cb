//! What a client says before it is a session, read with limits, and the messages that we make ourselves.

use bytes::{BufMut as _, Bytes, BytesMut};
use synapsedb_pg::wire::startup as wire;
pub(super) use synapsedb_pg::wire::startup::FirstPacket;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Length and code: nothing shorter is a first packet.
const SHORTEST: usize = 8;

/// Why a first packet is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartupError {
    /// The client closed before it said anything; port probes do that.
    #[error("the client closed the connection before it sent a packet")]
    Closed,
    /// The connection broke within the packet.
    #[error("the connection broke within the startup packet: {0}")]
    Broken(std::io::Error),
    /// The length cannot be that of a first packet.
    #[error(
        "invalid length of startup packet: {length} bytes; at least 8 and at most {max} are accepted"
    )]
    Length {
        /// As the client gave it.
        length: u32,
        /// `startup_bytes_max`.
        max: usize,
    },
    /// The code is neither a request that PostgreSQL knows nor protocol 3.
    #[error(
        "unsupported frontend protocol {major}.{minor}: this endpoint speaks 3.0 and later of 3"
    )]
    Protocol {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// The body has not the layout it must have.
    #[error("invalid startup packet layout: {0}")]
    Layout(&'static str),
}

impl StartupError {
    /// The SQLSTATE a client is told; `None` when there is nobody to tell.
    pub(super) fn sqlstate(&self) -> Option<&'static str> {
        match self {
            Self::Closed | Self::Broken(_) => None,
            Self::Protocol { .. } => Some("0A000"),
            Self::Length { .. } | Self::Layout(_) => Some("08P01"),
        }
    }
}

/// Reads one first packet of at most `bytes_max` bytes, and not a byte more.
///
/// Reading no further matters: bytes sent in clear behind an encryption request must never be taken for bytes of the
/// encrypted session.
///
/// # Errors
/// [`StartupError`]; nothing has been answered then.
pub(super) async fn read(
    from: &mut (impl AsyncRead + Unpin),
    bytes_max: usize,
) -> Result<FirstPacket, StartupError> {
    let mut prefix = [0_u8; 4];
    let first = from.read(&mut prefix).await.map_err(StartupError::Broken)?;
    if first == 0 {
        return Err(StartupError::Closed);
    }
    from.read_exact(&mut prefix[first..]).await.map_err(StartupError::Broken)?;
    let length = u32::from_be_bytes(prefix);
    let total = usize::try_from(length).unwrap_or(usize::MAX);
    if total < SHORTEST || total > bytes_max.max(SHORTEST) {
        return Err(StartupError::Length { length, max: bytes_max });
    }
    let mut raw = BytesMut::zeroed(total);
    raw[..4].copy_from_slice(&prefix);
    from.read_exact(&mut raw[4..]).await.map_err(StartupError::Broken)?;
    match FirstPacket::take(&mut raw) {
        Ok(Some(packet)) => Ok(packet),
        Ok(None) => Err(StartupError::Layout("it is cut off")),
        Err(wire::StartupError::Length { length }) => {
            Err(StartupError::Length { length, max: wire::PACKET_BYTES_MAX })
        }
        Err(wire::StartupError::Version { major, minor }) => {
            Err(StartupError::Protocol { major, minor })
        }
        Err(wire::StartupError::Malformed(what)) => Err(StartupError::Layout(what)),
    }
}

/// An error of the router's own, in the words of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Five characters.
    pub(super) sqlstate: &'static str,
    /// One line.
    pub(super) message: String,
    /// What to do; may be empty.
    pub(super) hint: String,
}

impl Failure {
    /// As an ErrorResponse that ends the session.
    pub(super) fn fatal(&self) -> Bytes {
        self.encode("FATAL")
    }

    /// As an ErrorResponse that ends a statement.
    pub(super) fn error(&self) -> Bytes {
        self.encode("ERROR")
    }

    fn encode(&self, severity: &str) -> Bytes {
        let hint = (!self.hint.is_empty()).then_some(self.hint.as_str());
        let mut buffer = BytesMut::new();
        wire::error_response(&mut buffer, severity, self.sqlstate, &self.message, None, hint);
        buffer.freeze()
    }
}

/// Appends a message whose body is `parts`.
pub(super) fn put_message(buffer: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    buffer.put_u8(tag);
    buffer.put_u32(u32::try_from(length + 4).unwrap_or(u32::MAX));
    parts.iter().for_each(|part| buffer.put_slice(part));
}

/// A text up to its end, and what follows.
pub(super) fn split_text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// The second text of a body: the statement that a Bind names, or the text of a Parse.
pub(super) fn second_text(body: &[u8]) -> Option<&[u8]> {
    let (_, rest) = split_text(body)?;
    split_text(rest).map(|(text, _)| text)
}

/// The cancel request for the session that was told this BackendKeyData body (process id and key).
pub(super) fn cancel_request(key_data: &[u8]) -> Bytes {
    let mut request = Vec::with_capacity(8 + key_data.len());
    request.put_u32(u32::try_from(8 + key_data.len()).unwrap_or(u32::MAX));
    request.put_u32(wire::CANCEL_CODE);
    request.put_slice(key_data);
    request.into()
}

/// The value of one field (`b'C'` the SQLSTATE, `b'M'` the message …) of an ErrorResponse body.
pub(super) fn error_field(body: &[u8], field: u8) -> Option<&str> {
    let mut rest = body;
    while let Some((&tag, tail)) = rest.split_first() {
        if tag == 0 {
            return None;
        }
        let end = tail.iter().position(|&byte| byte == 0)?;
        if tag == field {
            return std::str::from_utf8(&tail[..end]).ok();
        }
        rest = &tail[end + 1..];
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut raw = Vec::new();
        raw.put_u32(u32::try_from(body.len() + 8).unwrap());
        raw.put_u32(code);
        raw.extend(body);
        raw
    }

    async fn read_all(bytes: &[u8]) -> Result<FirstPacket, StartupError> {
        let mut from = bytes;
        read(&mut from, 100).await
    }

    #[tokio::test]
    async fn not_a_byte_behind_the_packet_is_read() {
        let mut bytes = packet(wire::SSL_CODE, b"");
        bytes.extend(b"injected");
        let mut from = bytes.as_slice();
        assert_eq!(read(&mut from, 100).await.unwrap(), FirstPacket::Ssl);
        assert_eq!(from, b"injected");
    }

    #[tokio::test]
    async fn what_is_no_first_packet_is_refused_with_its_reason() {
        for (bytes, sqlstate) in [
            (b"".to_vec(), None),
            (b"\0\0".to_vec(), None),
            (b"GET / HTTP/1.1\r\n".to_vec(), Some("08P01")),
            (vec![0, 0, 0, 7, 0, 0, 0], Some("08P01")),
            (vec![0, 0, 0, 101, 0, 3, 0, 0], Some("08P01")),
            (packet(131_072, b"user\0ada\0\0"), Some("0A000")),
            (packet(196_608, b""), Some("08P01")),
            (packet(196_608, b"user\0ada\0"), Some("08P01")),
            (packet(196_608, b"user\0ada"), Some("08P01")),
            (packet(196_608, b"user\0ada\0\0more"), Some("08P01")),
            (packet(wire::SSL_CODE, b"x"), Some("08P01")),
            (packet(wire::CANCEL_CODE, &[0, 0, 0, 9, 1]), Some("08P01")),
        ] {
            let refused = read_all(&bytes).await.unwrap_err();
            assert_eq!(refused.sqlstate(), sqlstate, "{bytes:?}: {refused}");
        }
    }

    #[tokio::test]
    async fn a_cancel_request_is_what_it_should_be() {
        let request = cancel_request(&[0, 0, 0, 7, 1, 2, 3, 4]);
        let expected = FirstPacket::Cancel { pid: 7, key: Bytes::from_static(&[1, 2, 3, 4]) };
        assert_eq!(read_all(&request).await.unwrap(), expected);
    }

    #[test]
    fn an_error_is_read_as_it_was_written() {
        let failure = Failure {
            sqlstate: "57P01",
            message: "moved".to_owned(),
            hint: "Connect again.".to_owned(),
        };
        let message = failure.fatal();
        assert_eq!(error_field(&message[5..], b'S'), Some("FATAL"));
        assert_eq!(error_field(&message[5..], b'C'), Some("57P01"));
        assert_eq!(error_field(&message[5..], b'M'), Some("moved"));
        assert_eq!(error_field(&message[5..], b'H'), Some("Connect again."));
        assert_eq!(error_field(&message[5..], b'D'), None);
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = error_field(&bytes, b'C');
        }
    }
}
