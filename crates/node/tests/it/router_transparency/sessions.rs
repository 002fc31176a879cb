//! With a server connection for every client, the process that a client is told of is that of the server.

use super::wire::Wire;
use crate::routed::{Way, database, routed_by_session};

#[tokio::test(flavor = "multi_thread")]
async fn in_session_mode_the_process_is_the_servers() {
    let cluster = routed_by_session().await;
    let server = database(&cluster, "by_session", Way::Write).await;
    let (mut wire, _) = Wire::login(&server, &[]).await;
    let pid = wire.pid.to_string();
    assert_eq!(wire.query("select pg_backend_pid()").await[1], format!("D {pid}"));
    let said = wire.query("listen here; notify here, 'x'").await;
    assert!(said.contains(&"A own here x".to_owned()), "{said:?}");
    // An administrator ends it by the number that the client knows.
    cluster.node(1).agent_server().sql(&format!("select pg_terminate_backend({pid})")).await;
    let said = wire.answer(1).await;
    assert!(said[0].contains("C=57P01"), "{said:?}");
    assert_eq!(said.last().map(String::as_str), Some("the end"));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_session_mode_nothing_is_left_to_the_next_client() {
    let cluster = routed_by_session().await;
    let server = database(&cluster, "left_behind", Way::Write).await;
    for _ in 0..3 {
        let (mut wire, _) = Wire::login(&server, &[]).await;
        let fresh = "select current_setting('search_path'), to_regclass('mine') is null,
            (select count(*) from pg_prepared_statements)";
        assert_eq!(wire.query(fresh).await[1], "D \"$user\", public|t|0");
        // The lock of the one before is let go, if its process is not gone yet.
        let said = wire.query("select pg_advisory_lock(1)").await;
        assert_eq!(said.last().map(String::as_str), Some("Z I"), "{said:?}");
        wire.query("set search_path = left_behind; create temp table mine (v text)").await;
        wire.query("prepare p as select 1; listen here").await;
        wire.send(&[b'X', 0, 0, 0, 4]).await;
        assert_eq!(wire.answer(1).await, ["the end"]);
    }
}
