//! What serde cannot check: required keys, ranges, the member list, and addresses that must not be public.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use synapsedb_core::ids::NodeId;

use super::AgentConfig;
use super::document::Document;
use super::problem::{Place, Problems};
use crate::postgres::{self, Mode};
use crate::replication::{self, durability};

/// Adds a problem for every required key that is not there.
pub(super) fn required(document: &Document<'_>, problems: &mut Problems) {
    let keys = [
        ("cluster.id", "the cluster's UUID, the same on all nodes"),
        ("node.id", "this node's number, 1 to 16"),
        ("node.data_dir", "the node's directory, an absolute path"),
        ("member", "one [[member]] table for every node of the cluster, this one included"),
    ];
    for (key, what) in keys {
        if document.place_of(key).is_none() {
            problems.add(Place::File, key, format!("is missing; set it to {what}"));
        }
    }
}

/// Adds a problem for every value out of its range and for everything wrong with the member list.
pub(super) fn ranges(config: &AgentConfig, document: &Document<'_>, problems: &mut Problems) {
    let mut check = Check { document, problems };
    check.within("node.id", u64::from(config.node.id), 1, u64::from(NodeId::MAX));
    check.within("node.stop_timeout_ms", config.node.stop_timeout_ms, 100, 3_600_000);
    if !config.node.data_dir.is_absolute() {
        check.refuse("node.data_dir", "is not an absolute path; write it with a leading /");
    }
    if config.cluster.id.is_nil() {
        check.refuse("cluster.id", "is the nil UUID; every cluster has its own");
    }
    check.members(config);
    check.postgres(&config.postgres);
    check.apply_limits(&config.replication);
    check.apply_workers(&config.replication);
    check.outcomes(config);
    check.durability(&config.replication.durability);
    check.router(config);
}

struct Check<'a, 'i> {
    document: &'a Document<'i>,
    problems: &'a mut Problems,
}

impl Check<'_, '_> {
    /// A value that is not in the file is a default or was refused before, and not refused again.
    fn refuse(&mut self, path: &str, text: impl Into<String>) {
        if let Some(place) = self.document.place_of(path) {
            self.problems.add(place, path, text);
        }
    }

    fn within(&mut self, path: &str, value: u64, min: u64, max: u64) {
        if !(min..=max).contains(&value) {
            self.refuse(path, format!("is {value}; allowed: a whole number from {min} to {max}"));
        }
    }

    fn members(&mut self, config: &AgentConfig) {
        for (index, member) in config.member.iter().enumerate() {
            let path = format!("member.{index}");
            if NodeId::new(member.id).is_none() {
                let text = format!("has id {}; allowed: 1 to {}", member.id, NodeId::MAX);
                self.refuse(&path, text);
            }
            if config.member[..index].iter().any(|other| other.id == member.id) {
                self.refuse(&path, format!("has the id {} of another member", member.id));
            }
            let addresses =
                [("peers", &member.peers), ("postgres", &member.postgres), ("http", &member.http)];
            for (key, address) in addresses {
                if address.is_empty() {
                    self.refuse(&path, format!("has no `{key}`; set it to host:port"));
                } else if !is_host_port(address) {
                    let text = format!("is \"{address}\"; expected host:port");
                    self.refuse(&format!("{path}.{key}"), text);
                }
            }
        }
        if !config.member.is_empty() && config.node.id > 0 && config.own_member().is_none() {
            let text =
                format!("there is no [[member]] with the id {} of this node", config.node.id);
            self.refuse("member", text);
        }
    }

    /// A lock that is waited for says nothing about a row: its limit must come first.
    fn apply_limits(&mut self, config: &replication::Config) {
        let (lock_ms, row_ms) = (config.lock_timeout_ms, config.row_timeout_ms);
        self.within("replication.row_timeout_ms", row_ms, 100, 86_400_000);
        self.within("replication.lock_timeout_ms", lock_ms, 10, 86_400_000);
        if lock_ms >= row_ms {
            let text = format!(
                "replication.lock_timeout_ms ({lock_ms}) must be less than replication.row_timeout_ms ({row_ms}): \
                 a row whose lock is waited for would be quarantined"
            );
            self.refuse("replication.row_timeout_ms", text.clone());
            self.refuse("replication.lock_timeout_ms", text);
        }
        let group_max = synapsedb_core::group::MAX as u64;
        self.within("replication.apply_group_max", config.apply_group_max as u64, 1, group_max);
        let group_ms = config.apply_group_lock_timeout_ms;
        self.within("replication.apply_group_lock_timeout_ms", group_ms, 1, lock_ms);
    }

