//! What servers answer: tags, errors and notices, command tags, rows.

use std::fmt;

use bytes::Bytes;

use crate::error::{Error, Result};

/// Authentication request or success.
pub const AUTHENTICATION: u8 = b'R';
/// Process id and secret for cancel requests.
pub const BACKEND_KEY_DATA: u8 = b'K';
/// A setting the server reports.
pub const PARAMETER_STATUS: u8 = b'S';
/// The server waits for the next statement; the end of a pipeline.
pub const READY_FOR_QUERY: u8 = b'Z';
/// An error: the rest of the pipeline up to Sync is skipped.
pub const ERROR_RESPONSE: u8 = b'E';
/// A notice, at any time.
pub const NOTICE_RESPONSE: u8 = b'N';
/// A notification (`LISTEN`), at any time.
pub const NOTIFICATION_RESPONSE: u8 = b'A';
/// Parse succeeded.
pub const PARSE_COMPLETE: u8 = b'1';
/// Bind succeeded.
pub const BIND_COMPLETE: u8 = b'2';
/// Close succeeded.
pub const CLOSE_COMPLETE: u8 = b'3';
/// Execute or a statement of a simple query succeeded.
pub const COMMAND_COMPLETE: u8 = b'C';
/// An empty statement succeeded.
pub const EMPTY_QUERY_RESPONSE: u8 = b'I';
/// One row.
pub const DATA_ROW: u8 = b'D';
/// The columns of the rows that follow.
pub const ROW_DESCRIPTION: u8 = b'T';
/// A statement without rows was described.
pub const NO_DATA: u8 = b'n';
/// The parameter types of a described statement.
pub const PARAMETER_DESCRIPTION: u8 = b't';
/// A COPY from the client begins.
pub const COPY_IN_RESPONSE: u8 = b'G';
/// A COPY to the client begins.
pub const COPY_OUT_RESPONSE: u8 = b'H';
/// A COPY in both directions begins: replication.
pub const COPY_BOTH_RESPONSE: u8 = b'W';
/// A piece of a COPY.
pub const COPY_DATA: u8 = b'd';
/// The end of a COPY.
pub const COPY_DONE: u8 = b'c';
/// The server speaks an older minor version of the protocol.
pub const NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';

/// What a server reports in an ErrorResponse or NoticeResponse. `Display` is one line, unless the message has more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, or a notice's level, never translated.
    pub severity: String,
    /// The five characters of PostgreSQL's error code.
    pub sqlstate: String,
    /// The message.
    pub message: String,
    /// DETAIL.
    pub detail: Option<String>,
    /// HINT.
    pub hint: Option<String>,
    /// The place in the statement, in characters from 1.
    pub position: Option<u32>,
    /// CONTEXT: where in functions it happened.
    pub context: Option<String>,
    /// The schema of the object it is about.
    pub schema: Option<String>,
    /// The table it is about.
    pub table: Option<String>,
    /// The column it is about.
    pub column: Option<String>,
    /// The data type it is about.
    pub data_type: Option<String>,
    /// The constraint it is about.
    pub constraint: Option<String>,
}

impl ServerError {
    /// Reads the body of an ErrorResponse or NoticeResponse. Never fails: what is missing or cut off stays empty.
    pub fn parse(body: &[u8]) -> Self {
        let mut error = Self::default();
        let mut rest = body;
        while let Some((&field, after)) = rest.split_first().filter(|(field, _)| **field != 0) {
            let end = after.iter().position(|byte| *byte == 0).unwrap_or(after.len());
            let text = || String::from_utf8_lossy(&after[..end]).into_owned();
            match field {
                b'V' => error.severity = text(),
                b'S' if error.severity.is_empty() => error.severity = text(),
                b'C' => error.sqlstate = text(),
                b'M' => error.message = text(),
                b'D' => error.detail = Some(text()),
                b'H' => error.hint = Some(text()),
                b'P' => error.position = text().parse().ok(),
                b'W' => error.context = Some(text()),
                b's' => error.schema = Some(text()),
                b't' => error.table = Some(text()),
                b'c' => error.column = Some(text()),
                b'd' => error.data_type = Some(text()),
                b'n' => error.constraint = Some(text()),
                _ => {}
            }
            rest = after.get(end + 1..).unwrap_or_default();
        }
        error
    }

    /// Whether the session has ended with it.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.sqlstate, self.message)?;
        for (name, part) in [("detail", &self.detail), ("hint", &self.hint)] {
            if let Some(text) = part {
                write!(f, " ({name}: {text})")?;
            }
        }
        Ok(())
    }
}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Self {
            severity: error.severity().to_owned(),
            sqlstate: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: owned(error.detail()),
            hint: owned(error.hint()),
            position: match error.position() {
                Some(tokio_postgres::error::ErrorPosition::Original(place)) => Some(*place),
                Some(_) | None => None,
            },
            context: owned(error.where_()),
            schema: owned(error.schema()),
            table: owned(error.table()),
            column: owned(error.column()),
            data_type: owned(error.datatype()),
            constraint: owned(error.constraint()),
        }
    }
}

