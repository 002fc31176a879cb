//! Understands SQL text by PostgreSQL's own parser: splits it, names what each statement does, and rewrites the few
//! that cannot be run a second time as they are.
//!
//! The parser is that of PostgreSQL 18, which reads what 15 to 17 read. Statements whose expressions nest too deep
//! for the parse tree's transport (about 50 levels, such as a long chain of `||`) are told by their words instead
//! ([`words`]).

mod keyword;
mod lexer;
pub mod reads;
pub mod statement;
mod tag;
mod temporary;
pub mod traits;
mod words;

use std::panic::catch_unwind;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    AlterTableStmt, CreateTableAsStmt, IntoClause, Node, ObjectType, ParseResult, SelectStmt,
};

/// The longest text that is parsed, in bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// One statement of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Its text without the semicolon and without the comments in front of it.
    pub text: String,
    /// The command tag that PostgreSQL reports (`TG_TAG` of an event trigger): `CREATE TABLE`, `SELECT INTO`, ….
    pub tag: &'static str,
    /// Whether it makes or changes an object that only its session sees (`CREATE TEMP …`, `pg_temp.x`).
    pub temporary: bool,
}

/// Text that is no SQL, or that cannot be rewritten. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SqlError {
    /// PostgreSQL's parser refuses it.
    #[error("SQL cannot be parsed: {0}")]
    Syntax(String),
    /// It is longer than [`TEXT_BYTES_MAX`].
    #[error("SQL of {bytes} bytes is longer than what is parsed ({max})", max = TEXT_BYTES_MAX)]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Its expressions nest too deep to be rewritten.
    #[error("SQL nests too deep to be rewritten: {0}")]
    TooDeep(String),
    /// It is not of the kind that the rewriting is for.
    #[error("not a statement that {0}")]
    OtherKind(&'static str),
}

/// Splits a text into its statements; comments alone are none. Dollar quotes and `BEGIN ATOMIC` bodies stay whole.
///
/// Errors when PostgreSQL's parser refuses any part of it.
pub fn split(sql: &str) -> Result<Vec<Statement>, SqlError> {
    guarded(sql, split_here)
}

/// Rewrites `CREATE TABLE … AS`, `SELECT … INTO` and `CREATE MATERIALIZED VIEW` so that they make the same relation
/// without rows (`WITH NO DATA`); the rows come by replication.
///
/// Errors on any other statement, on several, and on `CREATE TABLE … AS EXECUTE`, whose prepared statement exists in
/// one session only.
pub fn without_data(sql: &str) -> Result<String, SqlError> {
    guarded(sql, without_data_here)
}

/// Takes `CONCURRENTLY` out of `CREATE INDEX`, `DROP INDEX`, `REINDEX` and `ALTER TABLE … DETACH PARTITION`, so that
/// they run inside a transaction. Anything else, also text that cannot be parsed, comes back as it is.
pub fn without_concurrently(sql: &str) -> String {
    match guarded(sql, without_concurrently_here) {
        Ok(Some(rewritten)) => rewritten,
        Ok(None) | Err(_) => sql.to_owned(),
    }
}

/// Keeps a text within the limit, and a panic of the parser's bindings from spreading.
fn guarded<T>(sql: &str, work: fn(&str) -> Result<T, SqlError>) -> Result<T, SqlError> {
    if sql.len() > TEXT_BYTES_MAX {
        return Err(SqlError::TooLong { bytes: sql.len() });
    }
    catch_unwind(|| work(sql))
        .unwrap_or_else(|_| Err(SqlError::Syntax("the parser has failed on it".to_owned())))
}

/// A parse tree, or `None` for one that is too deep.
fn parse(sql: &str) -> Result<Option<ParseResult>, SqlError> {
    match pg_query::parse(sql, 0) {
        Ok(parsed) => Ok(Some(parsed.protobuf)),
        Err(pg_query::Error::Decode(_)) => Ok(None),
        // The parser has a limit of its own, below which the tree can be too deep already.
        Err(pg_query::Error::Parse(text)) if text.contains("stack depth limit") => Ok(None),
        Err(error) => Err(syntax(error)),
    }
}

fn syntax(error: pg_query::Error) -> SqlError {
    match error {
        pg_query::Error::Parse(text) | pg_query::Error::Split(text) => SqlError::Syntax(text),
        other => SqlError::Syntax(other.to_string()),
    }
}

fn split_here(sql: &str) -> Result<Vec<Statement>, SqlError> {
    let Some(parsed) = parse(sql)? else {
        let parts = pg_query::split_with_parser(sql).map_err(syntax)?;
        return parts.into_iter().map(split_deep).collect();
    };
    let mut statements = Vec::with_capacity(parsed.stmts.len());
    for raw in &parsed.stmts {
        let start = raw.stmt_location.max(0) as usize;
        let end = if raw.stmt_len > 0 { start + raw.stmt_len as usize } else { sql.len() };
        let text = sql.get(start..end).unwrap_or(sql).trim().to_owned();
        let node = raw.stmt.as_ref().and_then(|node| node.node.as_ref());
        let (tag, temporary) =
            node.map_or((tag::UNKNOWN, false), |node| (tag::of(node), temporary::is(node)));
        statements.push(Statement { text, tag, temporary });
    }
    Ok(statements)
}

