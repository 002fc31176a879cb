//! What a client has left on a server connection, as the server itself says, and how it is put on another one.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::rc::Rc;

use synapsedb_pg::quote;

use super::server::{AskError, Server};
use super::settings::{Settings, difference};
use super::worker::Worker;

/// The reasons for which a session keeps its connection, as `state.sql` gives them.
const PINS: [&str; 4] =
    ["temporary tables", "advisory locks", "cursors WITH HOLD", "prepared statements by PREPARE"];

/// The setting by which a server refuses to write for whoever was taken for a reader.
const GUARD: &str = "default_transaction_read_only";

/// What is on a server connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Settings made by SET and the like.
    pub(super) session: Settings,
    /// What keeps the connection with its client.
    pub(super) pin: Option<&'static str>,
    /// What it listens to.
    pub(super) channels: BTreeSet<String>,
}

impl Found {
    /// The settings that the client wants on another connection: those it began with, and what it has set since.
    pub(super) fn wanted(&self, began: &Settings) -> Settings {
        let mut wanted = began.clone();
        wanted.extend(self.session.iter().map(|(name, value)| (name.clone(), value.clone())));
        wanted
    }
}

/// Asks the server what the session of `user` has left; `names` are two-part settings that it may have made.
///
/// # Errors
/// The connection broke, or the server refuses the question.
pub(super) async fn look(
    server: &mut Server,
    user: &str,
    names: &BTreeSet<String>,
    worker: &Worker,
) -> Result<Found, AskError> {
    let mut sql = include_str!("state.sql").to_owned();
    for name in names {
        let name = quote::literal(name);
        let _ = write!(
            sql,
            " union all select 'custom', {name}, pg_catalog.current_setting({name}, true)"
        );
    }
    let rows = server.ask(&sql).await?;
    server.reported = worker.settings.intern(Settings::clone(&server.reported));
    let mut found = Found::default();
    let mut applied = Settings::new();
    for row in rows {
        match &row[..] {
            [Some(kind), Some(name), Some(value)] => match kind.as_str() {
                "channel" => {
                    found.channels.insert(name.clone());
                }
                "client" => {
                    applied.insert(name.clone(), value.clone());
                }
                "session" => {
                    applied.insert(name.clone(), value.clone());
                    found.session.insert(name.clone(), value.clone());
                }
                // A setting of two parts that was reset is empty.
                "custom" if !value.is_empty() || server.applied.contains_key(name) => {
                    applied.insert(name.clone(), value.clone());
                    found.session.insert(name.clone(), value.clone());
                }
                _ => {}
            },
            [Some(kind), None, Some(value)] if kind == "user" && value != user => {
                applied.insert("session_authorization".to_owned(), value.clone());
                found.session.insert("session_authorization".to_owned(), value.clone());
            }
            [Some(kind), None, Some(value)] if kind == "pin" => {
                found.pin = PINS.into_iter().find(|pin| pin == value).or(found.pin);
            }
            _ => {}
        }
    }
    if std::mem::take(&mut server.guarded) {
        // A RESET ALL has taken it away, and with it what the client itself had set.
        server.guarded = applied.remove(GUARD).is_some_and(|value| value == "on");
        let own = server.applied.get(GUARD).filter(|_| server.guarded).cloned();
        found.session.remove(GUARD);
        for settings in [&mut applied, &mut found.session] {
            settings.extend(own.iter().map(|value| (GUARD.to_owned(), value.clone())));
        }
    }
    server.applied = worker.settings.intern(applied);
    Ok(found)
}

/// Gives a connection these settings; `guarded` also that it refuses to write.
///
/// # Errors
/// The connection broke, or the server refuses one of them; none is made then.
pub(super) async fn restore(
    server: &mut Server,
    wanted: &Rc<Settings>,
    guarded: bool,
    worker: &Worker,
) -> Result<(), AskError> {
    let (mut sql, mut applied) = (String::new(), Rc::clone(&server.applied));
    // Where the guard is, the client's own value is not.
    let is_hidden = applied.get(GUARD) != wanted.get(GUARD);
    if server.guarded && (!guarded || is_hidden) {
        sql.push_str("RESET default_transaction_read_only;");
        Rc::make_mut(&mut applied).remove(GUARD);
        server.guarded = false;
        // That was the last that it has said of it, and what stays so it does not say again.
        if let Some(said) = Rc::make_mut(&mut server.reported).get_mut(GUARD) {
            *said = "on".to_owned();
        }
    }
    sql.push_str(&difference(&applied, wanted));
    if !sql.is_empty() {
        server.ask(&sql).await?;
        server.reported = worker.settings.intern(Settings::clone(&server.reported));
    }
    server.applied = Rc::clone(wanted);
    if guarded && !server.guarded {
        // The client is not told: to it its transactions are as it has set them.
        let reported = Rc::clone(&server.reported);
        server.ask("SET default_transaction_read_only = on").await?;
        (server.reported, server.guarded) = (reported, true);
    }
    Ok(())
}
