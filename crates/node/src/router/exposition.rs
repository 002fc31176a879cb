//! What the console shows, as metrics at the moment of the scrape; what PgBouncer's exporter shows, by its names.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::account::Totals;
use super::console::{by_database, pool_rows};
use super::snapshot::Snapshot;
use super::traffic::{BUCKETS, Times, bound_seconds};
use super::{Endpoint, Shared};

/// Writes them all.
pub(super) fn encode(
    encoder: &mut DescriptorEncoder,
    shared: &Shared,
    snapshots: &[Snapshot],
) -> Result<(), fmt::Error> {
    durations(encoder, shared, snapshots)?;
    pinned(encoder, snapshots)?;
    flows(encoder, snapshots)?;
    pgbouncer_pools(encoder, snapshots)?;
    pgbouncer_stats(encoder, snapshots)?;
    let max = ConstGauge::new(shared.config().clients_max as i64);
    let name = "pgbouncer_config_max_client_connections";
    let help = "The most clients at once, router.clients_max";
    let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    max.encode(encoder)
}

fn buckets(times: &Times) -> Vec<(f64, u64)> {
    (0..=BUCKETS).map(|place| (bound_seconds(place), times.counts[place])).collect()
}

fn durations(
    encoder: &mut DescriptorEncoder,
    shared: &Shared,
    snapshots: &[Snapshot],
) -> Result<(), fmt::Error> {
    let name = "synapsedb_router_transaction_duration_seconds";
    let help =
        "For how long transactions had a server connection; not of sessions that keep theirs";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (endpoint, node, times) in summed(snapshots) {
        let labels = [("endpoint", endpoint.name().to_owned()), ("node", node.to_string())];
        let (sum, count) = (times.sum_us as f64 / 1e6, times.counts.iter().sum());
        let mut metric = family.encode_family(&labels)?;
        metric.encode_histogram::<NoLabelSet>(sum, count, &buckets(&times), None)?;
    }
    let name = "synapsedb_router_wait_duration_seconds";
    let help = "How long clients waited that did not get a server connection at once";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for endpoint in shared.endpoints() {
        let mut times = Times::default();
        for snapshot in snapshots {
            times.add(&snapshot.waits[endpoint as usize]);
        }
        let labels = [("endpoint", endpoint.name())];
        let (sum, count) = (times.sum_us as f64 / 1e6, times.counts.iter().sum());
        let mut metric = family.encode_family(&labels)?;
        metric.encode_histogram::<NoLabelSet>(sum, count, &buckets(&times), None)?;
    }
    Ok(())
}

/// The durations of all workers, by endpoint and node.
fn summed(snapshots: &[Snapshot]) -> Vec<(Endpoint, u16, Times)> {
    let mut sums: std::collections::BTreeMap<(Endpoint, u16), Times> = Default::default();
    for flow in snapshots.iter().flat_map(|snapshot| &snapshot.flows) {
        sums.entry((flow.endpoint, flow.node.get())).or_default().add(&flow.durations);
    }
    sums.into_iter().map(|((endpoint, node), times)| (endpoint, node, times)).collect()
}

fn pinned(encoder: &mut DescriptorEncoder, snapshots: &[Snapshot]) -> Result<(), fmt::Error> {
    let sessions = || snapshots.iter().flat_map(|snapshot| &snapshot.sessions);
    let pinned = sessions().filter(|session| session.pin.is_some()).count();
    let longest = sessions().map(|session| session.waited).max().unwrap_or_default();
    let listening = sessions().filter(|session| session.channels > 0).count();
    let paused = snapshots.iter().any(|snapshot| snapshot.holds.pauses_any());
    for (name, help, value) in [
        ("pinned", "Clients that keep their server connection between transactions", pinned as f64),
        ("listening", "Clients that listen through a shared listener", listening as f64),
        (
            "wait_longest_seconds",
            "How long the client has waited that waits for longest",
            longest.as_secs_f64(),
        ),
        ("paused", "1 while an operator has paused a database", f64::from(u8::from(paused))),
    ] {
        let name = format!("synapsedb_router_{name}");
        let encoder = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(encoder)?;
    }
    Ok(())
}

fn flows(encoder: &mut DescriptorEncoder, snapshots: &[Snapshot]) -> Result<(), fmt::Error> {
    let mut sums: std::collections::BTreeMap<(Endpoint, u16), super::traffic::FlowCounts> =
        Default::default();
    for flow in snapshots.iter().flat_map(|snapshot| &snapshot.flows) {
        sums.entry((flow.endpoint, flow.node.get())).or_default().add(&flow.counts);
    }
    let name = "synapsedb_router_assignments";
    let help = "How often a client got a server connection, by endpoint and node";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for ((endpoint, node), counts) in sums {
        let labels = [("endpoint", endpoint.name().to_owned()), ("node", node.to_string())];
        ConstCounter::new(counts.total).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn pgbouncer_pools(
    encoder: &mut DescriptorEncoder,
    snapshots: &[Snapshot],
) -> Result<(), fmt::Error> {
    let rows = pool_rows(snapshots);
    for (place, (name, help)) in [
        ("client_active_connections", "Clients that do not wait for a server connection"),
        ("client_waiting_connections", "Clients that wait for a server connection"),
        ("server_active_connections", "Server connections that clients have"),
        ("server_idle_connections", "Server connections that nobody has"),
        ("server_login_connections", "Server connections that are being opened"),
        ("client_maxwait_seconds", "How long the client has waited that waits for longest"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("pgbouncer_pools_{name}");
        let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        for (database, user, values) in &rows {
            let labels = [("database", database.as_str()), ("user", user.as_str())];
            ConstGauge::new(values[place]).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// A counter of PgBouncer's exporter: its name without `_total`, what it says, and its value.
type Shown = (&'static str, &'static str, fn(&Totals) -> f64);

fn pgbouncer_stats(
    encoder: &mut DescriptorEncoder,
    snapshots: &[Snapshot],
) -> Result<(), fmt::Error> {
    let databases = by_database(snapshots);
    let shown: [Shown; 10] = [
        ("sql_transactions_pooled", "Transactions that were served", |t| t.transactions as f64),
        ("queries_pooled", "Requests that were served", |t| t.cycles as f64),
        ("server_assignments", "How often a client got a server connection", |t| {
            t.assignments as f64
        }),
        ("received_bytes", "Bytes that came from clients", |t| t.received as f64),
        ("sent_bytes", "Bytes that went to clients", |t| t.sent as f64),
        ("server_in_transaction_seconds", "Time for which clients had a server connection", |t| {
            t.transaction_us as f64 / 1e6
        }),
        ("client_wait_seconds", "Time for which clients waited for a server connection", |t| {
            t.wait_us as f64 / 1e6
        }),
        ("client_parses", "Parse messages from clients", |t| t.parses as f64),
        ("server_parses", "Named statements that servers were made to prepare", |t| {
            t.server_parses as f64
        }),
        ("binds", "Bind messages from clients", |t| t.binds as f64),
    ];
    for (name, help, value) in shown {
        let name = format!("pgbouncer_stats_{name}");
        let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
        for (database, (totals, ..)) in &databases {
            let labels = [("database", *database)];
            ConstCounter::new(value(totals)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}
