//! The console: a database of this name on all endpoints, in which operators speak PgBouncer's commands.
//!
//! Its columns are PgBouncer 1.25's in their order, so that what reads PgBouncer reads it too; ours stand behind them.
//! What it shows and does is of this agent, all workers of it.

use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use synapsedb_pg::wire::startup as wire;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::account::Account;
use super::ending::{draining, killed};
use super::entry::{Activity, End, Entry};
use super::login::Turned;
use super::metrics::{EndedBy, Refused};
use super::places;
use super::roles::Role;
use super::socket::Socket;
use super::startup::Failure;
use super::worker::Worker;

mod command;
pub(super) mod drop_database;
mod extended;
pub(super) mod holds;
mod run;
mod show;
mod sockets;
mod statistics;
mod table;

pub(super) use show::pool_rows;
pub(super) use statistics::by_database;

/// The database that a client asks for to get the console.
pub(super) const DATABASE: &str = "synapsedb_admin";
/// The longest message that an operator may send.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Between two looks whether what a command waits for has come.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Whether the role may come in, and then whether it may do more than look.
///
/// # Errors
/// It may not.
pub(super) fn admit(worker: &Worker, user: &str, role: Option<&Role>) -> Result<bool, Turned> {
    let refused = |message: String, hint: &str| {
        let failure = Failure { sqlstate: "42501", message, hint: hint.to_owned() };
        Turned::new(Refused::Password, &failure)
    };
    let may_login = role.is_some_and(|role| role.may_login);
    if !may_login {
        return Err(refused(format!("role \"{user}\" is not permitted to log in"), ""));
    }
    let admin = worker.shared.local.as_ref().and_then(|local| local.admin.as_deref());
    if admin == Some(user) || role.is_some_and(|role| role.is_superuser) {
        return Ok(true);
    }
    if role.is_some_and(|role| role.may_monitor) {
        return Ok(false);
    }
    let hint = "The console is for superusers and the owner of the cluster's database; members of pg_monitor may look.";
    Err(refused(format!("permission denied for database \"{DATABASE}\""), hint))
}

/// An operator has closed the database to new clients.
pub(super) fn disabled(database: &str) -> Failure {
    Failure {
        sqlstate: "55000",
        message: format!("database \"{database}\" is not currently accepting connections"),
        hint: format!(
            "An operator has disabled it: `ENABLE` in database {DATABASE} opens it again."
        ),
    }
}

/// Waits until a transaction may begin in a paused database.
///
/// # Errors
/// The session must end.
pub(super) async fn wait_for_resume(account: &Account, entry: &Entry) -> Result<(), Failure> {
    let told = std::future::poll_fn(|cx| match entry.told(cx) {
        Some(End::Draining) => std::task::Poll::Ready(draining()),
        Some(End::Killed) => std::task::Poll::Ready(killed()),
        Some(End::PrimaryChanged(_) | End::Deaf | End::Missed) | None => std::task::Poll::Pending,
    });
    tokio::select! {
        failure = told => Err(failure),
        () = account.resumed() => Ok(()),
    }
}

/// Waits until a client may come in to a paused database that a server must be asked about first.
///
/// # Errors
/// It took too long.
pub(super) async fn wait_to_come_in(worker: &Worker, account: &Account) -> Result<(), Turned> {
    // Before the limit of the whole login, so that the client is told why.
    let patience = Duration::from_millis(worker.shared.config().startup_timeout_ms / 2);
    tokio::time::timeout(patience, account.resumed()).await.map_err(|_| {
        let failure = Failure {
            sqlstate: "57P03",
            message: format!("database \"{}\" is paused", account.database),
            hint: format!("An operator has paused it: `RESUME` in database {DATABASE} goes on."),
        };
        Turned::new(Refused::NoNode, &failure)
    })
}

/// An operator's session.
pub(super) struct Console {
    worker: Rc<Worker>,
    io: Socket,
    entry: Rc<Entry>,
    /// May do more than look.
    may_change: bool,
    _place: places::Taken,
    inbox: BytesMut,
    extended: extended::Extended,
}

impl Console {
    pub(super) fn new(
        worker: Rc<Worker>,
        io: Socket,
        entry: Rc<Entry>,
        may_change: bool,
        place: places::Taken,
    ) -> Self {
        let extended = extended::Extended::default();
        Self { worker, io, entry, may_change, _place: place, inbox: BytesMut::new(), extended }
    }

