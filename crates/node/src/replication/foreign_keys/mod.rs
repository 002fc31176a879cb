//! Foreign keys that concurrent writes break: a child is written on one node while its parent is deleted on another.
//!
//! Each of the two was right where it was written, and nothing checks foreign keys when rows are applied. The child
//! stays, since deleting it would lose an acknowledged row, on all nodes alike; what is owed is that somebody is told.
//! When a transaction is noted in the index of recent writes, so are the two sides of every foreign key: that children
//! were written, and which parents went. Who comes second, in whatever order, finds the other there, unseen. Whether a
//! child has really lost its parent is then looked up, apart from the applying ([`check`]).

pub(crate) mod check;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use synapsedb_core::change::{Change, OldTuple, Relation, Value};
use synapsedb_core::history::{Digest, History, Writer};
use synapsedb_core::version::{RowVersion, VersionVector};
use synapsedb_pg::client::Client;

use super::keys::Named;
use super::recent::old_values;

/// Schema and name.
pub(crate) type TableName = (String, String);

/// A foreign key as it was declared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct ForeignKey {
    pub(crate) name: String,
    pub(crate) child: TableName,
    pub(crate) parent: TableName,
    pub(crate) columns: Vec<ColumnPair>,
    /// The child's primary key, if it has one.
    pub(crate) child_key: Vec<String>,
}

/// A column of the child and the one of the parent to which it refers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct ColumnPair {
    pub(crate) child: String,
    /// The child's type, as SQL.
    pub(crate) r#type: String,
    pub(crate) parent: String,
}

/// A foreign key that concerns a table, and on which side of it the table is; it may be on both.
#[derive(Clone, Debug)]
pub(crate) struct Concern {
    key: Arc<ForeignKey>,
    is_child: bool,
    is_parent: bool,
}

impl Concern {
    /// From a row of `table_foreign_keys.sql`.
    ///
    /// # Errors
    /// It is not the JSON that the query makes.
    pub(crate) fn new(json: &str, is_child: bool, is_parent: bool) -> Result<Self> {
        let key = serde_json::from_str(json).context("read a foreign key of the catalogs")?;
        Ok(Self { key: Arc::new(key), is_child, is_parent })
    }
}

/// The foreign keys that concern a table of the server behind `client`.
///
/// # Errors
/// The server cannot be asked.
pub(crate) async fn load(client: &Client, schema: &str, table: &str) -> Result<Vec<Concern>> {
    let sql = include_str!("../sql/table_foreign_keys.sql");
    let rows = client.query(sql, &[&schema, &table]).await?;
    rows.iter().map(|row| Concern::new(row.get(0), row.get(1), row.get(2))).collect()
}

/// Children that may have lost their parent.
#[derive(Debug)]
pub(crate) struct Orphans {
    key: Arc<ForeignKey>,
    /// The values by which they refer to it; `None` for all children.
    values: Option<Vec<String>>,
    /// Who deleted the parent, if that is known.
    gone: Option<RowVersion>,
    /// What must be visible here before it can be looked up.
    awaits: VersionVector,
}

/// One side of a foreign key, as it stands in the tuples of one origin.
#[derive(Clone, Debug)]
struct Side {
    key: Arc<ForeignKey>,
    /// The values by which child and parent find each other.
    values: Named,
    places: Vec<usize>,
    /// Children were written.
    children: Digest,
    /// Parents went.
    gone: Digest,
    /// Parents went of which it is not known who they were.
    unnamed: Digest,
}

impl Side {
    /// `None` when the origin does not have all the columns.
    fn new(
        relation: &Relation,
        key: &Arc<ForeignKey>,
        column: fn(&ColumnPair) -> &str,
    ) -> Option<Self> {
        let place = |pair: &ColumnPair| {
            let at = relation.columns.iter().position(|known| known.name == column(pair))?;
            Some((at, relation.columns[at].type_oid))
        };
        let places = key.columns.iter().map(place).collect::<Option<Vec<_>>>()?;
        let (schema, table) = (key.child.0.as_str(), key.child.1.as_str());
        let named = |what, places| {
            Named::new(&format!("foreign key: {what}"), [schema, table, &key.name], places)
        };
        let whole = |what| named(what, Vec::new()).digest(&[]);
        Some(Self {
            key: key.clone(),
            children: whole("children")?,
            gone: whole("gone")?,
            unnamed: whole("unnamed")?,
            places: places.iter().map(|(at, _)| *at).collect(),
            values: named("parent", places),
        })
    }

