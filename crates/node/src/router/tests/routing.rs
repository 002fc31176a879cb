//! Where sessions go, what passes through, and how they end.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn sessions_go_where_they_should_and_authenticate_with_the_server() {
    let servers = [Server::start(), Server::start()];
    let addresses = servers.each_ref().map(Server::address);
    let running = start(config(), &addresses, Some(2));

    let write = running.connect(Endpoint::Write).await;
    assert_eq!(server_port(&write).await, servers[1].port);
    // The first reader goes to the own node, the next one to a node with fewer, and both stay there.
    let reads = [running.connect(Endpoint::Read).await, running.connect(Endpoint::Read).await];
    assert_eq!(server_port(&reads[0]).await, servers[0].port);
    reads[0].batch_execute("begin").await.unwrap();
    assert_eq!(server_port(&reads[0]).await, servers[0].port);
    assert_eq!(server_port(&reads[1]).await, servers[1].port);
    reads[0].batch_execute("commit").await.unwrap();
    assert_eq!(server_port(&reads[1]).await, servers[1].port);
    // Whoever does not care which node it is gets the one with the least to do, and the own one on a tie.
    reads[1].batch_execute("set synapsedb.consistency = eventual").await.unwrap();
    assert_eq!(server_port(&reads[1]).await, servers[0].port);
    let clients = |status: &api::Status| status.endpoints.iter().map(|e| e.clients).sum::<usize>();
    running.eventually("three clients are shown", |status| clients(status) == 3).await;
    let status = running.handle.status();
    assert_eq!((status.clients, status.primary), (3, Some(2)));
    let shown = "synapsedb_router_clients{endpoint=\"write\",state=\"idle\"} 1";
    assert!(running.metrics().contains(shown), "{}", running.metrics());

    let right = format!("password='{PASSWORD}'");
    assert_eq!(running.psql(Endpoint::Read, &right, "select 6*7").await, (true, "42".to_owned()));
    let (done, said) = running.psql(Endpoint::Write, "password=wrong", "select 1").await;
    assert!(!done && said.contains("password authentication failed"), "{said}");
    let mut wrong = tokio_postgres::Config::new();
    wrong.host("127.0.0.1").port(running.port(Endpoint::Write)).user(USER).password("wrong");
    let refused = wrong.connect(NoTls).await.err().unwrap();
    assert_eq!(code(&refused), Some(&SqlState::INVALID_PASSWORD));
    let (done, said) =
        running.psql(Endpoint::Read, &format!("{right} sslmode=disable"), "select 1").await;
    assert_eq!((done, said.as_str()), (true, "1"));
    let (done, said) =
        running.psql(Endpoint::Read, &format!("{right} sslmode=require"), "\\conninfo").await;
    assert!(done && said.contains("TLSv1.3"), "{said}");
    let (done, said) = running
        .psql(Endpoint::Read, &format!("{right} sslmode=require"), "select repeat('x', 300000)")
        .await;
    assert!(done && said.len() == 300_000, "{}", said.len());

    drop((write, reads));
    running
        .eventually("all sessions are gone", |status| {
            status.endpoints.iter().all(|endpoint| endpoint.clients == 0) && status.clients == 0
        })
        .await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_copy_and_cancel_pass_through() {
    let servers = [Server::start(), Server::start()];
    let addresses = servers.each_ref().map(Server::address);
    let running = start(config(), &addresses, Some(1));
    let client = running.connect(Endpoint::Write).await;

    client.batch_execute("create table items (id int primary key, body text)").await.unwrap();
    let sink = client.copy_in::<_, bytes::Bytes>("copy items from stdin").await.unwrap();
    let lines: String = (0..20_000).map(|id| format!("{id}\t{}\n", "y".repeat(100))).collect();
    let mut sink = std::pin::pin!(sink);
    use futures_util::SinkExt as _;
    sink.send(bytes::Bytes::from(lines)).await.unwrap();
    assert_eq!(sink.as_mut().finish().await.unwrap(), 20_000);
    let rows = client.query("select id, body from items order by id", &[]).await.unwrap();
    assert_eq!(rows.len(), 20_000);
    assert_eq!(rows[19_999].get::<_, i32>(0), 19_999);

    // The cancel request is a connection of its own and carries no name of a node; it finds its server.
    let cancel = client.cancel_token();
    let sleeping = client.batch_execute("select pg_sleep(60)");
    let cancelling = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        cancel.cancel_query(NoTls).await.unwrap();
    };
    let (slept, ()) = tokio::join!(sleeping, cancelling);
    assert_eq!(code(&slept.unwrap_err()), Some(&SqlState::QUERY_CANCELED));
    assert_eq!(server_port(&client).await, servers[0].port, "the session goes on");
    assert_eq!(running.handle.status().totals.cancels, 1);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_primary_takes_the_write_sessions_over() {
    let servers = [Server::start(), Server::start()];
    let addresses = servers.each_ref().map(Server::address);
    let mut config = config();
    config.primary_change_grace_ms = 3_000;
    let running = start(config, &addresses, Some(1));
    let idle = running.connect(Endpoint::Write).await;
    let quick = running.connect(Endpoint::Write).await;
    let stuck = running.connect(Endpoint::Write).await;
    let busy = running.connect(Endpoint::Write).await;
    assert_eq!(server_port(&idle).await, servers[0].port);
    quick.batch_execute("create table t (i int); begin; insert into t values (1)").await.unwrap();
    stuck.batch_execute("begin; select 1").await.unwrap();
    let busy_pid = backend_pid(&busy).await;
    let running_query = tokio::spawn(async move {
        let ended = busy.batch_execute("select pg_sleep(60)").await;
        (ended, busy)
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    running.appoint(Some(2));

    // The idle one moves at once, an open transaction may end, whoever does not end is ended; all go on.
    assert_eq!(server_port(&idle).await, servers[1].port);
    quick.batch_execute("commit").await.unwrap();
    assert_eq!(server_port(&quick).await, servers[1].port);
    let (ended, busy) = running_query.await.unwrap();
    let ended = ended.unwrap_err();
    assert_eq!(code(&ended), Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{ended:?}");
    assert!(ended.as_db_error().unwrap().message().contains("the primary is now node 2"));
    assert_eq!(server_port(&busy).await, servers[1].port);
    let told = stuck.batch_execute("insert into t values (2)").await.unwrap_err();
    assert_eq!(code(&told), Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{told:?}");
    stuck.batch_execute("rollback").await.unwrap();
    assert_eq!(server_port(&stuck).await, servers[1].port);
    // What was still running does not go on, and the quick one's commit counts.
    let old = running_client(&servers[0]).await;
    let row = old.query_one("select count(*) from t", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
    let left = old
        .query("select 1 from pg_stat_activity where pid = $1 and state = 'active'", &[&busy_pid])
        .await
        .unwrap();
    assert!(left.is_empty());
    running.end().await;
}

async fn running_client(server: &Server) -> Client {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(server.port).user(USER).password(PASSWORD).dbname("postgres");
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_server_is_told_and_the_next_session_goes_elsewhere() {
    let mut servers = [Server::start(), Server::start()];
    let addresses = servers.each_ref().map(Server::address);
    let running = start(config(), &addresses, Some(1));
    let client = running.connect(Endpoint::Write).await;
    let other = running.connect(Endpoint::Write).await;
    // The backend is gone without a word: the router says what the server cannot.
    let pid = backend_pid(&client).await;
    let sleeping = async {
        let lost = client.batch_execute("select pg_sleep(60)").await.unwrap_err();
        assert_eq!(code(&lost), Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{lost:?}");
        assert!(lost.as_db_error().unwrap().message().contains("node 1"), "{lost:?}");
    };
    let killing = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server::kill(pid);
    };
    tokio::join!(sleeping, killing);
    // The server restarts itself after that; the session goes on.
    let written = async {
        while client.batch_execute("create table if not exists lost (i int)").await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("the session goes on", Duration::from_secs(10), written).await;
    // Whoever was in a transaction stays in one that has failed, until it is ended.
    other.batch_execute("begin").await.unwrap();
    server::kill(backend_pid(&other).await);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let told = other.batch_execute("create table never (i int)").await.unwrap_err();
    let codes = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::IN_FAILED_SQL_TRANSACTION];
    assert!(codes.contains(code(&told).unwrap()), "{told:?}");
    let again = other.query("select 1", &[]).await.unwrap_err();
    assert_eq!(code(&again), Some(&SqlState::IN_FAILED_SQL_TRANSACTION), "{again:?}");
    other.execute("rollback", &[]).await.unwrap();
    let written = async {
        while other.batch_execute("select * from lost").await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("the other session goes on", Duration::from_secs(10), written).await;
    assert!(other.batch_execute("select * from never").await.is_err());
    // Nobody's home decides where the next reader goes first.
    drop((client, other));
    running.eventually("both have gone", |status| status.clients == 0).await;

    // A read passes over the dead server although gossip still believes in it.
    servers[0].stop_at_once();
    let read = running.connect(Endpoint::Read).await;
    assert_eq!(server_port(&read).await, servers[1].port);
    assert!(running.handle.status().totals.connect_failures >= 1);
    // A write waits for a primary that answers …
    let write = running.connect(Endpoint::Write).await;
    let begun = Instant::now();
    let refused = write.batch_execute("select 1").await.unwrap_err();
    assert_eq!(code(&refused), Some(&SqlState::CANNOT_CONNECT_NOW), "{refused:?}");
    assert!(refused.as_db_error().unwrap().hint().is_some());
    assert!(begun.elapsed() >= Duration::from_millis(900));
    // … and reaches it as soon as there is one.
    let appointing = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        running.appoint(Some(2));
    };
    let (port, ()) = tokio::join!(server_port(&write), appointing);
    assert_eq!(port, servers[1].port);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_to_serve_is_said_with_the_reasons() {
    let server = Server::start();
    let nowhere = ["127.0.0.1:1".to_owned(), "127.0.0.1:1".to_owned()];
    let running = start_with(config(), &nowhere, None, &server.address());
    let refused = running.try_connect(Endpoint::Write).await.err().unwrap();
    assert_eq!(code(&refused), Some(&SqlState::CANNOT_CONNECT_NOW));
    assert!(refused.as_db_error().unwrap().message().contains("no primary"), "{refused:?}");
    let refused = running.try_connect(Endpoint::Read).await.err().unwrap();
    assert_eq!(code(&refused), Some(&SqlState::CONNECTION_FAILURE), "{refused:?}");
    running.view.send_replace(Arc::new(view(&[Seen::NotReady, Seen::Down])));
    let refused = running.try_connect(Endpoint::Read).await.err().unwrap();
    assert_eq!(code(&refused), Some(&SqlState::CANNOT_CONNECT_NOW));
    let message = refused.as_db_error().unwrap().message().to_owned();
    assert!(message.contains("node 2 is down"), "{message}");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_vanish_leave_nothing_behind() {
    let server = Server::start();
    let running = start(config(), &[server.address()], Some(1));
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(running.port(Endpoint::Write)).user(USER).password(PASSWORD);
    let (client, connection) = config.dbname("postgres").connect(NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let pid = backend_pid(&client).await;
    let query = tokio::spawn(async move { client.batch_execute("select pg_sleep(60)").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    // The socket closes in the middle of a query, without a word.
    connection.abort();
    query.await.unwrap().unwrap_err();
    let direct = running_client(&server).await;
    within("the backend is gone", Duration::from_secs(10), async {
        let sql = "select 1 from pg_stat_activity where pid = $1";
        while !direct.query(sql, &[&pid]).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    running.eventually("no session", |status| status.clients == 0).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_agent_ends_its_sessions() {
    let server = Server::start();
    let mut config = config();
    config.drain_ms = 500;
    let running = start(config, &[server.address()], Some(1));
    let idle = running.connect(Endpoint::Read).await;
    let busy = running.connect(Endpoint::Write).await;
    let query = tokio::spawn(async move { busy.batch_execute("select pg_sleep(60)").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    let port = running.port(Endpoint::Read);
    running.end().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let ended = query.await.unwrap().unwrap_err();
    assert_eq!(code(&ended), Some(&SqlState::ADMIN_SHUTDOWN), "{ended:?}");
    within("idle", Duration::from_secs(1), async {
        while !idle.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_leave_a_node_that_is_too_far_behind() {
    let servers = [Server::start(), Server::start()];
    let addresses = servers.each_ref().map(Server::address);
    let running = start(config(), &addresses, Some(1));
    let client = running.connect(Endpoint::Read).await;
    assert_eq!(server_port(&client).await, servers[0].port);
    let lag = |lags: [u64; 2]| {
        let mut view = view(&[Seen::Ready, Seen::Ready]);
        for (member, lag_ms) in view.members.values_mut().zip(lags) {
            member.facts.as_mut().unwrap().lag_ms = lag_ms;
        }
        running.view.send_replace(Arc::new(view));
    };
    let route = async || {
        let rows = client.simple_query("show synapsedb.last_route").await.unwrap();
        let row = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        row.unwrap().to_owned()
    };
    lag([10_001, 9_999]);
    within("the session leaves node 1", Duration::from_secs(5), async {
        while server_port(&client).await != servers[1].port {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let told = route().await;
    assert!(told.starts_with("node 2: ") && told.contains("node 1 is 10001 ms behind"), "{told}");
    // The write endpoint is not concerned, and if all are so far behind, all are read from.
    assert_eq!(server_port(&running.connect(Endpoint::Write).await).await, servers[0].port);
    lag([20_000, 30_000]);
    within("nobody is named", Duration::from_secs(5), async {
        while route().await.contains("behind") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(server_port(&client).await, servers[1].port, "it stays where it is");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_global_read_names_who_says_nothing() {
    let server = Server::start();
    let running = start(config(), &[server.address()], Some(1));
    for endpoint in [Endpoint::Read, Endpoint::Write] {
        let client = running.connect(endpoint).await;
        client.batch_execute("set synapsedb.consistency = global").await.unwrap();
        // This router has no replication that could say how far its node is.
        let refused = client.batch_execute("select 1").await.unwrap_err();
        assert_eq!(code(&refused).map(SqlState::code), Some("SY002"), "{refused:?}");
        let message = refused.as_db_error().unwrap().message();
        assert!(message.contains("node 1"), "{message}");
        assert!(running.metrics().contains("synapsedb_router_not_shown_total"));
    }
    running.end().await;
}
