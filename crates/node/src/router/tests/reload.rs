//! RELOAD: what the agent's file says now is in force for those who are there and those who come.

use super::console::{console, error_code, field};
use super::*;

async fn reload(running: &Running, admin: &Client, config: &Config) {
    *running.file.lock().unwrap() = Ok(config.clone());
    admin.batch_execute("reload").await.unwrap();
}

async fn setting(admin: &Client, key: &str) -> Option<String> {
    field(admin, "show config", &[key], "value").await
}

/// Server connections of the clients' pool.
fn open(status: &api::Status) -> usize {
    status.pools.iter().map(|pool| pool.active + pool.idle + pool.connecting).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_file_says_now_is_in_force_at_once() {
    let server = Server::start();
    let first = Config { pool_size: 1, workers: 1, query_wait_timeout_ms: 300, ..config() };
    let running = start(first.clone(), &[server.address()], Some(1));
    let admin = console(&running).await;
    let [a, b, c] = [
        running.connect(Endpoint::Write).await,
        running.connect(Endpoint::Write).await,
        running.connect(Endpoint::Write).await,
    ];
    a.batch_execute("begin").await.unwrap();
    assert!(b.batch_execute("select 1").await.is_err(), "there is one connection only");
    let b = running.connect(Endpoint::Write).await;

    // More connections, also for one that waits already.
    let patient = Config { query_wait_timeout_ms: 20_000, ..first };
    reload(&running, &admin, &patient).await;
    let larger = Config { pool_size: 3, ..patient };
    let waiting = b.batch_execute("begin");
    let more = async {
        let waits = |status: &api::Status| status.pools.iter().any(|pool| pool.waiting == 1);
        running.eventually("b waits", waits).await;
        reload(&running, &admin, &larger).await;
    };
    let (begun, ()) = tokio::join!(waiting, more);
    begun.unwrap();
    c.batch_execute("begin").await.unwrap();
    running.eventually("all have one", |status| open(status) == 3).await;

    // Fewer: what is lent is closed when it comes back.
    reload(&running, &admin, &Config { pool_size: 1, ..larger.clone() }).await;
    for client in [&a, &b, &c] {
        client.batch_execute("select 1; commit").await.unwrap();
    }
    running.eventually("one is left", |status| open(status) == 1).await;
    a.batch_execute("select 1").await.unwrap();

    // Nobody is sent away when fewer may come.
    reload(&running, &admin, &Config { clients_max: 2, ..larger.clone() }).await;
    a.batch_execute("select 1").await.unwrap();
    let refused = running.try_connect(Endpoint::Write).await.err().unwrap();
    assert_eq!(error_code(&refused), "53300", "{refused:?}");
    reload(&running, &admin, &larger).await;
    running.connect(Endpoint::Write).await;

    // Who comes now has a connection of its own, and who was there shares as before.
    reload(&running, &admin, &Config { pool_mode: PoolMode::Session, ..larger.clone() }).await;
    let own = running.connect(Endpoint::Write).await;
    let pid = "select pg_backend_pid()";
    let seen: Vec<i32> = [own.query_one(pid, &[]).await, own.query_one(pid, &[]).await]
        .map(|row| row.unwrap().get(0))
        .into();
    assert_eq!(seen[0], seen[1]);
    let pinned = "show clients";
    let messages = admin.simple_query(pinned).await.unwrap();
    let pins = messages.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get("pinned"),
        _ => None,
    });
    assert_eq!(pins.filter(|pin| *pin == "session pooling").count(), 1);
    a.batch_execute("select 1").await.unwrap();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_a_mistake_changes_nothing() {
    let server = Server::start();
    let running = start(Config { pool_size: 4, ..config() }, &[server.address()], Some(1));
    let admin = console(&running).await;
    *running.file.lock().unwrap() = Err("agent.toml:7: pool_size".to_owned());
    let error = admin.batch_execute("reload").await.unwrap_err();
    let said = error.as_db_error().unwrap();
    assert_eq!((said.code().code(), said.message()), ("F0000", "agent.toml:7: pool_size"));
    assert!(said.hint().unwrap().contains("Nothing was changed"), "{said:?}");
    assert_eq!(setting(&admin, "pool_size").await.as_deref(), Some("4"));
    // What cannot be changed stays as it is, and what can does not wait for it.
    reload(&running, &admin, &Config { pool_size: 5, workers: 3, ..config() }).await;
    assert_eq!(setting(&admin, "pool_size").await.as_deref(), Some("5"));
    assert_eq!(setting(&admin, "workers").await.as_deref(), Some("0"));
    let changeable = ["workers", "pool_size"].map(|key| {
        let admin = &admin;
        async move { field(admin, "show config", &[key], "changeable").await }
    });
    let [workers, pool_size] = changeable;
    assert_eq!((workers.await.as_deref(), pool_size.await.as_deref()), (Some("no"), Some("yes")));
    running.end().await;
}