    fn texts(&self, row: &[Value<'_>]) -> Option<Vec<String>> {
        let text = |at: &usize| match row.get(*at)? {
            Value::Text(text) => String::from_utf8(text.to_vec()).ok(),
            Value::Null | Value::Unchanged | Value::Binary(_) => None,
        };
        self.places.iter().map(text).collect()
    }

    fn orphans(
        &self,
        values: Option<Vec<String>>,
        gone: Option<RowVersion>,
        mut awaits: VersionVector,
        writer: &Writer<'_>,
    ) -> Orphans {
        awaits.advance(writer.version.origin, writer.version.lsn);
        Orphans { key: self.key.clone(), values, gone, awaits }
    }

    /// A child is written.
    fn refer(
        &self,
        history: &mut History,
        new: &[Value<'_>],
        writer: &Writer<'_>,
    ) -> Option<Orphans> {
        history.touch(self.children, writer.version);
        let untold = history.untold(self.gone, writer);
        if untold.is_empty() {
            return None;
        }
        // NULL refers to nobody.
        let parent = self.values.digest(new)?;
        let unnamed = !history.untold(self.unnamed, writer).is_empty();
        if !unnamed && !history.is_deleted_unseen(parent, writer) {
            return None;
        }
        let gone = history.tombstone(parent).filter(|gone| !writer.has_seen(gone));
        Some(self.orphans(Some(self.texts(new)?), gone, untold, writer))
    }

    /// A parent goes: it is deleted, or the values by which it is found change.
    fn leave(
        &self,
        history: &mut History,
        old: &[Value<'_>],
        new: Option<&[Value<'_>]>,
        writer: &Writer<'_>,
    ) -> Option<Orphans> {
        let parent = self.values.digest(old);
        if let Some(new) = new {
            let same = |at: &usize| {
                new.get(*at) == Some(&Value::Unchanged) || new.get(*at) == old.get(*at)
            };
            // An update does not tell of values beside the primary key what they were.
            if parent.is_none() || self.places.iter().all(same) {
                return None;
            }
        }
        history.touch(self.gone, writer.version);
        match parent {
            Some(parent) => drop(history.deleted(parent, writer.version)),
            None => history.touch(self.unnamed, writer.version),
        }
        self.bereave(history, parent.and_then(|_| self.texts(old)), writer)
    }

    fn bereave(
        &self,
        history: &History,
        values: Option<Vec<String>>,
        writer: &Writer<'_>,
    ) -> Option<Orphans> {
        let untold = history.untold(self.children, writer);
        let concurrent = !untold.is_empty();
        concurrent.then(|| self.orphans(values, Some(writer.version), untold, writer))
    }
}

/// The foreign keys of a relation as one origin describes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ForeignKeys {
    as_child: Vec<Side>,
    as_parent: Vec<Side>,
}

impl ForeignKeys {
    /// Finds the columns by their names; what the origin does not have is left out.
    pub(crate) fn new(relation: &Relation, concerns: &[Concern]) -> Self {
        let sides = |wanted: fn(&Concern) -> bool, column: fn(&ColumnPair) -> &str| {
            let wanted = concerns.iter().filter(|concern| wanted(concern));
            wanted.filter_map(|concern| Side::new(relation, &concern.key, column)).collect()
        };
        Self {
            as_child: sides(|concern| concern.is_child, |pair| &pair.child),
            as_parent: sides(|concern| concern.is_parent, |pair| &pair.parent),
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.as_child.is_empty() && self.as_parent.is_empty()
    }

    /// Whether the relation refers to others.
    pub(crate) fn has_parents(&self) -> bool {
        !self.as_child.is_empty()
    }

    /// Whether [`ForeignKeys::note`] needs to see a change of this kind of a parent, told without decoding it.
    pub(crate) fn may_leave(&self, raw: &[u8]) -> bool {
        !self.as_parent.is_empty()
            && match raw.first() {
                Some(b'D') => true,
                Some(b'U') => matches!(raw.get(5), Some(b'K' | b'O')),
                _ => false,
            }
    }

    /// A transaction begins to write children. Answers whether parents went that it had not seen: only then, its
    /// children must be noted one by one.
    pub(crate) fn begin(&self, history: &mut History, writer: &Writer<'_>) -> bool {
        let mut closely = false;
        for side in &self.as_child {
            history.touch(side.children, writer.version);
            closely |= !history.untold(side.gone, writer).is_empty();
        }
        closely
    }

    /// Notes what a change does to either side, and who may have lost a parent by it.
    pub(crate) fn note(
        &self,
        history: &mut History,
        change: &Change<'_>,
        writer: &Writer<'_>,
        orphans: &mut Vec<Orphans>,
    ) {
        let (old, new): (Option<&OldTuple<'_>>, Option<&[Value<'_>]>) = match change {
            Change::Insert { new, .. } => (None, Some(new)),
            Change::Update { old, new, .. } => (old.as_ref(), Some(new)),
            Change::Delete { old, .. } => (Some(old), None),
            Change::Truncate { .. } => return self.emptied(history, writer, orphans),
        };
        if let Some(old) = old.map(old_values) {
            let gone = self.as_parent.iter();
            orphans.extend(gone.filter_map(|side| side.leave(history, old, new, writer)));
        }
        if let Some(new) = new {
            let children = self.as_child.iter();
            orphans.extend(children.filter_map(|side| side.refer(history, new, writer)));
        }
    }

    /// A row goes that lost a unique value to another writer.
    pub(crate) fn lost(
        &self,
        history: &mut History,
        row: &[Value<'_>],
        winner: &Writer<'_>,
        orphans: &mut Vec<Orphans>,
    ) {
        let sides = self.as_parent.iter();
        orphans.extend(sides.filter_map(|side| side.leave(history, row, None, winner)));
    }

    /// All rows of the relation go.
    fn emptied(&self, history: &mut History, writer: &Writer<'_>, orphans: &mut Vec<Orphans>) {
        for side in &self.as_parent {
            history.touch(side.gone, writer.version);
            history.touch(side.unnamed, writer.version);
            orphans.extend(side.bereave(history, None, writer));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use synapsedb_core::change::{Column, ReplicaIdentity};
    use synapsedb_core::ids::NodeId;
    use synapsedb_core::lsn::Lsn;
    use synapsedb_core::time::Timestamp;

    use super::*;

    const JSON: &str = r#"{"name": "fk", "child": ["public", "child"], "parent": ["public", "parent"],
        "columns": [{"child": "parent", "type": "integer", "parent": "id"}], "child_key": ["id"]}"#;

    fn foreign_keys(columns: &[&str], is_child: bool) -> ForeignKeys {
        let column = |name: &&str| Column {
            name: (*name).to_owned(),
            in_key: *name == "id",
            type_oid: 23,
            type_modifier: -1,
        };
        let relation = Relation {
            id: 1,
            schema: "public".into(),
            name: "any".into(),
            identity: ReplicaIdentity::Default,
            columns: columns.iter().map(column).collect(),
        };
        ForeignKeys::new(&relation, &[Concern::new(JSON, is_child, !is_child).unwrap()])
    }

    fn version(origin: u16, lsn: u64) -> RowVersion {
        let origin = NodeId::new(origin).unwrap();
        RowVersion { commit_time: Timestamp(0), origin, lsn: Lsn(lsn) }
    }

    /// The orphans of a child of parent 5 by node 2 and a delete of it by node 1, noted in either order.
    fn orphans(child_first: bool, seen: u64, value: Value<'_>) -> Vec<Orphans> {
        let (child, parent) = (foreign_keys(&["id", "parent"], true), foreign_keys(&["id"], false));
        let mut history = History::new(10);
        let (nothing, told) = (VersionVector::new(), [(NodeId::new(1).unwrap(), Lsn(seen))]);
        let told: VersionVector = told.into_iter().collect();
        let child_writer = Writer { version: version(2, 20), vector: &told };
        let parent_writer = Writer { version: version(1, 10), vector: &nothing };
        let insert = Change::Insert { relation: 1, new: vec![Value::Text(b"1"), value] };
        let delete = Change::Delete { relation: 2, old: OldTuple::Key(vec![Value::Text(b"5")]) };
        let mut found = Vec::new();
        if child_first {
            child.note(&mut history, &insert, &child_writer, &mut found);
        }
        parent.note(&mut history, &delete, &parent_writer, &mut found);
        if !child_first {
            assert_eq!(child.begin(&mut history, &child_writer), seen < 10);
            child.note(&mut history, &insert, &child_writer, &mut found);
        }
        found
    }

    #[test]
    fn who_comes_second_finds_the_other() {
        for child_first in [true, false] {
            let found = orphans(child_first, 0, Value::Text(b"5"));
            assert_eq!(found.len(), 1, "{child_first}");
            assert_eq!(found[0].values, Some(vec!["5".to_owned()]));
            assert_eq!(found[0].gone, Some(version(1, 10)));
            let awaits: Vec<_> = found[0].awaits.iter().map(|(_, lsn)| lsn.0).collect();
            assert_eq!(awaits, [10, 20]);
        }
    }

    #[test]
    fn who_had_seen_the_other_or_refers_to_nobody_is_no_orphan() {
        assert!(orphans(false, 10, Value::Text(b"5")).is_empty());
        assert!(orphans(false, 0, Value::Text(b"6")).is_empty());
        assert!(orphans(false, 0, Value::Null).is_empty());
    }
}
