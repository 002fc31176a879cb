//! What a statement of a plan does, for one row or for many, and where it finds its values.

use synapsedb_core::change::{Change, OldTuple, Value};

use super::element::Element;

/// Which statement of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// One row.
    Insert,
    /// Many rows as one array per column.
    InsertMany,
    /// The columns that are present (an unchanged TOAST value is not).
    Update(Vec<bool>),
    /// Many rows, each by its own key, as one array per column and per part of the key.
    UpdateMany(Vec<bool>),
    /// One row.
    Delete,
    /// Many rows as one array per part of the key.
    DeleteMany,
}

impl Shape {
    /// The shape of many changes of this one.
    pub(super) fn many(self) -> Self {
        match self {
            Self::Insert | Self::InsertMany => Self::InsertMany,
            Self::Update(present) | Self::UpdateMany(present) => Self::UpdateMany(present),
            Self::Delete | Self::DeleteMany => Self::DeleteMany,
        }
    }
}

/// Where a statement finds its values.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// It is a prepared statement: parameters `$1`, `$2`, …
    Statement,
    /// It is a prepared statement for many rows: columns `c1`, `c2`, … of `s`, which reads parameters that are arrays.
    Many,
    /// It stands in a procedure: variables `c1`, `c2`, … of the types of their elements, numbered on from here, and the
    /// bound `bound_`.
    Procedure(usize),
    /// It stands in a procedure, for many rows: columns `c1`, `c2`, … of `s`, which reads the elements of the arrays
    /// `v1`, `v2`, … from `first_` to `last_`. For inserts only.
    Group,
}

impl Place {
    /// The value with this number, counted from 1 within the statement.
    pub(super) fn value(self, number: usize, type_name: &str) -> String {
        match self {
            Self::Statement => format!("${number}"),
            Self::Many | Self::Group => cast(&format!("s.c{number}"), type_name),
            Self::Procedure(before) => cast(&format!("c{}", before + number), type_name),
        }
    }

    /// Up to which commit time writers were certainly seen: the parameter behind the values.
    pub(super) fn bound(self, number: usize) -> String {
        match self {
            Self::Statement | Self::Many => format!("${number}::timestamptz"),
            Self::Procedure(_) | Self::Group => "bound_".to_owned(),
        }
    }

    /// The statement so that it ends its transaction with SY001 when it does not meet its row, or not as many as the
    /// parameter with this number says; a procedure looks for itself.
    pub(super) fn must_meet(self, sql: String, count: usize) -> String {
        match self {
            Self::Many => format!(
                "with met as ({sql} returning 1) \
                 select synapsedb.unmet() where (select count(*) from met) <> ${count}::bigint"
            ),
            Self::Statement => format!(
                "with met as ({sql} returning 1) \
                 select synapsedb.unmet() where not exists (select from met)"
            ),
            Self::Procedure(_) | Self::Group => sql,
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

impl<'t, 'v> RowChange<'t, 'v> {
    /// `None` for a change that is not of a row.
    pub(super) fn of(change: &'t Change<'v>) -> Option<Self> {
        Some(match change {
            Change::Insert { new, .. } => Self::Insert(new),
            Change::Update { old: Some(OldTuple::Key(old) | OldTuple::Full(old)), new, .. } => {
                Self::Update(old, new)
            }
            Change::Update { old: None, new, .. } => Self::Update(new, new),
            Change::Delete { old: OldTuple::Key(old) | OldTuple::Full(old), .. } => {
                Self::Delete(old)
            }
            Change::Truncate { .. } => return None,
        })
    }

    /// The statement for it.
    pub(super) fn shape(&self) -> Shape {
        match self {
            Self::Insert(_) => Shape::Insert,
            Self::Update(_, new) => {
                Shape::Update(new.iter().map(|value| *value != Value::Unchanged).collect())
            }
            Self::Delete(_) => Shape::Delete,
        }
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
