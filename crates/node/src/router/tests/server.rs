//! Real PostgreSQL servers, each in a directory of its own.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::certificates::Pair;

pub(super) const USER: &str = "app";
pub(super) const PASSWORD: &str = "correct horse";

/// A running server on 127.0.0.1; it ends with the value.
pub(super) struct Server {
    pub(super) port: u16,
    process: Child,
    _directory: tempfile::TempDir,
}

impl Server {
    /// A new server with a superuser `app`.
    pub(super) fn start() -> Self {
        Self::start_as(None)
    }

    /// A new server that offers TLS with this certificate.
    pub(super) fn start_encrypted(pair: &Pair) -> Self {
        Self::start_as(Some(pair))
    }

    fn start_as(pair: Option<&Pair>) -> Self {
        let directory = tempfile::Builder::new().prefix("router-pg-").tempdir().unwrap();
        let mut password = tempfile::NamedTempFile::new().unwrap();
        password.write_all(PASSWORD.as_bytes()).unwrap();
        if is_root() {
            for path in [directory.path(), password.path()] {
                let given = Command::new("chown").arg("postgres").arg(path).status().unwrap();
                assert!(given.success());
            }
        }
        let data = directory.path().join("data");
        let made = as_postgres("initdb")
            .args(["--no-sync", "--username", USER, "--auth", "scram-sha-256", "--pwfile"])
            .arg(password.path())
            // As a managed server has it, whatever the locale of the machine is.
            .args(["--encoding", "UTF8", "--locale", "C.UTF-8"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        let port = free_port();
        if let Some(pair) = pair {
            write_pair(&data, pair);
        }
        let process = run(&data, directory.path(), port, pair.is_some());
        let server = Self { port, process, _directory: directory };
        server.wait_ready();
        // The same on all servers, as a login on one must be good on the others.
        let verifier = synapsedb_pg::scram::verifier(PASSWORD, [7; 16], 4096);
        let sql = format!("alter role {USER} password '{verifier}'");
        let extra = format!("dbname=postgres password='{PASSWORD}'");
        assert!(psql_with(port, &extra, &sql).status.success());
        server
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn wait_ready(&self) {
        for _ in 0..300 {
            let asked = psql(self.port, "template1", "select 1");
            if asked.status.success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the server on port {} does not become ready", self.port);
    }

    /// Ends the server as `pg_ctl stop -m immediate` does.
    pub(super) fn stop_at_once(&mut self) {
        let pid = Pid::from_child(&self.process);
        let _ = kill_process(pid, Signal::QUIT);
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_at_once();
    }
}

/// Ends one process at once.
pub(super) fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// psql against a port, as `app`, in a database, with `extra` in the connection string.
pub(super) fn psql_with(port: u16, extra: &str, sql: &str) -> std::process::Output {
    Command::new("psql")
        .arg(format!("host=127.0.0.1 port={port} user={USER} {extra}"))
        .args(["--no-psqlrc", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"])
        .args(["--set", "VERBOSITY=verbose", "--command", sql])
        .env_remove("PGPASSFILE")
        .output()
        .unwrap()
}

fn psql(port: u16, database: &str, sql: &str) -> std::process::Output {
    psql_with(port, &format!("dbname={database} password='{PASSWORD}'"), sql)
}

/// As the server wants them: its key is nobody else's.
fn write_pair(data: &Path, pair: &Pair) {
    for (name, text) in [("server.crt", &pair.certificate), ("server.key", &pair.key)] {
        let file = data.join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        if is_root() {
            assert!(Command::new("chown").arg("postgres").arg(&file).status().unwrap().success());
        }
    }
}

fn run(data: &Path, sockets: &Path, port: u16, encrypted: bool) -> Child {
    as_postgres("postgres")
        .arg("-D")
        .arg(data)
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-F", "-k"])
        .arg(sockets)
        .args(["-c", "shared_buffers=16MB", "-c", "max_connections=40"])
        .args(["-c", if encrypted { "ssl=on" } else { "ssl=off" }])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A program of the newest PostgreSQL of this machine, run as the user that may run it.
fn as_postgres(program: &str) -> Command {
    let program = bin_dir().join(program);
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
    command.current_dir("/");
    command
}

fn bin_dir() -> PathBuf {
    let newest = (15..=18).rev().map(|major| format!("/usr/lib/postgresql/{major}/bin"));
    newest.map(PathBuf::from).find(|path| path.exists()).expect("PostgreSQL 15 to 18 is installed")
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(super) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Ends one session as an administrator does.
pub(super) async fn kill_softly(server: &Server, pid: i32) {
    let sql = format!("select pg_terminate_backend({pid}, 5000)");
    let port = server.port;
    let done = tokio::task::spawn_blocking(move || {
        psql_with(port, &format!("dbname=postgres password='{PASSWORD}'"), &sql)
    });
    assert!(done.await.unwrap().status.success());
}
