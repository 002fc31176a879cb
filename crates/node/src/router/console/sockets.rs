//! The connections of clients and to servers, one by one.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;

use super::DATABASE;
use super::show::split_address;
use super::table::Kind::{Int4, Text};
use super::table::{Column, Field, Table, number, text};
use crate::router::Shared;
use crate::router::entry::Activity;
use crate::router::snapshot::{ServerSnapshot, SessionSnapshot, Snapshot};

const COLUMNS: [Column; 21] = [
    ("type", Text),
    ("user", Text),
    ("database", Text),
    ("replication", Text),
    ("state", Text),
    ("addr", Text),
    ("port", Int4),
    ("local_addr", Text),
    ("local_port", Int4),
    ("connect_time", Text),
    ("request_time", Text),
    ("wait", Int4),
    ("wait_us", Int4),
    ("close_needed", Int4),
    ("ptr", Text),
    ("link", Text),
    ("remote_pid", Int4),
    ("tls", Text),
    ("application_name", Text),
    ("prepared_statements", Int4),
    ("id", Int4),
];
/// What PgBouncer has of a socket's buffers; here they are empty when nobody sends.
const BUFFERS: [Column; 7] = [
    ("recv_pos", Int4),
    ("pkt_pos", Int4),
    ("pkt_remain", Int4),
    ("send_pos", Int4),
    ("send_remain", Int4),
    ("pkt_avail", Int4),
    ("send_avail", Int4),
];
const OURS: [Column; 4] =
    [("node", Int4), ("endpoint", Text), ("pinned", Text), ("channels", Int4)];

fn columns(buffers: bool) -> Table {
    let mut columns = COLUMNS.to_vec();
    if buffers {
        columns.extend(BUFFERS);
    }
    columns.extend(OURS);
    Table { columns, rows: Vec::new() }
}

/// As PgBouncer writes a time.
fn moment(at: SystemTime) -> Field {
    let at = OffsetDateTime::from(at);
    let (date, time) = (at.date(), at.time());
    let (hour, minute, second) = time.as_hms();
    text(format!("{date} {hour:02}:{minute:02}:{second:02} UTC"))
}

fn ago(age: Option<Duration>) -> SystemTime {
    let now = SystemTime::now();
    age.and_then(|age| now.checked_sub(age)).unwrap_or(now)
}

/// Something that tells a connection to a server from all others.
fn server_name(server: &ServerSnapshot) -> String {
    format!("s{}/{}", server.node, server.pid)
}

fn client_name(session: &SessionSnapshot) -> String {
    format!("c{}", session.client.pid)
}

/// A row but for the columns of buffers.
struct Row {
    standard: Vec<Field>,
    ours: [Field; 4],
}

impl Row {
    fn put(self, buffers: bool, table: &mut Table) {
        let mut row = self.standard;
        if buffers {
            row.extend(BUFFERS.map(|_| number(0)));
        }
        row.extend(self.ours);
        table.push(row);
    }
}

fn client(shared: &Shared, session: &SessionSnapshot, state: &str) -> Row {
    let address =
        session.client.address.map(|address| address.ip().to_string()).unwrap_or_default();
    let local = shared.listens(session.client.endpoint);
    let replicates = session.pin == Some("replication");
    let waited = session.waited.as_micros();
    let requested = session.asked.map_or(session.client.since, |age| ago(Some(age)));
    let server = session.server.as_ref();
    Row {
        standard: vec![
            text("C"),
            text(session.client.user.clone()),
            text(session.client.database.clone()),
            text(if replicates { "logical" } else { "none" }),
            text(state),
            text(address),
            number(session.client.address.map_or(0, |address| address.port())),
            text(local.ip().to_string()),
            number(local.port()),
            moment(session.client.since),
            moment(requested),
            number(waited / 1_000_000),
            number(waited % 1_000_000),
            number(0),
            text(client_name(session)),
            text(server.map(server_name).unwrap_or_default()),
            number(0),
            text(if session.client.tls { "TLS" } else { "" }),
            text(session.client.application.clone()),
            number(session.prepared),
            number(session.client.pid),
        ],
        ours: [
            server.map(|server| server.node.to_string()),
            text(session.client.endpoint.name()),
            session.pin.map(str::to_owned),
            number(session.channels),
        ],
    }
}

