//! Statements of every kind, split, named and rewritten.

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn tags(sql: &str) -> Vec<&'static str> {
    split(sql).unwrap().iter().map(|statement| statement.tag).collect()
}

/// A concatenation too deep for a parse tree.
fn deep(levels: usize) -> String {
    vec!["a"; levels].join(" || ")
}

#[test]
fn splits_where_statements_end() {
    let sql = "-- first; not a statement\nCREATE TABLE \"a;b\" (t text DEFAULT 'x;y'); ;
        /* ; /* nested ; */ */ CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $body$
          BEGIN PERFORM 1; PERFORM 'ä'; END; $body$;
        CREATE FUNCTION g(i int) RETURNS int BEGIN ATOMIC SELECT 1; SELECT i; END;
        CREATE PROCEDURE h() LANGUAGE sql BEGIN ATOMIC INSERT INTO t VALUES (1); END
        ; DO $$ BEGIN NULL; END $$ -- the end;";
    let statements = split(sql).unwrap();
    let tags: Vec<_> = statements.iter().map(|statement| statement.tag).collect();
    assert_eq!(
        tags,
        ["CREATE TABLE", "CREATE FUNCTION", "CREATE FUNCTION", "CREATE PROCEDURE", "DO"]
    );
    assert!(statements[0].text.ends_with("DEFAULT 'x;y')"));
    assert!(statements[1].text.ends_with("$body$"));
    assert!(statements[2].text.ends_with("SELECT i; END"));
    // Each part is a statement by itself.
    for statement in &statements {
        assert_eq!(split(&statement.text).unwrap(), std::slice::from_ref(statement));
    }
    assert!(split(" -- nothing\n;; /* here */").unwrap().is_empty());
    assert!(split("").unwrap().is_empty());
}

#[test]
fn refuses_what_postgresql_refuses() {
    assert!(
        matches!(split("CREATE TABEL x"), Err(SqlError::Syntax(text)) if text.contains("TABEL"))
    );
    assert!(split("SELECT 1; SELEC 2").is_err());
    assert!(split("SELECT 'open").is_err());
    assert!(split("SELECT \0").is_err());
    let long = " ".repeat(TEXT_BYTES_MAX + 1);
    assert_eq!(split(&long), Err(SqlError::TooLong { bytes: TEXT_BYTES_MAX + 1 }));
}

#[test]
fn tags_of_postgresql() {
    for (sql, tag) in [
        ("CREATE TABLE t AS SELECT 1", "CREATE TABLE AS"),
        ("SELECT 1 INTO t", "SELECT INTO"),
        ("SELECT 1 INTO t UNION SELECT 2 UNION SELECT 3", "SELECT INTO"),
        ("SELECT 1 FOR UPDATE", "SELECT"),
        ("VALUES (1)", "SELECT"),
        ("WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x", "SELECT"),
        ("CREATE MATERIALIZED VIEW m AS SELECT 1", "CREATE MATERIALIZED VIEW"),
        ("CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)", "CREATE INDEX"),
        ("ALTER TABLE t ADD COLUMN a int", "ALTER TABLE"),
        ("ALTER INDEX i SET (fillfactor = 70)", "ALTER INDEX"),
        ("ALTER VIEW v ALTER a SET DEFAULT 1", "ALTER VIEW"),
        ("ALTER TABLE t RENAME COLUMN a TO b", "ALTER TABLE"),
        ("ALTER VIEW v RENAME COLUMN a TO b", "ALTER VIEW"),
        ("ALTER TABLE t RENAME CONSTRAINT a TO b", "ALTER TABLE"),
        ("ALTER TYPE c RENAME ATTRIBUTE a TO b", "ALTER TYPE"),
        ("ALTER TYPE c ADD ATTRIBUTE a int", "ALTER TYPE"),
        ("ALTER TYPE e ADD VALUE 'x'", "ALTER TYPE"),
        ("ALTER SEQUENCE s OWNER TO me", "ALTER SEQUENCE"),
        ("ALTER FUNCTION f() SET SCHEMA x", "ALTER FUNCTION"),
        ("ALTER DOMAIN d RENAME CONSTRAINT a TO b", "ALTER DOMAIN"),
        ("CREATE AGGREGATE a (int) (sfunc = f, stype = int)", "CREATE AGGREGATE"),
        ("CREATE TYPE c AS (a int)", "CREATE TYPE"),
        ("CREATE TYPE e AS ENUM ('a')", "CREATE TYPE"),
        ("CREATE TEXT SEARCH CONFIGURATION c (COPY = simple)", "CREATE TEXT SEARCH CONFIGURATION"),
        ("CREATE EXTENSION vector", "CREATE EXTENSION"),
        (
            "CREATE CONSTRAINT TRIGGER g AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
            "CREATE TRIGGER",
        ),
        ("DROP TABLE a, b CASCADE", "DROP TABLE"),
        ("DROP MATERIALIZED VIEW m", "DROP MATERIALIZED VIEW"),
        ("DROP FUNCTION f", "DROP FUNCTION"),
        ("DROP FOREIGN DATA WRAPPER w", "DROP FOREIGN DATA WRAPPER"),
        ("TRUNCATE t", "TRUNCATE TABLE"),
        ("GRANT SELECT ON t TO r", "GRANT"),
        ("REVOKE a FROM b", "REVOKE ROLE"),
        ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO r", "ALTER DEFAULT PRIVILEGES"),
        ("COMMENT ON TABLE t IS 'x'", "COMMENT"),
        ("REFRESH MATERIALIZED VIEW m", "REFRESH MATERIALIZED VIEW"),
        ("START TRANSACTION", "START TRANSACTION"),
        ("END", "COMMIT"),
        ("ROLLBACK TO s", "ROLLBACK"),
        ("RESET ALL", "RESET"),
        ("SET x = 1", "SET"),
        ("ANALYZE t", "ANALYZE"),
        ("DISCARD TEMP", "DISCARD TEMP"),
        ("MOVE 1 IN c", "MOVE"),
        ("CREATE VIEW v AS SELECT 1", "CREATE VIEW"),
        ("CREATE USER u", "CREATE ROLE"),
        ("IMPORT FOREIGN SCHEMA a FROM SERVER b INTO c", "IMPORT FOREIGN SCHEMA"),
    ] {
        assert_eq!(tags(sql), [tag], "{sql}");
    }
}

