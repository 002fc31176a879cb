//! From the messages of a transaction to the statements that repeat them.

use anyhow::anyhow;
use bytes::Bytes;
use synapsedb_core::change::{Change, Tuple};
use synapsedb_core::history::Writer;
use synapsedb_pg::pgoutput::Message;

use super::lane::{Lane, Step};
use super::plan::{Plan, Shape};
use super::session::{Parameter, Purpose};
use crate::replication::ddl::{Ddl, PREFIX as DDL_PREFIX};
use crate::replication::recent::{self, Side, relation_id};

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
        match self.decode(raw)? {
            Message::Change(Change::Update { relation, old, new }) => {
                let plan = self.plan(relation).await?;
                self.fits(plan, &new)?;
                let change = Change::Update { relation, old, new };
                self.note(plan, std::slice::from_ref(&change))?;
                let Change::Update { old, new, .. } = &change else { return Ok(()) };
                let bound = std::mem::take(&mut self.bound);
                let (shape, parameters) =
                    self.plans[plan].update_parameters(old.as_ref(), new, &bound);
                let sent = self.row(plan, &shape, &parameters);
                self.bound = bound;
                sent
            }
            Message::Change(Change::Delete { relation, old }) => {
                let plan = self.plan(relation).await?;
                let change = Change::Delete { relation, old };
                self.note(plan, std::slice::from_ref(&change))?;
                let Change::Delete { old, .. } = &change else { return Ok(()) };
                let bound = std::mem::take(&mut self.bound);
                let parameters = self.plans[plan].delete_parameters(old, &bound);
                let sent = self.row(plan, &Shape::Delete, &parameters);
                self.bound = bound;
                sent
            }
            Message::Change(Change::Truncate { .. }) => {
                Err(self.refuse("a truncate must look at the rows of the table".to_owned()))
            }
            Message::LogicalMessage { prefix, content, .. } if prefix == DDL_PREFIX => {
                let ddl = Ddl::parse(content).map_err(|error| self.unreadable(&error))?;
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

    /// Notes what changes delete and claim. A transaction that must be looked at closely ends here.
    fn note(&mut self, plan: usize, changes: &[Change<'_>]) -> Step<()> {
        let Plan { keys, foreign, .. } = &self.plans[plan];
        let Some(header) = self.header.as_ref().filter(|_| keys.is_some() || !foreign.is_empty())
        else {
            return Ok(());
        };
        let version = recent::version(self.source.origin, header);
        let writer = Writer { version, vector: &header.vector };
        let mut history = self.shared.recent.lock();
        let mut closely = false;
        let mut orphans = Vec::new();
        for change in changes {
            // Every change is noted, also after one that decides.
            closely |= keys.as_ref().is_some_and(|keys| {
                recent::note(&mut history, keys, change, &writer, Side::Remote)
            });
            foreign.note(&mut history, change, &writer, &mut orphans);
        }
        drop(history);
        self.shared.look_for_orphans(orphans);
        if closely {
            Err(self.refuse("it meets a write that it had not seen".to_owned()))
        } else {
            Ok(())
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
            let Message::Change(change @ Change::Insert { .. }) = self.decode(raw)? else {
                return Err(anyhow!("a spooled message of kind I is no insert").into());
            };
            rows.push(change);
        }
        if rows.is_empty() {
            return Ok(());
        }
        self.note(batch.plan, &rows)?;
        let rows: Vec<Tuple<'_>> = rows.into_iter().filter_map(inserted).collect();
        rows.iter().try_for_each(|row| self.fits(batch.plan, row))?;
        if rows.len() >= BATCH_ROWS_MIN && self.insert_many(batch.plan, &rows)? {
            return Ok(());
        }
        rows.iter().try_for_each(|row| {
            let parameters = self.plans[batch.plan].insert_parameters(row);
            self.row(batch.plan, &Shape::Insert, &parameters)
        })
    }

    /// Inserts rows by arrays; answers whether their values can go so.
    fn insert_many(&mut self, plan: usize, rows: &[Tuple<'_>]) -> Step<bool> {
        let Some(arrays) = self.plans[plan].insert_many_parameters(rows)? else {
            return Ok(false);
        };
        let parameters: Vec<_> = arrays.iter().map(|array| Parameter::Binary(array)).collect();
        let (name, sql) = self.plans[plan].statement(&Shape::InsertMany);
        if let Some(sql) = sql {
            self.session.prepare(&name, &sql)?;
        }
        self.session.execute(&name, &parameters, Purpose::Other)?;
        Ok(true)
    }
}

fn inserted(change: Change<'_>) -> Option<Tuple<'_>> {
    match change {
        Change::Insert { new, .. } => Some(new),
        Change::Update { .. } | Change::Delete { .. } | Change::Truncate { .. } => None,
    }
}
