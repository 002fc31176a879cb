//! What is measured: one node, and the proxies before its server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::proxy::{self, Proxy};
use super::{Options, Route, pgbench};
use crate::binary::Binary;
use crate::client::Server;
use crate::cluster::Cluster;

/// Sessions of the server: those of the largest point without a pool, of all pools, and of the agent.
const CONNECTIONS: u32 = 600;

/// A node and its proxies; all ended when dropped.
pub(super) struct Bed {
    // Before the cluster, so that they are ended before it.
    proxies: BTreeMap<Route, Proxy>,
    /// A PgBouncer too old for prepared statements in transaction mode keeps whole sessions for them.
    prepared: BTreeMap<Route, Proxy>,
    cluster: Cluster,
}

impl Bed {
    /// Starts a node with pgbench's tables, and the proxies of these ways. `extra` are keys of the router.
    pub(super) async fn make(
        binary: &Binary,
        options: &Options,
        routes: &[Route],
        extra: &[(&str, toml::Value)],
    ) -> Result<Self> {
        let cluster = binary.lay_out(1);
        let node = cluster.node(1);
        node.configure("postgres.max_connections", i64::from(CONNECTIONS));
        node.configure("router.clients_max", i64::from(options.crowd) + 100);
        if options.pool_size > 0 {
            node.configure("router.pool_size", i64::from(options.pool_size));
        }
        for setting in &options.settings {
            let table: toml::Table = setting.parse().with_context(|| format!("--set {setting}"))?;
            table.into_iter().for_each(|(key, value)| {
                node.configure(&format!("router.{key}"), value);
            });
        }
        for (key, value) in extra {
            node.configure(&format!("router.{key}"), value.clone());
        }
        cluster.start().await;
        pgbench::fill(node.server(), options.scale).await?;
        let mut bed = Self { proxies: BTreeMap::new(), prepared: BTreeMap::new(), cluster };
        for route in routes {
            bed.start(*route, options).await?;
        }
        Ok(bed)
    }

    async fn start(&mut self, route: Route, options: &Options) -> Result<()> {
        let server = self.server().clone();
        let socket_dir = match route {
            Route::Direct | Route::Synapsedb => return Ok(()),
            Route::Haproxy => {
                self.proxies.insert(route, Proxy::haproxy(&server).await?);
                return Ok(());
            }
            Route::Pgbouncer => None,
            Route::PgbouncerUnix => Some(self.socket_dir()?),
        };
        let program = proxy::find("pgbouncer", options.pgbouncer.as_deref())?;
        let mut config = proxy::PgBouncer {
            program,
            verifier: self.verifier().await?,
            socket_dir,
            clients_max: options.crowd + 100,
            pool_mode: "transaction",
            pool_size: options.pool_size.max(1),
        };
        self.proxies.insert(route, Proxy::pgbouncer(&server, &config).await?);
        if !config.keeps_prepared()? {
            config.pool_mode = "session";
            config.pool_size = options.clients.iter().copied().max().unwrap_or(1);
            self.prepared.insert(route, Proxy::pgbouncer(&server, &config).await?);
        }
        Ok(())
    }

    /// The node's server.
    pub(super) fn server(&self) -> &Server {
        self.cluster.node(1).server()
    }

    /// The node.
    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Where clients of a way connect; `prepared` says whether they use prepared statements.
    pub(super) fn entrance(&self, route: Route, prepared: bool) -> Result<Server> {
        match route {
            Route::Direct => Ok(self.server().clone()),
            Route::Synapsedb => Ok(self.cluster.read_endpoint()),
            Route::Pgbouncer | Route::PgbouncerUnix | Route::Haproxy => {
                Ok(self.proxy(route, prepared)?.server().clone())
            }
        }
    }

    /// The process of a way; none for the direct one.
    pub(super) fn pid(&self, route: Route, prepared: bool) -> Result<Option<u32>> {
        match route {
            Route::Direct => Ok(None),
            Route::Synapsedb => {
                let pid = self.cluster.node(1).agent_pid().context("the agent is gone")?;
                Ok(Some(pid))
            }
            Route::Pgbouncer | Route::PgbouncerUnix | Route::Haproxy => {
                Ok(Some(self.proxy(route, prepared)?.pid()))
            }
        }
    }

    fn proxy(&self, route: Route, prepared: bool) -> Result<&Proxy> {
        let special = prepared.then(|| self.prepared.get(&route)).flatten();
        special.or_else(|| self.proxies.get(&route)).context("this proxy was not started")
    }

    /// What the proxies say of themselves.
    pub(super) fn versions(&self) -> Vec<String> {
        let mut versions: Vec<_> =
            self.proxies.values().map(|proxy| proxy.version().to_owned()).collect();
        versions.dedup();
        if !self.prepared.is_empty() {
            versions.push("(of session mode where statements are prepared)".to_owned());
        }
        versions
    }

    /// The directory of the server's unix socket.
    fn socket_dir(&self) -> Result<PathBuf> {
        let path = self.cluster.node(1).folder().join("agent.toml");
        let document: toml::Table = std::fs::read_to_string(&path)?.parse()?;
        let folder = document.get("postgres").and_then(|postgres| postgres.get("socket_dir"));
        match folder.and_then(toml::Value::as_str) {
            Some(folder) => Ok(folder.into()),
            None => bail!("{} names no postgres.socket_dir", path.display()),
        }
    }

    /// The SCRAM verifier of the application's role, with which PgBouncer knows clients and is known to the server.
    async fn verifier(&self) -> Result<String> {
        let query = include_str!("verifier.sql");
        Ok(self.cluster.node(1).agent_server().try_rows(query).await?.concat())
    }
}
