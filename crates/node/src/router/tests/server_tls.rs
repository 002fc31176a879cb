//! Server connections by TLS: what is encrypted, whom the router believes, and who is noticed in between.

use std::sync::Mutex;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::certificates::{Authority, Pair};
use super::*;

/// The request for TLS, and the beginning of a handshake.
const ENCRYPTED: [u8; 10] = [0, 0, 0, 8, 4, 210, 22, 47, 0x16, 3];

fn with(server_tls: ServerTls, authority: Option<&Authority>) -> Config {
    let file = authority.map(|authority| authority.file.path().to_owned());
    Config { server_tls, server_tls_ca_file: file.unwrap_or_default(), ..config() }
}

/// Whether the session's server connection is encrypted, as the server says.
async fn is_encrypted(client: &Client) -> bool {
    let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// What a client is told whom no server takes.
async fn refusal(config: Config, control: &Server, server: &str) -> (String, String) {
    // Roles are asked of one server, sessions are of another.
    let running = start_with(config, &[server.to_owned()], Some(1), &control.address());
    let error = running.try_connect(Endpoint::Read).await.err().unwrap();
    running.end().await;
    let error = error.as_db_error().unwrap();
    (error.code().code().to_owned(), error.message().to_owned())
}

fn acceptor(pair: &Pair) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    tls::clients::acceptor(vec![certificate], key, None, None).unwrap()
}

/// Stands between the router and a server: the first bytes of every connection.
async fn listen_in(port: u16) -> (String, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let all = Arc::clone(&all);
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let mut first = [0; 10];
                client.read_exact(&mut first[..8]).await.unwrap();
                server.write_all(&first[..8]).await.unwrap();
                let answer = server.read_u8().await.unwrap();
                client.write_all(&[answer]).await.unwrap();
                client.read_exact(&mut first[8..]).await.unwrap();
                all.lock().unwrap().push(first.to_vec());
                server.write_all(&first[8..]).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, heard)
}

/// Ends the router's TLS with a certificate of his own, and speaks TLS with the server.
async fn man_in_the_middle(port: u16, pair: &Pair, server_authority: &Authority) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let acceptor = acceptor(pair);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(server_authority.file.path()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (acceptor, connector) = (acceptor.clone(), connector.clone());
            tokio::spawn(async move {
                client.read_exact(&mut [0; 8]).await.unwrap();
                client.write_all(b"S").await.unwrap();
                let mut client = acceptor.accept(client).await.unwrap();
                let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                server.write_all(&ENCRYPTED[..8]).await.unwrap();
                assert_eq!(server.read_u8().await.unwrap(), b'S');
                let name = "localhost".try_into().unwrap();
                let mut server = connector.connect(name, server).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_to_a_server_that_offers_tls_is_encrypted() {
    let authority = Authority::new("servers");
    let server = Server::start_encrypted(&authority.server(&["localhost"]));
    let (address, heard) = listen_in(server.port).await;
    let running = start_with(config(), &[address], Some(1), &server.address());
    let client = running.connect(Endpoint::Write).await;
    assert!(is_encrypted(&client).await);
    let cancel = client.cancel_token();
    let cancelling = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel.cancel_query(NoTls).await.unwrap();
    };
    let (slept, ()) = tokio::join!(client.batch_execute("select pg_sleep(60)"), cancelling);
    assert_eq!(code(&slept.unwrap_err()), Some(&SqlState::QUERY_CANCELED));
    // A login and a cancel request at the least, and not one in clear.
    let heard = heard.lock().unwrap().clone();
    assert!(heard.len() >= 2 && heard.iter().all(|first| *first == ENCRYPTED), "{heard:?}");
    running.end().await;

    let running = start(with(ServerTls::Off, None), &[server.address()], Some(1));
    assert!(!is_encrypted(&running.connect(Endpoint::Write).await).await);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_used_or_refused_as_configured() {
    let server = Server::start();
    let running = start(config(), &[server.address()], Some(1));
    assert!(!is_encrypted(&running.connect(Endpoint::Write).await).await);
    running.end().await;
    for mode in [ServerTls::Require, ServerTls::VerifyFull] {
        let (code, text) = refusal(with(mode, None), &server, &server.address()).await;
        assert_eq!(code, "08006");
        let expected =
            format!("node 1: {} cannot be reached: the server offers no", server.address());
        assert!(text.contains(&expected) && text.contains("`ssl`"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_believed_from_the_right_authority_for_the_right_name_in_time() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let server = Server::start_encrypted(&ours.server(&["localhost", "127.0.0.1"]));
    let address = server.address();
    let running =
        start(with(ServerTls::VerifyFull, Some(&ours)), std::slice::from_ref(&address), Some(1));
    assert!(is_encrypted(&running.connect(Endpoint::Read).await).await);
    running.end().await;

    let refused = refusal(with(ServerTls::VerifyFull, Some(&other)), &server, &address).await;
    assert!(refused.1.contains("certificate is not accepted"), "{refused:?}");
    assert!(refused.1.contains(&format!("node 1: {address}")), "{refused:?}");
    // Without verification any certificate will do.
    let running = start(with(ServerTls::Require, Some(&other)), &[address], Some(1));
    assert!(is_encrypted(&running.connect(Endpoint::Read).await).await);
    running.end().await;

    for pair in [ours.server(&["db.example"]), ours.expired_server(&["127.0.0.1"])] {
        let wrong = Server::start_encrypted(&pair);
        let strict = with(ServerTls::VerifyFull, Some(&ours));
        let refused = refusal(strict, &server, &wrong.address()).await;
        assert_eq!(refused.0, "08006");
        assert!(refused.1.contains("certificate is not accepted"), "{refused:?}");
    }
    let missing = Config { server_tls_ca_file: "/nowhere/ca.crt".into(), ..config() };
    let strict = Config { server_tls: ServerTls::VerifyFull, ..missing };
    let roots = Arc::new(RootCertStore::empty());
    let error = dial::Dialer::new(&strict, roots).err().unwrap();
    let text = format!("{error:#}");
    assert!(text.contains("router.server_tls_ca_file") && text.contains("/nowhere/ca.crt"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_ends_tls_in_between_is_noticed() {
    let authority = Authority::new("servers");
    let server = Server::start_encrypted(&authority.server(&["localhost"]));
    let own = Authority::new("stranger").server(&["127.0.0.1"]);
    let between = man_in_the_middle(server.port, &own, &authority).await;
    // Even though no certificate is looked at.
    let (code, text) = refusal(with(ServerTls::Require, None), &server, &between).await;
    assert_eq!(code, "08006");
    assert!(text.contains("channel binding") && text.contains("attacker"), "{text}");
    assert!(text.contains(&format!("node 1: {between}")), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_that_has_ended_is_noticed() {
    let authority = Authority::new("servers");
    let server = Server::start_encrypted(&authority.server(&["localhost"]));
    let running = start(Config { pool_size: 1, ..config() }, &[server.address()], Some(1));
    let client = running.connect(Endpoint::Write).await;
    for _ in 0..3 {
        assert!(is_encrypted(&client).await);
        server::kill_softly(&server, backend_pid(&client).await).await;
        // A write is not repeated: if the end went unnoticed this would fail.
        client.batch_execute("create table if not exists t (i int)").await.unwrap();
    }
    running.end().await;
}
