//! The grammar of SCRAM's messages: attributes of one letter and a value, separated by commas (RFC 5802 §5.1).

use super::ScramError;

/// The longest message of an exchange, in bytes; the server's own limit (`PG_MAX_SASL_MESSAGE_LENGTH`).
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// What of a message has not been read yet.
pub(super) struct Attributes<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Errors when the message is empty, too long, or holds a NUL byte.
    pub(super) fn of(message: &'a [u8]) -> Result<Self, ScramError> {
        match message {
            [] => Err(ScramError::Malformed("the message is empty")),
            _ if message.len() > MESSAGE_BYTES_MAX => {
                Err(ScramError::Malformed("the message is too long"))
            }
            _ if message.contains(&0) => Err(ScramError::Malformed("a NUL byte in the message")),
            rest => Ok(Self { rest }),
        }
    }

    /// The value of the next attribute, which must have this name.
    pub(super) fn value(&mut self, name: u8) -> Result<&'a [u8], ScramError> {
        match self.any()? {
            (found, value) if found == name => Ok(value),
            _ => Err(ScramError::Malformed("another attribute was expected")),
        }
    }

    /// The next attribute: its letter and its value.
    pub(super) fn any(&mut self) -> Result<(u8, &'a [u8]), ScramError> {
        let [name, b'=', after @ ..] = self.rest else {
            return Err(ScramError::Malformed("an attribute was expected"));
        };
        if !name.is_ascii_alphabetic() {
            return Err(ScramError::Malformed("an attribute's name is a letter"));
        }
        let end = after.iter().position(|byte| *byte == b',');
        let value = &after[..end.unwrap_or(after.len())];
        self.rest = end.map_or(&[], |end| &after[end + 1..]);
        Ok((*name, value))
    }
}

/// Whether a nonce is of the characters that the standard allows: printable and no comma.
pub(super) fn is_nonce(nonce: &[u8]) -> bool {
    nonce.iter().all(|byte| byte.is_ascii_graphic() && *byte != b',')
}
