//! The cluster under test: laid out by `synapsedb init`, its agents started as child processes, all of it ended and
//! removed when the value is dropped; after a failure the data is kept and named.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::binary::Binary;
use crate::client::Server;
use crate::digest;
use crate::eventually::{eventually, try_eventually};
use crate::node::Node;
use crate::ports::PortBase;
use crate::reaper::Reaper;
use crate::shared;

/// Set to a number, every lane of every cluster of the tests has so many workers, which are given whatever they may.
pub(crate) const WORKERS: &str = "SYNAPSEDB_TEST_APPLY_WORKERS";
/// How long a cluster may take from nothing until every node is ready. Two slow cores make three database clusters.
const READY_TIMEOUT: Duration = Duration::from_secs(180);
/// How long the nodes may take until they hold the same rows.
pub const EQUAL_TIMEOUT: Duration = Duration::from_secs(120);

/// A cluster that is to be made.
pub(crate) struct Layout {
    binary: Binary,
    nodes: u16,
}

impl Layout {
    pub(crate) fn new(binary: Binary, nodes: u16) -> Self {
        Self { binary, nodes }
    }

    /// Lays it out in a new directory of the temporary directory.
    pub(crate) fn make(self) -> Result<Cluster> {
        let ports = PortBase::take(self.nodes)?;
        let folder = tempfile::Builder::new().prefix("synapsedb-test-").tempdir()?;
        // As root the servers run as another user, who has to get through.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let data = folder.keep();
        let reaper = Arc::new(Reaper::start(&data)?);
        let node = |number| Node::new(&self.binary, &data, &ports, number, self.nodes, &reaper);
        let nodes = (1..=self.nodes).map(node).collect();
        let cluster = Cluster {
            binary: self.binary.clone(),
            nodes,
            last: self.nodes,
            data,
            ports,
            reaper,
            kept: AtomicBool::new(false),
        };
        let text = cluster.data.to_str().context("the temporary directory has a name in UTF-8")?;
        let (count, base) = (self.nodes.to_string(), cluster.ports.get().to_string());
        let arguments = ["init", "--data", text, "--nodes", &count, "--port-base", &base, "--json"];
        self.binary.output(&arguments)?;
        if let Ok(workers) = std::env::var(WORKERS) {
            let workers: i64 = workers.parse().with_context(|| format!("read {WORKERS}"))?;
            for node in &cluster.nodes {
                node.configure("replication.apply_workers", workers);
                node.configure("replication.apply_worker_min_rows", 1);
            }
        }
        Ok(cluster)
    }
}

/// A cluster under test.
pub struct Cluster {
    binary: Binary,
    nodes: Vec<Node>,
    /// The highest number that a node was given.
    last: u16,
    data: PathBuf,
    ports: PortBase,
    reaper: Arc<Reaper>,
    kept: AtomicBool,
}

impl Cluster {
    /// Starts every agent that does not run and waits until all nodes are ready.
    ///
    /// # Panics
    /// When they do not become ready, with the reason.
    pub async fn start(&self) {
        shared::end_idle();
        for node in &self.nodes {
            if node.agent_pid().is_none() {
                node.start();
            }
        }
        self.wait_ready().await;
    }

    /// Waits until all nodes say that they are ready and take the application's sessions.
    ///
    /// # Panics
    /// When they do not, with the reason.
    pub async fn wait_ready(&self) {
        eventually("every node is ready", READY_TIMEOUT, async || {
            for node in &self.nodes {
                node.ready().await?;
                node.shows("select 1", &["1"]).await?;
            }
            Ok(())
        })
        .await;
    }

    /// The node `number`, from 1.
    ///
    /// # Panics
    /// When there is none of that number.
    pub fn node(&self, number: u16) -> &Node {
        match self.nodes.iter().find(|node| node.number() == number) {
            Some(node) => node,
            None => panic!("there is no node {number}"),
        }
    }

    /// Adds a node with `synapsedb node join` and starts its agent. Does not wait until it has caught up.
    ///
    /// # Panics
    /// When the command fails, with its own words.
    pub fn join(&mut self, source: Option<u16>) -> u16 {
        self.join_with(source, |_| {})
    }