    /// A worker gives up long before the lane would.
    fn apply_workers(&mut self, config: &replication::Config) {
        let workers_max = replication::WORKERS_MAX as u64;
        self.within("replication.apply_workers", config.apply_workers as u64, 0, workers_max);
        let rows = config.apply_worker_min_rows as u64;
        self.within("replication.apply_worker_min_rows", rows, 1, 1_000_000);
        let claims = config.apply_worker_claims_max as u64;
        self.within("replication.apply_worker_claims_max", claims, 1, 10_000_000);
        let ahead = config.apply_ahead_transactions_max as u64;
        self.within("replication.apply_ahead_transactions_max", ahead, 2, 100_000);
        let bytes = config.apply_ahead_bytes_max as u64;
        self.within("replication.apply_ahead_bytes_max", bytes, 64 << 10, 1 << 30);
        let lock_ms = config.apply_worker_lock_timeout_ms;
        self.within("replication.apply_worker_lock_timeout_ms", lock_ms, 1, config.lock_timeout_ms);
        self.within("replication.apply_worker_yield_ms", config.apply_worker_yield_ms, 1, 1_000);
    }

    /// An interrupted commit is asked for as long as it may be remembered.
    fn outcomes(&mut self, config: &AgentConfig) {
        let (max, keep_ms) = (config.replication.outcomes_max, config.replication.outcomes_keep_ms);
        self.within("replication.outcomes_max", max as u64, 1_000, 10_000_000);
        self.within("replication.outcomes_keep_ms", keep_ms, 90_000, 3_600_000);
        self.within("router.resolve_wait_ms", config.router.resolve_wait_ms, 0, 60_000);
    }

    fn durability(&mut self, config: &durability::Config) {
        let members = u64::from(config.members);
        self.within("replication.durability.members", members, 0, u64::from(NodeId::MAX));
        let (lost, applied) = (config.degrade_after_ms, config.applied_wait_max_ms);
        self.within("replication.durability.degrade_after_ms", lost, 10, 3_600_000);
        self.within("replication.durability.applied_wait_max_ms", applied, 10, 3_600_000);
    }

    fn router(&mut self, all: &AgentConfig) {
        let config = &all.router;
        self.read_bounds(all);
        self.split(all);
        let nobody = |file: &Path| file.as_os_str().is_empty();
        if config.client_authority().is_some_and(nobody) {
            let text =
                "needs router.tls_client_ca_file, the authority of the clients' certificates (PEM)";
            self.refuse("router.client_certificates", text);
        }
        if config.client_authority().is_none() && config.client_revocations().is_some() {
            let text = "needs router.client_certificates = \"allow\" or \"require\": nobody is asked for one";
            self.refuse("router.tls_client_crl_file", text);
        }
        self.within("router.tls_reload_interval_ms", config.tls_reload_interval_ms, 10, 3_600_000);
        for (index, rule) in config.pools.iter().enumerate() {
            if rule.size == Some(0) || (rule.size.is_none() && rule.mode.is_none()) {
                let text = "needs a `mode`, or a `size` of at least 1, or both";
                self.refuse(&format!("router.pools.{index}"), text);
            }
        }
        for (index, pair) in config.certificate_roles.iter().enumerate() {
            if pair.certificate.is_empty() || pair.role.is_empty() {
                let text = "needs `certificate`, a common name, and `role`, whom its holder may be";
                self.refuse(&format!("router.certificate_roles.{index}"), text);
            }
        }
    }

    /// The split endpoint has a port of its own.
    fn split(&mut self, config: &AgentConfig) {
        const KEY: &str = "router.split_listen";
        let router = &config.router;
        self.within(
            "router.split_names_max_age_ms",
            router.split_names_max_age_ms,
            100,
            86_400_000,
        );
        self.within("router.split_texts_max", router.split_texts_max as u64, 16, 1_000_000);
        let Some(split) = router.split_listen.filter(|split| split.port() != 0) else { return };
        let Ok(tree) = toml::Value::try_from(config) else { return };
        let mut others = vec![("postgres.port".to_owned(), config.postgres.listen.clone())];
        others[0].1 = format!("{}:{}", others[0].1, config.postgres.port);
        for section in ["router", "peers", "http"] {
            let table = tree.get(section).and_then(toml::Value::as_table).into_iter().flatten();
            let keys = table.filter_map(|(key, value)| Some((key, value.as_str()?)));
            others.extend(keys.map(|(key, value)| (format!("{section}.{key}"), value.to_owned())));
        }
        for (key, address) in others.iter().filter(|(key, _)| key != KEY) {
            if clashes(split, address) {
                let text =
                    format!("listens on {split}, which {key} has; set it to a port of its own");
                self.refuse(KEY, text);
            }
        }
    }

