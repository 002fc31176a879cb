//! What clients send, appended to a buffer; a message that cannot be built leaves the buffer as it was.

use bytes::{BufMut, BytesMut};

use super::{finish, message, put_string};
use crate::error::{Error, ErrorKind, Result};

/// Prepares `sql` under `name` (empty: the unnamed statement); a type OID of zero, or none, lets the server infer.
pub fn parse(buffer: &mut BytesMut, name: &str, sql: &str, types: &[u32]) -> Result<()> {
    let count = parameter_count(types.len())?;
    message(buffer, b'P', |buffer| {
        put_string(buffer, name)?;
        put_string(buffer, sql)?;
        buffer.put_u16(count);
        types.iter().for_each(|oid| buffer.put_u32(*oid));
        Ok(())
    })
}

/// Binds parameters in text form to a statement, as the unnamed portal with results in text form.
pub fn bind<'a>(
    buffer: &mut BytesMut,
    statement: &str,
    params: impl Iterator<Item = Option<&'a [u8]>>,
) -> Result<()> {
    let mut bind = Bind::begin(buffer, statement)?;
    params.for_each(|value| bind.param(value));
    bind.finish()
}

/// A Bind message under construction (unnamed portal, everything in text form): values are written in place, so
/// that long ones need no buffer of their own. Dropped before [`Bind::finish`], it leaves the buffer as it was.
pub struct Bind<'a> {
    buffer: &'a mut BytesMut,
    start: usize,
    count_at: usize,
    count: usize,
    finished: bool,
}

impl<'a> Bind<'a> {
    /// Begins the message for a prepared statement.
    pub fn begin(buffer: &'a mut BytesMut, statement: &str) -> Result<Self> {
        let start = buffer.len();
        let mut bind = Self { buffer, start, count_at: 0, count: 0, finished: false };
        bind.buffer.put_u8(b'B');
        bind.buffer.put_u32(0);
        bind.buffer.put_u8(0);
        put_string(bind.buffer, statement)?;
        // No format codes: all parameters are text.
        bind.buffer.put_u16(0);
        bind.count_at = bind.buffer.len();
        bind.buffer.put_u16(0);
        Ok(bind)
    }

    /// Appends the next parameter, `None` being NULL.
    pub fn param(&mut self, value: Option<&[u8]>) {
        self.count += 1;
        match value {
            // A value over 2 GiB makes the whole message too long, which `finish` refuses.
            Some(value) => {
                self.buffer.put_u32(value.len() as u32);
                self.buffer.put_slice(value);
            }
            None => self.buffer.put_i32(-1),
        }
    }

