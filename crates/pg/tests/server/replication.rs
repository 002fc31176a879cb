//! Slots and streams: every kind of change, and a restart from what was confirmed.

use std::time::Duration;

use synapsedb_core::change::{Change, OldTuple, ReplicaIdentity, Value};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::time::Timestamp;
use synapsedb_pg::pgoutput::{self, Message, Peek};
use synapsedb_pg::replication::{self, Event, Stream};
use synapsedb_pg::{Config, ErrorKind, client::Client};

use crate::support::server;

/// One transaction as text lines, and where it ends.
struct Transaction {
    lines: Vec<String>,
    commit_lsn: Lsn,
    commit_time: Timestamp,
    end_lsn: Lsn,
}

/// Slots belong to the whole server, so each test's has its database's name.
async fn publish(config: &Config, client: &Client) -> String {
    client.batch_execute("CREATE PUBLICATION p FOR ALL TABLES").await.unwrap();
    let slot = format!("slot_{}", config.database);
    let point = replication::create_slot(config, &slot).await.unwrap();
    assert!(point > Lsn::ZERO);
    slot
}

async fn next_data(stream: &mut Stream) -> bytes::Bytes {
    loop {
        match tokio::time::timeout(Duration::from_secs(20), stream.next()).await.unwrap().unwrap() {
            Event::Data { body, .. } => return body,
            Event::Keepalive { wal_end, reply_requested } => {
                assert!(wal_end > Lsn::ZERO);
                if reply_requested {
                    stream.confirm(Lsn::ZERO, Lsn::ZERO, Lsn::ZERO).await.unwrap();
                }
            }
        }
    }
}

/// The next transaction; non-transactional messages before it are lines of it too.
async fn next_transaction(stream: &mut Stream) -> Transaction {
    let mut lines = Vec::new();
    loop {
        let body = next_data(stream).await;
        let message = pgoutput::decode(&body).unwrap();
        match (pgoutput::peek(&body).unwrap(), &message) {
            (Peek::Begin, Message::Begin { .. })
            | (Peek::Commit, Message::Commit { .. })
            | (Peek::Origin, Message::Origin { .. })
            | (Peek::LogicalMessage { .. }, Message::LogicalMessage { .. })
            | (Peek::Type(_), Message::Type { .. }) => {}
            (Peek::Relation(id), Message::Relation(relation)) => assert_eq!(id, relation.id),
            (Peek::Insert(id), Message::Change(Change::Insert { relation, .. }))
            | (Peek::Update(id), Message::Change(Change::Update { relation, .. }))
            | (Peek::Delete(id), Message::Change(Change::Delete { relation, .. })) => {
                assert_eq!(id, *relation);
            }
            (Peek::Truncate(ids), Message::Change(Change::Truncate { relations, .. })) => {
                assert_eq!(ids.collect::<Vec<_>>(), *relations);
            }
            (peek, message) => panic!("{peek:?} is not {message:?}"),
        }
        match message {
            Message::Begin { .. } => {}
            Message::Commit { commit_lsn, end_lsn, commit_time } => {
                return Transaction { lines, commit_lsn, commit_time, end_lsn };
            }
            Message::Relation(relation) => {
                let mark = |identity| match identity {
                    ReplicaIdentity::Default => "",
                    ReplicaIdentity::Nothing => " nothing",
                    ReplicaIdentity::Full => " full",
                    ReplicaIdentity::Index => " index",
                };
                let columns = relation.columns.iter();
                let columns = columns.map(|column| {
                    format!("{}{}", column.name, if column.in_key { "*" } else { "" })
                });
                let columns = columns.collect::<Vec<_>>().join(",");
                let (schema, name, identity) =
                    (&relation.schema, &relation.name, relation.identity);
                lines.push(format!("relation {schema}.{name}({columns}){}", mark(identity)));
            }
            Message::Type { schema, name, .. } => lines.push(format!("type {schema}.{name}")),
            Message::Origin { lsn, name } => lines.push(format!("origin {name} {lsn}")),
            Message::LogicalMessage { transactional, prefix, content, .. } => {
                let content = String::from_utf8_lossy(content);
                lines.push(format!("message {transactional} {prefix} {content}"));
            }
            Message::Change(change) => lines.push(change_line(&change)),
        }
    }
}

