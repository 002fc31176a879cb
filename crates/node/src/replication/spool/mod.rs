//! The spool: every transaction of one life of one origin, on disk, in the origin's commit order.
//!
//! **Runs on:** every node, once for each origin. One [`Writer`] appends; any number of [`Reader`]s follow it.
//!
//! **Invariant:** what a reader gets is a gapless run of whole transactions exactly as they were appended. Killing the
//! process at any byte loses at most what was not [synced](Writer::sync); a flipped bit is an error and never data.
//!
//! A spool is a directory of segments: files of checksummed [frames](Frame), numbered without gaps. A transaction
//! never spans two of them, so one that is larger than [`Config::segment_bytes`] makes a larger segment. A segment is
//! on the disk before its successor exists; therefore only the last one can end in a torn frame, and [`open`] cuts it
//! off. The file `durable` beside them holds how far the last segment was synced: what is missing or broken before
//! that point was damaged, not torn.

mod copy;
mod durable;
mod frame;
mod reader;
mod recovery;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;
use tokio::sync::watch;

pub use copy::copy;
pub use frame::{Frame, Header, NotAFrame};
pub use reader::Reader;
pub use recovery::open;
pub use writer::Writer;

use segment::Segment;

/// The limits of a spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A segment that has reached this size is followed by a new one.
    pub segment_bytes: u64,
    /// A larger transaction is cut into frames of about this size.
    pub frame_bytes: usize,
    /// What the segments of one origin may take together before [`Spool::enforce_limit`] deletes the oldest.
    pub bytes_max: u64,
    /// A single frame, and so a single message, is never larger than this.
    pub frame_bytes_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            frame_bytes: 64 << 10,
            bytes_max: 10 << 30,
            frame_bytes_max: 1 << 30,
        }
    }
}

/// Whose transactions a spool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolId {
    /// The cluster.
    pub cluster: uuid::Uuid,
    /// The node that committed them.
    pub origin: NodeId,
    /// The life of that node's data.
    pub incarnation: Incarnation,
}

impl fmt::Display for SpoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, origin, incarnation } = self;
        write!(f, "origin {origin} in incarnation {incarnation} of cluster {cluster}")
    }
}

/// Where a spool ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// The commit LSN of the last complete transaction.
    pub commit_lsn: Lsn,
    /// The end LSN of that transaction, or of a later checkpoint: the origin's WAL before it is not needed.
    pub end_lsn: Lsn,
    /// What the origin had seen at the last transaction or checkpoint.
    pub vector: VersionVector,
}

/// Why a spool could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}; the spool still ends with its last complete transaction", file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no space left. The open transaction was undone; it can be begun again when there is space.
    #[error("no space left for {}: the transaction was undone, nothing else is lost; free some space", file.display())]
    DiskFull {
        /// The file that could not grow.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not those that were written. They are not served.
    #[error(
        "the spool file {} is corrupt at byte {offset}: {what}. Nothing of it is used from there on; \
         the node must get these transactions from another peer, or be re-seeded",
        file.display()
    )]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where, in bytes from its start.
        offset: u64,
        /// What was found.
        what: String,
    },
    /// The directory holds another spool.
    #[error("{} holds {found}, not {expected}; it is unchanged, correct the data directory", file.display())]
    OtherSpool {
        /// A file in it.
        file: PathBuf,
        /// What was to be opened.
        expected: SpoolId,
        /// What is there.
        found: SpoolId,
    },
    /// Another process or task has it open for writing.
    #[error("the spool {} is in use by another writer; stop the other agent first", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// What would have to be read has been deleted.
    #[error(
        "the transactions up to {first_available} are no longer kept: the reader must be re-seeded"
    )]
    Gone {
        /// The earliest position after which can still be read.
        first_available: Lsn,
    },
    /// Transactions must come in the order of their commit LSNs.
    #[error(
        "the transaction {got} does not follow {last}, with which the spool ends; nothing was written"
    )]
    OutOfOrder {
        /// The last commit LSN.
        last: Lsn,
        /// The offered one.
        got: Lsn,
    },
    /// A frame from a peer that cannot be appended.
    #[error("a received frame was refused and nothing was written: {0}")]
    FrameRefused(String),
    /// A message larger than a frame may be. The transaction was undone.
    #[error(
        "a message of {got} bytes exceeds the limit of {max} bytes (frame_bytes_max); the transaction was undone"
    )]
    TooLarge {
        /// Bytes of the frame with the message.
        got: u64,
        /// The limit.
        max: u64,
    },
    /// The call does not fit the state of the writer; nothing has changed.
    #[error("the spool's writer {0}")]
    Misuse(&'static str),
    /// An earlier failure left it unknown what is on the disk: only opening the spool again tells.
    #[error("the spool's disk failed earlier ({}); nothing is written until it is opened again", file.display())]
    Failed {
        /// The file on which it failed.
        file: PathBuf,
    },
    /// The writer is gone and everything was read.
    #[error("the spool was closed")]
    Closed,
}

impl SpoolError {
    fn io(action: &'static str, file: &Path, source: io::Error) -> Self {
        let file = file.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { file, source }
            }
            _ => Self::Io { action, file, source },
        }
    }

    fn corrupt(file: &Path, offset: u64, what: impl fmt::Display) -> Self {
        Self::Corrupt { file: file.to_owned(), offset, what: what.to_string() }
    }
}

