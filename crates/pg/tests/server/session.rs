//! Logins of every kind, errors that explain themselves, and pipelines.

use std::sync::Arc;
use std::time::Duration;

use synapsedb_pg::conn::Connection;
use synapsedb_pg::wire::backend::{self, ServerError};
use synapsedb_pg::wire::frontend;
use synapsedb_pg::{Config, ErrorKind, Host, client, quote, scram};

use crate::support::{PASSWORD, server};

#[tokio::test]
async fn scram_over_tcp_and_unix_sockets() {
    let server = server();
    for mut config in [server.config("postgres"), server.unix_config("postgres")] {
        config.options =
            vec![("work_mem".into(), "7MB".into()), ("search_path".into(), "\"a b\"".into())];
        let mut connection = Connection::connect(&config, false).await.unwrap();
        let sql =
            "SELECT current_setting('work_mem'), current_setting('search_path'), pg_backend_pid()";
        let rows = connection.query(sql).await.unwrap();
        assert_eq!((rows[0].text(0), rows[0].text(1)), (Some("7MB"), Some("\"a b\"")));
        assert_eq!(rows[0].text(2), Some(connection.backend_pid().to_string().as_str()));
        assert!(connection.server_version().unwrap() >= 15);
        assert_eq!(connection.parameters()["client_encoding"], "UTF8");
        connection.close().await;

        let client = client::connect(&config).await.unwrap();
        let row = client.query_one("SHOW search_path", &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "\"a b\"");
    }
}

#[tokio::test]
async fn other_methods_and_our_own_verifiers() {
    let server = server();
    let admin = client::connect(&server.config("postgres")).await.unwrap();
    let verifier = scram::verifier("wörd", *b"0123456789abcdef", scram::ITERATIONS);
    let sql = format!(
        "CREATE ROLE clear LOGIN PASSWORD {verifier}; CREATE ROLE ours LOGIN PASSWORD {verifier};
         SET password_encryption = md5; CREATE ROLE legacy LOGIN PASSWORD {word};",
        verifier = quote::literal(&verifier),
        word = quote::literal("wörd"),
    );
    admin.batch_execute(&sql).await.unwrap();
    for role in ["clear", "legacy", "ours"] {
        let mut config = server.config("postgres");
        (config.user, config.password) = (role.into(), Some("wörd".into()));
        Connection::connect(&config, false).await.unwrap().close().await;
        client::connect(&config).await.unwrap();
        config.password = Some("word".into());
        let error = Connection::connect(&config, false).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    }
    admin.batch_execute("DROP ROLE clear, ours, legacy").await.unwrap();
}

#[tokio::test]
async fn tls_when_asked_for_and_never_without() {
    let server = server();
    let admin = client::connect(&server.config("postgres")).await.unwrap();
    let role = format!("CREATE ROLE tlsonly LOGIN PASSWORD {}", quote::literal(PASSWORD));
    admin.batch_execute(&role).await.unwrap();
    let plain = Config { user: "tlsonly".into(), ..server.config("postgres") };
    let error = client::connect(&plain).await.err().unwrap();
    assert_eq!(
        (error.kind(), error.sqlstate()),
        (ErrorKind::Authentication, Some("28000")),
        "{error}"
    );

    let with_roots = |roots| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider);
        let tls = tls.with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_root_certificates(roots).with_no_client_auth();
        Config { tls: Some(Arc::new(tls)), ..plain.clone() }
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.certificate().into()).unwrap();
    let config = with_roots(roots);
    let mut connection = Connection::connect(&config, false).await.unwrap();
    let sql =
        "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid(); SELECT repeat('x', 300000)";
    let rows = connection.query(sql).await.unwrap();
    assert_eq!(rows[0].text(0), Some("t"));
    assert_eq!(rows[1].text(0).map(str::len), Some(300_000));
    connection.close().await;
    let client = client::connect(&config).await.unwrap();
    client.batch_execute("SELECT 1").await.unwrap();
    drop(client);

    let stranger = with_roots(rustls::RootCertStore::empty());
    let error = Connection::connect(&stranger, false).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
    while admin.batch_execute("DROP ROLE IF EXISTS tlsonly").await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn refusals_name_the_place_and_never_the_password() {
    let server = server();
    let good = server.config("postgres");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let wrong = Config { password: Some("geheim".into()), ..good.clone() };
    let cases = [
        (wrong.clone(), ErrorKind::Authentication, "password authentication failed"),
        (Config { password: None, ..good.clone() }, ErrorKind::Authentication, "password"),
        (Config { database: "nope".into(), ..good.clone() }, ErrorKind::Refused, "does not exist"),
        (Config { port: free, ..wrong.clone() }, ErrorKind::Unreachable, "refused"),
        (
            Config { host: Host::Unix("/nowhere".into()), ..wrong },
            ErrorKind::Unreachable,
            "No such file",
        ),
    ];
    for (config, kind, text) in cases {
        let raw = Connection::connect(&config, false).await.err().unwrap();
        let client = client::connect(&config).await.err().unwrap();
        for error in [raw, client] {
            let shown = error.to_string();
            assert!(shown.contains(text) && !shown.contains("geheim"), "{shown}");
            for part in [&config.address(), &config.user, &config.database] {
                assert!(shown.contains(part), "{shown}");
            }
            assert!(!shown.contains('\n'));
        }
        let error = Connection::connect(&config, false).await.err().unwrap();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.is_transient(), kind == ErrorKind::Unreachable);
    }
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = Config { port, connect_timeout_ms: 100, ..Config::default() };
    let error = Connection::connect(&config, false).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let error = client::connect(&config).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[tokio::test]
