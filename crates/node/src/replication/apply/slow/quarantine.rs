//! What cannot be applied is kept with the reason, and the transaction goes on without it.

use std::collections::BTreeSet;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use synapsedb_core::change::{Change, Relation, Value};
use synapsedb_core::history::Digest;
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_pg::pgoutput::{self, Message};

use super::super::gate::sql_time;
use super::super::lane::{Lane, Step, Stop};
use super::super::session::{Parameter, text};
use super::Settled;
use super::retry::from_hex;
use crate::replication::ddl::{Ddl, PREFIX as DDL_PREFIX};
use crate::replication::keys::{LocalKeys, RowKeys};
use crate::replication::recent::old_values;

/// A change as people read it.
#[derive(Default)]
struct Described {
    kind: &'static str,
    table: Option<(String, String)>,
    old: Option<String>,
    new: Option<String>,
    statement: Option<String>,
    relation: Option<Bytes>,
}

impl Lane<'_> {
    /// Puts a change into `synapsedb.quarantine`, within the transaction that goes on without it.
    pub(super) async fn quarantine(
        &mut self,
        raw: &Bytes,
        position: u32,
        reason: &str,
        sqlstate: Option<&str>,
    ) -> Step<()> {
        let described = self.describe(raw)?;
        let header = self.header.as_ref().context("no transaction is open")?;
        let (lsn, time) = (header.commit_lsn.to_string(), sql_time(header.commit_time));
        let life = match self.writer() == self.source.origin {
            true => self.source.incarnation,
            false => self.shared.identity.incarnation,
        };
        let (origin, incarnation) = (self.writer().to_string(), life.to_string());
        let position = position.to_string();
        let table = described.table.as_ref();
        let mut parameters: Vec<Parameter<'_>> = [
            Some(origin.as_str()),
            Some(&incarnation),
            Some(&lsn),
            Some(&time),
            Some(&position),
            table.map(|(schema, _)| schema.as_str()),
            table.map(|(_, name)| name.as_str()),
            Some(described.kind),
            described.old.as_deref(),
            described.new.as_deref(),
            described.statement.as_deref(),
            Some(reason),
            sqlstate,
        ]
        .map(Parameter::optional)
        .into();
        parameters.push(described.relation.as_deref().map_or(Parameter::Null, Parameter::Binary));
        parameters.push(Parameter::Binary(raw));
        let answer = self.session.run(include_str!("../../sql/put_quarantine.sql"), &parameters);
        if let Err(error) = answer.await? {
            let reason = format!("{reason}; and it cannot be put into quarantine: {error}");
            return Err(Stop::Failed(Box::new(super::super::lane::Failure {
                reason,
                ..self.failure_of(error)
            })));
        }
        let name = table.map_or("?".to_owned(), |(schema, name)| format!("{schema}.{name}"));
        tracing::error!(origin = %self.writer(), lsn = %lsn, table = %name,
            "a change ({}) cannot be applied here and was put into quarantine, the stream goes on: {reason}. \
             See `synapsedb repl quarantine`, mend the cause, then `synapsedb repl retry`", described.kind);
        self.shared.metrics.quarantined_rows.inc();
        Ok(())
    }

    /// The transactions whose writes on a row wait in the quarantine.
    pub(super) async fn set_aside(
        &mut self,
        plan: usize,
        row: Digest,
    ) -> Settled<BTreeSet<(NodeId, Lsn)>> {
        let answer = self.ask_of_table(plan, include_str!("../../sql/set_aside.sql")).await?;
        let mut aside = BTreeSet::new();
        for told in &answer.rows {
            let bytes = |at: usize| text(told, at).and_then(from_hex);
            let (relation, message) = (bytes(2)?, bytes(3)?);
            let decoded = (pgoutput::decode(&relation), pgoutput::decode(&message));
            let (Ok(Message::Relation(relation)), Ok(Message::Change(change))) = decoded else {
                continue;
            };
            let indexes = self.plans[plan].indexes.clone();
            let keys = RowKeys::new(&relation, &LocalKeys { indexes, policy: None });
            if keys.is_some_and(|keys| concerns(&keys, &change, row)) {
                let origin = text(told, 0)?.parse().map_err(anyhow::Error::from)?;
                aside.insert((origin, text(told, 1)?.parse().map_err(anyhow::Error::from)?));
            }
        }
        Ok(aside)
    }

    fn describe(&self, raw: &Bytes) -> Step<Described> {
        let mut described = Described::default();
        match pgoutput::decode(raw).context("decode a spooled message")? {
            Message::Change(change) => {
                let known = self.current.get(&change.relation()).map(|(raw, _)| raw.clone());
                let relation = match known.as_ref().map(|raw| pgoutput::decode(raw)).transpose() {
                    Ok(Some(Message::Relation(relation))) => Some(relation),
                    Ok(_) => None,
                    Err(error) => return Err(anyhow!(error).into()),
                };
                describe_change(&change, relation.as_ref(), &mut described);
                described.relation = known;
            }
            Message::LogicalMessage { prefix: DDL_PREFIX, content, .. } => {
                let ddl = Ddl::parse(content)?;
                described.kind = "ddl";
                described.statement = Some(ddl.statement().ok().flatten().unwrap_or(ddl.query));
            }
            Message::LogicalMessage { .. }
            | Message::Begin { .. }
            | Message::Commit { .. }
            | Message::Origin { .. }
            | Message::Relation(_)
            | Message::Type { .. } => described.kind = "other",
        }
        Ok(described)
    }
}

/// Whether a change writes a row, or moves it away.
fn concerns(keys: &RowKeys, change: &Change<'_>, row: Digest) -> bool {
    let (old, new) = change.rows();
    let mut rows = old.map(old_values).into_iter().chain(new.map(Vec::as_slice));
    rows.any(|values| keys.row(values) == Some(row))
}

fn describe_change(change: &Change<'_>, relation: Option<&Relation>, described: &mut Described) {
    let json = |row: &[Value<'_>]| relation.map(|relation| json(relation, row));
    (described.kind, described.old, described.new) = match change {
        Change::Insert { new, .. } => ("insert", None, json(new)),
        Change::Update { old, new, .. } => {
            ("update", old.as_ref().and_then(|old| json(old_values(old))), json(new))
        }
        Change::Delete { old, .. } => ("delete", json(old_values(old)), None),
        Change::Truncate { .. } => ("truncate", None, None),
    };
    described.table = relation.map(|relation| (relation.schema.clone(), relation.name.clone()));
}

fn json(relation: &Relation, row: &[Value<'_>]) -> String {
    let entries = relation.columns.iter().zip(row).filter_map(|(column, value)| {
        let value = match value {
            Value::Null => serde_json::Value::Null,
            Value::Text(text) => String::from_utf8_lossy(text).into_owned().into(),
            Value::Unchanged | Value::Binary(_) => return None,
        };
        Some((column.name.clone(), value))
    });
    serde_json::Value::Object(entries.collect()).to_string()
}
