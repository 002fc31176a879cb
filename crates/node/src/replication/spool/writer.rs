//! Appends transactions to a spool: built here from messages, or received from a peer frame by frame.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;
use tokio::sync::watch;

use super::durable::{Durable, Position};
use super::frame::{Builder, Frame};
use super::segment::{self, HEADER_BYTES, Index, Segment, SegmentHeader};
use super::{Header, Shared, SpoolError, Tail};

/// The one owner of a spool's end. It writes into the system's memory; [`Writer::sync`] makes that durable.
///
/// A transaction becomes visible to readers as a whole, by [`Writer::commit`] or by its last received frame. Whatever
/// fails before that undoes it, and the writer can be used again.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    segment: Arc<Segment>,
    file: Arc<File>,
    /// Where the next frame goes; beyond the segment's published end while a transaction is open.
    offset: u64,
    tail: Tail,
    open: Option<Open>,
    builder: Builder,
    sender: watch::Sender<Lsn>,
    durable: Arc<Durable>,
    /// Held so that nobody else writes here; the system lets it go with the process.
    lock: File,
}

/// The transaction that has been begun.
#[derive(Debug)]
struct Open {
    header: Header,
    from: From,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Messages,
    Peer,
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Closing alone would not do: a process that is being spawned at this moment holds a copy of the descriptor.
        let _ = self.lock.unlock();
    }
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        segment: Arc<Segment>,
        file: File,
        tail: Tail,
        sender: watch::Sender<Lsn>,
        durable: Arc<Durable>,
        lock: File,
    ) -> Self {
        let offset = segment.end();
        let (file, builder) = (Arc::new(file), Builder::default());
        Self { shared, segment, file, offset, tail, open: None, builder, sender, durable, lock }
    }

    /// Where the complete transactions end.
    pub fn tail(&self) -> Tail {
        self.tail.clone()
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`SpoolError::OutOfOrder`] unless its commit LSN is after that of the tail; [`SpoolError::Misuse`] while
    /// another is open, and that one stays; [`SpoolError::DiskFull`], [`SpoolError::Io`] and [`SpoolError::Failed`].
    pub fn begin(&mut self, header: &Header) -> Result<(), SpoolError> {
        self.idle()?;
        self.follows(header.commit_lsn)?;
        self.rotate_if_full()?;
        self.builder.start(Some(header));
        self.open = Some(Open { header: header.clone(), from: From::Messages });
        Ok(())
    }

    /// Adds a message to the open transaction, as the logical replication stream gave it.
    ///
    /// # Errors
    /// [`SpoolError::Misuse`] when none is open; [`SpoolError::TooLarge`], [`SpoolError::DiskFull`] and
    /// [`SpoolError::Io`], after which none is open.
    pub fn message(&mut self, message: &[u8]) -> Result<(), SpoolError> {
        self.building()?;
        let full = self.builder.with(message.len()) > self.shared.config.frame_bytes as u64;
        if full && self.builder.messages() > 0 {
            self.flush(None)?;
            self.builder.start(None);
        }
        let (got, max) = (self.builder.with(message.len()), self.frame_bytes_max());
        if got > max {
            self.roll_back();
            return Err(SpoolError::TooLarge { got, max });
        }
        self.builder.message(message);
        Ok(())
    }

    /// Completes the open transaction, which ends before `end_lsn` in its origin's WAL, and shows it to the readers.
    ///
    /// # Errors
    /// [`SpoolError::Misuse`] when none is open; [`SpoolError::DiskFull`] and [`SpoolError::Io`], after which none is
    /// open and it can be begun again.
    pub fn commit(&mut self, end_lsn: Lsn) -> Result<(), SpoolError> {
        self.building()?;
        self.flush(Some(end_lsn))?;
        self.builder.clear();
        self.complete(end_lsn);
        Ok(())
    }

    /// Undoes the open transaction, if there is one.
    pub fn abort(&mut self) {
        let written = self.offset != self.segment.end();
        self.open = None;
        self.builder.clear();
        if written {
            self.roll_back();
        }
    }

    /// Moves the tail's end LSN and vector without a transaction: the origin's WAL up to `lsn` held nothing to keep.
    /// A checkpoint that moves nothing is not written.
    ///
    /// # Errors
    /// [`SpoolError::Misuse`] while a transaction is open; [`SpoolError::DiskFull`], [`SpoolError::Io`] and
    /// [`SpoolError::Failed`].
    pub fn checkpoint(&mut self, lsn: Lsn, vector: &VersionVector) -> Result<(), SpoolError> {
        self.idle()?;
        let lsn = lsn.max(self.tail.end_lsn);
        if lsn == self.tail.end_lsn && *vector == self.tail.vector {
            return Ok(());
        }
        self.rotate_if_full()?;
        self.builder.checkpoint(lsn, vector);
        self.write_built()?;
        self.builder.clear();
        self.segment.publish(self.offset);
        self.tail.end_lsn = lsn;
        self.tail.vector = vector.clone();
        Ok(())
    }

    /// Makes an empty spool begin after `tail` instead of at zero: its readers must have all up to there.
    ///
    /// # Errors
    /// [`SpoolError::Misuse`] when it holds or held a transaction or one is open; [`SpoolError::DiskFull`],
    /// [`SpoolError::Io`] and [`SpoolError::Failed`].
    pub fn start_at(&mut self, tail: &Tail) -> Result<(), SpoolError> {
        self.idle()?;
        if self.tail.commit_lsn != Lsn::ZERO {
            return Err(SpoolError::Misuse("cannot move the start of a spool that is not empty"));
        }
        let old = std::mem::replace(&mut self.tail, tail.clone());
        if let Err(error) = self.rotate() {
            self.tail = old;
            return Err(error);
        }
        self.sender.send_replace(tail.commit_lsn);
        let emptied = super::Spool { shared: self.shared.clone() };
        emptied.trim(tail.commit_lsn).map(|_| ())
    }

    /// Appends a frame that a peer sent, as it is. Answers the commit LSN when that completes a transaction.
    ///
    /// # Errors
    /// [`SpoolError::FrameRefused`] unless it is a whole frame with the right checksum that continues the open
    /// transaction or begins one, and no checkpoint; [`SpoolError::OutOfOrder`]; [`SpoolError::Misuse`] within a
    /// transaction that was begun by [`Writer::begin`]. These change nothing. [`SpoolError::DiskFull`] and
    /// [`SpoolError::Io`] undo the transaction: its first frame must come again. [`SpoolError::Failed`].
    pub fn append_frame(&mut self, raw: &[u8]) -> Result<Option<Lsn>, SpoolError> {
        self.durable.usable()?;
        if raw.len() as u64 > self.frame_bytes_max() {
            let what = format!("it has {} bytes, which exceeds frame_bytes_max", raw.len());
            return Err(SpoolError::FrameRefused(what));
        }
        let frame = Frame::parse(Bytes::copy_from_slice(raw))
            .map_err(|error| SpoolError::FrameRefused(error.to_string()))?;
        let refuse = |what: &str| Err(SpoolError::FrameRefused(what.to_owned()));
        if frame.checkpoint().is_some() {
            return refuse("it is a checkpoint, which no peer sends");
        }
        match (self.open.as_ref().map(|open| open.from), frame.header()) {
            (Some(From::Messages), _) => {
                return Err(SpoolError::Misuse("has a transaction of its own open"));
            }
            (Some(From::Peer), Some(_)) => {
                return refuse("it begins a transaction within another");
            }
            (None, None) => return refuse("it continues a transaction that was not begun"),
            (None, Some(header)) => {
                self.follows(header.commit_lsn)?;
                self.rotate_if_full()?;
                self.open = Some(Open { header, from: From::Peer });
            }
            (Some(From::Peer), None) => {}
        }
        self.write(raw)?;
        Ok(frame.end_lsn().map(|end_lsn| self.complete(end_lsn)))
    }

    /// Waits until everything that was complete at the call is on the disk, and answers where that ends. The waiting
    /// happens off the async threads and without the writer, which can go on meanwhile.
    ///
    /// # Errors
    /// [`SpoolError::Io`] and [`SpoolError::DiskFull`] when the disk failed; it is unknown then what of it is durable,
    /// so that every later call that would write answers [`SpoolError::Failed`] until the spool is opened again.
    pub fn sync(&self) -> impl Future<Output = Result<Tail, SpoolError>> + Send + use<> {
        let tail = self.tail.clone();
        let (file, segment) = (self.file.clone(), self.segment.clone());
        let position = Position { segment: segment.number, offset: segment.end() };
        let durable = self.durable.clone();
        async move {
            if durable.covers(position)? {
                return Ok(tail);
            }
            let path = segment.path.clone();
            tokio::task::spawn_blocking(move || durable.sync(&file, &segment.path, position))
                .await
                .map_err(|stopped| SpoolError::io("sync", &path, io::Error::other(stopped)))??;
            Ok(tail)
        }
    }

    fn frame_bytes_max(&self) -> u64 {
        self.shared.config.frame_bytes_max.min(u64::from(u32::MAX))
    }

    fn idle(&self) -> Result<(), SpoolError> {
        self.durable.usable()?;
        match self.open {
            Some(_) => Err(SpoolError::Misuse("has a transaction open already")),
            None => Ok(()),
        }
    }

    fn building(&self) -> Result<(), SpoolError> {
        match self.open.as_ref().map(|open| open.from) {
            Some(From::Messages) => Ok(()),
            Some(From::Peer) => Err(SpoolError::Misuse("is receiving a transaction from a peer")),
            None => Err(SpoolError::Misuse("has no transaction open")),
        }
    }

    fn follows(&self, commit_lsn: Lsn) -> Result<(), SpoolError> {
        let last = self.tail.commit_lsn;
        if commit_lsn > last {
            Ok(())
        } else {
            Err(SpoolError::OutOfOrder { last, got: commit_lsn })
        }
    }

    /// Writes the frame that was built.
    fn flush(&mut self, end_lsn: Option<Lsn>) -> Result<(), SpoolError> {
        self.builder.seal(end_lsn);
        self.write_built()
    }

    fn write_built(&mut self) -> Result<(), SpoolError> {
        let builder = std::mem::take(&mut self.builder);
        let written = self.write(builder.sealed());
        self.builder = builder;
        written
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        match self.file.write_all_at(bytes, self.offset) {
            Ok(()) => {
                self.offset += bytes.len() as u64;
                Ok(())
            }
            Err(source) => {
                self.roll_back();
                Err(SpoolError::io("write", &self.segment.path, source))
            }
        }
    }

    /// Cuts the file back to its last complete transaction.
    fn roll_back(&mut self) {
        self.open = None;
        self.builder.clear();
        self.offset = self.segment.end();
        if let Err(error) = self.file.set_len(self.offset) {
            let file = self.segment.path.display();
            tracing::error!(%file, "cannot cut off an unfinished transaction: {error}");
            self.durable.fail(&self.segment.path);
        }
    }

    fn complete(&mut self, end_lsn: Lsn) -> Lsn {
        self.segment.publish(self.offset);
        if let Some(Open { header, .. }) = self.open.take() {
            let Header { commit_lsn, vector, .. } = header;
            self.tail = Tail { commit_lsn, end_lsn, vector };
            self.segment.note(commit_lsn, self.offset);
        }
        self.sender.send_replace(self.tail.commit_lsn);
        self.tail.commit_lsn
    }

    fn rotate_if_full(&mut self) -> Result<(), SpoolError> {
        let full = self.offset >= self.shared.config.segment_bytes && self.offset > HEADER_BYTES;
        if full { self.rotate() } else { Ok(()) }
    }

    /// Makes the next segment. This one is made durable first, which also holds the caller up for that long; where the
    /// spool is synced often, little is left to do.
    fn rotate(&mut self) -> Result<(), SpoolError> {
        let position = Position { segment: self.segment.number, offset: self.offset };
        self.durable.sync(&self.file, &self.segment.path, position)?;
        let header = SegmentHeader {
            id: self.shared.id,
            number: self.segment.number + 1,
            previous_bytes: self.offset,
            before: self.tail.clone(),
        };
        let (path, file) = segment::create(&self.shared.dir, &header)?;
        let next = Arc::new(Segment::last(path, &header, HEADER_BYTES, Index::default()));
        self.shared.segments().insert(next.number, next.clone());
        self.segment.seal();
        (self.segment, self.file, self.offset) = (next, Arc::new(file), HEADER_BYTES);
        Ok(())
    }
}