fn client_state(session: &SessionSnapshot) -> &'static str {
    match session.activity {
        Activity::Waiting => "waiting",
        Activity::Active => "active",
        // To PgBouncer's readers a client between transactions is idle; so is an operator.
        Activity::Idle => "idle",
    }
}

fn server(
    server: &ServerSnapshot,
    (user, database): (&str, &str),
    state: &str,
    session: Option<&SessionSnapshot>,
) -> Row {
    let (host, port) = split_address(&server.address);
    let requested = session.map_or(server.used, |session| session.asked);
    let replicates = session.is_some_and(|session| session.pin == Some("replication"));
    Row {
        standard: vec![
            text("S"),
            text(user),
            text(database),
            text(if replicates { "logical" } else { "none" }),
            text(state),
            text(host),
            number(port),
            text(""),
            number(0),
            moment(server.since),
            moment(ago(requested)),
            number(0),
            number(0),
            number(0),
            text(server_name(server)),
            text(session.map(client_name).unwrap_or_default()),
            number(server.pid),
            text(""),
            text(session.map(|session| session.client.application.clone()).unwrap_or_default()),
            number(server.prepared),
            number(server.pid),
        ],
        ours: [
            number(server.node),
            session.map(|session| session.client.endpoint.name().to_owned()),
            session.and_then(|session| session.pin).map(str::to_owned),
            number(0),
        ],
    }
}

fn sessions(snapshots: &[Snapshot]) -> impl Iterator<Item = &SessionSnapshot> {
    snapshots.iter().flat_map(|snapshot| &snapshot.sessions)
}

/// `SHOW CLIENTS`
pub(super) fn clients(shared: &Shared, snapshots: &[Snapshot]) -> Table {
    let mut table = columns(false);
    for session in sessions(snapshots) {
        client(shared, session, client_state(session)).put(false, &mut table);
    }
    table
}

/// `SHOW SERVERS`
pub(super) fn servers(snapshots: &[Snapshot]) -> Table {
    let mut table = columns(false);
    put_servers(snapshots, ["active", "idle"], false, &mut table);
    table
}

fn put_servers(snapshots: &[Snapshot], states: [&str; 2], buffers: bool, table: &mut Table) {
    for session in sessions(snapshots) {
        if let Some(lent) = &session.server {
            let of = (session.client.user.as_str(), session.client.database.as_str());
            server(lent, of, states[0], Some(session)).put(buffers, table);
        }
    }
    for account in snapshots.iter().flat_map(|snapshot| &snapshot.accounts) {
        for idle in account.pools.iter().flat_map(|pool| &pool.idle) {
            let of = (account.user.as_str(), account.database.as_str());
            server(idle, of, states[1], None).put(buffers, table);
        }
        for shared in account.pools.iter().filter_map(|pool| pool.listener.as_ref()) {
            let of = (account.user.as_str(), account.database.as_str());
            let mut row = server(&shared.server, of, states[0], None);
            row.ours[2] = text(format!("LISTEN for {} clients", shared.clients));
            row.ours[3] = number(shared.channels);
            row.put(buffers, table);
        }
    }
}

/// `SHOW SOCKETS`, or those that somebody uses now.
pub(super) fn sockets(shared: &Shared, snapshots: &[Snapshot], active: bool) -> Table {
    let mut table = columns(true);
    for session in sessions(snapshots) {
        let (state, busy) = match session.activity {
            Activity::Waiting => ("cl_waiting", true),
            Activity::Active => ("cl_active", session.client.database != DATABASE),
            Activity::Idle => ("cl_active", false),
        };
        if busy || !active {
            client(shared, session, state).put(true, &mut table);
        }
    }
    if active {
        for session in sessions(snapshots) {
            if let Some(lent) = &session.server {
                let of = (session.client.user.as_str(), session.client.database.as_str());
                server(lent, of, "sv_active", Some(session)).put(true, &mut table);
            }
        }
    } else {
        put_servers(snapshots, ["sv_active", "sv_idle"], true, &mut table);
    }
    table
}
