//! Keeps the agents of a cluster on one machine running: one child process per node, started again when it ends.
//!
//! **Runs on:** one process beside the agents of `synapsedb up`. **Invariant:** it holds nothing that an agent needs: a
//! new supervisor adopts the agents that a killed one left.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use synapsedb_core::ids::NodeId;
use tokio::process::Child;

use crate::layout::{Cluster, Node};
use crate::pid_file::{self, PidFile};
use crate::process::Process;
use crate::tasks::Shutdown;

/// How long an agent may take to stop, its server included, before it is killed.
pub const AGENT_STOP: Duration = Duration::from_secs(60);
/// How long a server may take to stop that a killed agent left.
pub const SERVER_STOP: Duration = Duration::from_secs(30);
/// The first wait before an agent is started again; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// The longest wait.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// An agent that ran for this long has not failed to start.
const STABLE: Duration = Duration::from_secs(30);
/// How often is looked whether an adopted agent still holds its file.
const HELD_POLL: Duration = Duration::from_millis(500);
/// How often is looked whether nodes have joined or left.
const NODES_POLL: Duration = Duration::from_secs(1);

/// The supervisor of a cluster, if one runs.
pub fn running(cluster: &Cluster) -> Option<Process> {
    pid_file::holder(&cluster.supervisor_pid_file())
}

/// The agent of a node, if one runs.
pub fn running_agent(cluster: &Cluster, node: &Node) -> Option<Process> {
    pid_file::holder(&cluster.node_dir(node.id).join("agent.pid"))
}

/// Runs the agents until `stop` is cancelled, then stops them and their servers. `program` is the agent's binary.
///
/// # Errors
/// When another supervisor runs; then nothing is started.
pub async fn run(cluster: &Cluster, program: &Path, stop: Shutdown) -> Result<()> {
    let _lock = PidFile::acquire(&cluster.supervisor_pid_file())?;
    let mut watches = tokio::task::JoinSet::new();
    let mut watched: BTreeMap<NodeId, Shutdown> = BTreeMap::new();
    let mut nodes = cluster.nodes.clone();
    loop {
        let there = |id: &NodeId| nodes.iter().any(|node| node.id == *id);
        watched.retain(|id, until| {
            if !there(id) {
                until.cancel();
            }
            there(id)
        });
        for node in &nodes {
            watched.entry(node.id).or_insert_with(|| {
                let watch = Watch {
                    name: format!("node {}", node.id),
                    dir: cluster.node_dir(node.id),
                    program: program.to_owned(),
                };
                let until = stop.child_token();
                watches.spawn(watch.run(until.clone()));
                until
            });
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(NODES_POLL) => {}
        }
        // Nodes join and leave; a file that cannot be read now says nothing.
        if let Ok(Some(now)) = crate::layout::find(&cluster.data) {
            nodes = now.nodes;
        }
    }
    while let Some(ended) = watches.join_next().await {
        ended.context("the watch over an agent panicked")?;
    }
    Ok(())
}

/// Watches over the agent of one node.
struct Watch {
    name: String,
    dir: PathBuf,
    program: PathBuf,
}

/// A running agent.
struct Agent {
    process: Process,
    /// `None` when it was adopted.
    child: Option<Child>,
    /// The file that it holds.
    pid_file: PathBuf,
}

impl Agent {
    /// Returns, with how it ended, when it has ended. Cancel safe.
    async fn ended(&mut self) -> String {
        match &mut self.child {
            Some(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => format!("lost: {error}"),
            },
            None => {
                // `synapsedb node reseed` holds an agent's place for a while, and lives on when it has let it go.
                while pid_file::holder(&self.pid_file).is_some() {
                    let _ = tokio::time::timeout(HELD_POLL, self.process.gone()).await;
                }
                "adopted, its status is unknown".to_owned()
            }
        }
    }
}

impl Watch {
    async fn run(self, stop: Shutdown) {
        let mut wait = RETRY_MIN;
        while !stop.is_cancelled() {
            let born = Instant::now();
            match self.find_or_start() {
                Ok(mut agent) => {
                    tokio::select! {
                        how = agent.ended() => {
                            tracing::warn!("the agent of {} ended ({how}); starting it again", self.name);
                        }
                        () = stop.cancelled() => {
                            self.stop(&mut agent).await;
                            break;
                        }
                    }
                }
                Err(error) => tracing::error!("cannot start the agent of {}: {error:#}", self.name),
            }
            if born.elapsed() > STABLE {
                wait = RETRY_MIN;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
        // Also of an agent that was killed while it was waited for.
        let pgdata = self.dir.join("pgdata");
        let stopped = tokio::task::spawn_blocking(move || {
            crate::postgres::stop_leftover(&pgdata, SERVER_STOP)
        });
        if let Ok(Err(error)) = stopped.await {
            tracing::error!("{}: {error:#}", self.name);
        }
    }

    /// The agent that already runs, else a new one.
    fn find_or_start(&self) -> Result<Agent> {
        let pid_file = self.dir.join("agent.pid");
        if let Some(process) = pid_file::holder(&pid_file) {
            tracing::info!(pid = process.pid(), "adopted the running agent of {}", self.name);
            return Ok(Agent { process, child: None, pid_file });
        }
        let log_file = self.dir.join("agent.log");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_file)
            .with_context(|| format!("cannot open {}", log_file.display()))?;
        let mut command = Command::new(&self.program);
        command
            .args(["agent", "--config"])
            .arg(self.dir.join("agent.toml"))
            .env_remove("POSTGRES_PASSWORD")
            .env_remove("POSTGRES_PASSWORD_FILE")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Its own group: a Ctrl-C at the terminal is for the supervisor, which stops the agents in order.
            .process_group(0);
        let child = tokio::process::Command::from(command)
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let process =
            child.id().and_then(Process::find).context("it ended at once; see agent.log")?;
        tracing::info!(pid = process.pid(), "started the agent of {}", self.name);
        Ok(Agent { process, child: Some(child), pid_file })
    }

    async fn stop(&self, agent: &mut Agent) {
        agent.process.signal(Signal::TERM);
        if tokio::time::timeout(AGENT_STOP, agent.ended()).await.is_ok() {
            tracing::info!("stopped the agent of {}", self.name);
            return;
        }
        tracing::warn!("the agent of {} did not stop within {AGENT_STOP:?}: killing it", self.name);
        agent.process.signal(Signal::KILL);
        agent.ended().await;
    }
}
