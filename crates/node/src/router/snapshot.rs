//! What goes on in a worker, as values that the rest of the agent may look at: status, metrics, console.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use prometheus_client::collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use synapsedb_core::ids::NodeId;

use super::entry::{Activity, Entry};
use super::pool::Counts;
use super::{Endpoint, Shared, api};

/// A worker at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) sessions: Vec<SessionSnapshot>,
    pub(super) accounts: Vec<AccountTotals>,
    /// Prepared statements that are known.
    pub(super) statements: usize,
}

/// A client.
#[derive(Clone, Debug)]
pub(super) struct SessionSnapshot {
    pub(super) pid: u32,
    pub(super) endpoint: Endpoint,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) application: String,
    pub(super) address: Option<SocketAddr>,
    pub(super) tls: bool,
    pub(super) since: SystemTime,
    pub(super) activity: Activity,
    pub(super) node: Option<NodeId>,
    pub(super) pin: Option<&'static str>,
}

impl SessionSnapshot {
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            pid: entry.pid,
            endpoint: entry.endpoint,
            user: entry.user.clone(),
            database: entry.database.clone(),
            application: entry.application.clone(),
            address: entry.address,
            tls: entry.tls,
            since: entry.since,
            activity: entry.activity.get(),
            node: entry.current.borrow().as_ref().map(|key| key.address.node),
            pin: entry.pin.get(),
        }
    }
}

/// A role in a database: what its clients have done since the worker began, and its pools.
#[derive(Clone, Debug)]
pub(super) struct AccountTotals {
    pub(super) user: String,
    pub(super) database: String,
    pub(super) clients: usize,
    pub(super) transactions: u64,
    pub(super) queries: u64,
    /// Bytes that came from clients.
    pub(super) received: u64,
    /// Bytes that went to clients.
    pub(super) sent: u64,
    pub(super) transaction_us: u64,
    pub(super) wait_us: u64,
    pub(super) parses: u64,
    pub(super) binds: u64,
    pub(super) pools: Vec<PoolSnapshot>,
}

/// A pool.
#[derive(Clone, Debug)]
pub(super) struct PoolSnapshot {
    pub(super) node: NodeId,
    pub(super) counts: Counts,
}

/// The clients by endpoint.
pub(super) fn endpoints(snapshots: &[Snapshot]) -> Vec<api::EndpointClients> {
    let of = |endpoint| {
        let all = || snapshots.iter().flat_map(|snapshot| &snapshot.sessions);
        let count = |activity: Option<Activity>| {
            let wanted = |session: &&SessionSnapshot| {
                session.endpoint == endpoint
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
    [Endpoint::Read, Endpoint::Write].map(of).into()
}

/// The pools of all workers, put together by role, database and node.
pub(super) fn pools(snapshots: &[Snapshot]) -> Vec<api::Pool> {
    let mut pools: BTreeMap<(String, String, NodeId), api::Pool> = BTreeMap::new();
    for account in snapshots.iter().flat_map(|snapshot| &snapshot.accounts) {
        for PoolSnapshot { node, counts } in &account.pools {
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
        for clients in endpoints(&snapshots) {
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
            ("transactions", "Transactions that were served", total(|a| a.transactions)),
            ("queries", "Simple queries that were served", total(|a| a.queries)),
            ("received_bytes", "Bytes that came from clients", total(|a| a.received)),
            ("sent_bytes", "Bytes that went to clients", total(|a| a.sent)),
        ] {
            let name = format!("synapsedb_router_{name}");
            let counter = ConstCounter::new(value);
            let encoder = encoder.encode_descriptor(&name, help, None, counter.metric_type())?;
            counter.encode(encoder)?;
        }
        Ok(())
    }
}