/// The number of rows in the body of a CommandComplete (`UPDATE 3`, `INSERT 0 1`); `None` where the tag has none.
pub fn command_rows(body: &[u8]) -> Option<u64> {
    let tag = body.strip_suffix(b"\0").unwrap_or(body);
    let digits = &tag[tag.iter().rposition(|byte| *byte == b' ')? + 1..];
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })
}

/// The transaction state in the body of a ReadyForQuery: `I`dle, in a `T`ransaction, in a failed one (`E`).
pub fn transaction_status(body: &[u8]) -> Option<u8> {
    body.first().copied().filter(|_| body.len() == 1)
}

/// Name and value in the body of a ParameterStatus.
pub fn parameter_status(body: &[u8]) -> Result<(&str, &str)> {
    let malformed = || Error::protocol("the server sent a malformed ParameterStatus");
    let text = std::str::from_utf8(body).map_err(|_| malformed())?;
    let (name, rest) = text.split_once('\0').ok_or_else(malformed)?;
    Ok((name, rest.strip_suffix('\0').ok_or_else(malformed)?))
}

/// The values of a row (in text or binary form, as asked for), borrowed.
pub fn data_row(body: &[u8]) -> Result<DataRow<'_>> {
    let (count, rest) = body.split_first_chunk().ok_or_else(malformed_row)?;
    Ok(DataRow { left: u16::from_be_bytes(*count), rest })
}

/// Iterates over the values of one row; `Err` once when the row is malformed.
#[derive(Clone, Debug)]
pub struct DataRow<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> DataRow<'a> {
    fn value(&mut self) -> Result<Option<&'a [u8]>> {
        let (length, rest) = self.rest.split_first_chunk().ok_or_else(malformed_row)?;
        match i32::from_be_bytes(*length) {
            -1 => {
                self.rest = rest;
                Ok(None)
            }
            length => {
                let length = usize::try_from(length).map_err(|_| malformed_row())?;
                let (value, rest) = rest.split_at_checked(length).ok_or_else(malformed_row)?;
                self.rest = rest;
                Ok(Some(value))
            }
        }
    }
}

impl<'a> Iterator for DataRow<'a> {
    type Item = Result<Option<&'a [u8]>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let value = self.value();
        if value.is_err() {
            self.left = 0;
        }
        Some(value)
    }
}

fn malformed_row() -> Error {
    Error::protocol("the server sent a malformed row")
}

/// A row in text form that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row(Vec<Option<Bytes>>);

impl Row {
    /// Reads a DataRow without copying its values.
    pub fn parse(body: &Bytes) -> Result<Self> {
        data_row(body)?
            .map(|value| value.map(|value| value.map(|value| body.slice_ref(value))))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// The column's value as text; `None` for NULL, for text that is not UTF-8 and beyond the last column.
    pub fn text(&self, column: usize) -> Option<&str> {
        std::str::from_utf8(self.0.get(column)?.as_deref()?).ok()
    }

    /// The values.
    pub fn values(&self) -> &[Option<Bytes>] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_have_their_parts() {
        let body = b"SFEHLER\0VERROR\0C23505\0Mduplicate\0DKey\0Hhint\0P7\0ttab\0nkey\0\0";
        let error = ServerError::parse(body);
        assert_eq!(error.to_string(), "ERROR 23505: duplicate (detail: Key) (hint: hint)");
        assert_eq!((error.position, error.table.as_deref()), (Some(7), Some("tab")));
        assert!(!error.is_fatal());
    }

    #[test]
    fn command_tags() {
        assert_eq!(command_rows(b"UPDATE 3\0"), Some(3));
        assert_eq!(command_rows(b"INSERT 0 12\0"), Some(12));
        for tag in [&b"BEGIN\0"[..], b"CREATE TABLE\0", b"", b" ", b"UPDATE 99999999999999999999\0"]
        {
            assert_eq!(command_rows(tag), None);
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(body: Vec<u8>) {
            ServerError::parse(&body);
            command_rows(&body);
            transaction_status(&body);
            let _ = parameter_status(&body);
            let _ = Row::parse(&Bytes::from(body));
        }

        #[test]
        fn rows_round_trip(values: Vec<Option<Vec<u8>>>) {
            let mut body = (values.len() as u16).to_be_bytes().to_vec();
            for value in &values {
                match value {
                    Some(value) => {
                        body.extend((value.len() as u32).to_be_bytes());
                        body.extend(value);
                    }
                    None => body.extend((-1i32).to_be_bytes()),
                }
            }
            let row = Row::parse(&body.into()).unwrap();
            let read: Vec<_> = row.values().iter().map(|v| v.as_ref().map(|v| v.to_vec())).collect();
            assert_eq!(read, values);
        }
    }
}
