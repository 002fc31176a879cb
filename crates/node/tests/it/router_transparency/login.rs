//! What a client says and hears when it logs in.

use super::script::{q, same};
use super::wire::Wire;
use crate::routed::{Way, database, routed};

#[tokio::test(flavor = "multi_thread")]
async fn startup_parameters_count() {
    let startup = [
        ("options", "-c search_path=by_options -c work_mem=5MB --enable-seqscan=off"),
        ("client_min_messages", "debug1"),
        ("TimeZone", "Asia/Tokyo"),
        ("DateStyle", "German"),
        ("application_name", "from startup"),
        ("extra_float_digits", "2"),
        ("my.own", "value"),
    ];
    same(
        "startup",
        &startup,
        &[
            q("select current_setting('search_path'), current_setting('work_mem'), current_setting('enable_seqscan')")
                .shows(&["D by_options|5MB|off"]),
            q("select current_setting('client_min_messages'), current_setting('timezone')")
                .shows(&["D debug1|Asia/Tokyo"]),
            q("select current_setting('datestyle'), current_setting('application_name'), current_setting('my.own')")
                .shows(&["D German, DMY|from startup|value"]),
            q("show extra_float_digits").shows(&["D 2"]),
            q("select application_name from pg_stat_activity where pid = pg_backend_pid()")
                .shows(&["D from startup"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn encodings_are_reported_as_the_server_spells_them() {
    for (name, spelled) in [("utf", "utf-8"), ("latin", "Latin-1"), ("unicode", "UNICODE")] {
        let steps = [q("show client_encoding"), q("select 'é', U&'\\00e9'")];
        same(&format!("encoding_{name}"), &[("client_encoding", spelled)], &steps).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_role_and_database_count() {
    let cluster = routed().await;
    let agent = cluster.node(1).agent_server();
    for way in [Way::Direct, Way::Write] {
        let name = format!("of_database_{way:?}").to_lowercase();
        let mut server = database(&cluster, &name, way).await;
        agent
            .sql(&format!(
                "do $$ begin create role set_up login password 'set_up';
                    exception when duplicate_object then null; end $$;
                 alter database {name} set work_mem = '6MB'; alter role set_up set search_path = of_role;
                 alter role set_up in database {name} set statement_timeout = '8min'"
            ))
            .await;
        (server.user, server.password) = ("set_up".to_owned(), "set_up".to_owned());
        let shown = "select current_setting('work_mem'), current_setting('search_path'),
            current_setting('statement_timeout')";
        assert_eq!(server.rows(shown).await, ["6MB|of_role|8min"], "{way:?}");
        // A new session sees the new value, whoever had the connection before.
        agent.sql("alter role set_up set search_path = changed").await;
        assert_eq!(server.rows("show search_path").await, ["changed"], "{way:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_those_of_the_server() {
    let cluster = routed().await;
    let direct = database(&cluster, "refusals", Way::Direct).await;
    let mut routed = cluster.write_endpoint();
    routed.database = direct.database.clone();
    let of_database = |name: &str| (direct.user.clone(), direct.password.clone(), name.to_owned());
    let of_user = |user: &str, password: &str| {
        (user.to_owned(), password.to_owned(), direct.database.clone())
    };
    let agent = cluster.node(1).agent_server();
    agent
        .sql(
            "create role no_login password 'x'; create role out_of_date login password 'x' valid until '2001-01-01';
             create role without_password login; create role crowded login password 'x' connection limit 0;
             create role outsider login password 'x'",
        )
        .await;
    agent.sql("create database closed allow_connections false").await;
    agent.sql("create database private").await;
    agent.sql("revoke connect on database private from public").await;
    let mut outsider = of_database("private");
    (outsider.0, outsider.1) = ("outsider".to_owned(), "x".to_owned());
    type Parameters = &'static [(&'static str, &'static str)];
    let none: Parameters = &[];
    let mut different = String::new();
    for ((user, password, name), parameters) in [
        (of_user("synapsedb", "wrong"), none),
        (of_user("nobody", "x"), none),
        (of_user("without_password", "x"), none),
        (of_user("out_of_date", "x"), none),
        (of_user("no_login", "x"), none),
        (of_user("no_login", "wrong"), none),
        (of_user("crowded", "x"), none),
        (of_database("no_such_database"), none),
        (of_database("closed"), none),
        (outsider, none),
        (of_database("refusals"), &[("no_such_setting", "1")] as Parameters),
        (of_database("refusals"), &[("timezone", "Nowhere/Here")]),
        (of_database("refusals"), &[("client_encoding", "klingon")]),
        (of_database("refusals"), &[("options", "-c nonsense")]),
        (of_database("refusals"), &[("options", "-c work_mem=none")]),
        (of_database("refusals"), &[("options", "--no-such=1")]),
        (of_database("refusals"), &[("session_preload_libraries", "x")]),
    ] {
        let mut answers = Vec::new();
        for server in [&direct, &routed] {
            let mut server = server.clone();
            (server.user, server.password, server.database) =
                (user.clone(), password.clone(), name.clone());
            let mut said = Wire::login(&server, parameters).await.1;
            // That the password was right is seen by nobody who is refused for something else.
            said.retain(|line| line != "R ok");
            answers.push(said);
        }
        assert!(answers[0].iter().any(|line| line.starts_with("E S=FATAL")), "{:?}", answers[0]);
        if answers[1] != answers[0] {
            let [direct, routed] = &answers[..] else { unreachable!() };
            different += &format!(
                "{user} {name} {parameters:?}\n  router {routed:?}\n  direct {direct:?}\n"
            );
        }
    }
    assert!(different.is_empty(), "{different}");
}

#[tokio::test(flavor = "multi_thread")]
async fn warnings_of_the_login_are_heard() {
    let cluster = routed().await;
    let direct = database(&cluster, "warned", Way::Direct).await;
    // The server warns whoever connects to a database whose collations may sort otherwise than when it was made.
    let agent = cluster.node(1).agent_server();
    agent.sql("update pg_database set datcollversion = '0.0' where datname = 'warned'").await;
    let mut routed = cluster.write_endpoint();
    routed.database = direct.database.clone();
    let expected = Wire::login(&direct, &[]).await.1;
    assert!(expected.iter().any(|line| line.starts_with("N S=WARNING")), "{expected:?}");
    for _ in 0..3 {
        // The first login of a pool, and those that find connections there.
        let (mut wire, found) = Wire::login(&routed, &[]).await;
        assert_eq!(found, expected);
        wire.query("select 1").await;
    }
}

/// What answers a startup packet of this version, up to the request for a password or the end; not where in its source
/// a server has found an error.
async fn begun(port: u16, version: u32, options: &[u8]) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let parameters = [b"user\0synapsedb\0database\0synapsedb\0", options, b"\0"].concat();
    let mut packet = (parameters.len() as u32 + 8).to_be_bytes().to_vec();
    packet.extend_from_slice(&version.to_be_bytes());
    packet.extend_from_slice(&parameters);
    stream.write_all(&packet).await.unwrap();
    let mut answer = Vec::new();
    // The answer may come in several packets; after an error the connection ends.
    while !answer.ends_with(b"SCRAM-SHA-256\0\0") && stream.read_buf(&mut answer).await.unwrap() > 0
    {
    }
    answer.truncate(60);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn protocol_versions_are_negotiated() {
    let cluster = routed().await;
    let (direct, routed) = (cluster.node(1).server(), cluster.write_endpoint());
    let newest: u32 = direct.value("show server_version_num").await.parse().unwrap();
    let unknown = b"_pq_.what\x001\0_pq_.else\x002\0";
    // The version that is spoken, and the options that nobody knows; nothing when all is as asked for.
    let told = |minor: u8, options: &[&str]| {
        let names: String = options.iter().map(|name| format!("{name}\0")).collect();
        let length = char::from(12 + names.len() as u8);
        let (minor, count) = (char::from(minor), char::from(options.len() as u8));
        format!("v\0\0\0{length}\0\x03\0{minor}\0\0\0{count}{names}R\0\0\0\x17")
    };
    let both = ["_pq_.what", "_pq_.else"];
    for (version, options, expected) in [
        (0x3_0000, &b""[..], "R\0\0\0\x17".to_owned()),
        (0x3_0000, unknown, told(0, &both)),
        (0x3_0001, b"", "R\0\0\0\x17".to_owned()),
        (0x3_0002, b"", "R\0\0\0\x17".to_owned()),
        (0x3_0002, b"_pq_.what\x001\0", told(2, &both[..1])),
        (0x3_0009, b"", told(2, &[])),
        (0x3_0009, unknown, told(2, &both)),
        (0x3_270f, b"", told(2, &[])),
        (0x4_0000, b"", "E\0\0\0".to_owned()),
    ] {
        let said = begun(routed.port, version, options).await;
        assert!(said.starts_with(&expected), "{version:x}: {said:?}, not {expected:?}");
        // Older servers speak 3.0 only.
        if newest >= 180_000 || version == 0x3_0000 || version == 0x4_0000 {
            assert_eq!(said, begun(direct.port, version, options).await, "{version:x}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_protocol_3_2_logs_in_and_cancels() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let cluster = routed().await;
    for server in [cluster.write_endpoint(), cluster.read_endpoint()] {
        let (mut wire, said) = Wire::login_by(0x3_0002, &server, &[]).await;
        assert_eq!(said, Wire::login(&server, &[]).await.1);
        assert!((4..=256).contains(&wire.key.len()), "{:?}", wire.key);
        let mut cancel = (12 + wire.key.len() as u32).to_be_bytes().to_vec();
        cancel.extend_from_slice(&(1234u32 << 16 | 5678).to_be_bytes());
        cancel.extend_from_slice(&wire.pid.to_be_bytes());
        cancel.extend_from_slice(&wire.key);
        let port = server.port;
        let cancelled = async {
            let sleeps =
                "select count(*) from pg_stat_activity where query = 'select pg_sleep(61)'";
            let node = cluster.node(1);
            synapsedb_dev::eventually("it sleeps", crate::NOTICED, async || {
                node.shows(sleeps, &["1"]).await
            })
            .await;
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.write_all(&cancel).await.unwrap();
            let _ = stream.read(&mut [0; 1]).await;
        };
        let ((), said) = tokio::join!(cancelled, wire.query("select pg_sleep(61)"));
        assert!(said.iter().any(|line| line.contains("C=57014")), "{said:?}");
        assert_eq!(wire.query("select 1").await[1], "D 1");
    }
}