#[test]
fn temporary_objects() {
    for (sql, temporary) in [
        ("CREATE TEMP TABLE t (a int)", true),
        ("CREATE TABLE pg_temp.t (a int)", true),
        ("CREATE TABLE t (a int)", false),
        ("CREATE UNLOGGED TABLE t (a int)", false),
        ("CREATE LOCAL TEMPORARY TABLE t AS SELECT 1", true),
        ("SELECT 1 INTO TEMP t UNION SELECT 2", true),
        ("SELECT 1 INTO t", false),
        ("CREATE TEMP VIEW v AS SELECT 1", true),
        ("CREATE TEMP SEQUENCE s", true),
        ("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", true),
        ("CREATE TYPE pg_temp.e AS ENUM ()", true),
        ("CREATE INDEX ON pg_temp.t (a)", true),
        ("ALTER TABLE pg_temp.t ADD b int", true),
        ("DROP TABLE pg_temp.t", true),
        ("DROP TABLE pg_temporal.t, x", false),
        ("DROP TABLE pg_temp", false),
    ] {
        assert_eq!(split(sql).unwrap()[0].temporary, temporary, "{sql}");
    }
}

#[test]
fn tables_without_their_rows() {
    for (sql, rewritten) in [
        ("CREATE TABLE t AS SELECT 1 AS a", "CREATE TABLE t AS SELECT 1 AS a WITH NO DATA"),
        (
            "CREATE UNLOGGED TABLE IF NOT EXISTS s.t (x) WITH (fillfactor = 70) AS TABLE u WITH DATA",
            "CREATE UNLOGGED TABLE IF NOT EXISTS s.t(x) WITH (fillfactor=70) AS SELECT * FROM u WITH NO DATA",
        ),
        (
            "SELECT a, 'ü' AS b INTO TABLE \"T\" FROM u WHERE a > 1 ORDER BY 1",
            "CREATE TABLE \"T\" AS SELECT a, 'ü' AS b FROM u WHERE a > 1 ORDER BY 1 WITH NO DATA",
        ),
        (
            "SELECT 1 AS a INTO t UNION ALL SELECT 2",
            "CREATE TABLE t AS SELECT 1 AS a UNION ALL SELECT 2 WITH NO DATA",
        ),
        (
            "CREATE MATERIALIZED VIEW m AS SELECT 1",
            "CREATE MATERIALIZED VIEW m AS SELECT 1 WITH NO DATA",
        ),
    ] {
        for sql in [sql, rewritten] {
            // The deparser is generous with blanks.
            let text = without_data(sql).unwrap().replace("  ", " ");
            assert_eq!(text, rewritten, "{sql}");
        }
    }
    for sql in [
        "SELECT 1",
        "CREATE TABLE t (a int)",
        "CREATE TABLE t AS EXECUTE p",
        "",
        "SELECT 1; SELECT 2",
    ] {
        assert!(matches!(without_data(sql), Err(SqlError::OtherKind(_))), "{sql}");
    }
}

