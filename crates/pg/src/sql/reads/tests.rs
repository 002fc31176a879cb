//! Which texts only read, with a function in every place where one can stand.

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn names() -> Names {
    let mut names = Names::default();
    for name in
        ["lower", "count", "sum", "now", "extract", "max", "unnest", "coalesce", "row_number", "f"]
    {
        names.add_function("pg_catalog", name, false);
    }
    for name in ["nextval", "random", "pg_sleep"] {
        names.add_function("pg_catalog", name, true);
    }
    names.add_function("public", "audit", true);
    names.add_function("public", "lower", false);
    names.add_function("public", "Odd", true);
    names
}

fn name(name: &str) -> Verdict {
    Verdict::Write(Reason::Name(name.to_owned()))
}

#[test]
fn reads_and_writes() {
    const WORDS: Verdict = Verdict::Write(Reason::Words);
    let unknown = |name: &str| Verdict::Write(Reason::UnknownFunction(name.to_owned()));
    for (text, verdict) in [
        ("SELECT 1", Verdict::Read),
        ("", Verdict::Read),
        ("(SELECT 1); TABLE t; VALUES (1), (2)", Verdict::Read),
        ("SELECT LOWER(a), count(*), pg_catalog.now() FROM t WHERE b IN (1, 2)", Verdict::Read),
        ("SELECT random(), pg_sleep(1)", Verdict::Read),
        (
            "WITH w(a) AS (SELECT 1) SELECT sum(a) OVER (PARTITION BY a) FROM w, t x(a, b)",
            Verdict::Read,
        ),
        ("SELECT extract(year FROM now()), a::numeric(10, 2)", Verdict::Read),
        ("SHOW work_mem", Verdict::Read),
        ("EXPLAIN SELECT 1", Verdict::Read),
        ("COPY (SELECT lower(a) FROM t) TO STDOUT", Verdict::Read),
        ("SELECT 'nextval(1)', $$audit()$$ -- audit()", Verdict::Read),
        ("SELECT odd FROM t", Verdict::Read),
        ("SELECT audit()", name("audit")),
        ("SELECT public.\"audit\"()", name("audit")),
        ("SELECT AUDIT ()", name("audit")),
        ("SELECT t.audit FROM t", name("audit")),
        ("SELECT \"Odd\"()", name("Odd")),
        ("SELECT lower(a), stranger(b) FROM t", unknown("stranger")),
        ("SELECT \"LOWER\"(a) FROM t", unknown("LOWER")),
        ("SELECT nextval('s')", WORDS),
        ("SELECT 1; SET x = 1", WORDS),
        ("SELECT * FROM t FOR UPDATE", WORDS),
        ("SELECT 1 INTO t", WORDS),
        ("SELECT 'a\\'", WORDS),
        ("EXPLAIN ANALYZE SELECT 1", WORDS),
        ("WITH a AS (DELETE FROM t RETURNING 1) SELECT * FROM a", WORDS),
        ("INSERT INTO t VALUES (1)", WORDS),
        ("COPY t TO STDOUT", Verdict::Read),
        ("copy t (a, b) to stdout with (format csv); SELECT 1", Verdict::Read),
        ("COPY t TO '/tmp/x'", WORDS),
        ("COPY t TO 'stdout'; SELECT 1", WORDS),
        ("COPY (SELECT 1) TO PROGRAM 'cat'", WORDS),
        ("COPY t FROM STDIN", WORDS),
        ("BEGIN", WORDS),
        ("FETCH c", WORDS),
        ("DECLARE c CURSOR FOR SELECT 1", WORDS),
        ("SAVEPOINT s", WORDS),
        ("PREPARE p AS SELECT 1", WORDS),
        ("EXECUTE p", WORDS),
        ("\"select\" 1", WORDS),
        ("nonsense", WORDS),
        ("SELECT lower(", Verdict::Write(Reason::Unparsed)),
        ("SELECT lower('\0')", Verdict::Write(Reason::Unparsed)),
    ] {
        assert_eq!(decide(text, &names()), verdict, "{text}");
    }
    let long = format!("SELECT 1 -- {}", "x".repeat(TEXT_BYTES_MAX));
    assert_eq!(decide(&long, &names()), Verdict::Write(Reason::Unparsed));
    assert!(HARMLESS.is_sorted());
}

