//! Changes of tables' policies, as the stream has them: rows of `synapsedb.policy`.

use synapsedb_core::change::{Change, Relation, Value};
use synapsedb_core::policy::{self, TablePolicy};
use synapsedb_core::version::RowVersion;

use super::Shared;
use super::keys::table_digest;
use super::recent::old_values;

/// Whether the rows of a table are policies.
pub(crate) fn is_policy(schema: &str, table: &str) -> bool {
    (schema, table) == ("synapsedb", "policy")
}

/// Notes a change of a row of `synapsedb.policy`; answers whose policy it is, unless it names no table.
pub(crate) fn note(
    shared: &Shared,
    relation: &Relation,
    change: &Change<'_>,
    version: RowVersion,
) -> Option<(String, String)> {
    let text = |row: &[Value<'_>], column: &str| -> Option<String> {
        let at = relation.columns.iter().position(|known| known.name == column)?;
        match row.get(at)? {
            Value::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
            Value::Null | Value::Unchanged | Value::Binary(_) => None,
        }
    };
    // A table without a row has the default, and so has one whose policy this version does not know.
    let policy = |row: Option<&[Value<'_>]>| -> TablePolicy {
        let told = row.and_then(|row| text(row, "policy"));
        told.and_then(|told| told.parse().ok()).unwrap_or_default()
    };
    let (old, new) = change.rows();
    let (old, new) = (old.map(old_values), new.map(Vec::as_slice));
    let named = new.or(old)?;
    let (schema, table) = (text(named, "schema_name")?, text(named, "table_name")?);
    let change = policy::Change::new(version, policy(old), policy(new));
    shared.recent.lock().policy_changed(table_digest(&schema, &table), change);
    Some((schema, table))
}
