//! One node of a cluster under test: its agent is a child process, its PostgreSQL server the agent's business.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::binary::Binary;
use crate::client::{Server, Session};
use crate::clock::{self, Clock};
use crate::firewall::{Cut, Group};
use crate::ports::PortBase;
use crate::process::{self, Memory};
use crate::reaper::Reaper;

mod cut;
mod link;
mod own_clock;
mod slow_disk;
mod walsender;

/// How long an agent may take to stop when asked.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a killed process may take to vanish.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an HTTP answer may take.
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);
/// How many lines of a log are shown in a failure.
const LOG_LINES: usize = 30;

/// The four HTTP ports of a node, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpPort {
    /// Raft and everything without a port of its own.
    Raft,
    /// Gossip.
    Gossip,
    /// The deadlock detector.
    Deadlock,
    /// Backups.
    Backup,
}

/// A node.
pub struct Node {
    number: u16,
    folder: PathBuf,
    binary: Binary,
    server: Server,
    http_base: u16,
    peers: u16,
    others: Vec<u16>,
    reaper: Arc<Reaper>,
    agent: Mutex<Option<Child>>,
    group: Result<Group, String>,
    cut: Mutex<Option<Cut>>,
    clock: Mutex<Option<Clock>>,
    disk: Mutex<Option<slow_disk::SlowDisk>>,
}

impl Node {
    pub(crate) fn new(
        binary: &Binary,
        data: &Path,
        ports: &PortBase,
        number: u16,
        nodes: u16,
        reaper: &Arc<Reaper>,
    ) -> Self {
        Self {
            number,
            folder: data.join(format!("node-{number}")),
            binary: binary.clone(),
            server: Server::new(format!("node {number}"), ports.postgres(number)),
            http_base: ports.http(number),
            peers: ports.peers(number),
            others: (1..=nodes).filter(|other| *other != number).map(|i| ports.peers(i)).collect(),
            reaper: reaper.clone(),
            agent: Mutex::new(None),
            group: group(ports.get(), number, reaper),
            cut: Mutex::new(None),
            clock: Mutex::new(None),
            disk: Mutex::new(None),
        }
    }

    /// Its number, from 1.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Its directory: `agent.toml`, `tls`, `pgdata`, `raft`, `spool`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its PostgreSQL server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The port on which its peers reach its agent.
    pub fn peers_port(&self) -> u16 {
        self.peers
    }

    /// Runs statements on its server. See [`Server::sql`].
    pub async fn sql(&self, sql: &str) {
        self.server.sql(sql).await;
    }

    /// Its PostgreSQL server for the role of its agent, which may do everything.
    ///
    /// # Panics
    /// When the agent's password cannot be read.
    pub fn agent_server(&self) -> Server {
        let file = self.folder.join("secrets/agent.password");
        let password = match fs::read_to_string(&file) {
            Ok(password) => password.trim().to_owned(),
            Err(error) => panic!("read {}: {error}", file.display()),
        };
        Server { user: "synapsedb_agent".to_owned(), password, ..self.server.clone() }
    }

    /// Runs statements on its server and returns the rows as `psql -At` prints them. See [`Server::rows`].
    pub async fn rows(&self, sql: &str) -> Vec<String> {
        self.server.rows(sql).await
    }

    /// The one value of a query. See [`Server::value`].
    pub async fn value(&self, sql: &str) -> String {
        self.server.value(sql).await
    }

    /// Opens a session on its server. See [`Server::session`].
    pub async fn session(&self) -> Session {
        self.server.session().await
    }

    /// Whether a query shows exactly these rows. See [`Server::shows`].
    ///
    /// # Errors
    /// What it shows instead.
    pub async fn shows(&self, sql: &str, expected: &[&str]) -> Result<(), String> {
        self.server.shows(sql, expected).await
    }

    /// Starts the agent, which starts or adopts its server. Does not wait until it is ready.
    ///
    /// # Panics
    /// When it runs already, or cannot be started.
    pub fn start(&self) {
        let mut agent = self.agent();
        assert!(agent.is_none(), "the agent of node {} runs already", self.number);
        match self.spawn() {
            Ok(child) => *agent = Some(child),
            Err(error) => panic!("the agent of node {} was not started: {error:#}", self.number),
        }
    }