fn change_line(change: &Change<'_>) -> String {
    let values = |tuple: &[Value<'_>]| {
        let show = |value: &Value<'_>| match value {
            Value::Null => "NULL".to_owned(),
            Value::Unchanged => "unchanged".to_owned(),
            Value::Text(text) if text.len() > 100 => format!("{} bytes", text.len()),
            Value::Text(text) => String::from_utf8_lossy(text).into_owned(),
            Value::Binary(bytes) => format!("{bytes:?}"),
        };
        format!("({})", tuple.iter().map(show).collect::<Vec<_>>().join(","))
    };
    let before = |old: &OldTuple<'_>| match old {
        OldTuple::Key(tuple) => format!("key{}", values(tuple)),
        OldTuple::Full(tuple) => format!("row{}", values(tuple)),
    };
    match change {
        Change::Insert { new, .. } => format!("insert {}", values(new)),
        Change::Update { old: None, new, .. } => format!("update {}", values(new)),
        Change::Update { old: Some(old), new, .. } => {
            format!("update {} {}", before(old), values(new))
        }
        Change::Delete { old, .. } => format!("delete {}", before(old)),
        Change::Truncate { relations, cascade, restart_identity } => {
            format!("truncate {} {cascade} {restart_identity}", relations.len())
        }
    }
}

#[tokio::test]
async fn every_kind_of_change() {
    let server = server();
    let (config, client) = server.database().await;
    let tables = "CREATE TYPE mood AS ENUM ('sad', 'ok');
         CREATE TABLE t (id int PRIMARY KEY, name text, feeling mood, big text);
         ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
         CREATE TABLE f (a int, at timestamptz); ALTER TABLE f REPLICA IDENTITY FULL;";
    client.batch_execute(tables).await.unwrap();
    let slot = publish(&config, &client).await;
    let mut stream = Stream::start(&config, &slot, Lsn::ZERO, "p", true).await.unwrap();
    let t = "relation public.t(id*,name,feeling,big)";
    let f = "relation public.f(a*,at*) full";
    let cases: [(&str, &[&str]); 8] = [
        (
            "INSERT INTO t VALUES (1, 'ä', 'ok', repeat('x', 3000))",
            &["type public.mood", t, "insert (1,ä,ok,3000 bytes)"],
        ),
        ("UPDATE t SET name = 'b' WHERE id = 1", &["update (1,b,ok,unchanged)"]),
        ("UPDATE t SET id = 2", &["update key(1,NULL,NULL,NULL) (2,b,ok,unchanged)"]),
        ("DELETE FROM t", &["delete key(2,NULL,NULL,NULL)"]),
        (
            "SET timezone = 'UTC'; SET datestyle = 'German'; INSERT INTO f VALUES (1, '2024-01-02 03:04:05.678901+00')",
            &[f, "insert (1,2024-01-02 03:04:05.678901+00)"],
        ),
        ("UPDATE f SET at = NULL", &["update row(1,2024-01-02 03:04:05.678901+00) (1,NULL)"]),
        ("DELETE FROM f", &["delete row(1,NULL)"]),
        (
            "TRUNCATE t, f RESTART IDENTITY CASCADE",
            &["type public.mood", t, f, "truncate 2 true true"],
        ),
    ];
    for (sql, lines) in cases {
        client.batch_execute(sql).await.unwrap();
        let transaction = next_transaction(&mut stream).await;
        assert_eq!(transaction.lines, lines, "{sql}");
        assert!(transaction.end_lsn > transaction.commit_lsn);
    }
    stream.close().await;
}

#[tokio::test]
async fn messages_and_origins() {
    let server = server();
    let (config, client) = server.database().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let slot = publish(&config, &client).await;
    let mut stream = Stream::start(&config, &slot, Lsn::ZERO, "p", true).await.unwrap();
    let origin = format!("peer_{}", config.database);
    let sql = format!(
        "SELECT pg_logical_emit_message(false, 'note', 'now');
         SELECT pg_logical_emit_message(true, 'ddl', 'CREATE …');
         SELECT pg_replication_origin_create('{origin}');
         SELECT pg_replication_origin_session_setup('{origin}');"
    );
    client.batch_execute(&sql).await.unwrap();
    let applied = "BEGIN; SELECT pg_replication_origin_xact_setup('0/ABCDEF', '2024-01-02 03:04:05.678901+00');
         INSERT INTO t VALUES (9); COMMIT";
    client.batch_execute(applied).await.unwrap();
    let transaction = next_transaction(&mut stream).await;
    assert_eq!(transaction.lines, ["message false note now", "message true ddl CREATE …"]);
    let transaction = next_transaction(&mut stream).await;
    let origin_line = format!("origin {origin} 0/ABCDEF");
    assert_eq!(transaction.lines, [origin_line.as_str(), "relation public.t(id*)", "insert (9)"]);
    assert_eq!(transaction.commit_time, Timestamp::from_unix_us(1_704_164_645_678_901));
    stream.close().await;
    let forget = format!(
        "SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('{origin}')"
    );
    client.batch_execute(&forget).await.unwrap();
}

