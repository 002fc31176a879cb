//! Appends transactions to a spool: built here from messages, or received from a peer frame by frame.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;
use tokio::sync::watch;

use super::durable::{Durable, Position};
use super::frame::{Builder, Frame};
use super::segment::{self, HEADER_BYTES, Index, Segment, SegmentHeader};
use super::{Header, Shared, SpoolError, Tail};

/// The one owner of a spool's end. It writes into the system's memory; [`Writer::sync`] makes that durable.
///
/// A transaction becomes visible to readers as a whole by [`Writer::show`], which costs one write for all that were
/// completed since the last. Whatever fails before that undoes what was not shown, and the writer can be used again.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    segment: Arc<Segment>,
    file: Arc<File>,
    /// The end of what is in the file; beyond the segment's published end while a transaction is open.
    written: u64,
    /// Frames that follow in the file and are not written yet.
    held: BytesMut,
    /// Where the complete transactions end, shown or not.
    complete_end: u64,
    tail: Tail,
    /// The tail that readers see.
    shown: Tail,
    open: Option<Open>,
    builder: Builder,
    sender: watch::Sender<Lsn>,
    durable: Arc<Durable>,
    /// Held so that nobody else writes here; the system lets it go with the process.
    lock: File,
}

/// So many frames of the usual size are written together, or fewer when they are shown.
const HELD_FRAMES: usize = 4;

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
        let end = segment.end();
        Self {
            shared,
            segment,
            file: Arc::new(file),
            written: end,
            held: BytesMut::new(),
            complete_end: end,
            shown: tail.clone(),
            tail,
            open: None,
            builder: Builder::default(),
            sender,
            durable,
            lock,
        }
    }

    /// Where the complete transactions end, shown or not.
    pub fn tail(&self) -> Tail {
        self.tail.clone()
    }

    /// The commit LSN of the tail.
    pub fn tail_commit_lsn(&self) -> Lsn {
        self.tail.commit_lsn
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
            self.abort();
            return Err(SpoolError::TooLarge { got, max });
        }
        self.builder.message(message);
        Ok(())
    }

    /// Completes the open transaction, which ends before `end_lsn` in its origin's WAL. Readers see it after
    /// [`Writer::show`].
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

    /// Writes what is complete and shows it to the readers.
    ///
    /// # Errors
    /// [`SpoolError::DiskFull`] and [`SpoolError::Io`], after which nothing is open and the tail is what was shown
    /// last: what came after it can be begun again.
    pub fn show(&mut self) -> Result<(), SpoolError> {
        if self.complete_end == self.segment.end() {
            return Ok(());
        }
        self.write_held()?;
        self.segment.publish(self.complete_end);
        self.segment.note(self.tail.commit_lsn, self.complete_end);
        self.shown.clone_from(&self.tail);
        self.sender.send_replace(self.tail.commit_lsn);
        self.shared.tail_ends(self.tail.end_lsn);
        Ok(())
    }

    /// Undoes the open transaction, if there is one.
    pub fn abort(&mut self) {
        self.open = None;
        self.builder.clear();
        if self.written > self.complete_end {
            self.held.clear();
            self.cut(self.complete_end);
        } else {
            let held = self.complete_end - self.written;
            self.held.truncate(usize::try_from(held).unwrap_or(usize::MAX));
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
        self.show()?;
        self.builder.checkpoint(lsn, vector);
        self.put_built()?;
        self.builder.clear();
        self.write_held()?;
        self.complete_end = self.end();
        self.segment.publish(self.complete_end);
        self.tail.end_lsn = lsn;
        self.tail.vector = vector.clone();
        self.shown.clone_from(&self.tail);
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
        self.shown.clone_from(&self.tail);
        self.sender.send_replace(tail.commit_lsn);
        self.shared.tail_ends(tail.end_lsn);
        let emptied = super::Spool { shared: self.shared.clone() };
        emptied.trim(tail.commit_lsn).map(|_| ())
    }

    /// Appends a frame that a peer sent, as it is. Answers the commit LSN when that completes a transaction,
    /// which readers see after [`Writer::show`].
    ///
    /// # Errors
    /// [`SpoolError::FrameRefused`] unless it is a whole frame with the right checksum that continues the open
    /// transaction or begins one, and no checkpoint; what `check` says of it; [`SpoolError::OutOfOrder`];
    /// [`SpoolError::Misuse`] within a transaction that was begun by [`Writer::begin`]. These change nothing.
    /// [`SpoolError::DiskFull`] and [`SpoolError::Io`] undo the transaction: its first frame must come again.
    /// [`SpoolError::Failed`].
    pub fn append_frame(
        &mut self,
        raw: &Bytes,
        check: impl FnOnce(&Frame) -> Result<(), SpoolError>,
    ) -> Result<Option<Lsn>, SpoolError> {
        self.durable.usable()?;
        if raw.len() as u64 > self.frame_bytes_max() {
            let what = format!("it has {} bytes, which exceeds frame_bytes_max", raw.len());
            return Err(SpoolError::FrameRefused(what));
        }
        let frame = Frame::parse(raw.clone())
            .map_err(|error| SpoolError::FrameRefused(error.to_string()))?;
        check(&frame)?;
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
        self.put(raw)?;
        Ok(frame.end_lsn().map(|end_lsn| self.complete(end_lsn)))
    }

    /// Waits until everything that was shown at the call is on the disk, and answers where that ends. The waiting
    /// happens off the async threads and without the writer, which can go on meanwhile.
    ///
    /// # Errors
    /// [`SpoolError::Io`] and [`SpoolError::DiskFull`] when the disk failed; it is unknown then what of it is durable,
    /// so that every later call that would write answers [`SpoolError::Failed`] until the spool is opened again.
    pub fn sync(&self) -> impl Future<Output = Result<Tail, SpoolError>> + Send + use<> {
        let tail = self.shown.clone();
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

    /// Appends the frame that was built.
    fn flush(&mut self, end_lsn: Option<Lsn>) -> Result<(), SpoolError> {
        self.builder.seal(end_lsn);
        self.put_built()
    }

    fn put_built(&mut self) -> Result<(), SpoolError> {
        let builder = std::mem::take(&mut self.builder);
        let put = self.put(builder.sealed());
        self.builder = builder;
        put
    }

    /// Where the next frame goes.
    fn end(&self) -> u64 {
        self.written + self.held.len() as u64
    }

    fn put(&mut self, frame: &[u8]) -> Result<(), SpoolError> {
        self.held.extend_from_slice(frame);
        if self.held.len() < self.held_bytes_max() { Ok(()) } else { self.write_held() }
    }

    fn held_bytes_max(&self) -> usize {
        HELD_FRAMES * self.shared.config.frame_bytes
    }

    fn write_held(&mut self) -> Result<(), SpoolError> {
        match self.file.write_all_at(&self.held, self.written) {
            Ok(()) => {
                self.written = self.end();
                if self.held.capacity() > 2 * self.held_bytes_max() {
                    self.held = BytesMut::new();
                }
                self.held.clear();
                Ok(())
            }
            Err(source) => {
                self.roll_back();
                Err(SpoolError::io("write", &self.segment.path, source))
            }
        }
    }

    /// Forgets everything that was not shown.
    fn roll_back(&mut self) {
        self.open = None;
        self.builder.clear();
        self.held.clear();
        self.tail.clone_from(&self.shown);
        self.complete_end = self.segment.end();
        self.cut(self.complete_end);
    }

    /// Cuts the file.
    fn cut(&mut self, end: u64) {
        self.written = end;
        if let Err(error) = self.file.set_len(end) {
            let file = self.segment.path.display();
            tracing::error!(%file, "cannot cut off an unfinished transaction: {error}");
            self.durable.fail(&self.segment.path);
        }
    }

    fn complete(&mut self, end_lsn: Lsn) -> Lsn {
        if let Some(Open { header, .. }) = self.open.take() {
            let Header { commit_lsn, vector, .. } = header;
            self.tail = Tail { commit_lsn, end_lsn, vector };
        }
        self.complete_end = self.end();
        self.tail.commit_lsn
    }

    fn rotate_if_full(&mut self) -> Result<(), SpoolError> {
        let end = self.end();
        if end < self.shared.config.segment_bytes || end <= HEADER_BYTES {
            return Ok(());
        }
        self.show()?;
        self.rotate()
    }

    /// Makes the next segment. This one is made durable first, which also holds the caller up for that long; where the
    /// spool is synced often, little is left to do.
    fn rotate(&mut self) -> Result<(), SpoolError> {
        let position = Position { segment: self.segment.number, offset: self.written };
        self.durable.sync(&self.file, &self.segment.path, position)?;
        let header = SegmentHeader {
            id: self.shared.id,
            number: self.segment.number + 1,
            previous_bytes: self.written,
            before: self.tail.clone(),
        };
        let (path, file) = segment::create(&self.shared.dir, &header)?;
        let next = Arc::new(Segment::last(path, &header, HEADER_BYTES, Index::default()));
        self.shared.segments().insert(next.number, next.clone());
        self.segment.seal();
        (self.segment, self.file) = (next, Arc::new(file));
        (self.written, self.complete_end) = (HEADER_BYTES, HEADER_BYTES);
        Ok(())
    }
}
