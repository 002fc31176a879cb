//! A local write on a row of a table with a policy of its own, which a remote write has not been decided upon with: it
//! was not decoded yet. What the policy makes of it is decided now, as if it came last.

use bytes::Bytes;
use synapsedb_core::change::{Change, Value};
use synapsedb_core::history::Digest;
use synapsedb_core::policy::Effect;
use synapsedb_core::version::RowVersion;
use synapsedb_pg::pgoutput::Message;

use super::super::lane::{Lane, Late, UNMET};
use super::policy::tuple;
use super::row::filled;
use super::{Constraints, Settled, Trouble};
use crate::replication::quarantine::retries::LocalWrite;
use crate::replication::recent::old_values;

/// How long a row that somebody has locked is waited for.
const LOCKS_WITHIN: &str = "set local lock_timeout = '50ms'";

impl Lane<'_> {
    /// Looks at the place of a local write again, between two transactions. If it cannot be decided upon, it is put
    /// into the quarantine, as it is where it comes from elsewhere.
    pub(super) async fn look_again(&mut self, write: &LocalWrite) -> Settled<()> {
        let here = self.shared.identity.node;
        // What all have seen was looked at before.
        let Some(header) = self.remembered(here, write.lsn).await? else { return Ok(()) };
        self.late = Some(Late { origin: here, forgotten: false });
        self.open_slowly(&header, Constraints::Immediate).await?;
        // The lane has other things to do: it is asked again.
        self.ask(LOCKS_WITHIN, &[]).await?;
        self.name(write.relation.clone());
        self.ask("savepoint change", &[]).await?;
        match self.rule_local(&write.change, write.is_of_other).await {
            Ok(()) => {}
            Err(Trouble::Row { reason, sqlstate })
                if !write.is_of_other && sqlstate.as_deref() != Some(UNMET) =>
            {
                self.put_aside(&write.change, 0, &reason, sqlstate.as_deref()).await?;
            }
            Err(trouble) => return Err(trouble),
        }
        self.close_late(&header).await
    }

    /// Decides upon a local write; with `is_of_other`, upon what it did to the rows that a remote change has written.
    pub(super) async fn rule_local(&mut self, raw: &Bytes, is_of_other: bool) -> Settled<()> {
        let Message::Change(change) = self.decode(raw)? else { return Ok(()) };
        let plan = self.plan(change.relation()).await?;
        if self.plans[plan].keys.as_ref().is_none_or(|keys| keys.policy().is_none()) {
            return Err(Trouble::unmet("the table has no policy any more"));
        }
        if is_of_other {
            let (old, new) = change.rows();
            for key in old.map(old_values).into_iter().chain(new.map(Vec::as_slice)) {
                self.rule_beside(plan, key).await?;
            }
            return Ok(());
        }
        match &change {
            Change::Insert { new, .. } => self.rule_made(plan, new).await,
            Change::Delete { old, .. } => self.rule_left(plan, old_values(old)).await,
            Change::Update { old: Some(old), new, .. } => {
                let old = old_values(old);
                if self.digest(plan, old)? == self.digest(plan, new)? {
                    return Ok(());
                }
                self.rule_left(plan, old).await?;
                self.rule_made(plan, new).await
            }
            Change::Update { old: None, .. } | Change::Truncate { .. } => Ok(()),
        }
    }

    /// What the local write did to a row that a remote change has written.
    async fn rule_beside(&mut self, plan: usize, key: &[Value<'_>]) -> Settled<()> {
        let (row, own) = (self.digest(plan, key)?, self.incoming()?);
        let effect = {
            let history = self.shared.recent.lock();
            let own = history.writes(row).iter().find(|write| write.version == own);
            own.map(|write| write.effect)
        };
        match effect {
            Some(Effect::Delete) => self.rule_left(plan, key).await,
            Some(Effect::Insert) => {
                let made = self.content(plan, row, own).await?.new;
                match made {
                    Some(made) => self.rule_made(plan, &tuple(&made)).await,
                    None => Ok(()),
                }
            }
            Some(Effect::Update) | None => Ok(()),
        }
    }

    /// Whether a later write on the row had seen the local one: what is looked at again is that one, if any.
    fn is_superseded(&self, row: Digest) -> Settled<bool> {
        let own = self.incoming()?;
        let history = self.shared.recent.lock();
        let mut others = history.writes(row).iter().filter(|write| write.version != own);
        Ok(others.any(|write| write.as_write().covers(own)))
    }

    /// The local write removed the row; what is here was written by another node, which did not know that.
    async fn rule_left(&mut self, plan: usize, key: &[Value<'_>]) -> Settled<()> {
        let row = self.digest(plan, key)?;
        if self.is_superseded(row)? {
            return Ok(());
        }
        let Some(there) = self.read_row(plan, key).await? else { return Ok(()) };
        // A later local write has seen what is to be decided upon.
        let here = self.shared.identity.node;
        if there.version.is_some_and(|version| version.origin == here) {
            return Ok(());
        }
        self.rule(plan, row, key, (None, None)).await
    }

    /// The local write made the row, where others had left none without knowing of it.
    async fn rule_made(&mut self, plan: usize, new: &[Value<'_>]) -> Settled<()> {
        let (row, own) = (self.digest(plan, new)?, self.incoming()?);
        if self.is_superseded(row)? {
            return Ok(());
        }
        let Some(there) = self.read_row(plan, new).await? else { return Ok(()) };
        let is_own = |version: RowVersion| {
            (version.origin, version.commit_time) == (own.origin, own.commit_time)
        };
        // What another node has written over it was decided upon with it.
        if !there.version.is_some_and(is_own) {
            return Ok(());
        }
        // As the others left the place.
        self.delete_here(plan, new).await?;
        let new = filled(new, &there.tuple());
        self.rule(plan, row, &new, (None, Some(&new))).await
    }
}
