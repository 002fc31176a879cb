//! A PostgreSQL server of a test's own, run by nobody else: to attach an agent to, or to measure beside.

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
use crate::process;
use crate::reaper::Reaper;

/// The versions that SynapseDB runs on, newest first.
const VERSIONS: [u16; 4] = [18, 17, 16, 15];
/// How long a server may take to start or to stop.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The user that runs servers when we are root, which PostgreSQL refuses to be.
pub(crate) const OS_USER: &str = "postgres";

/// A running server; ended and removed when dropped.
pub struct Postgres {
    server: Server,
    folder: tempfile::TempDir,
    child: Child,
    reaper: Reaper,
}

/// Where the programs of a PostgreSQL server are: the newest installed version, or that of `version`.
///
/// # Errors
/// When none is installed where the distributions put it.
pub fn programs(version: Option<u16>) -> Result<PathBuf> {
    let wanted = version.map_or(VERSIONS.to_vec(), |version| vec![version]);
    let folders =
        wanted.iter().map(|number| PathBuf::from(format!("/usr/lib/postgresql/{number}/bin")));
    let mut found = folders.filter(|folder| folder.join("initdb").is_file());
    found
        .next()
        .with_context(|| format!("no PostgreSQL server of {wanted:?} in /usr/lib/postgresql"))
}

impl Postgres {
    /// Makes a server with these lines in its configuration and starts it on a free port. Its superuser is
    /// `postgres` with the password `password`.
    ///
    /// # Errors
    /// When it cannot be made, or does not take sessions in time.
    pub async fn start(
        name: &str,
        programs: &Path,
        settings: &str,
        password: &str,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("synapsedb-server-").tempdir()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        // The reaper looks for servers where a cluster has them.
        let home = folder.path().join("node-1");
        fs::create_dir(&home)?;
        let reaper = Reaper::start(folder.path())?;
        let (pgdata, secret) = (home.join("pgdata"), home.join("password"));
        fs::write(&secret, password)?;
        if rustix::process::getuid().is_root() {
            run(Command::new("chown").arg("-R").arg(OS_USER).arg(&home))?;
        }
        let mut initdb = as_user(&programs.join("initdb"));
        initdb.arg("-D").arg(&pgdata).args(["-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8"]);
        run(initdb.args(["-A", "scram-sha-256", "--no-sync"]).arg("--pwfile").arg(&secret))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let configuration = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\n{settings}\n"
        );
        let file = pgdata.join("postgresql.auto.conf");
        fs::write(&file, configuration).with_context(|| format!("write {}", file.display()))?;
        let log = fs::File::create(folder.path().join("postgres.log"))?;
        let mut command = as_user(&programs.join("postgres"));
        let child = command
            .arg("-D")
            .arg(&pgdata)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("start a server")?;
        reaper.started(child.id());
        let mut server = Server::new(name, port);
        server.user = "postgres".to_owned();
        server.database = "postgres".to_owned();
        server.password = password.to_owned();
        let started = Self { server, folder, child, reaper };
        started.wait_ready().await?;
        Ok(started)
    }

    async fn wait_ready(&self) -> Result<()> {
        let ready = try_eventually(TIMEOUT, async || self.server.shows("select 1", &["1"]).await);
        let Err(reason) = ready.await else { return Ok(()) };
        bail!("{} does not take sessions: {reason}\n{}", self.server.name, self.log())
    }

    /// What the server has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("postgres.log")).unwrap_or_default()
    }

    /// Where it takes SQL, as its superuser.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Its data directory.
    pub fn pgdata(&self) -> PathBuf {
        self.folder.path().join("node-1/pgdata")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(pid) = process::postmaster(&self.pgdata()) {
            process::send(pid, Signal::INT);
        }
        if process::wait_exit(&mut self.child, TIMEOUT).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        self.reaper.ended(self.child.id());
        self.reaper.finish();
    }
}

/// A command that runs as a user whom PostgreSQL accepts.
pub(crate) fn as_user(program: &Path) -> Command {
    if !rustix::process::getuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    let user = format!("--reuid={OS_USER}");
    let group = format!("--regid={OS_USER}");
    command.args([&user, &group, "--init-groups", "--"]).arg(program).current_dir("/");
    command
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_starts_answers_and_is_gone() -> Result<()> {
        let server = Postgres::start("a server", &programs(None)?, "fsync = off", "secret").await?;
        server.server().sql("create table t (a int); insert into t values (1), (null)").await;
        assert_eq!(server.server().rows("select a, 'x' from t order by a").await, ["1|x", "|x"]);
        assert_eq!(server.server().sqlstate("select 1/0").await, "22012");
        let pid = process::postmaster(&server.pgdata()).context("the postmaster")?;
        let folder = server.folder.path().to_owned();
        drop(server);
        assert!(!process::exists(pid) && !folder.exists());
        Ok(())
    }
}
