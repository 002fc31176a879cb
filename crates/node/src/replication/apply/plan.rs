//! How the changes of one relation are written to the local table of that name: the statements and their parameters.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::{Result, bail};
use synapsedb_core::change::{OldTuple, Relation, ReplicaIdentity, Tuple, Value};
use synapsedb_core::ids::NodeId;
use synapsedb_pg::quote;

use super::array::TextArray;
use super::inherited::Inherited;
use super::session::Parameter;

/// A column of the local table.
#[derive(Clone, Debug)]
pub(crate) struct LocalColumn {
    pub(crate) name: String,
    /// The type with its modifier, as SQL.
    pub(crate) type_name: String,
    /// `GENERATED ALWAYS AS IDENTITY`: cannot be updated.
    pub(crate) always_identity: bool,
    /// `GENERATED ALWAYS AS (…) STORED`: computed here.
    pub(crate) generated: bool,
    pub(crate) in_primary_key: bool,
}

/// How a row's version is compared: who writes, and which replication origin belongs to which node.
#[derive(Clone, Debug)]
pub(crate) struct VersionCheck {
    /// The writer's node.
    pub(crate) origin: NodeId,
    /// This node: rows without an origin are its own.
    pub(crate) here: NodeId,
    /// The local number of each node's replication origin.
    pub(crate) origins: Vec<(u32, NodeId)>,
    /// Rows without an origin that are not this node's own.
    pub(crate) inherited: Inherited,
}

impl VersionCheck {
    /// Before the origins are known.
    pub(crate) fn new(origin: NodeId, here: NodeId, inherited: Inherited) -> Self {
        Self { origin, here, origins: Vec::new(), inherited }
    }

    /// SQL that is true when the stored row `target` is not newer than the writer (last write wins on commit time, then
    /// node). Unknown versions (frozen, or written by this very transaction) give way.
    fn sql(&self, target: &str, time: &str) -> String {
        // Of a node that was re-seeded there is one origin for each life.
        let mine: Vec<_> = self.origins.iter().filter(|(_, node)| *node == self.origin).collect();
        let mut mine = match mine.as_slice() {
            [] => "false".to_owned(),
            [(identifier, _)] => format!("v.roident = {identifier}"),
            many => {
                let many: Vec<_> =
                    many.iter().map(|(identifier, _)| identifier.to_string()).collect();
                format!("v.roident in ({})", many.join(", "))
            }
        };
        let without_origin = self.inherited.node_sql(target, self.here);
        if self.inherited.may_be(self.origin) {
            let _ = write!(mine, " or (v.roident = 0 and {without_origin} = {})", self.origin);
        }
        let mut nodes = format!("when 0 then {without_origin}");
        for (identifier, node) in &self.origins {
            let _ = write!(nodes, " when {identifier} then {node}");
        }
        format!(
            "(select {mine} or v.\"timestamp\" < {time} \
             or (v.\"timestamp\" = {time} \
             and case v.roident {nodes} else 0 end < {origin}) \
             from pg_catalog.pg_xact_commit_timestamp_origin({target}.xmin) v) is not false",
            origin = self.origin
        )
    }
}

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
    /// It stands in a procedure: text fields of the record `r`, numbered on from here, and the time `r.t`.
    Procedure(usize),
}

impl Place {
    /// The value with this number, counted from 1 within the statement.
    fn value(self, number: usize, type_name: &str) -> String {
        match self {
            Self::Statement => format!("${number}"),
            Self::Procedure(before) => format!("r.c{}::{type_name}", before + number),
        }
    }

    /// The commit time, which is the last parameter of a statement.
    fn time(self, number: usize) -> String {
        match self {
            Self::Statement => format!("${number}::timestamptz"),
            Self::Procedure(_) => "r.t".to_owned(),
        }
    }
}

/// One column of the origin's relation, matched by name with the local one.
struct Column {
    local: LocalColumn,
    /// Its place in the origin's tuples.
    key: bool,
}

/// The statements for one relation as one origin describes it.
pub(crate) struct Plan {
    number: usize,
    table: String,
    columns: Vec<Column>,
    primary_key: bool,
    check: VersionCheck,
    prepared: HashMap<Shape, String>,
}

