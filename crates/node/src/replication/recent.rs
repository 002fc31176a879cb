//! What is remembered of recent writes on this node: filled by the publisher and the lanes, and from the spools at the
//! start; forgotten when every member has seen it.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use synapsedb_core::change::{Change, OldTuple, Value};
use synapsedb_core::history::{Commit, Digest, History, KnownWrite, Writer};
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::policy::Effect;
use synapsedb_core::version::{RowVersion, VersionVector};
use tokio::sync::watch;

use super::keys::RowKeys;
use super::recheck::Place;
use super::spool::Header;
use super::{Shared, knows_members, other_members};

mod rebuild;

pub(crate) use rebuild::rebuild;

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
    let unseen = keys.policy().is_some() && note_writes(history, keys, change, writer, side);
    // What was inserted where a local row had gone found nothing there that could tell, and what removed a row whose
    // place a local one took meanwhile did not know that.
    let closely = match side {
        Side::Remote => unseen,
        Side::Local => {
            let made = || made_row(keys, change).is_some_and(|row| history.missed(row, writer));
            unseen && (leaves_row(keys, change) || made())
        }
        Side::Known => false,
    };
    note_places(history, keys, change, writer, side) || closely
}

/// Whether no row is left where the changed one was.
fn leaves_row(keys: &RowKeys, change: &Change<'_>) -> bool {
    let (old, new) = change.rows();
    old.is_some_and(|old| new.is_none_or(|new| keys.row(old_values(old)) != keys.row(new)))
}

/// The row that was not there before a change.
pub(crate) fn made_row(keys: &RowKeys, change: &Change<'_>) -> Option<Digest> {
    match change {
        Change::Insert { new, .. } => keys.row(new),
        Change::Update { old: Some(old), new, .. } => {
            let row = keys.row(new);
            row.filter(|_| keys.row(old_values(old)) != row)
        }
        Change::Update { old: None, .. } | Change::Delete { .. } | Change::Truncate { .. } => None,
    }
}

/// Notes a change of a table with a policy of its own; answers whether a write is known that it had not seen.
fn note_writes(
    history: &mut History,
    keys: &RowKeys,
    change: &Change<'_>,
    writer: &Writer<'_>,
    side: Side,
) -> bool {
    let mut wrote = |row: Option<Digest>, effect: Effect, changed: BTreeSet<u16>| {
        let (version, vector) = (writer.version, writer.vector.clone());
        let write = KnownWrite { version, vector, effect, changed, settled: true };
        let Some(row) = row else { return false };
        let unseen = history.wrote(row, write);
        if unseen && side == Side::Remote {
            history.set_settled(row, version, false);
        }
        unseen
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
        for write in history.writes(left).iter().filter(|write| !writer.has_seen(&write.version)) {
            unseen.advance(write.version.origin, write.version.lsn);
        }
    }
    if let Some((new, row)) = new.and_then(|new| Some((new, keys.row(new)?))) {
        for value in keys.claims(new) {
            unseen.merge(&history.claims_unseen(value, row, writer));
        }
    }
    unseen
}

/// A remote change at the start, beside what was written here.
struct Beside<'a> {
    history: &'a History,
    here: NodeId,
    keys: &'a RowKeys,
    change: &'a Change<'a>,
    writer: &'a Writer<'a>,
}

impl Beside<'_> {
    /// The local writes that made rows which the change had not seen, in a table with a policy of its own.
    fn made(&self) -> impl Iterator<Item = (RowVersion, Place)> {
        let Self { history, here, keys, change, writer } = *self;
        let (old, new) = change.rows();
        let old = old.and_then(|old| keys.row(old_values(old)));
        let new = new.and_then(|new| keys.row(new));
        let rows = old.filter(|old| Some(*old) != new).into_iter().chain(new);
        let writes = rows.flat_map(|row| history.writes(row));
        let made = writes.filter(move |write| {
            let KnownWrite { version, effect, .. } = write;
            version.origin == here && *effect == Effect::Insert && !writer.has_seen(version)
        });
        made.map(|write| (write.version, Place::Made))
    }

    /// The local writes that take the place or a unique value from what the change writes, unseen by it: the latest of
    /// each kind.
    fn taken(&self) -> Vec<(RowVersion, Place)> {
        let Self { history, here, keys, change, writer } = *self;
        let (Change::Insert { new, .. } | Change::Update { new, .. }) = change else {
            return Vec::new();
        };
        let (Some(row), incoming) = (keys.row(new), writer.version) else { return Vec::new() };
        let counts = |by: &RowVersion| by.origin == here && *by > incoming && !writer.has_seen(by);
        // A policy may let an earlier delete stay.
        let is_ruled = keys.policy().is_some();
        let may_count =
            |by: &RowVersion| counts(by) || is_ruled && by.origin == here && !writer.has_seen(by);
        let deleted = history.tombstone(row).filter(may_count).map(|by| (by, Place::Deleted));
        let taken = keys.claims(new).filter_map(|value| history.taken_by(value, row, incoming));
        let taken = taken.filter(counts).max();
        let taken = taken.map(|by| (by, Place::Beaten(incoming.commit_time)));
        deleted.into_iter().chain(taken).collect()
    }
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
///
/// `wal_lsn` is where the own WAL ends: what is applied is before that.
pub(crate) async fn forget(shared: &Shared, held: bool, wal_lsn: Lsn) -> VersionVector {
    let held = held || !knows_members(shared);
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
    let mut history = shared.recent.lock();
    if !held {
        let mut now = applied;
        now.advance(shared.identity.node, wal_lsn);
        history.forget_policies(&stable, &now);
    }
    shared.metrics.remembered(history.len());
    history.but_policies(&stable)
}

/// The relation of a row change or of a relation message.
pub(crate) fn relation_id(raw: &[u8]) -> u32 {
    raw.get(1..5).map_or(0, |id| u32::from_be_bytes([id[0], id[1], id[2], id[3]]))
}
