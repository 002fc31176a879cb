//! What the console shows: of the agent, its databases, roles and settings. Clients, servers and counters have files of
//! their own.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::command::Show;
use super::run::Reply;
use super::table::Kind::{Int4, Int8, Text};
use super::table::{Field, Table, number, text};
use super::{DATABASE, sockets, statistics};
use crate::config::keys;
use crate::router::entry::Activity;
use crate::router::snapshot::Snapshot;
use crate::router::worker::Worker;
use crate::router::{Config, PoolMode, Shared, reload};

const HELP: &str = "
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
\tSHOW SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
\tPAUSE [<db>]
\tRESUME [<db>]
\tDISABLE <db>
\tENABLE <db>
\tRECONNECT [<db>]
\tKILL [<db>]
\tKILL_CLIENT <client_id>
\tWAIT_CLOSE [<db>]
All of this agent: every agent has a console of its own.";

/// Answers a SHOW.
pub(super) async fn show(worker: &Rc<Worker>, what: Show) -> Reply {
    let shared = &worker.shared;
    if what == Show::Help {
        return Reply::Told {
            notice: "Console usage".to_owned(),
            detail: Some(HELP.to_owned()),
            tag: "SHOW",
        };
    }
    let snapshots = shared.look().await;
    Reply::Table(match what {
        Show::Help | Show::Version => version(),
        Show::State => state(worker),
        Show::Pools => pools(shared, &snapshots),
        Show::Clients => sockets::clients(shared, &snapshots),
        Show::Servers => sockets::servers(&snapshots),
        Show::Sockets => sockets::sockets(shared, &snapshots, false),
        Show::ActiveSockets => sockets::sockets(shared, &snapshots, true),
        Show::Stats => statistics::stats(&snapshots),
        Show::StatsTotals => statistics::totals_by_database(&snapshots),
        Show::StatsAverages => statistics::averages_by_database(&snapshots),
        Show::Totals => statistics::totals(&snapshots),
        Show::Lists => lists(shared, &snapshots),
        Show::Databases => databases(shared, &snapshots),
        Show::Users => users(shared, &snapshots),
        Show::Config => config(&shared.config()),
        Show::Mem => mem(&snapshots),
        Show::Peers => {
            Table::new(&[("peer_id", Int4), ("host", Text), ("port", Int4), ("pool_size", Int4)])
        }
        Show::PeerPools => Table::new(&[
            ("peer_id", Int4),
            ("cl_active_cancel_req", Int4),
            ("cl_waiting_cancel_req", Int4),
            ("sv_active_cancel", Int4),
            ("sv_login", Int4),
        ]),
        Show::DnsHosts => Table::new(&[("hostname", Text), ("ttl", Int8), ("addrs", Text)]),
        Show::DnsZones => Table::new(&[("zonename", Text), ("serial", Int8), ("count", Int4)]),
        Show::Setting(name, value) => {
            let mut table = Table::new(&[(name, Text)]);
            table.push(vec![text(value)]);
            table
        }
    })
}

/// As PgBouncer names it.
pub(super) fn pool_mode(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
        PoolMode::Statement => "statement",
    }
}

fn version() -> Table {
    let mut table = Table::new(&[("version", Text)]);
    // Exporters look for a number that they know in it.
    table.push(vec![text(concat!("SynapseDB ", env!("CARGO_PKG_VERSION"), " (PgBouncer 1.25.0)"))]);
    table
}

fn state(worker: &Worker) -> Table {
    let shared = &worker.shared;
    let paused = worker.holds.borrow().is_paused();
    let primary = shared.state.borrow().primary;
    let yes = |holds: bool| text(if holds { "yes" } else { "no" });
    let mut table = Table::new(&[("key", Text), ("value", Text)]);
    for (key, value) in [
        ("active", yes(!paused)),
        ("paused", yes(paused)),
        ("suspended", yes(false)),
        ("node", number(shared.own)),
        ("primary", primary.map(|node| node.to_string())),
        ("draining", yes(shared.draining.is_cancelled())),
    ] {
        table.push(vec![text(key), value]);
    }
    table
}

