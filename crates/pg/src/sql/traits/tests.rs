//! Every flag by every word that gives it, what must not give it, and nothing that panics.

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

const SET: Flags = Flags::MAY_SET;
const UNNAMED: Flags = Flags::MAY_SET.with(Flags::SETS_UNNAMED);
const HOLD: Flags = Flags::MAY_HOLD;
const RELEASE: Flags = Flags::MAY_RELEASE;
const BEGIN: Flags = Flags::BEGIN;
const END: Flags = Flags::END;
const WRITES: Flags = Flags::WRITES;
const SEVERAL: Flags = Flags::SEVERAL;
const CHANNELS: Flags = Flags::CHANNELS;
const OWN: Flags = Flags::OWN;
const NONE: Flags = Flags::NONE;

/// The flags without [`Flags::CALLS`], [`Flags::COMMITS`] and [`Flags::UTILITY`].
fn without_calls(text: &str) -> Flags {
    let mut flags = Traits::of(text.as_bytes()).flags;
    flags.remove(Flags::CALLS | Flags::COMMITS | Flags::UTILITY | Flags::DEFINES);
    flags
}

fn check(cases: &[(&str, Flags)]) {
    for (text, flags) in cases {
        assert_eq!(without_calls(text), *flags, "{text}");
        // Case and comments do not matter.
        let noisy = format!("-- SET x;\n/* ; */ {text} /* LISTEN y */ ; -- ;");
        assert_eq!(without_calls(&noisy), *flags, "{noisy}");
        if !text.contains(['\'', '"', '$']) {
            let upper = text.to_uppercase();
            assert_eq!(without_calls(&upper), *flags, "{upper}");
        }
    }
}

#[test]
fn settings() {
    check(&[
        ("SET work_mem = '1MB'", SET),
        ("SET SESSION work_mem TO 1", SET),
        ("set a.b = 1", SET),
        ("SET ROLE x", SET),
        ("SET SESSION AUTHORIZATION DEFAULT", SET),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", SET),
        ("SET TIME ZONE 'UTC'", SET),
        ("SET LOCAL work_mem = 1", NONE),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", NONE),
        ("SET CONSTRAINTS ALL DEFERRED", NONE),
        // Classes that are called so.
        ("SET local.x = 1", SET),
        ("SET transaction . x = 1", SET),
        ("SET constraints.x TO 1", SET),
        ("SET local = 1", SET),
        ("SET local TO 1", SET),
        ("RESET work_mem", SET),
        ("RESET ALL", SET),
        ("DISCARD ALL", UNNAMED | RELEASE | CHANNELS),
        ("SET search_path = pg_temp, public", SET | HOLD),
        ("SET search_path = 'pg_temp', public", SET | HOLD),
        ("SET LOCAL search_path = 'PG_TEMP'", HOLD),
        ("SET search_path = \"pg_temp\"", SET | HOLD),
        ("UPDATE pg_settings SET setting = 'x' WHERE name = 'y'", UNNAMED | WRITES),
        (
            "WITH a AS (UPDATE pg_catalog.\"pg_settings\" SET setting = 1) SELECT 1",
            UNNAMED | WRITES,
        ),
        ("SELECT * FROM pg_settings", NONE),
        ("UPDATE settings SET setting = 1", WRITES),
        ("ALTER ROLE x SET work_mem = 1", UNNAMED | WRITES),
        ("ALTER USER x SET work_mem = 1", UNNAMED | WRITES),
        ("ALTER GROUP x ADD USER y", UNNAMED | WRITES),
        ("ALTER DATABASE x SET work_mem = 1", UNNAMED | WRITES),
        ("ALTER SYSTEM SET work_mem = 1", UNNAMED | WRITES),
        ("ALTER TABLE x ADD y int", WRITES),
        ("DO $$ BEGIN SET x = 1; END $$", UNNAMED | HOLD | WRITES | CHANNELS),
        ("CALL p(1)", UNNAMED | HOLD | WRITES | CHANNELS),
        ("SHOW work_mem", NONE),
        ("SHOW synapsedb.token", OWN),
        ("SHOW SynapseDB . token", OWN),
        ("SET synapsedb.token = 'x'", SET | OWN),
        ("SET SESSION \"synapsedb\".token = 'x'", SET | OWN),
        ("SET LOCAL synapsedb.token = 'x'", OWN),
        ("RESET synapsedb.token", SET | OWN),
        ("SET search_path = public, more, synapsedb", SET),
        ("SELECT * FROM synapsedb.conflict", NONE),
    ]);
}

