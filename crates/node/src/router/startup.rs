//! What a client says before it is a session: the untagged first packets, read with limits, and the errors we answer.

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

pub(super) const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;
/// Length and code: nothing shorter is a first packet.
const SHORTEST: usize = 8;
/// PostgreSQL 18 caps a cancel key at 256 bytes; before it is always 4.
const CANCEL_KEY_BYTES_MAX: usize = 256;

/// The first packet of a connection, or the first after an encryption request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstPacket {
    /// The client asks for TLS.
    Ssl,
    /// The client asks for GSSAPI encryption.
    Gss,
    /// The client asks to cancel what another connection runs; the packet as it came.
    Cancel(Bytes),
    /// The client begins a session.
    Startup(Startup),
}

/// A StartupMessage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    /// The packet as it came, to be passed on unchanged.
    pub raw: Bytes,
    /// Names and values, as far as they are UTF-8 (other bytes become U+FFFD).
    pub parameters: Vec<(String, String)>,
}

impl Startup {
    /// The value of a parameter, if the client sent it.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Why a first packet is refused.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
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
    pub fn sqlstate(&self) -> Option<&'static str> {
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
pub async fn read(
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
    parse(raw.freeze())
}

/// Understands a whole first packet, length included.
///
/// # Errors
/// [`StartupError::Protocol`] and [`StartupError::Layout`].
pub fn parse(raw: Bytes) -> Result<FirstPacket, StartupError> {
    let Some(code) = raw.get(4..8).and_then(|code| code.try_into().ok()).map(u32::from_be_bytes)
    else {
        return Err(StartupError::Layout("it is shorter than its code"));
    };
    match code {
        SSL | GSS if raw.len() != SHORTEST => {
            Err(StartupError::Layout("an encryption request has no body"))
        }
        SSL => Ok(FirstPacket::Ssl),
        GSS => Ok(FirstPacket::Gss),
        CANCEL => {
            let key = raw.len().saturating_sub(SHORTEST + 4);
            if (4..=CANCEL_KEY_BYTES_MAX).contains(&key) {
                Ok(FirstPacket::Cancel(raw))
            } else {
                Err(StartupError::Layout("a cancel request has a key of 4 to 256 bytes"))
            }
        }
        version if version >> 16 == 3 => {
            let parameters = parameters(&raw[SHORTEST..])?;
            Ok(FirstPacket::Startup(Startup { raw, parameters }))
        }
        version => Err(StartupError::Protocol {
            major: (version >> 16) as u16,
            minor: (version & 0xffff) as u16,
        }),
    }
}

fn parameters(mut body: &[u8]) -> Result<Vec<(String, String)>, StartupError> {
    let mut found = Vec::new();
    loop {
        let name = text(&mut body)?;
        if name.is_empty() {
            break;
        }
        found.push((name, text(&mut body)?));
    }
    if body.is_empty() {
        Ok(found)
    } else {
        Err(StartupError::Layout("expected terminator as last byte"))
    }
}

fn text(body: &mut &[u8]) -> Result<String, StartupError> {
    let Some(end) = body.iter().position(|&byte| byte == 0) else {
        return Err(StartupError::Layout("a name or value has no end"));
    };
    let text = String::from_utf8_lossy(&body[..end]).into_owned();
    *body = &body[end + 1..];
    Ok(text)
}

/// An error that ends the session, in the words of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fatal {
    /// Five characters.
    pub sqlstate: &'static str,
    /// One line.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl Fatal {
    /// As a whole ErrorResponse message.
    pub fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        for (field, value) in [
            (b'S', "FATAL"),
            (b'V', "FATAL"),
            (b'C', self.sqlstate),
            (b'M', self.message.as_str()),
            (b'H', self.hint.as_str()),
        ] {
            if !value.is_empty() {
                body.put_u8(field);
                // A zero byte would end the field early and break the framing of the rest.
                body.extend(value.bytes().filter(|&byte| byte != 0));
                body.put_u8(0);
            }
        }
        body.put_u8(0);
        let mut message = BytesMut::with_capacity(body.len() + 5);
        message.put_u8(b'E');
        message.put_u32(u32::try_from(body.len() + 4).unwrap_or(u32::MAX));
        message.extend_from_slice(&body);
        message.freeze()
    }
}

/// The value of one field (`b'C'` the SQLSTATE, `b'M'` the message …) of an ErrorResponse body.
pub fn error_field(body: &[u8], field: u8) -> Option<&str> {
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
        raw.extend(u32::try_from(body.len() + 8).unwrap().to_be_bytes());
        raw.extend(code.to_be_bytes());
        raw.extend(body);
        raw
    }

    async fn read_all(bytes: &[u8]) -> Result<FirstPacket, StartupError> {
        let mut from = bytes;
        read(&mut from, 100).await
    }

    #[tokio::test]
    async fn the_four_first_packets() {
        assert_eq!(read_all(&packet(SSL, b"")).await.unwrap(), FirstPacket::Ssl);
        assert_eq!(read_all(&packet(GSS, b"")).await.unwrap(), FirstPacket::Gss);
        let cancel = packet(CANCEL, &[0, 0, 0, 9, 1, 2, 3, 4]);
        assert_eq!(read_all(&cancel).await.unwrap(), FirstPacket::Cancel(cancel.into()));
        let raw = packet(196_608, b"user\0ada\0database\0shop\0\0");
        let FirstPacket::Startup(startup) = read_all(&raw).await.unwrap() else { panic!() };
        assert_eq!(startup.raw, raw);
        assert_eq!(startup.parameter("user"), Some("ada"));
        assert_eq!(startup.parameter("database"), Some("shop"));
        assert_eq!(startup.parameter("options"), None);
        let newer = packet(196_610, b"user\0ada\0\0");
        assert!(matches!(read_all(&newer).await.unwrap(), FirstPacket::Startup(_)));
    }

    #[tokio::test]
    async fn not_a_byte_behind_the_packet_is_read() {
        let mut bytes = packet(SSL, b"");
        bytes.extend(b"injected");
        let mut from = bytes.as_slice();
        read(&mut from, 100).await.unwrap();
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
            (packet(SSL, b"x"), Some("08P01")),
            (packet(CANCEL, &[0, 0, 0, 9, 1]), Some("08P01")),
        ] {
            let refused = read_all(&bytes).await.unwrap_err();
            assert_eq!(refused.sqlstate(), sqlstate, "{bytes:?}: {refused}");
        }
    }

    #[test]
    fn an_error_is_read_as_it_was_written() {
        let fatal = Fatal {
            sqlstate: "57P01",
            message: "mo\0ved".to_owned(),
            hint: "Connect again.".to_owned(),
        };
        let message = fatal.encode();
        let header = postgres_protocol::message::backend::Message::parse(&mut BytesMut::from(
            message.as_ref(),
        ));
        assert!(matches!(
            header,
            Ok(Some(postgres_protocol::message::backend::Message::ErrorResponse(_)))
        ));
        assert_eq!(error_field(&message[5..], b'C'), Some("57P01"));
        assert_eq!(error_field(&message[5..], b'M'), Some("moved"));
        assert_eq!(error_field(&message[5..], b'H'), Some("Connect again."));
        assert_eq!(error_field(&message[5..], b'D'), None);
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(Bytes::from(bytes.clone()));
            let _ = error_field(&bytes, b'C');
        }

        #[test]
        fn no_body_makes_it_panic(code in 196_600_u32..196_620, body in "[a\\x00]{0,40}") {
            let _ = parse(packet(code, body.as_bytes()).into());
        }
    }
}