    fn spawn(&self) -> Result<Child> {
        use std::os::unix::process::CommandExt as _;
        let config = self.folder.join("agent.toml");
        let mut command = match &self.group {
            // The shell joins the control group and becomes the agent: the number stays the same.
            Ok(group) => {
                let mut shell = Command::new("sh");
                let script = "echo $$ > \"$0\" && exec \"$@\"";
                shell.arg("-c").arg(script).arg(group.members()).arg(self.binary.path());
                shell
            }
            Err(_) => Command::new(self.binary.path()),
        };
        let log = self.log_file()?;
        command.envs(self.own_environment());
        let child = command
            .arg("agent")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("run {}", self.binary.path().display()))?;
        self.reaper.started(child.id());
        Ok(child)
    }

    fn log_file(&self) -> Result<File> {
        let path = self.folder.join("agent.log");
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))
    }

    /// Starts the agent, which must refuse to run, and returns what it wrote to its log.
    ///
    /// # Panics
    /// When it still runs after `limit`, or ends as if all were well.
    pub fn refuses_to_start(&self, limit: Duration) -> String {
        let before = self.log().len();
        self.start();
        let Some(mut child) = self.agent().take() else { panic!("the agent was not started") };
        let status = process::wait_exit(&mut child, limit);
        let log = self.log().split_off(before);
        let Some(status) = status else {
            *self.agent() = Some(child);
            panic!("the agent of node {} still runs after {limit:?}:\n{log}", self.number);
        };
        self.reaper.ended(child.id());
        assert!(!status.success(), "the agent of node {} ended as if all were well", self.number);
        log
    }

    /// Asks the agent to stop, which stops its server too, and waits for it.
    ///
    /// # Panics
    /// When it has not stopped in time or not in order.
    pub fn stop(&self) {
        let Some(mut child) = self.agent().take() else { return };
        process::send(child.id(), Signal::CONT);
        process::send(child.id(), Signal::TERM);
        let status = process::wait_exit(&mut child, STOP_TIMEOUT);
        let ended = status.is_some();
        if !ended {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.reaper.ended(child.id());
        let log = self.log_tail();
        assert!(ended, "node {} did not stop within {STOP_TIMEOUT:?}:\n{log}", self.number);
        assert!(
            status.is_some_and(|status| status.success()),
            "node {} stopped with {status:?}:\n{log}",
            self.number
        );
    }

    /// Kills the agent (SIGKILL); its server lives on.
    pub fn kill_agent(&self) {
        if let Some(mut child) = self.agent().take() {
            let _ = child.kill();
            let _ = child.wait();
            self.reaper.ended(child.id());
        }
    }

    /// Kills the PostgreSQL server (SIGKILL of the postmaster).
    ///
    /// # Panics
    /// When no server runs.
    pub fn kill_postgres(&self) {
        let Some(pid) = process::postmaster(&self.pgdata()) else {
            panic!("node {} has no running server to kill", self.number);
        };
        process::send(pid, Signal::KILL);
        assert!(process::wait_gone(pid, KILL_TIMEOUT), "postmaster {pid} outlived SIGKILL");
    }

    /// Shuts the PostgreSQL server down as an administrator would (fast), behind the agent's back.
    ///
    /// # Panics
    /// When no server runs, or it has not ended after `limit`.
    pub fn shut_down_postgres(&self, limit: Duration) {
        let pid = process::postmaster(&self.pgdata()).unwrap_or_else(|| panic!("no server runs"));
        process::send(pid, Signal::INT);
        assert!(process::wait_gone(pid, limit), "postmaster {pid} does not shut down");
    }

    /// Stops the agent's time (SIGSTOP): its connections stay open and nobody answers on them.
    pub fn pause_agent(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a paused agent go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        match self.agent().as_ref() {
            Some(child) => process::send(child.id(), signal),
            None => panic!("the agent of node {} does not run", self.number),
        }
    }

    /// The agent's process id while it runs.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent().as_ref().map(Child::id)
    }

    /// The agent's resident memory and its peak.
    ///
    /// # Panics
    /// When the agent does not run.
    pub fn agent_memory(&self) -> Memory {
        match self.agent_pid().and_then(process::memory) {
            Some(memory) => memory,
            None => panic!("the agent of node {} does not run:\n{}", self.number, self.log_tail()),
        }
    }

    /// The agent's resident memory in bytes. See [`Node::agent_memory`].
    pub fn agent_rss_bytes(&self) -> u64 {
        self.agent_memory().now_bytes
    }

    /// Makes the peak of [`Node::agent_memory`] start again.
    pub fn reset_memory_peak(&self) {
        if let Some(pid) = self.agent_pid() {
            process::reset_peak(pid);
        }
    }

    /// Whether the agent has ended by itself, and how.
    pub fn ended(&self) -> Option<String> {
        match self.agent().as_mut()?.try_wait() {
            Ok(Some(status)) => Some(status.to_string()),
            Ok(None) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// The address of an HTTP port with a path.
    pub fn url(&self, port: HttpPort, path: &str) -> String {
        let offset = match port {
            HttpPort::Raft => 0,
            HttpPort::Gossip => 1,
            HttpPort::Deadlock => 2,
            HttpPort::Backup => 3,
        };
        format!("http://127.0.0.1:{}{path}", self.http_base + offset)
    }

    /// Asks an HTTP port and returns the status and the text of the answer.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn try_http(&self, port: HttpPort, path: &str) -> Result<(u16, String)> {
        let url = self.url(port, path);
        tokio::task::spawn_blocking(move || get(&url)).await.context("ask over HTTP")?
    }

    /// Asks an HTTP port for JSON.
    ///
    /// # Panics
    /// When the answer is not a JSON document with status 200.
    pub async fn http(&self, port: HttpPort, path: &str) -> serde_json::Value {
        let answer = self.try_http(port, path).await.and_then(|(status, text)| {
            if status != 200 {
                bail!("status {status}: {text}");
            }
            serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
        });
        match answer {
            Ok(value) => value,
            Err(error) => panic!("{}: {error:#}", self.url(port, path)),
        }
    }

    /// One value of `/metrics`: the sum over the label sets of `name` that contain `labels`; 0 when there is none.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = match self.try_http(HttpPort::Raft, "/metrics").await {
            Ok((_, text)) => text,
            Err(error) => panic!("the metrics of node {}: {error:#}", self.number),
        };
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let series = series.strip_prefix(name)?;
            let whole = series.is_empty() || series.starts_with('{');
            (whole && series.contains(labels)).then(|| value.parse::<f64>().ok()).flatten()
        });
        values.sum()
    }

    /// Whether the agent says that it is ready.
    ///
    /// # Errors
    /// Why not, with the end of its log when it has ended.
    pub async fn ready(&self) -> Result<(), String> {
        if let Some(status) = self.ended() {
            let log = self.log_tail();
            return Err(format!("the agent of node {} ended ({status}):\n{log}", self.number));
        }
        match self.try_http(HttpPort::Raft, "/ready").await {
            Ok((200, _)) => Ok(()),
            Ok((status, text)) => {
                Err(format!("node {} is not ready: {status} {text}", self.number))
            }
            Err(error) => Err(format!("node {} does not answer: {error:#}", self.number)),
        }
    }

    /// Changes one key of `agent.toml`, named as `section.key`, before the agent is started.
    ///
    /// # Panics
    /// When the file cannot be read or written.
    pub fn configure(&self, key: &str, value: impl Into<toml::Value>) {
        if let Err(error) = self.try_configure(key, value.into()) {
            panic!("node {}: set {key}: {error:#}", self.number);
        }
    }

    fn try_configure(&self, key: &str, value: toml::Value) -> Result<()> {
        let path = self.folder.join("agent.toml");
        let mut document: toml::Table = fs::read_to_string(&path)?.parse()?;
        let (sections, last) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &mut document;
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            table = table
                .entry(section)
                .or_insert_with(|| toml::Table::new().into())
                .as_table_mut()
                .with_context(|| format!("{section} is not a table"))?;
        }
        table.insert(last.to_owned(), value);
        fs::write(&path, toml::to_string(&document)?)?;
        Ok(())
    }

    /// The agent's log so far.
    pub fn log(&self) -> String {
        fs::read(self.folder.join("agent.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of the agent's log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// The data directory of its server.
    pub fn pgdata(&self) -> PathBuf {
        self.folder.join("pgdata")
    }

    /// Ends what is left of the node: the agent in order if it can, then its server.
    pub(crate) fn end(&self) {
        self.rejoin();
        if let Some(mut child) = self.agent().take() {
            process::send(child.id(), Signal::CONT);
            process::send(child.id(), Signal::TERM);
            if process::wait_exit(&mut child, KILL_TIMEOUT).is_none() {
                let _ = child.kill();
                let _ = child.wait();
            }
            self.reaper.ended(child.id());
        }
        if let Some(pid) = process::postmaster(&self.pgdata()) {
            process::send(pid, Signal::QUIT);
            if !process::wait_gone(pid, KILL_TIMEOUT) {
                process::send(pid, Signal::KILL);
                process::wait_gone(pid, KILL_TIMEOUT);
            }
        }
        if self.clock_ahead_ms().is_some() {
            clock::remove_leftovers();
        }
    }

    fn agent(&self) -> MutexGuard<'_, Option<Child>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The control group of the node's agent, or why there is none.
fn group(base: u16, number: u16, reaper: &Reaper) -> Result<Group, String> {
    let group = Group::make(&format!("synapsedb-dev-{base}-{number}"));
    let group = group.map_err(|error| format!("{error:#}"))?;
    reaper.group(group.folder());
    Ok(group)
}

fn get(url: &str) -> Result<(u16, String)> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(HTTP_TIMEOUT))
        .http_status_as_error(false)
        .build()
        .into();
    let mut response = agent.get(url).call().with_context(|| format!("get {url}"))?;
    let status = response.status().as_u16();
    let text = response.body_mut().read_to_string().with_context(|| format!("read {url}"))?;
    Ok((status, text))
}
