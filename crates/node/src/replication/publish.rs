//! Reads the local WAL through one logical slot and spools what was committed here.
//!
//! Transactions that this node applied come along with the name of their origin. They are not spooled again; they
//! raise the version vector, so that every local transaction carries exactly what had been committed here before it.

mod relations;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use synapsedb_core::change::{Change, Value};
use synapsedb_core::durability::Class;
use synapsedb_core::guard::Mark;
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::outcome::{Id, Promise};
use synapsedb_core::version::VersionVector;
use synapsedb_pg::pgoutput::{self, Message};
use synapsedb_pg::replication::{Event, Stream};
use tokio::time::Instant;

use super::crowd::Crowd;
use super::durability::gate::{Gate, Positions};
use super::durability::settings;
use super::recent;
use super::recheck::Recheck;
use super::spool::{Header, SpoolError, Tail, Writer};
use super::{Shared, bootstrap, ddl, guard, origin_name, outcome, parse_origin_name};
use crate::tasks::Shutdown;
use relations::{Kind, Relation};

/// How often it is looked whether something is due.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// How often an idle stream's position is written down, so that the slot can follow the WAL.
const IDLE_CHECKPOINT: Duration = Duration::from_secs(10);

/// How often a version vector that grew by applied transactions alone is written down.
const VECTOR_CHECKPOINT: Duration = Duration::from_secs(1);

/// How many times within [`PINGS_WITHIN`] a server asks for a confirmation that only wants to shut down.
const PINGS_MAX: u32 = 100;

/// See [`PINGS_MAX`].
const PINGS_WITHIN: Duration = Duration::from_secs(1);

/// The making durable of what was spooled, on its way.
pub(super) type Syncing = Pin<Box<dyn Future<Output = Result<Tail, SpoolError>> + Send>>;

/// The end of `syncing`, which is taken out then; never when there is none. Cancel safe.
pub(super) async fn synced(syncing: &mut Option<Syncing>) -> Result<Tail, SpoolError> {
    let Some(running) = syncing.as_mut() else { return std::future::pending().await };
    let ended = running.await;
    *syncing = None;
    ended
}

/// Transactions that may be read at once before others wait to be read: a bound on what is complete and not yet shown.
const UNSHOWN_MAX: u64 = 1000;

/// Who has taken so many bytes from the stream at once does not wait for more: the server may wait for room.
const GATHER_BYTES_MAX: usize = 32 << 10;

/// Publishes until the stream or the spool fails, or shutdown is asked for.
///
/// # Errors
/// The stream broke, the spool cannot be written (a full disk: what was not spooled stays in the WAL, held by the
/// slot), or the server and the spool contradict each other (one of them was restored from an older copy).
pub(crate) async fn run(shared: &Shared, writer: &mut Writer, stop: &Shutdown) -> Result<()> {
    writer.abort();
    shared.recent.wait_rebuilt(shared.identity.node).await?;
    let slot = origin_name(shared.identity.node, shared.identity.incarnation);
    let local = shared.postgres.local();
    let tail = writer.tail();
    let last = shared.recent.lock().commit(shared.identity.node, tail.commit_lsn);
    last.iter().for_each(|commit| shared.clock.committed(commit.time));
    // What an agent before this one wrote may be in the system's memory only.
    writer.sync().await?;
    settings::suspend_without_slot(shared, &slot).await?;
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
    let mut standby = local.named(settings::STANDBY);
    // A walsender whose own commits would not wait does not tell at once of transactions that hold nothing for us.
    standby.options.retain(|(name, _)| name != "synchronous_commit");
    standby.options.push(("synchronous_commit".to_owned(), "on".to_owned()));
    let stream = Stream::start(&standby, &slot, from, "synapsedb", true)
        .await
        .with_context(|| format!("start reading the WAL through slot {slot}"))?;
    let mut publisher = Publisher { expected, ..Publisher::new(shared, writer, stream, from)? };
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

struct Publisher<'a> {
    shared: &'a Shared,
    writer: &'a mut Writer,
    stream: Stream,
    relations: BTreeMap<u32, Relation>,
    open: Open,
    /// The origin that the stream named last, and whose it is.
    origin: (String, Option<NodeId>),
    transactions: u64,
    /// Bytes of messages that were taken from the stream since the last wait.
    bytes: usize,
    /// Everything before it has been read from the stream.
    read: Lsn,
    /// What is durable here.
    confirmed: Lsn,
    /// What of it the server may be told.
    gate: Gate<'a>,
    told: Positions,
    /// Something was spooled since the last sync began.
    unsynced: bool,
    syncing: Option<Syncing>,
    /// Since when the server has asked for confirmations without sending anything, and how many times.
    pings: (Instant, u32),
    vector: VersionVector,
    last_checkpoint: Instant,
    crowd: Crowd,
    /// The markers of the open transaction.
    marks: Vec<(Id, Promise)>,
    /// Rows that were written here before a remote transaction met their place, unseen by it.
    rechecks: Vec<Recheck>,
    /// The state of the catalogs upon which the relations' keys were asked for.
    catalog: u64,
    /// The transaction with which the spool ends, until the WAL has shown that it has it too.
    expected: Option<Mark>,
}