#[test]
fn calls_of_set_config() {
    check(&[
        ("SELECT set_config('a', 'b', true)", NONE),
        ("SELECT set_config('a', (b || 'c'), true), 1", NONE),
        ("SELECT set_config('a', f(x, y)[1, 2], true)", NONE),
        ("SELECT set_config('a', 'b', false)", SET),
        ("SELECT pg_catalog.set_config ( 'a' , $1 , FALSE )", SET),
        ("SELECT \"set_config\"('a', 'b', 'f')", SET),
        ("SELECT set_config('a', 'b', $1)", SET),
        ("SELECT set_config('a', 'b', (true))", SET),
        ("SELECT set_config('a', 'b', true AND false)", SET),
        ("SELECT set_config('a', 'b', NOT true)", SET),
        ("SELECT set_config('a', 'b', is_local => true)", SET),
        ("SELECT set_config('a', ARRAY['b', true], false)", SET),
        ("SELECT set_config($1, $2, false)", UNNAMED),
        ("SELECT set_config(E'a', 'b', false)", UNNAMED),
        ("SELECT set_config('a' || 'b', 'b', false)", UNNAMED),
        ("SELECT set_config(setting_name => 'a', new_value => 'b', is_local => false)", UNNAMED),
        ("SELECT set_config(name, setting, false) FROM x", UNNAMED),
        ("SELECT set_config('a', set_config('b', 'c', true), true)", UNNAMED),
        ("SELECT set_config('a', 'b', true), set_config('c', 'd', false)", SET),
        ("SELECT set_config('search_path', 'pg_temp', false)", SET | HOLD),
        ("SELECT set_config FROM t", NONE),
        ("SELECT set_config, (1, 2, 3) FROM t", NONE),
        ("SELECT set_configs('a', 'b', false)", NONE),
        ("SELECT 'set_config(a, b, false)'", NONE),
        // Cut off, which PostgreSQL refuses.
        ("SELECT set_config('a', 'b', true", UNNAMED),
    ]);
    // What PostgreSQL unescapes may be any name.
    let hidden = Traits::of(b"SELECT U&\"\\0073et_config\"('a', 'b', false)").flags;
    assert_eq!(hidden, HIDDEN);
    assert!(hidden.has(SET) && hidden.has(HOLD) && hidden.has(WRITES));
}