/// Everywhere an expression can stand.
const PLACES: [&str; 88] = [
    "SELECT {}",
    "SELECT 1 WHERE {} > 1",
    "SELECT 1 GROUP BY {}",
    "SELECT 1 GROUP BY ROLLUP ({}, 1)",
    "SELECT count(*) HAVING {} > 1",
    "SELECT 1 ORDER BY {} DESC",
    "SELECT 1 LIMIT {}",
    "SELECT 1 OFFSET {}",
    "SELECT 1 FETCH FIRST {} ROWS ONLY",
    "SELECT DISTINCT ON ({}) 1",
    "SELECT DISTINCT ON (a) {} FROM t",
    "VALUES (1, {})",
    "SELECT * FROM {}",
    "SELECT * FROM {} AS a (b)",
    "SELECT * FROM ROWS FROM (f(1), {})",
    "SELECT * FROM t, LATERAL {} x",
    "SELECT * FROM t JOIN u ON {} = 1",
    "SELECT * FROM (SELECT {}) s",
    "SELECT * FROM t TABLESAMPLE bernoulli ({})",
    "SELECT * FROM t TABLESAMPLE bernoulli (1) REPEATABLE ({})",
    "WITH w AS (SELECT {}) SELECT 1",
    "WITH RECURSIVE w AS (SELECT 1 UNION ALL SELECT {} FROM w) SELECT 1",
    "SELECT 1 UNION SELECT {}",
    "SELECT 1 EXCEPT (SELECT 2 INTERSECT SELECT {})",
    "SELECT (SELECT {})",
    "SELECT ARRAY(SELECT {})",
    "SELECT ARRAY[1, {}]",
    "SELECT a[{}] FROM t",
    "SELECT a[1:{}] FROM t",
    "SELECT EXISTS (SELECT {})",
    "SELECT 1 WHERE 1 IN (2, {})",
    "SELECT 1 WHERE {} IN (SELECT 1)",
    "SELECT 1 WHERE 1 = ANY (ARRAY[{}])",
    "SELECT CASE {} WHEN 1 THEN 2 END",
    "SELECT CASE WHEN {} > 1 THEN 2 END",
    "SELECT CASE WHEN true THEN {} END",
    "SELECT CASE WHEN true THEN 1 ELSE {} END",
    "SELECT COALESCE(1, {})",
    "SELECT GREATEST(1, {})",
    "SELECT NULLIF(1, {})",
    "SELECT ROW(1, {})",
    "SELECT (1, {})",
    "SELECT {}::text",
    "SELECT CAST({} AS text)",
    "SELECT {} COLLATE \"C\"",
    "SELECT {} IS NULL",
    "SELECT {} IS TRUE",
    "SELECT {} BETWEEN 1 AND 2",
    "SELECT 1 BETWEEN {} AND 2",
    "SELECT 'a' LIKE {}",
    "SELECT 'a' LIKE 'b' ESCAPE {}",
    "SELECT NOT {}",
    "SELECT -{}",
    "SELECT now() AT TIME ZONE {}",
    "SELECT ({}).x",
    "SELECT f({})",
    "SELECT f(x => {})",
    "SELECT f(VARIADIC {})",
    "SELECT sum(a ORDER BY {}) FROM t",
    "SELECT sum(a) FILTER (WHERE {} > 1) FROM t",
    "SELECT sum(a) OVER (PARTITION BY {}) FROM t",
    "SELECT sum(a) OVER (ORDER BY {}) FROM t",
    "SELECT sum(a) OVER (ROWS {} PRECEDING) FROM t",
    "SELECT sum(a) OVER w FROM t WINDOW w AS (PARTITION BY {})",
    "SELECT max(1) WITHIN GROUP (ORDER BY {})",
    "SELECT XMLELEMENT(NAME a, {})",
    "SELECT XMLELEMENT(NAME a, XMLATTRIBUTES({} AS b))",
    "SELECT XMLCONCAT({})",
    "SELECT XMLSERIALIZE(CONTENT {} AS text)",
    "SELECT * FROM XMLTABLE('a' PASSING {} COLUMNS b int)",
    "SELECT * FROM XMLTABLE('a' PASSING x COLUMNS b int DEFAULT {})",
    "SELECT JSON_OBJECT('a': {})",
    "SELECT JSON_ARRAY({})",
    "SELECT JSON_ARRAY(SELECT {})",
    "SELECT JSON_OBJECTAGG('a': {})",
    "SELECT JSON_ARRAYAGG({} ORDER BY 1)",
    "SELECT JSON({})",
    "SELECT JSON_SCALAR({})",
    "SELECT JSON_SERIALIZE({})",
    "SELECT JSON_VALUE({}, '$')",
    "SELECT JSON_QUERY('{{}}', '$' PASSING {} AS a)",
    "SELECT JSON_EXISTS({}, '$')",
    "SELECT JSON_VALUE('1', '$' DEFAULT {} ON EMPTY)",
    "SELECT * FROM JSON_TABLE({}, '$' COLUMNS (a int PATH '$'))",
    "SELECT {} IS JSON",
    "EXPLAIN SELECT {}",
    "COPY (SELECT {}) TO STDOUT",
    "SELECT 1; SELECT {}",
];

/// Where an expression can stand, it is looked at.
#[test]
fn functions_everywhere() {
    for text in PLACES {
        for call in ["stranger(1)", "lower(stranger(1))", "s.stranger()"] {
            let text = text.replace("{{}}", "[]").replace("{}", call);
            let expected = Verdict::Write(Reason::UnknownFunction("stranger".to_owned()));
            assert_eq!(decide(&text, &names_of_all()), expected, "{text}");
            let text = text.replace("stranger", "f");
            assert_eq!(decide(&text, &names_of_all()), Verdict::Read, "{text}");
        }
    }
}