impl<'a> Publisher<'a> {
    fn new(shared: &'a Shared, writer: &'a mut Writer, stream: Stream, from: Lsn) -> Result<Self> {
        let tail = writer.tail();
        let gate = Gate::new(shared, &tail, from);
        Ok(Self {
            shared,
            writer,
            stream,
            relations: BTreeMap::new(),
            open: Open::Idle,
            origin: (String::new(), None),
            transactions: 0,
            bytes: 0,
            read: from,
            confirmed: from,
            gate,
            told: Positions::default(),
            unsynced: false,
            syncing: None,
            pings: (Instant::now(), 0),
            vector: tail.vector,
            last_checkpoint: Instant::now(),
            crowd: Crowd::new(Duration::from_millis(shared.config.gather_max_ms))
                .context("make a timer")?,
            marks: Vec::new(),
            rechecks: Vec::new(),
            catalog: 0,
            expected: None,
        })
    }

    async fn follow(&mut self, stop: &Shutdown) -> Result<()> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let sync_interval = Duration::from_millis(self.shared.config.sync_interval_ms);
        let mut synced_at = Instant::now();
        let durability = &self.shared.durability;
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    self.writer.abort();
                    self.writer.show()?;
                    return self.sync().await;
                }
                event = self.stream.next() => {
                    self.events(event?).await?;
                    if self.unsynced && self.hurry() {
                        self.begin_sync();
                    }
                }
                tail = synced(&mut self.syncing) => {
                    self.confirmed = self.confirmed.max(tail?.end_lsn);
                    if self.unsynced && self.hurry() {
                        self.begin_sync();
                    }
                    self.confirm(false).await?;
                }
                () = durability.changed() => self.confirm(false).await?,
                _ = tick.tick() => {
                    self.checkpoint_if_due()?;
                    if self.unsynced && (self.hurry() || synced_at.elapsed() >= sync_interval) {
                        synced_at = Instant::now();
                        self.begin_sync();
                    }
                    self.confirm(false).await?;
                }
            }
        }
    }

    /// Everything that is there: it is shown by one write.
    async fn events(&mut self, first: Event) -> Result<()> {
        let before = self.transactions;
        self.event(first).await?;
        while self.transactions - before < UNSHOWN_MAX
            && let Some(event) = self.stream.try_next()?
        {
            self.event(event).await?;
        }
        self.writer.show()?;
        // Behind it: whoever waits for this may look at the spool.
        self.shared.recent.set_decoded(self.read);
        if self.hurry() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.bytes);
        if let Some(gather) = self.crowd.counted(self.transactions - before)
            && bytes < GATHER_BYTES_MAX
        {
            self.stream.rest()?;
            self.crowd.wait(gather).await?;
        }
        Ok(())
    }

    async fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Data { body, .. } => {
                self.pings.1 = 0;
                self.bytes += body.len();
                self.message(&body).await
            }
            Event::Keepalive { wal_end, reply_requested } => {
                if matches!(self.open, Open::Idle) && wal_end > self.read {
                    self.read = wal_end;
                    self.expected_before(wal_end)?;
                }
                if reply_requested {
                    self.pinged()?;
                    self.confirm(true).await?;
                }
                Ok(())
            }
        }
    }

    /// A server that shuts down asks again and again until everything is confirmed, which may wait for lost members.
    fn pinged(&mut self) -> Result<()> {
        let (since, pings) = &mut self.pings;
        if *pings == 0 || since.elapsed() > PINGS_WITHIN {
            (*since, *pings) = (Instant::now(), 0);
        }
        *pings += 1;
        if *pings > PINGS_MAX {
            bail!("the server shuts down: it is let go");
        }
        Ok(())
    }

    /// What is seldom waited for is boxed: the state of a wait has to be made, and moved, for every message else.
    async fn message(&mut self, body: &Bytes) -> Result<()> {
        match body.first() {
            Some(b'I' | b'U' | b'D') => self.row(body),
            Some(b'T') => self.truncate(body),
            Some(b'R') => Box::pin(self.relation(body)).await,
            Some(b'B') if self.catalog_has_changed() => {
                Box::pin(self.notice_catalog()).await?;
                self.frame(body)
            }
            Some(b'Y') => Ok(()),
            _ => self.frame(body),
        }
    }

    /// The messages that are not rows: begin, origin, commit, logical messages.
    fn frame(&mut self, body: &Bytes) -> Result<()> {
        match pgoutput::decode(body).context("decode the replication stream")? {
            Message::Begin { commit_lsn, commit_time, xid } => {
                self.transactions += 1;
                self.marks.clear();
                self.rechecks.clear();
                if self.expected.is_some_and(|mark| mark.is(commit_lsn, commit_time, xid)) {
                    self.expected = None;
                }
                self.expected_before(Lsn(commit_lsn.0 + 1))?;
                self.open = if commit_lsn <= self.writer.tail_commit_lsn() {
                    Open::Known
                } else {
                    // Its vector is filled in when the first row says that it is local.
                    let vector = VersionVector::new();
                    let header = Header { commit_lsn, commit_time, xid, vector };
                    Open::Local { header, spooled: false }
                };
            }
            Message::Origin { lsn, name } => {
                if self.origin.0 != name {
                    self.origin = (name.to_owned(), parse_origin_name(name).map(|(node, _)| node));
                }
                self.open = Open::Applied { origin: self.origin.1, lsn };
            }
            Message::Commit { commit_lsn, end_lsn, .. } => self.commit(commit_lsn, end_lsn)?,
            // Other messages are the users' own. DDL comes through a table, which users cannot write.
            Message::LogicalMessage { prefix: outcome::PREFIX, .. } => self.mark(body)?,
            Message::LogicalMessage { .. }
            | Message::Relation(_)
            | Message::Type { .. }
            | Message::Change(_) => {}
        }
        Ok(())
    }

    /// The number of a local transaction by which a router asks for its outcome; the peers get it too.
    fn mark(&mut self, body: &Bytes) -> Result<()> {
        let local = matches!(self.open, Open::Local { .. } | Open::Known);
        match outcome::mark(body).filter(|_| local) {
            Some(mark) => {
                self.marks.push(mark);
                self.spool(body)
            }
            None => Ok(()),
        }
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
        self.shared.catalog_changed();
        self.spool(&message)?;
        self.relations.values_mut().for_each(|relation| relation.told_in = 0);
        Ok(())
    }

    fn truncate(&mut self, body: &Bytes) -> Result<()> {
        let Message::Change(change) =
            pgoutput::decode(body).context("decode a truncate of the stream")?
        else {
            bail!("the replication stream holds a message of kind T that is no truncate");
        };
        let Change::Truncate { relations, .. } = &change else { return Ok(()) };
        let mut any = false;
        for relation in relations {
            if self.tell_relation(*relation)? == Kind::Replicated {
                any = true;
                self.note_emptied(*relation, &change);
            }
        }
        if any { self.spool(body) } else { Ok(()) }
    }

    fn spool(&mut self, body: &[u8]) -> Result<()> {
        if let Open::Local { header, spooled } = &mut self.open {
            if !*spooled {
                header.vector.clone_from(&self.vector);
                self.writer.begin(header)?;
                *spooled = true;
            }
            self.writer.message(body)?;
        }
        Ok(())
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<()> {
        match std::mem::replace(&mut self.open, Open::Idle) {
            Open::Local { header, spooled: true } => {
                self.shared.own_commits.committed(header.commit_lsn, header.xid);
                self.shared.clock.committed(header.commit_time);
                let here = self.shared.identity.node;
                recent::note_commit(&mut self.shared.recent.lock(), here, &header, true);
                self.writer.commit(end_lsn)?;
                self.gate.committed(header.commit_lsn, end_lsn);
                self.shared.rechecks.look_at(std::mem::take(&mut self.rechecks));
                self.unsynced = true;
                self.shared.metrics.published_transactions.inc();
            }
            Open::Applied { origin: Some(origin), lsn } => {
                self.vector.advance(origin, lsn);
                self.shared.recent.lock().decoded(origin, lsn);
            }
            Open::Local { spooled: false, .. }
            | Open::Applied { origin: None, .. }
            | Open::Known
            | Open::Idle => {}
        }
        self.shared.outcomes.note(commit_lsn, &mut self.marks);
        self.read = self.read.max(end_lsn);
        Ok(())
    }

    /// The slot may only be confirmed beyond the last spooled transaction once the vector in force there is written
    /// down: a restart begins with it.
    fn checkpoint_if_due(&mut self) -> Result<()> {
        let tail = self.writer.tail();
        let (due, behind) = (self.last_checkpoint.elapsed(), self.read > tail.end_lsn);
        let grown = tail.vector != self.vector && due >= VECTOR_CHECKPOINT;
        // Also what holds nothing for the peers may be waited for, such as a commit in another database.
        let due = grown || due >= IDLE_CHECKPOINT || self.hurry();
        if matches!(self.open, Open::Idle) && behind && due {
            self.writer.checkpoint(self.read, &self.vector)?;
            self.unsynced = true;
            self.last_checkpoint = Instant::now();
        }
        Ok(())
    }

    /// Whether somebody may wait for other nodes.
    fn hurry(&self) -> bool {
        self.shared.durability.hurry() > Class::Local
    }

    /// Begins to make durable what was spooled, unless that is going on: what comes meanwhile is next.
    fn begin_sync(&mut self) {
        if self.syncing.is_none() {
            self.unsynced = false;
            self.syncing = Some(Box::pin(self.writer.sync()));
        }
    }

    async fn sync(&mut self) -> Result<()> {
        self.writer.show()?;
        let Tail { end_lsn, .. } = self.writer.sync().await?;
        self.confirmed = self.confirmed.max(end_lsn);
        self.confirm(true).await
    }

    /// Tells the server what is safe: if that is news, or if it wants to hear it.
    async fn confirm(&mut self, wanted: bool) -> Result<()> {
        self.shared.status.published(self.read, self.confirmed);
        let positions = self.gate.positions(self.confirmed);
        if wanted || positions != self.told {
            self.told = positions;
            let Positions { flush, apply } = positions;
            self.stream.confirm(flush, flush, apply).await?;
        }
        Ok(())
    }
}
