//! What words tell of a statement, against what the server then does.

use synapsedb_pg::client::{self, Client};
use synapsedb_pg::sql::reads::{self, Names, Verdict};
use synapsedb_pg::sql::traits::{Flags, Traits};
use synapsedb_pg::{Config, Error};

use crate::support::server;

const OBJECTS: &str =
    "CREATE TABLE t (a int PRIMARY KEY, b text); INSERT INTO t VALUES (1, 'x'); CREATE SEQUENCE s;
    CREATE FUNCTION audit() RETURNS int LANGUAGE sql
        AS 'INSERT INTO t SELECT coalesce(max(a), 0) + 100 FROM t RETURNING a';
    CREATE FUNCTION calm(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1';
    CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN SET work_mem = '3MB'; END $$;
    CREATE VIEW watched AS SELECT audit() AS a; CREATE VIEW above AS SELECT * FROM watched;
    CREATE VIEW still AS SELECT calm(a) AS a FROM t;";

/// Statements that change settings, keep something, write, or do nothing of it. Each runs in a session of its own.
const STATEMENTS: [&str; 62] = [
    "SET work_mem = '2MB'",
    "SET SESSION a.b TO 'x'",
    "SET local.x = 1; SET a.b = 2",
    "SET LOCAL work_mem = '2MB'",
    "BEGIN; SET LOCAL work_mem = '2MB'; COMMIT",
    "BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; COMMIT",
    "BEGIN; SET work_mem = '2MB'; COMMIT",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET TIME ZONE 'Europe/Paris'",
    "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION pg_monitor",
    "SELECT set_config('work_mem', '2MB', false)",
    "SELECT set_config('work_mem', '2MB', true)",
    "SELECT pg_catalog.\"set_config\"('a.b', 'y', 'off')",
    "SELECT U&\"\\0073et_config\"('a.b', 'y', false)",
    "SELECT set_config(name, '2MB', false) FROM pg_settings WHERE name = 'work_mem'",
    "UPDATE pg_settings SET setting = '2MB' WHERE name = 'work_mem'",
    "DO $$ BEGIN PERFORM set_config('work_mem', '2MB', false); END $$",
    "CALL p()",
    "RESET work_mem",
    "SHOW work_mem",
    "PREPARE q AS SELECT 1",
    "PREPARE transaction AS SELECT 1",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "BEGIN; DECLARE c CURSOR FOR SELECT 1; FETCH c; COMMIT",
    "LISTEN x",
    "UNLISTEN x",
    "NOTIFY x",
    "SELECT pg_advisory_lock(1)",
    "SELECT \"pg_try_advisory_lock_shared\"(1)",
    "SELECT pg_advisory_xact_lock(1)",
    "CREATE TEMP TABLE x (i int)",
    "CREATE TEMPORARY VIEW x AS SELECT 1",
    "CREATE TABLE pg_temp.x (i int)",
    "CREATE FUNCTION pg_temp.x() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "SELECT 1 AS i INTO TEMP x",
    "SET search_path = 'pg_temp'; CREATE TABLE x (i int)",
    "SELECT set_config('search_path', 'pg_temp, public', true); CREATE TABLE x (i int)",
    "EXPLAIN ANALYZE CREATE TEMP TABLE x AS SELECT 1",
    "SELECT * FROM t",
    "SELECT a, upper(b), calm(a) FROM t WHERE a IN (1, 2)",
    "WITH w AS (SELECT random()) SELECT * FROM w, LATERAL generate_series(1, 2) g(n)",
    "SELECT * FROM still",
    "SELECT * FROM watched",
    "SELECT * FROM above",
    "SELECT audit()",
    "SELECT nextval('s')",
    "SELECT currval('s') WHERE false",
    "SELECT * FROM t FOR UPDATE",
    "SELECT * FROM t FOR KEY SHARE",
    "SELECT 1 AS i INTO y",
    "INSERT INTO t VALUES (2)",
    "WITH w AS (DELETE FROM t RETURNING a) SELECT * FROM w",
    "EXPLAIN DELETE FROM t",
    "EXPLAIN ANALYZE DELETE FROM t",
    "COPY t TO STDOUT",
    "COPY (SELECT calm(a) FROM t) TO STDOUT",
    "CREATE TABLE z (i int)",
    "TRUNCATE t",
    "SELECT pg_notify('x', 'y')",
    "SELECT lo_create(0)",
    "SELECT pg_logical_emit_message(true, 'x', 'y')",
];

/// What outlives a transaction: the settings, and what is held.
async fn state(client: &Client) -> [String; 2] {
    let messages = client.simple_query(include_str!("traits.sql")).await.unwrap();
    let mut texts = messages.into_iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(1).map(str::to_owned),
        _ => None,
    });
    [texts.next().unwrap(), texts.next().unwrap()]
}

