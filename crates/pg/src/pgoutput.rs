//! Decodes what the output plugin `pgoutput` sends (protocol version 1), borrowing values from the message.
//!
//! [`peek`] tells kind and relation without looking at tuples; [`decode`] reads everything and accepts nothing that
//! PostgreSQL would not send: cut off or too long messages are errors, and no length is believed before its bytes
//! are there.

use synapsedb_core::change::{Change, Column, OldTuple, Relation, ReplicaIdentity, Tuple, Value};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::time::Timestamp;

/// One message of a logical replication stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins.
    Begin {
        /// Where its commit record begins (`final_lsn`): the identity of the transaction on its server.
        commit_lsn: Lsn,
        /// When it was committed.
        commit_time: Timestamp,
        /// Its transaction id.
        xid: u32,
    },
    /// The transaction is complete.
    Commit {
        /// Where its commit record begins.
        commit_lsn: Lsn,
        /// Where the record ends: confirm this position, and restart from it.
        end_lsn: Lsn,
        /// When it was committed.
        commit_time: Timestamp,
    },
    /// The transaction was applied here and comes from elsewhere; follows Begin.
    Origin {
        /// Where it was committed on its origin.
        lsn: Lsn,
        /// The replication origin's name.
        name: &'a str,
    },
    /// A table as the changes that follow see it.
    Relation(Relation),
    /// A type that is not built in.
    Type {
        /// Its OID.
        id: u32,
        /// Its schema.
        schema: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// Rows changed.
    Change(Change<'a>),
    /// Something written by `pg_logical_emit_message`.
    LogicalMessage {
        /// Whether it belongs to the transaction around it; others stand between transactions.
        transactional: bool,
        /// Its position in the WAL.
        lsn: Lsn,
        /// The writer's prefix.
        prefix: &'a str,
        /// The content, any bytes.
        content: &'a [u8],
    },
}

/// What [`peek`] sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peek<'a> {
    /// A transaction begins.
    Begin,
    /// A transaction is complete.
    Commit,
    /// The origin of the transaction.
    Origin,
    /// The description of the relation with this OID.
    Relation(u32),
    /// The description of the type with this OID.
    Type(u32),
    /// A row inserted into this relation.
    Insert(u32),
    /// A row updated in this relation.
    Update(u32),
    /// A row deleted from this relation.
    Delete(u32),
    /// These relations emptied.
    Truncate(RelationIds<'a>),
    /// A logical message.
    LogicalMessage {
        /// Whether it belongs to the transaction around it.
        transactional: bool,
    },
}

/// The OIDs of a Truncate, borrowed from the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationIds<'a>(&'a [u8]);

impl Iterator for RelationIds<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (id, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*id))
    }
}

/// Bytes that are no message of pgoutput, protocol version 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pgoutput message '{tag}' is malformed at byte {offset}: {what}")]
pub struct DecodeError {
    /// The message's first byte, printable.
    pub tag: String,
    /// Where reading stopped, in bytes from the message's start.
    pub offset: usize,
    /// What is wrong there.
    pub what: &'static str,
}

/// Decodes one message as a whole.
///
/// Errors on anything but exactly one well-formed message; names must be UTF-8 (the stream's client encoding).
pub fn decode(message: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut input = Input { message, rest: message };
    let decoded = read(&mut input);
    match decoded {
        Ok(_) if !input.rest.is_empty() => Err(input.error("bytes after the end")),
        Ok(decoded) => Ok(decoded),
        Err(what) => Err(input.error(what)),
    }
}

/// Whether [`decode`] would read a message, told without keeping anything of it.
///
/// # Errors
/// As [`decode`].
pub fn check(message: &[u8]) -> Result<(), DecodeError> {
    let mut input = Input { message, rest: message };
    match skip(&mut input) {
        Ok(()) if !input.rest.is_empty() => Err(input.error("bytes after the end")),
        Ok(()) => Ok(()),
        Err(what) => Err(input.error(what)),
    }
}

