//! Calls and answers as they travel: length, kind, number, and what belongs to the kind.
//!
//! ```text
//! length u32 (of the rest) | kind u8 | number u64 | request: service length u8, service | body
//! ```

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

const REQUEST: u8 = 1;
const ANSWER: u8 = 2;
const ERROR: u8 = 3;
const LENGTH_BYTES: usize = 4;
/// Kind, number, and the longest name of a service with its length.
pub(super) const HEADER_BYTES_MAX: usize = 1 + 8 + 1 + u8::MAX as usize;

/// One message of a connection for calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Please work on this.
    Request { number: u64, service: Bytes, body: Bytes },
    /// Here is the result.
    Answer { number: u64, body: Bytes },
    /// It did not work.
    Error { number: u64, message: Bytes },
}

impl Frame {
    /// Appends the frame to `out`.
    pub(super) fn encode(&self, out: &mut BytesMut) {
        let (kind, number, service, body) = match self {
            Self::Request { number, service, body } => (REQUEST, *number, Some(service), body),
            Self::Answer { number, body } => (ANSWER, *number, None, body),
            Self::Error { number, message } => (ERROR, *number, None, message),
        };
        let service_bytes = service.map_or(0, |service| 1 + service.len());
        let length = 1 + 8 + service_bytes + body.len();
        out.reserve(LENGTH_BYTES + length);
        // Senders keep to `frame_bytes_max`, which is far below 4 GiB.
        out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        out.put_u8(kind);
        out.put_u64(number);
        if let Some(service) = service {
            out.put_u8(u8::try_from(service.len()).unwrap_or(u8::MAX));
            out.put_slice(service);
        }
        out.put_slice(body);
    }

    fn decode(mut bytes: Bytes) -> Option<Self> {
        let (kind, number) = (bytes.try_get_u8().ok()?, bytes.try_get_u64().ok()?);
        match kind {
            REQUEST => {
                let length = usize::from(bytes.try_get_u8().ok()?);
                let service = (bytes.len() >= length).then(|| bytes.split_to(length))?;
                Some(Self::Request { number, service, body: bytes })
            }
            ANSWER => Some(Self::Answer { number, body: bytes }),
            ERROR => Some(Self::Error { number, message: bytes }),
            _ => None,
        }
    }

    /// Reads the next frame of at most `bytes_max` and its header; `None` when the other side has ended.
    pub(super) async fn read(
        from: &mut (impl AsyncRead + Unpin),
        bytes_max: usize,
    ) -> io::Result<Option<Self>> {
        let Some(bytes) = read_block(from, bytes_max.saturating_add(HEADER_BYTES_MAX)).await?
        else {
            return Ok(None);
        };
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "a malformed frame");
        Self::decode(bytes).map(Some).ok_or_else(invalid)
    }
}

/// Reads a length and that many bytes; `None` when the other side has ended before the length.
pub(super) async fn read_block(
    from: &mut (impl AsyncRead + Unpin),
    bytes_max: usize,
) -> io::Result<Option<Bytes>> {
    let length = match from.read_u32().await {
        Ok(length) => usize::try_from(length).unwrap_or(usize::MAX),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > bytes_max {
        let text = format!("a frame of {length} bytes exceeds the limit of {bytes_max}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = BytesMut::zeroed(length);
    from.read_exact(&mut bytes).await?;
    Ok(Some(bytes.freeze()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn frames_survive_the_way() {
        let frames = [
            Frame::Request {
                number: 7,
                service: Bytes::from_static(b"raft.append"),
                body: Bytes::from_static(b"x"),
            },
            Frame::Answer { number: u64::MAX, body: Bytes::new() },
            Frame::Error { number: 0, message: Bytes::from_static(b"no") },
        ];
        let mut bytes = BytesMut::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        let mut reader = &bytes[..];
        for frame in frames {
            assert_eq!(Frame::read(&mut reader, 100).await.unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut reader, 100).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_frame_beyond_the_limit_is_not_even_allocated() {
        let mut reader = &[0xff, 0xff, 0xff, 0xff, 1][..];
        let error = Frame::read(&mut reader, 100).await.unwrap_err();
        assert!(error.to_string().contains("exceeds the limit"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode_or_not_but_never_panic(bytes: Vec<u8>) {
            let _ = Frame::decode(Bytes::from(bytes));
        }
    }
}
