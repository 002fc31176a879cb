//! Few server connections for many clients, and none of them notices.

use super::*;

/// A router with a single server connection, and so many clients.
async fn crowd<const N: usize>(server: &Server) -> (Running, [Client; N]) {
    let running = start(Config { pool_size: 1, ..config() }, &[server.address()], Some(1));
    let mut clients = Vec::new();
    for _ in 0..N {
        clients.push(running.connect(Endpoint::Write).await);
    }
    let clients = clients.try_into().unwrap_or_else(|_| panic!("so many"));
    (running, clients)
}

async fn value(client: &Client, sql: &str) -> String {
    let rows = client.simple_query(sql).await.unwrap();
    let mut rows = rows.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    rows.next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_take_turns_on_one_connection() {
    let server = Server::start();
    let (running, [a, b]) = crowd(&server).await;
    let pid = backend_pid(&a).await;
    assert_eq!(backend_pid(&b).await, pid);
    a.batch_execute("begin").await.unwrap();
    let waiting = b.batch_execute("select 1");
    let ending = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        a.batch_execute("commit").await.unwrap();
    };
    let (waited, ()) = tokio::join!(waiting, ending);
    waited.unwrap();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_go_with_their_client() {
    let server = Server::start();
    let (running, [a, b]) = crowd(&server).await;
    a.batch_execute("set search_path = pg_catalog, public; set my.tenant = 'a'").await.unwrap();
    a.batch_execute("set default_transaction_read_only = on").await.unwrap();
    assert_eq!(value(&b, "show search_path").await, "\"$user\", public");
    assert_eq!(value(&b, "select current_setting('my.tenant', true)").await, "");
    assert_eq!(value(&b, "show default_transaction_read_only").await, "off");
    assert_eq!(value(&a, "show search_path").await, "pg_catalog, public");
    assert_eq!(value(&a, "show my.tenant").await, "a");
    assert_eq!(value(&a, "show transaction_read_only").await, "on");
    // A setting that was rolled back, or meant for a transaction, is none.
    b.batch_execute("begin; set work_mem = '5MB'; rollback").await.unwrap();
    assert_eq!(value(&b, "show work_mem").await, "4MB");
    b.batch_execute("set work_mem = '6MB'").await.unwrap();
    assert_eq!(value(&a, "show work_mem").await, "4MB");
    assert_eq!(value(&b, "show work_mem").await, "6MB");
    a.batch_execute("reset all").await.unwrap();
    assert_eq!(value(&a, "show search_path").await, "\"$user\", public");
    assert_eq!(value(&b, "show work_mem").await, "6MB");
    // A role goes with its client, too.
    a.batch_execute("create role reader; set role reader").await.unwrap();
    assert_eq!(value(&b, "select current_user").await, USER);
    assert_eq!(value(&a, "select current_user").await, "reader");
    a.batch_execute("reset role").await.unwrap();
    assert_eq!(value(&a, "select current_user").await, USER);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_outlive_transactions() {
    let server = Server::start();
    let (running, [a, b]) = crowd(&server).await;
    a.batch_execute("create table t (i int); insert into t values (1)").await.unwrap();
    let statement = a.prepare("select i from t where i = $1").await.unwrap();
    let same = b.prepare("select i from t where i = $1").await.unwrap();
    let other = b.prepare("select 2 + $1::int").await.unwrap();
    for _ in 0..3 {
        assert_eq!(a.query_one(&statement, &[&1]).await.unwrap().get::<_, i32>(0), 1);
        assert_eq!(b.query_one(&other, &[&1]).await.unwrap().get::<_, i32>(0), 3);
        assert!(b.query_opt(&same, &[&2]).await.unwrap().is_none());
    }
    assert_eq!(value(&a, "select count(*) from pg_prepared_statements").await, "2");
    // A server connection that breaks takes nothing with it.
    server::kill_softly(&server, backend_pid(&a).await).await;
    assert_eq!(a.query_one(&statement, &[&1]).await.unwrap().get::<_, i32>(0), 1);
    assert!(b.query_opt(&same, &[&2]).await.unwrap().is_none());
    // A plan that no longer fits is an error until the statement is prepared again, as without a router.
    let all = a.prepare("select * from t").await.unwrap();
    a.query(&all, &[]).await.unwrap();
    b.batch_execute("alter table t add j int").await.unwrap();
    let stale = a.query(&all, &[]).await.unwrap_err();
    assert_eq!(code(&stale), Some(&SqlState::FEATURE_NOT_SUPPORTED), "{stale:?}");
    let all = a.prepare("select * from t").await.unwrap();
    assert_eq!(a.query(&all, &[]).await.unwrap()[0].len(), 2);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_move_keeps_its_connection() {
    let server = Server::start();
    let (running, [a, b]) = crowd(&server).await;
    for (hold, release) in [
        ("create temp table mine (i int)", "drop table mine"),
        ("select pg_advisory_lock(7)", "select pg_advisory_unlock(7)"),
        ("begin; declare c cursor with hold for select 1; commit", "close c"),
        ("prepare p as select 1", "deallocate p"),
        ("listen news", "unlisten *"),
        ("create temp table mine (i int)", "discard all"),
    ] {
        a.batch_execute(hold).await.unwrap();
        let waiting = b.batch_execute("select 1");
        let releasing = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            a.batch_execute(release).await.unwrap();
        };
        let begun = Instant::now();
        let (waited, ()) = tokio::join!(waiting, releasing);
        waited.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(100), "{hold}");
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_and_errors_in_them_keep_their_order() {
    let server = Server::start();
    let (running, [a, b]) = crowd(&server).await;
    let good = a.prepare("select $1::int").await.unwrap();
    let bad = a.prepare("select 1 / $1::int").await.unwrap();
    b.batch_execute("discard all").await.unwrap();
    for _ in 0..20 {
        let (one, two, three, four) = tokio::join!(
            a.query_one(&good, &[&1]),
            a.query_one(&bad, &[&0]),
            a.query_one(&good, &[&3]),
            b.query_one("select 4", &[]),
        );
        assert_eq!(one.unwrap().get::<_, i32>(0), 1);
        assert_eq!(code(&two.unwrap_err()), Some(&SqlState::DIVISION_BY_ZERO));
        assert_eq!(three.unwrap().get::<_, i32>(0), 3);
        assert_eq!(four.unwrap().get::<_, i32>(0), 4);
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_long_a_wait_is_an_error_and_the_session_goes_on() {
    let server = Server::start();
    let config = Config { pool_size: 1, query_wait_timeout_ms: 100, ..config() };
    let running = start(config, &[server.address()], Some(1));
    let a = running.connect(Endpoint::Write).await;
    let b = running.connect(Endpoint::Write).await;
    a.batch_execute("begin").await.unwrap();
    let error = b.query("select 1", &[]).await.unwrap_err();
    assert_eq!(code(&error), Some(&SqlState::TOO_MANY_CONNECTIONS), "{error:?}");
    let error = b.batch_execute("select 1").await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("query_wait_timeout"), "{error:?}");
    a.batch_execute("commit").await.unwrap();
    b.batch_execute("select 1").await.unwrap();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_its_own_is_the_servers() {
    let server = Server::start();
    let config = Config { pool_mode: PoolMode::Session, ..config() };
    let running = start(config, &[server.address()], Some(1));
    let client = running.connect(Endpoint::Write).await;
    client.batch_execute("create temp table mine (i int)").await.unwrap();
    client.batch_execute("insert into mine values (1)").await.unwrap();
    assert_eq!(value(&client, "select count(*) from mine").await, "1");
    let cancel = client.cancel_token();
    let cancelling = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel.cancel_query(NoTls).await.unwrap();
    };
    let (slept, ()) = tokio::join!(client.batch_execute("select pg_sleep(60)"), cancelling);
    assert_eq!(code(&slept.unwrap_err()), Some(&SqlState::QUERY_CANCELED));
    running.end().await;
}
