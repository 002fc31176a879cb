//! From the messages of a transaction to the statements that repeat them.

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use synapsedb_core::change::{Change, Tuple};
use synapsedb_pg::pgoutput::{self, Message};

use super::lane::{Lane, Step};
use super::plan::Shape;
use super::session::{Parameter, Purpose};
use crate::replication::ddl::{Ddl, PREFIX as DDL_PREFIX};

/// Rows from which on a run of inserts goes as arrays: below, the single statements cost less.
const BATCH_ROWS_MIN: usize = 4;

/// Bytes of rows that one batch holds at most.
const BATCH_BYTES: usize = 1 << 20;

/// A run of inserts into one table.
#[derive(Default)]
pub(super) struct Batch {
    plan: usize,
    rows: Vec<Bytes>,
    bytes: usize,
}

impl Lane<'_> {
    pub(super) async fn message(&mut self, raw: Bytes) -> Step<()> {
        match raw.first() {
            Some(b'I') => {
                let relation = relation_id(&raw);
                let plan = self.plan(relation).await?;
                let full = self.batch.rows.len() >= self.shared.config.apply_batch_rows
                    || self.batch.bytes >= BATCH_BYTES;
                if self.batch.plan != plan || full {
                    self.flush_batch()?;
                }
                self.batch.plan = plan;
                self.batch.bytes += raw.len();
                self.batch.rows.push(raw);
                Ok(())
            }
            Some(b'R') => {
                let relation = relation_id(&raw);
                let plan = self.known.get(&raw).copied();
                self.current.insert(relation, (raw, plan));
                Ok(())
            }
            _ => {
                self.flush_batch()?;
                self.other_message(&raw).await
            }
        }
    }

    async fn other_message(&mut self, raw: &Bytes) -> Step<()> {
        match pgoutput::decode(raw).context("decode a spooled message")? {
            Message::Change(Change::Update { relation, old, new }) => {
                let plan = self.plan(relation).await?;
                self.fits(plan, &new)?;
                let time = std::mem::take(&mut self.time);
                let (shape, parameters) =
                    self.plans[plan].update_parameters(old.as_ref(), &new, &time);
                let sent = self.row(plan, &shape, &parameters);
                self.time = time;
                sent
            }
            Message::Change(Change::Delete { relation, old }) => {
                let plan = self.plan(relation).await?;
                let parameters = self.plans[plan].delete_parameters(&old);
                self.row(plan, &Shape::Delete, &parameters)
            }
            Message::Change(Change::Truncate { relations, restart_identity, .. }) => {
                self.truncate(&relations, restart_identity).await
            }
            Message::LogicalMessage { prefix, content, .. } if prefix == DDL_PREFIX => {
                let ddl = Ddl::parse(content)?;
                self.ddl(&ddl).await
            }
            // Inserts are batched; the rest is no part of a spooled transaction.
            Message::Change(Change::Insert { .. })
            | Message::LogicalMessage { .. }
            | Message::Begin { .. }
            | Message::Commit { .. }
            | Message::Origin { .. }
            | Message::Relation(_)
            | Message::Type { .. } => Ok(()),
        }
    }

    fn fits(&self, plan: usize, row: &Tuple<'_>) -> Step<()> {
        let width = self.plans[plan].width();
        if row.len() == width {
            return Ok(());
        }
        let table = self.plans[plan].table();
        Err(self.refuse(format!("a row of {table} has {} columns, not {width}", row.len())))
    }

    fn row(&mut self, plan: usize, shape: &Shape, parameters: &[Parameter<'_>]) -> Step<()> {
        let (name, sql) = self.plans[plan].statement(shape);
        if let Some(sql) = sql {
            self.session.prepare(&name, &sql)?;
        }
        self.session.execute(&name, parameters, Purpose::Row)?;
        Ok(())
    }

    pub(super) fn flush_batch(&mut self) -> Step<()> {
        let batch = std::mem::take(&mut self.batch);
        let mut rows = Vec::with_capacity(batch.rows.len());
        for raw in &batch.rows {
            let Message::Change(Change::Insert { new, .. }) =
                pgoutput::decode(raw).context("decode a spooled row")?
            else {
                return Err(anyhow!("a spooled message of kind I is no insert").into());
            };
            self.fits(batch.plan, &new)?;
            rows.push(new);
        }
        let time = std::mem::take(&mut self.time);
        let sent = if rows.len() < BATCH_ROWS_MIN {
            rows.iter().try_for_each(|row| {
                let parameters = self.plans[batch.plan].insert_parameters(row, &time);
                self.row(batch.plan, &Shape::Insert, &parameters)
            })
        } else {
            self.insert_many(batch.plan, &rows, &time)
        };
        self.time = time;
        sent
    }

    fn insert_many(&mut self, plan: usize, rows: &[Tuple<'_>], time: &[u8]) -> Step<()> {
        let arrays = self.plans[plan].insert_many_parameters(rows)?;
        let mut parameters: Vec<_> = arrays.iter().map(|array| Parameter::Binary(array)).collect();
        if self.plans[plan].has_versions() {
            parameters.push(Parameter::Text(time));
        }
        let (name, sql) = self.plans[plan].statement(&Shape::InsertMany);
        if let Some(sql) = sql {
            self.session.prepare(&name, &sql)?;
        }
        self.session.execute(&name, &parameters, Purpose::Other)?;
        Ok(())
    }

    async fn truncate(&mut self, relations: &[u32], restart_identity: bool) -> Step<()> {
        let mut tables = Vec::with_capacity(relations.len());
        for relation in relations {
            // A table of the internal schema was left out by the publisher.
            if self.current.contains_key(relation) {
                let plan = self.plan(*relation).await?;
                tables.push(self.plans[plan].table().to_owned());
            }
        }
        let restart = if restart_identity { " restart identity" } else { "" };
        let sql = format!("truncate only {}{restart}", tables.join(", only "));
        self.session.prepare("", &sql)?;
        self.session.execute("", &[], Purpose::Other)?;
        Ok(())
    }
}

pub(super) fn relation_id(raw: &[u8]) -> u32 {
    raw.get(1..5).map_or(0, |id| u32::from_be_bytes([id[0], id[1], id[2], id[3]]))
}