async fn errors_of_statements() {
    let server = server();
    let (config, client) = server.database().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    let mut connection = Connection::connect(&config, false).await.unwrap();
    let error = connection.query("INSERT INTO t VALUES (1)").await.unwrap_err();
    assert_eq!((error.sqlstate(), error.is_transient()), (Some("23505"), false));
    assert!(error.to_string().contains("(detail: Key (id)=(1) already exists.)"), "{error}");
    let other: synapsedb_pg::Error =
        client.execute("INSERT INTO t VALUES (1)", &[]).await.unwrap_err().into();
    assert_eq!(error.to_string(), other.to_string());
    assert_eq!(connection.query("SELECT 1").await.unwrap()[0].text(0), Some("1"));

    let token = connection.cancel_token();
    let (slept, cancelled) = tokio::join!(connection.query("SELECT pg_sleep(60)"), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        token.cancel().await
    });
    cancelled.unwrap();
    assert_eq!(slept.unwrap_err().sqlstate(), Some("57014"));

    let kill = format!("SELECT pg_terminate_backend({})", connection.backend_pid());
    client.execute(&kill, &[]).await.unwrap();
    let error = connection.query("SELECT pg_sleep(60)").await.unwrap_err();
    assert!(error.is_transient(), "{error}");
}

/// Four Syncs in one write, an error in the second: it takes the rest of its own part and nothing of the others.
#[tokio::test]
async fn a_pipeline_with_an_error_in_the_middle() {
    let server = server();
    let (config, client) = server.database().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, b text)").await.unwrap();
    let (mut reader, mut writer) = Connection::connect(&config, false).await.unwrap().split();
    let buffer = writer.buffer();
    frontend::parse(buffer, "i", "INSERT INTO t VALUES ($1, $2)", &[23, 25]).unwrap();
    frontend::sync(buffer);
    for ids in [["1", "2"], ["1", "3"], ["4", "5"]] {
        for id in ids {
            let values = [Some(id.as_bytes()), None];
            frontend::bind(buffer, "i", values.into_iter()).unwrap();
            frontend::execute(buffer);
        }
        frontend::sync(buffer);
    }
    writer.flush().await.unwrap();
    let mut answers = String::new();
    for _ in 0..4 {
        loop {
            let (tag, body) = reader.next().await.unwrap();
            answers.push(tag as char);
            match tag {
                backend::READY_FOR_QUERY => break,
                backend::COMMAND_COMPLETE => assert_eq!(backend::command_rows(&body), Some(1)),
                backend::ERROR_RESPONSE => {
                    assert_eq!(ServerError::parse(&body).sqlstate, "23505");
                }
                _ => {}
            }
        }
    }
    assert_eq!(answers, "1Z2C2CZ2EZ2C2CZ");
    let row = client.query_one("SELECT string_agg(id::text, ',' ORDER BY id) FROM t", &[]).await;
    assert_eq!(row.unwrap().get::<_, &str>(0), "1,2,4,5");
}

/// Much in both directions at once, with the sending in one task and the reading in another.
#[tokio::test]
async fn a_long_pipeline_of_two_tasks() {
    const COUNT: usize = 3000;
    let server = server();
    let (mut reader, mut writer) =
        Connection::connect(&server.unix_config("postgres"), false).await.unwrap().split();
    let sender = tokio::spawn(async move {
        frontend::parse(writer.buffer(), "s", "SELECT $1", &[25]).unwrap();
        for number in 0..COUNT {
            let text = number.to_string().repeat(500);
            let params = std::iter::once(Some(text.as_bytes()));
            frontend::bind(writer.buffer(), "s", params).unwrap();
            frontend::execute(writer.buffer());
            frontend::sync(writer.buffer());
            if number % 7 == 0 {
                writer.flush().await.unwrap();
            }
        }
        writer.flush().await.unwrap();
        writer
    });
    let (mut rows, mut ready, mut free) = (0, 0, 0);
    while ready < COUNT {
        // Cancelling a read loses nothing.
        let waited = tokio::time::timeout(Duration::from_micros(50), reader.next()).await;
        let Ok(message) = waited else { continue };
        match message.unwrap() {
            (backend::DATA_ROW, body) => {
                let value = backend::data_row(&body).unwrap().next().unwrap().unwrap().unwrap();
                assert_eq!(value, rows.to_string().repeat(500).as_bytes());
                rows += 1;
            }
            (backend::READY_FOR_QUERY, _) => ready += 1,
            (backend::ERROR_RESPONSE, body) => panic!("{}", ServerError::parse(&body)),
            _ => {}
        }
        if reader.buffered() {
            free += 1;
            assert!(reader.try_next().unwrap().is_some_and(|(tag, _)| {
                ready += usize::from(tag == backend::READY_FOR_QUERY);
                rows += usize::from(tag == backend::DATA_ROW);
                true
            }));
        }
    }
    assert_eq!(rows, COUNT);
    assert!(free > COUNT, "most messages come without a system call");
    sender.await.unwrap().close().await;
}

#[tokio::test]
async fn limits_of_a_reader() {
    let server = server();
    let mut connection = Connection::connect(&server.config("postgres"), false).await.unwrap();
    connection.reader().set_message_bytes_max(1000);
    let error = connection.query("SELECT repeat('x', 2000)").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    let mut connection = Connection::connect(&server.config("postgres"), false).await.unwrap();
    let rows = connection.query("SELECT repeat('x', 20000000)").await.unwrap();
    assert_eq!(rows[0].text(0).map(str::len), Some(20_000_000));
}