/// One statement of a text whose parse tree is too deep: its neighbours may have trees, it may have none.
fn split_deep(text: &str) -> Result<Statement, SqlError> {
    let text = text.trim();
    match parse(text)? {
        Some(parsed) => {
            let node = parsed.stmts.first().and_then(|raw| raw.stmt.as_ref()?.node.as_ref());
            let (tag, temporary) =
                node.map_or((tag::UNKNOWN, false), |node| (tag::of(node), temporary::is(node)));
            Ok(Statement { text: text.to_owned(), tag, temporary })
        }
        None => {
            let (tag, temporary) = words::tag_and_temporary(text).map_err(syntax)?;
            Ok(Statement { text: text.to_owned(), tag, temporary })
        }
    }
}

fn without_data_here(sql: &str) -> Result<String, SqlError> {
    const WANTED: &str = "makes a table from a query";
    let Some(mut parsed) = parse(sql)? else {
        return words::without_data(sql)
            .map_err(syntax)?
            .ok_or_else(|| SqlError::TooDeep(sql.chars().take(80).collect()));
    };
    let [raw] = &mut parsed.stmts[..] else { return Err(SqlError::OtherKind(WANTED)) };
    let node = raw.stmt.as_mut().and_then(|node| node.node.as_mut());
    match node {
        Some(NodeEnum::CreateTableAsStmt(create)) => {
            let query = create.query.as_ref().and_then(|query| query.node.as_ref());
            if matches!(query, Some(NodeEnum::ExecuteStmt(_))) {
                return Err(SqlError::OtherKind(
                    "can be run elsewhere: it executes a prepared one",
                ));
            }
            let into = create.into.as_mut().ok_or(SqlError::OtherKind(WANTED))?;
            into.skip_data = true;
        }
        Some(NodeEnum::SelectStmt(select)) => {
            let mut into = take_into(select).ok_or(SqlError::OtherKind(WANTED))?;
            into.skip_data = true;
            let query = Node { node: Some(NodeEnum::SelectStmt(select.clone())) };
            let create = CreateTableAsStmt {
                query: Some(Box::new(query)),
                into: Some(into),
                objtype: ObjectType::ObjectTable as i32,
                is_select_into: false,
                if_not_exists: false,
            };
            *raw = pg_query::protobuf::RawStmt {
                stmt: Some(Box::new(Node {
                    node: Some(NodeEnum::CreateTableAsStmt(Box::new(create))),
                })),
                ..raw.clone()
            };
        }
        _ => return Err(SqlError::OtherKind(WANTED)),
    }
    deparse(&parsed)
}

/// Takes the INTO out of a SELECT; in a UNION it stands in the leftmost branch.
fn take_into(select: &mut SelectStmt) -> Option<Box<IntoClause>> {
    match &mut select.larg {
        Some(left) => take_into(left),
        None => select.into_clause.take(),
    }
}

/// Whether a SELECT has an INTO.
fn has_into(select: &SelectStmt) -> bool {
    match &select.larg {
        Some(left) => has_into(left),
        None => select.into_clause.is_some(),
    }
}

fn without_concurrently_here(sql: &str) -> Result<Option<String>, SqlError> {
    if !words::mentions(sql, "concurrently") {
        return Ok(None);
    }
    let Some(mut parsed) = parse(sql)? else {
        return words::without_concurrently(sql).map_err(syntax);
    };
    let mut changed = false;
    for raw in &mut parsed.stmts {
        let node = raw.stmt.as_mut().and_then(|node| node.node.as_mut());
        changed |= node.is_some_and(make_plain);
    }
    if changed { deparse(&parsed).map(Some) } else { Ok(None) }
}

/// Makes a concurrent statement a plain one; whether it was one.
fn make_plain(node: &mut NodeEnum) -> bool {
    match node {
        NodeEnum::IndexStmt(index) => std::mem::take(&mut index.concurrent),
        NodeEnum::DropStmt(drop) => std::mem::take(&mut drop.concurrent),
        NodeEnum::ReindexStmt(reindex) => {
            let before = reindex.params.len();
            reindex.params.retain(|param| {
                !matches!(&param.node, Some(NodeEnum::DefElem(option)) if option.defname == "concurrently")
            });
            reindex.params.len() < before
        }
        NodeEnum::AlterTableStmt(alter) => detach_plainly(alter),
        _ => false,
    }
}

fn detach_plainly(alter: &mut AlterTableStmt) -> bool {
    let mut changed = false;
    for command in &mut alter.cmds {
        let Some(NodeEnum::AlterTableCmd(command)) = &mut command.node else { continue };
        let definition = command.def.as_mut().and_then(|node| node.node.as_mut());
        if let Some(NodeEnum::PartitionCmd(partition)) = definition {
            changed |= std::mem::take(&mut partition.concurrent);
        }
    }
    changed
}

fn deparse(parsed: &ParseResult) -> Result<String, SqlError> {
    pg_query::deparse(parsed, Default::default()).map_err(syntax)
}

#[cfg(test)]
mod tests;
