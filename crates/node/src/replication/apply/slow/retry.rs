//! Tries a change in quarantine again, as its writer: with its commit time, so that newer rows stay, and with what it
//! had seen, as long as that is remembered.

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::time::Timestamp;
use synapsedb_core::version::{RowVersion, VersionVector};

use super::super::lane::{Lane, Late, Step, Stop};
use super::super::session::{Parameter, text};
use super::{Constraints, Settled, Trouble};
use crate::replication::quarantine::retries::{Asked, Retry};
use crate::replication::recent::relation_id;
use crate::replication::spool::Header;

impl Lane<'_> {
    /// Tries a change again, between two transactions.
    pub(in super::super) async fn retry(&mut self, retry: Retry) -> Step<()> {
        let done = match &retry.asked {
            Asked::Quarantined(id) => self.retry_change(*id, retry.origin).await,
            Asked::Local(write) => self.look_again(write).await,
        };
        (self.open, self.late) = (None, None);
        self.current.clear();
        let failed = match done {
            Ok(()) => None,
            Err(Trouble::Row { reason, .. }) => Some(reason),
            // Somebody has a lock: who has asked for it asks again.
            Err(Trouble::Stop(Stop::Failed(failure)))
                if failure.is_passing() && matches!(retry.asked, Asked::Local(_)) =>
            {
                Some(failure.text())
            }
            Err(Trouble::Stop(stop)) => {
                let reason = match &stop {
                    Stop::Failed(failure) => failure.text(),
                    Stop::Broken(error) => format!("{error:#}"),
                };
                let _ = retry.answer.send(Err(reason));
                return Err(stop);
            }
        };
        if let Some(reason) = &failed {
            self.session.reset().await?;
            self.must("rollback", &[]).await?;
            if let Asked::Quarantined(id) = retry.asked {
                let id = id.to_string();
                let parameters = [&id, reason].map(|text| Parameter::Text(text.as_bytes()));
                self.must(include_str!("../../sql/note_retry.sql"), &parameters).await?;
            }
        }
        let _ = retry.answer.send(failed.map_or(Ok(()), Err));
        Ok(())
    }

    /// Whether the open transaction comes late, and what it met may be forgotten.
    pub(super) fn is_forgotten(&self) -> bool {
        self.late.is_some_and(|late| late.forgotten)
    }

    /// Whether the open transaction comes late, after this one of its origin, whose LSN the row does not tell.
    pub(super) fn is_overtaken_by(&self, writer: RowVersion) -> Settled<bool> {
        let RowVersion { commit_time, origin, lsn } = self.incoming()?;
        if self.late.is_none() || writer.origin != origin {
            return Ok(false);
        }
        let known = self.shared.recent.lock().commit_at(origin, writer.commit_time);
        Ok(known.map_or(writer.commit_time > commit_time, |known| known.lsn > lsn))
    }

    /// The header of a transaction, if everything is remembered that it may have met.
    pub(super) async fn remembered(
        &self,
        origin: NodeId,
        commit_lsn: Lsn,
    ) -> anyhow::Result<Option<Header>> {
        self.shared.recent.wait_rebuilt(origin).await?;
        if !self.shared.recent.lock().remembers(origin, commit_lsn) {
            return Ok(None);
        }
        let (_, spool) = self.shared.spools.get(origin).context("its spool is not open")?;
        let mut reader = spool.reader_after(Lsn(commit_lsn.0.saturating_sub(1)))?;
        let header = reader.try_next()?.and_then(|frame| frame.header());
        Ok(header.filter(|header| header.commit_lsn == commit_lsn))
    }

    async fn retry_change(&mut self, id: i64, origin: NodeId) -> Settled<()> {
        let (id, of) = (id.to_string(), origin.to_string());
        let parameters = [Parameter::Text(id.as_bytes()), Parameter::Text(of.as_bytes())];
        let found = self.ask(include_str!("../../sql/quarantined.sql"), &parameters).await?;
        let row = found.rows.first().ok_or_else(|| Trouble::row("it is not in quarantine"))?;
        let bytes = |at: usize| text(row, at).and_then(from_hex);
        let (relation, message) = (bytes(0)?, bytes(1)?);
        let commit_lsn: Lsn = text(row, 2)?.parse().map_err(anyhow::Error::from)?;
        let unix_us: i64 = text(row, 3)?.parse().map_err(anyhow::Error::from)?;
        let commit_time = Timestamp::from_unix_us(unix_us);
        let remembered = self.remembered(origin, commit_lsn).await?;
        self.late = Some(Late { origin, forgotten: remembered.is_none() });
        // Of what is forgotten nothing is known to have been seen: whatever is newer stays.
        let forgotten = Header { commit_lsn, commit_time, xid: 0, vector: VersionVector::new() };
        let header = remembered.unwrap_or(forgotten);
        self.open_slowly(&header, Constraints::Immediate).await?;
        self.name(relation);
        self.ask("savepoint change", &[]).await?;
        match origin == self.source.origin {
            true => self.change(&message).await?,
            false => self.rule_local(&message, false).await?,
        }
        self.ask(include_str!("../../sql/unquarantine.sql"), &parameters[..1]).await?;
        self.close_late(&header).await
    }

    /// The open transaction names a relation.
    pub(super) fn name(&mut self, relation: Bytes) {
        if !relation.is_empty() {
            let plan = self.known.get(&relation).copied();
            self.current.insert(relation_id(&relation), (relation, plan));
        }
    }

    /// Commits a transaction that comes late: the origin is where it was.
    pub(super) async fn close_late(&mut self, header: &Header) -> Settled<()> {
        let closed = self.close_slowly(header, self.sent).await?;
        closed.map_err(|error| Trouble::row(error.to_string()))?;
        self.own = self.sent;
        Ok(())
    }
}

/// The bytes that a text of hexadecimal digits stands for.
pub(super) fn from_hex(digits: &str) -> anyhow::Result<Bytes> {
    let pair = |at: usize| {
        let pair = digits.get(at..at + 2).context("half a byte")?;
        u8::from_str_radix(pair, 16).map_err(|error| anyhow!("{pair} is no byte: {error}"))
    };
    (0..digits.len()).step_by(2).map(pair).collect::<anyhow::Result<Vec<u8>>>().map(Bytes::from)
}
