//! Statements as the server itself splits, names and runs them.

use synapsedb_pg::conn::Connection;
use synapsedb_pg::wire::backend::{self, ServerError};
use synapsedb_pg::wire::frontend;
use synapsedb_pg::{Config, sql};

use crate::support::server;

/// DDL with everything that makes splitting hard; no statement depends on an earlier one's rows.
const DDL: &str = r#"
CREATE SCHEMA "odd;name"; -- a comment; with a semicolon
CREATE TABLE t (id int PRIMARY KEY, a text DEFAULT 'x;y', b text);
/* one /* two; */ */ CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE FUNCTION f(i int) RETURNS int LANGUAGE plpgsql AS $fn$
BEGIN
  -- $$ ; $$
  RETURN i; END $fn$;
CREATE FUNCTION g(i int) RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN i > 1 THEN 2 ELSE 3 END; END;
CREATE PROCEDURE h() LANGUAGE sql BEGIN ATOMIC INSERT INTO t VALUES (1); DELETE FROM t; END;
CREATE TABLE u AS SELECT 1 AS x; SELECT 2 AS x INTO v; CREATE TEMP TABLE w AS SELECT 1 AS x;
SELECT 1 AS x INTO TEMP z UNION SELECT 2;
CREATE VIEW view AS SELECT a FROM t; CREATE MATERIALIZED VIEW mat AS SELECT 1 AS x;
ALTER VIEW view RENAME COLUMN a TO c; ALTER TABLE t RENAME CONSTRAINT t_pkey TO key;
ALTER TABLE t RENAME b TO "B"; ALTER TABLE view RENAME TO view2; ALTER TYPE mood RENAME VALUE 'ok' TO 'fine';
CREATE TYPE pair AS (a int, b int); ALTER TYPE pair RENAME ATTRIBUTE a TO c; ALTER TYPE pair ADD ATTRIBUTE d int;
CREATE DOMAIN small AS int CONSTRAINT few CHECK (VALUE < 9); ALTER DOMAIN small RENAME CONSTRAINT few TO less;
CREATE INDEX i ON t (lower(a)); ALTER INDEX i RENAME TO j; REFRESH MATERIALIZED VIEW mat;
CREATE SEQUENCE s; ALTER SEQUENCE s RESTART 5; ALTER FUNCTION f(int) STABLE; ALTER FUNCTION f RENAME TO ff;
CREATE AGGREGATE total (int) (sfunc = int4pl, stype = int); CREATE STATISTICS st ON id, a FROM t;
CREATE RULE r AS ON DELETE TO u DO INSTEAD NOTHING; CREATE POLICY p ON t; ALTER POLICY p ON t RENAME TO q;
CREATE TRIGGER g BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq); COMMENT ON TABLE t IS 'it''s; here';
CREATE COLLATION c (LOCALE = 'C'); CREATE TEXT SEARCH CONFIGURATION ts (COPY = simple);
CREATE FOREIGN DATA WRAPPER fdw; CREATE SERVER srv FOREIGN DATA WRAPPER fdw;
CREATE FOREIGN TABLE ft (a int) SERVER srv; ALTER FOREIGN TABLE ft ADD COLUMN b int;
GRANT SELECT ON t TO PUBLIC; REVOKE SELECT ON t FROM PUBLIC; ALTER SCHEMA "odd;name" RENAME TO even;
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC; ALTER TABLE t SET SCHEMA even;
CREATE PUBLICATION pub; DROP PUBLICATION pub; DROP TABLE u, v; DROP INDEX even.j; DROP MATERIALIZED VIEW mat;
DROP FUNCTION ff, g; DROP PROCEDURE h; DROP AGGREGATE total (int); DROP SERVER srv CASCADE; DROP OWNED BY nobody;
"#;

/// Reports each command the server completes as a notice.
const REPORT: &str = "CREATE FUNCTION report() RETURNS event_trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'tag %', tg_tag; END $$;
    CREATE EVENT TRIGGER report ON ddl_command_end EXECUTE FUNCTION report();";

/// Runs a text by the simple protocol and returns what the event trigger reports.
async fn reported(config: &Config, texts: &[String]) -> Vec<String> {
    let mut connection = Connection::connect(config, false).await.unwrap();
    let mut tags = Vec::new();
    for text in texts {
        frontend::query(connection.writer().buffer(), text).unwrap();
        connection.writer().flush().await.unwrap();
        loop {
            match connection.reader().next().await.unwrap() {
                (backend::READY_FOR_QUERY, _) => break,
                (backend::ERROR_RESPONSE, body) => panic!("{text}: {}", ServerError::parse(&body)),
                (backend::NOTICE_RESPONSE, body) => {
                    let notice = ServerError::parse(&body);
                    tags.extend(notice.message.strip_prefix("tag ").map(str::to_owned));
                }
                _ => {}
            }
        }
    }
    connection.close().await;
    tags
}

#[tokio::test]
async fn tags_and_parts_are_those_of_the_server() {
    let server = server();
    let (config, client) = server.database().await;
    client.batch_execute("CREATE ROLE nobody").await.unwrap();
    client.batch_execute(REPORT).await.unwrap();
    let whole = reported(&config, &[DDL.to_owned()]).await;
    let parts = sql::split(DDL).unwrap();
    let ours: Vec<_> = parts.iter().map(|part| part.tag).collect();
    assert_eq!(ours, whole);
    let temporary = parts.iter().filter(|part| part.temporary).map(|part| part.tag);
    assert_eq!(temporary.collect::<Vec<_>>(), ["CREATE TABLE AS", "SELECT INTO"]);

    // One by one, and with their rows left out, the parts do the same in another database.
    let (config, client) = server.database().await;
    client.batch_execute(REPORT).await.unwrap();
    let texts: Vec<_> = parts
        .iter()
        .map(|part| match part.tag {
            "CREATE TABLE AS" | "SELECT INTO" => sql::without_data(&part.text).unwrap(),
            _ => part.text.clone(),
        })
        .collect();
    let single = reported(&config, &texts).await;
    client.batch_execute("DROP ROLE nobody").await.unwrap();
    let expected: Vec<_> = whole
        .iter()
        .map(|tag| if tag == "SELECT INTO" { "CREATE TABLE AS" } else { tag.as_str() })
        .collect();
    assert_eq!(single, expected);
}

#[tokio::test]
async fn plain_instead_of_concurrent() {
    let server = server();
    let (_config, client) = server.database().await;
    let tables = "CREATE TABLE t (a int, b text COLLATE \"C\"); CREATE TABLE p (a int) PARTITION BY LIST (a);
        CREATE TABLE q PARTITION OF p FOR VALUES IN (1);";
    client.batch_execute(tables).await.unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    for concurrent in [
        "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS \"I\" ON t USING btree
            (b COLLATE \"C\" text_pattern_ops DESC NULLS LAST) INCLUDE (a) WITH (fillfactor = 70) WHERE a IS NOT NULL",
        "REINDEX (VERBOSE) INDEX CONCURRENTLY \"I\"",
        "DROP INDEX CONCURRENTLY \"I\"",
        "ALTER TABLE p DETACH PARTITION q CONCURRENTLY",
    ] {
        let plain = sql::without_concurrently(concurrent);
        client.batch_execute(&plain).await.unwrap();
    }
    client.batch_execute("COMMIT").await.unwrap();
}
