//! What is remembered of recent writes on this node: filled by the publisher and the lanes, and from the spools at the
//! start; forgotten when every member has seen it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use synapsedb_core::change::{Change, OldTuple, Value};
use synapsedb_core::history::{Commit, Digest, History, KnownWrite, Writer};
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::policy::Effect;
use synapsedb_core::version::{RowVersion, VersionVector};
use synapsedb_pg::client::Client;
use synapsedb_pg::pgoutput::{self, Message};
use tokio::sync::watch;

use super::foreign_keys::{self, Concern, ForeignKeys};
use super::keys::{self, LocalKeys, RowKeys};
use super::recheck::{Place, Recheck};
use super::spool::{Frame, Header, Spool};
use super::{Shared, other_members};

/// The index of recent writes, and how far the own WAL has been decoded into it.
pub(crate) struct Recent {
    history: Mutex<History>,
    decoded: watch::Sender<Lsn>,
    /// The origins whose spools have been read at the start; the own one is among them.
    rebuilt: watch::Sender<BTreeSet<NodeId>>,
}

/// Whose write is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// It was decoded from the own WAL.
    Local,
    /// It comes from another node and is applied now.
    Remote,
    /// It was applied before this start, and decoded from the own WAL too.
    Known,
}

impl Recent {
    /// Remembers nothing yet.
    pub(crate) fn new(arrivals_max: usize) -> Self {
        Self {
            history: Mutex::new(History::new(arrivals_max)),
            decoded: watch::Sender::new(Lsn::ZERO),
            rebuilt: watch::Sender::new(BTreeSet::new()),
        }
    }

    /// The index itself, for a moment: never across an await.
    pub(crate) fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The own WAL has been decoded up to here.
    pub(crate) fn set_decoded(&self, lsn: Lsn) {
        self.decoded.send_if_modified(|decoded| std::mem::replace(decoded, lsn) < lsn);
    }

    /// Waits until the own WAL has been decoded up to `lsn`.
    ///
    /// # Errors
    /// It takes longer than `limit`: the publisher stands still, which its status says.
    pub(crate) async fn wait_decoded(&self, lsn: Lsn, limit: Duration) -> Result<()> {
        let mut decoded = self.decoded.subscribe();
        match tokio::time::timeout(limit, decoded.wait_for(|decoded| *decoded >= lsn)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => bail!(
                "the own WAL is decoded up to {} only, {lsn} is waited for: see the publisher's status",
                *self.decoded.borrow()
            ),
        }
    }

    /// Waits until the spool of `origin` has been read at the start.
    pub(crate) async fn wait_rebuilt(&self, origin: NodeId) -> Result<()> {
        let mut rebuilt = self.rebuilt.subscribe();
        rebuilt.wait_for(|rebuilt| rebuilt.contains(&origin)).await.context("the index is gone")?;
        Ok(())
    }
}

/// The version of every row that a transaction of `origin` writes.
pub(crate) fn version(origin: NodeId, header: &Header) -> RowVersion {
    RowVersion { commit_time: header.commit_time, origin, lsn: header.commit_lsn }
}

/// A transaction is noted as committed; whether it is applied by itself is told (see [`Commit::alone`]).
pub(crate) fn note_commit(history: &mut History, origin: NodeId, header: &Header, alone: bool) {
    note_commit_of(history, origin, header, &header.vector, alone);
}

fn note_commit_of(
    history: &mut History,
    origin: NodeId,
    header: &Header,
    seen: &VersionVector,
    alone: bool,
) {
    let Header { commit_lsn: lsn, commit_time: time, xid, .. } = *header;
    let commit = Commit { lsn, time, xid, alone };
    history.committed(origin, commit, seen);
}

/// Whether [`note`] would do anything for a change of this kind, told without decoding it.
pub(crate) fn concerns(keys: &RowKeys, raw: &[u8], side: Side) -> bool {
    if keys.policy().is_some() {
        return matches!(raw.first(), Some(b'I' | b'U' | b'D'));
    }
    match raw.first() {
        Some(b'I') => side == Side::Remote || keys.has_claims(),
        Some(b'U') => keys.has_claims() || matches!(raw.get(5), Some(b'K' | b'O')),
        Some(b'D') => true,
        _ => false,
    }
}

/// Notes what a change deletes and claims. Answers whether a write that this one has not seen may meet it: then it must
/// be looked at closely.
pub(crate) fn note(
    history: &mut History,
    keys: &RowKeys,
    change: &Change<'_>,
    writer: &Writer<'_>,
    side: Side,
) -> bool {
    let unseen = keys.policy().is_some() && note_writes(history, keys, change, writer);
    note_places(history, keys, change, writer, side) || unseen && side == Side::Remote
}

