//! How the changes of one relation are written to the local table of that name: the statements and their parameters.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::{Result, bail};
use synapsedb_core::change::{Change, Relation, ReplicaIdentity, Value};
use synapsedb_core::history::Digest;
use synapsedb_pg::quote;

use super::array::Array;
use super::check::VersionCheck;
use super::column::{Column, Local, LocalColumn};
use super::element::Element;
use super::scope::Scope;
use super::session::Parameter;
use super::shape::Place;
pub(crate) use super::shape::{RowChange, Shape};
use crate::replication::foreign_keys::ForeignKeys;
use crate::replication::keys::{LocalKeys, RowKeys, UniqueIndex, table_digest};
use crate::replication::policies::is_policy;

/// The statements for one relation as one origin describes it.
pub(crate) struct Plan {
    number: usize,
    pub(super) schema: String,
    pub(super) name: String,
    table: String,
    /// How many columns the local table has ever had.
    ever: i16,
    pub(super) columns: Vec<Column>,
    /// Columns that the origin does not have yet, and what they are in rows from before them, as SQL.
    added: Vec<(String, String)>,
    primary_key: bool,
    pub(super) check: VersionCheck,
    prepared: HashMap<Shape, String>,
    /// Where the keys stand in the origin's tuples; `None` without a primary key.
    pub(super) keys: Option<RowKeys>,
    /// The unique indexes of the local table.
    pub(super) indexes: Vec<UniqueIndex>,
    /// The foreign keys of the local table and to it.
    pub(super) foreign: ForeignKeys,
    /// How far what is written to the local table reaches.
    pub(super) scope: Scope,
    /// What names it in write sets, and among changes of policies.
    pub(super) digest: Digest,
    /// Whether its rows are the tables' policies.
    pub(super) is_policy: bool,
}

impl Plan {
    /// Matches the origin's columns with the local table's.
    ///
    /// # Errors
    /// The local table lacks a column, or the origin tells less of a row than its primary key here.
    pub(crate) fn new(
        number: usize,
        relation: &Relation,
        Local { columns: local, ever, gone }: Local<'_>,
        local_keys: LocalKeys,
        check: VersionCheck,
    ) -> Result<Self> {
        let name = format!("{}.{}", relation.schema, relation.name);
        let primary_key = local.iter().any(|column| column.in_primary_key);
        let mut columns = Vec::with_capacity(relation.columns.len());
        for column in &relation.columns {
            if gone.contains(&column.name) {
                columns.push(Column::gone(&column.name));
                continue;
            }
            let Some(found) = local.iter().find(|found| found.name == column.name) else {
                bail!(
                    "table {name} has no column \"{}\" here, the origin has: add it, and the stream goes on",
                    column.name
                );
            };
            let key = if primary_key { found.in_primary_key } else { column.in_key };
            if primary_key
                && found.in_primary_key
                && !column.in_key
                && relation.identity != ReplicaIdentity::Nothing
            {
                bail!(
                    "the primary key of table {name} has column \"{}\" here, but not at the origin: \
                     make the keys alike, and the stream goes on",
                    column.name
                );
            }
            columns.push(Column { local: found.clone(), key, gone: false });
        }
        let told = |local: &LocalColumn| {
            let is_it = |column: &Column| !column.gone && column.local.name == local.name;
            columns.iter().any(is_it)
        };
        if let Some(key) = local.iter().find(|column| column.in_primary_key && !told(column)) {
            bail!(
                "table {name} has key column \"{}\" here, the origin has none: make them alike",
                key.name
            );
        }
        let added = local.iter().filter(|column| !told(column) && !column.generated);
        let added = added.filter_map(|column| {
            let value = quote::literal(column.missing.as_deref()?);
            Some((quote::ident(&column.name), format!("{value}::{}", column.type_name)))
        });
        Ok(Self {
            number,
            added: added.collect(),
            schema: relation.schema.clone(),
            name: relation.name.clone(),
            keys: RowKeys::new(relation, &local_keys),
            indexes: local_keys.indexes,
            foreign: ForeignKeys::default(),
            scope: Scope::default(),
            digest: table_digest(&relation.schema, &relation.name),
            is_policy: is_policy(&relation.schema, &relation.name),
            table: quote::qualified(&relation.schema, &relation.name),
            ever,
            columns,
            primary_key,
            check,
            prepared: HashMap::new(),
        })
    }

