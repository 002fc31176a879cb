//! Real sockets and certificates: who is refused and why, and calls and streams between three nodes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::PathBuf;

use prometheus_client::registry::Registry;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;
use crate::tls::authority::{self, Validity};

pub(crate) fn node(number: u16) -> NodeId {
    NodeId::new(number).unwrap()
}

/// A cluster's authority, members and their addresses, in a directory that vanishes with it.
pub(crate) struct TestCluster {
    pub(crate) root: TempDir,
    pub(crate) cluster_id: Uuid,
    pub(crate) addresses: Vec<PeerAddress>,
    pub(crate) identities: Vec<Identity>,
}

impl TestCluster {
    pub(crate) fn new(nodes: u16) -> Self {
        let (root, cluster_id) = (tempfile::tempdir().unwrap(), Uuid::new_v4());
        authority::create_ca(&root.path().join("ca"), "test", cluster_id).unwrap();
        let reserved: Vec<_> = (1..=nodes).map(|_| free_port()).collect();
        let addresses = (1..=nodes)
            .zip(&reserved)
            .map(|(number, (port, ..))| PeerAddress {
                node: node(number),
                address: format!("127.0.0.1:{port}"),
            })
            .collect();
        let identities = (1..=nodes)
            .map(|number| Identity {
                cluster_id,
                node: node(number),
                uuid: Uuid::new_v4(),
                incarnation: Incarnation(u32::from(number)),
            })
            .collect();
        let cluster = Self { root, cluster_id, addresses, identities };
        for number in 1..=nodes {
            let (ca, out) = (cluster.directory("ca"), cluster.directory(&format!("tls-{number}")));
            authority::issue(&ca, &out, cluster_id, node(number), &[], 30).unwrap();
        }
        cluster
    }

    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn identity(&self, number: u16) -> Identity {
        self.identities[usize::from(number) - 1].clone()
    }

    pub(crate) fn address(&self, number: u16) -> &str {
        &self.addresses[usize::from(number) - 1].address
    }

    pub(crate) fn tls(&self, number: u16) -> tls::Handle {
        let directory = self.directory(&format!("tls-{number}"));
        tls::load(&tls::Config::in_directory(&directory), &self.identity(number)).unwrap()
    }

    pub(crate) fn peers_config(&self, number: u16) -> Config {
        Config { listen: self.address(number).to_owned(), ..Config::default() }
    }

    pub(crate) fn start(&self, number: u16) -> TestNode {
        self.start_with(number, self.peers_config(number))
    }

    fn start_with(&self, number: u16, config: Config) -> TestNode {
        let mut registry = Registry::default();
        let (peers, task) = new(
            config,
            self.identity(number),
            self.addresses.clone(),
            &self.tls(number),
            &mut registry,
        )
        .unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(task.run(stop.clone()));
        TestNode { peers, registry, stop, running }
    }
}

/// A port that is free for TCP and UDP, with the sockets that hold it.
fn free_port() -> (u16, TcpListener, std::net::UdpSocket) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        if let Ok(udp) = std::net::UdpSocket::bind(("127.0.0.1", port)) {
            return (port, tcp, udp);
        }
    }
}

pub(crate) struct TestNode {
    pub(crate) peers: Handle,
    pub(crate) registry: Registry,
    pub(crate) stop: CancellationToken,
    pub(crate) running: JoinHandle<Result<()>>,
}

