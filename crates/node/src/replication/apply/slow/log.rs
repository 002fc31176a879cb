//! Writes down what was settled: one row of `synapsedb.conflict` in the transaction that settles it.

use synapsedb_core::change::Value;
use synapsedb_core::version::RowVersion;

use super::super::gate::sql_time;
use super::super::lane::Lane;
use super::super::session::Parameter;
use super::row::LocalRow;
use super::statement;
use super::{Settled, Trouble};

/// What is to be written down.
pub(super) struct Conflict {
    kind: &'static str,
    resolution: &'static str,
    /// The incoming row, as JSON, and its key.
    remote: Option<Vec<Option<Vec<u8>>>>,
    local_json: Option<String>,
    local: Option<RowVersion>,
    detail: Option<&'static str>,
    policy: Option<String>,
}

impl Conflict {
    /// A conflict of this kind with this outcome.
    pub(super) fn new(kind: &'static str, resolution: &'static str) -> Self {
        Self {
            kind,
            resolution,
            remote: None,
            local_json: None,
            local: None,
            detail: None,
            policy: None,
        }
    }

    /// The incoming row; of an update, without what it did not send.
    pub(super) fn remote(mut self, row: &[Value<'_>]) -> Self {
        let value = |value: &Value<'_>| match value {
            Value::Text(text) => Some(text.to_vec()),
            Value::Null | Value::Unchanged | Value::Binary(_) => None,
        };
        self.remote = Some(row.iter().map(value).collect());
        self
    }

    /// The row that was here.
    pub(super) fn local(mut self, row: Option<&LocalRow>) -> Self {
        if let Some(row) = row {
            self.local_json = Some(row.json.clone());
            self.local = row.version;
        }
        self
    }

    /// The writer of the row that is no longer here.
    pub(super) fn deleted(mut self, version: Option<RowVersion>) -> Self {
        self.local = self.local.or(version);
        self
    }

    /// What settled it, if not last write wins.
    pub(super) fn policy(mut self, policy: String) -> Self {
        self.policy = Some(policy);
        self
    }

    /// What else a person should know.
    pub(super) fn detail(mut self, detail: &'static str) -> Self {
        self.detail = Some(detail);
        self
    }
}

impl Lane<'_> {
    pub(super) async fn log(&mut self, plan: usize, conflict: Conflict) -> Settled<()> {
        let described = &self.plans[plan];
        let (schema, table) = (described.schema.clone(), described.name.clone());
        let owned = conflict.remote.unwrap_or_default();
        let remote: Vec<Value<'_>> =
            owned.iter().map(|value| value.as_deref().map_or(Value::Null, Value::Text)).collect();
        let row = (!remote.is_empty()).then(|| statement::json(described, &remote, false));
        let key = (!remote.is_empty()).then(|| statement::json(described, &remote, true));
        let header = self.header.as_ref().ok_or_else(|| Trouble::row("no transaction is open"))?;
        let vector = serde_json::to_string(&header.vector).unwrap_or_else(|_| "{}".to_owned());
        let (lsn, time) = (header.commit_lsn.to_string(), sql_time(header.commit_time));
        let (origin, local_node) =
            (self.writer().to_string(), conflict.local.map(|local| local.origin.to_string()));
        let local_lsn = conflict.local.map(|local| local.lsn.to_string());
        let local_time = conflict.local.map(|local| sql_time(local.commit_time));
        let texts = [
            Some(schema.as_str()),
            Some(table.as_str()),
            Some(conflict.kind),
            Some(conflict.resolution),
            Some(conflict.policy.as_deref().unwrap_or("last_write_wins")),
            key.as_deref(),
            conflict.local_json.as_deref(),
            row.as_deref(),
            local_node.as_deref(),
            local_lsn.as_deref(),
            local_time.as_deref(),
            Some(origin.as_str()),
            Some(lsn.as_str()),
            Some(time.as_str()),
            Some(vector.as_str()),
            conflict.detail,
        ];
        let parameters = texts.map(Parameter::optional);
        self.ask(include_str!("../../sql/put_conflict.sql"), &parameters).await?;
        self.conflicting += 1;
        self.shared.metrics.conflict(conflict.kind, &format!("{schema}.{table}"));
        Ok(())
    }
}
