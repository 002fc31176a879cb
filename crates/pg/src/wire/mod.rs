//! The messages of PostgreSQL's protocol, version 3: what clients send, what servers answer, how a session begins.

pub mod backend;
pub mod frontend;
pub mod startup;

use crate::error::{Error, ErrorKind, Result};
use bytes::{BufMut, BytesMut};

/// Appends one message with its length; nothing stays in `buffer` when `body` fails or the message is too long.
pub(crate) fn message(
    buffer: &mut BytesMut,
    tag: u8,
    body: impl FnOnce(&mut BytesMut) -> Result<()>,
) -> Result<()> {
    let start = buffer.len();
    buffer.put_u8(tag);
    buffer.put_u32(0);
    let built = body(buffer).and_then(|()| finish(buffer, start));
    if built.is_err() {
        buffer.truncate(start);
    }
    built
}

/// Writes the length of the message that begins with the tag at `start`.
pub(crate) fn finish(buffer: &mut BytesMut, start: usize) -> Result<()> {
    let length = buffer.len() - start - 1;
    let length = i32::try_from(length).map_err(|_| {
        let text =
            format!("a message of {length} bytes is longer than the protocol allows (2 GiB)");
        Error::new(ErrorKind::Encode, text)
    })?;
    buffer[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// Appends a NUL-terminated string.
///
/// Errors ([`ErrorKind::Encode`]) when it holds a NUL byte, which PostgreSQL cannot represent.
pub(crate) fn put_string(buffer: &mut BytesMut, text: &str) -> Result<()> {
    if text.as_bytes().contains(&0) {
        let text = "a text with a NUL byte cannot be sent to PostgreSQL";
        return Err(Error::new(ErrorKind::Encode, text));
    }
    buffer.put_slice(text.as_bytes());
    buffer.put_u8(0);
    Ok(())
}
