//! Strangers: whoever shows no certificate, an expired one or one of another authority is refused and counted.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use synapsedb_dev::{Node, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{NOTICED, binary, cluster, shared};

type Pair = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// Tries to talk to a node's peers port as whoever holds `pair`, and returns how many bytes it answers.
async fn knock(node: &Node, ca: &Path, pair: Option<Pair>) -> usize {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match pair {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tcp = TcpStream::connect(("127.0.0.1", node.peers_port())).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let Ok(mut stream) = connector.connect(name, tcp).await else { return 0 };
    let _ = stream.write_all(&[0, 0, 0, 2, b'{', b'}']).await;
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer));
    // The answer is an alert, an end, or a refusal in words; never a service.
    let _ = reading.await.expect("a stranger is not kept waiting");
    answer.len()
}

/// Whether the refusals with this reason have grown beyond `before`.
async fn counted(node: &Node, reason: &str, before: f64) {
    let label = format!("reason=\"{reason}\"");
    eventually(&format!("a refusal is counted as {reason}"), NOTICED, async || {
        let now = node.metric("synapsedb_peers_refused_total", &label).await;
        if now > before { Ok(()) } else { Err(format!("{now} before and after")) }
    })
    .await;
}

async fn refusals(node: &Node, reason: &str) -> f64 {
    node.metric("synapsedb_peers_refused_total", &format!("reason=\"{reason}\"")).await
}

fn pair_of(folder: &Path) -> Pair {
    let certificate = CertificateDer::from_pem_file(folder.join("node.crt")).unwrap();
    (certificate, PrivateKeyDer::from_pem_file(folder.join("node.key")).unwrap())
}

/// A certificate of the cluster's own authority for node 2 that was valid only in the past.
fn expired_pair(data: &Path, cluster_id: &str) -> Pair {
    let read = |name: &str| std::fs::read_to_string(data.join("ca").join(name)).unwrap();
    let key = KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), key).unwrap();
    let name = format!("node-2.{cluster_id}.synapsedb");
    let mut params = CertificateParams::new(vec![name, "localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 2, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.distinguished_name.push(rcgen::DnType::CommonName, "node-2");
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

fn cluster_id(data: &Path) -> String {
    let text = std::fs::read_to_string(data.join("cluster.json")).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    document["cluster_id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_refused_and_counted() {
    let cluster = shared().await;
    let node = cluster.node(1);
    let ca = cluster.data().join("ca/ca.crt");

    let before = refusals(node, "no_certificate").await;
    knock(node, &ca, None).await;
    counted(node, "no_certificate", before).await;

    let other = binary().lay_out(1);
    let before = refusals(node, "unknown_ca").await;
    knock(node, &ca, Some(pair_of(&other.node(1).folder().join("tls")))).await;
    counted(node, "unknown_ca", before).await;

    let before = refusals(node, "expired").await;
    knock(node, &ca, Some(expired_pair(cluster.data(), &cluster_id(cluster.data())))).await;
    counted(node, "expired", before).await;

    cluster.node(2).sql("create table after_strangers (id int primary key)").await;
    cluster.all_show("select count(*) from after_strangers", &["0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_tls_are_refused() {
    let cluster = shared().await;
    let node = cluster.node(2);
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0xff; 4096], b""] {
        let mut tcp = TcpStream::connect(("127.0.0.1", node.peers_port())).await.unwrap();
        let _ = tcp.write_all(bytes).await;
        let _ = tcp.shutdown().await;
        let mut answer = Vec::new();
        let reading = tokio::time::timeout(Duration::from_secs(10), tcp.read_to_end(&mut answer));
        let _ = reading.await.expect("a stranger is not kept waiting");
    }
    assert!(node.ready().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_foreign_certificate_does_not_start() {
    let cluster = cluster(3).await;
    let other = binary().lay_out(3);
    cluster.node(3).stop();
    for file in ["node.crt", "node.key"] {
        let (from, to) = (other.node(3).folder(), cluster.node(3).folder());
        std::fs::copy(from.join("tls").join(file), to.join("tls").join(file)).unwrap();
    }
    let log = cluster.node(3).refuses_to_start(NOTICED);
    assert!(log.contains("certificate") || log.contains("node.crt"), "{log}");
    cluster.node(1).sql("create table without_three (id int primary key)").await;
    eventually("node 2 goes on", NOTICED, async || {
        cluster.node(2).shows("select count(*) from without_three", &["0"]).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_the_certificate_of_another_node_does_not_start() {
    let cluster = binary().lay_out(2);
    for file in ["node.crt", "node.key"] {
        let (from, to) = (cluster.node(2).folder(), cluster.node(1).folder());
        std::fs::copy(from.join("tls").join(file), to.join("tls").join(file)).unwrap();
    }
    let log = cluster.node(1).refuses_to_start(NOTICED);
    assert!(log.contains("node-2") || log.contains("node 2"), "{log}");
}
