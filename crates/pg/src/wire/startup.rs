//! The server's side of a session's beginning: the first packet of a client, and the answers to it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{finish, put_string};
use crate::error::Result;

/// Protocol version 3.0 as a start-up packet has it.
pub const PROTOCOL_3_0: u32 = 3 << 16;
/// The code of a cancel request, in place of a version.
pub const CANCEL_CODE: u32 = 1234 << 16 | 5678;
/// The code of a request for TLS.
pub const SSL_CODE: u32 = 1234 << 16 | 5679;
/// The code of a request for GSSAPI encryption.
pub const GSS_CODE: u32 = 1234 << 16 | 5680;
/// The longest first packet, in bytes with its length; the server's own limit (`MAX_STARTUP_PACKET_LENGTH`).
pub const PACKET_BYTES_MAX: usize = 10_000;
/// The longest cancel key of protocol 3.2, in bytes.
pub const CANCEL_KEY_BYTES_MAX: usize = 256;

/// What a client may say first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstPacket {
    /// It asks for TLS; the answer is one byte, `S` or `N`.
    Ssl,
    /// It asks for GSSAPI encryption; the answer is one byte, `G` or `N`.
    Gss,
    /// It asks for the end of the statement of another session.
    Cancel {
        /// The process id it was told.
        pid: u32,
        /// The secret it was told.
        key: Bytes,
    },
    /// It asks for a session.
    Startup {
        /// The protocol's major version; anything but 3 cannot be served.
        major: u16,
        /// The minor version.
        minor: u16,
        /// The parameters in their order, `user` and `database` among them.
        parameters: Vec<(String, String)>,
        /// The whole packet with its length, to be passed on.
        raw: Bytes,
    },
}

/// A first packet that is none. Nothing of it has been consumed; the connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// The length is outside what the server allows: most likely another protocol.
    #[error("a first packet of {length} bytes is not PostgreSQL's (8 to {max})", max = PACKET_BYTES_MAX)]
    Length {
        /// What the first four bytes say.
        length: u32,
    },
    /// The protocol's major version is not 3.
    #[error("protocol version {major}.{minor} is not served, only 3.x")]
    Version {
        /// Asked for.
        major: u16,
        /// Asked for.
        minor: u16,
    },
    /// The parameters are cut off or not UTF-8.
    #[error("the start-up packet is malformed: {0}")]
    Malformed(&'static str),
}

impl FirstPacket {
    /// Takes the first packet from the front of `buffer` when it is there as a whole, else `None` (read on).
    ///
    /// Errors when the bytes are no first packet; an attacker can make it hold at most [`PACKET_BYTES_MAX`] bytes.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Self>, StartupError> {
        let Some(length) = buffer.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else {
            return Ok(None);
        };
        let bytes = length as usize;
        if !(8..=PACKET_BYTES_MAX).contains(&bytes) {
            return Err(StartupError::Length { length });
        }
        if buffer.len() < bytes {
            return Ok(None);
        }
        let packet = Self::read(&buffer[4..bytes])?;
        let raw = buffer.split_to(bytes).freeze();
        Ok(Some(match packet {
            Self::Startup { major, minor, parameters, raw: _ } => {
                Self::Startup { major, minor, parameters, raw }
            }
            other => other,
        }))
    }

    /// Reads a packet after its length; `raw` stays empty.
    fn read(mut body: &[u8]) -> Result<Self, StartupError> {
        let malformed = |what| Err(StartupError::Malformed(what));
        let code = body.get_u32();
        match code {
            SSL_CODE | GSS_CODE if !body.is_empty() => malformed("bytes after a request"),
            SSL_CODE => Ok(Self::Ssl),
            GSS_CODE => Ok(Self::Gss),
            CANCEL_CODE if (8..=4 + CANCEL_KEY_BYTES_MAX).contains(&body.len()) => {
                Ok(Self::Cancel { pid: body.get_u32(), key: Bytes::copy_from_slice(body) })
            }
            CANCEL_CODE => malformed("the key of a cancel request has a wrong length"),
            version => {
                let (major, minor) = ((version >> 16) as u16, version as u16);
                if major != 3 {
                    return Err(StartupError::Version { major, minor });
                }
                let parameters = read_parameters(body)?;
                Ok(Self::Startup { major, minor, parameters, raw: Bytes::new() })
            }
        }
    }

    /// The value of a start-up parameter; `None` in other packets.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        match self {
            Self::Startup { parameters, .. } => {
                parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
            }
            Self::Ssl | Self::Gss | Self::Cancel { .. } => None,
        }
    }
}

