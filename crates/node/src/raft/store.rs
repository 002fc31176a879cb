//! The file of Raft: everything in one redb database, each value under a checksum of its own, each write durable
//! before it is answered.
//!
//! The tables are `log` (index → entry) and `meta` (name → value). A value is `crc32c | JSON`; the checksum covers
//! the key too, so a value that turns up in another place is found out. Commits are of redb's two-phase kind: with the
//! one-phase kind a damaged newest commit would be taken for a torn one, and the file would silently be one commit
//! older, which a vote must never be.

use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use openraft::{AnyError, LogId, StorageError, StorageIOError, Vote};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use redb::{Database, ReadableDatabase as _, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::machine::{Applied, Entry};
use crate::layout::Identity;

/// The name of the file.
pub(super) const FILE: &str = "raft.redb";
/// The file beside the directory that remembers that the log exists.
const STARTED: &str = "raft.started";
const LOG: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
/// How much of the file is kept in memory.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// The names in the table `meta`.
pub(super) mod name {
    pub(in crate::raft) const OWNER: &str = "owner";
    pub(in crate::raft) const VOTE: &str = "vote";
    pub(in crate::raft) const PURGED: &str = "purged";
    pub(in crate::raft) const APPLIED: &str = "applied";
    pub(in crate::raft) const SNAPSHOT: &str = "snapshot";
}

/// Whose log it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    format: u32,
    cluster_id: Uuid,
    node: u16,
    uuid: Uuid,
}

const FORMAT: u32 = 1;

/// The open file.
#[derive(Clone)]
pub(super) struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    file: PathBuf,
    writing_since: Mutex<Option<Instant>>,
    write_seconds: Histogram,
}

/// What the file held when it was opened.
pub(super) struct Loaded {
    /// It has never held a vote or an entry.
    pub(super) pristine: bool,
    /// The index of the last entry, also if only a snapshot holds it.
    pub(super) last_index: Option<u64>,
    pub(super) applied: Applied,
    /// How long a small durable write takes on this disk.
    pub(super) write: Duration,
}

/// So many writes tell how long one takes: their median, since one alone may have met something else.
const TIMED_WRITES: usize = 3;

impl Store {
    /// Opens and verifies the file in `dir`, or makes it when this node has never had one. Blocks.
    pub(super) fn open(dir: &Path, identity: &Identity) -> Result<(Self, Loaded)> {
        let file = dir.join(FILE);
        let started = dir.parent().unwrap_or(dir).join(STARTED);
        let exists =
            file.try_exists().with_context(|| format!("cannot look for {}", file.display()))?;
        if !exists && started.exists() {
            bail!(
                "the Raft log {} is gone, but node {} has had one ({} says so). A node that forgets its votes could \
                 undo what the cluster has agreed on, so it does not start; nothing was changed. Put the file back, \
                 or remove the node from the cluster and add it as a new one",
                file.display(),
                identity.node,
                started.display()
            );
        }
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let owner = Owner {
            format: FORMAT,
            cluster_id: identity.cluster_id,
            node: identity.node.get(),
            uuid: identity.uuid,
        };
        let inner = Inner {
            database: open_database(&file)?,
            file: file.clone(),
            writing_since: Mutex::default(),
            write_seconds: Histogram::new(exponential_buckets(0.000_5, 2.0, 14)),
        };
        let store = Self { inner: Arc::new(inner) };
        store.claim(&owner, started.exists())?;
        remember(&started)?;
        let loaded =
            store.verify().map_err(|error| anyhow!(damaged(&file, &format!("{error:#}"))))?;
        let write = store.time_writes(&owner)?;
        Ok((store, Loaded { write, ..loaded }))
    }

    /// How long a durable write takes: that of the owner, who stays the same.
    fn time_writes(&self, owner: &Owner) -> Result<Duration> {
        let mut times = [Duration::ZERO; TIMED_WRITES];
        for time in &mut times {
            let begin = Instant::now();
            self.commit(|transaction| put(transaction, name::OWNER, owner))
                .with_context(|| format!("cannot write {}", self.inner.file.display()))?;
            *time = begin.elapsed();
        }
        times.sort_unstable();
        Ok(times[TIMED_WRITES / 2])
    }

