//! The router's metrics: `synapsedb_router_*`.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use synapsedb_core::outcome::Answer;

use super::Endpoint;
use super::api::Totals;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByEndpoint {
    endpoint: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByReason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByNode {
    node: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByOutcome {
    outcome: &'static str,
}

/// Why a connection never became a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    TooManyStartups,
    TooManyClients,
    Slow,
    Malformed,
    Tls,
    NoNode,
    ServerNotNow,
    /// The server refused the login: no such database, for instance.
    Server,
    Password,
    /// The client left before it was in.
    Gone,
    Draining,
}

impl Refused {
    const ALL: [Self; 11] = [
        Self::TooManyStartups,
        Self::TooManyClients,
        Self::Slow,
        Self::Malformed,
        Self::Tls,
        Self::NoNode,
        Self::ServerNotNow,
        Self::Server,
        Self::Password,
        Self::Gone,
        Self::Draining,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::TooManyStartups => "too_many_startups",
            Self::TooManyClients => "too_many_clients",
            Self::Slow => "startup_timeout",
            Self::Malformed => "malformed",
            Self::Tls => "tls",
            Self::NoNode => "no_node",
            Self::ServerNotNow => "server_not_now",
            Self::Server => "server",
            Self::Password => "password",
            Self::Gone => "gone",
            Self::Draining => "draining",
        }
    }
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndedBy {
    Client,
    ClientLost,
    Server,
    ServerLost,
    PrimaryChanged,
    Draining,
    /// By an operator.
    Killed,
    /// What it listened through was lost, or it did not read what it heard.
    Deaf,
}

impl EndedBy {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::ClientLost => "client_lost",
            Self::Server => "server",
            Self::ServerLost => "server_lost",
            Self::PrimaryChanged => "primary_changed",
            Self::Draining => "draining",
            Self::Killed => "killed",
            Self::Deaf => "deaf",
        }
    }
}

pub(super) struct Metrics {
    opened: Family<ByEndpoint, Counter>,
    ended: Family<ByReason, Counter>,
    refused: Family<ByReason, Counter>,
    /// By endpoint: those that were denied, and those that broke the protocol.
    denied: [AtomicU64; Endpoint::COUNT],
    malformed: [AtomicU64; Endpoint::COUNT],
    connect_failures: Family<ByNode, Counter>,
    connect_failures_all: Counter,
    pub(super) cancels: Counter,
    repeats: Counter,
    misjudged: Counter,
    not_shown: Counter,
    outcomes: Family<ByOutcome, Counter>,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            opened: Family::default(),
            ended: Family::default(),
            refused: Family::default(),
            denied: Default::default(),
            malformed: Default::default(),
            connect_failures: Family::default(),
            connect_failures_all: Counter::default(),
            cancels: Counter::default(),
            repeats: Counter::default(),
            misjudged: Counter::default(),
            not_shown: Counter::default(),
            outcomes: Family::default(),
        };
        registry.register(
            "synapsedb_router_sessions_opened",
            "Sessions that began",
            metrics.opened.clone(),
        );
        registry.register(
            "synapsedb_router_sessions_ended",
            "Sessions that ended, by who or what ended them",
            metrics.ended.clone(),
        );
        registry.register(
            "synapsedb_router_refused",
            "Connections that never became a session",
            metrics.refused.clone(),
        );
        registry.register(
            "synapsedb_router_connect_failures",
            "Attempts to reach a node's PostgreSQL server that failed",
            metrics.connect_failures.clone(),
        );
        registry.register(
            "synapsedb_router_cancels",
            "Cancel requests passed on",
            metrics.cancels.clone(),
        );
        registry.register(
            "synapsedb_router_reads_repeated",
            "Reads whose node was lost before it answered, run again on another",
            metrics.repeats.clone(),
        );
        registry.register(
            "synapsedb_router_misjudged",
            "Statements of the split endpoint that were taken for reads and wanted to write; they wrote nothing",
            metrics.misjudged.clone(),
        );
        registry.register(
            "synapsedb_router_not_shown",
            "Transactions refused since no node showed in time what they must see",
            metrics.not_shown.clone(),
        );
        registry.register(
            "synapsedb_router_outcomes",
            "Commits and writes outside a transaction that were lost with their server connection, by what became of \
             them",
            metrics.outcomes.clone(),
        );
        metrics
    }

    pub(super) fn not_shown(&self) {
        self.not_shown.inc();
    }

    pub(super) fn misjudged(&self) {
        self.misjudged.inc();
    }

    pub(super) fn repeated(&self) {
        self.repeats.inc();
    }

    pub(super) fn outcome(&self, known: Answer) {
        let outcome = match known {
            Answer::Committed(_) => "committed",
            Answer::Aborted => "aborted",
            Answer::Unknown => "unknown",
        };
        self.outcomes.get_or_create_owned(&ByOutcome { outcome }).inc();
    }

    pub(super) fn opened(&self, endpoint: Endpoint) {
        self.opened_counter(endpoint).inc();
    }

    pub(super) fn ended(&self, by: EndedBy) {
        self.ended_counter(by).inc();
    }

    pub(super) fn refused(&self, endpoint: Endpoint, why: Refused) {
        let counter = match why {
            Refused::Slow | Refused::Malformed | Refused::Tls | Refused::Gone => &self.malformed,
            Refused::TooManyStartups
            | Refused::TooManyClients
            | Refused::NoNode
            | Refused::ServerNotNow
            | Refused::Server
            | Refused::Password
            | Refused::Draining => &self.denied,
        };
        counter[endpoint as usize].fetch_add(1, Ordering::Relaxed);
        self.refused.get_or_create_owned(&ByReason { reason: why.name() }).inc();
    }

    pub(super) fn connect_failure(&self, node: u16) {
        self.connect_failures.get_or_create_owned(&ByNode { node }).inc();
        self.connect_failures_all.inc();
    }

    /// Sessions that began at the endpoint; connections that were denied there, and that broke the protocol.
    pub(super) fn arrivals(&self, endpoint: Endpoint) -> (u64, u64, u64) {
        let place = endpoint as usize;
        let of = |counters: &[AtomicU64; Endpoint::COUNT]| counters[place].load(Ordering::Relaxed);
        (self.opened_counter(endpoint).get(), of(&self.denied), of(&self.malformed))
    }

    /// Attempts to reach the node's server that failed.
    pub(super) fn connect_failures(&self, node: u16) -> u64 {
        self.connect_failures.get_or_create_owned(&ByNode { node }).get()
    }

    pub(super) fn totals(&self) -> Totals {
        let refused =
            |why: Refused| self.refused.get_or_create_owned(&ByReason { reason: why.name() }).get();
        Totals {
            read_sessions: self.opened_counter(Endpoint::Read).get(),
            write_sessions: self.opened_counter(Endpoint::Write).get(),
            split_sessions: self.opened_counter(Endpoint::Split).get(),
            refused: Refused::ALL.into_iter().map(refused).sum(),
            connect_failures: self.connect_failures_all.get(),
            ended_primary_changed: self.ended_counter(EndedBy::PrimaryChanged).get(),
            ended_server_lost: self.ended_counter(EndedBy::ServerLost).get(),
            cancels: self.cancels.get(),
        }
    }

    fn opened_counter(&self, endpoint: Endpoint) -> Counter {
        self.opened.get_or_create_owned(&ByEndpoint { endpoint: endpoint.name() })
    }

    fn ended_counter(&self, by: EndedBy) -> Counter {
        self.ended.get_or_create_owned(&ByReason { reason: by.name() })
    }
}
