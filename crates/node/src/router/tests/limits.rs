//! What is refused before it is a session.

use super::super::startup::error_field;
use super::*;

fn startup(parameters: &[u8]) -> Vec<u8> {
    let mut packet = u32::try_from(parameters.len() + 8).unwrap().to_be_bytes().to_vec();
    packet.extend(196_608_u32.to_be_bytes());
    packet.extend(parameters);
    packet
}

fn sqlstate(answer: &[u8]) -> Option<&str> {
    assert_eq!(answer.first(), Some(&b'E'), "{answer:?}");
    error_field(&answer[5..], b'C')
}

fn nowhere() -> Vec<String> {
    vec!["127.0.0.1:1".to_owned()]
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused_and_counted() {
    let running = start(config(), &nowhere(), Some(1));
    for garbage in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0xff; 64 * 1024],
        vec![0, 0, 0, 0],
        startup(b"user\0app"),
        startup(&vec![b'x'; 9_993]),
        startup(&[b"user\0app\0".as_slice(), &[b'x'; 60_000]].concat()),
    ] {
        let answer = running.say(Endpoint::Read, &garbage).await;
        assert_eq!(sqlstate(&answer), Some("08P01"));
    }
    let old = [0, 0, 0, 8, 0, 2, 0, 0];
    assert_eq!(sqlstate(&running.say(Endpoint::Write, &old).await), Some("0A000"));
    assert_eq!(running.handle.status().totals.refused, 7);
    assert!(running.metrics().contains("synapsedb_router_refused_total{reason=\"malformed\"} 7"));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn encryption_requests_are_answered_once_each_and_nothing_is_smuggled() {
    let running = start(config(), &nowhere(), Some(1));
    let (ssl, gss) = ([0, 0, 0, 8, 4, 210, 22, 47], [0, 0, 0, 8, 4, 210, 22, 48]);
    let asked = running.say(Endpoint::Read, &[gss, gss, gss, gss].concat()).await;
    assert_eq!(&asked[..3], b"NNN");
    assert_eq!(sqlstate(&asked[3..]), Some("08P01"));
    // A startup packet in clear behind the request for TLS is no TLS handshake, and is not obeyed.
    let smuggled = [ssl.as_slice(), &startup(b"user\0app\0\0")].concat();
    let answer = running.say(Endpoint::Read, &smuggled).await;
    assert_eq!(answer.first(), Some(&b'S'));
    assert!(!answer[1..].starts_with(b"E") && !answer[1..].starts_with(b"R"), "{answer:?}");
    running.eventually("counted", |status| status.totals.refused == 2).await;
    assert_eq!(running.handle.status().totals.connect_failures, 0);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slow_and_the_many_are_bounded() {
    let mut config = config();
    (config.startup_timeout_ms, config.startups_max) = (1_000, 2);
    let running = start(config, &nowhere(), Some(1));
    let begun = Instant::now();
    let port = running.port(Endpoint::Read);
    let mut slow = [
        TcpStream::connect(("127.0.0.1", port)).await.unwrap(),
        TcpStream::connect(("127.0.0.1", port)).await.unwrap(),
    ];
    slow[0].write_all(&[0, 0]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    // No place is left: the third is closed at once.
    assert!(running.say(Endpoint::Read, b"").await.is_empty());
    assert!(begun.elapsed() < Duration::from_millis(900));
    for stream in &mut slow {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    running.eventually("all three are counted", |status| status.totals.refused == 3).await;
    assert_eq!(sqlstate(&running.say(Endpoint::Read, b"GET /").await), Some("08P01"));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_too_many_is_told() {
    let server = Server::start();
    let mut config = config();
    config.clients_max = 2;
    let running = start(config, &[server.address()], Some(1));
    let first = running.connect(Endpoint::Read).await;
    let _second = running.connect(Endpoint::Write).await;
    let refused = running.try_connect(Endpoint::Read).await.err().unwrap();
    assert_eq!(code(&refused), Some(&SqlState::TOO_MANY_CONNECTIONS), "{refused:?}");
    drop(first);
    running.eventually("a place is free", |status| status.clients == 1).await;
    running.connect(Endpoint::Read).await.batch_execute("select 1").await.unwrap();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_one_machine_share_the_port_and_strangers_do_not() {
    let running = start(config(), &nowhere(), Some(1));
    let address = running.handle.read_address();
    drop(listen::bind(address, Endpoint::Read).unwrap());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|address| (taken, address)).unwrap();
    let error = listen::bind(taken.1, Endpoint::Write).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("write endpoint") && text.contains(&taken.1.to_string()), "{text}");
    running.end().await;
}
