//! TLS with clients: begun at once as PostgreSQL 17's do, and certificates of theirs.

use std::future::poll_fn;
use std::task::Poll;

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::certificates::{Authority, Pair};
use super::socket::Socket;
use super::*;

/// A handshake that names these protocols, with what the server has shown taken unseen: the tests are of our side.
fn connector(protocols: &[&[u8]]) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(dial::AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// What the router answers to a startup packet in a TLS connection that begins at once: the first bytes.
async fn begin_at_once(running: &Running, protocols: &[&[u8]]) -> std::io::Result<Vec<u8>> {
    let tcp = TcpStream::connect(("127.0.0.1", running.port(Endpoint::Read))).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = connector(protocols).connect(name, tcp).await?;
    let packet = b"\0\0\0\x1f\0\x03\0\0user\0app\0database\0app\0\0";
    stream.write_all(&packet[..]).await?;
    stream.flush().await?;
    let mut answer = vec![0; 64];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer)).await;
    answer.truncate(read.expect("an answer or an end")?);
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_may_begin_at_once_if_it_names_the_protocol() {
    let server = Server::start();
    let running = start(config(), &[server.address()], Some(1));
    for protocols in [&[&b"postgresql"[..]][..], &[b"h2", b"postgresql"]] {
        let answer = begin_at_once(&running, protocols).await.unwrap();
        let offered = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(b"R") && offered.contains("SCRAM-SHA-256-PLUS"), "{offered}");
    }
    // Without it the connection ends without a word of PostgreSQL, and so it does with another one.
    assert!(begin_at_once(&running, &[]).await.is_ok_and(|answer| answer.is_empty()));
    assert!(begin_at_once(&running, &[b"http/1.1"]).await.is_err());
    let counted = "synapsedb_router_refused_total{reason=\"tls\"} 2";
    running.eventually("both are counted", |_| running.metrics().contains(counted)).await;
    // A handshake that is none ends, too.
    let answer = running.say(Endpoint::Write, &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5]).await;
    assert!(!answer.starts_with(b"E") && !answer.starts_with(b"R"), "{answer:?}");
    // In a connection that is encrypted nobody asks for it again.
    let tcp = TcpStream::connect(("127.0.0.1", running.port(Endpoint::Read))).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = connector(&[b"postgresql"]).connect(name, tcp).await.unwrap();
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(answer.first(), Some(&b'E'), "{answer:?}");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_tls_holds_back_is_sent_as_soon_as_the_peer_takes_it() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    socket2::SockRef::from(&server).set_send_buffer_size(4_096).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let (_directory, files) = tls_files(&config());
    let (acceptor, connector) = (files.load().unwrap().acceptor, connector(&[b"postgresql"]));
    let (server, client) = tokio::join!(acceptor.accept(server), connector.connect(name, tcp));
    let (mut socket, mut client) = (Socket::Tls(Box::new(server.unwrap().into())), client.unwrap());
    let (mut unsent, mut sent) = (Vec::new(), 0);
    while !socket.holds_back() {
        let send = poll_fn(|cx| Poll::Ready(socket.send(cx, &[7; 1_000], &mut unsent)));
        send.await.unwrap();
        sent += 1_000;
        assert!(sent < 100_000_000, "nothing is ever held back");
    }
    assert!(unsent.is_empty(), "the router has nothing left to send, but for what TLS has");
    let mut all = vec![0; sent];
    let both = async {
        let flushing = poll_fn(|cx| socket.poll_unsent(cx, &mut unsent));
        let (flushed, read) = tokio::join!(flushing, client.read_exact(&mut all));
        flushed.unwrap();
        read.unwrap();
    };
    within("all arrives", Duration::from_secs(10), both).await;
    assert!(!socket.holds_back());
}

/// A directory with a client's certificate and key, and how libpq is told of them.
struct Shown {
    _directory: tempfile::TempDir,
    extra: String,
}

