//! How a lane stops: which transaction could not be applied, and whether that passes by itself.

use synapsedb_core::lsn::Lsn;
use synapsedb_pg::wire::backend::ServerError;

/// Why a lane stopped: the transaction that could not be applied. Nothing of it, and nothing after it, was.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) commit_lsn: Lsn,
    /// What the server said.
    pub(crate) error: Option<ServerError>,
    /// What we said, if it was not the server.
    pub(crate) reason: String,
    /// Tag and place in its transaction, if a DDL statement failed.
    pub(crate) ddl: Option<(String, usize)>,
    /// It was one of a run: which one, the next lane finds out by applying them one by one.
    pub(crate) run: bool,
    /// What it holds is not understood, so that nothing may be done without it.
    pub(crate) unreadable: bool,
}

impl Failure {
    /// Whether it passes by itself: a serialization failure, a deadlock, a lock that was waited for too long, a server
    /// that stops, or one without space.
    pub(crate) fn is_passing(&self) -> bool {
        self.error.as_ref().is_some_and(|error| is_passing(&error.sqlstate))
    }

    /// Whether the transactions of its group may have failed with it for the sake of one, or the group for what single
    /// transactions do not meet: a lock that it waited for while it held others.
    pub(crate) fn may_be_of_others(&self) -> bool {
        let code = self.error.as_ref().map(|error| error.sqlstate.as_str());
        let waited = matches!(code, Some("55P03" | "40P01"));
        !self.unreadable && (waited || !self.is_passing())
    }

    /// One line for the status and the log.
    pub(crate) fn text(&self) -> String {
        let statement = self.ddl.as_ref().map_or(String::new(), |(tag, _)| format!("{tag}: "));
        match &self.error {
            Some(error) => format!("{statement}{error}"),
            None => format!("{statement}{}", self.reason),
        }
    }
}

/// Whether an error of the server passes by itself and says nothing about a row.
pub(super) fn is_passing(sqlstate: &str) -> bool {
    matches!(sqlstate, "40001" | "40P01" | "55P03" | "57P01" | "57P02" | "57P03")
        || sqlstate.starts_with("53")
        || sqlstate.starts_with("08")
        || sqlstate.starts_with("58")
}

/// How a step of a lane ends: it goes on, a transaction failed, or the connection or the spool did.
pub(super) enum Stop {
    Failed(Box<Failure>),
    Broken(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

pub(super) type Step<T> = Result<T, Stop>;
