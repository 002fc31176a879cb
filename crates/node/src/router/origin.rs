//! What a startup packet comes to on a server: the settings that a session begins with, and what the server says.
//!
//! The first client with a packet gets a server connection of its own, opened with just that packet, so that the
//! server judges it; the answer is remembered for the clients that come with the same packet.

use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use synapsedb_pg::wire::startup as wire;

use super::account::Account;
use super::choose::Why;
use super::login::Turned;
use super::metrics::Refused;
use super::reach::{Unreached, reach};
use super::server::{self, ConnectError, Server};
use super::settings::Settings;
use super::token::Reading;
use super::worker::Worker;
use super::{Endpoint, PoolMode};

/// The parameters of a startup packet: names and values.
pub(super) type Parameters = Vec<(String, String)>;

/// What a startup packet comes to.
#[derive(Debug)]
pub(super) struct Origin {
    /// The packet's parameters.
    pub(super) parameters: Parameters,
    /// The settings that they set, as the server understood them.
    pub(super) settings: Rc<Settings>,
    /// What the server reports to such a session.
    pub(super) reported: Rc<Settings>,
    /// What the server says to such a session as it begins: NoticeResponses, as they came.
    notices: Vec<u8>,
    /// Why such a session keeps one server connection for all its life.
    pub(super) dedicated: Option<&'static str>,
}

impl Origin {
    /// Of a packet that says nothing but who wants to go where: any client can be served by such a session.
    pub(super) fn plain(worker: &Worker, account: &Account) -> Rc<Self> {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let none = worker.settings.intern(Settings::new());
        Rc::new(Self {
            parameters: vec![pair("user", &account.user), pair("database", &account.database)],
            settings: Rc::clone(&none),
            reported: none,
            notices: Vec::new(),
            dedicated: None,
        })
    }
}

/// What is sent to a client that has come in.
pub(super) struct Greeting {
    /// The connection that the client keeps for all its life.
    pub(super) server: Option<Box<Server>>,
}

/// What a client wants of a server.
#[derive(Clone, Copy)]
pub(super) struct Wish {
    pub(super) endpoint: Endpoint,
    /// The role may log in to the database, as far as is known.
    pub(super) known: bool,
    /// It wants a replication session.
    pub(super) replicates: bool,
}

/// The origin of a session with these startup parameters.
///
/// # Errors
/// No server can be reached, or the server refuses the packet: with the server's words.
pub(super) async fn find(
    worker: &Rc<Worker>,
    account: &Rc<Account>,
    parameters: &Parameters,
    wish: Wish,
) -> Result<(Rc<Origin>, Greeting), Turned> {
    let pooled = account.pooling.get().mode != PoolMode::Session && !wish.replicates;
    if pooled
        && wish.known
        && let Some(origin) = account.origin(parameters)
    {
        return Ok((origin, Greeting { server: None }));
    }
    let keys = account.keys();
    let patience = patience(worker, wish.endpoint);
    let reading = Reading::default();
    let opened = reach(worker, wish.endpoint, &reading, patience, async |address| {
        let opened = server::open(&address, parameters, keys.as_ref(), &worker.shared).await;
        match &opened {
            Ok(_) => worker.reached(address.node),
            Err(error) => {
                worker.failed_to_reach(address.node, error);
                worker.make_room(&account.user, error);
            }
        }
        opened.map(|opened| (opened, address)).map_err(super::pool::NoServer::Connect)
    });
    let (opened, address) =
        opened.await.map_err(|unreached| unreached_turns(worker, wish, unreached))?;
    let (mut server, notices) = (Box::new(opened.server), opened.notices);
    let dedicated = if wish.replicates {
        Some("replication")
    } else if pooled {
        understand(worker, &mut server, parameters).await
    } else {
        Some("session pooling")
    };
    server.reported = worker.settings.intern(Settings::clone(&server.reported));
    server.reported_first = Rc::clone(&server.reported);
    let origin = Rc::new(Origin {
        parameters: parameters.clone(),
        settings: Rc::clone(&server.startup),
        reported: Rc::clone(&server.reported),
        notices,
        dedicated,
    });
    if dedicated.is_some() {
        return Ok((origin, Greeting { server: Some(server) }));
    }
    account.remember(&origin);
    let pool = account.pool(worker, &address);
    pool.count_new();
    pool.give_back(server);
    Ok((origin, Greeting { server: None }))
}