/// [`read`] for what comes often.
fn skip(input: &mut Input<'_>) -> Result<(), &'static str> {
    let kind = input.rest.first().copied();
    match kind {
        Some(b'R') => {
            input.u8()?;
            input.skip_relation()
        }
        Some(b'I' | b'U' | b'D') => {
            input.u8()?;
            input.u32()?;
            let has_old = matches!(input.rest.first(), Some(b'K' | b'O'));
            if kind == Some(b'D') || (kind == Some(b'U') && has_old) {
                input.skip_tuple(b"KO", "the old row is missing")?;
            }
            match kind {
                Some(b'D') => Ok(()),
                _ => input.skip_tuple(b"N", "the new row is missing"),
            }
        }
        _ => read(input).map(drop),
    }
}

/// Kind and relation of a message, without decoding the rest (which may be malformed).
#[inline]
pub fn peek(message: &[u8]) -> Result<Peek<'_>, DecodeError> {
    let mut input = Input { message, rest: message };
    peek_in(&mut input).map_err(|what| input.error(what))
}

fn peek_in<'a>(input: &mut Input<'a>) -> Result<Peek<'a>, &'static str> {
    Ok(match input.u8()? {
        b'B' => Peek::Begin,
        b'C' => Peek::Commit,
        b'O' => Peek::Origin,
        b'R' => Peek::Relation(input.u32()?),
        b'Y' => Peek::Type(input.u32()?),
        b'I' => Peek::Insert(input.u32()?),
        b'U' => Peek::Update(input.u32()?),
        b'D' => Peek::Delete(input.u32()?),
        b'T' => {
            let count = input.u32()?;
            input.u8()?;
            Peek::Truncate(RelationIds(input.relation_ids(count)?))
        }
        b'M' => Peek::LogicalMessage { transactional: input.u8()? & 1 != 0 },
        _ => return Err("unknown kind of message"),
    })
}

fn read<'a>(input: &mut Input<'a>) -> Result<Message<'a>, &'static str> {
    Ok(match input.u8()? {
        b'B' => Message::Begin {
            commit_lsn: input.lsn()?,
            commit_time: input.time()?,
            xid: input.u32()?,
        },
        b'C' => {
            input.u8()?;
            Message::Commit {
                commit_lsn: input.lsn()?,
                end_lsn: input.lsn()?,
                commit_time: input.time()?,
            }
        }
        b'O' => Message::Origin { lsn: input.lsn()?, name: input.string()? },
        b'R' => Message::Relation(input.relation()?),
        b'Y' => Message::Type { id: input.u32()?, schema: input.schema()?, name: input.string()? },
        b'I' => {
            let relation = input.u32()?;
            Message::Change(Change::Insert { relation, new: input.new_tuple()? })
        }
        b'U' => {
            let relation = input.u32()?;
            let old = match input.rest.first() {
                Some(b'K' | b'O') => Some(input.old_tuple()?),
                _ => None,
            };
            Message::Change(Change::Update { relation, old, new: input.new_tuple()? })
        }
        b'D' => {
            let relation = input.u32()?;
            Message::Change(Change::Delete { relation, old: input.old_tuple()? })
        }
        b'T' => {
            let count = input.u32()?;
            let flags = input.u8()?;
            let relations = RelationIds(input.relation_ids(count)?).collect();
            let (cascade, restart_identity) = (flags & 1 != 0, flags & 2 != 0);
            Message::Change(Change::Truncate { relations, cascade, restart_identity })
        }
        b'M' => {
            let flags = input.u8()?;
            let (lsn, prefix) = (input.lsn()?, input.string()?);
            let length = input.u32()?;
            let content = input.bytes(length)?;
            Message::LogicalMessage { transactional: flags & 1 != 0, lsn, prefix, content }
        }
        _ => return Err("unknown kind of message"),
    })
}

