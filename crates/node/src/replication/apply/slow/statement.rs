//! The SQL of the slow path for one table: reading and locking a row, and telling it as JSON.

use std::fmt::Write as _;

use synapsedb_core::change::Value;
use synapsedb_pg::quote;

use super::super::plan::Plan;

/// Columns of a row that [`read`] puts before its values: `xmin`, the number of the writer's origin, its commit time in
/// microseconds since 1970, the row as JSON, the node that wrote it if it has no origin, and whether that only rewrote
/// it.
pub(super) const VALUES_FROM: usize = 6;

/// Reads and locks the rows that `condition` finds. The values are those of the plan's columns in the type's own text
/// form, as the stream has them.
///
/// The writer is told in the select list, since that is computed again when the row has changed while its lock was
/// waited for.
pub(super) fn read(plan: &Plan, condition: &str) -> String {
    let mut values = String::new();
    for column in &plan.columns {
        let _ = write!(values, ", {}", column.text_sql());
    }
    format!(
        "select t.xmin::text, \
         (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident::text, \
         (extract(epoch from (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).\"timestamp\") \
         * 1000000)::bigint::text, \
         pg_catalog.to_jsonb(t)::text, ({})::text, \
         (exists (select from synapsedb.altered r where r.xmin = t.xmin and r.dropped_column is null))::text{values} \
         from {} as t where {condition} for update of t",
        plan.check.without_origin("t"),
        plan.table()
    )
}

/// The condition that a unique index finds a row which is not the one of the key; the values of the index come first
/// among the parameters, then those of the key.
pub(super) fn holder(plan: &Plan, columns: &[String]) -> String {
    let type_of = |name: &str| {
        let column = plan.columns.iter().find(|column| column.local.name == *name);
        column.map_or("text", |column| column.local.type_name.as_str())
    };
    let held = columns.iter().enumerate().map(|(index, name)| {
        let (ident, type_name) = (quote::ident(name), type_of(name));
        format!("t.{ident} is not distinct from ${}::{type_name}", index + 1)
    });
    let held: Vec<_> = held.collect();
    format!("{} and not ({})", held.join(" and "), plan.found(columns.len() + 1))
}

/// A row of the stream as a JSON object of texts; what an update did not send is left out.
pub(super) fn json(plan: &Plan, row: &[Value<'_>], keys_only: bool) -> String {
    let columns = plan.columns.iter().zip(row).filter(|(column, _)| column.key || !keys_only);
    let entries = columns.filter_map(|(column, value)| {
        let value = match value {
            Value::Null => serde_json::Value::Null,
            Value::Text(text) => String::from_utf8_lossy(text).into_owned().into(),
            Value::Unchanged | Value::Binary(_) => return None,
        };
        Some((column.local.name.clone(), value))
    });
    serde_json::Value::Object(entries.collect()).to_string()
}
