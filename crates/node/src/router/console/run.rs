//! Carries an operator's command out.

use bytes::BytesMut;
use synapsedb_pg::wire::startup as wire;

use super::command::Command;
use super::holds::Order;
use super::table::{Formats, Table, complete};
use super::{Console, DATABASE, MESSAGE_BYTES_MAX, POLL_INTERVAL, show};
use crate::router::metrics::EndedBy;
use crate::router::startup::Failure;

/// How a session ends.
type End = (EndedBy, Option<Failure>);

/// What a command comes to.
pub(super) enum Reply {
    Empty,
    Table(Table),
    /// A CommandComplete.
    Done(&'static str),
    /// A NOTICE with detail, and a CommandComplete.
    Told {
        notice: String,
        detail: Option<String>,
        tag: &'static str,
    },
}

impl Reply {
    /// Appends the messages.
    pub(super) fn put(&self, describe: bool, formats: &Formats, out: &mut BytesMut) {
        match self {
            Self::Empty => super::table::message(out, b'I', |_| ()),
            Self::Table(table) => {
                if describe {
                    table.describe(formats, out);
                }
                table.put_rows(formats, out);
                complete(out, "SHOW");
            }
            Self::Done(tag) => complete(out, tag),
            Self::Told { notice, detail, tag } => {
                wire::notice(out, "NOTICE", "00000", notice, detail.as_deref(), None);
                complete(out, tag);
            }
        }
    }
}

fn refused(sqlstate: &'static str, message: impl Into<String>, hint: &str) -> Failure {
    Failure { sqlstate, message: message.into(), hint: hint.to_owned() }
}

/// Reads a command.
///
/// # Errors
/// There is no such one.
pub(super) fn parse(text: &str) -> Result<Command, Failure> {
    Command::parse(text).ok_or_else(|| {
        let text = text.trim();
        let shown: String = text.chars().take(100).collect();
        refused("42601", format!("invalid command '{shown}', use SHOW HELP;"), "")
    })
}

impl Console {
    /// Carries a command out.
    pub(super) async fn carry_out(&mut self, text: &str) -> Result<Result<Reply, Failure>, End> {
        match parse(text) {
            Ok(command) => self.carry_out_parsed(command).await,
            Err(failure) => Ok(Err(failure)),
        }
    }

    pub(super) async fn carry_out_parsed(
        &mut self,
        command: Command,
    ) -> Result<Result<Reply, Failure>, End> {
        if !self.may_change && !command.only_looks() {
            let message = "permission denied: members of pg_monitor may only SHOW";
            let hint = "Connect as a superuser or as the owner of the cluster's database.";
            return Ok(Err(refused("42501", message, hint)));
        }
        if !command.only_looks() {
            tracing::info!(user = self.entry.client.user, ?command, "console: a command");
        }
        Ok(match command {
            Command::Empty => Ok(Reply::Empty),
            Command::Show(what) => Ok(show::show(&self.worker, what).await),
            Command::Pause(name) => return self.pause(name).await,
            Command::WaitClose(name) => return self.wait_until_closed("WAIT_CLOSE", name).await,
            Command::Resume(name) => self.resume(name).await,
            Command::Reconnect(name) => self.order("RECONNECT", Order::Reconnect(name)).await,
            Command::Kill(name) => self.order("KILL", Order::Kill(name)).await,
            Command::Disable(name) => self.order("DISABLE", Order::Disable(name)).await,
            Command::Enable(name) => self.order("ENABLE", Order::Enable(name)).await,
            Command::KillClient(pid) => self.kill_client(pid).await,
            Command::SetIgnored => {
                Ok(Reply::Told { notice: "SET ignored".to_owned(), detail: None, tag: "SET" })
            }
            Command::Set(name) => Err(refused(
                "0A000",
                format!("setting \"{name}\" is changed in the agent's file"),
                "Set it in section [router] of agent.toml, then RELOAD. Nothing was changed.",
            )),
            Command::Reload => self.reload().await,
            Command::Suspend => Err(refused(
                "0A000",
                "SUSPEND is not implemented",
                "PAUSE holds transactions back. Nothing was changed.",
            )),
            Command::Shutdown => Err(refused(
                "0A000",
                "the router is a part of the agent and cannot be shut down by itself",
                "To stop the agent: `synapsedb stop`, or SIGTERM to its process; sessions then have drain_ms to end. \
                 Nothing was changed.",
            )),
        })
    }