/// What readers share with the writer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Spool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    id: SpoolId,
    config: Config,
    /// By number, without gaps, never empty.
    segments: Mutex<BTreeMap<u64, Arc<Segment>>>,
    tail: watch::Receiver<Lsn>,
    /// Where the last transaction that is shown ends in its origin's WAL.
    tail_end: AtomicU64,
}

impl Shared {
    /// To be told behind the tail itself: whoever reads the end first has what ends there.
    fn tail_ends(&self, end_lsn: Lsn) {
        self.tail_end.store(end_lsn.0, Ordering::Release);
    }

    fn segments(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Segment>>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The earliest position after which can be read.
    fn first_available(&self) -> Lsn {
        self.segments().values().next().map(|oldest| oldest.before).unwrap_or_default()
    }
}

impl Spool {
    /// Whose transactions these are.
    pub fn id(&self) -> SpoolId {
        self.shared.id
    }

    /// A reader of all transactions whose commit LSN is after `lsn`. If there is none yet it waits for them.
    ///
    /// # Errors
    /// [`SpoolError::Gone`] when some of them were deleted; [`SpoolError::Io`].
    pub fn reader_after(&self, lsn: Lsn) -> Result<Reader, SpoolError> {
        Reader::after(self.shared.clone(), lsn)
    }

    /// Deletes every segment that has only transactions with commit LSNs up to `through`, except the last segment.
    /// Answers the bytes freed. Readers that still need one of them end with [`SpoolError::Gone`].
    ///
    /// # Errors
    /// [`SpoolError::Io`] when a file cannot be deleted; it and all later ones are kept.
    pub fn trim(&self, through: Lsn) -> Result<u64, SpoolError> {
        let mut freed = 0;
        self.delete_oldest(|_, next| next.before <= through, |bytes| freed += bytes)?;
        Ok(freed)
    }

    /// Deletes the oldest segments, except the last one, while all take more than [`Config::bytes_max`]. Answers the
    /// last commit LSN that is gone by it, if any: whoever has not applied it must be re-seeded.
    ///
    /// # Errors
    /// [`SpoolError::Io`] when a file cannot be deleted; it and all later ones are kept.
    pub fn enforce_limit(&self) -> Result<Option<Lsn>, SpoolError> {
        let mut gone = None;
        let bytes_max = self.shared.config.bytes_max;
        self.delete_oldest(
            |bytes, next| {
                let over = bytes > bytes_max;
                gone = if over { Some(next.before) } else { gone };
                over
            },
            |_| {},
        )?;
        Ok(gone)
    }

    /// The commit LSN of the last transaction before `lsn`, which need not be kept itself.
    ///
    /// # Errors
    /// [`SpoolError::Gone`] when more than that was deleted; [`SpoolError::Io`] and [`SpoolError::Corrupt`].
    pub fn commit_before(&self, lsn: Lsn) -> Result<Lsn, SpoolError> {
        let begins = self.shared.segments().values().rev().map(|segment| segment.before).find(
            // What is before the first segment is before everything.
            |before| *before < lsn || *before == Lsn::ZERO,
        );
        let gone = || SpoolError::Gone { first_available: self.first_available() };
        let mut last = begins.ok_or_else(gone)?;
        let mut reader = self.reader_after(last)?;
        while let Some(frame) = reader.try_next()? {
            match frame.commit_lsn() {
                Some(commit_lsn) if commit_lsn < lsn => last = commit_lsn,
                Some(_) => break,
                None => {}
            }
        }
        Ok(last)
    }

    /// What the segments take on the disk, in bytes.
    pub fn bytes(&self) -> u64 {
        self.shared.segments().values().map(|segment| segment.end()).sum()
    }

    /// The earliest position after which can be read.
    pub fn first_available(&self) -> Lsn {
        self.shared.first_available()
    }

    /// Follows the commit LSN of the last complete transaction.
    pub fn tail_watch(&self) -> watch::Receiver<Lsn> {
        self.shared.tail.clone()
    }

    /// Everything that its origin has committed before this is in the spool and shown.
    pub fn tail_end(&self) -> Lsn {
        Lsn(self.shared.tail_end.load(Ordering::Acquire))
    }

    /// Deletes from the oldest on while `delete(bytes of all, successor)` says so.
    fn delete_oldest(
        &self,
        mut delete: impl FnMut(u64, &Segment) -> bool,
        mut deleted: impl FnMut(u64),
    ) -> Result<(), SpoolError> {
        let mut segments = self.shared.segments();
        let mut bytes: u64 = segments.values().map(|segment| segment.end()).sum();
        loop {
            let mut oldest = segments.values();
            let (Some(first), Some(next)) = (oldest.next().cloned(), oldest.next()) else {
                return Ok(());
            };
            if !delete(bytes, next) {
                return Ok(());
            }
            match std::fs::remove_file(&first.path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(SpoolError::io("delete", &first.path, source)),
            }
            segments.remove(&first.number);
            bytes -= first.end();
            deleted(first.end());
        }
    }
}