/// Counts of one role in one database.
#[derive(Default)]
struct Pool {
    active: usize,
    waiting: usize,
    server_active: usize,
    server_idle: usize,
    server_login: usize,
    waited_us: u128,
    pinned: usize,
    nodes: BTreeMap<u16, usize>,
}

fn pool_counts(snapshots: &[Snapshot]) -> BTreeMap<(String, String), Pool> {
    let mut pools: BTreeMap<(String, String), Pool> = BTreeMap::new();
    for account in snapshots.iter().flat_map(|snapshot| &snapshot.accounts) {
        let key = (account.database.clone(), account.user.clone());
        let pool = pools.entry(key).or_default();
        for at_node in &account.pools {
            let counts = &at_node.counts;
            let active = counts.open.saturating_sub(counts.idle + counts.connecting);
            pool.server_active += active;
            pool.server_idle += counts.idle;
            pool.server_login += counts.connecting;
            *pool.nodes.entry(at_node.node.get()).or_default() += counts.open;
        }
    }
    for session in snapshots.iter().flat_map(|snapshot| &snapshot.sessions) {
        let key = (session.client.database.clone(), session.client.user.clone());
        let pool = pools.entry(key).or_default();
        match session.activity {
            Activity::Waiting => pool.waiting += 1,
            // PgBouncer counts clients as active that have no query under way.
            Activity::Idle | Activity::Active => pool.active += 1,
        }
        pool.waited_us = pool.waited_us.max(session.waited.as_micros());
        pool.pinned += usize::from(session.pin.is_some());
        if let Some(server) = session.server.as_ref().filter(|_| session.dedicated) {
            pool.server_active += 1;
            *pool.nodes.entry(server.node.get()).or_default() += 1;
        }
    }
    pools
}

/// By database and role: clients that do not wait and that do; server connections in use, free and in the making; and
/// the longest wait in seconds.
pub(in crate::router) fn pool_rows(snapshots: &[Snapshot]) -> Vec<(String, String, [f64; 6])> {
    let row = |((database, user), pool): ((String, String), Pool)| {
        let counts =
            [pool.active, pool.waiting, pool.server_active, pool.server_idle, pool.server_login];
        let [a, b, c, d, e] = counts.map(|count| count as f64);
        (database, user, [a, b, c, d, e, pool.waited_us as f64 / 1e6])
    };
    pool_counts(snapshots).into_iter().map(row).collect()
}

fn pools(shared: &Shared, snapshots: &[Snapshot]) -> Table {
    let mut table = Table::new(&[
        ("database", Text),
        ("user", Text),
        ("cl_active", Int4),
        ("cl_waiting", Int4),
        ("cl_active_cancel_req", Int4),
        ("cl_waiting_cancel_req", Int4),
        ("sv_active", Int4),
        ("sv_active_cancel", Int4),
        ("sv_being_canceled", Int4),
        ("sv_idle", Int4),
        ("sv_used", Int4),
        ("sv_tested", Int4),
        ("sv_login", Int4),
        ("maxwait", Int4),
        ("maxwait_us", Int4),
        ("pool_mode", Text),
        ("load_balance_hosts", Text),
        ("pinned", Int4),
        ("nodes", Text),
    ]);
    let none = || number(0);
    for ((database, user), pool) in pool_counts(snapshots) {
        let nodes: Vec<String> =
            pool.nodes.iter().map(|(node, open)| format!("{node}:{open}")).collect();
        let pooling = shared.config().pooling(&user, &database);
        table.push(vec![
            text(database),
            text(user),
            number(pool.active),
            number(pool.waiting),
            none(),
            none(),
            number(pool.server_active),
            none(),
            none(),
            number(pool.server_idle),
            none(),
            none(),
            number(pool.server_login),
            number(pool.waited_us / 1_000_000),
            number(pool.waited_us % 1_000_000),
            text(pool_mode(pooling.mode)),
            None,
            number(pool.pinned),
            text(nodes.join(",")),
        ]);
    }
    table
}

