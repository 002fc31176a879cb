//! Against a real PostgreSQL: made, killed, adopted, and refused when it is not as it must be.

#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::task::JoinHandle;

use super::*;
use crate::process::Process;

const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    dir: tempfile::TempDir,
    config: Config,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("synapsedb-pg-").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let file = |name: &str| dir.path().join(name);
        std::fs::write(file("agent.password"), "sesame\n").unwrap();
        std::fs::write(file("role.verifier"), verifier("synapsedb")).unwrap();
        let config = Config {
            password_file: file("agent.password"),
            role_verifier_file: Some(file("role.verifier")),
            data_dir: file("pgdata"),
            socket_dir: file("run"),
            log_file: file("postgres.log"),
            port: TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
            shared_buffers_mb: 16,
            max_connections: 20,
            probe_interval_ms: 50,
            ..Config::default()
        };
        Self { dir, config }
    }

    fn start(&self) -> Running {
        let (handle, task) = new(self.config.clone(), &mut Registry::default()).unwrap();
        let stop = Shutdown::new();
        let task = tokio::spawn(task.run(stop.clone()));
        Running { handle, stop, task }
    }

    fn postmaster(&self) -> Process {
        let text = std::fs::read_to_string(self.config.data_dir.join("postmaster.pid")).unwrap();
        Process::find(text.lines().next().unwrap().parse().unwrap()).unwrap()
    }

    /// The same server, as somebody who is only told its address sees it.
    fn attached(&self, user: &str, password: &str) -> Config {
        let file = self.dir.path().join(format!("{user}.password"));
        std::fs::write(&file, password).unwrap();
        Config {
            mode: Mode::Attached,
            url: Some(format!("postgresql://{user}@127.0.0.1:{}/synapsedb", self.config.port)),
            password_file: file,
            ..Config::default()
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = stop_leftover(&self.config.data_dir, Duration::from_secs(10));
    }
}

struct Running {
    handle: Handle,
    stop: Shutdown,
    task: JoinHandle<Result<()>>,
}

impl Running {
    async fn until(&self, what: impl FnMut(&Health) -> bool) -> Health {
        let mut health = self.handle.health();
        let seen = tokio::time::timeout(PATIENCE, health.wait_for(what)).await;
        seen.unwrap_or_else(|_| panic!("still {:?}", self.handle.status())).unwrap().clone()
    }