    /// As [`Cluster::join`]; `configure` changes the configuration of the node before its agent starts.
    ///
    /// # Panics
    /// When the command fails, with its own words.
    pub fn join_with(&mut self, source: Option<u16>, configure: impl FnOnce(&Node)) -> u16 {
        let number = self.last + 1;
        let from = source.map(|source| source.to_string());
        let mut arguments = vec!["node", "join", "--timeout", "120"];
        arguments.extend(from.iter().flat_map(|from| ["--source", from.as_str()]));
        self.command(&arguments);
        let node = Node::new(&self.binary, &self.data, &self.ports, number, number, &self.reaper);
        configure(&node);
        node.start();
        self.nodes.push(node);
        self.last = number;
        number
    }

    /// Runs a verb of the command line on this cluster and returns what it printed.
    ///
    /// # Panics
    /// When it fails, with its own words.
    pub fn command(&self, arguments: &[&str]) -> String {
        let data = self.data.to_string_lossy();
        match self.binary.output(&[arguments, &["--data", &data]].concat()) {
            Ok(text) => text,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// The fixture no longer counts on a node, which has left the cluster; its processes are ended.
    pub fn forget(&mut self, number: u16) {
        self.node(number).end();
        self.nodes.retain(|node| node.number() != number);
    }

    /// All nodes in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The router's endpoint for reads.
    pub fn read_endpoint(&self) -> Server {
        Server::new("the read endpoint", self.ports.read())
    }

    /// The router's endpoint for writes.
    pub fn write_endpoint(&self) -> Server {
        Server::new("the write endpoint", self.ports.write())
    }

    /// Switches the router's split endpoint on, before the agents are started.
    pub fn switch_split_on(&self) {
        for node in &self.nodes {
            node.configure("router.split_listen", format!("127.0.0.1:{}", self.ports.split()));
        }
    }

    /// The router's endpoint for reads and writes, if it is switched on.
    pub fn split_endpoint(&self) -> Server {
        Server::new("the split endpoint", self.ports.split())
    }

    /// The directory that holds everything of the cluster.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The ports of the cluster.
    pub fn ports(&self) -> &PortBase {
        &self.ports
    }

    /// The binary that runs it.
    pub fn binary(&self) -> &Binary {
        &self.binary
    }

    /// Waits until a query shows exactly these rows on every node.
    ///
    /// # Panics
    /// When one of them still shows something else after [`EQUAL_TIMEOUT`].
    pub async fn all_show(&self, sql: &str, expected: &[&str]) {
        eventually(&format!("every node shows {expected:?}\n  {sql}"), EQUAL_TIMEOUT, async || {
            for node in &self.nodes {
                node.shows(sql, expected).await?;
            }
            Ok(())
        })
        .await;
    }

    /// Waits until a query shows the same rows on every node as it shows on node `number` now.
    ///
    /// # Panics
    /// When one of them still shows something else after [`EQUAL_TIMEOUT`].
    pub async fn all_show_as(&self, number: u16, sql: &str) {
        let rows = self.node(number).rows(sql).await;
        let rows: Vec<_> = rows.iter().map(String::as_str).collect();
        self.all_show(sql, &rows).await;
    }

    /// Waits until all nodes have the same tables with the same rows.
    ///
    /// # Panics
    /// When they still differ after [`EQUAL_TIMEOUT`], with the tables and the first rows that differ.
    pub async fn assert_equal_rows(&self) {
        if let Err(reason) = self.equal_rows_within(EQUAL_TIMEOUT).await {
            panic!("the nodes differ: {reason}\n{}", digest::first_differences(&self.nodes).await);
        }
    }

    /// Waits at most `limit` until all nodes have the same tables with the same rows.
    ///
    /// # Errors
    /// Which tables still differ.
    pub async fn equal_rows_within(&self, limit: Duration) -> Result<(), String> {
        try_eventually(limit, async || digest::compare(&self.nodes).await).await
    }

    /// Stops every agent in order, and with it its server.
    ///
    /// # Panics
    /// When one does not stop in time or not in order.
    pub fn stop(&self) {
        for node in &self.nodes {
            node.stop();
        }
    }

    /// Keeps the data after the end.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
        self.reaper.keep();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &self.nodes {
            node.end();
        }
        self.reaper.finish();
        if self.kept.load(Ordering::Relaxed) || std::thread::panicking() {
            eprintln!("the data of the failed cluster is kept in {}", self.data.display());
        } else if let Err(error) = fs::remove_dir_all(&self.data) {
            eprintln!("the data in {} is left behind: {error}", self.data.display());
        }
    }
}
