//! How many clients and server connections there may be, for whom, and for how long.

use futures_util::SinkExt as _;

use super::*;

/// The text of `CREATE ROLE` for a role whose password is the tests'.
fn role(name: &str, options: &str) -> String {
    let verifier = synapsedb_pg::scram::verifier(PASSWORD, [7; 16], 4096);
    format!("create role {name} login {options} password '{verifier}'")
}

async fn try_as(
    running: &Running,
    user: &str,
    database: &str,
    application: &str,
) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(running.port(Endpoint::Write)).user(user).password(PASSWORD);
    config.dbname(database).application_name(application);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn connect_as(running: &Running, user: &str, database: &str) -> Client {
    try_as(running, user, database, "").await.unwrap()
}

/// That one more client is refused, and what it is told.
async fn too_many(running: &Running, user: &str, database: &str) -> String {
    let error = try_as(running, user, database, "").await.err().unwrap();
    assert_eq!(code(&error), Some(&SqlState::TOO_MANY_CONNECTIONS), "{error:?}");
    error.as_db_error().unwrap().message().to_owned()
}

fn idle(status: &api::Status, database: &str) -> usize {
    let pools = status.pools.iter().filter(|pool| pool.database == database);
    pools.map(|pool| pool.idle).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_limits_are_of_clients_over_all_workers() {
    let server = Server::start();
    let running = start(Config { workers: 2, ..config() }, &[server.address()], Some(1));
    let admin = running.connect(Endpoint::Write).await;
    admin.batch_execute(&role("few", "connection limit 3")).await.unwrap();
    admin.batch_execute(&role("free", "")).await.unwrap();
    admin.batch_execute("create database small connection limit 1").await.unwrap();
    for application in ["first", "second"] {
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(try_as(&running, "few", "postgres", application).await.unwrap());
        }
        let refused = too_many(&running, "few", "postgres").await;
        assert_eq!(refused, "too many connections for role \"few\"");
        // All of them work at once, though idle connections of the first three may have taken all that the server
        // gives to the role.
        let work = clients.iter().map(|client| client.batch_execute("select pg_sleep(0.2)"));
        for done in futures_util::future::join_all(work).await {
            done.unwrap();
        }
        drop(clients.pop());
        running.eventually("a place is free", |status| status.clients == 3).await;
        try_as(&running, "few", "postgres", application).await.unwrap();
        drop(clients);
        running.eventually("all have gone", |status| status.clients == 1).await;
    }
    let _one = connect_as(&running, "free", "small").await;
    let refused = too_many(&running, "few", "small").await;
    assert_eq!(refused, "too many connections for database \"small\"");
    // A superuser is bound by neither.
    admin.batch_execute(&format!("alter role {USER} connection limit 0")).await.unwrap();
    connect_as(&running, USER, "postgres").await.batch_execute("select 1").await.unwrap();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_role_does_not_take_all_places() {
    let server = Server::start();
    let config = Config { user_clients_max: 2, workers: 2, ..config() };
    let running = start(config, &[server.address()], Some(1));
    let first = running.connect(Endpoint::Write).await;
    first.batch_execute(&role("other", "")).await.unwrap();
    let _second = running.connect(Endpoint::Read).await;
    let refused = too_many(&running, USER, "template1").await;
    assert_eq!(refused, "too many connections for role \"app\"");
    connect_as(&running, "other", "postgres").await;
    drop(first);
    running.eventually("a place is free", |status| status.clients == 1).await;
    connect_as(&running, USER, "postgres").await.batch_execute("select 1").await.unwrap();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_has_its_least_of_connections_ahead_and_keeps_them() {
    let server = Server::start();
    let config = Config { pool_size_min: 3, server_idle_timeout_ms: 500, workers: 1, ..config() };
    let running = start(config, &[server.address()], Some(1));
    let admin = running.connect(Endpoint::Write).await;
    admin.batch_execute("create database warm").await.unwrap();
    drop(connect_as(&running, USER, "warm").await);
    running.eventually("they are opened", |status| idle(status, "warm") == 3).await;
    // Longer than any idle connection lives without clients.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(idle(&running.handle.status(), "warm"), 3);
    // One that ends is replaced.
    let ended = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where datname = 'warm'";
    admin.batch_execute(ended).await.unwrap();
    let opened_anew = "select count(*) from pg_stat_activity where datname = 'warm'";
    let mut open = 0;
    for _ in 0..100 {
        open = admin.query_one(opened_anew, &[]).await.unwrap().get::<_, i64>(0);
        if open == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(open, 3);
    // They keep nobody from dropping the database by the router, and do not come back.
    admin.batch_execute("drop database warm").await.unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let status = running.handle.status();
    assert_eq!((idle(&status, "warm"), status.totals.connect_failures), (0, 0));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_may_be_otherwise_for_a_role_or_a_database() {
    let server = Server::start();
    let rule = |database: &str, user: &str, mode, size| PoolRule {
        database: database.to_owned(),
        user: user.to_owned(),
        mode,
        size,
    };
    let pools = vec![
        rule("", "batch", Some(PoolMode::Session), None),
        rule("template1", "", None, Some(1)),
    ];
    let running = start(Config { pools, ..config() }, &[server.address()], Some(1));
    let admin = running.connect(Endpoint::Write).await;
    admin.batch_execute(&role("batch", "")).await.unwrap();
    let own = connect_as(&running, "batch", "postgres").await;
    let other = connect_as(&running, "batch", "postgres").await;
    assert_ne!(backend_pid(&own).await, backend_pid(&other).await);
    own.batch_execute("create temp table mine (i int)").await.unwrap();
    own.batch_execute("insert into mine values (1)").await.unwrap();
    let (a, b) = (
        connect_as(&running, USER, "template1").await,
        connect_as(&running, USER, "template1").await,
    );
    assert_eq!(backend_pid(&a).await, backend_pid(&b).await);
    let console = connect_as(&running, USER, "synapsedb_admin").await;
    let mut modes = std::collections::BTreeMap::new();
    for message in console.simple_query("show pools").await.unwrap() {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            modes.insert(
                row.get("user").unwrap().to_owned(),
                row.get("pool_mode").unwrap().to_owned(),
            );
        }
    }
    assert_eq!(modes["batch"], "session");
    assert_eq!(modes[USER], "transaction");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_statement_no_transaction_stays_open() {
    let server = Server::start();
    let config = Config { pool_mode: PoolMode::Statement, pool_size: 1, workers: 1, ..config() };
    let running = start(config, &[server.address()], Some(1));
    let (mut a, b) =
        (running.connect(Endpoint::Write).await, running.connect(Endpoint::Write).await);
    a.batch_execute("create table t (i int); set work_mem = '5MB'").await.unwrap();
    let insert = a.prepare("insert into t values ($1)").await.unwrap();
    a.execute(&insert, &[&1]).await.unwrap();
    let refused = |error: &tokio_postgres::Error| {
        assert_eq!(code(error), Some(&SqlState::FEATURE_NOT_SUPPORTED), "{error:?}");
        let message = error.as_db_error().unwrap().message();
        assert!(message.contains("statement pooling"), "{message}");
    };
    for begin in ["begin", "start transaction", "begin; insert into t values (2)"] {
        refused(&a.batch_execute(begin).await.unwrap_err());
        // The session goes on, nothing is left of it, and the only connection is free for others.
        a.execute(&insert, &[&1]).await.unwrap();
        let count: i64 =
            b.query_one("select count(*) from t where i = 2", &[]).await.unwrap().get(0);
        assert_eq!(count, 0);
    }
    // This driver goes on at the first error, before the transaction is rolled back: what it sends waits for that.
    let error = a.batch_execute("begin; select 1/0").await.unwrap_err();
    assert_eq!(code(&error), Some(&SqlState::DIVISION_BY_ZERO));
    a.execute(&insert, &[&1]).await.unwrap();
    let begin = a.prepare("begin").await.unwrap();
    refused(&a.execute(&begin, &[]).await.unwrap_err());
    refused(&a.transaction().await.err().unwrap());
    // In one request there is no transaction left when it ends.
    a.batch_execute("begin; insert into t values (3); commit").await.unwrap();
    let shown: String = a.query_one("show work_mem", &[]).await.unwrap().get(0);
    assert_eq!(shown, "5MB");
    let shown: String = b.query_one("show work_mem", &[]).await.unwrap().get(0);
    assert_eq!(shown, "4MB");
    // What is sent before the answer to BEGIN does not run in that transaction: it is a statement as any other.
    for value in 4..20 {
        let insert = format!("insert into t values ({value}); insert into t values ({value})");
        let (begun, inserted) = tokio::join!(a.batch_execute("begin"), a.batch_execute(&insert));
        refused(&begun.unwrap_err());
        inserted.unwrap();
        let sql = format!("select count(*) from t where i = {value}");
        let count: i64 = b.query_one(&sql, &[]).await.unwrap().get(0);
        assert_eq!(count, 2);
    }
    // The data of a COPY does not wait for an answer.
    let sink = a.copy_in::<_, bytes::Bytes>("copy t from stdin").await.unwrap();
    let mut sink = std::pin::pin!(sink);
    sink.send(bytes::Bytes::from_static(b"100\n101\n")).await.unwrap();
    assert_eq!(sink.finish().await.unwrap(), 2);
    let (one, two) = tokio::join!(a.query_one("select 1", &[]), a.query_one("select 2", &[]));
    assert_eq!((one.unwrap().get::<_, i32>(0), two.unwrap().get::<_, i32>(0)), (1, 2));
    running.end().await;
}
