//! What replication counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::api::NotReplicatedBody;

/// What a conflict is counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConflictLabels {
    kind: &'static str,
    table: String,
}

/// The counters of this component.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    pub(crate) published_transactions: Counter,
    pub(crate) served_bytes: Counter,
    pub(crate) fetched_bytes: Counter,
    applied_transactions: Counter,
    ineffective_rows: Counter,
    pub(crate) applied_ddl: Counter,
    pub(crate) apply_failures: Counter,
    pub(crate) clock_skew_waits: Counter,
    pub(crate) quarantined_rows: Counter,
    pub(crate) slow_transactions: Counter,
    pub(crate) worker_transactions: Counter,
    pub(crate) worker_refusals: Counter,
    conflicts: Family<ConflictLabels, Counter>,
    remembered_writes: Gauge,
    large_objects: Gauge,
    unlogged_tables: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(format!("synapsedb_replication_{name}"), help, counter.clone());
        };
        add(
            "published_transactions",
            "Local transactions spooled for the peers",
            &metrics.published_transactions,
        );
        add("served_bytes", "Bytes of spool sent to peers", &metrics.served_bytes);
        add("fetched_bytes", "Bytes of spool received from peers", &metrics.fetched_bytes);
        add(
            "applied_transactions",
            "Transactions of other nodes applied here",
            &metrics.applied_transactions,
        );
        add(
            "ineffective_rows",
            "Remote rows that changed nothing here: a newer local row won, or the row was gone",
            &metrics.ineffective_rows,
        );
        add("applied_ddl", "DDL statements of other nodes run here", &metrics.applied_ddl);
        add(
            "apply_failures",
            "Times a transaction could not be applied and is tried again",
            &metrics.apply_failures,
        );
        add(
            "clock_skew_waits",
            "Times a transaction waited for a clock that is too far off",
            &metrics.clock_skew_waits,
        );
        add(
            "quarantined_rows",
            "Rows and statements that could not be applied and wait in synapsedb.quarantine",
            &metrics.quarantined_rows,
        );
        add(
            "slow_transactions",
            "Transactions that were applied row by row, since they met other writes",
            &metrics.slow_transactions,
        );
        add(
            "worker_transactions",
            "Transactions of other nodes that a worker applied here ahead of their turn",
            &metrics.worker_transactions,
        );
        add(
            "worker_refusals",
            "Transactions that a worker took back and left to its lane: they met something",
            &metrics.worker_refusals,
        );
        metrics.register_the_rest(registry);
        metrics
    }

    /// What is no plain counter.
    fn register_the_rest(&self, registry: &mut Registry) {
        let name = "synapsedb_replication_conflicts";
        registry.register(name, "Conflicts that were settled here", self.conflicts.clone());
        registry.register(
            "synapsedb_replication_remembered_writes",
            "Commits, deletes and unique claims that not every member is known to have seen",
            self.remembered_writes.clone(),
        );
        for (name, help, gauge) in [
            (
                "large_objects",
                "Large objects on this node, at most 1000 counted",
                &self.large_objects,
            ),
            (
                "unlogged_tables",
                "Unlogged tables, whose rows are on this node",
                &self.unlogged_tables,
            ),
        ] {
            let help = format!("{help}: they are not replicated");
            registry.register(format!("synapsedb_replication_{name}"), help, gauge.clone());
        }
    }

    pub(crate) fn not_replicated(&self, found: &NotReplicatedBody) {
        let value = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.large_objects.set(value(found.large_objects));
        self.unlogged_tables.set(value(found.unlogged_tables));
    }

    pub(crate) fn conflict(&self, kind: &'static str, table: &str) {
        self.conflicts(kind, table, 1);
    }

    pub(crate) fn conflicts(&self, kind: &'static str, table: &str, rows: u64) {
        self.conflicts
            .get_or_create(&ConflictLabels { kind, table: table.to_owned() })
            .inc_by(rows);
    }

    pub(crate) fn remembered(&self, entries: usize) {
        self.remembered_writes.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    pub(crate) fn applied(&self, transactions: u64, ineffective: u64) {
        self.applied_transactions.inc_by(transactions);
        self.ineffective_rows.inc_by(ineffective);
    }
}
