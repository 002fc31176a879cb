//! Asks the server, by a fresh session, whether it takes sessions.

use std::time::Duration;

use super::Target;
use super::connect::{connect, one_line};

/// The server is starting, stopping or recovering.
const CANNOT_CONNECT_NOW: &str = "57P03";
/// All sessions are in use: busy, but alive.
const TOO_MANY_CONNECTIONS: &str = "53300";

/// What the server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `server_version_num`.
    pub version: u32,
    /// When its postmaster was started.
    pub postmaster_started: String,
    /// `system_identifier` of its control file.
    pub system_identifier: String,
}

/// The outcome of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// It answered.
    Alive(Facts),
    /// It answered that it has no session left.
    Busy,
    /// It answered that it takes none yet.
    Starting(String),
    /// It did not answer, or refused: the sentence says why.
    Failed(String),
}

/// Opens a session and asks, within `timeout_ms`.
pub(super) async fn probe(target: &Target, timeout_ms: u64) -> Probe {
    let ask = async {
        let client = match connect(target).await {
            Ok(client) => client,
            Err(error) => {
                return match error.sqlstate() {
                    Some(CANNOT_CONNECT_NOW) => Probe::Starting(error.to_string()),
                    Some(TOO_MANY_CONNECTIONS) => Probe::Busy,
                    _ => Probe::Failed(error.to_string()),
                };
            }
        };
        match client.query_one(include_str!("probe.sql"), &[]).await {
            Ok(row) => Probe::Alive(Facts {
                version: u32::try_from(row.get::<_, i32>(0)).unwrap_or(0),
                postmaster_started: row.get(1),
                system_identifier: row.get(2),
            }),
            Err(error) => Probe::Failed(one_line(&error)),
        }
    };
    let timeout = Duration::from_millis(timeout_ms);
    tokio::time::timeout(timeout, ask).await.unwrap_or_else(|_| {
        Probe::Failed(format!("no answer from {} within {timeout_ms} ms", target.address()))
    })
}
