//! Understands a statement by its words, for those whose parse tree is too deep to be handed over.

use pg_query::protobuf::Token;

use super::tag;

/// A word, quoted name or symbol of a statement.
struct Word<'a> {
    text: &'a str,
    start: usize,
    end: usize,
    /// How many parentheses are open around it.
    depth: usize,
}

impl Word<'_> {
    fn is(&self, keyword: &str) -> bool {
        self.text.eq_ignore_ascii_case(keyword)
    }
}

/// Tags of CREATE, ALTER and DROP by the words after the verb and its modifiers, longer ones first.
#[rustfmt::skip]
const OBJECTS: [[&str; 4]; 39] = [
    ["ACCESS METHOD", "CREATE ACCESS METHOD", "ALTER ACCESS METHOD", "DROP ACCESS METHOD"],
    ["AGGREGATE", "CREATE AGGREGATE", "ALTER AGGREGATE", "DROP AGGREGATE"],
    ["CAST", "CREATE CAST", "ALTER CAST", "DROP CAST"],
    ["COLLATION", "CREATE COLLATION", "ALTER COLLATION", "DROP COLLATION"],
    ["CONVERSION", "CREATE CONVERSION", "ALTER CONVERSION", "DROP CONVERSION"],
    ["DATABASE", "CREATE DATABASE", "ALTER DATABASE", "DROP DATABASE"],
    ["DEFAULT PRIVILEGES", tag::UNKNOWN, "ALTER DEFAULT PRIVILEGES", tag::UNKNOWN],
    ["DOMAIN", "CREATE DOMAIN", "ALTER DOMAIN", "DROP DOMAIN"],
    ["EVENT TRIGGER", "CREATE EVENT TRIGGER", "ALTER EVENT TRIGGER", "DROP EVENT TRIGGER"],
    ["EXTENSION", "CREATE EXTENSION", "ALTER EXTENSION", "DROP EXTENSION"],
    ["FOREIGN DATA WRAPPER", "CREATE FOREIGN DATA WRAPPER", "ALTER FOREIGN DATA WRAPPER", "DROP FOREIGN DATA WRAPPER"],
    ["FOREIGN TABLE", "CREATE FOREIGN TABLE", "ALTER FOREIGN TABLE", "DROP FOREIGN TABLE"],
    ["FUNCTION", "CREATE FUNCTION", "ALTER FUNCTION", "DROP FUNCTION"],
    ["GROUP", "CREATE ROLE", "ALTER ROLE", "DROP ROLE"],
    ["INDEX", "CREATE INDEX", "ALTER INDEX", "DROP INDEX"],
    ["LANGUAGE", "CREATE LANGUAGE", "ALTER LANGUAGE", "DROP LANGUAGE"],
    ["MATERIALIZED VIEW", "CREATE MATERIALIZED VIEW", "ALTER MATERIALIZED VIEW", "DROP MATERIALIZED VIEW"],
    ["OPERATOR CLASS", "CREATE OPERATOR CLASS", "ALTER OPERATOR CLASS", "DROP OPERATOR CLASS"],
    ["OPERATOR FAMILY", "CREATE OPERATOR FAMILY", "ALTER OPERATOR FAMILY", "DROP OPERATOR FAMILY"],
    ["OPERATOR", "CREATE OPERATOR", "ALTER OPERATOR", "DROP OPERATOR"],
    ["POLICY", "CREATE POLICY", "ALTER POLICY", "DROP POLICY"],
    ["PROCEDURE", "CREATE PROCEDURE", "ALTER PROCEDURE", "DROP PROCEDURE"],
    ["PUBLICATION", "CREATE PUBLICATION", "ALTER PUBLICATION", "DROP PUBLICATION"],
    ["ROLE", "CREATE ROLE", "ALTER ROLE", "DROP ROLE"],
    ["ROUTINE", tag::UNKNOWN, "ALTER ROUTINE", "DROP ROUTINE"],
    ["RULE", "CREATE RULE", "ALTER RULE", "DROP RULE"],
    ["SCHEMA", "CREATE SCHEMA", "ALTER SCHEMA", "DROP SCHEMA"],
    ["SEQUENCE", "CREATE SEQUENCE", "ALTER SEQUENCE", "DROP SEQUENCE"],
    ["SERVER", "CREATE SERVER", "ALTER SERVER", "DROP SERVER"],
    ["STATISTICS", "CREATE STATISTICS", "ALTER STATISTICS", "DROP STATISTICS"],
    ["SUBSCRIPTION", "CREATE SUBSCRIPTION", "ALTER SUBSCRIPTION", "DROP SUBSCRIPTION"],
    ["TABLESPACE", "CREATE TABLESPACE", "ALTER TABLESPACE", "DROP TABLESPACE"],
    ["TABLE", "CREATE TABLE", "ALTER TABLE", "DROP TABLE"],
    ["TRANSFORM", "CREATE TRANSFORM", "ALTER TRANSFORM", "DROP TRANSFORM"],
    ["TRIGGER", "CREATE TRIGGER", "ALTER TRIGGER", "DROP TRIGGER"],
    ["TYPE", "CREATE TYPE", "ALTER TYPE", "DROP TYPE"],
    ["USER MAPPING", "CREATE USER MAPPING", "ALTER USER MAPPING", "DROP USER MAPPING"],
    ["USER", "CREATE ROLE", "ALTER ROLE", "DROP ROLE"],
    ["VIEW", "CREATE VIEW", "ALTER VIEW", "DROP VIEW"],
];