    /// Serves the operator until one of the two ends it.
    pub(super) async fn run(mut self) {
        tracing::info!(
            user = self.entry.client.user,
            pid = self.entry.client.pid,
            "console opened"
        );
        let (by, failure) = self.live().await;
        let shared = &self.worker.shared;
        shared.metrics.ended(by);
        self.worker.sessions.borrow_mut().remove(&self.entry.client.pid);
        let last = failure.map(|failure| failure.fatal()).unwrap_or_default();
        self.io.part(&last, self.worker.farewell()).await;
    }

    async fn live(&mut self) -> (EndedBy, Option<Failure>) {
        self.entry.activity.set(Activity::Idle);
        if self.send(&self.hello()).await.is_err() {
            return (EndedBy::ClientLost, None);
        }
        loop {
            match self.next_message().await {
                Ok(Some((b'X', _))) | Ok(None) => return (EndedBy::Client, None),
                Ok(Some((tag, body))) => {
                    self.entry.activity.set(Activity::Active);
                    let answered = self.answer(tag, &body).await;
                    self.entry.activity.set(Activity::Idle);
                    let answer = match answered {
                        Ok(answer) => answer,
                        Err(end) => return end,
                    };
                    if self.send(&answer).await.is_err() {
                        return (EndedBy::ClientLost, None);
                    }
                }
                Err(end) => return end,
            }
        }
    }

    fn hello(&self) -> BytesMut {
        let mut out = BytesMut::new();
        for (name, value) in [
            ("server_version", concat!("1.25.0/synapsedb-", env!("CARGO_PKG_VERSION"))),
            ("client_encoding", "UTF8"),
            ("server_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("TimeZone", "GMT"),
            ("integer_datetimes", "on"),
            ("standard_conforming_strings", "on"),
            ("is_superuser", if self.may_change { "on" } else { "off" }),
            ("session_authorization", self.entry.client.user.as_str()),
        ] {
            wire::parameter_status(&mut out, name, value);
        }
        wire::backend_key_data(&mut out, self.entry.client.pid, &self.entry.secret);
        wire::ready_for_query(&mut out, b'I');
        out
    }

    /// The answer to one message; what must be said at once, was.
    async fn answer(
        &mut self,
        tag: u8,
        body: &[u8],
    ) -> Result<BytesMut, (EndedBy, Option<Failure>)> {
        let mut out = BytesMut::new();
        if tag == b'Q' {
            let text = String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(body));
            match self.carry_out(&text).await? {
                Ok(reply) => reply.put(true, &table::Formats::default(), &mut out),
                Err(failure) => out.extend_from_slice(&failure.error()),
            }
            wire::ready_for_query(&mut out, b'I');
            return Ok(out);
        }
        self.extended_message(tag, body, &mut out).await?;
        Ok(out)
    }

    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// The next whole message; `None` if the operator has gone.
    async fn next_message(&mut self) -> Result<Option<(u8, BytesMut)>, (EndedBy, Option<Failure>)> {
        loop {
            if let Some(&[tag, a, b, c, d]) = self.inbox.first_chunk() {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
                    let failure =
                        super::upstream::violation(format!("invalid message length {length}"));
                    return Err((EndedBy::Client, Some(failure)));
                }
                if self.inbox.len() > length {
                    let mut message = self.inbox.split_to(length + 1);
                    let body = message.split_off(5);
                    return Ok(Some((tag, body)));
                }
            }
            if !self.read_more().await? {
                return Ok(None);
            }
        }
    }

    /// Reads what the operator sends; `false` when he has gone.
    async fn read_more(&mut self) -> Result<bool, (EndedBy, Option<Failure>)> {
        let entry = Rc::clone(&self.entry);
        let told = std::future::poll_fn(|cx| match entry.told(cx) {
            Some(End::Draining) => std::task::Poll::Ready((EndedBy::Draining, Some(draining()))),
            Some(End::Killed) => std::task::Poll::Ready((EndedBy::Killed, Some(killed()))),
            Some(End::PrimaryChanged(_) | End::Deaf | End::Missed) | None => {
                std::task::Poll::Pending
            }
        });
        tokio::select! {
            end = told => Err(end),
            read = self.io.read_buf(&mut self.inbox) => match read {
                Ok(read) => Ok(read > 0),
                Err(_) => Err((EndedBy::ClientLost, None)),
            },
        }
    }
}