/// How long a client waits for a node that can serve it.
pub(super) fn patience(worker: &Worker, endpoint: Endpoint) -> Duration {
    let config = &worker.shared.config();
    Duration::from_millis(match endpoint {
        Endpoint::Read => config.read_wait_ms,
        Endpoint::Write | Endpoint::Split => config.write_wait_ms,
    })
}

/// Asks a new connection what its startup packet has set. A reason if no other connection can be made like it.
async fn understand(
    worker: &Worker,
    server: &mut Server,
    parameters: &[(String, String)],
) -> Option<&'static str> {
    let Ok(rows) = server.ask(include_str!("origin.sql")).await else {
        return Some("the settings of the startup packet are unknown");
    };
    let mut settings = Settings::new();
    let mut dedicated = None;
    for row in rows {
        let [Some(name), Some(value), Some(context)] = &row[..] else { continue };
        if context.contains("backend") {
            dedicated = Some("a startup setting that cannot be changed later");
        }
        settings.insert(name.clone(), value.clone());
    }
    settings.extend(custom(parameters));
    server.startup = worker.settings.intern(settings);
    server.applied = Rc::clone(&server.startup);
    dedicated
}

/// Settings of two-part names, which `pg_settings` does not show.
fn custom(parameters: &[(String, String)]) -> Settings {
    let mut found = Settings::new();
    for (name, value) in parameters {
        if name == "options" {
            let words = value.split_whitespace().filter(|word| *word != "-c");
            let words = words.map(|word| word.trim_start_matches("--").trim_start_matches("-c"));
            let pairs = words.filter_map(|word| word.split_once('='));
            let pairs = pairs.filter(|(name, _)| name.contains('.'));
            found.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
        } else if name.contains('.') {
            found.insert(name.clone(), value.clone());
        }
    }
    found
}

fn unreached_turns(worker: &Worker, wish: Wish, unreached: Unreached) -> Turned {
    match unreached {
        Unreached::Connect(node, ConnectError::Refused { sqlstate, .. })
            if sqlstate == "28P01" && wish.known && node != worker.shared.own =>
        {
            Turned::new(Refused::Password, &super::reach::other_verifier(node))
        }
        Unreached::Connect(_, ConnectError::Refused { raw, sqlstate, .. }) => {
            let why = match sqlstate.as_str() {
                "57P03" | "53300" => Refused::ServerNotNow,
                _ => Refused::Server,
            };
            // The server's own words end the session as they would have without the router.
            Turned { why, last: raw }
        }
        Unreached::Nobody(Why::Draining) => {
            Turned::new(Refused::Draining, &super::ending::draining())
        }
        other => Turned::new(Refused::NoNode, &other.failure(wish.endpoint)),
    }
}

/// The messages that end a login.
pub(super) fn hello(origin: &Origin, pid: u32, secret: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_slice(&origin.notices);
    for (name, value) in origin.reported.iter() {
        wire::parameter_status(&mut out, name, value);
    }
    wire::backend_key_data(&mut out, pid, secret);
    wire::ready_for_query(&mut out, b'I');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_two_parts_are_found_in_the_packet() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let parameters = [
            pair("user", "ada"),
            pair("my.tenant", "7"),
            pair("options", "-c a.b=1 --c.d=2 -ce.f=3 -c work_mem=4MB"),
        ];
        let found = custom(&parameters);
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["a.b", "c.d", "e.f", "my.tenant"]);
        assert_eq!(found["e.f"], "3");
    }
}