    /// The name of the prepared statement for `shape`, and its SQL if it is not prepared yet.
    pub(crate) fn statement(&mut self, shape: &Shape) -> (String, Option<String>) {
        if let Some(name) = self.prepared.get(shape) {
            return (name.clone(), None);
        }
        let name = format!("r{}_{}", self.number, self.prepared.len());
        let sql = match shape {
            Shape::Insert | Shape::Update(_) | Shape::Delete => self.row(shape, Place::Statement),
            Shape::InsertMany | Shape::UpdateMany(_) | Shape::DeleteMany => {
                self.row(shape, Place::Many)
            }
        };
        self.prepared.insert(shape.clone(), name.clone());
        (name, Some(sql))
    }

    /// The statement for one row inside of a procedure whose record has `before` fields of earlier statements.
    pub(crate) fn in_procedure(&self, shape: &Shape, before: usize) -> String {
        self.row(shape, Place::Procedure(before))
    }

    /// The statement for the inserts of a group in a procedure.
    pub(crate) fn group_in_procedure(&self) -> String {
        self.insert(Place::Group)
    }

    fn row(&self, shape: &Shape, place: Place) -> String {
        match shape {
            Shape::Insert | Shape::InsertMany => self.insert(place),
            Shape::Update(present) | Shape::UpdateMany(present) => self.update(present, place),
            Shape::Delete | Shape::DeleteMany => self.delete(place),
        }
    }

    /// The rows of a statement for many, as SQL; nothing for one row.
    fn rows(&self, shape: &Shape, place: Place) -> Option<String> {
        let array: fn((usize, &Element)) -> String = match place {
            Place::Many => |(number, element)| format!("unnest(${number}::{}[])", element.sql()),
            Place::Group => |(number, _)| format!("unnest(v{number}[first_:last_])"),
            Place::Statement | Place::Procedure(_) => return None,
        };
        let elements = self.elements(shape);
        let numbered = || (1..).zip(&elements);
        // In the target list they are read one by one; in FROM they would be stored first.
        let arrays = numbered().map(array);
        let names = numbered().map(|(number, _)| format!("c{number}"));
        Some(format!("(select {}) as s({})", list(arrays), list(names)))
    }

    fn insert(&self, place: Place) -> String {
        let written = self.columns.iter().filter(|column| column.insertable());
        let names = written.clone().map(|column| quote::ident(&column.local.name));
        let names = list(names.chain(self.added.iter().map(|(name, _)| name.clone())));
        let values =
            (1..).zip(written).map(|(number, column)| place.value(number, &column.local.type_name));
        let values = list(values.chain(self.added.iter().map(|(_, value)| value.clone())));
        let into = format!("insert into {} as t ({names}) overriding system value", self.table);
        let shaped = self.shaped();
        match self.rows(&Shape::InsertMany, place) {
            Some(rows) => format!("{into} select {values} from {rows} where {shaped}"),
            None => format!("{into} select {values} where {shaped}"),
        }
    }

    /// SQL that ends the statement if the table has got a column since the plan was made, of which nobody may have
    /// heard yet; it costs nothing where the statement is planned already.
    fn shaped(&self) -> String {
        let table = quote::literal(&self.table);
        format!("synapsedb.shaped({table}::pg_catalog.regclass, {})", self.ever)
    }

    /// SQL that finds the row; its parameters begin with number `first`.
    fn find(&self, first: usize, place: Place) -> String {
        let keys = self.columns.iter().filter(|column| column.key);
        if self.primary_key {
            let matches = keys.enumerate().map(|(index, column)| {
                let value = place.value(first + index, &column.local.type_name);
                format!("t.{} = {value}", quote::ident(&column.local.name))
            });
            return matches.collect::<Vec<_>>().join(" and ");
        }
        // Without a key any one of equal rows will do; the text form is exact for every type.
        let matches = keys.enumerate().map(|(index, column)| {
            let value = place.value(first + index, "text");
            let name = quote::ident(&column.local.name);
            format!("k.{name}::text is not distinct from {value}::text")
        });
        let matches = matches.collect::<Vec<_>>().join(" and ");
        format!("t.ctid = (select k.ctid from {} as k where {matches} limit 1)", self.table)
    }

