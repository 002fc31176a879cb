//! A login that stands between PostgreSQL's client and PostgreSQL's server, and knows no password.

use std::process::Output;
use std::sync::Arc;

use bytes::BytesMut;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use synapsedb_pg::scram::{
    Channel, ClientExchange, Keys, ScramError, ServerExchange, Verifier, tls_server_end_point,
};
use synapsedb_pg::wire::{frontend, startup};
use synapsedb_pg::{client, quote};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::support::{psql, server};

const PASSWORD: &str = "gehöht \u{2168}";

/// A certificate, its key, and what is bound of it.
struct Tls {
    acceptor: TlsAcceptor,
    end_point: Vec<u8>,
}

fn tls() -> Tls {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let end_point = tls_server_end_point(&certificate).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = config.with_single_cert(vec![certificate], key).unwrap();
    Tls { acceptor: Arc::new(config).into(), end_point }
}

async fn message(stream: &mut (impl AsyncRead + Unpin)) -> (u8, Vec<u8>) {
    let tag = stream.read_u8().await.unwrap();
    let mut body = vec![0; stream.read_u32().await.unwrap() as usize - 4];
    stream.read_exact(&mut body).await.unwrap();
    (tag, body)
}

async fn first_packet(stream: &mut (impl AsyncRead + Unpin)) -> startup::FirstPacket {
    let mut buffer = BytesMut::new();
    loop {
        if let Some(packet) = startup::FirstPacket::take(&mut buffer).unwrap() {
            return packet;
        }
        stream.read_buf(&mut buffer).await.unwrap();
    }
}

/// Checks a client's password.
async fn authenticate(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    verifier: &Verifier,
    end_point: &[u8],
) -> Result<Keys, ScramError> {
    let mut exchange = ServerExchange::new(verifier.clone(), Some(end_point.to_vec()), random());
    let mut buffer = BytesMut::new();
    startup::authentication_sasl(&mut buffer, exchange.mechanisms());
    stream.write_all_buf(&mut buffer).await.unwrap();
    let (tag, body) = message(stream).await;
    assert_eq!(tag, b'p');
    let end = body.iter().position(|byte| *byte == 0).unwrap();
    let mechanism = std::str::from_utf8(&body[..end]).unwrap();
    let challenge = exchange.first(mechanism, &body[end + 5..])?;
    startup::authentication_sasl_continue(&mut buffer, &challenge);
    stream.write_all_buf(&mut buffer).await.unwrap();
    let (_, body) = message(stream).await;
    let (last, keys) = exchange.finish(&body)?;
    startup::authentication_sasl_final(&mut buffer, &last);
    stream.write_all_buf(&mut buffer).await.unwrap();
    Ok(keys)
}

/// Some bytes that are not the same twice.
fn random() -> [u8; 18] {
    let key = rcgen::KeyPair::generate().unwrap().serialize_der();
    std::array::from_fn(|index| key[key.len() - 18 + index])
}

/// Logs in to the server with the keys of the client.
async fn log_in(port: u16, keys: Keys) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut buffer = BytesMut::new();
    let parameters = [("user", "scram"), ("database", "postgres")];
    frontend::startup(&mut buffer, parameters.into_iter()).unwrap();
    stream.write_all_buf(&mut buffer).await.unwrap();
    assert_eq!(message(&mut stream).await, (b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0".to_vec()));
    let mut exchange = ClientExchange::new(Arc::new(keys), Channel::Unbound, random());
    let first = exchange.first();
    let mut body = b"SCRAM-SHA-256\0".to_vec();
    body.extend_from_slice(&(first.len() as u32).to_be_bytes());
    body.extend_from_slice(&first);
    answer(&mut stream, &body).await;
    let (_, challenge) = message(&mut stream).await;
    assert_eq!(challenge[..4], [0, 0, 0, 11]);
    answer(&mut stream, &exchange.reply(&challenge[4..]).unwrap()).await;
    let (tag, last) = message(&mut stream).await;
    assert_eq!((tag, &last[..4]), (b'R', &[0, 0, 0, 12][..]), "{}", String::from_utf8_lossy(&last));
    exchange.verify(&last[4..]).unwrap();
    stream
}

async fn answer(stream: &mut TcpStream, body: &[u8]) {
    stream.write_u8(b'p').await.unwrap();
    stream.write_u32(body.len() as u32 + 4).await.unwrap();
    stream.write_all(body).await.unwrap();
}

/// Takes one client, and passes it on to the server when it knows the password.
async fn stand_between(listener: &TcpListener, tls: &Tls, verifier: &Verifier, port: u16) {
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(first_packet(&mut stream).await, startup::FirstPacket::Ssl);
    stream.write_all(b"S").await.unwrap();
    let mut client = tls.acceptor.accept(stream).await.unwrap();
    let packet = first_packet(&mut client).await;
    assert_eq!(packet.parameter("user"), Some("scram"));
    match authenticate(&mut client, verifier, &tls.end_point).await {
        Ok(keys) => {
            let mut server = log_in(port, keys).await;
            // psql closes without TLS's farewell, which is an error here and of no matter.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
        Err(error) => {
            let mut buffer = BytesMut::new();
            let text = error.to_string();
            startup::error_response(&mut buffer, "FATAL", error.sqlstate(), &text, None, None);
            client.write_all_buf(&mut buffer).await.unwrap();
            client.shutdown().await.unwrap();
        }
    }
}

#[tokio::test]
async fn psql_logs_in_through_a_middle_without_its_password() {
    let server = server();
    let admin = client::connect(&server.config("postgres")).await.unwrap();
    let role = format!("CREATE ROLE scram LOGIN PASSWORD {}", quote::literal(PASSWORD));
    admin.batch_execute(&role).await.unwrap();
    let sql = "SELECT rolpassword FROM pg_authid WHERE rolname = 'scram'";
    let stored: String = admin.query_one(sql, &[]).await.unwrap().get(0);
    let verifier = Verifier::parse(&stored).unwrap();
    assert!(verifier.is_of(PASSWORD));

    let (tls, listener) = (tls(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = listener.local_addr().unwrap().port();
    for binding in ["require", "disable"] {
        for (password, verifier, is_right) in [
            (PASSWORD, verifier.clone(), true),
            ("wrong", verifier.clone(), false),
            (PASSWORD, Verifier::mock("scram", &[1; 32]), false),
        ] {
            let asked = async {
                let login = format!(
                    "host=localhost hostaddr=127.0.0.1 port={port} user=scram dbname=postgres \
                     sslmode=require channel_binding={binding}"
                );
                let mut client = psql();
                client.args(["-XAtc", "SELECT current_user", &login]);
                client.env("PGPASSWORD", password).env("LC_ALL", "C.UTF-8");
                tokio::task::spawn_blocking(move || client.output().unwrap()).await.unwrap()
            };
            let between = stand_between(&listener, &tls, &verifier, server.port);
            let (output, ()): (Output, ()) = tokio::join!(asked, between);
            let printed = String::from_utf8_lossy(&output.stdout);
            let complaint = String::from_utf8_lossy(&output.stderr);
            let expected = if is_right { "scram\n" } else { "" };
            assert_eq!(printed, expected, "{binding} {complaint}");
            assert_eq!(complaint.contains("FATAL:  password authentication failed"), !is_right);
        }
    }
    admin.batch_execute("DROP ROLE scram").await.unwrap();
}