    /// Writes the owner into a new file; refuses one of somebody else.
    fn claim(&self, owner: &Owner, started: bool) -> Result<()> {
        let file = &self.inner.file;
        let found: Option<Owner> = self
            .meta(name::OWNER)
            .map_err(|error| anyhow!(damaged(file, &format!("{error:#}"))))?;
        match found {
            Some(found) if found == *owner => Ok(()),
            Some(found) => bail!(
                "the Raft log {} belongs to node {} ({}) of cluster {} (format {}), this is node {} ({}) of cluster \
                 {}; nothing was changed. Give each node its own data directory",
                file.display(),
                found.node,
                found.uuid,
                found.cluster_id,
                found.format,
                owner.node,
                owner.uuid,
                owner.cluster_id
            ),
            None if started => bail!(damaged(file, "it is empty, but it once was not")),
            None => self
                .commit(|transaction| {
                    transaction.open_table(LOG)?;
                    put(transaction, name::OWNER, owner)
                })
                .with_context(|| format!("cannot write {}", file.display())),
        }
    }

    /// Reads everything once: checksums, no holes, and an order that makes sense.
    fn verify(&self) -> Result<Loaded> {
        let vote: Option<Vote<u64>> = self.meta(name::VOTE)?;
        let purged: Option<LogId<u64>> = self.meta(name::PURGED)?;
        let applied: Applied = self.meta(name::APPLIED)?.unwrap_or_default();
        let _: Option<super::machine::StoredSnapshot> = self.meta(name::SNAPSHOT)?;
        let entries = self.entries_now((Bound::Unbounded, Bound::Unbounded))?;
        let mut previous = purged;
        for entry in &entries {
            let expected = previous.map_or(0, |previous| previous.index + 1);
            let found = entry.log_id.index;
            ensure!(found == expected, "entry {expected} is missing (the next is {found})");
            previous = Some(entry.log_id);
        }
        ensure!(
            applied.last_applied <= previous,
            "the state has applied {:?}, but the log ends at {previous:?}",
            applied.last_applied
        );
        let last_index = previous.map(|previous| previous.index);
        Ok(Loaded {
            pristine: vote.is_none() && previous.is_none(),
            last_index,
            applied,
            write: Duration::ZERO,
        })
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "synapsedb_raft_write_seconds",
            "Time of one durable write of the Raft log",
            self.inner.write_seconds.clone(),
        );
    }

    /// How long the write that is under way has been so.
    pub(super) fn writing_for(&self) -> Option<Duration> {
        let since = self.inner.writing_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
    }

    /// Runs `work` in one transaction that is durable when this returns.
    pub(super) async fn write(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<()> + Send + 'static,
    ) -> Result<(), StorageError<u64>> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || store.commit(work)).await;
        self.storage_error(done, StorageIOError::write)
    }

    /// Reads one value of the table `meta`.
    pub(super) async fn read_meta<T: DeserializeOwned + Send + 'static>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, StorageError<u64>> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || store.meta(name)).await;
        self.storage_error(done, StorageIOError::read)
    }

    /// Reads the entries of a range.
    pub(super) async fn entries(
        &self,
        range: impl RangeBounds<u64>,
    ) -> Result<Vec<Entry>, StorageError<u64>> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || store.entries_now(range)).await;
        self.storage_error(done, StorageIOError::read)
    }

    /// Reads the last entry.
    pub(super) async fn last_entry(&self) -> Result<Option<Entry>, StorageError<u64>> {
        let store = self.clone();
        let read = move || {
            let table = store.inner.database.begin_read()?.open_table(LOG)?;
            let last = table.last()?;
            last.map(|(index, value)| open_entry(index.value(), value.value())).transpose()
        };
        self.storage_error(tokio::task::spawn_blocking(read).await, StorageIOError::read)
    }

    #[allow(clippy::result_large_err, reason = "the error is openraft's")]
    fn storage_error<T>(
        &self,
        done: Result<Result<T>, tokio::task::JoinError>,
        wrap: impl FnOnce(AnyError) -> StorageIOError<u64>,
    ) -> Result<T, StorageError<u64>> {
        let done = done.map_err(anyhow::Error::from).and_then(|done| done);
        done.map_err(|error| {
            let text = format!("the Raft log {}: {error:#}", self.inner.file.display());
            tracing::error!("{text}");
            wrap(AnyError::error(text)).into()
        })
    }

    fn commit(&self, work: impl FnOnce(&WriteTransaction) -> Result<()>) -> Result<()> {
        let begin = Instant::now();
        let _writing = Writing::begin(&self.inner.writing_since, begin);
        let mut transaction = self.inner.database.begin_write()?;
        // Durability::Immediate is redb's default: the commit returns after fsync.
        transaction.set_two_phase_commit(true);
        work(&transaction)?;
        transaction.commit()?;
        self.inner.write_seconds.observe(begin.elapsed().as_secs_f64());
        Ok(())
    }

    fn meta<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let transaction = self.inner.database.begin_read()?;
        let table = match transaction.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        let Some(value) = table.get(name)? else { return Ok(None) };
        open(name.as_bytes(), value.value()).with_context(|| format!("\"{name}\"")).map(Some)
    }

    fn entries_now(&self, range: (Bound<u64>, Bound<u64>)) -> Result<Vec<Entry>> {
        let table = self.inner.database.begin_read()?.open_table(LOG)?;
        table
            .range::<u64>(range)?
            .map(|found| {
                let (index, value) = found?;
                open_entry(index.value(), value.value())
            })
            .collect()
    }
}