    fn updatable(&self, index: usize, present: &[bool]) -> bool {
        present.get(index).copied().unwrap_or(false) && self.columns[index].updatable()
    }

    fn update(&self, present: &[bool], place: Place) -> String {
        let (mut sql, parameters) = self.update_found(present, place);
        if self.primary_key {
            let _ = write!(sql, " and {}", self.seen(&place.bound(parameters + 1)));
            return place.must_meet(sql, parameters + 2);
        }
        sql
    }

    /// An update of the row that has the key, whoever wrote it; and the number of its parameters.
    fn update_found(&self, present: &[bool], place: Place) -> (String, usize) {
        let updated: Vec<usize> =
            (0..self.columns.len()).filter(|index| self.updatable(*index, present)).collect();
        let sets = list(updated.iter().enumerate().map(|(number, index)| {
            let column = &self.columns[*index].local;
            format!(
                "{} = {}",
                quote::ident(&column.name),
                place.value(number + 1, &column.type_name)
            )
        }));
        let sets = if sets.is_empty() {
            let first = self.columns.iter().find(|column| column.updatable());
            let first = first.map(|column| quote::ident(&column.local.name));
            first.map(|name| format!("{name} = t.{name}")).unwrap_or_default()
        } else {
            sets
        };
        let found = self.find(updated.len() + 1, place);
        let rows = self.rows(&Shape::UpdateMany(present.to_vec()), place);
        let from = rows.map(|rows| format!(" from {rows}")).unwrap_or_default();
        let shaped = self.shaped();
        let sql = format!("update {} as t set {sets}{from} where {shaped} and {found}", self.table);
        let keys = self.columns.iter().filter(|column| column.key).count();
        (sql, updated.len() + keys)
    }

    fn delete(&self, place: Place) -> String {
        let found = self.find(1, place);
        let rows = self.rows(&Shape::DeleteMany, place);
        let using = rows.map(|rows| format!(" using {rows}")).unwrap_or_default();
        let sql = format!("delete from {} as t{using} where {found}", self.table);
        if self.primary_key {
            let keys = self.columns.iter().filter(|column| column.key).count();
            let check = self.seen(&place.bound(keys + 1));
            return place.must_meet(format!("{sql} and {check}"), keys + 2);
        }
        sql
    }

    /// SQL that is true when the transaction has certainly seen the writer of the row `t`.
    pub(super) fn seen(&self, bound: &str) -> String {
        self.check.seen(&self.table, "t", bound)
    }

    /// The statement for one row that is to be written whoever wrote it before; its parameters are those of the shape
    /// without the bound.
    pub(super) fn unchecked(&self, shape: &Shape) -> String {
        match shape {
            Shape::Insert | Shape::InsertMany => self.insert(Place::Statement),
            Shape::Update(present) | Shape::UpdateMany(present) => {
                self.update_found(present, Place::Statement).0
            }
            Shape::Delete | Shape::DeleteMany => {
                format!("delete from {} as t where {}", self.table, self.find(1, Place::Statement))
            }
        }
    }

    /// SQL that finds the row by its key; its parameters begin with number `first`.
    pub(super) fn found(&self, first: usize) -> String {
        self.find(first, Place::Statement)
    }

    /// A statement was prepared in vain.
    pub(super) fn forget(&mut self, statement: &str) {
        self.prepared.retain(|_, name| name != statement);
    }