#[test]
fn what_stays_in_the_session() {
    check(&[
        ("CREATE TEMP TABLE t (i int)", HOLD | WRITES),
        ("CREATE TEMPORARY SEQUENCE s", HOLD | WRITES),
        ("CREATE LOCAL TEMP TABLE t (i int)", HOLD | WRITES),
        ("CREATE GLOBAL TEMPORARY TABLE t (i int)", HOLD | WRITES),
        ("CREATE OR REPLACE TEMP VIEW v AS SELECT 1", HOLD | WRITES),
        ("SELECT 1 INTO TEMP t", HOLD | WRITES),
        ("SELECT 1 INTO LOCAL TEMPORARY TABLE t", HOLD | WRITES),
        ("CREATE TABLE pg_temp.t (i int)", HOLD | WRITES),
        ("CREATE FUNCTION pg_temp_3.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", HOLD | WRITES),
        ("EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1", HOLD | WRITES),
        ("CREATE TABLE weather (temp int, temporary bool)", WRITES),
        ("SELECT temp FROM weather", NONE),
        ("LISTEN x", HOLD | CHANNELS),
        ("UNLISTEN *", RELEASE | CHANNELS),
        ("NOTIFY x", WRITES | CHANNELS),
        ("PREPARE p AS SELECT 1", HOLD),
        ("PREPARE p (int) AS INSERT INTO t VALUES ($1)", HOLD | WRITES),
        ("PREPARE transaction AS SELECT 'x'", HOLD),
        ("PREPARE transaction (int) AS SELECT 1", HOLD),
        ("PREPARE TRANSACTION 'x'", END | WRITES),
        ("EXECUTE p", WRITES),
        ("DEALLOCATE p", RELEASE),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", HOLD),
        ("DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1", NONE),
        ("DECLARE c CURSOR FOR SELECT 1", NONE),
        ("DECLARE c CURSOR FOR SELECT * FROM t FOR UPDATE", WRITES),
        ("FETCH ALL FROM c", NONE),
        ("MOVE NEXT IN c", NONE),
        ("CLOSE c", RELEASE),
        ("LOAD 'auto_explain'", HOLD),
        ("SELECT pg_advisory_lock(1)", HOLD),
        ("SELECT pg_catalog.pg_advisory_lock_shared(1, 2)", HOLD),
        ("SELECT PG_TRY_ADVISORY_LOCK(1)", HOLD),
        ("SELECT \"pg_try_advisory_lock_shared\"(1)", HOLD),
        ("SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock(1)", NONE),
        ("SELECT pg_advisory_unlock(1)", RELEASE),
        ("SELECT pg_advisory_unlock_all()", RELEASE),
        ("SELECT setseed(0.5)", HOLD),
        ("SELECT dblink_connect('x', 'y')", HOLD),
        ("SELECT pg_create_logical_replication_slot('a', 'b', true)", HOLD | WRITES),
        ("SELECT pg_replication_origin_session_setup('x')", HOLD | WRITES),
        ("SELECT 'pg_advisory_lock(1)', $$CREATE TEMP TABLE$$ -- LISTEN x", NONE),
        ("DROP TABLE t", RELEASE | WRITES),
        ("DROP DATABASE IF EXISTS x", RELEASE | WRITES | Flags::OTHER_DATABASE_DROP),
        ("DROP TABLE database", RELEASE | WRITES),
    ]);
}

#[test]
fn transactions() {
    check(&[
        ("BEGIN", BEGIN),
        ("BEGIN TRANSACTION READ ONLY", BEGIN),
        ("START TRANSACTION", BEGIN),
        ("COMMIT", END),
        ("END WORK", END),
        ("ABORT", END),
        ("ROLLBACK", END),
        ("ROLLBACK TRANSACTION", END),
        ("COMMIT AND CHAIN", BEGIN | END),
        ("ROLLBACK WORK AND CHAIN", BEGIN | END),
        ("COMMIT AND NO CHAIN", END),
        ("ROLLBACK TO x", NONE),
        ("ROLLBACK WORK TO SAVEPOINT x", NONE),
        ("ROLLBACK TRANSACTION TO x", NONE),
        ("COMMIT PREPARED 'x'", WRITES),
        ("ROLLBACK PREPARED 'x'", WRITES),
        ("SAVEPOINT x", NONE),
        ("RELEASE SAVEPOINT x", NONE),
        ("SELECT 1 AS begin", NONE),
        ("BEGIN; INSERT INTO t VALUES (1); COMMIT", BEGIN | END | WRITES | SEVERAL),
        ("SELECT CASE WHEN true THEN 1 END", NONE),
    ]);
}