fn read_parameters(body: &[u8]) -> Result<Vec<(String, String)>, StartupError> {
    let text = std::str::from_utf8(body).map_err(|_| StartupError::Malformed("not UTF-8"))?;
    let mut rest = text;
    let mut parameters = Vec::new();
    loop {
        let cut = StartupError::Malformed("it ends within a parameter");
        let (name, after) = rest.split_once('\0').ok_or(cut.clone())?;
        if name.is_empty() {
            let clean = after.is_empty().then_some(parameters);
            return clean.ok_or(StartupError::Malformed("bytes after the parameters"));
        }
        let (value, after) = after.split_once('\0').ok_or(cut)?;
        parameters.push((name.to_owned(), value.to_owned()));
        rest = after;
    }
}

/// Appends an ErrorResponse. Severity is `ERROR` or `FATAL`; NUL bytes in texts become `?`.
pub fn error_response(
    buffer: &mut BytesMut,
    severity: &str,
    sqlstate: &str,
    message: &str,
    detail: Option<&str>,
    hint: Option<&str>,
) {
    report(buffer, b'E', [severity, sqlstate, message], detail, hint);
}

/// Appends a NoticeResponse. Severity is `NOTICE`, `WARNING`, …; NUL bytes in texts become `?`.
pub fn notice(
    buffer: &mut BytesMut,
    severity: &str,
    sqlstate: &str,
    message: &str,
    detail: Option<&str>,
    hint: Option<&str>,
) {
    report(buffer, b'N', [severity, sqlstate, message], detail, hint);
}

fn report(
    buffer: &mut BytesMut,
    tag: u8,
    [severity, sqlstate, message]: [&str; 3],
    detail: Option<&str>,
    hint: Option<&str>,
) {
    infallible(buffer, tag, |buffer| {
        let fixed = [(b'S', severity), (b'V', severity), (b'C', sqlstate), (b'M', message)];
        let rest = [(b'D', detail), (b'H', hint)];
        let rest = rest.into_iter().filter_map(|(field, text)| Some((field, text?)));
        for (field, text) in fixed.into_iter().chain(rest) {
            buffer.put_u8(field);
            put_clean(buffer, text);
        }
        buffer.put_u8(0);
    });
}

/// Appends AuthenticationOk.
pub fn authentication_ok(buffer: &mut BytesMut) {
    buffer.put_slice(b"R\0\0\0\x08\0\0\0\0");
}

/// Appends a request for SASL authentication by one of `mechanisms`.
pub fn authentication_sasl(buffer: &mut BytesMut, mechanisms: &[&str]) {
    infallible(buffer, b'R', |buffer| {
        buffer.put_u32(10);
        mechanisms.iter().for_each(|name| put_clean(buffer, name));
        buffer.put_u8(0);
    });
}

/// Appends the next challenge of a SASL exchange.
pub fn authentication_sasl_continue(buffer: &mut BytesMut, data: &[u8]) {
    infallible(buffer, b'R', |buffer| {
        buffer.put_u32(11);
        buffer.put_slice(data);
    });
}

/// Appends the outcome of a SASL exchange.
pub fn authentication_sasl_final(buffer: &mut BytesMut, data: &[u8]) {
    infallible(buffer, b'R', |buffer| {
        buffer.put_u32(12);
        buffer.put_slice(data);
    });
}

/// Appends a ParameterStatus; NUL bytes become `?`.
pub fn parameter_status(buffer: &mut BytesMut, name: &str, value: &str) {
    infallible(buffer, b'S', |buffer| {
        put_clean(buffer, name);
        put_clean(buffer, value);
    });
}

/// Appends a BackendKeyData.
pub fn backend_key_data(buffer: &mut BytesMut, pid: u32, key: &[u8]) {
    infallible(buffer, b'K', |buffer| {
        buffer.put_u32(pid);
        buffer.put_slice(key);
    });
}

/// Appends a ReadyForQuery with the transaction state `I`, `T` or `E`.
pub fn ready_for_query(buffer: &mut BytesMut, status: u8) {
    buffer.put_slice(b"Z\0\0\0\x05");
    buffer.put_u8(status);
}

/// Appends a NegotiateProtocolVersion: the newest minor version served, and the `_pq_.` options not understood.
pub fn negotiate_protocol_version(buffer: &mut BytesMut, minor: u16, unknown: &[&str]) {
    infallible(buffer, b'v', |buffer| {
        buffer.put_u32(PROTOCOL_3_0 | u32::from(minor));
        buffer.put_u32(unknown.len() as u32);
        unknown.iter().for_each(|name| put_clean(buffer, name));
    });
}

/// A message whose texts are clean and far below the protocol's 2 GiB.
fn infallible(buffer: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    let start = buffer.len();
    buffer.put_u8(tag);
    buffer.put_u32(0);
    body(buffer);
    if finish(buffer, start).is_err() {
        buffer.truncate(start);
    }
}