/// Marks the time of a write, however it ends.
struct Writing<'a>(&'a Mutex<Option<Instant>>);

impl<'a> Writing<'a> {
    fn begin(since: &'a Mutex<Option<Instant>>, now: Instant) -> Self {
        *since.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        Self(since)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What to say of a damaged file.
pub(super) fn damaged(file: &Path, what: &str) -> String {
    format!(
        "the Raft log {} is damaged: {what}. Nothing of it is used. Restore the file from a \
         copy of this very node taken after its last stop, or remove the node from the cluster and add it as a new one",
        file.display()
    )
}

fn open_database(file: &Path) -> Result<Database> {
    let opened = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create(file);
    match opened {
        Ok(database) => Ok(database),
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => bail!(
            "the Raft log {} is in use by another process; is the agent of this node already running?",
            file.display()
        ),
        Err(redb::DatabaseError::Storage(redb::StorageError::Io(error)))
            if error.kind() != std::io::ErrorKind::InvalidData
                && error.kind() != std::io::ErrorKind::UnexpectedEof =>
        {
            Err(error).with_context(|| format!("cannot open the Raft log {}", file.display()))
        }
        Err(error) => bail!(damaged(file, &error.to_string())),
    }
}

/// Remembers, durably, that the log exists.
fn remember(started: &Path) -> Result<()> {
    if started.exists() {
        return Ok(());
    }
    let write = || {
        std::fs::File::create(started)?.sync_all()?;
        let directory = started.parent().unwrap_or(Path::new("."));
        std::fs::File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", started.display()))
}

/// Writes a value of the table `meta`.
pub(super) fn put(
    transaction: &WriteTransaction,
    name: &str,
    value: &impl Serialize,
) -> Result<()> {
    let bytes = seal(name.as_bytes(), value)?;
    transaction.open_table(META)?.insert(name, bytes.as_slice())?;
    Ok(())
}

/// Writes entries of the log.
pub(super) fn put_entries(transaction: &WriteTransaction, entries: &[Entry]) -> Result<()> {
    let mut table = transaction.open_table(LOG)?;
    for entry in entries {
        let index = entry.log_id.index;
        let bytes = seal(&index.to_be_bytes(), entry)?;
        table.insert(index, bytes.as_slice())?;
    }
    Ok(())
}

/// Removes entries of the log.
pub(super) fn remove_entries(
    transaction: &WriteTransaction,
    range: impl RangeBounds<u64>,
) -> Result<()> {
    let mut table = transaction.open_table(LOG)?;
    table.retain_in(range, |_, _| false)?;
    Ok(())
}

fn open_entry(index: u64, value: &[u8]) -> Result<Entry> {
    let entry: Entry =
        open(&index.to_be_bytes(), value).with_context(|| format!("entry {index}"))?;
    ensure!(entry.log_id.index == index, "entry {index} says it is {}", entry.log_id.index);
    Ok(entry)
}

fn checksum(key: &[u8], json: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), json)
}

fn seal(key: &[u8], value: &impl Serialize) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(value)?;
    let mut bytes = checksum(key, &json).to_le_bytes().to_vec();
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

fn open<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T> {
    let (sum, json) = value.split_first_chunk::<4>().context("it is too short")?;
    ensure!(u32::from_le_bytes(*sum) == checksum(key, json), "its checksum does not fit");
    serde_json::from_slice(json).context("it is not what this version writes")
}