/// Starts again as soon as the server has let go of the slot.
async fn restart(config: &Config, slot: &str, from: Lsn) -> Stream {
    loop {
        match Stream::start(config, slot, from, "p", true).await {
            Ok(stream) => return stream,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_restart_begins_after_what_was_confirmed() {
    let server = server();
    let (config, client) = server.database().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let slot = publish(&config, &client).await;
    let insert = |id: i32| format!("INSERT INTO t VALUES ({id})");
    let mut stream = Stream::start(&config, &slot, Lsn::ZERO, "p", true).await.unwrap();
    let mut ends = Vec::new();
    for id in 1..=3 {
        client.batch_execute(&insert(id)).await.unwrap();
        ends.push(next_transaction(&mut stream).await.end_lsn);
    }
    // Two streams of one slot: the second is refused for the moment.
    let error = Stream::start(&config, &slot, Lsn::ZERO, "p", true).await.err().unwrap();
    assert_eq!((error.sqlstate(), error.is_transient()), (Some("55006"), true), "{error}");

    stream.confirm(ends[2], ends[0], ends[0]).await.unwrap();
    stream.close().await;
    let mut stream = restart(&config, &slot, Lsn::ZERO).await;
    for id in 2..=3 {
        let transaction = next_transaction(&mut stream).await;
        assert_eq!(transaction.lines.last(), Some(&format!("insert ({id})")));
    }
    // A connection that just vanishes frees the slot too; a later start than confirmed is the client's choice.
    drop(stream);
    let mut stream = restart(&config, &slot, ends[1]).await;
    assert_eq!(next_transaction(&mut stream).await.end_lsn, ends[2]);
    stream.close().await;

    loop {
        match replication::drop_slot(&config, &slot).await {
            Ok(()) => break,
            Err(error) => assert_eq!(error.sqlstate(), Some("55006"), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let error = replication::drop_slot(&config, &slot).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("42704"), "{error}");
    assert!(error.to_string().contains(&slot));
}

#[tokio::test]
async fn a_large_transaction_arrives_whole_and_keeps_the_order() {
    let server = server();
    let (config, client) = server.database().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, b text)").await.unwrap();
    let slot = publish(&config, &client).await;
    let sql = "INSERT INTO t SELECT n, repeat('y', n % 1000) FROM generate_series(1, 30000) n";
    client.batch_execute(sql).await.unwrap();
    let mut stream = Stream::start(&config, &slot, Lsn::ZERO, "p", true).await.unwrap();
    let mut next = 0;
    loop {
        let body = next_data(&mut stream).await;
        match pgoutput::decode(&body).unwrap() {
            Message::Change(Change::Insert { new, .. }) => {
                next += 1;
                assert_eq!(new[0], Value::Text(next.to_string().as_bytes()));
            }
            Message::Commit { .. } => break,
            _ => {}
        }
    }
    assert_eq!(next, 30_000);
}

#[tokio::test]
async fn identity_and_the_end_of_a_stream() {
    let server = server();
    let (config, client) = server.database().await;
    let identity = replication::identify(&config).await.unwrap();
    let sql = "SELECT system_identifier::text FROM pg_control_system()";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!(identity.system_identifier, row.get::<_, String>(0));
    assert!(identity.timeline == 1 && identity.lsn > Lsn::ZERO);

    let slot = publish(&config, &client).await;
    let error = replication::create_slot(&config, &slot).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("42710"), "{error}");
    let mut stream = Stream::start(&config, &slot, Lsn::ZERO, "p", false).await.unwrap();
    assert_eq!(stream.identity().system_identifier, identity.system_identifier);
    let kill = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'"
    );
    client.batch_execute(&kill).await.unwrap();
    let error = loop {
        match stream.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(error.is_transient(), "{error}");
    assert!(matches!(error.kind(), ErrorKind::Server | ErrorKind::Closed), "{error}");

    let missing = Stream::start(&config, "nope", Lsn::ZERO, "p", true).await.err().unwrap();
    assert_eq!(missing.sqlstate(), Some("42704"), "{missing}");
}
