//! Reads the local WAL through one logical slot and spools what was committed here.
//!
//! Transactions that this node applied come along with the name of their origin. They are not spooled again; they
//! raise the version vector, so that every local transaction carries exactly what had been committed here before it.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use synapsedb_core::change::{Change, Value};
use synapsedb_core::guard::Mark;
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;
use synapsedb_pg::pgoutput::{self, Message};
use synapsedb_pg::replication::{Event, Stream};
use tokio::time::Instant;

use super::spool::{Header, Tail, Writer};
use super::{Shared, bootstrap, ddl, guard, origin_name, parse_origin_name};
use crate::tasks::Shutdown;

/// How often an idle stream's position is written down, so that the slot can follow the WAL.
const IDLE_CHECKPOINT: Duration = Duration::from_secs(10);

/// How often a version vector that grew by applied transactions alone is written down.
const VECTOR_CHECKPOINT: Duration = Duration::from_secs(1);

/// Publishes until the stream or the spool fails, or shutdown is asked for.
///
/// # Errors
/// The stream broke, the spool cannot be written (a full disk: what was not spooled stays in the WAL, held by the
/// slot), or the server and the spool contradict each other (one of them was restored from an older copy).
pub(crate) async fn run(shared: &Shared, writer: &mut Writer, stop: &Shutdown) -> Result<()> {
    writer.abort();
    let slot = origin_name(shared.identity.node, shared.identity.incarnation);
    let local = shared.postgres.local();
    let tail = writer.tail();
    let slot_lsn = bootstrap::ensure_slot(&local, &slot, &tail, writer).await?;
    let own = shared.spools.get(shared.identity.node);
    let last = own.and_then(|(_, spool)| guard::last(&spool));
    // Where the slot still reads it, the WAL has to begin with the transaction with which the spool ends.
    let expected = last.filter(|mark| slot_lsn <= mark.commit_lsn);
    let from = expected.map_or(slot_lsn.max(tail.end_lsn), |mark| mark.commit_lsn);
    if !guard::pass(shared, &slot, tail.commit_lsn, slot_lsn, stop).await? {
        return Ok(());
    }
    shared.status.slot_is_there();
    let stream = Stream::start(&local, &slot, from, "synapsedb", true)
        .await
        .with_context(|| format!("start reading the WAL through slot {slot}"))?;
    let mut publisher = Publisher { expected, ..Publisher::new(shared, writer, stream, from) };
    publisher.follow(stop).await
}

/// The open transaction of the stream.
enum Open {
    /// Between transactions.
    Idle,
    /// A local commit: its header, and whether anything of it was spooled yet.
    Local { header: Header, spooled: bool },
    /// A commit that this node applied for another.
    Applied { origin: Option<NodeId>, lsn: Lsn },
    /// A local commit that is in the spool already.
    Known,
}

/// What is to be done with the rows of a relation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// They are replicated.
    Replicated,
    /// They belong to this node.
    Internal,
    /// They are DDL statements (`synapsedb.ddl`).
    Ddl,
}

struct Relation {
    raw: Bytes,
    kind: Kind,
    /// The number of the transaction that last repeated it: every spooled transaction explains itself.
    told_in: u64,
}

struct Publisher<'a> {
    shared: &'a Shared,
    writer: &'a mut Writer,
    stream: Stream,
    relations: HashMap<u32, Relation>,
    open: Open,
    transactions: u64,
    /// Everything before it has been read from the stream.
    read: Lsn,
    /// What is confirmed to the server: durable here.
    confirmed: Lsn,
    vector: VersionVector,
    last_checkpoint: Instant,
    /// The transaction with which the spool ends, until the WAL has shown that it has it too.
    expected: Option<Mark>,
}

impl<'a> Publisher<'a> {
    fn new(shared: &'a Shared, writer: &'a mut Writer, stream: Stream, from: Lsn) -> Self {
        let vector = writer.tail().vector;
        Self {
            shared,
            writer,
            stream,
            relations: HashMap::new(),
            open: Open::Idle,
            transactions: 0,
            read: from,
            confirmed: from,
            vector,
            last_checkpoint: Instant::now(),
            expected: None,
        }
    }