/// Notes a change of a table with a policy of its own; answers whether a write is known that it had not seen.
fn note_writes(
    history: &mut History,
    keys: &RowKeys,
    change: &Change<'_>,
    writer: &Writer<'_>,
) -> bool {
    let mut wrote = |row: Option<Digest>, effect: Effect, changed: BTreeSet<u16>| {
        let write =
            KnownWrite { version: writer.version, vector: writer.vector.clone(), effect, changed };
        row.is_some_and(|row| history.wrote(row, write))
    };
    match change {
        Change::Insert { new, .. } => wrote(keys.row(new), Effect::Insert, keys.changed(None, new)),
        Change::Update { old, new, .. } => {
            let (before, row) = (old.as_ref().map(old_values), keys.row(new));
            match before.and_then(|before| keys.row(before)).filter(|before| Some(*before) != row) {
                Some(before) => {
                    let left = wrote(Some(before), Effect::Delete, BTreeSet::new());
                    wrote(row, Effect::Insert, keys.changed(None, new)) || left
                }
                None => wrote(row, Effect::Update, keys.changed(before, new)),
            }
        }
        Change::Delete { old, .. } => {
            wrote(keys.row(old_values(old)), Effect::Delete, BTreeSet::new())
        }
        Change::Truncate { .. } => false,
    }
}

fn note_places(
    history: &mut History,
    keys: &RowKeys,
    change: &Change<'_>,
    writer: &Writer<'_>,
    side: Side,
) -> bool {
    match change {
        Change::Insert { new, .. } => note_new(history, keys, new, writer, side),
        Change::Update { old, new, .. } => {
            let Some(row) = keys.row(new) else { return false };
            let before = old.as_ref().and_then(|old| keys.row(old_values(old)));
            let mut closely = false;
            match before.filter(|before| *before != row) {
                Some(before) => {
                    closely |= history.deleted(before, writer.version) && side == Side::Local;
                    closely |= note_new(history, keys, new, writer, side);
                }
                None => {
                    for value in keys.claims(new) {
                        closely |= history.claim(value, row, writer);
                    }
                }
            }
            closely
        }
        Change::Delete { old, .. } => match keys.row(old_values(old)) {
            Some(row) => history.deleted(row, writer.version) && side == Side::Local,
            None => false,
        },
        Change::Truncate { .. } => false,
    }
}

fn note_new(
    history: &mut History,
    keys: &RowKeys,
    new: &[Value<'_>],
    writer: &Writer<'_>,
    side: Side,
) -> bool {
    let Some(row) = keys.row(new) else { return false };
    let mut closely = history.is_deleted_unseen(row, writer);
    if side == Side::Remote {
        history.arrived(row, writer.version);
    }
    for value in keys.claims(new) {
        closely |= history.claim(value, row, writer);
    }
    closely
}

/// The transactions of others that may meet the place of a local change, unseen by it, as far as they are known: of
/// each origin the last. They may still be on their way.
pub(crate) fn unseen_by(
    history: &mut History,
    keys: &RowKeys,
    change: &Change<'_>,
    writer: &Writer<'_>,
) -> VersionVector {
    let (old, new) = change.rows();
    let mut unseen = VersionVector::new();
    if let Some(left) = old.and_then(|old| keys.row(old_values(old))) {
        unseen.merge(&history.arrivals_before(left, writer.version));
    }
    if let Some((new, row)) = new.and_then(|new| Some((new, keys.row(new)?))) {
        for value in keys.claims(new) {
            unseen.merge(&history.claims_unseen(value, row, writer));
        }
    }
    unseen
}

/// The writes of node `here` that take the place or a unique value from what a remote change writes, unseen by it: the
/// latest of each kind.
fn beaten_by(
    history: &History,
    here: NodeId,
    keys: &RowKeys,
    change: &Change<'_>,
    writer: &Writer<'_>,
) -> Vec<(RowVersion, Place)> {
    let (Change::Insert { new, .. } | Change::Update { new, .. }) = change else {
        return Vec::new();
    };
    let (Some(row), incoming) = (keys.row(new), writer.version) else { return Vec::new() };
    let counts = |by: &RowVersion| by.origin == here && *by > incoming && !writer.has_seen(by);
    let deleted = history.tombstone(row).filter(counts).map(|by| (by, Place::Deleted));
    let taken = keys.claims(new).filter_map(|value| history.taken_by(value, row, incoming));
    let taken = taken.filter(counts).max();
    let taken = taken.map(|by| (by, Place::Beaten(incoming.commit_time)));
    deleted.into_iter().chain(taken).collect()
}

/// Whether a delete or a unique claim is known that the writer of a change had not seen and that is in its way, though
/// no row here may show it.
pub(crate) fn meets_unseen(
    history: &mut History,
    keys: &RowKeys,
    change: &Change<'_>,
    writer: &Writer<'_>,
) -> bool {
    let (Change::Insert { new, .. } | Change::Update { new, .. }) = change else { return false };
    let Some(row) = keys.row(new) else { return true };
    let deleted = history.is_deleted_unseen(row, writer);
    deleted || keys.claims(new).any(|value| history.claim(value, row, writer))
}

/// The values of the row before a change.
pub(crate) fn old_values<'a, 'b>(old: &'b OldTuple<'a>) -> &'b [Value<'a>] {
    match old {
        OldTuple::Key(values) | OldTuple::Full(values) => values,
    }
}