/// Words between CREATE and the kind of object.
const MODIFIERS: [&str; 12] = [
    "OR",
    "REPLACE",
    "GLOBAL",
    "LOCAL",
    "TEMP",
    "TEMPORARY",
    "UNLOGGED",
    "UNIQUE",
    "RECURSIVE",
    "CONSTRAINT",
    "TRUSTED",
    "PROCEDURAL",
];

/// Statements with a single verb.
#[rustfmt::skip]
const VERBS: [(&str, &str); 17] = [
    ("INSERT", "INSERT"), ("UPDATE", "UPDATE"), ("DELETE", "DELETE"), ("MERGE", "MERGE"), ("COPY", "COPY"),
    ("CALL", "CALL"), ("DO", "DO"), ("EXPLAIN", "EXPLAIN"), ("PREPARE", "PREPARE"), ("EXECUTE", "EXECUTE"),
    ("DECLARE", "DECLARE CURSOR"), ("GRANT", "GRANT"), ("REVOKE", "REVOKE"), ("COMMENT", "COMMENT"),
    ("SET", "SET"), ("VALUES", "SELECT"), ("SELECT", "SELECT"),
];

/// The tag of one statement, and whether it makes a temporary object.
pub(super) fn tag_and_temporary(sql: &str) -> pg_query::Result<(&'static str, bool)> {
    let words = words(sql)?;
    // Parentheses and WITH come before the verb of a query.
    let with = words.iter().find(|word| word.text != "(").is_some_and(|word| word.is("WITH"));
    let mut top = words.iter().filter(|word| !with || word.depth == 0).skip_while(|word| {
        word.text == "(" || with && !VERBS.iter().any(|(verb, _)| word.is(verb))
    });
    let Some(verb) = top.next() else { return Ok((tag::UNKNOWN, false)) };
    let rest: Vec<&Word<'_>> = top.collect();
    if let Some(column) = ["CREATE", "ALTER", "DROP"].iter().position(|known| verb.is(known)) {
        return Ok(object_tag(&rest, column + 1));
    }
    let tag = VERBS.iter().find(|(known, _)| verb.is(known)).map_or(tag::UNKNOWN, |(_, tag)| tag);
    let into = || rest.iter().position(|word| word.depth == verb.depth && word.is("INTO"));
    match into() {
        Some(at) if tag == "SELECT" => Ok(("SELECT INTO", is_temporary(&rest[at + 1..]))),
        _ => Ok((tag, false)),
    }
}

