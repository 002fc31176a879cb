//! What a transaction did to rows, as the logical replication stream tells it, borrowed from the stream's bytes.
//!
//! The words are those of PostgreSQL's "Logical Replication Message Formats".

/// A column of a relation as its origin describes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Column {
    /// Its name; columns of two nodes are matched by it, never by position.
    pub name: String,
    /// Whether it is part of the replica identity.
    pub in_key: bool,
    /// The type's OID on the origin (user-defined types have other OIDs elsewhere).
    pub type_oid: u32,
    /// The type modifier (`atttypmod`), -1 for none.
    pub type_modifier: i32,
}

/// Which columns identify a row in UPDATE and DELETE (`pg_class.relreplident`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// Nothing: updates and deletes are not replicated.
    Nothing,
    /// All columns.
    Full,
    /// A unique index.
    Index,
}

/// A table as its origin describes it: the header of the changes that follow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Relation {
    /// The OID on the origin; only a reference from the changes of the same stream.
    pub id: u32,
    /// The schema.
    pub schema: String,
    /// The table.
    pub name: String,
    /// What identifies a row.
    pub identity: ReplicaIdentity,
    /// The columns, in the order of the tuples.
    pub columns: Vec<Column>,
}

/// One column value of a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL NULL.
    Null,
    /// An out-of-line (TOAST) value that the UPDATE did not touch and the stream therefore omits.
    Unchanged,
    /// The value in the type's text form.
    Text(&'a [u8]),
    /// The value in the type's binary form.
    Binary(&'a [u8]),
}

/// A row: one value per column of its relation.
pub type Tuple<'a> = Vec<Value<'a>>;

/// How an UPDATE or DELETE names the row that was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// Only the key columns are set, the others are NULL (`K`).
    Key(Tuple<'a>),
    /// The whole row (`O`, REPLICA IDENTITY FULL).
    Full(Tuple<'a>),
}

impl<'a> Change<'a> {
    /// What is told of the row before, and the row after; neither for a truncate.
    pub fn rows(&self) -> (Option<&OldTuple<'a>>, Option<&Tuple<'a>>) {
        match self {
            Self::Insert { new, .. } => (None, Some(new)),
            Self::Update { old, new, .. } => (old.as_ref(), Some(new)),
            Self::Delete { old, .. } => (Some(old), None),
            Self::Truncate { .. } => (None, None),
        }
    }

    /// The relation whose rows change; that of a truncate is its first.
    pub fn relation(&self) -> u32 {
        match self {
            Self::Insert { relation, .. }
            | Self::Update { relation, .. }
            | Self::Delete { relation, .. } => *relation,
            Self::Truncate { relations, .. } => relations.first().copied().unwrap_or_default(),
        }
    }
}

/// What happened to the rows of one relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// A row was inserted.
    Insert {
        /// The OID of the relation on the origin.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// The OID of the relation on the origin.
        relation: u32,
        /// The old key if it changed, or the old row; `None` means that the key of `new` names it.
        old: Option<OldTuple<'a>>,
        /// The row after the update.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// The OID of the relation on the origin.
        relation: u32,
        /// The old key or row.
        old: OldTuple<'a>,
    },
    /// Tables were emptied together.
    Truncate {
        /// Their OIDs on the origin.
        relations: Vec<u32>,
        /// `TRUNCATE … CASCADE` (the tables it reached are listed).
        cascade: bool,
        /// `TRUNCATE … RESTART IDENTITY`.
        restart_identity: bool,
    },
}