    async fn ready(&self) -> Health {
        self.until(Health::is_ready).await
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

async fn text(target: &Target, sql: &str) -> String {
    connect(target).await.unwrap().query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_managed_server_is_made_killed_adopted_and_stopped() {
    let node = Node::new();
    let running = node.start();
    let first = running.ready().await;
    assert!(first.version >= 150_000 && !first.system_identifier.is_empty());
    let local = running.handle.local();
    assert_eq!(text(&local, "SHOW wal_level").await, "logical");
    assert_eq!(text(&local, "SHOW track_commit_timestamp").await, "on");
    assert_eq!(text(&local, "SHOW data_checksums").await, "on");
    let sql = "SELECT rolpassword FROM pg_authid WHERE rolname = 'synapsedb' AND NOT rolsuper AND NOT rolcreatedb";
    let verifier_file = node.config.role_verifier_file.clone().unwrap();
    assert_eq!(text(&local, sql).await, std::fs::read_to_string(verifier_file).unwrap());
    let tcp = Target {
        host: Host::Tcp("127.0.0.1".to_owned()),
        user: "synapsedb".to_owned(),
        password: Some("synapsedb".to_owned()),
        ..local.clone()
    };
    let client = connect(&tcp).await.unwrap();
    client.batch_execute("CREATE TABLE kept (x int); INSERT INTO kept VALUES (7)").await.unwrap();

    // A killed postmaster is started again, while a session of the old one still holds its memory.
    let killed = Instant::now();
    node.postmaster().signal(Signal::KILL);
    running.until(|health| !health.is_ready()).await;
    assert!(killed.elapsed() < Duration::from_secs(1), "the end of a child is seen at once");
    let second = running.ready().await;
    assert_ne!(second.postmaster_started, first.postmaster_started);
    assert_eq!(second.system_identifier, first.system_identifier);
    assert_eq!(text(&tcp, "SELECT x::text FROM kept").await, "7");

    // An agent that ends without a word leaves the server running; the next one adopts it.
    let postmaster = node.postmaster();
    running.task.abort();
    let adopting = node.start();
    let third = adopting.ready().await;
    assert_eq!(third.postmaster_started, second.postmaster_started);
    assert_eq!(node.postmaster(), postmaster);

    // The end of an adopted server is seen as well.
    postmaster.signal(Signal::KILL);
    adopting.until(|health| !health.is_ready()).await;
    adopting.ready().await;
    let postmaster = node.postmaster();
    adopting.stop().await;
    assert!(!postmaster.is_alive());
    let log = std::fs::read_to_string(&node.config.log_file).unwrap();
    assert!(log.contains("received fast shutdown request"), "stopped in order");
}

#[tokio::test]
async fn what_cannot_be_started_says_why_and_is_tried_again() {
    let mut node = Node::new();
    node.config.bin_dir = Some(node.dir.path().join("nowhere"));
    let running = node.start();
    let down = running.until(|health| matches!(health.state, State::Down { .. })).await;
    let State::Down { reason } = down.state else { unreachable!() };
    assert!(reason.contains("PostgreSQL 15 to 18 is not installed"), "{reason}");
    running.stop().await;

    // A setting that the server refuses.
    node.config.bin_dir = None;
    node.config.settings.insert("work_mem".to_owned(), "a lot".to_owned());
    let running = node.start();
    let down = running.until(|health| matches!(health.state, State::Down { .. })).await;
    let State::Down { reason } = down.state else { unreachable!() };
    assert!(reason.contains("configuration file"), "{reason}");
    running.stop().await;
}

#[tokio::test]
async fn an_attached_server_is_checked_for_everything_at_once() {
    let node = Node::new();
    let running = node.start();
    running.ready().await;
    let good = node.attached("synapsedb_agent", "sesame");
    let facts = check_once(&good).await.unwrap();
    assert!(facts.version >= 150_000);

    let wrong = check_once(&node.attached("synapsedb_agent", "wrong")).await.unwrap_err();
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0].contains("refuses the password of the role synapsedb_agent"), "{wrong:?}");
    let mut nobody = node.attached("synapsedb_agent", "sesame");
    nobody.url =
        Some(format!("postgresql://synapsedb_agent@127.0.0.1:{}/nowhere", node.config.port));
    let missing = check_once(&nobody).await.unwrap_err();
    assert!(missing[0].contains("has no database nowhere"), "{missing:?}");
    let plain = check_once(&node.attached("synapsedb", "synapsedb")).await.unwrap_err();
    assert!(plain.iter().any(|problem| problem.contains("is no superuser")), "{plain:?}");

    // The health follows the server: settings that are wrong after a restart, then right again.
    let (handle, task) =
        new(Config { probe_interval_ms: 50, ..good.clone() }, &mut Registry::default()).unwrap();
    let stop = Shutdown::new();
    let watching = Running { handle, stop: stop.clone(), task: tokio::spawn(task.run(stop)) };
    watching.ready().await;
    running.stop().await;
    break_settings(&node.config.data_dir, true);
    let broken = start_as_is(&node);
    let is_told = |health: &Health| {
        matches!(&health.state, State::Down { reason } if reason.contains("wal_level is replica")
            && reason.contains("must be logical") && reason.contains("max_replication_slots is 2")
            && reason.contains("max_wal_senders is 3") && reason.contains("track_commit_timestamp is off"))
    };
    watching.until(is_told).await;
    let problems = check_once(&good).await.unwrap_err();
    assert_eq!(problems.len(), 4, "{problems:?}");
    broken.signal(Signal::INT);
    assert!(broken.wait_gone(PATIENCE));
    break_settings(&node.config.data_dir, false);
    let running = node.start();
    running.ready().await;
    watching.ready().await;
    watching.stop().await;
    assert!(node.postmaster().is_alive(), "an attached server is nobody's to stop");
    running.stop().await;
}

/// `postgresql.auto.conf` is read after everything else.
fn break_settings(data_dir: &Path, broken: bool) {
    let settings = if broken {
        "wal_level = replica\ntrack_commit_timestamp = off\nmax_replication_slots = 2\nmax_wal_senders = 3\n"
    } else {
        ""
    };
    std::fs::write(data_dir.join("postgresql.auto.conf"), settings).unwrap();
}

/// Starts the server as somebody else would.
fn start_as_is(node: &Node) -> Process {
    let user = OsUser::for_server("postgres").unwrap();
    let binaries = Binaries::find(None, None).unwrap();
    let mut command = data_dir::command(&binaries.program("postgres"), user.as_ref());
    let child = command.arg("-D").arg(&node.config.data_dir).spawn().unwrap();
    let process = Process::find(child.id()).unwrap();
    // Reaped, or it would stay a zombie until the test ends.
    std::thread::spawn(move || {
        let mut child = child;
        child.wait()
    });
    process
}

#[tokio::test]
async fn nobody_there() {
    let node = Node::new();
    let problems = check_once(&node.attached("synapsedb_agent", "sesame")).await.unwrap_err();
    assert!(problems[0].contains("cannot be reached"), "{problems:?}");
}

#[test]
fn verifiers_are_recognised() {
    assert!(password::belongs_to(&verifier("synapsedb"), "synapsedb"));
    assert!(!password::belongs_to(&verifier("Synapsedb"), "synapsedb"));
    assert!(!password::belongs_to("md5abc", "synapsedb"));
    assert!(!password::belongs_to("SCRAM-SHA-256$0:x$y:z", "synapsedb"));
}
