//! One row of the slow path: read and locked, decided upon, written or kept.

use std::time::Duration;

use bytes::Bytes;
use synapsedb_core::change::{Change, OldTuple, Tuple, Value};
use synapsedb_core::conflict::{self, Decision, Facts};
use synapsedb_core::history::{Digest, Seen};
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::time::Timestamp;
use synapsedb_core::version::RowVersion;

use super::super::lane::Lane;
use super::super::plan::{RowChange, Shape};
use super::super::session::Parameter;
use super::left_out::texts;
use super::log::Conflict;
use super::statement::{self, VALUES_FROM};
use super::unique::violated;
use super::{Settled, Trouble, column};
use crate::replication::recent::{self, old_values};

/// How often a row is looked at again because another session was faster.
pub(super) const TRIES_MAX: usize = 8;

/// A row of the local table, locked.
pub(super) struct LocalRow {
    /// Its writer, unless it is this very transaction or one that is long forgotten.
    pub(super) version: Option<RowVersion>,
    /// Whether neither the writer nor the transaction had seen the other.
    pub(super) concurrent: bool,
    /// Whether its writer is of this node and has not been decoded yet.
    undecoded: bool,
    /// Whether a later transaction of the same origin wrote it, which only what comes late can meet.
    overtaken: bool,
    /// The row as JSON.
    pub(super) json: String,
    values: Vec<Option<Bytes>>,
}

impl LocalRow {
    /// Its values as the stream would have them.
    pub(super) fn tuple(&self) -> Tuple<'_> {
        self.values.iter().map(|value| value.as_deref().map_or(Value::Null, Value::Text)).collect()
    }
}

/// How a new row was written.
pub(super) enum Written {
    Done,
    /// A unique index refuses it: the name of the index.
    Taken(String),
}

