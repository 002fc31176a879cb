//! From the messages of a transaction to the statements that repeat them.

use std::collections::HashSet;

use anyhow::anyhow;
use bytes::Bytes;
use synapsedb_core::change::Change;
use synapsedb_core::history::{Digest, Writer};
use synapsedb_pg::pgoutput::Message;

use super::lane::{Lane, Step};
use super::plan::{Plan, RowChange, Shape};
use super::session::{Parameter, Purpose};
use crate::replication::ddl::{Ddl, PREFIX as DDL_PREFIX};
use crate::replication::recent::{self, Side, relation_id};

/// Rows from which on a run of changes goes as arrays: below, the single statements cost less.
const BATCH_ROWS_MIN: usize = 4;

/// Bytes of rows that one batch holds at most.
const BATCH_BYTES: usize = 1 << 20;

/// A run of changes of one shape of different rows of one table.
pub(super) struct Batch {
    plan: usize,
    /// For many rows.
    shape: Shape,
    changes: Vec<Bytes>,
    bytes: usize,
    /// The rows that are updated or deleted.
    rows: HashSet<Digest>,
}

impl Batch {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        let (changes, rows) = (Vec::new(), HashSet::new());
        Self { plan: 0, shape: Shape::InsertMany, changes, bytes: 0, rows }
    }
}

impl Lane<'_> {
    pub(super) async fn message(&mut self, raw: Bytes) -> Step<()> {
        match raw.first() {
            Some(b'I') => {
                let plan = self.plan(relation_id(&raw)).await?;
                self.gather(plan, Shape::InsertMany, None, raw)
            }
            Some(b'U' | b'D') => {
                let plan = self.plan(relation_id(&raw)).await?;
                let Message::Change(change) = self.decode(&raw)? else {
                    return Err(anyhow!("a spooled message of kind U or D is no change").into());
                };
                if let Some(of_row) = RowChange::of(&change)
                    && self.plans[plan].takes_many(&of_row)
                {
                    let (shape, row) = (of_row.shape().many(), self.plans[plan].row_of(&of_row));
                    return self.gather(plan, shape, row, raw);
                }
                self.flush_batch()?;
                self.fits(plan, &change)?;
                self.note(plan, std::slice::from_ref(&change))?;
                self.one(plan, &change)
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

    /// Adds a change to the batch; what is in it is sent first if both cannot be in one statement.
    fn gather(&mut self, plan: usize, shape: Shape, row: Option<Digest>, raw: Bytes) -> Step<()> {
        let Batch { changes, bytes, rows, .. } = &self.batch;
        let full = changes.len() >= self.shared.config.apply_batch_rows || *bytes >= BATCH_BYTES;
        let again = row.is_some_and(|row| rows.contains(&row));
        if full || again || self.batch.plan != plan || self.batch.shape != shape {
            self.flush_batch()?;
            (self.batch.plan, self.batch.shape) = (plan, shape);
        }
        self.batch.bytes += raw.len();
        self.batch.rows.extend(row);
        self.batch.changes.push(raw);
        Ok(())
    }

    async fn other_message(&mut self, raw: &Bytes) -> Step<()> {
        match self.decode(raw)? {
            Message::Change(Change::Truncate { .. }) => {
                Err(self.refuse("a truncate must look at the rows of the table".to_owned()))
            }
            Message::LogicalMessage { prefix, content, .. } if prefix == DDL_PREFIX => {
                let ddl = Ddl::parse(content).map_err(|error| self.unreadable(&error))?;
                self.ddl(&ddl).await
            }
            // Changes of rows do not come here; the rest is no part of a spooled transaction.
            Message::Change(
                Change::Insert { .. } | Change::Update { .. } | Change::Delete { .. },
            )
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
        let Plan { keys, foreign, is_policy, .. } = &self.plans[plan];
        if *is_policy {
            return Err(
                self.refuse("a change of a policy is noted before others see it".to_owned())
            );
        }
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

    fn fits(&self, plan: usize, change: &Change<'_>) -> Step<()> {
        let (Change::Insert { new: row, .. } | Change::Update { new: row, .. }) = change else {
            return Ok(());
        };
        let width = self.plans[plan].width();
        if row.len() == width {
            return Ok(());
        }
        let table = self.plans[plan].table();
        Err(self.refuse(format!("a row of {table} has {} columns, not {width}", row.len())))
    }

    /// Sends the statement for one change.
    fn one(&mut self, plan: usize, change: &Change<'_>) -> Step<()> {
        let Some(change) = RowChange::of(change) else { return Ok(()) };
        let bound = std::mem::take(&mut self.bound);
        let parameters = self.plans[plan].parameters(&change, Some(&bound));
        let sent = self.execute(plan, &change.shape(), &parameters, Purpose::Row);
        self.bound = bound;
        sent
    }

    fn execute(
        &mut self,
        plan: usize,
        shape: &Shape,
        parameters: &[Parameter<'_>],
        purpose: Purpose,
    ) -> Step<()> {
        let (name, sql) = self.plans[plan].statement(shape);
        if let Some(sql) = sql {
            self.session.prepare(&name, &sql)?;
        }
        self.session.execute(&name, parameters, purpose)?;
        Ok(())
    }

    pub(super) fn flush_batch(&mut self) -> Step<()> {
        let batch = std::mem::replace(&mut self.batch, Batch::new());
        let mut changes = Vec::with_capacity(batch.changes.len());
        for raw in &batch.changes {
            let Message::Change(change) = self.decode(raw)? else {
                return Err(anyhow!("a spooled message that was a change is none").into());
            };
            changes.push(change);
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.note(batch.plan, &changes)?;
        changes.iter().try_for_each(|change| self.fits(batch.plan, change))?;
        if changes.len() >= BATCH_ROWS_MIN && self.many(batch.plan, &batch.shape, &changes)? {
            return Ok(());
        }
        changes.iter().try_for_each(|change| self.one(batch.plan, change))
    }

    /// Sends one statement for many changes; answers whether their values can go so.
    fn many(&mut self, plan: usize, shape: &Shape, changes: &[Change<'_>]) -> Step<bool> {
        let Some(arrays) = self.plans[plan].arrays(shape, changes)? else {
            return Ok(false);
        };
        let mut parameters: Vec<_> = arrays.iter().map(|array| Parameter::Binary(array)).collect();
        let (bound, count) = (std::mem::take(&mut self.bound), changes.len().to_string());
        if *shape != Shape::InsertMany {
            parameters.extend([&bound[..], count.as_bytes()].map(Parameter::Text));
        }
        let sent = self.execute(plan, shape, &parameters, Purpose::Other);
        self.bound = bound;
        sent.map(|()| true)
    }
}