#[test]
fn writing() {
    check(&[
        ("SELECT 1", NONE),
        ("((SELECT 1))", NONE),
        ("(SELECT 1) UNION (VALUES (2))", NONE),
        ("VALUES (1)", NONE),
        ("TABLE t", NONE),
        ("WITH a AS (SELECT 1) SELECT * FROM a", NONE),
        ("EXPLAIN DELETE FROM t", NONE),
        ("EXPLAIN (COSTS off) INSERT INTO t VALUES (1)", NONE),
        ("EXPLAIN ANALYZE SELECT 1", WRITES),
        ("EXPLAIN (VERBOSE, ANALYSE) SELECT 1", WRITES),
        ("SELECT * FROM t FOR UPDATE", WRITES),
        ("SELECT * FROM t FOR NO KEY UPDATE", WRITES),
        ("SELECT * FROM t FOR SHARE OF t NOWAIT", WRITES),
        ("SELECT * FROM t FOR KEY SHARE SKIP LOCKED", WRITES),
        ("SELECT share FROM t", NONE),
        ("SELECT substring('x' FOR 2)", NONE),
        ("SELECT 1 INTO t", WRITES),
        ("WITH a AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM a", WRITES),
        ("WITH a AS (SELECT 1) UPDATE t SET x = 1", WRITES),
        ("WITH a AS (DELETE FROM t RETURNING 1) SELECT 1", WRITES),
        ("WITH a AS (SELECT 1) MERGE INTO t USING a ON true WHEN MATCHED THEN DO NOTHING", WRITES),
        ("INSERT INTO t VALUES (1)", WRITES),
        ("UPDATE t SET x = 1", WRITES),
        ("DELETE FROM t", WRITES),
        ("MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE", WRITES),
        ("SELECT nextval('s')", WRITES),
        ("SELECT pg_catalog.setval('s', 1)", WRITES),
        ("SELECT currval('s'), lastval()", NONE),
        ("SELECT pg_notify('x', 'y')", WRITES | CHANNELS),
        ("SELECT * FROM pg_listening_channels()", CHANNELS),
        ("SELECT notify, listen FROM t", NONE),
        ("SELECT lo_create(0), lo_unlink(1)", WRITES),
        ("SELECT txid_current()", WRITES),
        ("SELECT txid_current_if_assigned()", NONE),
        ("SELECT pg_current_wal_lsn()", NONE),
        ("COPY t TO STDOUT", NONE),
        ("COPY (SELECT * FROM t) TO STDOUT", NONE),
        ("COPY t (a, b) FROM STDIN", WRITES),
        ("COPY t TO PROGRAM 'rm x'", WRITES),
        ("COPY (DELETE FROM t RETURNING 1) TO STDOUT", WRITES),
        ("LOCK t", WRITES),
        ("VACUUM", WRITES),
        ("TRUNCATE t", WRITES),
        ("CREATE TABLE t (i int)", WRITES),
        ("GRANT SELECT ON t TO x", WRITES),
        ("nonsense", WRITES),
        ("'nonsense'", WRITES),
        ("\"select\" 1", WRITES),
        ("SELECT \"delete\", a.\"into\" FROM \"update\"", NONE),
    ]);
}

#[test]
fn several() {
    for (text, is_several) in [
        ("", false),
        (" ;; -- nothing\n/* ; */", false),
        ("SELECT 1;", false),
        (";SELECT 1;;", false),
        ("SELECT ';', \";\", $$;$$, E'\\';', $a$;$$;$a$", false),
        ("SELECT 1; SELECT 2", true),
        ("(SELECT 1);(SELECT 2)", true),
        ("(SELECT 1)", false),
        ("SELECT 1; x", true),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END", true),
    ] {
        let flags = Traits::of(text.as_bytes()).flags;
        assert_eq!(flags.has(SEVERAL), is_several, "{text}");
    }
    check(&[
        ("SELECT 1; SET x = 1", SET | SEVERAL),
        ("SET LOCAL x = 1; LISTEN y; SELECT nextval('z')", HOLD | WRITES | SEVERAL | CHANNELS),
    ]);
    // What is in a body counts, so that nothing can hide behind one.
    let body = b"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1 AS case; END; SET x = 1";
    assert!(Traits::of(body).flags.has(SET));
}

#[test]
fn definitions() {
    for text in [
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'select 1'",
        "create or replace view v as select 1",
        "CREATE MATERIALIZED VIEW m AS SELECT 1",
        "ALTER FUNCTION f() VOLATILE",
        "DROP SCHEMA s CASCADE",
        "CREATE EXTENSION hstore",
        "DO $$ begin create function f() returns int as 'select 1'; end $$",
    ] {
        assert!(Traits::of(text.as_bytes()).flags.has(Flags::DEFINES), "{text}");
    }
    for text in [
        "CREATE TABLE t (a int)",
        "SELECT view, schema FROM t",
        "INSERT INTO function VALUES ('create function')",
        "DO $$ begin insert into t values (1); end $$",
        "DROP TABLE t",
    ] {
        assert!(!Traits::of(text.as_bytes()).flags.has(Flags::DEFINES), "{text}");
    }
}

