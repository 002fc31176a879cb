//! Databases and roles that go while a pool has connections, and cancel requests.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::wire::Wire;
use crate::routed::{Way, database, routed};

#[tokio::test(flavor = "multi_thread")]
async fn a_database_can_be_dropped_when_its_clients_have_left() {
    let cluster = routed().await;
    let server = database(&cluster, "dropped", Way::Write).await;
    for _ in 0..3 {
        assert_eq!(server.rows("select v from items").await, ["one"]);
    }
    cluster.node(1).agent_server().sql("alter role synapsedb createdb").await;
    let mut owner = cluster.write_endpoint();
    owner.sql("drop database dropped").await;
    // And made again: nobody gets a connection to the old one.
    owner.sql("create database dropped").await;
    owner.database = "dropped".to_owned();
    assert_eq!(owner.rows("select to_regclass('items') is null").await, ["t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_can_be_dropped_on_the_server_itself() {
    let cluster = routed().await;
    let server = database(&cluster, "dropped_there", Way::Write).await;
    assert_eq!(server.rows("select v from items").await, ["one"]);
    cluster.node(1).agent_server().sql("drop database dropped_there").await;
    let refused = Wire::login(&server, &[]).await.1;
    assert!(refused.iter().any(|line| line.contains("C=3D000")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_role_is_gone_at_once() {
    let cluster = routed().await;
    let mut server = database(&cluster, "roles", Way::Write).await;
    let agent = cluster.node(1).agent_server();
    agent.sql("create role leaving login password 'first'").await;
    (server.user, server.password) = ("leaving".to_owned(), "first".to_owned());
    assert_eq!(server.rows("select current_user").await, ["leaving"]);
    agent.sql("drop role leaving").await;
    let refused = Wire::login(&server, &[]).await.1;
    assert!(refused[0].contains("C=28P01"), "{refused:?}");
    // One of the same name is another one.
    agent.sql("create role leaving login password 'second'").await;
    let refused = Wire::login(&server, &[]).await.1;
    assert!(refused[0].contains("C=28P01"), "{refused:?}");
    server.password = "second".to_owned();
    for _ in 0..3 {
        assert_eq!(server.rows("select current_user, session_user").await, ["leaving|leaving"]);
    }
    agent.sql("alter role leaving nologin").await;
    let refused = Wire::login(&server, &[]).await.1;
    assert!(refused.iter().any(|line| line.contains("C=28000")), "{refused:?}");
    agent.sql("alter role leaving login password 'third'").await;
    let refused = Wire::login(&server, &[]).await.1;
    assert!(refused[0].contains("C=28P01"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_request_reaches_the_statement_that_runs_and_no_other() {
    let cluster = routed().await;
    let server = database(&cluster, "cancels", Way::Write).await;
    let (mut one, _) = Wire::login(&server, &[]).await;
    let (mut two, _) = Wire::login(&server, &[]).await;
    // Both have been on both connections.
    for _ in 0..4 {
        one.query("select 1").await;
        two.query("select 2").await;
    }
    cancel(server.port, one.pid, &one.key).await;
    cancel(server.port, one.pid, &[0; 4]).await;
    let running = async { two.query("select pg_sleep(1), 'not cancelled'").await };
    let asked = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        // Nobody's statement: that client has none.
        cancel(server.port, one.pid, &one.key).await;
    };
    let (said, ()) = tokio::join!(running, asked);
    assert_eq!(said[1], "D |not cancelled");
    let (pid, key) = (two.pid, two.key.clone());
    let running = async { two.query("select pg_sleep(30)").await };
    let asked = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel(server.port, pid, &key).await;
    };
    let (said, ()) = tokio::join!(running, asked);
    assert!(said.iter().any(|line| line.contains("C=57014")), "{said:?}");
    assert_eq!(two.query("select 3").await[1], "D 3");
    assert_eq!(one.query("select 4").await[1], "D 4");
}

/// Sends a cancel request and waits until it has been taken.
async fn cancel(port: u16, pid: i32, key: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut packet = (12 + key.len() as u32).to_be_bytes().to_vec();
    packet.extend_from_slice(&80_877_102u32.to_be_bytes());
    packet.extend_from_slice(&pid.to_be_bytes());
    packet.extend_from_slice(key);
    stream.write_all(&packet).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
}