impl Lane<'_> {
    /// The version of every row that the open transaction writes.
    pub(super) fn incoming(&self) -> Settled<RowVersion> {
        let header = self.header.as_ref().ok_or_else(|| Trouble::row("no transaction is open"))?;
        Ok(recent::version(self.writer(), header))
    }

    /// The node whose transaction is open.
    pub(super) fn writer(&self) -> NodeId {
        self.late.map_or(self.source.origin, |late| late.origin)
    }

    pub(super) async fn slow_row(&mut self, plan: usize, change: &Change<'_>) -> Settled<()> {
        let Some(keys) = &self.plans[plan].keys else {
            return self.keyless(plan, change).await;
        };
        if keys.policy().is_some() {
            return self.ruled_row(plan, change).await;
        }
        match change {
            Change::Insert { new, .. } => self.put(plan, new, "insert").await,
            Change::Update { old, new, .. } => {
                let new = &completed(old.as_ref(), new);
                let moved = old.as_ref().map(old_values).filter(|old| {
                    let keys = self.plans[plan].keys.as_ref();
                    keys.is_some_and(|keys| keys.row(old) != keys.row(new))
                });
                match moved {
                    Some(old) => self.move_row(plan, old, new).await,
                    None => self.put(plan, new, "update").await,
                }
            }
            Change::Delete { old, .. } => self.remove(plan, old_values(old)).await,
            Change::Truncate { .. } => Ok(()),
        }
    }

    /// Reads and locks the row with the key of `row`.
    pub(super) async fn read_row(
        &mut self,
        plan: usize,
        row: &[Value<'_>],
    ) -> Settled<Option<LocalRow>> {
        let sql = statement::read(&self.plans[plan], &self.plans[plan].found(1));
        let mut parameters = Vec::new();
        self.plans[plan].push_key(row, &mut parameters);
        self.read_one(plan, &sql, &parameters).await
    }

    /// Reads and locks the first row that `sql` finds.
    pub(super) async fn read_one(
        &mut self,
        plan: usize,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Settled<Option<LocalRow>> {
        let answer = self.ask(sql, parameters).await?;
        let first = answer.rows.into_iter().next();
        match first {
            Some(row) => Ok(Some(self.local_row(plan, row).await?)),
            None => Ok(None),
        }
    }

    /// Reads and locks all rows that `sql` finds.
    pub(super) async fn read_all(&mut self, plan: usize, sql: &str) -> Settled<Vec<LocalRow>> {
        let answer = self.ask(sql, &[]).await?;
        let mut rows = Vec::with_capacity(answer.rows.len());
        for row in answer.rows {
            rows.push(self.local_row(plan, row).await?);
        }
        Ok(rows)
    }

    async fn local_row(&mut self, plan: usize, row: Vec<Option<Bytes>>) -> Settled<LocalRow> {
        let json = column(&row, 3)?.to_owned();
        let (version, concurrent, undecoded) = match column(&row, 5)? {
            "true" => self.writer_before(plan, &row).await?,
            _ => match self.writer_of(plan, &row)? {
                (Some(stamp), true, false) if column(&row, 1)? != "0" => {
                    let (version, concurrent) = self.writer_in_group(plan, &row, stamp)?;
                    (version, concurrent, false)
                }
                told => told,
            },
        };
        let values = row.into_iter().skip(VALUES_FROM).collect();
        let overtaken = version.map_or(Ok(false), |version| self.is_overtaken_by(version))?;
        Ok(LocalRow { version, concurrent, undecoded, overtaken, json, values })
    }

    /// Who wrote a row, whether the open transaction and the writer had not seen each other, and whether the writer is
    /// of this node and has not been decoded yet.
    pub(super) fn writer_of(
        &self,
        plan: usize,
        row: &[Option<Bytes>],
    ) -> Settled<(Option<RowVersion>, bool, bool)> {
        let incoming = self.incoming()?;
        if row.get(1).is_none_or(Option::is_none) || row.get(2).is_none_or(Option::is_none) {
            return Ok((None, false, false));
        }
        let number = |at: usize| -> Settled<i64> {
            column(row, at)?.parse().map_err(|_| Trouble::row("the server told no number"))
        };
        let (xid, roident, unix_us) = (number(0)?, number(1)?, number(2)?);
        let writer = match u32::try_from(roident).unwrap_or(u32::MAX) {
            0 => u16::try_from(number(4)?).ok().and_then(NodeId::new),
            roident => self.plans[plan].check.node(roident),
        };
        let Some(writer) = writer else {
            // A former life of a node, or somebody else's origin: everybody has seen it.
            return Ok((None, false, false));
        };
        let commit_time = Timestamp::from_unix_us(unix_us);
        if writer == incoming.origin {
            let version = RowVersion { commit_time, origin: writer, lsn: Lsn::ZERO };
            return Ok((Some(version), false, false));
        }
        let here = self.shared.identity.node;
        let Some(header) = &self.header else { return Ok((None, false, false)) };
        // What an earlier life of this node wrote has come back with a copy, under another transaction id.
        let xid = u32::try_from(xid).ok().filter(|_| writer == here && roident == 0);
        let history = self.shared.recent.lock();
        let seen = history.seen(here, &header.vector, writer, commit_time, xid);
        let (lsn, concurrent) = match seen {
            Seen::Covered => (Lsn::ZERO, false),
            Seen::Concurrent(lsn) => (lsn.unwrap_or_default(), true),
        };
        let undecoded = seen == Seen::Concurrent(None);
        let version = RowVersion { commit_time, origin: writer, lsn };
        // A later writer cannot have been seen: also where the history does not reach back, as on a node that has just
        // joined, or for a change that comes out of the quarantine.
        Ok((Some(version), concurrent || version > incoming, undecoded))
    }

    /// Waits until every local delete that can have removed a missing row has been decoded. What is in the WAL but not
    /// on disk is not decoded: a commit of the agent's own takes it there.
    pub(in super::super) async fn await_decoded(&mut self) -> Settled<()> {
        let client = match self.flusher.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.shared.sql("apply, missing row").await.map_err(anyhow::Error::from)?,
        };
        let client = self.flusher.insert(client);
        let flushed = client
            .query_one(include_str!("../../sql/flush_wal.sql"), &[])
            .await
            .map_err(anyhow::Error::from)?;
        let lsn: Lsn = flushed.get::<_, String>(0).parse().map_err(anyhow::Error::from)?;
        let limit = Duration::from_millis(self.shared.config.decode_wait_max_ms);
        Ok(self.shared.recent.wait_decoded(lsn, limit).await?)
    }

    /// Waits until every local write on a row has been decoded. Where the row's writer has been, so have those before
    /// it; but under a row that has just arrived here there may be a local delete.
    pub(super) async fn await_writes(
        &mut self,
        row: Digest,
        here: Option<&LocalRow>,
    ) -> Settled<()> {
        let known = here.is_some_and(|here| !here.undecoded)
            && !self.shared.recent.lock().may_have_arrived(row);
        if known { Ok(()) } else { self.await_decoded().await }
    }

    /// The name of a row that the server tells; nothing without a whole primary key.
    pub(super) fn digest_told(&self, plan: usize, row: &[Option<Bytes>]) -> Option<Digest> {
        let values = row.iter().skip(VALUES_FROM);
        let tuple: Tuple<'_> =
            values.map(|value| value.as_deref().map_or(Value::Null, Value::Text)).collect();
        self.plans[plan].keys.as_ref().and_then(|keys| keys.row(&tuple))
    }

    pub(super) fn digest(&self, plan: usize, row: &[Value<'_>]) -> Settled<Digest> {
        let digest = self.plans[plan].keys.as_ref().and_then(|keys| keys.row(row));
        digest.ok_or_else(|| Trouble::row("the row came without its whole primary key"))
    }

    pub(super) fn facts(
        &self,
        plan: usize,
        row: Digest,
        new: &[Value<'_>],
        here: Option<&LocalRow>,
    ) -> Facts {
        let history = self.shared.recent.lock();
        let incoming = self.incoming().ok();
        let claims = self.plans[plan].keys.iter().flat_map(|keys| keys.claims(new));
        let taken = incoming.and_then(|incoming| {
            claims.filter_map(|value| history.taken_by(value, row, incoming)).max()
        });
        let concurrent = here.filter(|here| here.concurrent);
        Facts {
            present: concurrent.and_then(|here| here.version),
            deleted: history.tombstone(row),
            taken,
        }
    }

    /// Whether the open transaction had not seen a delete.
    fn is_unseen(&self, delete: Option<RowVersion>) -> bool {
        let (Some(delete), Some(header)) = (delete, &self.header) else { return false };
        delete.origin != self.writer() && delete.lsn > header.vector.get(delete.origin)
    }

    /// An insert, or an update that does not change the key.
    pub(super) async fn put(
        &mut self,
        plan: usize,
        new: &[Value<'_>],
        verb: &'static str,
    ) -> Settled<()> {
        let row = self.digest(plan, new)?;
        let incoming = self.incoming()?;
        for _ in 0..TRIES_MAX {
            let here = self.read_row(plan, new).await?;
            match &here {
                Some(here) if here.overtaken => return Ok(()),
                Some(_) => {}
                None => self.await_decoded().await?,
            }
            self.still_has_no_policy(plan).await?;
            let holds = self.oust(plan, new, incoming).await?;
            let mut facts = self.facts(plan, row, new, here.as_ref());
            facts.taken = facts.taken.max(holds);
            let unseen_delete = self.is_unseen(facts.deleted);
            let met = met(verb, here.as_ref(), unseen_delete);
            match conflict::decide(facts, incoming) {
                Decision::Keep => {
                    if let Some(met) = met {
                        let conflict = Conflict::new(met, "keep_local").remote(new);
                        let conflict = conflict.local(here.as_ref()).deleted(facts.deleted);
                        self.log(plan, conflict).await?;
                    }
                    return Ok(());
                }
                Decision::GiveWay => return self.give_way(plan, new, here, facts.taken).await,
                Decision::Write => match self.write(plan, new, here.as_ref()).await? {
                    Written::Done => {
                        if let Some(met) = met {
                            let conflict = Conflict::new(met, "apply_remote").remote(new);
                            let conflict = conflict.local(here.as_ref()).deleted(facts.deleted);
                            self.log(plan, conflict).await?;
                        }
                        return Ok(());
                    }
                    Written::Taken(index) => self.free_place(plan, new, &index).await?,
                },
            }
        }
        Err(Trouble::row("other sessions keep changing the row"))
    }

    /// The write loses a unique value to a later one: the older row that is here goes.
    pub(super) async fn give_way(
        &mut self,
        plan: usize,
        new: &[Value<'_>],
        here: Option<LocalRow>,
        taken: Option<RowVersion>,
    ) -> Settled<()> {
        let (row, incoming) = (self.digest(plan, new)?, self.incoming()?);
        if here.is_some() {
            self.delete_here(plan, new).await?;
        }
        self.shared.recent.lock().deleted(row, incoming);
        if let Some(winner) = taken {
            self.bereave(plan, new, winner);
        }
        let conflict = Conflict::new("unique", "keep_local").remote(new).deleted(taken);
        self.log(plan, conflict.detail("another row took a unique value later")).await
    }

    pub(super) async fn delete_here(&mut self, plan: usize, row: &[Value<'_>]) -> Settled<()> {
        let sql = self.plans[plan].unchecked(&Shape::Delete);
        let mut parameters = Vec::new();
        self.plans[plan].push_key(row, &mut parameters);
        self.ask(&sql, &parameters).await?;
        Ok(())
    }

    /// Writes the row over the one that is here, or anew.
    pub(super) async fn write(
        &mut self,
        plan: usize,
        new: &[Value<'_>],
        here: Option<&LocalRow>,
    ) -> Settled<Written> {
        let width = self.plans[plan].width();
        if new.len() != width {
            return Err(Trouble::row(format!("a row has {} columns, not {width}", new.len())));
        }
        let left_out =
            match new.contains(&Value::Unchanged) && here.is_none_or(|here| here.concurrent) {
                true => Some(self.fetch_left_out(plan, new).await?),
                false => None,
            };
        let new: Tuple<'_> = match &left_out {
            Some(left_out) => filled(new, &texts(left_out)),
            None => new.to_vec(),
        };
        let change = match here {
            Some(_) => RowChange::Update(&new, &new),
            None => RowChange::Insert(&new),
        };
        let parameters = self.plans[plan].parameters(&change, None);
        let sql = self.plans[plan].unchecked(&change.shape());
        self.session.queue("savepoint written", &[])?;
        let written = match self.ask(&sql, &parameters).await {
            Ok(_) => Written::Done,
            Err(Trouble::Row { sqlstate: Some(code), reason }) if code == "23505" => {
                self.ask("rollback to savepoint written", &[]).await?;
                Written::Taken(violated(&reason).to_owned())
            }
            Err(trouble) => return Err(trouble),
        };
        self.session.queue("release savepoint written", &[])?;
        Ok(written)
    }

    /// An update that changes the primary key: the old row is deleted, the new one is put.
    async fn move_row(&mut self, plan: usize, old: &[Value<'_>], new: &[Value<'_>]) -> Settled<()> {
        let incoming = self.incoming()?;
        let before = self.read_row(plan, old).await?;
        self.still_has_no_policy(plan).await?;
        let newer = |here: &LocalRow| {
            here.concurrent && here.version.is_some_and(|version| version > incoming)
        };
        let Some(before) = before.filter(|before| !before.overtaken) else {
            return self.put(plan, new, "move").await;
        };
        if before.concurrent {
            let resolution = if newer(&before) { "keep_local" } else { "apply_remote" };
            let conflict = Conflict::new("key_change", resolution).remote(new).local(Some(&before));
            self.log(plan, conflict).await?;
        }
        let carried = filled(new, &before.tuple());
        if newer(&before) {
            return self.put(plan, &carried, "move").await;
        }
        self.delete_here(plan, old).await?;
        self.put(plan, &carried, "move").await
    }

    pub(super) async fn remove(&mut self, plan: usize, old: &[Value<'_>]) -> Settled<()> {
        let (row, incoming) = (self.digest(plan, old)?, self.incoming()?);
        let here = self.read_row(plan, old).await?;
        self.still_has_no_policy(plan).await?;
        let Some(here) = here else {
            self.await_decoded().await?;
            let deleted = self.shared.recent.lock().tombstone(row);
            if self.is_unseen(deleted) {
                let conflict = Conflict::new("delete_delete", "skipped").remote(old);
                self.log(plan, conflict.deleted(deleted)).await?;
            }
            return Ok(());
        };
        if here.overtaken {
            return Ok(());
        }
        let keep = here.concurrent && here.version.is_some_and(|version| version > incoming);
        if !keep {
            self.delete_here(plan, old).await?;
        }
        if here.concurrent {
            let resolution = if keep { "keep_local" } else { "apply_remote" };
            let conflict = Conflict::new("delete_update", resolution).remote(old);
            self.log(plan, conflict.local(Some(&here))).await?;
        }
        Ok(())
    }
}

/// Which conflict a write has met, if any.
fn met(verb: &str, here: Option<&LocalRow>, unseen_delete: bool) -> Option<&'static str> {
    match (verb, here) {
        ("insert", Some(here)) if here.concurrent => Some("insert_insert"),
        (_, Some(here)) if here.concurrent => Some("update_update"),
        ("insert", _) if unseen_delete => Some("insert_delete"),
        (_, _) if unseen_delete => Some("update_delete"),
        (_, _) => None,
    }
}

/// The row with what the old one tells of columns that the update did not send.
pub(super) fn completed<'a>(old: Option<&OldTuple<'a>>, new: &Tuple<'a>) -> Tuple<'a> {
    match old {
        Some(OldTuple::Full(old)) => filled(new, old),
        Some(OldTuple::Key(_)) | None => new.clone(),
    }
}

/// The row with values of `from` where it has none.
pub(super) fn filled<'a>(new: &[Value<'a>], from: &[Value<'a>]) -> Tuple<'a> {
    let value = |(at, value): (usize, &Value<'a>)| match value {
        Value::Unchanged => from.get(at).copied().unwrap_or(Value::Unchanged),
        Value::Null | Value::Text(_) | Value::Binary(_) => *value,
    };
    new.iter().enumerate().map(value).collect()
}