#[test]
fn plain_instead_of_concurrent() {
    for (sql, rewritten) in [
        (
            "CREATE INDEX CONCURRENTLY i ON t (lower(a)) WHERE b > 0",
            "CREATE INDEX i ON t USING btree (lower(a)) WHERE b > 0",
        ),
        ("DROP INDEX CONCURRENTLY IF EXISTS i", "DROP INDEX IF EXISTS i"),
        ("REINDEX INDEX CONCURRENTLY i", "REINDEX INDEX i"),
        ("REINDEX (VERBOSE, CONCURRENTLY) TABLE t", "REINDEX (VERBOSE) TABLE t"),
        ("ALTER TABLE p DETACH PARTITION q CONCURRENTLY", "ALTER TABLE p DETACH PARTITION q"),
        (
            "CREATE  INDEX i ON t (a) -- not concurrently",
            "CREATE  INDEX i ON t (a) -- not concurrently",
        ),
        ("REFRESH MATERIALIZED VIEW CONCURRENTLY m", "REFRESH MATERIALIZED VIEW CONCURRENTLY m"),
        ("no concurrently SQL", "no concurrently SQL"),
    ] {
        assert_eq!(without_concurrently(sql), rewritten);
    }
}

#[test]
fn what_nests_too_deep_is_told_by_its_words() {
    let deep = deep(400);
    for (sql, tag, temporary) in [
        (format!("CREATE OR REPLACE VIEW v AS SELECT {deep} FROM t"), "CREATE VIEW", false),
        (format!("CREATE TEMP TABLE x AS SELECT {deep}"), "CREATE TABLE AS", true),
        (format!("CREATE TABLE x (a text, b text DEFAULT ({deep}))"), "CREATE TABLE", false),
        (format!("CREATE UNIQUE INDEX ON t (({deep}))"), "CREATE INDEX", false),
        (format!("ALTER TABLE t ADD CHECK ({deep})"), "ALTER TABLE", false),
        (format!("CREATE MATERIALIZED VIEW m AS SELECT {deep}"), "CREATE MATERIALIZED VIEW", false),
        (format!("SELECT {deep} INTO TEMP x FROM y"), "SELECT INTO", true),
        (format!("(SELECT {deep})"), "SELECT", false),
        (format!("WITH s AS (SELECT 1) INSERT INTO x SELECT {deep}"), "INSERT", false),
        (format!("UPDATE t SET a = {deep}"), "UPDATE", false),
    ] {
        let both = split(&format!("{sql}; CREATE TABLE z ()")).unwrap();
        assert_eq!((both[0].tag, both[0].temporary), (tag, temporary), "{}", &sql[..60]);
        assert_eq!((both[0].text.as_str(), both[1].tag), (sql.as_str(), "CREATE TABLE"));
    }
    let table = format!("CREATE TABLE x AS SELECT {deep}");
    assert_eq!(without_data(&format!("{table} WITH DATA; ")), Ok(format!("{table} WITH NO DATA")));
    assert!(matches!(without_data(&format!("SELECT {deep} INTO t")), Err(SqlError::TooDeep(_))));
    let index = format!("INDEX CONCURRENTLY i ON t (({deep}))");
    let plain = index.replace("CONCURRENTLY", "");
    assert_eq!(without_concurrently(&format!("CREATE {index}")), format!("CREATE {plain}"));
}

/// What PostgreSQL would refuse by its stack limit must not end our process.
#[test]
fn no_depth_overflows_the_stack() {
    let small = std::thread::Builder::new().stack_size(512 * 1024);
    let work = || {
        for levels in [1500, 20_000, 250_000] {
            let long = format!("SELECT {}", vec!["1"; levels].join("+"));
            assert_eq!(split(&long).unwrap()[0].tag, "SELECT");
            let _ = split(&format!("SELECT {}1{}", "(".repeat(levels), ")".repeat(levels)));
            let _ = split(&format!("SELECT {}1", "- ".repeat(levels)));
            let _ = split(&format!("SELECT {}1", "NOT ".repeat(levels)));
        }
    };
    small.spawn(work).unwrap().join().unwrap();
}

proptest! {
    #[test]
    fn nothing_panics(sql in ".{0,60}") {
        let _ = split(&sql);
        let _ = without_data(&sql);
        without_concurrently(&sql);
        let _ = (words::tag_and_temporary(&sql), words::without_data(&sql));
    }

    #[test]
    fn words_never_panic(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "CREATE", "TEMP", "TABLE", "INDEX", "CONCURRENTLY", "AS", "SELECT", "INTO", "(", ")", ";", "WITH",
                "NO", "DATA", "--x\n", "'ä'", "$$;$$", "pg_temp", ".", "DROP", "BEGIN", "ATOMIC", "END", "UNION",
            ]),
            0..12,
        ),
    ) {
        let sql = parts.join(" ");
        let _ = (words::tag_and_temporary(&sql), words::without_data(&sql));
        let _ = (words::without_concurrently(&sql), without_data(&sql), split(&sql));
        without_concurrently(&sql);
    }
}
