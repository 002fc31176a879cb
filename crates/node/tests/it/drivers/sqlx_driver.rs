//! What users of sqlx do: a pool of more connections than the router has server connections, each with a cache of
//! prepared statements.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolCopyExt as _, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, Error, PgConnection, Row as _};
use synapsedb_dev::client::Server;

use crate::routed::{Way, database, routed};

/// Connections of a test's sqlx pool: four for each server connection of the router's pool.
const CONNECTIONS: u32 = 8;
/// Prepared statements that a connection keeps: fewer than the test has, so that some are closed and prepared again.
const STATEMENTS: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn sqlx() {
    let cluster = routed().await;
    let mut changed = Vec::new();
    for way in [Way::Direct, Way::Read, Way::Write, Way::Split] {
        let name = format!("sqlx_{way:?}").to_lowercase();
        let server = database(&cluster, &name, way).await;
        let pool = pool(&server).await;
        prepared(&pool).await;
        transactions(&pool).await;
        copied(&pool).await;
        dropped(&pool).await;
        notified(&pool).await;
        unique(&pool).await;
        changed.push(schema_changed(&pool).await);
        pool.close().await;
    }
    // sqlx keeps a statement whose result has changed, so its user sees what PostgreSQL says of it.
    assert!(changed[0].contains(&"0A000".to_owned()), "{:?}", changed[0]);
    for endpoint in &changed[1..] {
        assert_eq!(endpoint, &changed[0], "an endpoint and a direct connection differ");
    }
}

async fn pool(server: &Server) -> PgPool {
    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(server.port)
        .username(&server.user)
        .password(&server.password)
        .database(&server.database)
        .statement_cache_capacity(STATEMENTS);
    let pool = PgPoolOptions::new()
        .min_connections(CONNECTIONS)
        .max_connections(CONNECTIONS)
        .acquire_timeout(Duration::from_secs(30));
    pool.connect_with(options).await.unwrap()
}

/// All connections at once, with more statements than fit in a connection's cache.
async fn prepared(pool: &PgPool) {
    let workers = (0..CONNECTIONS).map(async |_| {
        let mut connection = pool.acquire().await.unwrap();
        for n in 0..60 {
            // Each statement is asked twice: prepared, then by its name.
            let more = n / 2 % 6;
            let sql = AssertSqlSafe(format!("select $1 + {more} from items where id = $2"));
            let query = sqlx::query_scalar::<_, i32>(sql).bind(n).bind(1);
            assert_eq!(query.fetch_one(&mut *connection).await.unwrap(), n + more);
            assert!(connection.cached_statements_size() <= STATEMENTS);
        }
    });
    futures_util::future::join_all(workers).await;
}

/// Committed, rolled back, rolled back by dropping, and rolled back to a savepoint.
async fn transactions(pool: &PgPool) {
    let insert = "insert into items values ($1, 'sqlx')";
    let mut transaction = pool.begin().await.unwrap();
    sqlx::query(insert).bind(10).execute(&mut *transaction).await.unwrap();
    let mut inner = transaction.begin().await.unwrap();
    sqlx::query(insert).bind(11).execute(&mut *inner).await.unwrap();
    inner.rollback().await.unwrap();
    transaction.commit().await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    sqlx::query(insert).bind(12).execute(&mut *transaction).await.unwrap();
    transaction.rollback().await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    sqlx::query(insert).bind(13).execute(&mut *transaction).await.unwrap();
    drop(transaction);
    let all = sqlx::query_scalar::<_, i32>("select id from items where v = $1 order by id");
    assert_eq!(all.bind("sqlx").fetch_all(pool).await.unwrap(), [10]);
}

