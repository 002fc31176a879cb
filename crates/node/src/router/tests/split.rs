//! The split endpoint: what goes to the reader (node 1) and what to the primary (node 2), each a server of its own that
//! knows nothing of the other, so that a row shows where it was written.

use futures_util::future::join_all;
use tokio_postgres::SimpleQueryMessage;

use super::*;

const TABLES: &str = "\
    create table t (a int); create sequence s; \
    create function hidden(a int, b int) returns int language plpgsql volatile as \
        'begin insert into t values (a); return a + b; end'; \
    create operator |+| (function = hidden, leftarg = int, rightarg = int); \
    create function plain() returns int language sql immutable as 'select inet_server_port()'; \
    create view watched as select hidden(1, 1) as a";

/// Two servers with the same tables, and a router whose reads go to the first and whose writes to the second.
async fn pair(config: Config) -> ([Server; 2], Running) {
    let servers = [Server::start(), Server::start()];
    for server in &servers {
        let extra = format!("dbname=postgres password='{PASSWORD}'");
        assert!(server::psql_with(server.port, &extra, TABLES).status.success());
    }
    let addresses = servers.each_ref().map(Server::address);
    let config = Config { consistency: Consistency::Eventual, ..config };
    let running = start(config, &addresses, Some(2));
    // The primary may be read from as well, were it not so far behind.
    let mut view = view(&[Seen::Ready, Seen::Ready]);
    let lagging = view.members.get_mut(&node(2)).and_then(|member| member.facts.as_mut());
    lagging.unwrap().lag_ms = 20_000;
    running.view.send_replace(Arc::new(view));
    let client = running.connect(Endpoint::Split).await;
    within("the lag is seen", Duration::from_secs(5), async {
        while !value(&client, "show synapsedb.last_route").await.contains("node 2 is 20000 ms") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(client);
    (servers, running)
}

async fn value(client: &Client, sql: &str) -> String {
    let rows = client.simple_query(sql).await.unwrap();
    let rows = rows.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    rows.last().unwrap_or_default().to_owned()
}

async fn refused(client: &Client, sql: &str) -> (String, String) {
    let error = client.simple_query(sql).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    (error.code().code().to_owned(), error.message().to_owned())
}

/// How many rows a server has.
fn count(server: &Server) -> String {
    let extra = format!("dbname=postgres password='{PASSWORD}'");
    let counted = server::psql_with(server.port, &extra, "select count(*) from t");
    String::from_utf8(counted.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_statement_goes_where_it_belongs() {
    let (servers, running) = pair(config()).await;
    let [reader, primary] = servers.each_ref().map(|server| server.port.to_string());
    let client = running.connect(Endpoint::Split).await;
    let port = "select inet_server_port()";
    let route = async || value(&client, "show synapsedb.last_route").await;
    for (sql, at, why) in [
        (port, &reader, "node 1: read: the words only read"),
        ("select plain(), inet_server_port()", &reader, "node 1: read: the words only read"),
        (
            "with x as (insert into t values (1)) select inet_server_port()",
            &primary,
            "node 2: write: its words write, lock rows or are of the session",
        ),
        ("select nextval('s'), inet_server_port()", &primary, "node 2: write: calls nextval()"),
        ("select hidden(1, 1), inet_server_port()", &primary, "node 2: write: calls hidden()"),
        (
            "select a, inet_server_port() from watched",
            &primary,
            "node 2: write: names watched, which may write",
        ),
        (
            "select a, inet_server_port() from t for update",
            &primary,
            "node 2: write: its words write, lock rows or are of the session",
        ),
        (
            "select 1; insert into t values (1); select inet_server_port()",
            &primary,
            "node 2: write",
        ),
        ("/* synapsedb.route=write */ select inet_server_port()", &primary, "node 2: write"),
        ("/* synapsedb.route=node 2 */ select inet_server_port()", &primary, "node 2: read"),
        ("/* synapsedb.route = read */ select inet_server_port()", &reader, "node 1: read"),
        ("show default_transaction_read_only", &"off".to_owned(), "node 2: write: it is about"),
    ] {
        let rows = client.simple_query(sql).await.unwrap();
        let rows = rows.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(row.len() - 1),
            _ => None,
        });
        assert_eq!(rows.last(), Some(at.as_str()), "{sql}");
        assert!(route().await.starts_with(why), "{sql}: {}", route().await);
    }
    assert_eq!(count(&servers[0]), "0", "nothing was ever written on the reader");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_goes_by_its_first_statement_and_a_session_as_it_says() {
    let (servers, running) = pair(config()).await;
    let [reader, primary] = servers.each_ref().map(|server| server.port.to_string());
    let client = running.connect(Endpoint::Split).await;
    let port = "select inet_server_port()";
    let route = async || value(&client, "show synapsedb.last_route").await;
    for (begin, at) in [
        ("begin", &primary),
        ("begin read only", &reader),
        ("start transaction isolation level repeatable read, read only", &reader),
        ("begin read write", &primary),
        ("/* synapsedb.route=read */ begin", &reader),
    ] {
        client.batch_execute(begin).await.unwrap();
        assert_eq!(&value(&client, port).await, at, "{begin}");
        client.batch_execute("commit").await.unwrap();
    }
    client.batch_execute("set default_transaction_read_only = on").await.unwrap();
    client.batch_execute("begin").await.unwrap();
    assert_eq!(value(&client, port).await, reader);
    client.batch_execute("commit").await.unwrap();
    assert_eq!(value(&client, "show default_transaction_read_only").await, "on");
    let (code, _) = refused(&client, "insert into t values (1)").await;
    assert_eq!(code, "25006");
    client.batch_execute("reset default_transaction_read_only").await.unwrap();
    client.batch_execute("insert into t values (1)").await.unwrap();
    // What the session wants of its statements.
    client.batch_execute("set synapsedb.route = 'primary'").await.unwrap();
    assert_eq!(value(&client, port).await, primary);
    assert_eq!(value(&client, "show synapsedb.route").await, "write");
    client.batch_execute("set synapsedb.route to 'node 1'").await.unwrap();
    assert_eq!(value(&client, port).await, reader);
    let (code, _) = refused(&client, "insert into t values (1)").await;
    assert_eq!(code, "25006", "a write on a reader is refused by the server");
    client.batch_execute("reset synapsedb.route").await.unwrap();
    assert_eq!(value(&client, "show synapsedb.route").await, "split");
    for wrong in ["set synapsedb.route = fast", "/* synapsedb.route=fast */ select 1"] {
        let (code, message) = refused(&client, wrong).await;
        assert!(code == "22023" && message.contains("read, write, primary"), "{code} {message}");
    }
    assert_eq!(value(&client, port).await, reader, "the session goes on");
    // Settings go with the session.
    client.batch_execute("set my.x = 'y'; set timezone = 'Europe/Rome'").await.unwrap();
    let both = "select current_setting('my.x') || current_setting('TimeZone')";
    assert_eq!(value(&client, both).await, "yEurope/Rome");
    assert!(route().await.starts_with("node 1: read"));
    assert_eq!(count(&servers[0]), "0", "nothing was ever written on the reader");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_in_the_session_is_at_the_primary() {
    let (servers, running) = pair(config()).await;
    let [reader, primary] = servers.each_ref().map(|server| server.port.to_string());
    let client = running.connect(Endpoint::Split).await;
    let port = "select inet_server_port()";
    for (holds, releases) in [
        ("create temp table mine (a int)", "drop table mine"),
        ("select pg_advisory_lock(1)", "select pg_advisory_unlock(1)"),
        ("prepare p as select 1", "deallocate p"),
        ("begin; declare c cursor with hold for select 1; commit", "close c"),
    ] {
        assert_eq!(value(&client, port).await, reader, "{holds}");
        client.batch_execute(holds).await.unwrap();
        assert_eq!(value(&client, port).await, primary, "{holds}");
        let route = value(&client, "show synapsedb.last_route").await;
        assert!(route.starts_with("node 2: the session keeps its connection"), "{route}");
        client.batch_execute(releases).await.unwrap();
    }
    // A listener of the router's own hears for it at the primary.
    client.batch_execute("listen x").await.unwrap();
    let route = value(&client, "show synapsedb.last_route").await;
    assert!(route.starts_with("node 2: write: its words write"), "{route}");
    assert_eq!(value(&client, port).await, reader);
    client.batch_execute("unlisten x").await.unwrap();
    // In a transaction on the reader there is no way to it, and none to write.
    for sql in [
        "select pg_advisory_lock(1)",
        "listen x",
        "prepare p as select 1",
        "set transaction read write",
        "set local transaction_read_only = off",
        "begin read write",
        "select set_config('transaction_read_only', 'off', true)",
        "do 'begin perform 1; end'",
    ] {
        client.batch_execute("begin read only").await.unwrap();
        let (code, message) = refused(&client, sql).await;
        assert!(code == "0A000" && message.contains("split endpoint"), "{sql}: {code} {message}");
        client.batch_execute("rollback").await.unwrap();
        client.batch_execute("begin read only").await.unwrap();
        let error = client.query(sql, &[]).await.unwrap_err();
        assert_eq!(code_of(&error), "0A000", "{sql}");
        client.batch_execute("rollback").await.unwrap();
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guard_of_a_reader_is_not_left_behind() {
    let (servers, running) = pair(config()).await;
    let client = running.connect(Endpoint::Split).await;
    client.batch_execute("begin read only").await.unwrap();
    assert_eq!(value(&client, "show transaction_read_only").await, "on");
    let (code, _) = refused(&client, "insert into t values (1)").await;
    assert_eq!(code, "25006");
    client.batch_execute("rollback").await.unwrap();
    // What follows a COMMIT in the same request is no transaction of its own that may write.
    client.batch_execute("begin read only").await.unwrap();
    let (code, _) = refused(&client, "commit; insert into t values (1)").await;
    assert_eq!(code, "25006");
    // A setting from within it goes with the session, and the guard does not.
    client.batch_execute("begin read only").await.unwrap();
    client.batch_execute("set work_mem = '5MB'").await.unwrap();
    client.batch_execute("commit").await.unwrap();
    client.batch_execute("insert into t values (1)").await.unwrap();
    assert_eq!(value(&client, "show work_mem").await, "5MB");
    client.batch_execute("begin read only; commit").await.unwrap();
    client.batch_execute("begin read only").await.unwrap();
    client.batch_execute("reset all").await.unwrap();
    client.batch_execute("commit").await.unwrap();
    for _ in 0..3 {
        assert_eq!(value(&client, "select 1 |+| 2").await, "3");
    }
    assert_eq!((count(&servers[0]), count(&servers[1])), ("0".to_owned(), "4".to_owned()));
    // Connections that were guarded serve the other endpoints as all do.
    for endpoint in [Endpoint::Read, Endpoint::Write] {
        let other = running.connect(endpoint).await;
        for _ in 0..4 {
            assert_eq!(value(&other, "show transaction_read_only").await, "off");
        }
    }
    running.end().await;
}

fn code_of(error: &tokio_postgres::Error) -> String {
    code(error).map(|code| code.code().to_owned()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_write_is_run_again_on_the_primary() {
    let (servers, running) = pair(config()).await;
    let client = running.connect(Endpoint::Split).await;
    let misjudged = || {
        let text = running.metrics();
        let line = text.lines().find(|line| line.starts_with("synapsedb_router_misjudged_total"));
        line.unwrap().rsplit_once(' ').unwrap().1.parse::<u32>().unwrap()
    };
    // By a Query.
    assert_eq!(value(&client, "select 40 |+| 2").await, "42");
    assert_eq!((count(&servers[0]), count(&servers[1]), misjudged()), ("0".into(), "1".into(), 1));
    let route = value(&client, "show synapsedb.last_route").await;
    assert!(route.starts_with("node 2: write: it wanted to write"), "{route}");
    assert_eq!(value(&client, "select 40 |+| 2").await, "42");
    assert_eq!((count(&servers[1]), misjudged()), ("2".into(), 1), "it is remembered");
    // Prepared, by name and without one; the second time at once.
    for round in 1..3 {
        let sum = client.prepare("select $1::int |+| $2::int").await.unwrap();
        for _ in 0..2 {
            let row = client.query_one(&sum, &[&1, &2]).await.unwrap();
            assert_eq!(row.get::<_, i32>(0), 3, "{round}");
        }
    }
    assert_eq!((count(&servers[1]), misjudged()), ("6".into(), 2));
    let typed =
        [(&7_i32 as &(dyn tokio_postgres::types::ToSql + Sync), tokio_postgres::types::Type::INT4)];
    let rows = client.query_typed("select $1 |+| 1", &typed).await.unwrap();
    assert_eq!(rows[0].get::<_, i32>(0), 8);
    assert_eq!((count(&servers[0]), count(&servers[1]), misjudged()), ("0".into(), "7".into(), 3));
    // Several statements in one Query: none of their answers comes twice.
    let rows = client.simple_query("select 1; select 2 |+| 2; select 3").await.unwrap();
    let rows: Vec<_> = rows
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        })
        .collect();
    assert_eq!(rows, ["1", "4", "3"]);
    assert_eq!((count(&servers[0]), count(&servers[1])), ("0".into(), "8".into()));
    // When something was passed on already, the error is the client's, and the text is known from then on.
    let large = "select repeat('x', 100), case when i < 50000 then 0 else 1 |+| 1 end from generate_series(1, 50000) i";
    let (code, _) = refused(&client, large).await;
    assert_eq!((code.as_str(), count(&servers[1])), ("25006", "8".into()));
    client.simple_query(large).await.unwrap();
    assert_eq!((count(&servers[0]), count(&servers[1])), ("0".into(), "9".into()));
    // In a transaction that the client has called read only, the server's error is the answer.
    client.batch_execute("begin read only").await.unwrap();
    assert_eq!(refused(&client, "select 5 |+| 5").await.0, "25006");
    client.batch_execute("rollback").await.unwrap();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_told_apart() {
    let (servers, running) = pair(config()).await;
    let client = running.connect(Endpoint::Split).await;
    let texts = [
        "select inet_server_port()",
        "select 1 |+| 1",
        "insert into t values (1)",
        "select inet_server_port()",
        "begin read only",
        "select inet_server_port()",
        "commit",
        "insert into t values (2)",
        "select 2 |+| 2",
    ];
    for round in 1..20 {
        let answers = join_all(texts.iter().map(|text| client.simple_query(text))).await;
        for (text, answer) in texts.iter().zip(answers) {
            assert!(answer.is_ok(), "{round} {text}: {answer:?}");
        }
        assert_eq!((count(&servers[0]), count(&servers[1])), ("0".into(), (round * 4).to_string()));
    }
    let insert = client.prepare("insert into t values ($1)").await.unwrap();
    let select = client.prepare("select count(*) from t where a >= $1").await.unwrap();
    let inserts = async || {
        join_all((0..10).map(|_| client.execute(&insert, &[&100])))
            .await
            .into_iter()
            .all(|n| n.is_ok())
    };
    let selects = async || {
        join_all((0..10).map(|_| client.query_one(&select, &[&0])))
            .await
            .into_iter()
            .all(|row| row.is_ok())
    };
    assert_eq!(tokio::join!(selects(), inserts(), selects()), (true, true, true));
    assert_eq!((count(&servers[0]), count(&servers[1])), ("0".into(), "86".into()));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_is_made_anew_is_noticed() {
    let (servers, running) = pair(Config { split_names_max_age_ms: 3_600_000, ..config() }).await;
    let [reader, primary] = servers.each_ref().map(|server| server.port.to_string());
    let client = running.connect(Endpoint::Split).await;
    let other = running.connect(Endpoint::Split).await;
    let prepared = other.prepare("select plain()::text").await.unwrap();
    let by_name = async || other.query_one(&prepared, &[]).await.unwrap().get::<_, String>(0);
    assert_eq!(value(&client, "select plain()").await, reader);
    assert_eq!(by_name().await, reader);
    let anew = "create or replace function plain() returns int language sql volatile as 'select inet_server_port()'";
    client.execute(anew, &[]).await.unwrap();
    assert_eq!(value(&client, "select plain()").await, primary);
    assert_eq!(value(&other, "select plain()").await, primary);
    assert_eq!(by_name().await, primary);
    // Also by another endpoint, and in a transaction.
    let write = running.connect(Endpoint::Write).await;
    write.batch_execute("begin; alter function plain() stable; commit").await.unwrap();
    assert_eq!(value(&client, "select plain()").await, reader);
    assert_eq!(by_name().await, reader);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_without_a_primary() {
    let (servers, running) = pair(config()).await;
    let client = running.connect(Endpoint::Split).await;
    assert_eq!(server_port(&client).await, servers[0].port);
    running.appoint(None);
    within("reads go on", Duration::from_secs(5), async {
        for _ in 0..20 {
            assert_eq!(server_port(&client).await, servers[0].port);
        }
    })
    .await;
    let (code, message) = refused(&client, "insert into t values (1)").await;
    assert!(code == "57P03" && message.contains("no primary"), "{code} {message}");
    assert_eq!(server_port(&client).await, servers[0].port);
    running.appoint(Some(2));
    client.batch_execute("insert into t values (1)").await.unwrap();
    // The rows of statistics and metrics.
    let text = running.metrics();
    for line in [
        "synapsedb_router_clients{endpoint=\"split\",state=\"idle\"}",
        "synapsedb_router_sessions_opened_total{endpoint=\"split\"} 2",
        "synapsedb_router_wait_duration_seconds_count{endpoint=\"split\"}",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    running.eventually("the endpoint is shown", |status| status.endpoints.len() == 3).await;
    assert_eq!(running.handle.status().totals.split_sessions, 2);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_endpoints_follow_the_session() {
    let (servers, running) = pair(config()).await;
    let read = running.connect(Endpoint::Read).await;
    assert_eq!(server_port(&read).await, servers[0].port);
    read.batch_execute("set synapsedb.route = 'node 2'").await.unwrap();
    assert_eq!(server_port(&read).await, servers[1].port);
    read.batch_execute("set synapsedb.route = 'node 1'").await.unwrap();
    assert_eq!(server_port(&read).await, servers[0].port);
    read.batch_execute("set synapsedb.route = write").await.unwrap();
    assert_eq!(server_port(&read).await, servers[1].port);
    read.batch_execute("insert into t values (1)").await.unwrap();
    read.batch_execute("reset synapsedb.route").await.unwrap();
    assert_eq!(server_port(&read).await, servers[0].port);
    let write = running.connect(Endpoint::Write).await;
    write.batch_execute("set synapsedb.route = 'primary'").await.unwrap();
    let (code, message) = refused(&write, "set synapsedb.route = read").await;
    assert!(code == "22023" && message.contains("write endpoint"), "{code} {message}");
    assert_eq!(server_port(&write).await, servers[1].port);
    running.end().await;
}
