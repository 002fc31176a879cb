//! One throw-away PostgreSQL server, shared by the tests that run at the same time.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use synapsedb_pg::client::{self, Client};
use synapsedb_pg::{Config, Host};
use tempfile::TempDir;

/// The superuser's password.
pub const PASSWORD: &str = "pa'ss wörd";

/// How long starting and stopping may take.
const LIMIT: Duration = Duration::from_secs(60);

static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// A running server, stopped and deleted when dropped, also by a panic.
pub struct Server {
    postmaster: Child,
    dir: TempDir,
    /// Its port on 127.0.0.1.
    pub port: u16,
}

/// The server of the tests that run now; the last one to let go of it stops it.
pub fn server() -> Arc<Server> {
    let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(Server::start());
        *shared = Arc::downgrade(&server);
        server
    })
}

/// A directory with the server programs: PGBIN, or the newest installed version.
fn bin() -> PathBuf {
    if let Ok(dir) = std::env::var("PGBIN") {
        return dir.into();
    }
    let versions = [15, 16, 17, 18].map(|version| format!("/usr/lib/postgresql/{version}/bin"));
    let found = versions.iter().map(PathBuf::from).find(|dir| dir.join("initdb").exists());
    found.expect("PostgreSQL 15 to 18 under /usr/lib/postgresql, or its directory in PGBIN")
}

/// A server program, as the user postgres if we are root (a server refuses to run as root).
fn program(name: &str) -> Command {
    let path = bin().join(name);
    if !rustix::process::geteuid().is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(path);
    command
}

/// PostgreSQL's own client.
pub fn psql() -> Command {
    Command::new(bin().join("psql"))
}

fn own(path: &Path) {
    if rustix::process::geteuid().is_root() {
        assert!(Command::new("chown").arg("postgres").arg(path).status().unwrap().success());
    }
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("synapsedb-pg-").tempdir_in("/tmp").unwrap();
        own(dir.path());
        let (data, password) = (dir.path().join("data"), dir.path().join("password"));
        std::fs::write(&password, PASSWORD).unwrap();
        own(&password);
        let made = program("initdb")
            .args(["--username=admin", "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"])
            .args(["--locale=C", "--pgdata"])
            .arg(&data)
            .arg(format!("--pwfile={}", password.display()))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        make_certificate(&data);
        let rules = data.join("pg_hba.conf");
        let text = std::fs::read_to_string(&rules).unwrap();
        let special = "host all clear 127.0.0.1/32 password\nhost all legacy 127.0.0.1/32 md5\n\
                       hostssl all tlsonly 127.0.0.1/32 scram-sha-256\n\
                       host all tlsonly 127.0.0.1/32 reject\n";
        std::fs::write(&rules, format!("{special}{text}")).unwrap();
        let (postmaster, port) = Self::launch(dir.path(), &data);
        Self { postmaster, dir, port }
    }

    fn launch(dir: &Path, data: &Path) -> (Child, u16) {
        let log = std::fs::File::create(dir.join("log")).unwrap();
        // The port is free when asked for and may be taken a moment later: then another one is tried.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut child = program("postgres")
                .arg("-D")
                .arg(data)
                .arg(format!("--port={port}"))
                .arg(format!("--unix_socket_directories={}", dir.display()))
                .args(["--listen_addresses=127.0.0.1", "--fsync=off", "--ssl=on"])
                .args(["--wal_level=logical", "--track_commit_timestamp=on"])
                .args(["--max_wal_senders=20", "--max_replication_slots=40"])
                .stdout(Stdio::null())
                .stderr(log.try_clone().unwrap())
                .spawn()
                .unwrap();
            let started = Instant::now();
            let status = data.join("postmaster.pid");
            while child.try_wait().unwrap().is_none() {
                let text = std::fs::read_to_string(&status).unwrap_or_default();
                if text.lines().nth(7).is_some_and(|line| line.starts_with("ready")) {
                    return (child, port);
                }
                assert!(started.elapsed() < LIMIT, "the server does not get ready");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("{}", std::fs::read_to_string(dir.join("log")).unwrap());
    }

    /// The login of the superuser over TCP.
    pub fn config(&self, database: &str) -> Config {
        Config {
            port: self.port,
            user: "admin".into(),
            password: Some(PASSWORD.into()),
            database: database.into(),
            application_name: "test".into(),
            ..Config::default()
        }
    }

    /// The same by the unix socket.
    pub fn unix_config(&self, database: &str) -> Config {
        Config { host: Host::Unix(self.dir.path().into()), ..self.config(database) }
    }

    /// The server's certificate.
    pub fn certificate(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("data/server.der")).unwrap()
    }

    /// A new database and a session in it.
    pub async fn database(&self) -> (Config, Client) {
        let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let admin = client::connect(&self.config("postgres")).await.unwrap();
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let config = self.config(&name);
        let client = client::connect(&config).await.unwrap();
        (config, client)
    }
}

fn make_certificate(data: &Path) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let key = data.join("server.key");
    std::fs::write(data.join("server.crt"), made.cert.pem()).unwrap();
    std::fs::write(data.join("server.der"), made.cert.der()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    own(&key);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&key, mode).unwrap();
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.postmaster);
        // Fast shutdown first; immediate when that takes too long.
        for signal in [rustix::process::Signal::INT, rustix::process::Signal::QUIT] {
            let _ = rustix::process::kill_process(pid, signal);
            let asked = Instant::now();
            while asked.elapsed() < LIMIT / 6 {
                if !matches!(self.postmaster.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = self.postmaster.kill();
        let _ = self.postmaster.wait();
    }
}
