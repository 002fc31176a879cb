//! Statement pooling and COPY: what is sent behind it, in however many packets, is answered once and in order.

use super::garbage::{message, raw_config};
use super::*;
use synapsedb_pg::conn::Connection;

/// What is said to an answer's end: tags, and of ReadyForQuery the state.
async fn answers(connection: &mut Connection, cycles: usize) -> String {
    let (mut tags, mut ready) = (String::new(), 0);
    while ready < cycles {
        let next = tokio::time::timeout(Duration::from_secs(10), connection.reader().next()).await;
        let next = next.unwrap_or_else(|_| panic!("it hangs behind {tags}")).unwrap();
        let (tag, body) = next;
        tags.push(char::from(tag));
        if tag == b'Z' {
            tags.push(char::from(body[0]));
            ready += 1;
        }
    }
    tags
}

fn extended(sql: &str) -> Vec<u8> {
    let parse = [b"\0", sql.as_bytes(), b"\0\0\0"].concat();
    [message(b'P', &parse), message(b'B', &[0; 8]), message(b'E', &[0; 5])].concat()
}

/// What may be pipelined, and what answers it: so many ReadyForQuery, and these messages.
type Case = (&'static str, Vec<u8>, usize, &'static str);

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

fn by_query() -> Vec<Case> {
    let done = message(b'c', b"");
    let row = || message(b'd', b"1\n");
    let copy_in = || query("copy t from stdin");
    let copied = || [copy_in(), row(), row(), done.clone()].concat();
    vec![
        ("in, query", [copied(), query("select 1")].concat(), 2, "GCZITDCZI"),
        ("in, in, query", [copied(), copied(), query("select 1")].concat(), 3, "GCZIGCZITDCZI"),
        // The transaction that is refused has none of what is behind it.
        (
            "in, begin, insert, query",
            [copied(), query("begin"), query("insert into t values (1)"), query("select 1")]
                .concat(),
            4,
            "GCZICEZICZITDCZI",
        ),
        (
            "out, begin, in, query",
            [query("copy t to stdout (format csv, header)"), query("begin"), copied()].concat(),
            3,
            "HdcCZICEZIGCZI",
        ),
        (
            "failed, query",
            [copy_in(), message(b'f', b"no\0"), query("select 1")].concat(),
            2,
            "GEZITDCZI",
        ),
        (
            "wrong data, query",
            [copy_in(), message(b'd', b"x\n"), done.clone(), query("select 1")].concat(),
            2,
            "GEZITDCZI",
        ),
        (
            "no such table, query",
            [query("copy nowhere from stdin"), row(), done.clone(), query("select 1")].concat(),
            2,
            "EZITDCZI",
        ),
    ]
}

fn by_execute() -> Vec<Case> {
    let (sync, done, row) = (message(b'S', b""), message(b'c', b""), message(b'd', b"1\n"));
    let copy_in = || extended("copy t from stdin");
    let copied = [copy_in(), sync.clone(), row.clone(), done.clone(), sync.clone()].concat();
    vec![
        ("by Execute, query", [copied.clone(), query("select 1")].concat(), 2, "12GCZITDCZI"),
        (
            "by Execute with one Sync, by Execute",
            [copy_in(), row.clone(), done.clone(), sync.clone(), copied.clone()].concat(),
            2,
            "12GCZI12GCZI",
        ),
        (
            "by Execute with wrong data, query",
            [copy_in(), sync.clone(), message(b'd', b"x\n"), done, sync.clone(), query("select 1")]
                .concat(),
            2,
            "12GEZITDCZI",
        ),
        (
            "out by Execute, query",
            [extended("copy t to stdout"), sync, query("select 1")].concat(),
            2,
            "12HcCZITDCZI",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pipelined_behind_a_copy_is_answered() {
    let server = Server::start();
    let config = Config { pool_mode: PoolMode::Statement, pool_size: 1, workers: 1, ..config() };
    let running = start(config, &[server.address()], Some(1));
    let other = running.connect(Endpoint::Write).await;
    other.batch_execute("create table t (i int)").await.unwrap();
    for pinned in [false, true] {
        for (name, bytes, cycles, expected) in by_query().into_iter().chain(by_execute()) {
            // All at once, message by message, and cut where no message ends.
            for part in [bytes.len(), 1, 7, 64] {
                other.batch_execute("truncate t").await.unwrap();
                let mut connection =
                    Connection::connect(&raw_config(&running, Endpoint::Write), false)
                        .await
                        .unwrap();
                if pinned {
                    let temporary = message(b'Q', b"create temp table held (i int)\0");
                    connection.writer().buffer().extend_from_slice(&temporary);
                    connection.writer().flush().await.unwrap();
                    assert_eq!(answers(&mut connection, 1).await, "CZI");
                }
                for bytes in bytes.chunks(part) {
                    connection.writer().buffer().extend_from_slice(bytes);
                    connection.writer().flush().await.unwrap();
                    if part < bytes.len() || part == 64 {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
                let said = answers(&mut connection, cycles).await;
                let place = format!("{name}, pinned: {pinned}, in parts of {part}");
                assert_eq!(said, expected, "{place}");
                // The session goes on.
                connection.writer().buffer().extend_from_slice(&message(b'Q', b"select 1\0"));
                connection.writer().flush().await.unwrap();
                assert_eq!(answers(&mut connection, 1).await, "TDCZI", "{place}");
                drop(connection);
            }
        }
    }
    running.end().await;
}
