//! What goes on in a worker, as values that the rest of the agent may look at: status, metrics, console.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use prometheus_client::collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use synapsedb_core::ids::NodeId;

use super::account::{Account, Totals};
use super::console::holds::Holds;
use super::entry::{Activity, Client, Entry};
use super::pool::{Counts, Pool};
use super::server::{Address, CancelKey};
use super::traffic::{FlowTotals, Times};
use super::worker::Worker;
use super::{Endpoint, Shared, api, exposition};

/// A worker at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) sessions: Vec<SessionSnapshot>,
    pub(super) accounts: Vec<AccountTotals>,
    /// Prepared statements that are known.
    pub(super) statements: usize,
    pub(super) flows: Vec<FlowTotals>,
    /// How long clients have waited for a server connection, by endpoint.
    pub(super) waits: [Times; Endpoint::COUNT],
    /// What operators hold back.
    pub(super) holds: Holds,
}

impl Snapshot {
    /// What goes on in the worker now.
    pub(super) fn of(worker: &Worker) -> Self {
        let accounts = worker.accounts();
        Self {
            sessions: worker
                .sessions
                .borrow()
                .values()
                .map(|entry| SessionSnapshot::of(entry))
                .collect(),
            accounts: accounts.iter().map(|account| AccountTotals::of(account)).collect(),
            statements: worker.statements.len(),
            flows: worker.traffic.flows(),
            waits: worker.traffic.waits(),
            holds: worker.holds.borrow().clone(),
        }
    }
}

/// A client's session.
#[derive(Clone, Debug)]
pub(super) struct SessionSnapshot {
    pub(super) client: Arc<Client>,
    pub(super) activity: Activity,
    /// How long it has waited for a server connection.
    pub(super) waited: Duration,
    /// How long ago it asked for one.
    pub(super) asked: Option<Duration>,
    /// Prepared statements that it has by name.
    pub(super) prepared: usize,
    /// The server connection that it has is in no pool.
    pub(super) dedicated: bool,
    /// The server connection that it has.
    pub(super) server: Option<ServerSnapshot>,
    pub(super) pin: Option<&'static str>,
    /// Channels that it listens to through a shared listener.
    pub(super) channels: usize,
}

/// A connection to a server.
#[derive(Clone, Debug)]
pub(super) struct ServerSnapshot {
    pub(super) node: NodeId,
    /// `host:port`, or the path of its socket.
    pub(super) address: String,
    /// The server's process id of it.
    pub(super) pid: u32,
    pub(super) since: SystemTime,
    /// How long ago it was last given back.
    pub(super) used: Option<Duration>,
    pub(super) prepared: usize,
}

impl ServerSnapshot {
    fn of(key: &CancelKey) -> Self {
        let Address { node, tcp, unix } = &*key.address;
        let address = unix.as_ref().map_or_else(|| tcp.clone(), |path| path.display().to_string());
        let pid = key.data.first_chunk().map_or(0, |pid| u32::from_be_bytes(*pid));
        Self { node: *node, address, pid, since: key.since, used: None, prepared: 0 }
    }
}

impl SessionSnapshot {
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            client: Arc::clone(&entry.client),
            activity: entry.activity.get(),
            waited: entry.waited(),
            asked: entry.asked.get().map(|asked| asked.elapsed()),
            prepared: entry.prepared.get(),
            dedicated: entry.dedicated.get(),
            server: entry.current.borrow().as_ref().map(ServerSnapshot::of),
            pin: entry.pin.get(),
            channels: entry.ear.get().map_or(0, |ear| ear.channels()),
        }
    }
}

/// A role in a database: what its clients have done since the worker began, and its pools.
#[derive(Clone, Debug)]
pub(super) struct AccountTotals {
    pub(super) user: String,
    pub(super) database: String,
    pub(super) totals: Totals,
    /// What was counted lately, and for how long.
    pub(super) lately: (Duration, Totals),
    pub(super) pools: Vec<PoolSnapshot>,
}

impl AccountTotals {
    fn of(account: &Account) -> Self {
        let pool = |pool: &Rc<Pool>| {
            let mut idle = Vec::new();
            pool.each_idle(|server| {
                let mut seen = ServerSnapshot::of(&server.cancel);
                seen.used = Some(server.used.elapsed());
                seen.prepared = server.prepared.count();
                idle.push(seen);
            });
            let listener = pool.see_hub(|hub| {
                let (clients, channels) = hub.counts();
                ListenerSnapshot { server: ServerSnapshot::of(hub.key()), clients, channels }
            });
            PoolSnapshot { node: pool.address.node, counts: pool.counts(), idle, listener }
        };
        Self {
            user: account.user.clone(),
            database: account.database.clone(),
            totals: account.totals(),
            lately: account.lately(),
            pools: account.pools().iter().map(pool).collect(),
        }
    }
}

