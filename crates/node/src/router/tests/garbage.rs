//! Clients that have logged in and then break the protocol, beside one that does not.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use synapsedb_pg::conn::Connection;

use super::*;

/// How many clients break it, each in its own way.
const CLIENTS: u64 = 160;

pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// What a client may say, in an order that no client would choose.
fn piece(rng: &mut StdRng) -> Vec<u8> {
    let bodies: [(u8, &[u8]); 22] = [
        (b'Q', b"select 1\0"),
        (b'Q', b"begin\0"),
        (b'Q', b"copy garbage from stdin\0"),
        (b'Q', b"select generate_series(1, 5); select 2\0"),
        (b'Q', b""),
        (b'P', b"\0select $1::int\0\0\0"),
        (b'P', b"a\0select 1\0\0\0"),
        (b'P', b"a\0copy garbage from stdin\0\0\0"),
        (b'B', b"\0\0\0\0\0\0\0\0"),
        (b'B', b"\0a\0\0\0\0\0\0\0"),
        (b'D', b"Sa\0"),
        (b'D', b"P\0"),
        (b'E', b"\0\0\0\0\0"),
        (b'C', b"Sa\0"),
        (b'S', b""),
        (b'S', b""),
        (b'H', b""),
        (b'd', b"7\n"),
        (b'c', b""),
        (b'f', b"no more\0"),
        (b'F', b"\0\0\x05\x2a\0\0\0\0\0\0"),
        (b'p', b"a password\0"),
    ];
    let (tag, body) = bodies[rng.random_range(0..bodies.len())];
    let mut bytes = message(tag, body);
    match rng.random_range(0..10) {
        // One byte is another, be it the tag or the length.
        0 => {
            let index = rng.random_range(0..bytes.len());
            bytes[index] = rng.random();
        }
        1 => bytes.truncate(rng.random_range(0..bytes.len())),
        2 => {
            let body: Vec<u8> = (0..rng.random_range(0..40)).map(|_| rng.random()).collect();
            bytes = message(rng.random(), &body);
        }
        _ => {}
    }
    bytes
}

/// For a client that says what it likes.
pub(super) fn raw_config(running: &Running, endpoint: Endpoint) -> synapsedb_pg::Config {
    synapsedb_pg::Config {
        host: synapsedb_pg::Host::Tcp("127.0.0.1".to_owned()),
        port: running.port(endpoint),
        user: USER.to_owned(),
        password: Some(PASSWORD.to_owned()),
        database: "postgres".to_owned(),
        ..synapsedb_pg::Config::default()
    }
}

/// Says it, listens for a moment to what may come of it, and is gone.
async fn misbehave(config: synapsedb_pg::Config, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut connection = Connection::connect(&config, false).await.unwrap();
    for _ in 0..rng.random_range(1..4) {
        for _ in 0..rng.random_range(1..8) {
            connection.writer().buffer().extend_from_slice(&piece(&mut rng));
        }
        if connection.writer().flush().await.is_err() {
            return;
        }
        let moment = Duration::from_millis(rng.random_range(0..20));
        let listening = async { while connection.reader().next().await.is_ok() {} };
        let _ = tokio::time::timeout(moment, listening).await;
    }
}

/// The router lives, the others get their own answers, and nothing is left behind.
#[tokio::test(flavor = "multi_thread")]
async fn who_breaks_the_protocol_harms_nobody_else() {
    let server = Server::start();
    let sizes = Config { pool_size: 4, ..config() };
    let running = start(sizes, &[server.address()], Some(1));
    let neighbour = running.connect(Endpoint::Write).await;
    neighbour
        .batch_execute("create table garbage (i int); set my.name = 'neighbour'")
        .await
        .unwrap();
    let config = raw_config(&running, Endpoint::Write);
    let mut strangers = tokio::task::JoinSet::new();
    let mut seeds = 0..CLIENTS;
    for seed in seeds.by_ref().take(8) {
        strangers.spawn(misbehave(config.clone(), seed));
    }
    while let Some(ended) = strangers.join_next().await {
        ended.unwrap();
        if let Some(seed) = seeds.next() {
            strangers.spawn(misbehave(config.clone(), seed));
            let row = neighbour
                .query_one("select $1::text, current_setting('my.name')", &[&seed.to_string()])
                .await
                .unwrap_or_else(|error| panic!("beside client {seed}: {error:?}"));
            assert_eq!((row.get(0), row.get(1)), (seed.to_string(), "neighbour".to_owned()));
        }
    }
    running.connect(Endpoint::Read).await.batch_execute("select 1").await.unwrap();
    running.eventually("gone", |status| status.clients == 1).await;
    running.end().await;
}
