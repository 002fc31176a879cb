//! What the transactions of the spool write, told from their frames.

use synapsedb_core::change::{Change, OldTuple};
use synapsedb_core::writeset::WriteSet;
use synapsedb_pg::pgoutput::{self, Message};

use super::lane::Lane;
use super::plan::Plan;
use crate::replication::outcome;
use crate::replication::recent::{old_values, relation_id};
use crate::replication::spool::Frame;

/// How far what is written to a table reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Scope {
    /// Rows and unique values are told apart by their texts.
    Rows,
    /// Some of them are not.
    Table,
    /// More than the rows may be read or written: by a trigger, for one.
    #[default]
    Everything,
}

impl Scope {
    /// As `table_scope.sql` has it.
    pub(super) fn parse(text: &str) -> Self {
        match text {
            "rows" => Self::Rows,
            "table" => Self::Table,
            _ => Self::Everything,
        }
    }
}

/// The row changes of a frame, counted up to `max`.
pub(super) fn rows(frame: &Frame, max: usize) -> usize {
    let row = |raw: &&[u8]| matches!(raw.first(), Some(b'I' | b'U' | b'D'));
    frame.message_slices().filter(row).take(max).count()
}

impl Lane<'_> {
    /// What a whole transaction writes.
    pub(super) fn write_set(&self, frames: &[Frame]) -> WriteSet {
        let max = self.shared.config.apply_worker_claims_max;
        let mut set = WriteSet::default();
        let mut plans: Vec<(u32, usize)> = Vec::new();
        for raw in frames.iter().flat_map(Frame::message_slices) {
            match raw.first() {
                Some(b'R') => {
                    // A table that no transaction has met since it changed: the lane looks at it.
                    let Some(plan) = self.known.get(raw) else { return WriteSet::everything() };
                    plans.push((relation_id(raw), *plan));
                }
                Some(b'I' | b'U' | b'D') => {
                    let relation = relation_id(raw);
                    let plan = plans.iter().rev().find(|(known, _)| *known == relation);
                    let Some((_, plan)) = plan else { return WriteSet::everything() };
                    let plan = &self.plans[*plan];
                    let told = match plan.scope {
                        Scope::Everything => None,
                        Scope::Table => {
                            set.whole(plan.digest);
                            Some(())
                        }
                        Scope::Rows => match pgoutput::decode(raw) {
                            Ok(Message::Change(change)) => claim(&mut set, plan, &change, max),
                            Ok(_) | Err(_) => None,
                        },
                    };
                    if told.is_none() {
                        return WriteSet::everything();
                    }
                }
                Some(b'M') if outcome::mark(raw).is_some() => {}
                _ => return WriteSet::everything(),
            }
        }
        set.seal()
    }
}

/// Adds what a change writes; nothing when it does not tell.
fn claim(set: &mut WriteSet, plan: &Plan, change: &Change<'_>, max: usize) -> Option<()> {
    let keys = plan.keys.as_ref()?;
    if matches!(change, Change::Truncate { .. }) {
        return None;
    }
    let (old, new) = change.rows();
    // Which unique values a row lets go is told only where the whole old row is.
    let lets_go = keys.has_claims() && !matches!(change, Change::Insert { .. });
    if lets_go && !matches!(old, Some(OldTuple::Full(_))) {
        set.whole(plan.digest);
        return Some(());
    }
    for row in old.map(old_values).into_iter().chain(new.map(Vec::as_slice)) {
        set.value(plan.digest, keys.row(row)?, max);
        keys.claims(row).for_each(|value| set.value(plan.digest, value, max));
    }
    Some(())
}