/// The databases that clients have come to, or that an operator has named.
fn known_databases(snapshots: &[Snapshot]) -> BTreeSet<String> {
    let mut known: BTreeSet<String> = BTreeSet::new();
    for snapshot in snapshots {
        known.extend(snapshot.accounts.iter().map(|account| account.database.clone()));
        known.extend(snapshot.sessions.iter().map(|session| session.client.database.clone()));
        known.extend(snapshot.holds.databases().cloned());
    }
    known.insert(DATABASE.to_owned());
    known
}

fn databases(shared: &Shared, snapshots: &[Snapshot]) -> Table {
    let mut table = Table::new(&[
        ("name", Text),
        ("host", Text),
        ("port", Int4),
        ("database", Text),
        ("force_user", Text),
        ("pool_size", Int4),
        ("min_pool_size", Int4),
        ("reserve_pool_size", Int4),
        ("server_lifetime", Int4),
        ("pool_mode", Text),
        ("load_balance_hosts", Text),
        ("max_connections", Int4),
        ("current_connections", Int4),
        ("max_client_connections", Int4),
        ("current_client_connections", Int4),
        ("paused", Int4),
        ("disabled", Int4),
    ]);
    let counts = pool_counts(snapshots);
    let config = &shared.config();
    let any = |of: &dyn Fn(&Snapshot) -> bool| number(u8::from(snapshots.iter().any(of)));
    let primary = shared.state.borrow().primary;
    let primary = primary.and_then(|node| {
        let state = shared.state.borrow();
        state.members.get(&node).map(|member| member.addresses.postgres.clone())
    });
    let (host, port) = split_address(primary.as_deref().unwrap_or_default());
    for name in known_databases(snapshots) {
        let of = counts.iter().filter(|((database, _), _)| *database == name);
        let of: Vec<&Pool> = of.map(|(_, pool)| pool).collect();
        let open: usize =
            of.iter().map(|pool| pool.server_active + pool.server_idle + pool.server_login).sum();
        let clients: usize = of.iter().map(|pool| pool.active + pool.waiting).sum();
        let console = name == DATABASE;
        let pooling = config.pooling("", &name);
        table.push(vec![
            text(name.clone()),
            if console { None } else { text(host) },
            if console { None } else { number(port) },
            text(name.clone()),
            None,
            number(pooling.size),
            number(config.pool_size_min),
            number(0),
            number(config.server_lifetime_ms / 1_000),
            text(pool_mode(pooling.mode)),
            None,
            number(0),
            number(open),
            number(0),
            number(clients),
            any(&|snapshot| snapshot.holds.holds(&name) && !console),
            any(&|snapshot| snapshot.holds.refuses(&name)),
        ]);
    }
    table
}

/// Host and port of an address; a path has no port.
pub(super) fn split_address(address: &str) -> (&str, u16) {
    let split = address.rsplit_once(':').filter(|_| !address.starts_with('/'));
    split.map_or((address, 0), |(host, port)| (host, port.parse().unwrap_or(0)))
}

fn users(shared: &Shared, snapshots: &[Snapshot]) -> Table {
    let mut table = Table::new(&[
        ("name", Text),
        ("pool_size", Text),
        ("reserve_pool_size", Text),
        ("pool_mode", Text),
        ("max_user_connections", Int4),
        ("current_connections", Int4),
        ("max_user_client_connections", Int4),
        ("current_client_connections", Int4),
    ]);
    let mut users: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for ((_, user), pool) in pool_counts(snapshots) {
        let (servers, clients) = users.entry(user).or_default();
        *servers += pool.server_active + pool.server_idle + pool.server_login;
        *clients += pool.active + pool.waiting;
    }
    for (user, (servers, clients)) in users {
        let pooling = shared.config().pooling(&user, "");
        table.push(vec![
            text(user),
            text(""),
            text(""),
            text(pool_mode(pooling.mode)),
            number(0),
            number(servers),
            number(shared.config().user_clients_max),
            number(clients),
        ]);
    }
    table
}

