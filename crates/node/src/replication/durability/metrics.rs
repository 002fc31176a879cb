//! What the durability classes count.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use synapsedb_core::durability::Class;

use crate::replication::api::DurabilityBody;

/// Gauges and counters, set by the gate and the keeper.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    class: Gauge,
    in_force: Gauge,
    needed: Gauge,
    connected: Gauge,
    acknowledged: Gauge,
    waiting_sessions: Gauge,
    oldest_unacknowledged_ms: Gauge,
    lost: Gauge,
    degraded: Gauge,
    pub(crate) quorum_losses: Counter,
    pub(crate) degradations: Counter,
    pub(crate) applied_releases: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry, class: Class) -> Self {
        let metrics = Self::default();
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| {
            registry.register(
                format!("synapsedb_replication_durability_{name}"),
                help,
                gauge.clone(),
            );
        };
        gauge(
            "class",
            "The class of sessions that choose none: 0 local, 1 quorum, 2 applied",
            &metrics.class,
        );
        gauge("in_force", "1 while the server asks for what the class promises", &metrics.in_force);
        gauge(
            "members_needed",
            "Members that must have a commit, this one included",
            &metrics.needed,
        );
        gauge(
            "members_connected",
            "Members that can acknowledge commits of this node, this one included",
            &metrics.connected,
        );
        gauge(
            "members_acknowledged",
            "Members that have everything that was committed here on their disks, this one included",
            &metrics.acknowledged,
        );
        gauge("waiting_sessions", "Sessions that wait for other nodes", &metrics.waiting_sessions);
        gauge(
            "oldest_unacknowledged_ms",
            "How long the oldest commit that too few members have has been waiting, in milliseconds",
            &metrics.oldest_unacknowledged_ms,
        );
        gauge("quorum_lost", "1 while commits wait because too few members answer", &metrics.lost);
        gauge(
            "degraded",
            "1 while the class is local because too few members answer",
            &metrics.degraded,
        );
        let mut counter = |name: &str, help: &str, counter: &Counter| {
            registry.register(
                format!("synapsedb_replication_durability_{name}"),
                help,
                counter.clone(),
            );
        };
        counter(
            "quorum_losses",
            "Times that commits began to wait for lost members",
            &metrics.quorum_losses,
        );
        counter("degradations", "Times that a class was degraded to local", &metrics.degradations);
        counter(
            "applied_releases",
            "Times that waits of class applied were given up, since they kept a peer's transaction from being applied",
            &metrics.applied_releases,
        );
        metrics.class.set(match class {
            Class::Local => 0,
            Class::Quorum => 1,
            Class::Applied => 2,
        });
        metrics
    }

    /// Shows what the status shows.
    pub(crate) fn show(&self, status: &DurabilityBody) {
        let number = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let long = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.in_force.set(i64::from(status.in_force));
        self.needed.set(number(status.members_needed));
        self.connected.set(number(status.members_connected));
        self.acknowledged.set(number(status.members_acknowledged));
        self.waiting_sessions.set(long(status.waiting_sessions));
        self.oldest_unacknowledged_ms
            .set(long(status.oldest_unacknowledged_ms.unwrap_or_default()));
        self.lost.set(i64::from(status.state == "lost"));
        self.degraded.set(i64::from(status.state == "degraded"));
    }
}
