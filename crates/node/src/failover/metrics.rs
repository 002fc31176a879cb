//! The component's metrics: `synapsedb_failover_*`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub(super) struct Metrics {
    pub(super) primary: Gauge,
    pub(super) epoch: Gauge,
    pub(super) nobody_eligible: Gauge,
    pub(super) appointments: Counter,
    pub(super) appointment_failures: Counter,
    pub(super) registration_failures: Counter,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            primary: Gauge::default(),
            epoch: Gauge::default(),
            nobody_eligible: Gauge::default(),
            appointments: Counter::default(),
            appointment_failures: Counter::default(),
            registration_failures: Counter::default(),
        };
        registry.register(
            "synapsedb_failover_primary",
            "The primary's node number, 0 while there is none",
            metrics.primary.clone(),
        );
        registry.register(
            "synapsedb_failover_epoch",
            "The epoch of the primary",
            metrics.epoch.clone(),
        );
        registry.register(
            "synapsedb_failover_nobody_eligible",
            "1 while a primary is needed and no node could be it, on the leader",
            metrics.nobody_eligible.clone(),
        );
        registry.register(
            "synapsedb_failover_appointments",
            "Primaries that this node has appointed",
            metrics.appointments.clone(),
        );
        registry.register(
            "synapsedb_failover_appointment_failures",
            "Appointments that were not committed or came too late",
            metrics.appointment_failures.clone(),
        );
        registry.register(
            "synapsedb_failover_registration_failures",
            "Attempts to register this node that were not committed",
            metrics.registration_failures.clone(),
        );
        metrics
    }
}
