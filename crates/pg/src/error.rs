//! What can go wrong with a server: one error type that says what, where, and whether trying again can help.

use std::error::Error as StdError;
use std::{fmt, io};

use crate::config::Config;
use crate::wire::backend::ServerError;

/// The result of everything that talks to a server.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, coarsely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A connection URL or option makes no sense.
    Config,
    /// No connection to the address: refused, unknown host, no such socket.
    Unreachable,
    /// The time limit of an operation has passed.
    Timeout,
    /// TLS could not be agreed on.
    Tls,
    /// The server refused the role or its password.
    Authentication,
    /// The server refused the session for another reason: no such database, too many clients, starting up.
    Refused,
    /// The server is older than this crate understands.
    TooOld,
    /// The server has closed the connection.
    Closed,
    /// Reading or writing failed.
    Io,
    /// The server answered a statement with an error.
    Server,
    /// The server sent what the protocol does not allow here.
    Protocol,
    /// A message cannot be built: a NUL byte in a text, or too long.
    Encode,
}

/// A failure, with the server's own words where there are any.
///
/// `Display` is one line and complete (server message, detail, hint and the operating system's reason included).
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    text: String,
    server: Option<ServerError>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of ours.
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, text: text.into(), server: None, source: None }))
    }

    /// An error of ours with what caused it, which becomes part of its text.
    pub fn with_source(
        kind: ErrorKind,
        text: impl Into<String>,
        source: Box<dyn StdError + Send + Sync>,
    ) -> Self {
        Self(Box::new(Inner { kind, text: text.into(), server: None, source: Some(source) }))
    }

    /// The server's answer to a statement. `doing` is what failed ("create slot x"), or empty.
    pub fn server(doing: impl Into<String>, error: ServerError) -> Self {
        let (text, kind) = (doing.into(), ErrorKind::Server);
        Self(Box::new(Inner { kind, text, server: Some(error), source: None }))
    }

    /// The server's answer to the start-up of a session, told with address, role and database.
    pub(crate) fn startup(config: &Config, error: ServerError) -> Self {
        let (user, database) = (&config.user, &config.database);
        let place = format!("PostgreSQL at {} refused", config.address());
        let (kind, text) = match error.sqlstate.as_str() {
            "28P01" | "28000" => {
                let text = format!("{place} the login of role \"{user}\" to \"{database}\"");
                (ErrorKind::Authentication, text)
            }
            _ => {
                let text = format!("{place} a session of role \"{user}\" in \"{database}\"");
                (ErrorKind::Refused, text)
            }
        };
        Self(Box::new(Inner { kind, text, server: Some(error), source: None }))
    }

    /// The same error, with what was being done in front of it.
    pub fn while_doing(mut self, doing: &str) -> Self {
        let text = &self.0.text;
        self.0.text = if text.is_empty() { doing.to_owned() } else { format!("{doing}: {text}") };
        self
    }

    /// What went wrong, coarsely.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The five characters of PostgreSQL's error code, when the server has spoken.
    pub fn sqlstate(&self) -> Option<&str> {
        self.0.server.as_ref().map(|server| server.sqlstate.as_str())
    }

    /// The server's own report, when it has spoken.
    pub fn server_error(&self) -> Option<&ServerError> {
        self.0.server.as_ref()
    }

    /// Whether the same attempt can succeed later without anybody changing anything: lost connections, restarts,
    /// serialization failures, deadlocks, lock and statement timeouts, lack of resources.
    pub fn is_transient(&self) -> bool {
        if let Some(code) = self.sqlstate() {
            return matches!(code.get(..2), Some("08" | "40" | "53" | "58"))
                || matches!(
                    code,
                    "55P03" | "55006" | "57014" | "57P01" | "57P02" | "57P03" | "57P05"
                );
        }
        match self.0.kind {
            ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::Closed | ErrorKind::Io => true,
            ErrorKind::Config
            | ErrorKind::Tls
            | ErrorKind::Authentication
            | ErrorKind::Refused
            | ErrorKind::TooOld
            | ErrorKind::Server
            | ErrorKind::Protocol
            | ErrorKind::Encode => false,
        }
    }

    /// Bytes that the protocol does not allow here.
    pub(crate) fn protocol(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Protocol, text)
    }

    /// Reading or writing failed.
    pub(crate) fn io(doing: &str, error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => ErrorKind::Closed,
            _ => ErrorKind::Io,
        };
        Self::with_source(kind, doing, Box::new(error))
    }

    /// The server has closed the connection without a word.
    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the PostgreSQL server has closed the connection")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.text.clone();
        let mut append = |part: String| {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        };
        if let Some(server) = &self.0.server {
            append(server.to_string());
        }
        let mut source = self.0.source.as_deref().map(|source| source as &dyn StdError);
        while let Some(error) = source {
            append(error.to_string());
            source = error.source();
        }
        f.write_str(&one_line(&text))
    }
}

/// Line breaks become blanks: an error is one line of a log.
fn one_line(text: &str) -> String {
    text.split(['\n', '\r'])
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl StdError for Error {}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(server) = error.as_db_error() {
            return Self::server("", ServerError::from(server));
        }
        let text = error.to_string();
        let closed = error.is_closed();
        match error.into_source() {
            Some(source) => match source.downcast::<io::Error>() {
                Ok(source) => Self::io(&text, *source),
                Err(source) => Self::with_source(ErrorKind::Protocol, text, source),
            },
            None if closed => Self::closed(),
            None => Self::new(ErrorKind::Protocol, text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(sqlstate: &str) -> ServerError {
        ServerError {
            severity: "ERROR".into(),
            sqlstate: sqlstate.into(),
            message: "no\nway".into(),
            detail: Some("because".into()),
            hint: Some("do it".into()),
            ..ServerError::default()
        }
    }

    #[test]
    fn one_complete_line() {
        let error = Error::server("create slot \"a\"", server("55006"));
        let text = "create slot \"a\": ERROR 55006: no way (detail: because) (hint: do it)";
        assert_eq!(error.to_string(), text);
        assert!(error.is_transient());
        assert!(!Error::server("", server("42601")).is_transient());
    }

    #[test]
    fn the_reason_is_in_the_line() {
        let error = Error::io("read", io::Error::new(io::ErrorKind::ConnectionReset, "reset"));
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::Closed, "read: reset".into()));
    }
}