/// Knows the function that the parser puts in the place of syntax.
fn names_of_all() -> Names {
    let mut names = names();
    for name in ["timezone", "like_escape", "json_objectagg", "json_arrayagg", "xmlconcat"] {
        names.add_function("pg_catalog", name, false);
    }
    names
}

#[test]
fn views_that_write() {
    let mut names = names();
    let views = [
        ("top", "SELECT * FROM middle"),
        ("plain", "SELECT lower(a) FROM t"),
        ("middle", "SELECT * FROM bottom WHERE a > 1"),
        ("bottom", "SELECT audit() AS a"),
    ];
    names.add_views(views.map(|(name, sql)| (name.to_owned(), sql.to_owned())).to_vec());
    assert_eq!(decide("SELECT * FROM plain", &names), Verdict::Read);
    for view in ["top", "middle", "bottom"] {
        assert_eq!(decide(&format!("SELECT * FROM {view}"), &names), name(view));
    }
}

#[test]
fn what_touches_a_read_only_transaction() {
    for (text, touches) in [
        ("SELECT read, write FROM t", false),
        ("SELECT 'read write'", false),
        ("BEGIN READ ONLY", false),
        ("SET TRANSACTION READ WRITE", true),
        ("begin read /* x */ write", true),
        ("SHOW transaction_read_only", true),
        ("SHOW Default_Transaction_Read_Only", true),
        ("SELECT current_setting('transaction_read_only')", true),
        ("SET LOCAL \"transaction_read_only\" = off", true),
        ("SET U&\"transaction_read\\005fonly\" = off", true),
        ("SELECT E'x'", false),
        ("", false),
    ] {
        assert_eq!(touches_read_only(text.as_bytes()), touches, "{text}");
    }
}

/// What nests as deep as a text can is refused or understood, and ends no process.
#[test]
fn depth_is_no_danger() {
    for (front, middle, end) in [
        ("SELECT f(1)", "+1", ""),
        ("SELECT f(1) ", "||'a'", ""),
        ("SELECT f(1) WHERE a", " AND a", ""),
        ("SELECT f(", "(", ""),
        ("SELECT f(1) FROM t", " JOIN t ON true", ""),
        ("SELECT f(1) FROM t", " CROSS JOIN t", ""),
        ("SELECT f(1)", " UNION SELECT 1", ""),
        ("SELECT f(1)", "::text", ""),
        ("SELECT f(1)", "[1]", ""),
        ("SELECT f(1) ", ", NOT 1", ""),
    ] {
        let count = (TEXT_BYTES_MAX - front.len() - end.len()) / middle.len();
        let text = format!("{front}{}{end}", middle.repeat(count));
        let _ = decide(&text, &names());
    }
    for (open, close) in [("f(", ")"), ("(SELECT ", ")"), ("NOT ", ""), ("- ", ""), ("ARRAY[", "]")]
    {
        for depth in [50, 500, 5_000, 50_000] {
            let text = format!("SELECT f(1), {}1{}", open.repeat(depth), close.repeat(depth));
            let _ = decide(&text, &names());
        }
    }
    // Many values are no depth.
    let values = format!("SELECT f(1) WHERE a IN (1{})", ",'a',2".repeat(50_000));
    assert_eq!(decide(&values, &names()), Verdict::Read);
    assert_eq!(
        decide(&format!("SELECT f(1) FROM t{}", " CROSS JOIN t".repeat(5_000)), &names()),
        Verdict::Write(Reason::Unparsed)
    );
}

#[test]
fn hints() {
    for (text, hint) in [
        ("/* synapsedb.route=read */ SELECT 1", Some("read")),
        (" \n/*SynapseDB.Route = node 2*/SELECT 1", Some("node 2")),
        ("/* synapsedb.route=write */ SELECT '\u{e4}'", Some("write")),
        ("/* synapsedb.route= */ SELECT 1", Some("")),
        ("SELECT 1 /* synapsedb.route=read */", None),
        ("-- synapsedb.route=read\nSELECT 1", None),
        ("/* synapsedb.routes=read */ SELECT 1", None),
        ("/* route=read */ SELECT 1", None),
        ("/* synapsedb.route=read", None),
        ("", None),
    ] {
        assert_eq!(route_hint(text.as_bytes()), hint, "{text}");
    }
    assert_eq!(route_hint(b"/* synapsedb.route=read */ SELECT '\xe4'"), Some("read"));
}

proptest! {
    #[test]
    fn nothing_panics(
        bytes: Vec<u8>, text in "(SELECT|f|audit|\\(|\\)|,|;|'|\"|/\\*|\\*/|synapsedb.route=| |\u{e4}){0,20}",
    ) {
        let _ = decide(&text, &names());
        let _ = decide(&String::from_utf8_lossy(&bytes), &names());
        let _ = (route_hint(&bytes), route_hint(text.as_bytes()));
        let _ = (touches_read_only(&bytes), touches_read_only(text.as_bytes()));
    }
}
