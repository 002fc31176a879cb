//! An agent beside a server that somebody else runs: what the server lacks is named, and what fits is used.

use synapsedb_dev::client::Server;
use synapsedb_dev::postgres::{Postgres, programs};
use synapsedb_dev::{Cluster, eventually};

use crate::{NOTICED, binary};

const GOOD: &str = "wal_level = logical\ntrack_commit_timestamp = on\nmax_replication_slots = 20\n\
                    max_wal_senders = 20\nmax_worker_processes = 20\nfsync = off";

async fn server(settings: &str) -> Postgres {
    let server =
        Postgres::start("the attached server", &programs(None).unwrap(), settings, "secret")
            .await
            .unwrap();
    server.server().sql("create role synapsedb login password 'synapsedb'").await;
    server.server().sql("create database synapsedb owner synapsedb").await;
    server
}

/// A cluster of one node whose agent is attached to `server` with `password`.
fn attached(server: &Server, password: &str) -> Cluster {
    let cluster = binary().lay_out(1);
    let node = cluster.node(1);
    let url = format!("postgresql://postgres:{password}@127.0.0.1:{}/synapsedb", server.port);
    node.configure("postgres.mode", "attached");
    node.configure("postgres.url", url);
    node.configure("postgres.password_file", "");
    // The members are told where the server really is.
    let file = node.folder().join("agent.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let (planned, real) = (node.server().port, server.port);
    let text = text.replace(&format!("127.0.0.1:{planned}"), &format!("127.0.0.1:{real}"));
    std::fs::write(&file, text).unwrap();
    cluster
}

/// Starts the agent, which may refuse or wait, and waits until its log or its readiness names `words`.
async fn complains(cluster: &Cluster, words: &[&str]) {
    let node = cluster.node(1);
    node.start();
    eventually(&format!("the agent names {words:?}"), NOTICED, async || {
        let ready = node.try_http(synapsedb_dev::HttpPort::Raft, "/ready").await;
        assert!(!matches!(ready, Ok((200, _))), "a server that does not fit is not ready");
        let said = format!("{}{}", node.log(), ready.map_or(String::new(), |(_, text)| text));
        match words.iter().find(|word| !said.contains(**word)) {
            None => Ok(()),
            Some(word) => Err(format!("{word} is not named:\n{said}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logical_wal_is_named() {
    let server = server("wal_level = replica\ntrack_commit_timestamp = off\nfsync = off").await;
    let cluster = attached(server.server(), "secret");
    complains(&cluster, &["wal_level", "replica", "logical", "track_commit_timestamp"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_named_and_not_shown() {
    let server = server(GOOD).await;
    let cluster = attached(server.server(), "not-the-password");
    complains(&cluster, &["password", "postgres"]).await;
    assert!(!cluster.node(1).log().contains("not-the-password"), "the log shows the password");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fits_is_used() {
    let server = server(GOOD).await;
    let cluster = attached(server.server(), "secret");
    let node = cluster.node(1);
    node.start();
    eventually("the attached node is ready", std::time::Duration::from_secs(60), async || {
        node.ready().await
    })
    .await;
    let mut application = server.server().clone();
    (application.user, application.password) = ("synapsedb".to_owned(), "synapsedb".to_owned());
    application.database = "synapsedb".to_owned();
    application
        .sql("create table attached (id serial primary key); insert into attached default values")
        .await;
    assert_eq!(cluster.write_endpoint().value("select count(*) from attached").await, "1");
    node.stop();
    assert_eq!(
        application.value("select count(*) from attached").await,
        "1",
        "the server was stopped"
    );
}