    async fn follow(&mut self, stop: &Shutdown) -> Result<()> {
        let period = Duration::from_millis(self.shared.config.sync_interval_ms.max(1));
        let mut sync_due = tokio::time::interval(period);
        sync_due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    self.writer.abort();
                    return self.sync().await;
                }
                event = self.stream.next() => self.event(event?).await?,
                _ = sync_due.tick() => {
                    self.checkpoint_if_due()?;
                    self.sync().await?;
                }
            }
        }
    }

    async fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Data { body, .. } => self.message(&body),
            Event::Keepalive { wal_end, reply_requested } => {
                if matches!(self.open, Open::Idle) && wal_end > self.read {
                    self.read = wal_end;
                    self.expected_before(wal_end)?;
                }
                if reply_requested {
                    self.confirm().await?;
                }
                Ok(())
            }
        }
    }

    fn message(&mut self, body: &Bytes) -> Result<()> {
        match body.first() {
            Some(b'I' | b'U' | b'D') => self.row(body),
            Some(b'T') => self.truncate(body),
            Some(b'Y') => Ok(()),
            Some(b'R') => self.relation(body),
            _ => self.frame(body),
        }
    }

    /// The messages that are not rows: begin, origin, commit, logical messages.
    fn frame(&mut self, body: &Bytes) -> Result<()> {
        match pgoutput::decode(body).context("decode the replication stream")? {
            Message::Begin { commit_lsn, commit_time, xid } => {
                self.transactions += 1;
                if self.expected.is_some_and(|mark| mark.is(commit_lsn, commit_time, xid)) {
                    self.expected = None;
                }
                self.expected_before(Lsn(commit_lsn.0 + 1))?;
                let vector = self.vector.clone();
                self.open = if commit_lsn <= self.writer.tail().commit_lsn {
                    Open::Known
                } else {
                    let header = Header { commit_lsn, commit_time, xid, vector };
                    Open::Local { header, spooled: false }
                };
            }
            Message::Origin { lsn, name } => {
                let origin = parse_origin_name(name).map(|(node, _)| node);
                self.open = Open::Applied { origin, lsn };
            }
            Message::Commit { end_lsn, .. } => self.commit(end_lsn)?,
            // Messages are the users' own. DDL comes through a table, which users cannot write.
            Message::LogicalMessage { .. }
            | Message::Relation(_)
            | Message::Type { .. }
            | Message::Change(_) => {}
        }
        Ok(())
    }

    /// The WAL before `lsn` has been seen: it must have held the transaction with which the spool ends.
    fn expected_before(&self, lsn: Lsn) -> Result<(), guard::Refused> {
        match self.expected {
            Some(mark) if mark.commit_lsn < lsn => {
                Err(guard::other_history(mark.commit_lsn, "this node has published"))
            }
            _ => Ok(()),
        }
    }

    fn relation(&mut self, body: &Bytes) -> Result<()> {
        let Message::Relation(relation) =
            pgoutput::decode(body).context("decode a relation of the stream")?
        else {
            bail!("the replication stream holds a message of kind R that is no relation");
        };
        let kind = match (relation.schema.as_str(), relation.name.as_str()) {
            ("synapsedb", "ddl") => Kind::Ddl,
            ("synapsedb", "probe") => Kind::Replicated,
            ("synapsedb", _) => Kind::Internal,
            _ => Kind::Replicated,
        };
        let known = Relation { raw: body.clone(), kind, told_in: 0 };
        self.relations.insert(relation.id, known);
        Ok(())
    }

    fn row(&mut self, body: &Bytes) -> Result<()> {
        let id = body.get(1..5).map_or(0, |id| u32::from_be_bytes([id[0], id[1], id[2], id[3]]));
        match self.tell_relation(id)? {
            Kind::Replicated => self.spool(body),
            Kind::Ddl => self.ddl(body),
            Kind::Internal => Ok(()),
        }
    }

    /// An inserted row of `synapsedb.ddl` becomes a logical message in the spool; its deletion is nothing.
    fn ddl(&mut self, body: &Bytes) -> Result<()> {
        let Message::Change(Change::Insert { new, .. }) =
            pgoutput::decode(body).context("decode a DDL statement of the stream")?
        else {
            return Ok(());
        };
        let Some(Value::Text(payload)) = new.get(1) else {
            bail!("a row of synapsedb.ddl has no payload");
        };
        let message = ddl::message(payload)?;
        self.spool(&message)?;
        self.relations.values_mut().for_each(|relation| relation.told_in = 0);
        Ok(())
    }

    fn truncate(&mut self, body: &Bytes) -> Result<()> {
        let Message::Change(Change::Truncate { relations, .. }) =
            pgoutput::decode(body).context("decode a truncate of the stream")?
        else {
            bail!("the replication stream holds a message of kind T that is no truncate");
        };
        let mut any = false;
        for relation in relations {
            any |= self.tell_relation(relation)? == Kind::Replicated;
        }
        if any { self.spool(body) } else { Ok(()) }
    }

    /// Repeats a replicated relation in the transaction that uses it first; answers what its rows are.
    fn tell_relation(&mut self, id: u32) -> Result<Kind> {
        if !matches!(self.open, Open::Local { .. }) {
            return Ok(Kind::Internal);
        }
        let relation = self
            .relations
            .get_mut(&id)
            .ok_or_else(|| anyhow!("the stream changes relation {id} without having named it"))?;
        let kind = relation.kind;
        if kind == Kind::Replicated && relation.told_in != self.transactions {
            relation.told_in = self.transactions;
            let raw = relation.raw.clone();
            self.spool(&raw)?;
        }
        Ok(kind)
    }

    fn spool(&mut self, body: &[u8]) -> Result<()> {
        if let Open::Local { header, spooled } = &mut self.open {
            if !*spooled {
                self.writer.begin(header)?;
                *spooled = true;
            }
            self.writer.message(body)?;
        }
        Ok(())
    }

    fn commit(&mut self, end_lsn: Lsn) -> Result<()> {
        match std::mem::replace(&mut self.open, Open::Idle) {
            Open::Local { spooled: true, .. } => {
                self.writer.commit(end_lsn)?;
                self.shared.metrics.published_transactions.inc();
            }
            Open::Applied { origin: Some(origin), lsn } => {
                self.vector.advance(origin, lsn);
            }
            Open::Local { spooled: false, .. }
            | Open::Applied { origin: None, .. }
            | Open::Known
            | Open::Idle => {}
        }
        self.read = self.read.max(end_lsn);
        Ok(())
    }

    /// The slot may only be confirmed beyond the last spooled transaction once the vector in force there is written
    /// down: a restart begins with it.
    fn checkpoint_if_due(&mut self) -> Result<()> {
        let tail = self.writer.tail();
        let (due, behind) = (self.last_checkpoint.elapsed(), self.read > tail.end_lsn);
        let grown = tail.vector != self.vector && due >= VECTOR_CHECKPOINT;
        if matches!(self.open, Open::Idle) && behind && (grown || due >= IDLE_CHECKPOINT) {
            self.writer.checkpoint(self.read, &self.vector)?;
            self.last_checkpoint = Instant::now();
        }
        Ok(())
    }

    async fn sync(&mut self) -> Result<()> {
        if self.writer.tail().end_lsn > self.confirmed {
            let Tail { end_lsn, .. } = self.writer.sync().await?;
            self.confirmed = self.confirmed.max(end_lsn);
            self.confirm().await?;
        }
        Ok(())
    }

    async fn confirm(&mut self) -> Result<()> {
        self.shared.status.published(self.read, self.confirmed);
        let confirmed = self.confirmed;
        self.stream.confirm(confirmed, confirmed, confirmed).await?;
        Ok(())
    }
}
