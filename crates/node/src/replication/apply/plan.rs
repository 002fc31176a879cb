//! How the changes of one relation are written to the local table of that name: the statements and their parameters.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::{Result, bail};
use synapsedb_core::change::{OldTuple, Relation, ReplicaIdentity, Tuple, Value};
use synapsedb_pg::quote;

use super::array::Array;
use super::check::VersionCheck;
use super::column::{Column, Local, LocalColumn};
use super::element::Element;
use super::session::Parameter;
use crate::replication::foreign_keys::ForeignKeys;
use crate::replication::keys::{LocalKeys, RowKeys, UniqueIndex};

/// Which statement of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// One row.
    Insert,
    /// Many rows as one text array per column.
    InsertMany,
    /// The columns that are present (an unchanged TOAST value is not).
    Update(Vec<bool>),
    /// One row.
    Delete,
}

/// Where a statement finds its values.
#[derive(Clone, Copy)]
enum Place {
    /// It is a prepared statement: parameters `$1`, `$2`, …
    Statement,
    /// It stands in a procedure: variables `c1`, `c2`, … of the types of their elements, numbered on from here, and the
    /// bound `bound_`.
    Procedure(usize),
}

impl Place {
    /// The value with this number, counted from 1 within the statement.
    fn value(self, number: usize, type_name: &str) -> String {
        match self {
            Self::Statement => format!("${number}"),
            Self::Procedure(before) => cast(&format!("c{}", before + number), type_name),
        }
    }

    /// Up to which commit time writers were certainly seen: the last parameter of a statement.
    fn bound(self, number: usize) -> String {
        match self {
            Self::Statement => format!("${number}::timestamptz"),
            Self::Procedure(_) => "bound_".to_owned(),
        }
    }

    /// The statement so that it ends its transaction with SY001 when it does not meet its row; a procedure looks for
    /// itself.
    fn must_meet(self, sql: String) -> String {
        match self {
            Self::Statement => format!(
                "with met as ({sql} returning 1) \
                 select synapsedb.unmet() where not exists (select from met)"
            ),
            Self::Procedure(_) => sql,
        }
    }
}

/// A change of one row, for which there is a [`Shape`].
pub(crate) enum RowChange<'t, 'v> {
    /// The row.
    Insert(&'t [Value<'v>]),
    /// What names the row, and the row after the update.
    Update(&'t [Value<'v>], &'t [Value<'v>]),
    /// What names the row.
    Delete(&'t [Value<'v>]),
}

/// The statements for one relation as one origin describes it.
pub(crate) struct Plan {
    number: usize,
    pub(super) schema: String,
    pub(super) name: String,
    table: String,
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
}