    /// Appends the next parameter as what `write` appends to the buffer.
    pub fn param_with(&mut self, write: impl FnOnce(&mut BytesMut)) {
        self.count += 1;
        let at = self.buffer.len();
        self.buffer.put_u32(0);
        write(self.buffer);
        let length = (self.buffer.len() - at - 4) as u32;
        self.buffer[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// Ends the message.
    ///
    /// Errors ([`ErrorKind::Encode`]) on more than 65535 parameters or 2 GiB.
    pub fn finish(mut self) -> Result<()> {
        let count = parameter_count(self.count)?;
        self.buffer[self.count_at..self.count_at + 2].copy_from_slice(&count.to_be_bytes());
        self.buffer.put_u16(0);
        finish(self.buffer, self.start)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Bind<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.buffer.truncate(self.start);
        }
    }
}

/// Runs the unnamed portal to its end.
pub fn execute(buffer: &mut BytesMut) {
    buffer.put_slice(b"E\0\0\0\x09\0\0\0\0\0");
}

/// Ends a pipeline: the server closes the implicit transaction and answers ReadyForQuery.
pub fn sync(buffer: &mut BytesMut) {
    buffer.put_slice(b"S\0\0\0\x04");
}

/// Asks the server to send what it has, without ending the pipeline.
pub fn flush(buffer: &mut BytesMut) {
    buffer.put_slice(b"H\0\0\0\x04");
}

/// Says goodbye.
pub fn terminate(buffer: &mut BytesMut) {
    buffer.put_slice(b"X\0\0\0\x04");
}

/// Runs one or more statements by the simple protocol.
pub fn query(buffer: &mut BytesMut, sql: &str) -> Result<()> {
    message(buffer, b'Q', |buffer| put_string(buffer, sql))
}

/// Asks for the parameters and columns of a prepared statement.
pub fn describe_statement(buffer: &mut BytesMut, name: &str) -> Result<()> {
    named(buffer, b'D', b'S', name)
}

/// Asks for the columns of the unnamed portal.
pub fn describe_portal(buffer: &mut BytesMut) {
    buffer.put_slice(b"D\0\0\0\x06P\0");
}

/// Forgets a prepared statement; one that does not exist is no error.
pub fn close_statement(buffer: &mut BytesMut, name: &str) -> Result<()> {
    named(buffer, b'C', b'S', name)
}

/// One piece of a COPY stream.
///
/// Errors ([`ErrorKind::Encode`]) when it is longer than 2 GiB.
pub fn copy_data(buffer: &mut BytesMut, data: &[u8]) -> Result<()> {
    message(buffer, b'd', |buffer| {
        buffer.put_slice(data);
        Ok(())
    })
}

/// The end of a COPY stream.
pub fn copy_done(buffer: &mut BytesMut) {
    buffer.put_slice(b"c\0\0\0\x04");
}

/// The start-up message of protocol 3.0.
///
/// Errors ([`ErrorKind::Encode`]) when a name or value holds a NUL byte or a name is empty.
pub fn startup<'a>(
    buffer: &mut BytesMut,
    parameters: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<()> {
    let mut body = BytesMut::new();
    body.put_u32(super::startup::PROTOCOL_3_0);
    for (name, value) in parameters {
        if name.is_empty() {
            return Err(Error::new(ErrorKind::Encode, "a session setting has an empty name"));
        }
        put_string(&mut body, name)?;
        put_string(&mut body, value)?;
    }
    body.put_u8(0);
    buffer.put_u32(body.len() as u32 + 4);
    buffer.put_slice(&body);
    Ok(())
}

/// Asks for the end of another session's statement, on a connection of its own.
pub fn cancel_request(buffer: &mut BytesMut, pid: u32, key: &[u8]) {
    buffer.put_u32(12 + key.len() as u32);
    buffer.put_u32(super::startup::CANCEL_CODE);
    buffer.put_u32(pid);
    buffer.put_slice(key);
}

fn named(buffer: &mut BytesMut, tag: u8, kind: u8, name: &str) -> Result<()> {
    message(buffer, tag, |buffer| {
        buffer.put_u8(kind);
        put_string(buffer, name)
    })
}

fn parameter_count(count: usize) -> Result<u16> {
    u16::try_from(count).map_err(|_| {
        let text = format!("{count} parameters are more than a statement can have (65535)");
        Error::new(ErrorKind::Encode, text)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use postgres_protocol::IsNull;
    use postgres_protocol::message::frontend as reference;
    use proptest::prelude::*;

    proptest! {
        /// The same bytes as the library that `tokio-postgres` uses.
        #[test]
        fn as_postgres_protocol_builds_them(
            name in "[a-z]{0,9}", sql in "[^\0]{0,60}", types: Vec<u32>,
            params: Vec<Option<Vec<u8>>>,
        ) {
            let (mut ours, mut theirs) = (BytesMut::new(), BytesMut::new());
            parse(&mut ours, &name, &sql, &types).unwrap();
            reference::parse(&name, &sql, types, &mut theirs).unwrap();
            bind(&mut ours, &name, params.iter().map(|value| value.as_deref())).unwrap();
            let write = |value: &Option<Vec<u8>>, buffer: &mut BytesMut| match value {
                Some(value) => {
                    buffer.put_slice(value);
                    Ok(IsNull::No)
                }
                None => Ok(IsNull::Yes),
            };
            assert!(reference::bind("", &name, [], &params, write, [], &mut theirs).is_ok());
            execute(&mut ours);
            reference::execute("", 0, &mut theirs).unwrap();
            describe_statement(&mut ours, &name).unwrap();
            reference::describe(b'S', &name, &mut theirs).unwrap();
            describe_portal(&mut ours);
            reference::describe(b'P', "", &mut theirs).unwrap();
            close_statement(&mut ours, &name).unwrap();
            reference::close(b'S', &name, &mut theirs).unwrap();
            query(&mut ours, &sql).unwrap();
            reference::query(&sql, &mut theirs).unwrap();
            sync(&mut ours);
            reference::sync(&mut theirs);
            flush(&mut ours);
            reference::flush(&mut theirs);
            terminate(&mut ours);
            reference::terminate(&mut theirs);
            copy_done(&mut ours);
            reference::copy_done(&mut theirs);
            startup(&mut ours, [("user", name.as_str())].into_iter()).unwrap();
            reference::startup_message([("user", name.as_str())], &mut theirs).unwrap();
            cancel_request(&mut ours, 7, &9i32.to_be_bytes());
            reference::cancel_request(7, 9, &mut theirs);
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn a_failed_message_leaves_nothing() {
        let mut buffer = BytesMut::from("before");
        assert!(query(&mut buffer, "a\0b").is_err());
        assert!(bind(&mut buffer, "a\0b", std::iter::empty()).is_err());
        assert!(bind(&mut buffer, "s", std::iter::repeat_n(None, 65536)).is_err());
        assert!(parse(&mut buffer, "", "", &[0; 65536]).is_err());
        assert_eq!(&buffer[..], b"before");
        bind(&mut buffer, "s", std::iter::repeat_n(None, 65535)).unwrap();
    }

    #[test]
    fn values_can_be_written_in_place() {
        let (mut ours, mut theirs) = (BytesMut::new(), BytesMut::new());
        let mut message = Bind::begin(&mut ours, "s").unwrap();
        message.param_with(|buffer| buffer.put_slice(b"{1,2}"));
        message.finish().unwrap();
        bind(&mut theirs, "s", std::iter::once(Some(&b"{1,2}"[..]))).unwrap();
        assert_eq!(ours, theirs);
    }
}
