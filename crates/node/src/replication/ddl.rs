//! The DDL messages of the stream: which statement a peer must repeat, and as whom.

use anyhow::{Context as _, Result, anyhow};
use serde::Deserialize;
use synapsedb_pg::sql;

/// The prefix of the messages that carry DDL in the spool.
pub const PREFIX: &str = "synapsedb.ddl";

/// A DDL payload as a message of the spool: a transactional logical message of pgoutput, as if it had been emitted.
///
/// # Errors
/// The payload is longer than 4 GiB.
pub fn message(payload: &[u8]) -> Result<Vec<u8>> {
    let mut message = Vec::with_capacity(15 + PREFIX.len() + payload.len());
    message.extend_from_slice(b"M\x01");
    message.extend_from_slice(&0u64.to_be_bytes());
    message.extend_from_slice(PREFIX.as_bytes());
    message.push(0);
    message.extend_from_slice(&u32::try_from(payload.len())?.to_be_bytes());
    message.extend_from_slice(payload);
    Ok(message)
}

/// What `synapsedb.capture_ddl()` puts into the stream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ddl {
    /// The command tag, such as `CREATE TABLE`.
    pub tag: String,
    /// What the client sent (perhaps several statements), or the statement itself when `whole`.
    pub query: String,
    /// Which of the statements with this tag in `query` it was, from 1.
    pub ordinal: usize,
    /// Whether `query` is exactly the statement.
    pub whole: bool,
    /// Schema and name of the table that the statement creates after its rows are already in the stream.
    pub creates: Option<(String, String)>,
    /// The role that ran it.
    pub role: String,
    /// Its `search_path`.
    pub search_path: String,
}

impl Ddl {
    /// Reads the content of a `synapsedb.ddl` message.
    ///
    /// # Errors
    /// It is not the JSON that this version writes.
    pub fn parse(content: &[u8]) -> Result<Self> {
        serde_json::from_slice(content).context("read a DDL message of the stream")
    }

    /// The statement that a peer runs; `None` if it concerns temporary objects only.
    ///
    /// # Errors
    /// The statement cannot be found in what the client sent.
    pub fn statement(&self) -> Result<Option<String>> {
        let statements = match sql::split(&self.query) {
            Ok(statements) => statements,
            // A grammar newer than the parser's: a single statement needs no splitting.
            Err(_)
                if self.whole || !self.query.trim_end_matches([';', ' ', '\n']).contains(';') =>
            {
                return Ok(Some(self.query.clone()));
            }
            Err(error) => return Err(anyhow!("split the statements of a client: {error}")),
        };
        let found = if self.whole || statements.len() == 1 {
            statements.into_iter().next()
        } else {
            let mut same_tag = statements.into_iter().filter(|found| found.tag == self.tag);
            same_tag.nth(self.ordinal.saturating_sub(1))
        };
        let statement = found.ok_or_else(|| {
            anyhow!("no {} number {} in what the client sent", self.tag, self.ordinal)
        })?;
        if statement.temporary {
            return Ok(None);
        }
        let concurrent = statement.text.to_ascii_lowercase().contains("concurrently");
        Ok(Some(if concurrent {
            // Outside of a transaction it could not be applied exactly once.
            sql::without_concurrently(&statement.text)
        } else {
            statement.text
        }))
    }
}

/// Whether an error of a repeated statement says that its effect is already there: it was run on two nodes by hand.
pub fn already_there(tag: &str, sqlstate: &str) -> bool {
    let dropped = tag.starts_with("DROP ");
    match sqlstate {
        // duplicate table, object, schema, function, column
        "42P07" | "42710" | "42P06" | "42723" | "42701" => !dropped,
        // undefined table, object, function, column, schema
        "42P01" | "42704" | "42883" | "42703" | "3F000" => dropped,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ddl(tag: &str, query: &str, ordinal: usize) -> Ddl {
        Ddl {
            tag: tag.into(),
            query: query.into(),
            ordinal,
            whole: false,
            creates: None,
            role: "r".into(),
            search_path: "public".into(),
        }
    }

    #[test]
    fn the_nth_statement_of_its_kind_is_found() {
        let query =
            "create table a (i int); insert into a values (1); create table b (x text default ';')";
        let second = ddl("CREATE TABLE", query, 2).statement().unwrap().unwrap();
        assert_eq!(second.trim(), "create table b (x text default ';')");
        assert!(ddl("CREATE TABLE", query, 3).statement().is_err());
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let raw = message(b"{}").unwrap();
        let decoded = synapsedb_pg::pgoutput::decode(&raw).unwrap();
        let synapsedb_pg::pgoutput::Message::LogicalMessage {
            transactional, prefix, content, ..
        } = decoded
        else {
            panic!("{decoded:?}");
        };
        assert_eq!((transactional, prefix, content), (true, PREFIX, &b"{}"[..]));
    }

    #[test]
    fn temporary_tables_stay() {
        let temporary = "create temp table a (i int)";
        assert_eq!(ddl("CREATE TABLE", temporary, 1).statement().unwrap(), None);
    }

    #[test]
    fn concurrently_is_dropped() {
        let index = ddl("CREATE INDEX", "create index concurrently on a (i)", 1);
        let statement = index.statement().unwrap().unwrap();
        assert!(!statement.to_lowercase().contains("concurrently"), "{statement}");
    }
}