impl TestNode {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

/// The value of a counter with this label in the registry, 0 when it was never counted.
pub(crate) fn counted(registry: &Registry, series: &str) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let line = text.lines().find(|line| line.starts_with(series));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

pub(crate) async fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn refused(node: &TestNode, reason: &str) {
    let series = format!("synapsedb_peers_refused_total{{reason=\"{reason}\"}}");
    eventually(&series, || (counted(&node.registry, &series) == 1).then_some(())).await;
    let all = ["unknown_ca", "expired", "no_certificate", "other_cluster", "wrong_node", "not_tls"];
    for other in all.into_iter().filter(|&other| other != reason) {
        let series = format!("synapsedb_peers_refused_total{{reason=\"{other}\"}}");
        assert_eq!(counted(&node.registry, &series), 0, "{other} besides {reason}");
    }
}

/// A TLS client that trusts the authority in `directory` and shows the certificate there, if `show`; nothing is
/// checked, as a stranger would do it.
fn connector(directory: &std::path::Path, show: bool) -> TlsConnector {
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read("ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = if show {
        let chain = vec![CertificateDer::from_pem_slice(&read("node.crt")).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(&read("node.key")).unwrap();
        builder.with_client_auth_cert(chain, key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    TlsConnector::from(Arc::new(config))
}

/// Connects to node 1 with a certificate and answers what reading from it gave.
async fn read_as(
    cluster: &TestCluster,
    connector: TlsConnector,
    first: &[u8],
) -> std::io::Result<Vec<u8>> {
    let tcp = tokio::net::TcpStream::connect(cluster.address(1)).await?;
    let name = tls::certificate_name(cluster.cluster_id, node(1));
    let mut stream = connector.connect(ServerName::try_from(name).unwrap(), tcp).await?;
    stream.write_all(first).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.map(|_| answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_strangers_are_refused() {
    let cluster = TestCluster::new(3);
    let (ca, out) = (cluster.directory("ca"), cluster.directory("stranger"));

    let first = cluster.start(1);
    let stranger_ca = cluster.directory("stranger-ca");
    authority::create_ca(&stranger_ca, "test", cluster.cluster_id).unwrap();
    authority::issue(&stranger_ca, &out, cluster.cluster_id, node(2), &[], 30).unwrap();
    std::fs::copy(ca.join("ca.crt"), out.join("ca.crt")).unwrap();
    let error = read_as(&cluster, connector(&out, true), b"x").await.unwrap_err();
    assert!(error.to_string().contains("fatal alert"), "{error}");
    refused(&first, "unknown_ca").await;
    first.stop().await;

    let first = cluster.start(1);
    let now = OffsetDateTime::now_utc();
    let past = Validity {
        not_before: now - time::Duration::days(2),
        not_after: now - time::Duration::hours(1),
    };
    authority::issue_for(&ca, &out, cluster.cluster_id, node(2), &[], past).unwrap();
    let error = read_as(&cluster, connector(&out, true), b"x").await.unwrap_err();
    assert!(error.to_string().contains("CertificateExpired"), "{error}");
    refused(&first, "expired").await;
    first.stop().await;

    let first = cluster.start(1);
    let error = read_as(&cluster, connector(&out, false), b"x").await.unwrap_err();
    assert!(error.to_string().contains("fatal alert"), "{error}");
    refused(&first, "no_certificate").await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_certificates_with_a_wrong_greeting_are_refused() {
    let cluster = TestCluster::new(3);
    let (ca, out) = (cluster.directory("ca"), cluster.directory("stranger"));
    let hello = |cluster_id: Uuid, number: u16, service: &str| {
        let uuid = Uuid::new_v4();
        let json = serde_json::json!({
            "protocol": 1, "cluster_id": cluster_id, "node": number, "uuid": uuid, "incarnation": 1,
            "service": service,
        })
        .to_string();
        [&u32::try_from(json.len()).unwrap().to_be_bytes()[..], json.as_bytes()].concat()
    };
    let ours = cluster.cluster_id;
    let other = Uuid::new_v4();
    let cases = [
        // Another cluster of the same authority; a lie about the number; a node nobody knows; nonsense.
        (other, 2, hello(other, 2, "calls"), "other_cluster"),
        (ours, 2, hello(other, 2, "calls"), "other_cluster"),
        (ours, 2, hello(ours, 3, "calls"), "wrong_node"),
        (ours, 9, hello(ours, 9, "calls"), "unknown_node"),
        (ours, 1, hello(ours, 1, "calls"), "unknown_node"),
        (ours, 2, hello(ours, 2, "no such stream"), "unknown_service"),
        (ours, 2, b"\0\0\0\x02{}".to_vec(), "bad_hello"),
        (ours, 2, b"\xff\0\0\x02{}".to_vec(), "bad_hello"),
    ];
    for (cluster_id, number, first_bytes, reason) in cases {
        let first = cluster.start(1);
        authority::issue(&ca, &out, cluster_id, node(number), &[], 30).unwrap();
        let answer = read_as(&cluster, connector(&out, true), &first_bytes).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.contains(&format!(r#""reason":"{reason}""#)), "{reason}: {answer}");
        refused(&first, reason).await;
        first.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_dawdlers_are_refused() {
    let cluster = TestCluster::new(2);
    let first = cluster.start(1);
    let mut tcp = tokio::net::TcpStream::connect(cluster.address(1)).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    refused(&first, "not_tls").await;
    first.stop().await;

    let config = Config { handshake_timeout_ms: 200, ..cluster.peers_config(1) };
    let first = cluster.start_with(1, config);
    let mut slow = tokio::net::TcpStream::connect(cluster.address(1)).await.unwrap();
    let begin = Instant::now();
    // A byte of a handshake now and then: the limit is for all of it, not for the pauses.
    for byte in [0x16, 3, 1, 2, 0, 1, 0, 1] {
        if slow.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    refused(&first, "timeout").await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    first.stop().await;

    let config = Config { handshakes_max: 1, ..cluster.peers_config(1) };
    let first = cluster.start_with(1, config);
    let _idle = tokio::net::TcpStream::connect(cluster.address(1)).await.unwrap();
    let mut second = tokio::net::TcpStream::connect(cluster.address(1)).await.unwrap();
    assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0);
    refused(&first, "too_many").await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialler_refuses_a_false_server() {
    let cluster = TestCluster::new(3);
    // Node 3's certificate at node 2's address.
    let mut registry = Registry::default();
    let config = Config { listen: cluster.address(2).to_owned(), ..Config::default() };
    let (_, task) =
        new(config, cluster.identity(3), cluster.addresses.clone(), &cluster.tls(3), &mut registry)
            .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(task.run(stop.clone()));
    let first = cluster.start(1);
    let error = first.peers.call(node(2), "echo", Bytes::new()).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    refused(&first, "wrong_node").await;
    stop.cancel();
    running.await.unwrap().unwrap();
    first.stop().await;
}

fn serve_echo(peers: &Handle) {
    peers.serve("echo", |from, body| {
        Box::pin(async move {
            match &body[..] {
                b"fail" => Err("as you wish".to_owned()),
                b"panic" => panic!("a bug in a service"),
                b"slow" => {
                    tokio::time::sleep(Duration::from_secs(4)).await;
                    Ok(body)
                }
                _ => Ok([from.to_string().as_bytes(), b":", &body].concat().into()),
            }
        })
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_call_each_other() {
    let cluster = TestCluster::new(3);
    let nodes: Vec<_> = (1..=3).map(|number| cluster.start(number)).collect();
    for started in &nodes {
        serve_echo(&started.peers);
    }
    for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 2), (2, 3), (3, 1)] {
        let peers = &nodes[from - 1].peers;
        let to = node(u16::try_from(to).unwrap());
        let answer = peers.call(to, "echo", Bytes::from_static(b"hi")).await.unwrap();
        assert_eq!(answer, format!("{from}:hi"));
    }
    let peers = &nodes[0].peers;
    assert_eq!(peers.others(), [node(2), node(3)]);
    let call = |body: &'static [u8]| peers.call(node(2), "echo", Bytes::from_static(body));
    let failed = call(b"fail").await.unwrap_err();
    assert!(matches!(&failed, CallError::Remote { message, .. } if message == "as you wish"));
    assert!(call(b"panic").await.unwrap_err().to_string().contains("the service failed"));
    let unknown = peers.call(node(2), "nothing", Bytes::new()).await.unwrap_err();
    assert!(unknown.to_string().contains("serves no calls of \"nothing\""), "{unknown}");
    let itself = peers.call(node(1), "echo", Bytes::new()).await.unwrap_err();
    assert!(matches!(itself, CallError::UnknownPeer { .. }));
    let long = Bytes::from(vec![0; 16 * 1024 * 1024 + 1]);
    let long = peers.call(node(2), "echo", long).await.unwrap_err();
    assert!(matches!(long, CallError::TooLong { .. }));

    // A slow call is in the way of nobody: a thousand others finish meanwhile, on the same connection.
    let begin = Instant::now();
    let slow = call(b"slow");
    let others = futures_util::future::join_all((0..1000).map(|_| call(b"quick")));
    let others = async { (others.await, begin.elapsed()) };
    let (slow, (others, took)) = tokio::join!(slow, others);
    assert_eq!(slow.unwrap(), "slow");
    assert!(others.iter().all(Result::is_ok));
    assert!(took < Duration::from_millis(3900), "{took:?}");
    let accepted = "synapsedb_peers_accepted_connections";
    assert_eq!(counted(&nodes[1].registry, accepted), 2, "one connection per caller");
    for started in nodes {
        started.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_come_back_with_the_peer_and_time_out_without_it() {
    let cluster = TestCluster::new(2);
    let (first, second) = (cluster.start(1), cluster.start(2));
    serve_echo(&second.peers);
    let call = || first.peers.call(node(2), "echo", Bytes::from_static(b"hi"));
    call().await.unwrap();
    let slow = first.peers.call_within(
        node(2),
        "echo",
        Bytes::from_static(b"slow"),
        Duration::from_millis(50),
    );
    assert!(matches!(slow.await.unwrap_err(), CallError::Timeout { timeout_ms: 50, .. }));
    call().await.unwrap();

    // The connection breaks under a waiting call.
    let waiting = first.peers.call(node(2), "echo", Bytes::from_static(b"slow"));
    let (waiting, ()) = tokio::join!(waiting, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        second.stop().await;
    });
    assert!(matches!(waiting.unwrap_err(), CallError::Disconnected { .. }));
    let begin = Instant::now();
    assert!(matches!(call().await.unwrap_err(), CallError::Unreachable { .. }));
    assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());

    let second = cluster.start(2);
    serve_echo(&second.peers);
    let begin = Instant::now();
    while call().await.is_err() {
        assert!(begin.elapsed() < Duration::from_secs(5), "node 2 is not called again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_carry_bytes_and_names() {
    let cluster = TestCluster::new(2);
    let (first, second) = (cluster.start(1), cluster.start(2));
    second.peers.serve_stream("upper", |mut stream| {
        Box::pin(async move {
            let mut text = String::new();
            stream.io.read_to_string(&mut text).await.unwrap();
            let text =
                format!("{}.{}: {}", stream.peer, stream.peer_incarnation, text.to_uppercase());
            stream.io.write_all(text.as_bytes()).await.unwrap();
            stream.io.shutdown().await.unwrap();
        })
    });
    let mut stream = first.peers.open(node(2), "upper").await.unwrap();
    assert_eq!((stream.peer, stream.peer_incarnation), (node(2), Incarnation(2)));
    stream.io.write_all(b"some text").await.unwrap();
    stream.io.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.io.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "1.1: SOME TEXT");
    let error = first.peers.open(node(2), "nothing").await.err().unwrap();
    assert!(error.to_string().contains("unknown_service"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_while_the_agent_runs() {
    let cluster = TestCluster::new(3);
    let (one, three) = (cluster.start(1), cluster.start(3));
    three.peers.serve("echo", |_, body| Box::pin(async move { Ok(body) }));
    let call = async || one.peers.call(node(3), "echo", Bytes::from_static(b"hello")).await;
    let all: BTreeMap<_, _> =
        cluster.addresses.iter().map(|member| (member.node, member.address.clone())).collect();
    let two: BTreeMap<_, _> = all
        .iter()
        .filter(|(member, _)| **member != node(3))
        .map(|(n, a)| (*n, a.clone()))
        .collect();
    assert_eq!(call().await.unwrap(), "hello");
    one.peers.set_members(&two);
    assert!(matches!(call().await, Err(CallError::UnknownPeer { .. })));
    assert_eq!(one.peers.others(), [node(2)]);
    one.peers.set_members(&all);
    assert_eq!(call().await.unwrap(), "hello");
    // It has moved away; nobody is there any more.
    let moved = all.keys().map(|member| (*member, "127.0.0.1:1".to_owned())).collect();
    one.peers.set_members(&moved);
    assert!(matches!(call().await, Err(CallError::Unreachable { .. })));
    one.stop().await;
    three.stop().await;
}