    /// A bound on what is measured less often than that would take nodes out at random.
    fn read_bounds(&mut self, config: &AgentConfig) {
        self.within("router.position_timeout_ms", config.router.position_timeout_ms, 10, 60_000);
        let (lag_ms, probe_ms) =
            (config.router.read_lag_max_ms, config.replication.probe_interval_ms);
        if lag_ms > 0 && lag_ms < probe_ms.saturating_mul(2) {
            let text = format!(
                "is {lag_ms}, less than twice replication.probe_interval_ms ({probe_ms}), in which the lag is \
                 measured; set it to {} at least, or to 0 for no bound",
                probe_ms.saturating_mul(2)
            );
            self.refuse("router.read_lag_max_ms", text);
        }
    }

    fn postgres(&mut self, config: &postgres::Config) {
        self.within("postgres.port", u64::from(config.port), 1, 65_535);
        self.within("postgres.max_connections", u64::from(config.max_connections), 20, 262_143);
        self.within("postgres.shared_buffers_mb", config.shared_buffers_mb, 1, 1_048_576);
        self.within("postgres.probe_interval_ms", config.probe_interval_ms, 50, 60_000);
        self.within("postgres.probe_timeout_ms", config.probe_timeout_ms, 50, 60_000);
        self.within("postgres.start_timeout_ms", config.start_timeout_ms, 1_000, 3_600_000);
        self.within("postgres.stop_timeout_ms", config.stop_timeout_ms, 100, 3_600_000);
        self.within("postgres.retry_min_ms", config.retry_min_ms, 10, 60_000);
        self.within("postgres.retry_max_ms", config.retry_max_ms, config.retry_min_ms, 600_000);
        match (config.mode, &config.url) {
            (Mode::Attached, None) => {
                let text = "is \"attached\", but there is no postgres.url to attach to; \
                            set it to postgresql://user@host:port/database";
                self.refuse("postgres.mode", text);
            }
            (Mode::Managed, Some(_)) => {
                let text = "is for mode = \"attached\" only; set the mode or remove the url";
                self.refuse("postgres.url", text);
            }
            (Mode::Attached, Some(url)) => {
                if let Err(why) = postgres::attached_target(url) {
                    self.refuse("postgres.url", why);
                }
            }
            (Mode::Managed, None) => {}
        }
    }
}

/// Refuses listen addresses that others can reach while the role still has the password everybody knows.
pub(super) fn public_addresses(config: &AgentConfig, problems: &mut Problems) {
    if !postgres::has_default_password(&config.postgres) {
        return;
    }
    let Ok(tree) = toml::Value::try_from(config) else { return };
    for section in ["postgres", "router", "http"] {
        let Some(table) = tree.get(section).and_then(toml::Value::as_table) else { continue };
        for (key, value) in table {
            let Some(address) = value.as_str() else { continue };
            if !is_listen(key) && (section != "http" || !is_host_port(address)) {
                continue;
            }
            if !is_loopback(address) {
                let text = format!(
                    "listens on {address}, which others can reach, but the role `{}` still has the default \
                     password; start the cluster with POSTGRES_PASSWORD set, or listen on 127.0.0.1",
                    config.postgres.role
                );
                problems.add(Place::File, format!("{section}.{key}"), text);
            }
        }
    }
}

fn is_listen(key: &str) -> bool {
    key == "listen" || key.ends_with("_listen")
}

/// Whether an address, or hosts with a port behind them, takes this one away. A host by its name may be any.
fn clashes(own: SocketAddr, address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let same = |ip: IpAddr| ip == own.ip() || ip.is_unspecified() || own.ip().is_unspecified();
    port.parse() == Ok(own.port()) && host.parse().map_or(true, same)
}

fn is_host_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// Whether all addresses of a comma-separated list (each with or without a port) stay on this machine.
fn is_loopback(addresses: &str) -> bool {
    addresses.split(',').map(str::trim).filter(|address| !address.is_empty()).all(|address| {
        if let Ok(address) = address.parse::<SocketAddr>() {
            return address.ip().is_loopback();
        }
        if let Ok(address) = address.parse::<IpAddr>() {
            return address.is_loopback();
        }
        address.rsplit_once(':').map_or(address, |(host, _)| host) == "localhost"
    })
}
