//! The two endpoints: sessions reach a healthy node, writes the primary, and both outlive a node.

use std::process::Command;
use std::time::Duration;

use synapsedb_dev::{Cluster, Node, eventually};

use crate::routed::routed;
use crate::{NOTICED, cluster, shared};

/// The node whose server answers at the write endpoint.
async fn primary(cluster: &Cluster) -> &Node {
    let port = cluster.write_endpoint().value("select current_setting('port')").await;
    let found = cluster.nodes().iter().find(|node| node.server().port.to_string() == port);
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_to_one_node_and_reads_to_any() {
    let cluster = shared().await;
    let first = primary(&cluster).await.number();
    for _ in 0..10 {
        assert_eq!(primary(&cluster).await.number(), first);
        assert_eq!(cluster.read_endpoint().value("select 1").await, "1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_the_router_is_a_session_of_postgresql() {
    let cluster = shared().await;
    let session = cluster.write_endpoint().session().await;
    session.batch_execute("create table routed (id int primary key, v text)").await.unwrap();
    session.batch_execute("set application_name = 'mine'").await.unwrap();
    assert_eq!(session.rows("show application_name").await.unwrap(), ["mine"]);
    let transaction =
        "begin; insert into routed values (1, 'a'); insert into routed values (2, 'b'); commit";
    session.batch_execute(transaction).await.unwrap();
    let statement = session.prepare("select v from routed where id = $1").await.unwrap();
    let value: String = session.query_one(&statement, &[&2i32]).await.unwrap().get(0);
    assert_eq!(value, "b");
    let error = session.batch_execute("select 1/0").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");
    assert_eq!(session.rows("select count(*) from routed").await.unwrap(), ["2"]);
    cluster.all_show("select count(*) from routed", &["2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_can_be_cancelled_through_the_router() {
    let cluster = shared().await;
    let session = cluster.read_endpoint().session().await;
    let token = session.cancel_token();
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        token.cancel_query(tokio_postgres::NoTls).await.unwrap();
    };
    let (answer, ()) = tokio::join!(session.rows("select pg_sleep(60)"), cancel);
    assert_eq!(answer.unwrap_err().code().unwrap().code(), "57014");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_and_copies_pass() {
    let cluster = shared().await;
    let session = cluster.read_endpoint().session().await;
    let rows =
        session.rows("select n, repeat('x', 200) from generate_series(1, 50000) n").await.unwrap();
    assert_eq!(rows.len(), 50_000);
    let long =
        session.rows("select length(repeat('x', 5000000)), repeat('y', 5000000)").await.unwrap();
    assert_eq!(long[0].len(), 5_000_008);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_refused_as_postgresql_refuses_it() {
    let cluster = shared().await;
    for endpoint in [cluster.read_endpoint(), cluster.write_endpoint()] {
        for (user, password, database, code) in [
            ("synapsedb", "wrong", "synapsedb", "28P01"),
            ("nobody", "wrong", "synapsedb", "28P01"),
            ("synapsedb", "synapsedb", "no_such_database", "3D000"),
        ] {
            let mut config = tokio_postgres::Config::new();
            config
                .host("127.0.0.1")
                .port(endpoint.port)
                .user(user)
                .password(password)
                .dbname(database);
            let refused = config.connect(tokio_postgres::NoTls).await;
            let error = refused.err().unwrap();
            let found = error.code().map(|found| found.code().to_owned());
            assert_eq!(found.as_deref(), Some(code), "{user} {database}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_write_endpoint_moves_when_the_primary_is_lost() {
    let cluster = cluster(3).await;
    cluster.node(1).sql("create table moved (id serial primary key, v text)").await;
    cluster.all_show("select count(*) from moved", &["0"]).await;
    let before = primary(&cluster).await;
    before.kill_agent();
    before.kill_postgres();
    let write = cluster.write_endpoint();
    eventually("writes go on", NOTICED, async || {
        let insert = "insert into moved (v) values ('after') returning v";
        write.try_rows(insert).await.map(drop).map_err(|error| format!("{error:#}"))
    })
    .await;
    let after = primary(&cluster).await.number();
    assert_ne!(after, before.number());
    eventually("reads go on", NOTICED, async || {
        cluster.read_endpoint().shows("select 1", &["1"]).await
    })
    .await;
    before.start();
    cluster.wait_ready().await;
    cluster.assert_equal_rows().await;
    assert_eq!(
        primary(&cluster).await.number(),
        after,
        "a primary that came back takes nothing over"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_server_is_down_gets_no_reads() {
    let cluster = cluster(3).await;
    let primary = primary(&cluster).await.number();
    let broken = cluster.nodes().iter().find(|node| node.number() != primary).unwrap();
    broken.kill_agent();
    broken.kill_postgres();
    eventually("twenty reads in a row are answered", NOTICED, async || {
        for _ in 0..20 {
            cluster.read_endpoint().shows("select 1", &["1"]).await?;
        }
        Ok(())
    })
    .await;
}

/// What psql shows of RELOAD on the console of the only node.
fn reload(cluster: &Cluster) -> String {
    let server = cluster.write_endpoint();
    let port = server.port.to_string();
    let output = Command::new("psql")
        .args(["-X", "-h", "127.0.0.1", "-p", &port, "-U", &server.user, "synapsedb_admin"])
        .args(["-c", "reload"])
        .env("PGPASSWORD", &server.password)
        .output()
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_file_is_read_again_on_request() {
    let cluster = routed().await;
    let node = cluster.node(1);
    let file = node.folder().join("agent.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        reload(&cluster),
        "RELOAD\nNOTICE:  node 1: nothing that RELOAD can change is otherwise than before\n"
    );
    node.configure("router.resolve_wait_ms", 5_001);
    node.configure("router.workers", 5);
    node.configure("raft.heartbeat_ms", 51);
    assert_eq!(
        reload(&cluster),
        "RELOAD\nNOTICE:  node 1: changed: resolve_wait_ms\n\
         DETAIL:  Changed only when the agent is started anew: router.workers, raft.\n"
    );
    node.configure("router.pool_sizes", 5);
    let said = reload(&cluster);
    for part in ["agent.toml:", "pool_sizes", "Nothing was changed"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    std::fs::write(&file, before).unwrap();
    assert!(reload(&cluster).contains("changed: resolve_wait_ms"), "back");
}