/// The tag of CREATE (1), ALTER (2) or DROP (3).
fn object_tag(rest: &[&Word<'_>], column: usize) -> (&'static str, bool) {
    let modifiers = rest.iter().take_while(|word| MODIFIERS.iter().any(|known| word.is(known)));
    let object = &rest[modifiers.count()..];
    let starts = |names: &str| {
        let mut given = object.iter();
        names.split(' ').all(|name| given.next().is_some_and(|word| word.is(name)))
    };
    let found = OBJECTS.iter().find(|row| starts(row[0])).map_or(tag::UNKNOWN, |row| row[column]);
    let is_query = |pair: &[&Word<'_>]| {
        let query = ["SELECT", "WITH", "VALUES", "TABLE", "EXECUTE", "("];
        pair[0].depth == 0 && pair[0].is("AS") && query.iter().any(|word| pair[1].is(word))
    };
    let tag = match found {
        "CREATE TABLE" if rest.windows(2).any(is_query) => "CREATE TABLE AS",
        other => other,
    };
    (tag, is_temporary(rest))
}

/// Whether TEMP stands before the object's name, or `pg_temp` in it.
fn is_temporary(words: &[&Word<'_>]) -> bool {
    let mut head = words.iter().take_while(|word| word.text != "(" && !word.is("AS")).take(12);
    head.any(|word| word.is("TEMP") || word.is("TEMPORARY") || word.is("pg_temp"))
}

/// Whether a keyword stands anywhere in the text, be it in a comment.
pub(super) fn mentions(sql: &str, keyword: &str) -> bool {
    sql.as_bytes().windows(keyword.len()).any(|part| part.eq_ignore_ascii_case(keyword.as_bytes()))
}

/// `CREATE TABLE … AS` or a materialized view without its rows; `None` for other statements.
pub(super) fn without_data(sql: &str) -> pg_query::Result<Option<String>> {
    if !matches!(tag_and_temporary(sql)?.0, "CREATE TABLE AS" | "CREATE MATERIALIZED VIEW") {
        return Ok(None);
    }
    let words = words(sql)?;
    let end = words.iter().rposition(|word| word.text != ";").map_or(0, |last| last + 1);
    let ends = |tail: &[&str]| {
        end >= tail.len()
            && words[end - tail.len()..end].iter().zip(tail).all(|(word, name)| word.is(name))
    };
    let keep = match () {
        () if ends(&["WITH", "NO", "DATA"]) => end - 3,
        () if ends(&["WITH", "DATA"]) => end - 2,
        () => end,
    };
    let query = words[..keep].last().map_or("", |last| &sql[..last.end]);
    Ok(Some(format!("{query} WITH NO DATA")))
}

/// An index made or dropped plainly; `None` when nothing was concurrent.
pub(super) fn without_concurrently(sql: &str) -> pg_query::Result<Option<String>> {
    let words = words(sql)?;
    let verb = words.first().is_some_and(|word| word.is("CREATE") || word.is("DROP"));
    let mut head = words.iter().take(5).skip_while(|word| !word.is("INDEX"));
    let concurrently = head.nth(1).filter(|word| verb && word.is("CONCURRENTLY"));
    Ok(concurrently.map(|word| format!("{}{}", &sql[..word.start], &sql[word.end..])))
}

/// The words without comments.
fn words(sql: &str) -> pg_query::Result<Vec<Word<'_>>> {
    let mut depth = 0usize;
    let mut words = Vec::new();
    // Not `scan_tokens`, which makes a slice of a null pointer for a text without tokens.
    for token in pg_query::scan(sql)?.tokens {
        let comment = [Token::SqlComment as i32, Token::CComment as i32].contains(&token.token);
        let (start, end) = (token.start.max(0) as usize, token.end.max(0) as usize);
        let Some(text) = sql.get(start..end).filter(|_| !comment) else { continue };
        if text == ")" {
            depth = depth.saturating_sub(1);
        }
        words.push(Word { text, start, end, depth });
        if text == "(" {
            depth += 1;
        }
    }
    Ok(words)
}