/// How many deletes and other writes are forgotten before others may look again: some tenths of a millisecond.
const FORGOTTEN_AT_ONCE: usize = 1024;

/// Who only yields has the lock again before an applier that waits for it was woken.
const FORGETTING_PAUSE: Duration = Duration::from_millis(1);

/// Forgets what every member has seen, unless it is held for somebody; answers up to where everything may be forgotten.
pub(crate) async fn forget(shared: &Shared, held: bool) -> VersionVector {
    let members = other_members(shared);
    // A crash of the server takes back what is not durable, and with it what this node will have seen.
    let applied = shared.applied.durable();
    let stable = {
        let mut history = shared.recent.lock();
        let stable = history.stable(shared.identity.node, &applied, members.keys().copied());
        if held { history.forgotten().clone() } else { history.in_order(&stable) }
    };
    while shared.recent.lock().forget(&stable, FORGOTTEN_AT_ONCE) {
        tokio::time::sleep(FORGETTING_PAUSE).await;
    }
    shared.metrics.remembered(shared.recent.lock().len());
    stable
}

/// Reads what the spools hold of transactions that are local or were applied already, once each in a process; also
/// those of lives that have ended.
///
/// # Errors
/// A spool cannot be read, or the server cannot be asked for its tables.
pub(crate) async fn rebuild(shared: &Shared, applied: &VersionVector) -> Result<()> {
    shared.spools.open_ended(&shared.raft.state())?;
    let mut lives: BTreeMap<NodeId, Vec<(Spool, bool)>> = BTreeMap::new();
    for ((origin, _), spool) in shared.spools.ended() {
        lives.entry(origin).or_default().push((spool, true));
    }
    for (origin, (_, spool)) in shared.spools.all() {
        lives.entry(origin).or_default().push((spool, false));
    }
    lives.retain(|origin, _| !shared.recent.rebuilt.borrow().contains(origin));
    if lives.is_empty() {
        return Ok(());
    }
    let client = shared.sql("history").await?;
    let mut tables = Tables { client, known: HashMap::new() };
    let decoded = shared.spools.own_vector();
    // What was written here first: what of the others met it unseen, and was not looked at again, shows then.
    let here = shared.identity.node;
    let own = lives.remove_entry(&here);
    for (origin, lives) in own.into_iter().chain(lives) {
        let local = origin == here;
        let through = if local { Lsn(u64::MAX) } else { applied.get(origin) };
        let decoded = if local { Lsn(u64::MAX) } else { decoded.get(origin) };
        for (spool, ended) in lives {
            let part = Part { origin, ended, through, decoded };
            read_spool(shared, &mut tables, &spool, &part)
                .await
                .with_context(|| format!("read the spool of node {origin} for recent writes"))?;
        }
        if local {
            shared.outcomes.filled();
        }
        shared.recent.rebuilt.send_modify(|rebuilt| {
            rebuilt.insert(origin);
        });
    }
    shared.recent.lock().bury_losers();
    Ok(())
}

/// What of a spool is read.
struct Part {
    origin: NodeId,
    /// The life has ended: what it had seen says nothing of what the next one writes upon.
    ended: bool,
    /// Up to where its transactions are applied here.
    through: Lsn,
    /// Up to where they are decoded from the own WAL too.
    decoded: Lsn,
}

/// The unique indexes of the local tables, asked for once each.
struct Tables {
    client: Client,
    known: HashMap<(String, String), (LocalKeys, Vec<Concern>)>,
}

/// What is noted of the rows of a relation.
struct Noted {
    keys: Option<RowKeys>,
    foreign: ForeignKeys,
}