/// A cursor over a message; every read checks what is left.
struct Input<'a> {
    message: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    #[cold]
    fn error(&self, what: &'static str) -> DecodeError {
        let tag = self.message.first().map(|tag| tag.escape_ascii().to_string());
        let offset = self.message.len() - self.rest.len();
        DecodeError { tag: tag.unwrap_or_default(), offset, what }
    }

    #[inline]
    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (chunk, rest) = self.rest.split_first_chunk().ok_or("it ends too early")?;
        self.rest = rest;
        Ok(*chunk)
    }

    #[inline]
    fn u8(&mut self) -> Result<u8, &'static str> {
        self.chunk::<1>().map(|[byte]| byte)
    }

    #[inline]
    fn u16(&mut self) -> Result<u16, &'static str> {
        self.chunk().map(u16::from_be_bytes)
    }

    #[inline]
    fn u32(&mut self) -> Result<u32, &'static str> {
        self.chunk().map(u32::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn, &'static str> {
        self.chunk().map(u64::from_be_bytes).map(Lsn)
    }

    fn time(&mut self) -> Result<Timestamp, &'static str> {
        self.chunk().map(i64::from_be_bytes).map(Timestamp)
    }

    #[inline]
    fn bytes(&mut self, length: u32) -> Result<&'a [u8], &'static str> {
        let split = self.rest.split_at_checked(length as usize);
        let (bytes, rest) = split.ok_or("a length goes beyond the end")?;
        self.rest = rest;
        Ok(bytes)
    }

    fn string(&mut self) -> Result<&'a str, &'static str> {
        let end = self.rest.iter().position(|byte| *byte == 0).ok_or("a name has no end")?;
        let text = std::str::from_utf8(&self.rest[..end]).map_err(|_| "a name is not UTF-8")?;
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    /// A schema's name; the stream abbreviates `pg_catalog` to nothing.
    fn schema(&mut self) -> Result<&'a str, &'static str> {
        self.string().map(|name| if name.is_empty() { "pg_catalog" } else { name })
    }

    fn relation_ids(&mut self, count: u32) -> Result<&'a [u8], &'static str> {
        self.bytes(count.checked_mul(4).ok_or("too many relations")?)
    }

    fn relation(&mut self) -> Result<Relation, &'static str> {
        let id = self.u32()?;
        let (schema, name) = (self.schema()?.to_owned(), self.string()?.to_owned());
        let identity = match self.u8()? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            _ => return Err("unknown replica identity"),
        };
        let count = self.u16()?;
        // A column takes at least ten bytes: flags, an empty name, type and modifier.
        let mut columns = Vec::with_capacity(usize::from(count).min(self.rest.len() / 10));
        for _ in 0..count {
            columns.push(Column {
                in_key: self.u8()? & 1 != 0,
                name: self.string()?.to_owned(),
                type_oid: self.u32()?,
                type_modifier: self.chunk().map(i32::from_be_bytes)?,
            });
        }
        Ok(Relation { id, schema, name, identity, columns })
    }

    fn skip_relation(&mut self) -> Result<(), &'static str> {
        self.u32()?;
        self.string()?;
        self.string()?;
        if !matches!(self.u8()?, b'd' | b'n' | b'f' | b'i') {
            return Err("unknown replica identity");
        }
        for _ in 0..self.u16()? {
            self.u8()?;
            self.string()?;
            self.bytes(8)?;
        }
        Ok(())
    }

    fn skip_tuple(&mut self, kinds: &[u8], missing: &'static str) -> Result<(), &'static str> {
        if !kinds.contains(&self.u8()?) {
            return Err(missing);
        }
        for _ in 0..self.u16()? {
            match self.u8()? {
                b'n' | b'u' => {}
                b't' | b'b' => {
                    let length = self.u32()?;
                    self.bytes(length)?;
                }
                _ => return Err("unknown kind of value"),
            }
        }
        Ok(())
    }

    fn new_tuple(&mut self) -> Result<Tuple<'a>, &'static str> {
        match self.u8()? {
            b'N' => self.tuple(),
            _ => Err("the new row is missing"),
        }
    }

    fn old_tuple(&mut self) -> Result<OldTuple<'a>, &'static str> {
        match self.u8()? {
            b'K' => self.tuple().map(OldTuple::Key),
            b'O' => self.tuple().map(OldTuple::Full),
            _ => Err("the old row is missing"),
        }
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, &'static str> {
        let count = self.u16()?;
        // A value takes at least its kind's byte.
        let mut tuple = Vec::with_capacity(usize::from(count).min(self.rest.len()));
        for _ in 0..count {
            tuple.push(match self.u8()? {
                b'n' => Value::Null,
                b'u' => Value::Unchanged,
                b't' => {
                    let length = self.u32()?;
                    Value::Text(self.bytes(length)?)
                }
                b'b' => {
                    let length = self.u32()?;
                    Value::Binary(self.bytes(length)?)
                }
                _ => return Err("unknown kind of value"),
            });
        }
        Ok(tuple)
    }
}

#[cfg(test)]
#[path = "pgoutput/tests.rs"]
mod tests;