    /// One binary array per value of a statement for many rows; `None` when a value must go as text.
    ///
    /// # Errors
    /// A value that is not text; the stream is asked for text only.
    pub(super) fn arrays(
        &self,
        shape: &Shape,
        changes: &[Change<'_>],
    ) -> Result<Option<Vec<Vec<u8>>>> {
        let mut arrays: Vec<_> = self.elements(shape).into_iter().map(Array::new).collect();
        for change in changes.iter().filter_map(RowChange::of) {
            for (array, value) in arrays.iter_mut().zip(self.values(&change)) {
                if !array.push(value)? {
                    return Ok(None);
                }
            }
        }
        Ok(Some(arrays.into_iter().map(Array::finish).collect()))
    }

    /// The parameters of the statement for a change of one row; with a bound, of the one that looks at its version.
    pub(super) fn parameters<'v>(
        &self,
        change: &RowChange<'_, 'v>,
        bound: Option<&'v [u8]>,
    ) -> Vec<Parameter<'v>> {
        let bound = bound.filter(|_| self.primary_key && !matches!(change, RowChange::Insert(_)));
        let values = self.values(change).map(parameter);
        values.chain(bound.map(Parameter::Text)).collect()
    }

    /// The row that a change updates or deletes, if it has a key.
    pub(super) fn row_of(&self, change: &RowChange<'_, '_>) -> Option<Digest> {
        let keys = self.keys.as_ref()?;
        match change {
            RowChange::Insert(_) => None,
            RowChange::Update(row, _) | RowChange::Delete(row) => keys.row(row),
        }
    }

    /// Whether changes like this one of different rows may go as one statement, in whatever order it takes them: no row
    /// is in the way of another one's unique value.
    pub(super) fn takes_many(&self, change: &RowChange<'_, '_>) -> bool {
        let keys = self.keys.as_ref();
        match change {
            RowChange::Insert(_) => true,
            RowChange::Update(old, new) => {
                keys.is_some_and(|keys| !keys.has_claims() && keys.row(old) == keys.row(new))
            }
            RowChange::Delete(_) => keys.is_some(),
        }
    }

    /// Whether rows have versions: then updates and deletes end with the bound as their last parameter.
    pub(crate) fn has_versions(&self) -> bool {
        self.primary_key
    }

    pub(super) fn push_key<'a>(&self, row: &[Value<'a>], parameters: &mut Vec<Parameter<'a>>) {
        let keys = self.columns.iter().zip(row).filter(|(column, _)| column.key);
        parameters.extend(keys.map(|(_, value)| parameter(*value)));
    }

    /// The values of a statement for one row, in the order of its parameters. The commit time is not among them.
    pub(crate) fn values<'t, 'v>(
        &self,
        change: &'t RowChange<'t, 'v>,
    ) -> impl Iterator<Item = Value<'v>> {
        let (set, keys): (&[Value<'v>], &[Value<'v>]) = match change {
            RowChange::Insert(new) => (new, &[]),
            RowChange::Update(old, new) => (new, old),
            RowChange::Delete(old) => (&[], old),
        };
        let set = self.columns.iter().zip(set).filter(move |(column, value)| match change {
            RowChange::Insert(_) => column.insertable(),
            RowChange::Update(..) | RowChange::Delete(_) => {
                **value != Value::Unchanged && column.updatable()
            }
        });
        let keys = self.columns.iter().zip(keys).filter(|(column, _)| column.key);
        set.chain(keys).map(|(_, value)| *value)
    }

    /// How the values of a statement for one row are sent to a procedure.
    pub(super) fn elements(&self, shape: &Shape) -> Vec<Element> {
        let of = |column: &Column| Element::of(&column.local.type_name);
        let written = self.columns.iter().filter(|column| column.insertable());
        let keys = self.columns.iter().filter(|column| column.key);
        // Rows without a key are compared as text.
        let keys = keys.map(|column| if self.primary_key { of(column) } else { Element::Text });
        match shape {
            Shape::Insert | Shape::InsertMany => written.map(of).collect(),
            Shape::Update(present) | Shape::UpdateMany(present) => (0..self.columns.len())
                .filter(|index| self.updatable(*index, present))
                .map(|index| of(&self.columns[index]))
                .chain(keys)
                .collect(),
            Shape::Delete | Shape::DeleteMany => keys.collect(),
        }
    }

    /// The number of columns that the origin sends.
    pub(crate) fn width(&self) -> usize {
        self.columns.len()
    }

    /// The table, quoted, for TRUNCATE and for messages.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }
}

fn list(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

pub(super) fn parameter(value: Value<'_>) -> Parameter<'_> {
    match value {
        Value::Null | Value::Unchanged => Parameter::Null,
        Value::Text(bytes) => Parameter::Text(bytes),
        Value::Binary(bytes) => Parameter::Binary(bytes),
    }
}