async fn run(client: &Client, text: &str) -> Result<(), Option<String>> {
    client
        .batch_execute(text)
        .await
        .map_err(Error::from)
        .map_err(|error| error.sqlstate().map(str::to_owned))
}

/// The functions and views of a database, as they are loaded.
async fn names(client: &Client) -> Names {
    let mut names = Names::default();
    for row in client.query(reads::FUNCTIONS_SQL, &[]).await.unwrap() {
        names.add_function(row.get(0), row.get(1), row.get(2));
    }
    let views = client.query(reads::VIEWS_SQL, &[]).await.unwrap();
    names.add_views(views.iter().map(|row| (row.get(0), row.get(1))).collect());
    names
}

#[tokio::test]
async fn words_tell_what_statements_leave_behind() {
    let server = server();
    let (config, admin) = server.database().await;
    admin.batch_execute(OBJECTS).await.unwrap();
    let (mut changes, mut holds) = (0, 0);
    // The client does not take a COPY's data, which leaves nothing behind.
    for text in STATEMENTS.iter().filter(|text| !text.starts_with("COPY")) {
        let client = client::connect(&config).await.unwrap();
        let [settings, held] = state(&client).await;
        run(&client, text).await.unwrap_or_else(|code| panic!("{text}: {code:?}"));
        let [settings_after, held_after] = state(&client).await;
        let flags = Traits::of(text.as_bytes()).flags;
        let (is_set, is_held) = (settings != settings_after, held != held_after);
        changes += i32::from(is_set);
        holds += i32::from(is_held);
        assert!(flags.has(Flags::MAY_SET) || !is_set, "{text}: {settings_after}");
        assert!(flags.has(Flags::MAY_HOLD) || !is_held, "{text}: {held_after}");
        // Undone for the next one.
        client
            .batch_execute("RESET SESSION AUTHORIZATION; DROP TABLE IF EXISTS y, z")
            .await
            .unwrap();
    }
    // The list is one that can fail.
    assert_eq!((changes, holds), (16, 14));
}

#[tokio::test]
async fn what_is_taken_for_a_read_is_none_that_the_server_refuses() {
    let server = server();
    let (config, admin) = server.database().await;
    admin.batch_execute(OBJECTS).await.unwrap();
    let names = names(&admin).await;
    let options = vec![("default_transaction_read_only".into(), "on".into())];
    let config = Config { options, ..config };
    let (mut reads, mut refused) = (0, 0);
    for text in STATEMENTS {
        let client = client::connect(&config).await.unwrap();
        let code = run(&client, text).await.err().flatten();
        let is_write = code.as_deref() == Some("25006");
        let verdict = reads::decide(text, &names);
        assert!(!is_write || verdict != Verdict::Read, "{text}");
        let flags = Traits::of(text.as_bytes()).flags;
        // Only a view hides what it does from the words.
        let hides = text.contains("watched") || text.contains("above");
        assert!(!is_write || flags.has(Flags::WRITES | Flags::CALLS) || hides, "{text}");
        reads += i32::from(verdict == Verdict::Read);
        refused += i32::from(is_write);
    }
    assert_eq!((reads, refused), (8, 20));
    for (text, verdict) in [
        ("SELECT * FROM still", Verdict::Read),
        ("SELECT * FROM above", Verdict::Write(reads::Reason::Name("above".into()))),
        ("SELECT audit()", Verdict::Write(reads::Reason::Name("audit".into()))),
        ("SELECT nobody(1)", Verdict::Write(reads::Reason::UnknownFunction("nobody".into()))),
        (
            "SELECT json_object('a': 1), extract(day FROM now()), position('a' IN 'b')",
            Verdict::Read,
        ),
        (
            "SELECT count(*) FILTER (WHERE true) OVER w FROM t WINDOW w AS (ORDER BY a)",
            Verdict::Read,
        ),
    ] {
        assert_eq!(reads::decide(text, &names), verdict, "{text}");
    }
}