impl Plan {
    /// Matches the origin's columns with the local table's.
    ///
    /// # Errors
    /// The local table lacks a column, or the origin tells less of a row than its primary key here.
    pub(crate) fn new(
        number: usize,
        relation: &Relation,
        Local { columns: local, gone }: Local<'_>,
        local_keys: LocalKeys,
        check: VersionCheck,
    ) -> Result<Self> {
        let name = format!("{}.{}", relation.schema, relation.name);
        let primary_key = local.iter().any(|column| column.in_primary_key);
        let mut columns = Vec::with_capacity(relation.columns.len());
        for column in &relation.columns {
            let Some(found) = local.iter().find(|found| found.name == column.name) else {
                if gone.contains(&column.name) {
                    columns.push(Column::gone(&column.name));
                    continue;
                }
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
        let told =
            |key: &LocalColumn| relation.columns.iter().any(|column| column.name == key.name);
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
            table: quote::qualified(&relation.schema, &relation.name),
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
            Shape::InsertMany => self.insert(true, Place::Statement),
            Shape::Insert | Shape::Update(_) | Shape::Delete => self.row(shape, Place::Statement),
        };
        self.prepared.insert(shape.clone(), name.clone());
        (name, Some(sql))
    }

    /// The statement for one row inside of a procedure whose record has `before` fields of earlier statements.
    pub(crate) fn in_procedure(&self, shape: &Shape, before: usize) -> String {
        self.row(shape, Place::Procedure(before))
    }

    fn row(&self, shape: &Shape, place: Place) -> String {
        match shape {
            Shape::Insert => self.insert(false, place),
            Shape::InsertMany => self.insert(true, place),
            Shape::Update(present) => self.update(present, place),
            Shape::Delete => self.delete(place),
        }
    }

    fn insert(&self, many: bool, place: Place) -> String {
        let written: Vec<&Column> =
            self.columns.iter().filter(|column| column.insertable()).collect();
        let names = written.iter().map(|column| quote::ident(&column.local.name));
        let names = list(names.chain(self.added.iter().map(|(name, _)| name.clone())));
        let added = self.added.iter().map(|(_, value)| value.clone());
        let mut sql = format!("insert into {} as t ({names}) overriding system value ", self.table);
        if many {
            let value = |(index, column): (usize, &&Column)| {
                let type_name = &column.local.type_name;
                let array = format!("${}::{}[]", index + 1, Element::of(type_name).sql());
                cast(&format!("unnest({array})"), type_name)
            };
            let values = list(written.iter().enumerate().map(value).chain(added));
            let _ = write!(sql, "select {values}");
        } else {
            let value = |(index, column): (usize, &&Column)| {
                place.value(index + 1, &column.local.type_name)
            };
            let values = list(written.iter().enumerate().map(value).chain(added));
            let _ = write!(sql, "values ({values})");
        }
        sql
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
            return place.must_meet(sql);
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
        let sql = format!("update {} as t set {sets} where {found}", self.table);
        let keys = self.columns.iter().filter(|column| column.key).count();
        (sql, updated.len() + keys)
    }

    fn delete(&self, place: Place) -> String {
        let found = self.find(1, place);
        let sql = format!("delete from {} as t where {found}", self.table);
        if self.primary_key {
            let keys = self.columns.iter().filter(|column| column.key).count();
            let check = self.seen(&place.bound(keys + 1));
            return place.must_meet(format!("{sql} and {check}"));
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
            Shape::Insert => self.insert(false, Place::Statement),
            Shape::InsertMany => self.insert(true, Place::Statement),
            Shape::Update(present) => self.update_found(present, Place::Statement).0,
            Shape::Delete => {
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

    /// The parameters of [`Shape::Insert`]: the written columns.
    pub(crate) fn insert_parameters<'a>(&self, new: &Tuple<'a>) -> Vec<Parameter<'a>> {
        let written = self.columns.iter().zip(new).filter(|(column, _)| column.insertable());
        written.map(|(_, value)| parameter(*value)).collect()
    }

    /// One binary array per written column of [`Shape::InsertMany`]; `None` when a value must go as text.
    ///
    /// # Errors
    /// A value that is not text; the stream is asked for text only.
    pub(crate) fn insert_many_parameters(
        &self,
        rows: &[Tuple<'_>],
    ) -> Result<Option<Vec<Vec<u8>>>> {
        let mut arrays = Vec::with_capacity(self.columns.len());
        for (index, column) in self.columns.iter().enumerate() {
            if !column.insertable() {
                continue;
            }
            let mut array = Array::new(Element::of(&column.local.type_name));
            for row in rows {
                if !array.push(row[index])? {
                    return Ok(None);
                }
            }
            arrays.push(array.finish());
        }
        Ok(Some(arrays))
    }

    /// Whether rows have versions: then updates and deletes end with the bound as their last parameter.
    pub(crate) fn has_versions(&self) -> bool {
        self.primary_key
    }

    /// The shape and the parameters of an update.
    pub(crate) fn update_parameters<'a>(
        &self,
        old: Option<&OldTuple<'a>>,
        new: &Tuple<'a>,
        bound: &'a [u8],
    ) -> (Shape, Vec<Parameter<'a>>) {
        let present: Vec<bool> = new.iter().map(|value| *value != Value::Unchanged).collect();
        let updated = (0..self.columns.len()).filter(|index| self.updatable(*index, &present));
        let mut parameters: Vec<_> = updated.map(|index| parameter(new[index])).collect();
        let before = match old {
            Some(OldTuple::Key(old) | OldTuple::Full(old)) => old,
            None => new,
        };
        self.push_key(before, &mut parameters);
        if self.primary_key {
            parameters.push(Parameter::Text(bound));
        }
        (Shape::Update(present), parameters)
    }

    /// The parameters of a delete.
    pub(crate) fn delete_parameters<'a>(
        &self,
        old: &OldTuple<'a>,
        bound: &'a [u8],
    ) -> Vec<Parameter<'a>> {
        let (OldTuple::Key(old) | OldTuple::Full(old)) = old;
        let mut parameters = Vec::new();
        self.push_key(old, &mut parameters);
        if self.primary_key {
            parameters.push(Parameter::Text(bound));
        }
        parameters
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
            Shape::Update(present) => (0..self.columns.len())
                .filter(|index| self.updatable(*index, present))
                .map(|index| of(&self.columns[index]))
                .chain(keys)
                .collect(),
            Shape::Delete => keys.collect(),
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

/// An element of an array as a value of the column's type.
fn cast(value: &str, type_name: &str) -> String {
    let element = Element::of(type_name);
    if element != Element::Text || type_name == element.sql() {
        value.to_owned()
    } else {
        format!("{value}::{type_name}")
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