#[test]
fn backslashes() {
    for (text, has_backslash) in [
        (r"SELECT 'a\'", true),
        (r"SELECT E'a\''", false),
        (r"SELECT $$\$$, U&'\0061' -- \", false),
    ] {
        assert_eq!(
            Traits::of(text.as_bytes()).flags.has(Flags::BACKSLASH),
            has_backslash,
            "{text}"
        );
    }
}

#[test]
fn flags_are_printed_by_name() {
    let shown = format!("{:?}", Traits::of(b"LISTEN x; SELECT 1").flags);
    assert_eq!(shown, r#"{"MAY_HOLD", "UTILITY", "SEVERAL", "CHANNELS"}"#);
    assert!(Traits::of(b"SELECT 1").flags.is_empty());
}

#[test]
fn calls() {
    for (text, calls) in [
        ("SELECT f(1)", true),
        ("SELECT \"count\"(1)", true),
        ("SELECT s.count(1)", true),
        ("SELECT share(1)", true),
        ("SELECT 1 WHERE f (2)", true),
        ("SELECT count(*), lower(a), replace(b, 'c', 'd') FROM t", false),
        (
            "SELECT a FROM t WHERE (b) AND (c) OR NOT (d) AND e IN (1, 2) AND EXISTS (SELECT 1)",
            false,
        ),
        ("SELECT coalesce(a, CASE WHEN (b) THEN (1) ELSE (2) END) + (3)", false),
        ("SELECT sum(a) FILTER (WHERE b) OVER (PARTITION BY (c) ORDER BY (d))", false),
        (
            "WITH w AS (SELECT 1) SELECT a, b FROM (VALUES (1)) JOIN LATERAL (SELECT 1) ON (true)",
            false,
        ),
        ("SELECT now()::numeric(10, 2), current_timestamp(3)", false),
        ("SELECT 'f(1)', $$f(1)$$ -- f(1)", false),
        ("SELECT 'f' (1)", false),
        ("SELECT pg_sleep(60), inet_server_port()", false),
    ] {
        assert_eq!(Traits::of(text.as_bytes()).flags.has(Flags::CALLS), calls, "{text}");
    }
}

/// The verbs that the parser gives the tags of a read, and those words tell, must agree: what PostgreSQL's parser
/// calls a write is one here.
#[test]
fn no_write_escapes() {
    for text in include_str!("statements.sql").split("\n\n").filter(|text| !text.starts_with("--"))
    {
        let statements = super::super::split(text).unwrap();
        let flags = Traits::of(text.as_bytes()).flags;
        let reads = [
            "SELECT",
            "SHOW",
            "EXPLAIN",
            "BEGIN",
            "START TRANSACTION",
            "COMMIT",
            "ROLLBACK",
            "SAVEPOINT",
            "RELEASE",
            "SET",
            "RESET",
            "FETCH",
            "MOVE",
            "CLOSE CURSOR",
            "DECLARE CURSOR",
            "PREPARE",
            "DEALLOCATE",
            "LISTEN",
            "UNLISTEN",
            "DISCARD ALL",
            "LOAD",
            "COPY",
            "CLOSE CURSOR ALL",
            "DEALLOCATE ALL",
            "DISCARD PLANS",
            "SET CONSTRAINTS",
        ];
        let writes = statements.iter().any(|statement| !reads.contains(&statement.tag));
        assert!(flags.has(WRITES) || !writes, "{text}");
        assert_eq!(flags.has(SEVERAL), statements.len() > 1, "{text}");
        let temporary = statements.iter().any(|statement| statement.temporary);
        assert!(flags.has(HOLD) || !temporary, "{text}");
    }
}

proptest! {
    #[test]
    fn nothing_panics(
        bytes: Vec<u8>, text in "(SET|BEGIN|set_config|;|\\(|\\)|,|true|'|\"|pg_temp|\\$\\$| |[.=\\[\\]]|TO|LOCAL){0,20}",
    ) {
        let _ = Traits::of(&bytes);
        let _ = Traits::of(text.as_bytes());
    }

    /// What follows a statement does not take away what it does.
    #[test]
    fn flags_add_up(first in 0..STATEMENTS.len(), second in 0..STATEMENTS.len()) {
        let (first, second) = (STATEMENTS[first], STATEMENTS[second]);
        let each = Traits::of(first.as_bytes()).flags | Traits::of(second.as_bytes()).flags;
        let both = Traits::of(format!("{first};{second}").as_bytes()).flags;
        prop_assert_eq!(both, each | SEVERAL);
    }
}

const STATEMENTS: [&str; 12] = [
    "SET x = 1",
    "SET LOCAL x = 1",
    "SELECT set_config('a', 'b', false)",
    "SELECT set_config('a', 'b', true",
    "BEGIN",
    "ROLLBACK TO x",
    "COMMIT AND CHAIN",
    "CREATE TEMP TABLE t ()",
    "(SELECT 1",
    "PREPARE TRANSACTION 'x'",
    "UPDATE t SET x = 1",
    "SELECT * FROM pg_settings",
];

/// Run it alone, optimised: `cargo test --release -p synapsedb-pg traits -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn how_fast() {
    let long = format!("INSERT INTO t VALUES ('{}')", "x".repeat(100_000));
    for text in [
        "SELECT abalance FROM pgbench_accounts WHERE aid = 4711 ;",
        "BEGIN",
        "UPDATE pgbench_accounts SET abalance = abalance + -42 WHERE aid = 4711;",
        "SELECT o.id, c.name FROM orders o JOIN customer c ON c.id = o.customer_id WHERE o.placed > now() - $1 \
         AND c.region IN ('eu', 'us') ORDER BY o.placed DESC LIMIT 50",
        &long,
    ] {
        let rounds = 20_000_000 / (text.len() as u32 + 20);
        let started = std::time::Instant::now();
        for _ in 0..rounds {
            std::hint::black_box(Traits::of(std::hint::black_box(text.as_bytes())));
        }
        let each_ns = started.elapsed().as_nanos() as f64 / f64::from(rounds);
        let shown: String = text.chars().take(60).collect();
        println!(
            "{each_ns:9.1} ns, {:6.2} ns/byte, {} bytes: {shown}",
            each_ns / text.len() as f64,
            text.len()
        );
    }
}

#[test]
fn what_commits_and_what_may_commit_by_itself() {
    for (text, commits, utility) in [
        ("COMMIT", true, true),
        ("end work;", true, true),
        ("COMMIT AND CHAIN", true, true),
        ("/* x */ commit transaction -- y", true, true),
        ("ROLLBACK", false, true),
        ("ABORT", false, true),
        ("COMMIT PREPARED 'x'", false, true),
        ("ROLLBACK PREPARED 'x'", false, true),
        ("PREPARE TRANSACTION 'x'", false, true),
        ("BEGIN", false, true),
        ("select 1", false, false),
        ("(select 1)", false, false),
        ("insert into t values (1) returning a", false, false),
        ("update t set a = case when b then 1 end", false, false),
        ("delete from t", false, false),
        ("merge into t using u on true when matched then delete", false, false),
        ("with a as (insert into t values (1)) select 1", false, false),
        ("values (1)", false, false),
        ("table t", false, false),
        ("insert into t values (1); commit", true, true),
        ("select 1; vacuum", false, true),
        ("vacuum t", false, true),
        ("call p()", false, true),
        ("do 'x'", false, true),
        ("explain analyze insert into t values (1)", false, true),
        ("copy t from stdin", false, true),
        ("notify x", false, true),
        ("execute p", false, true),
        ("create table t (a int)", false, true),
        ("lock t", false, true),
    ] {
        let flags = Traits::of(text.as_bytes()).flags;
        assert_eq!(
            (flags.has(Flags::COMMITS), flags.has(Flags::UTILITY)),
            (commits, utility),
            "{text}"
        );
    }
}
