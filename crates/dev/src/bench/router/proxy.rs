//! PgBouncer and HAProxy as child processes: on a free port of loopback, as an unprivileged user, ended when dropped.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::client::Server;
use crate::eventually::try_eventually;
use crate::postgres::{OS_USER, as_user};
use crate::process;
use crate::reaper::Reaper;

/// How long a proxy may take to start or to stop.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Where distributions put programs, beside the `PATH`.
const FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/bin"];
/// The first PgBouncer that keeps prepared statements in transaction mode.
const KEEPS_PREPARED: (u32, u32) = (1, 21);

/// A running proxy.
pub(super) struct Proxy {
    server: Server,
    version: String,
    child: Child,
    reaper: Reaper,
    folder: tempfile::TempDir,
}

/// How a PgBouncer is to run.
pub(super) struct PgBouncer {
    /// The program.
    pub(super) program: PathBuf,
    /// The verifier of the application's role.
    pub(super) verifier: String,
    /// The server's unix socket; without it PgBouncer reaches it by TCP.
    pub(super) socket_dir: Option<PathBuf>,
    /// `max_client_conn`.
    pub(super) clients_max: u32,
    /// `pool_mode`.
    pub(super) pool_mode: &'static str,
    /// `default_pool_size`.
    pub(super) pool_size: u32,
}

/// The program of this name, or the one that was asked for.
///
/// # Errors
/// It is not installed, with what to do.
pub(super) fn find(name: &str, wanted: Option<&Path>) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.iter().map(PathBuf::from));
    let mut found = folders.map(|folder| folder.join(name));
    let found = wanted.map_or_else(|| found.find(|file| file.is_file()), |file| Some(file.into()));
    found.with_context(|| {
        format!(
            "{name} is not installed; install it with `apt-get install {name}`, or leave it out with --routes"
        )
    })
}

impl PgBouncer {
    /// Whether prepared statements live in transaction mode.
    pub(super) fn keeps_prepared(&self) -> Result<bool> {
        let version = version(&self.program, "--version")?;
        let number = version.split_whitespace().find(|word| word.contains('.'));
        let mut parts = number.unwrap_or_default().split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor) >= KEEPS_PREPARED),
            _ => bail!("{} tells no version: {version}", self.program.display()),
        }
    }

    fn text(&self, server: &Server, port: u16, userlist: &Path) -> Result<String> {
        let local = self.socket_dir.as_ref().map(|folder| folder.display().to_string());
        let host = local.as_deref().unwrap_or("127.0.0.1");
        // Older versions refuse to start with a key that they do not know.
        let prepared = if self.keeps_prepared()? { "max_prepared_statements = 200\n" } else { "" };
        Ok(format!(
            include_str!("pgbouncer.ini.in"),
            database = server.database,
            host = host,
            server_port = server.port,
            port = port,
            userlist = userlist.display(),
            pool_mode = self.pool_mode,
            pool_size = self.pool_size,
            clients_max = self.clients_max,
            prepared = prepared,
        ))
    }
}

impl Proxy {
    /// Starts a PgBouncer before `server`.
    pub(super) async fn pgbouncer(server: &Server, config: &PgBouncer) -> Result<Self> {
        let folder = folder()?;
        let port = free_port()?;
        let (file, userlist) = (folder.path().join("pgbouncer.ini"), folder.path().join("users"));
        write(&userlist, &format!("\"{}\" \"{}\"\n", server.user, config.verifier))?;
        write(&file, &config.text(server, port, &userlist)?)?;
        let mut command = as_user(&config.program);
        command.arg(&file);
        let version = version(&config.program, "--version")?;
        let entrance = Server { name: "PgBouncer".to_owned(), port, ..server.clone() };
        Self::start(command, entrance, version, folder).await
    }

    /// Starts an HAProxy before `server`.
    pub(super) async fn haproxy(server: &Server) -> Result<Self> {
        let program = find("haproxy", None)?;
        let folder = folder()?;
        let port = free_port()?;
        let file = folder.path().join("haproxy.cfg");
        let text = format!(include_str!("haproxy.cfg.in"), port = port, server_port = server.port);
        write(&file, &text)?;
        let mut command = as_user(&program);
        command.arg("-db").arg("-f").arg(&file);
        let version = version(&program, "-v")?;
        let entrance = Server { name: "HAProxy".to_owned(), port, ..server.clone() };
        Self::start(command, entrance, version, folder).await
    }

    async fn start(
        mut command: Command,
        server: Server,
        version: String,
        folder: tempfile::TempDir,
    ) -> Result<Self> {
        let log = fs::File::create(folder.path().join("proxy.log"))?;
        let reaper = Reaper::start(folder.path())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", server.name))?;
        reaper.started(child.id());
        let started = Self { server, version, child, reaper, folder };
        let server = &started.server;
        let ready = try_eventually(TIMEOUT, async || server.shows("select 1", &["1"]).await);
        if let Err(reason) = ready.await {
            let log = fs::read_to_string(started.folder.path().join("proxy.log"));
            bail!("{} takes no sessions: {reason}\n{}", server.name, log.unwrap_or_default());
        }
        Ok(started)
    }

    /// Where clients connect.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it says of itself.
    pub(super) fn version(&self) -> &str {
        &self.version
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        process::send(self.child.id(), Signal::TERM);
        if process::wait_exit(&mut self.child, Duration::from_secs(2)).is_none() {
            // HAProxy waits for its clients to leave, PgBouncer from 1.23 on too.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        self.reaper.ended(self.child.id());
        self.reaper.finish();
    }
}

/// The first line of what a program says of its version.
fn version(program: &Path, argument: &str) -> Result<String> {
    let output = Command::new(program).arg(argument).output();
    let output = output.with_context(|| format!("run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next().unwrap_or_default();
    // HAProxy adds where it is told about.
    Ok(line.split(" - http").next().unwrap_or_default().to_owned())
}

/// A new folder into which the unprivileged user may look.
fn folder() -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("synapsedb-proxy-").tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// Writes a file that only the unprivileged user may read, besides root.
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    if rustix::process::getuid().is_root() {
        let output = Command::new("chown").arg(OS_USER).arg(path).output()?;
        if !output.status.success() {
            bail!("{} cannot be given to {OS_USER}", path.display());
        }
    }
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
