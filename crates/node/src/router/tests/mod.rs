//! The router against real PostgreSQL servers, over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use super::testing::{Seen, node, state_at, view};
use super::*;

mod by_statement;
mod certificates;
mod console;
mod garbage;
mod limits;
mod listening;
mod pooling;
mod pools;
mod reload;
mod routing;
mod server;
mod server_tls;
mod split;
mod tls_clients;

use server::{PASSWORD, Server, USER};

/// A router of node 1 whose world the test decides.
struct Running {
    handle: Handle,
    /// What its configuration is read again from.
    file: Arc<Mutex<Result<Config, String>>>,
    /// What its clients are shown.
    files: tls::clients::Files,
    _directory: tempfile::TempDir,
    state: watch::Sender<Arc<ClusterState>>,
    view: watch::Sender<Arc<gossip::View>>,
    registry: Registry,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<()>>,
}

/// Short patience, any port.
fn config() -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        read_listen: any,
        write_listen: any,
        split_listen: Some(any),
        read_wait_ms: 200,
        write_wait_ms: 1_000,
        failed_login_delay_ms: 50,
        ..Config::default()
    }
}

/// A router whose own server is the first of `servers`.
fn start(config: Config, servers: &[String], primary: Option<u16>) -> Running {
    start_with(config, servers, primary, &servers[0])
}

/// A router that asks `control` for roles.
fn start_with(config: Config, servers: &[String], primary: Option<u16>, control: &str) -> Running {
    let (state, watch_state) = watch::channel(Arc::new(state_at(servers, primary)));
    let all_ready = vec![Seen::Ready; servers.len()];
    let (view, watch_view) = watch::channel(Arc::new(view(&all_ready)));
    let mut registry = Registry::default();
    let (host, port) = control.split_once(':').unwrap();
    let control = synapsedb_pg::Config {
        host: synapsedb_pg::Host::Tcp(host.to_owned()),
        port: port.parse().unwrap(),
        user: USER.to_owned(),
        password: Some(PASSWORD.to_owned()),
        ..synapsedb_pg::Config::default()
    };
    let (directory, files) = tls_files(&config);
    let file = Arc::new(Mutex::new(Ok(config.clone())));
    let read = Arc::clone(&file);
    let world = World {
        own: node(1),
        state: watch_state,
        view: watch_view,
        local: Some(Local { control, socket: None, reserved: None, admin: None }),
        peers: None,
        replication: None,
        tls: Some(files.clone()),
        authorities: Arc::new(RootCertStore::empty()),
        read_again: Box::new(move || {
            let read = read.lock().unwrap().clone().map_err(anyhow::Error::msg)?;
            Ok((read, Vec::new()))
        }),
    };
    let (handle, task) = new(config, world, &mut registry).unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(task.run(stop.clone()));
    Running { handle, file, files, _directory: directory, state, view, registry, stop, task }
}

/// A certificate for this test alone.
fn tls_files(config: &Config) -> (tempfile::TempDir, tls::clients::Files) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let (certificate, key) = (file("router.crt"), file("router.key"));
    std::fs::write(&certificate, cert.pem()).unwrap();
    std::fs::write(&key, signing_key.serialize_pem()).unwrap();
    let owned = |file: Option<&std::path::Path>| file.map(std::path::Path::to_owned);
    let (authority, revoked) = (config.client_authority(), config.client_revocations());
    let (authority, revoked) = (owned(authority), owned(revoked));
    (directory, tls::clients::Files { certificate, key, authority, revoked })
}

impl Running {
    fn port(&self, endpoint: Endpoint) -> u16 {
        match endpoint {
            Endpoint::Read => self.handle.read_address().port(),
            Endpoint::Write => self.handle.write_address().port(),
            Endpoint::Split => self.handle.split_address().unwrap().port(),
        }
    }

    async fn try_connect(&self, endpoint: Endpoint) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port(endpoint)).user(USER).password(PASSWORD);
        config.dbname("postgres");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn connect(&self, endpoint: Endpoint) -> Client {
        self.try_connect(endpoint).await.unwrap()
    }

    /// psql in a thread, so that the router is not held up: whether it succeeded, and what it said.
    async fn psql(&self, endpoint: Endpoint, extra: &str, sql: &str) -> (bool, String) {
        let port = self.port(endpoint);
        let (extra, sql) = (format!("dbname=postgres {extra}"), sql.to_owned());
        let output = tokio::task::spawn_blocking(move || server::psql_with(port, &extra, &sql));
        let output = output.await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).trim().to_owned())
    }

    fn appoint(&self, primary: Option<u16>) {
        self.state.send_modify(|state| {
            let mut next = ClusterState::clone(state);
            next.primary = primary.map(node);
            *state = Arc::new(next);
        });
    }

    /// Raw bytes to an endpoint; all that comes back until it closes.
    async fn say(&self, endpoint: Endpoint, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port(endpoint))).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let patience = Duration::from_secs(10);
        let _ = tokio::time::timeout(patience, stream.read_to_end(&mut answer)).await.unwrap();
        answer
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    async fn eventually(&self, what: &str, holds: impl Fn(&api::Status) -> bool) {
        for _ in 0..500 {
            if holds(&self.handle.status()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: {:?}", self.handle.status());
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// The port of the server that a session has reached.
async fn server_port(client: &Client) -> u16 {
    // By the simple protocol: a prepared statement that is dropped says so behind the test's back.
    let rows = client.simple_query("select inet_server_port()").await.unwrap();
    let port = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    port.unwrap().parse().unwrap()
}

async fn backend_pid(client: &Client) -> i32 {
    client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0)
}

fn code(error: &tokio_postgres::Error) -> Option<&SqlState> {
    error.code()
}

async fn within(what: &str, limit: Duration, what_is_awaited: impl Future<Output = ()>) {
    let begun = Instant::now();
    assert!(
        tokio::time::timeout(limit, what_is_awaited).await.is_ok(),
        "{what}: not within {limit:?} but {:?}",
        begun.elapsed()
    );
}