/// A pool.
#[derive(Clone, Debug)]
pub(super) struct PoolSnapshot {
    pub(super) node: NodeId,
    pub(super) counts: Counts,
    /// The connections that nobody has now.
    pub(super) idle: Vec<ServerSnapshot>,
    pub(super) listener: Option<ListenerSnapshot>,
}

/// A shared listener.
#[derive(Clone, Debug)]
pub(super) struct ListenerSnapshot {
    pub(super) server: ServerSnapshot,
    pub(super) clients: usize,
    pub(super) channels: usize,
}

/// The clients by endpoint.
pub(super) fn endpoints(shared: &Shared, snapshots: &[Snapshot]) -> Vec<api::EndpointClients> {
    let of = |endpoint| {
        let all = || snapshots.iter().flat_map(|snapshot| &snapshot.sessions);
        let count = |activity: Option<Activity>| {
            let wanted = |session: &&SessionSnapshot| {
                session.client.endpoint == endpoint
                    && activity.is_none_or(|activity| session.activity == activity)
            };
            all().filter(wanted).count()
        };
        api::EndpointClients {
            endpoint,
            clients: count(None),
            active: count(Some(Activity::Active)),
            waiting: count(Some(Activity::Waiting)),
        }
    };
    shared.endpoints().map(of).collect()
}

/// The pools of all workers, put together by role, database and node.
pub(super) fn pools(snapshots: &[Snapshot]) -> Vec<api::Pool> {
    let mut pools: BTreeMap<(String, String, NodeId), api::Pool> = BTreeMap::new();
    for account in snapshots.iter().flat_map(|snapshot| &snapshot.accounts) {
        for PoolSnapshot { node, counts, .. } in &account.pools {
            let key = (account.database.clone(), account.user.clone(), *node);
            let pool = pools.entry(key).or_insert_with(|| api::Pool {
                database: account.database.clone(),
                user: account.user.clone(),
                node: node.get(),
                active: 0,
                idle: 0,
                connecting: 0,
                waiting: 0,
            });
            pool.active += counts.open.saturating_sub(counts.idle + counts.connecting);
            pool.idle += counts.idle;
            pool.connecting += counts.connecting;
            pool.waiting += counts.waiting;
        }
    }
    pools.into_values().collect()
}

/// Shows what goes on as metrics, at the moment of the scrape.
#[derive(Clone)]
pub(super) struct Collector {
    shared: Weak<Shared>,
}

impl Collector {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::downgrade(shared) }
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("router::Collector")
    }
}

impl collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(shared) = self.shared.upgrade() else { return Ok(()) };
        let snapshots = shared.snapshots();
        let name = "synapsedb_router_clients";
        let help = "Clients by endpoint and by whether they have a server connection";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for clients in endpoints(&shared, &snapshots) {
            let idle = clients.clients.saturating_sub(clients.active + clients.waiting);
            for (state, count) in
                [("idle", idle), ("active", clients.active), ("waiting", clients.waiting)]
            {
                let labels = [("endpoint", clients.endpoint.name()), ("state", state)];
                ConstGauge::new(count as i64).encode(family.encode_family(&labels)?)?;
            }
        }
        let name = "synapsedb_router_server_connections";
        let help = "Server connections by role, database, node and state";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for pool in pools(&snapshots) {
            let node = pool.node.to_string();
            for (state, count) in
                [("active", pool.active), ("idle", pool.idle), ("connecting", pool.connecting)]
            {
                let labels = [
                    ("database", pool.database.as_str()),
                    ("user", pool.user.as_str()),
                    ("node", node.as_str()),
                    ("state", state),
                ];
                ConstGauge::new(count as i64).encode(family.encode_family(&labels)?)?;
            }
        }
        let total = |of: fn(&AccountTotals) -> u64| -> u64 {
            snapshots.iter().flat_map(|snapshot| &snapshot.accounts).map(of).sum()
        };
        for (name, help, value) in [
            ("transactions", "Transactions that were served", total(|a| a.totals.transactions)),
            ("queries", "Simple queries that were served", total(|a| a.totals.queries)),
            ("received_bytes", "Bytes that came from clients", total(|a| a.totals.received)),
            ("sent_bytes", "Bytes that went to clients", total(|a| a.totals.sent)),
        ] {
            let name = format!("synapsedb_router_{name}");
            let counter = ConstCounter::new(value);
            let encoder = encoder.encode_descriptor(&name, help, None, counter.metric_type())?;
            counter.encode(encoder)?;
        }
        exposition::encode(&mut encoder, &shared, &snapshots)
    }
}
