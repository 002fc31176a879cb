//! `RELOAD`: what the agent's file says now of the router takes the place of what it said before, as far as that can be
//! while clients are served.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use arc_swap::Guard;
use serde_json::Value;

use super::console::holds::Order;
use super::{Config, Shared};
use crate::config::keys;

/// Reads the agent's file again: what it says of the router, and which of the other sections say something else than
/// when the agent was started.
///
/// # Errors
/// What is wrong with the file.
pub type ReadAgain = Box<dyn Fn() -> Result<(Config, Vec<String>)> + Send + Sync>;

/// What was used when the router was made: for another value the agent must be started anew.
const FIXED: [&str; 12] = [
    "client_certificates",
    "keepalive_ms",
    "read_listen",
    "server_tls",
    "server_tls_ca_file",
    "split_listen",
    "split_texts_max",
    "tls_client_ca_file",
    "tls_client_crl_file",
    "tls_reload_interval_ms",
    "workers",
    "write_listen",
];

/// Whether a key can be changed only by starting the agent anew.
pub(super) fn is_fixed(key: &str) -> bool {
    FIXED.contains(&key)
}

/// What reading the file again has come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reloaded {
    /// The keys of the section that have another value now.
    pub(super) changed: Vec<String>,
    /// The keys and sections whose new values need the agent to be started anew.
    pub(super) waiting: Vec<String>,
}

/// `now`, with what `read` says otherwise and may be changed.
fn merge(now: &Config, read: &Config) -> Result<(Config, Reloaded)> {
    let (before, mut merged) = (keys(now), keys(read));
    let mut reloaded = Reloaded::default();
    let names: BTreeSet<String> = before.keys().chain(merged.keys()).cloned().collect();
    for name in names {
        if before.get(&name) == merged.get(&name) {
            continue;
        }
        if !is_fixed(&name) {
            reloaded.changed.push(name);
            continue;
        }
        match before.get(&name) {
            Some(value) => drop(merged.insert(name.clone(), value.clone())),
            None => drop(merged.remove(&name)),
        }
        reloaded.waiting.push(format!("router.{name}"));
    }
    let config = serde_json::from_value(Value::Object(merged));
    Ok((config.context("put the configuration of the router together")?, reloaded))
}

impl Shared {
    /// The configuration that is in force at this moment; takes no lock.
    pub(super) fn config(&self) -> Guard<Arc<Config>> {
        self.config.load()
    }

    /// Reads the file again and goes by it from now on. Sessions that are there keep how they are pooled and how
    /// consistent they read.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is wrong: then nothing is changed.
    pub(super) async fn reload(self: &Arc<Self>) -> Result<Reloaded> {
        let _turn = self.reloading.lock().await;
        let shared = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || (shared.read_again)());
        let (read, others) = read.await.context("read the file again")??;
        let (config, mut reloaded) = merge(&self.config(), &read)?;
        reloaded.waiting.extend(others);
        self.config.store(Arc::new(config));
        self.order(&Order::Reload).await;
        let (changed, waiting) = (reloaded.changed.join(", "), reloaded.waiting.join(", "));
        tracing::info!(changed, waiting, "router: the configuration was read again");
        Ok(reloaded)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn what_may_change_does_and_the_rest_is_told() {
        let now = Config { pool_size: 5, workers: 2, ..Config::default() };
        let split_listen = Some(SocketAddr::from(([127, 0, 0, 1], 5003)));
        let read = Config { pool_size: 7, split_listen, workers: 1, clients_max: 9, ..now.clone() };
        let (config, reloaded) = merge(&now, &read).unwrap();
        assert_eq!(config, Config { pool_size: 7, clients_max: 9, ..now.clone() });
        assert_eq!(reloaded.changed, ["clients_max", "pool_size"]);
        assert_eq!(reloaded.waiting, ["router.split_listen", "router.workers"]);
        let (config, reloaded) = merge(&read, &read).unwrap();
        assert_eq!((config, reloaded), (read, Reloaded::default()));
    }

    #[test]
    fn what_is_fixed_are_keys_of_the_section() {
        let some = SocketAddr::from(([127, 0, 0, 1], 5003));
        let keys = keys(&Config { split_listen: Some(some), ..Config::default() });
        for name in FIXED {
            assert!(keys.contains_key(name), "{name}");
        }
    }
}