/// Names and numbers of things, as PgBouncer lists them.
fn list(shared: &Shared, snapshots: &[Snapshot]) -> Vec<(&'static str, usize)> {
    let counts = pool_counts(snapshots);
    let users: BTreeSet<&String> = counts.keys().map(|(_, user)| user).collect();
    let servers = |of: fn(&Pool) -> usize| -> usize { counts.values().map(of).sum() };
    let free = shared.config().clients_max.saturating_sub(shared.clients.taken());
    vec![
        ("databases", known_databases(snapshots).len()),
        ("users", users.len()),
        ("peers", 0),
        ("pools", counts.len()),
        ("peer_pools", 0),
        ("free_clients", free),
        ("used_clients", snapshots.iter().map(|snapshot| snapshot.sessions.len()).sum()),
        ("login_clients", shared.startups.taken()),
        ("free_servers", servers(|pool| pool.server_idle)),
        ("used_servers", servers(|pool| pool.server_active + pool.server_login)),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ]
}

fn lists(shared: &Shared, snapshots: &[Snapshot]) -> Table {
    let mut table = Table::new(&[("list", Text), ("items", Int4)]);
    for (name, items) in list(shared, snapshots) {
        table.push(vec![text(name), number(items)]);
    }
    table
}

/// A value of the configuration as a text.
fn shown(value: &serde_json::Value) -> Field {
    match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(value) => text(value.clone()),
        other => number(other),
    }
}

fn config(config: &Config) -> Table {
    let mut table =
        Table::new(&[("key", Text), ("value", Text), ("default", Text), ("changeable", Text)]);
    let defaults = keys(&Config::default());
    let mut rows = Vec::new();
    for (key, value) in keys(config) {
        let default = defaults.get(&key).and_then(shown);
        let changeable = if reload::is_fixed(&key) { "no" } else { "yes" };
        rows.push([text(key), shown(&value), default, text(changeable)]);
    }
    // What exporters look for, by PgBouncer's names.
    for (key, value, default, changeable) in [
        ("max_client_conn", config.clients_max, Config::default().clients_max, "yes"),
        ("min_pool_size", config.pool_size_min, Config::default().pool_size_min, "yes"),
        ("default_pool_size", config.pool_size, Config::default().pool_size, "yes"),
        ("max_user_connections", 0, 0, "no"),
        ("max_db_connections", 0, 0, "no"),
    ] {
        rows.push([text(key), number(value), number(default), text(changeable)]);
    }
    rows.sort();
    rows.into_iter().for_each(|row| table.push(row.into()));
    table
}

fn mem(snapshots: &[Snapshot]) -> Table {
    let mut table = Table::new(&[
        ("name", Text),
        ("size", Int4),
        ("used", Int4),
        ("free", Int4),
        ("memtotal", Int4),
    ]);
    let accounts = snapshots.iter().map(|snapshot| snapshot.accounts.len()).sum();
    let clients = snapshots.iter().map(|snapshot| snapshot.sessions.len()).sum();
    let pools = snapshots.iter().flat_map(|snapshot| &snapshot.accounts);
    let servers = pools.flat_map(|account| &account.pools).map(|pool| pool.counts.open).sum();
    for (name, size, used) in [
        ("pool_cache", size_of::<crate::router::account::Account>(), accounts),
        ("server_cache", size_of::<crate::router::server::Server>(), servers),
        ("client_cache", size_of::<crate::router::session::Session>(), clients),
        (
            "statement_cache",
            size_of::<crate::router::statements::Statement>(),
            statements(snapshots),
        ),
    ] {
        let used: usize = used;
        table.push(vec![
            text(name),
            number(size),
            number(used),
            number(0),
            number(size.saturating_mul(used)),
        ]);
    }
    table
}

fn statements(snapshots: &[Snapshot]) -> usize {
    snapshots.iter().map(|snapshot| snapshot.statements).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split_and_paths_are_not() {
        assert_eq!(split_address("127.0.0.1:5432"), ("127.0.0.1", 5432));
        assert_eq!(split_address("[::1]:5432"), ("[::1]", 5432));
        assert_eq!(split_address("/run/x:y/.s.PGSQL.5432"), ("/run/x:y/.s.PGSQL.5432", 0));
        assert_eq!(split_address(""), ("", 0));
    }
}