impl Tables {
    async fn noted(&mut self, raw: &Bytes) -> Result<Option<Noted>> {
        let Message::Relation(relation) = pgoutput::decode(raw)? else { return Ok(None) };
        let name = (relation.schema.clone(), relation.name.clone());
        if !self.known.contains_key(&name) {
            let indexes = keys::load(&self.client, &name.0, &name.1).await?;
            let concerns = foreign_keys::load(&self.client, &name.0, &name.1).await?;
            self.known.insert(name.clone(), (indexes, concerns));
        }
        let (indexes, concerns) = &self.known[&name];
        let foreign = ForeignKeys::new(&relation, concerns);
        Ok(Some(Noted { keys: RowKeys::new(&relation, indexes), foreign }))
    }
}

async fn read_spool(
    shared: &Shared,
    tables: &mut Tables,
    spool: &Spool,
    part: &Part,
) -> Result<()> {
    let origin = part.origin;
    let is_own = origin == shared.identity.node && !part.ended;
    if is_own && spool.first_available() == Lsn::ZERO {
        shared.outcomes.spool_is_whole();
    }
    let mut reader = spool.reader_after(spool.first_available())?;
    let mut by_raw: HashMap<Bytes, Option<Noted>> = HashMap::new();
    let mut current: HashMap<u32, Bytes> = HashMap::new();
    let mut open: Option<Header> = None;
    while let Some(frame) = reader.try_next()? {
        if let Some(header) = frame.header() {
            if header.commit_lsn > part.through {
                break;
            }
            let nothing = VersionVector::new();
            let seen = if part.ended { &nothing } else { &header.vector };
            // Only what is one frame can have been in a group.
            let alone = !frame.is_last();
            note_commit_of(&mut shared.recent.lock(), origin, &header, seen, alone);
            current.clear();
            open = Some(header);
        }
        for raw in frame.messages().filter(|raw| raw.first() == Some(&b'R')) {
            let copy = Bytes::copy_from_slice(&raw);
            if !by_raw.contains_key(&copy) {
                by_raw.insert(copy.clone(), tables.noted(&raw).await?);
            }
            current.insert(relation_id(&raw), copy);
        }
        let Some(header) = &open else { continue };
        shared.outcomes.reread(&frame, header, is_own);
        let side = match header.commit_lsn <= part.decoded {
            true => Side::Known,
            false => Side::Remote,
        };
        let writer = Writer { version: version(origin, header), vector: &header.vector };
        note_frame(shared, &frame, &writer, side, |relation| {
            let raw = current.get(&relation)?;
            Some((raw, by_raw.get(raw)?.as_ref()?))
        })?;
    }
    Ok(())
}

fn note_frame<'k>(
    shared: &Shared,
    frame: &Frame,
    writer: &Writer<'_>,
    side: Side,
    noted: impl Fn(u32) -> Option<(&'k Bytes, &'k Noted)>,
) -> Result<()> {
    let mut orphans = Vec::new();
    let mut beaten = Vec::new();
    let here = shared.identity.node;
    let mut history = shared.recent.lock();
    for raw in frame.messages() {
        let Some((relation, Noted { keys, foreign })) = noted(relation_id(&raw)) else { continue };
        // Any row that was inserted may have lost to a local delete.
        let may_have_lost = raw.first() == Some(&b'I') && !history.is_quiet();
        let keys = keys.as_ref().filter(|keys| may_have_lost || concerns(keys, &raw, side));
        if keys.is_none() && foreign.is_empty() {
            continue;
        }
        if let Message::Change(change) = pgoutput::decode(&raw)? {
            if let Some(keys) = keys
                && note(&mut history, keys, &change, writer, side)
            {
                for (version, place) in beaten_by(&history, here, keys, &change, writer) {
                    let (relation, change) = (relation.clone(), Bytes::copy_from_slice(&raw));
                    let awaits = VersionVector::new();
                    beaten.push(Recheck { relation, change, version, place, awaits, tries: 0 });
                }
            }
            // What was not looked up before this start is; what was is in the log already.
            foreign.note(&mut history, &change, writer, &mut orphans);
        }
    }
    drop(history);
    shared.rechecks.look_at(beaten);
    shared.look_for_orphans(orphans);
    Ok(())
}

/// The relation of a row change or of a relation message.
pub(crate) fn relation_id(raw: &[u8]) -> u32 {
    raw.get(1..5).map_or(0, |id| u32::from_be_bytes([id[0], id[1], id[2], id[3]]))
}