fn put_clean(buffer: &mut BytesMut, text: &str) {
    if put_string(buffer, text).is_err() {
        buffer.put_slice(text.replace('\0', "?").as_bytes());
        buffer.put_u8(0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{backend::ServerError, frontend};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests() {
        let mut buffer = BytesMut::new();
        postgres_protocol::message::frontend::ssl_request(&mut buffer);
        frontend::cancel_request(&mut buffer, 7, b"secret");
        assert_eq!(FirstPacket::take(&mut buffer), Ok(Some(FirstPacket::Ssl)));
        let cancel = FirstPacket::Cancel { pid: 7, key: Bytes::from_static(b"secret") };
        assert_eq!(FirstPacket::take(&mut buffer), Ok(Some(cancel)));
        assert_eq!(FirstPacket::take(&mut buffer), Ok(None));
    }

    #[test]
    fn strangers_are_refused() {
        let error = FirstPacket::take(&mut BytesMut::from("GET / HTTP/1.1")).unwrap_err();
        assert_eq!(error, StartupError::Length { length: 0x47455420 });
        let mut old = BytesMut::from(&b"\0\0\0\x08\0\x02\0\0"[..]);
        let error = FirstPacket::take(&mut old).unwrap_err();
        assert_eq!(error, StartupError::Version { major: 2, minor: 0 });
    }

    #[test]
    fn errors_are_read_as_written() {
        let mut buffer = BytesMut::new();
        error_response(&mut buffer, "FATAL", "08004", "n\0o", Some("why"), Some("do"));
        assert_eq!(
            buffer.len(),
            1 + u32::from_be_bytes(*buffer[1..].first_chunk().unwrap()) as usize
        );
        let error = ServerError::parse(&buffer[5..]);
        assert_eq!(error.to_string(), "FATAL 08004: n?o (detail: why) (hint: do)");
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes: Vec<u8>, length in 0u32..40) {
            let mut whole = BytesMut::from(&length.to_be_bytes()[..]);
            whole.put_slice(&bytes);
            let _ = FirstPacket::take(&mut whole);
            let _ = FirstPacket::take(&mut BytesMut::from(&bytes[..]));
        }

        /// Nearly right packets: what is taken is what was there, however it comes, and nothing is held beyond it.
        #[test]
        fn broken_packets(
            which in 0..4_usize,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            more: Vec<u8>,
            cut in any::<prop::sample::Index>(),
        ) {
            let mut packet = BytesMut::new();
            match which {
                0 => frontend::cancel_request(&mut packet, 7, b"a longer secret"),
                1 => packet.put_slice(b"\0\0\0\x08\x04\xd2\x16\x2f"),
                2 => packet.put_slice(b"\0\0\0\x08\x04\xd2\x16\x30"),
                _ => {
                    let parameters = [("user", "eve"), ("options", "-c a=b"), ("_pq_.x", "")];
                    frontend::startup(&mut packet, parameters.into_iter()).unwrap();
                }
            }
            for (index, byte) in changes {
                let index = index.index(packet.len());
                packet[index] = byte;
            }
            packet.put_slice(&more);
            let length = u32::from_be_bytes(*packet.first_chunk().unwrap()) as usize;
            let whole = packet.clone();
            let taken = FirstPacket::take(&mut packet);
            match &taken {
                Ok(Some(first)) => {
                    prop_assert_eq!(&packet[..], &whole[length..]);
                    if let FirstPacket::Startup { raw, parameters, .. } = first {
                        prop_assert_eq!(&raw[..], &whole[..length]);
                        let bytes = parameters.iter().map(|(name, value)| name.len() + value.len());
                        prop_assert!(bytes.sum::<usize>() < length);
                    }
                }
                Ok(None) => {
                    prop_assert!(whole.len() < length && length <= PACKET_BYTES_MAX);
                    prop_assert_eq!(&packet, &whole);
                }
                Err(_) => prop_assert_eq!(&packet, &whole),
            }
            // In two parts, the same comes of it, and no later than it must.
            let cut = cut.index(whole.len() + 1);
            let mut parts = BytesMut::from(&whole[..cut]);
            match FirstPacket::take(&mut parts) {
                Ok(None) => {
                    prop_assert!(cut < 4 || cut < length);
                    parts.extend_from_slice(&whole[cut..]);
                    prop_assert_eq!(FirstPacket::take(&mut parts), taken);
                }
                early => prop_assert_eq!(early, taken),
            }
        }

        #[test]
        fn startup_round_trips(
            parameters in prop::collection::vec(("[^\0]{1,9}", "[^\0]{0,9}"), 0..9), cut: usize,
        ) {
            let mut buffer = BytesMut::new();
            let pairs = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            frontend::startup(&mut buffer, pairs).unwrap();
            let whole = buffer.clone().freeze();
            let mut part = BytesMut::from(&whole[..cut % whole.len()]);
            assert_eq!(FirstPacket::take(&mut part), Ok(None));
            let packet = FirstPacket::take(&mut buffer).unwrap().unwrap();
            let expected = FirstPacket::Startup { major: 3, minor: 0, parameters, raw: whole };
            assert_eq!(packet, expected);
        }
    }
}