async fn copied(pool: &PgPool) {
    sqlx::query("create table copied (id int, v text)").execute(pool).await.unwrap();
    let text: String = (0..10_000).map(|n| format!("{n}\trow {n}\n")).collect();
    let mut copy = pool.copy_in_raw("copy copied from stdin").await.unwrap();
    for block in text.as_bytes().chunks(1000) {
        copy.send(block).await.unwrap();
    }
    assert_eq!(copy.finish().await.unwrap(), 10_000);
    let mut copy = pool.copy_in_raw("copy copied from stdin").await.unwrap();
    copy.send("1\tnot kept\n".as_bytes()).await.unwrap();
    copy.abort("the user thinks again").await.unwrap();
    let out = pool.copy_out_raw("copy copied to stdout").await.unwrap();
    let blocks: Vec<_> = out.try_collect().await.unwrap();
    assert_eq!(blocks.concat(), text.as_bytes());
}

/// Queries on all connections are given up in their middle, one of them in a transaction.
async fn dropped(pool: &PgPool) {
    let given_up = Duration::from_millis(100);
    let workers = (0..CONNECTIONS).map(async |n| {
        let mut transaction = pool.begin().await.unwrap();
        let sleep = sqlx::query("select generate_series(1, 1000) from pg_sleep($1)").bind(0.2);
        if n > 0 {
            // More open transactions than server connections would wait for each other.
            transaction.rollback().await.unwrap();
            let sleep = sleep.execute(pool);
            return assert!(tokio::time::timeout(given_up, sleep).await.is_err());
        }
        sqlx::query("insert into items values (20, 'lost')")
            .execute(&mut *transaction)
            .await
            .unwrap();
        let sleep = sleep.execute(&mut *transaction);
        assert!(tokio::time::timeout(given_up, sleep).await.is_err());
    });
    futures_util::future::join_all(workers).await;
    prepared(pool).await;
    let lost = sqlx::query_scalar::<_, i64>("select count(*) from items where id = $1").bind(20);
    assert_eq!(lost.fetch_one(pool).await.unwrap(), 0);
}

async fn notified(pool: &PgPool) {
    let mut listener = PgListener::connect_with(pool).await.unwrap();
    listener.listen_all(["sqlx", "sqlx more"]).await.unwrap();
    for (channel, payload) in [("sqlx", "hello"), ("sqlx more", "again")] {
        let notify = sqlx::query("select pg_notify($1, $2)").bind(channel).bind(payload);
        notify.execute(pool).await.unwrap();
        let heard = tokio::time::timeout(Duration::from_secs(20), listener.recv()).await;
        let heard = heard.unwrap().unwrap();
        assert_eq!((heard.channel(), heard.payload()), (channel, payload));
    }
    listener.unlisten("sqlx").await.unwrap();
}

async fn unique(pool: &PgPool) {
    let insert = sqlx::query("insert into items values ($1, 'twice')").bind(1);
    let error = insert.execute(pool).await.unwrap_err();
    let error = error.as_database_error().unwrap();
    assert!(error.is_unique_violation(), "{error}");
    assert_eq!(error.code().unwrap(), "23505");
    assert_eq!((error.table(), error.constraint()), (Some("items"), Some("items_pkey")));
}

/// What each of all connections is told by statements in its cache before and after a change of their table.
async fn schema_changed(pool: &PgPool) -> Vec<String> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(pool.acquire().await.unwrap());
    }
    let mut told = Vec::new();
    for change in
        ["", "alter table items add column w int", "alter table items alter v type varchar(9)"]
    {
        if !change.is_empty() {
            sqlx::raw_sql(change).execute(&mut *connections[0]).await.unwrap();
        }
        for connection in &mut connections {
            told.extend(answers(connection).await);
            // What helps a user of sqlx: prepare all again.
            connection.clear_cached_statements().await.unwrap();
            told.extend(answers(connection).await);
        }
    }
    told
}

async fn answers(connection: &mut PgConnection) -> Vec<String> {
    let mut told = Vec::new();
    for statement in ["select * from items where id = $1", "select v from items where id = $1"] {
        let answer = sqlx::query(statement).bind(1).fetch_one(&mut *connection).await;
        told.push(answer.map_or_else(code, |row| format!("{} columns", row.len())));
    }
    told
}

fn code(error: Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code().map(String::from));
    code.unwrap_or_else(|| error.to_string())
}