impl Plan {
    /// Matches the origin's columns with the local table's.
    ///
    /// # Errors
    /// The local table lacks a column, or the origin tells less of a row than its primary key here.
    pub(crate) fn new(
        number: usize,
        relation: &Relation,
        local: &[LocalColumn],
        check: VersionCheck,
    ) -> Result<Self> {
        let name = format!("{}.{}", relation.schema, relation.name);
        let primary_key = local.iter().any(|column| column.in_primary_key);
        let mut columns = Vec::with_capacity(relation.columns.len());
        for column in &relation.columns {
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
            columns.push(Column { local: found.clone(), key });
        }
        let told =
            |key: &LocalColumn| relation.columns.iter().any(|column| column.name == key.name);
        if let Some(key) = local.iter().find(|column| column.in_primary_key && !told(column)) {
            bail!(
                "table {name} has key column \"{}\" here, the origin has none: make them alike",
                key.name
            );
        }
        Ok(Self {
            number,
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
            self.columns.iter().filter(|column| !column.local.generated).collect();
        let names = list(written.iter().map(|column| quote::ident(&column.local.name)));
        let mut sql = format!("insert into {} as t ({names}) overriding system value ", self.table);
        if many {
            let casts =
                list(written.iter().enumerate().map(|(index, column)| {
                    format!("u.c{}::{}", index + 1, column.local.type_name)
                }));
            let arrays = list((1..=written.len()).map(|index| format!("${index}::text[]")));
            let aliases = list((1..=written.len()).map(|index| format!("c{index}")));
            let _ = write!(sql, "select {casts} from unnest({arrays}) as u({aliases})");
        } else {
            let value = |(index, column): (usize, &&Column)| {
                place.value(index + 1, &column.local.type_name)
            };
            let values = list(written.iter().enumerate().map(value));
            let _ = write!(sql, "values ({values})");
        }
        if self.primary_key {
            let keys = list(
                written
                    .iter()
                    .filter(|column| column.key)
                    .map(|column| quote::ident(&column.local.name)),
            );
            let updatable =
                written.iter().filter(|column| !column.key && !column.local.always_identity);
            let sets = list(updatable.map(|column| {
                let name = quote::ident(&column.local.name);
                format!("{name} = excluded.{name}")
            }));
            let check = self.check.sql("t", &place.time(written.len() + 1));
            if sets.is_empty() {
                // All columns are the key: touching the row is enough to record the writer.
                let key = written
                    .iter()
                    .find(|column| column.key)
                    .map(|column| quote::ident(&column.local.name));
                let key = key.unwrap_or_default();
                let _ = write!(
                    sql,
                    " on conflict ({keys}) do update set {key} = excluded.{key} where {check}"
                );
            } else {
                let _ = write!(sql, " on conflict ({keys}) do update set {sets} where {check}");
            }
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
        let local = &self.columns[index].local;
        present.get(index).copied().unwrap_or(false) && !local.generated && !local.always_identity
    }

    fn update(&self, present: &[bool], place: Place) -> String {
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
            let first = self.columns.first().map(|column| quote::ident(&column.local.name));
            first.map(|name| format!("{name} = t.{name}")).unwrap_or_default()
        } else {
            sets
        };
        let found = self.find(updated.len() + 1, place);
        let mut sql = format!("update {} as t set {sets} where {found}", self.table);
        if self.primary_key {
            let keys = self.columns.iter().filter(|column| column.key).count();
            let _ =
                write!(sql, " and {}", self.check.sql("t", &place.time(updated.len() + keys + 1)));
        }
        sql
    }

    fn delete(&self, place: Place) -> String {
        format!("delete from {} as t where {}", self.table, self.find(1, place))
    }

    /// The parameters of [`Shape::Insert`]: the written columns, then the commit time if rows have versions here.
    pub(crate) fn insert_parameters<'a>(
        &self,
        new: &Tuple<'a>,
        time: &'a [u8],
    ) -> Vec<Parameter<'a>> {
        let written = self.columns.iter().zip(new).filter(|(column, _)| !column.local.generated);
        let mut parameters: Vec<_> = written.map(|(_, value)| parameter(*value)).collect();
        if self.primary_key {
            parameters.push(Parameter::Text(time));
        }
        parameters
    }

    /// One binary text array per written column of [`Shape::InsertMany`].
    ///
    /// # Errors
    /// A value that is not text; the stream is asked for text only.
    pub(crate) fn insert_many_parameters(&self, rows: &[Tuple<'_>]) -> Result<Vec<Vec<u8>>> {
        let written = self.columns.iter().enumerate().filter(|(_, column)| !column.local.generated);
        let array = |index: usize| -> Result<Vec<u8>> {
            let mut array = TextArray::new();
            for row in rows {
                array.push(match row[index] {
                    Value::Null => None,
                    Value::Text(text) => Some(text),
                    Value::Unchanged | Value::Binary(_) => {
                        bail!("an inserted row holds a value that is not text")
                    }
                })?;
            }
            Ok(array.finish())
        };
        written.map(|(index, _)| array(index)).collect()
    }

    /// Whether statements end with the commit time as their last parameter.
    pub(crate) fn has_versions(&self) -> bool {
        self.primary_key
    }

    /// The shape and the parameters of an update.
    pub(crate) fn update_parameters<'a>(
        &self,
        old: Option<&OldTuple<'a>>,
        new: &Tuple<'a>,
        time: &'a [u8],
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
            parameters.push(Parameter::Text(time));
        }
        (Shape::Update(present), parameters)
    }

    /// The parameters of a delete.
    pub(crate) fn delete_parameters<'a>(&self, old: &OldTuple<'a>) -> Vec<Parameter<'a>> {
        let (OldTuple::Key(old) | OldTuple::Full(old)) = old;
        let mut parameters = Vec::new();
        self.push_key(old, &mut parameters);
        parameters
    }

    fn push_key<'a>(&self, row: &Tuple<'a>, parameters: &mut Vec<Parameter<'a>>) {
        let keys = self.columns.iter().zip(row).filter(|(column, _)| column.key);
        parameters.extend(keys.map(|(_, value)| parameter(*value)));
    }

    /// How many values a statement for one row takes, the commit time not counted.
    pub(crate) fn values_of(&self, shape: &Shape) -> usize {
        let keys = self.columns.iter().filter(|column| column.key).count();
        match shape {
            Shape::Insert | Shape::InsertMany => {
                self.columns.iter().filter(|column| !column.local.generated).count()
            }
            Shape::Update(present) => {
                (0..self.columns.len()).filter(|index| self.updatable(*index, present)).count()
                    + keys
            }
            Shape::Delete => keys,
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

fn parameter(value: Value<'_>) -> Parameter<'_> {
    match value {
        Value::Null | Value::Unchanged => Parameter::Null,
        Value::Text(bytes) => Parameter::Text(bytes),
        Value::Binary(bytes) => Parameter::Binary(bytes),
    }
}
