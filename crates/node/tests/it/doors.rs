//! The doors of a cluster: TLS from agent to server with the cluster's own certificates, and clients' certificates.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use synapsedb_dev::{Cluster, Node, eventually};

use crate::{NOTICED, binary};

/// Whether the server connection of a new session is encrypted, as the server says.
const IS_ENCRYPTED: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";

/// Makes a node's server offer TLS with the certificate of its agent.
async fn switch_tls_on(node: &Node) {
    let owner = std::fs::metadata(node.pgdata()).unwrap();
    for (from, to) in [("node.crt", "server.crt"), ("node.key", "server.key")] {
        let file = node.pgdata().join(to);
        std::fs::copy(node.folder().join("tls").join(from), &file).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let server = node.agent_server();
    server.sql("alter system set ssl = on").await;
    server.sql("select pg_reload_conf()").await;
    eventually("the server offers TLS", NOTICED, async || server.shows("show ssl", &["on"]).await)
        .await;
}

/// Sessions of the write endpoint, which some agent takes: what they say, by whether it is an answer or an error.
async fn ask_often(cluster: &Cluster) -> (Vec<String>, Vec<String>) {
    let (mut answers, mut errors) = (Vec::new(), Vec::new());
    for _ in 0..12 {
        match cluster.write_endpoint().try_rows(IS_ENCRYPTED).await {
            Ok(rows) => answers.extend(rows),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    (answers, errors)
}

/// A certificate with this common name, and its key, as files in `folder`; what libpq is told of them.
fn certificate(folder: &Path, issuer: &Issuer<'_, KeyPair>, name: &str) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let (certificate, private) =
        (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
    std::fs::write(&certificate, params.signed_by(&key, issuer).unwrap().pem()).unwrap();
    std::fs::write(&private, key.serialize_pem()).unwrap();
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600)).unwrap();
    format!("sslcert={} sslkey={}", certificate.display(), private.display())
}

fn psql(cluster: &Cluster, extra: &str) -> (bool, String) {
    let server = cluster.write_endpoint();
    let connection = format!(
        "host=127.0.0.1 port={} user={} dbname={} {extra}",
        server.port, server.user, server.database
    );
    let output = Command::new("psql")
        .args(["-X", "-At", "-d", &connection, "-c", IS_ENCRYPTED])
        .env("PGPASSWORD", &server.password)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_and_clients_show_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "clients");
    let key = KeyPair::generate().unwrap();
    let authority = folder.path().join("clients.crt");
    std::fs::write(&authority, params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);

    let cluster = binary().lay_out(2);
    for node in cluster.nodes() {
        node.configure("router.server_tls", "verify-full");
        node.configure("router.write_wait_ms", 500);
        node.configure("router.client_certificates", "allow");
        node.configure("router.tls_client_ca_file", authority.to_str().unwrap());
    }
    cluster.start().await;

    // Managed servers offer no TLS by themselves: only the agent beside the primary reaches it, by its unix socket.
    eventually("an agent says what it misses", NOTICED, async || {
        let (answers, errors) = ask_often(&cluster).await;
        let other = |answer: &String| answer != "f";
        assert!(!answers.iter().any(other), "{answers:?}");
        let named = errors.iter().find(|error| error.contains("the server offers no TLS"));
        let error = named.ok_or(format!("{answers:?} {errors:?}"))?;
        assert!(error.contains("node ") && error.contains("127.0.0.1:"), "{error}");
        Ok(())
    })
    .await;

    for node in cluster.nodes() {
        switch_tls_on(node).await;
    }
    eventually("both agents reach the primary, one of them by TLS", NOTICED, async || {
        let (answers, errors) = ask_often(&cluster).await;
        let both = ["t", "f"].iter().all(|value| answers.iter().any(|answer| answer == value));
        if both && errors.is_empty() { Ok(()) } else { Err(format!("{answers:?} {errors:?}")) }
    })
    .await;

    let own = certificate(folder.path(), &issuer, "synapsedb");
    let other = certificate(folder.path(), &issuer, "eve");
    let (came_in, said) = psql(&cluster, &format!("sslmode=require {own}"));
    assert!(came_in, "{said}");
    let (came_in, said) = psql(&cluster, &format!("sslmode=require {other}"));
    assert!(!came_in && said.contains("certificate authentication failed"), "{said}");
}