    /// Reads the agent's file again, and says what that has changed.
    async fn reload(&self) -> Result<Reply, Failure> {
        let reloaded = self.worker.shared.reload().await.map_err(|error| {
            let hint = "Mend the file and RELOAD again. Nothing was changed.";
            refused("F0000", format!("{error:#}"), hint)
        })?;
        let what = match &reloaded.changed[..] {
            [] => "nothing that RELOAD can change is otherwise than before".to_owned(),
            changed => format!("changed: {}", changed.join(", ")),
        };
        // On one machine the agents share the ports of the endpoints.
        let notice = format!("node {}: {what}", self.worker.shared.own);
        let detail = (!reloaded.waiting.is_empty()).then(|| {
            format!("Changed only when the agent is started anew: {}.", reloaded.waiting.join(", "))
        });
        Ok(Reply::Told { notice, detail, tag: "RELOAD" })
    }

    /// Gives an order about a database to all workers.
    async fn order(&self, tag: &'static str, order: Order) -> Result<Reply, Failure> {
        match &order {
            Order::Pause(name)
            | Order::Kill(name)
            | Order::Resume(name)
            | Order::Reconnect(name)
            | Order::Count(name) => not_the_console(name.as_deref())?,
            Order::Disable(name) | Order::Enable(name) => not_the_console(Some(name))?,
            Order::KillClient(_) | Order::CloseIdle(_) | Order::CloseIdleOf(_) | Order::Reload => {}
        }
        self.worker.shared.order(&order).await;
        Ok(Reply::Done(tag))
    }

    async fn resume(&self, name: Option<String>) -> Result<Reply, Failure> {
        let (paused, message) = {
            let holds = self.worker.holds.borrow();
            match &name {
                None => (holds.pauses_any(), "pooler is not paused/suspended".to_owned()),
                Some(name) => (holds.holds(name), format!("database {name} is not paused")),
            }
        };
        if !paused {
            return Err(refused("55000", message, ""));
        }
        if name.is_some() && self.worker.holds.borrow().is_paused() {
            let hint = "RESUME without a database resumes all.";
            return Err(refused("55000", "all databases are paused", hint));
        }
        self.order("RESUME", Order::Resume(name)).await
    }

    async fn kill_client(&self, pid: u32) -> Result<Reply, Failure> {
        if pid == self.entry.client.pid {
            return Err(refused("42704", "that is this session", "Close it to end it."));
        }
        match self.worker.shared.order(&Order::KillClient(pid)).await {
            0 => {
                let hint = "SHOW CLIENTS has the number in column id; clients of other agents are on their consoles.";
                Err(refused("42704", "client not found", hint))
            }
            _ => Ok(Reply::Done("KILL_CLIENT")),
        }
    }

    async fn pause(&mut self, name: Option<String>) -> Result<Result<Reply, Failure>, End> {
        if self.worker.holds.borrow().is_paused() {
            return Ok(Err(refused("55000", "already suspended/paused", "")));
        }
        if let Err(failure) = not_the_console(name.as_deref()) {
            return Ok(Err(failure));
        }
        self.worker.shared.order(&Order::Pause(name.clone())).await;
        self.wait_until_closed("PAUSE", name).await
    }

    /// Waits until no server connection of the databases is open; an operator who goes, or says anything, ends that.
    async fn wait_until_closed(
        &mut self,
        tag: &'static str,
        name: Option<String>,
    ) -> Result<Result<Reply, Failure>, End> {
        loop {
            let held = name.as_deref().map_or_else(
                || self.worker.holds.borrow().is_paused(),
                |name| self.worker.holds.borrow().holds(name),
            );
            // Connections that were opened for clients who stood in the queue before are closed, too.
            let order = if held { Order::Pause(name.clone()) } else { Order::Count(name.clone()) };
            if tag == "PAUSE" && !held {
                let message = "the pause was ended before all server connections were closed";
                return Ok(Err(refused("57014", message, "Somebody else has said RESUME.")));
            }
            if self.worker.shared.order(&order).await == 0 {
                return Ok(Ok(Reply::Done(tag)));
            }
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                more = self.read_more(), if self.inbox.len() < MESSAGE_BYTES_MAX => {
                    if !more? {
                        return Err((EndedBy::Client, None));
                    }
                }
            }
        }
    }
}

fn not_the_console(database: Option<&str>) -> Result<(), Failure> {
    if database == Some(DATABASE) {
        let message = format!("{DATABASE} is the console itself");
        return Err(refused(
            "22023",
            message,
            "Name a database of the cluster. Nothing was changed.",
        ));
    }
    Ok(())
}