fn shown(pair: &Pair) -> Shown {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("c.crt"), directory.path().join("c.key"));
    std::fs::write(&certificate, &pair.certificate).unwrap();
    std::fs::write(&key, &pair.key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let extra = format!("sslcert={} sslkey={}", certificate.display(), key.display());
    Shown { _directory: directory, extra }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_needs_a_certificate_comes_in_with_its_own_only() {
    let (ours, other) = (Authority::new("clients"), Authority::new("others"));
    let server = Server::start();
    let pair = CertificateRole { certificate: "robot".to_owned(), role: USER.to_owned() };
    let config = Config {
        client_certificates: ClientCertificates::Require,
        tls_client_ca_file: ours.file.path().to_owned(),
        certificate_roles: vec![pair],
        ..config()
    };
    let running = start(config, &[server.address()], Some(1));
    let password = format!("password='{PASSWORD}' sslmode=require");
    let none = "connection requires a valid client certificate";
    let wrong = "certificate authentication failed for user \"app\"";
    for (pair, extra, expected) in [
        (Some(ours.client(USER)), password.as_str(), Ok("1")),
        (Some(ours.client("robot")), &password, Ok("1")),
        // The password is needed as well.
        (
            Some(ours.client(USER)),
            "password=wrong sslmode=require",
            Err("password authentication failed"),
        ),
        (Some(ours.client("eve")), &password, Err(wrong)),
        (None, &password, Err(none)),
        (None, &format!("password='{PASSWORD}' sslmode=disable"), Err(none)),
        (Some(other.client(USER)), &password, Err("unknown ca")),
        (Some(ours.expired_client(USER)), &password, Err("expired")),
        (Some(ours.server(&["app"])), &password, Err("certificate")),
    ] {
        let shown = pair.as_ref().map(shown);
        let certificate = shown.as_ref().map_or("sslcert=/none sslkey=/none", |shown| &shown.extra);
        let extra = format!("{extra} {certificate}");
        let (came_in, said) = running.psql(Endpoint::Read, &extra, "select 1").await;
        match expected {
            Ok(value) => assert!(came_in && said == value, "{extra}: {said}"),
            Err(why) => assert!(!came_in && said.contains(why), "{extra}: {said}"),
        }
    }
    // The error as a driver sees it.
    let error = running.try_connect(Endpoint::Write).await.err().unwrap();
    assert_eq!(code(&error), Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_may_be_shown_must_be_right() {
    let (ours, other) = (Authority::new("clients"), Authority::new("others"));
    let server = Server::start();
    let config = Config {
        client_certificates: ClientCertificates::Allow,
        tls_client_ca_file: ours.file.path().to_owned(),
        ..config()
    };
    let running = start(config, &[server.address()], Some(1));
    for (pair, comes_in) in
        [(ours.client(USER), true), (ours.client("eve"), false), (other.client(USER), false)]
    {
        let shown = shown(&pair);
        let extra = format!("password='{PASSWORD}' sslmode=require {}", shown.extra);
        let (came_in, said) = running.psql(Endpoint::Read, &extra, "select 1").await;
        assert_eq!(came_in, comes_in, "{said}");
    }
    running.connect(Endpoint::Read).await.batch_execute("select 1").await.unwrap();
    running.end().await;
}

/// The certificate that the router shows to whoever comes now.
async fn certificate_shown(running: &Running) -> Vec<u8> {
    let tcp = TcpStream::connect(("127.0.0.1", running.port(Endpoint::Read))).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector(&[b"postgresql"]).connect(name, tcp).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_certificates_are_shown_to_those_who_come_next() {
    let server = Server::start();
    let config = Config { tls_reload_interval_ms: 20, ..config() };
    let running = start(config, &[server.address()], Some(1));
    let count =
        |name: &str, value: u32| format!("synapsedb_router_certificate_{name}_total {value}");
    let (old, pem) = (certificate_shown(&running).await, |file| std::fs::read(file).unwrap());
    let files = running.files.clone();
    let before = [pem(&files.certificate), pem(&files.key)];
    // One that stays in a connection to the end.
    let tcp = TcpStream::connect(("127.0.0.1", running.port(Endpoint::Read))).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stays = connector(&[b"postgresql"]).connect(name, tcp).await.unwrap();
    let authority = Authority::new("another");
    let (new, late) =
        (authority.server_until(&["localhost"], 2050), authority.expired_server(&["localhost"]));
    for (failed, (certificate, key)) in [
        ("nonsense", "nonsense"),
        ("", ""),
        // The certificate is there before its key, as when one file is copied after the other.
        (new.certificate.as_str(), std::str::from_utf8(&before[1]).unwrap()),
        (late.certificate.as_str(), late.key.as_str()),
    ]
    .into_iter()
    .enumerate()
    {
        // In one step each, so that each is seen once.
        let failures = || {
            let text = running.metrics();
            let line = text.lines().find(|line| line.contains("reload_failures_total ")).unwrap();
            line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()
        };
        let known = failures();
        std::fs::write(&files.key, key).unwrap();
        std::fs::write(&files.certificate, certificate).unwrap();
        running.eventually("it is refused", |_| failures() > known).await;
        assert_eq!(certificate_shown(&running).await, old, "step {failed}");
    }
    assert!(running.metrics().contains(&count("reloads", 0)), "{}", running.metrics());
    std::fs::write(&files.certificate, &new.certificate).unwrap();
    std::fs::write(&files.key, &new.key).unwrap();
    running.eventually("it is taken", |_| running.metrics().contains(&count("reloads", 1))).await;
    assert_ne!(certificate_shown(&running).await, old);
    let expires = "synapsedb_router_certificate_expires_timestamp_seconds 2524608000";
    assert!(running.metrics().contains(expires), "{}", running.metrics());
    // With the new certificate a password is bound to it, and who came before goes on.
    let extra = format!("password='{PASSWORD}' sslmode=require channel_binding=require");
    let (fine, said) = running.psql(Endpoint::Write, &extra, "select 'in'").await;
    assert!(fine && said == "in", "{said}");
    stays.write_all(b"\0\0\0\x1f\0\x03\0\0user\0app\0database\0app\0\0").await.unwrap();
    stays.flush().await.unwrap();
    let mut answer = [0; 64];
    let read = stays.read(&mut answer).await.unwrap();
    assert!(read > 0 && answer[0] == b'R');
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_is_refused_from_the_moment_on_in_which_it_is_listed() {
    let authority = Authority::new("clients");
    let (good, bad) = (authority.client(USER), authority.client(USER));
    let lists = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(lists.path(), authority.revocations(&[])).unwrap();
    let server = Server::start();
    let config = Config {
        client_certificates: ClientCertificates::Require,
        tls_client_ca_file: authority.file.path().to_owned(),
        tls_client_crl_file: lists.path().to_owned(),
        tls_reload_interval_ms: 20,
        ..config()
    };
    let running = start(config, &[server.address()], Some(1));
    let (good_shown, bad_shown) = (shown(&good), shown(&bad));
    let ask = async |shown: &Shown| {
        let extra = format!("password='{PASSWORD}' sslmode=require {}", shown.extra);
        running.psql(Endpoint::Write, &extra, "select 'in'").await
    };
    for shown in [&good_shown, &bad_shown] {
        let (fine, said) = ask(shown).await;
        assert!(fine, "{said}");
    }
    std::fs::write(lists.path(), authority.revocations(&[&bad])).unwrap();
    let taken = "synapsedb_router_certificate_reloads_total 1";
    running.eventually("it is taken", |_| running.metrics().contains(taken)).await;
    let (fine, said) = ask(&bad_shown).await;
    assert!(!fine && said.contains("revoked"), "{said}");
    let (fine, said) = ask(&good_shown).await;
    assert!(fine, "{said}");
    // A list that cannot be read lets nobody in who was revoked before.
    std::fs::write(lists.path(), "nonsense").unwrap();
    let failed = "synapsedb_router_certificate_reload_failures_total 1";
    running.eventually("it is refused", |_| running.metrics().contains(failed)).await;
    assert!(!ask(&bad_shown).await.0);
    running.end().await;
}
