//! Follows a spool from any position: whole transactions, in order, verified on every read.

use std::fs::File;
use std::io;
use std::sync::Arc;

use synapsedb_core::lsn::Lsn;
use tokio::sync::watch;

use super::segment::{Frames, ReadError, Segment};
use super::{Frame, Shared, SpoolError};

/// Reads the frames of complete transactions. It keeps its segment open, so that deleting that one does not disturb it.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    tail: watch::Receiver<Lsn>,
    segment: Arc<Segment>,
    frames: Frames,
    /// The transaction read last, or being read, or the position that reading began after.
    last: Lsn,
    place: Place,
}

/// Where in the transactions a reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Between two.
    Between,
    /// In one that is being handed out.
    Inside,
    /// In one that is not after the position asked for.
    Skipping,
}

impl Reader {
    pub(super) fn after(shared: Arc<Shared>, lsn: Lsn) -> Result<Self, SpoolError> {
        let find = || {
            let segments = shared.segments();
            let found = segments.values().rev().find(|segment| segment.before <= lsn).cloned();
            drop(segments);
            found.ok_or_else(|| SpoolError::Gone { first_available: shared.first_available() })
        };
        let (segment, frames) = loop {
            let segment = find()?;
            match open(&shared, &segment, lsn) {
                // It was deleted since it was found; what is left now may be too late.
                Err(SpoolError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound
                        && !shared.segments().contains_key(&segment.number) => {}
                opened => break (segment, opened?),
            }
        };
        let tail = shared.tail.clone();
        Ok(Self { shared, tail, segment, frames, last: lsn, place: Place::Between })
    }

    /// The next frame; waits at the tail until a transaction is complete. Cancel safe.
    ///
    /// # Errors
    /// [`SpoolError::Corrupt`], and the same again on the next call; [`SpoolError::Gone`] when the next segment was
    /// deleted before this reader came to it; [`SpoolError::Closed`] when the writer is gone; [`SpoolError::Io`].
    pub async fn next(&mut self) -> Result<Frame, SpoolError> {
        loop {
            // Seen first and looked after: what is published in between is found by the look or wakes the wait.
            self.tail.borrow_and_update();
            let closed = self.tail.has_changed().is_err();
            if let Some(frame) = self.try_next()? {
                return Ok(frame);
            }
            if closed || self.tail.changed().await.is_err() {
                // The writer may have published its last transaction after the look and before it went.
                return self.try_next()?.ok_or(SpoolError::Closed);
            }
        }
    }

    /// The next frame if one is there.
    ///
    /// # Errors
    /// As for [`Reader::next`], except [`SpoolError::Closed`].
    pub fn try_next(&mut self) -> Result<Option<Frame>, SpoolError> {
        loop {
            let sealed = self.segment.is_sealed();
            let offset = self.frames.offset();
            match self.frames.next(self.segment.end()) {
                Ok(Some(frame)) => {
                    if self.step(&frame, offset)? {
                        return Ok(Some(frame));
                    }
                }
                Ok(None) if sealed => self.next_segment()?,
                Ok(None) => return Ok(None),
                Err(ReadError::NotAFrame(what)) => return Err(self.corrupt(offset, what)),
                Err(ReadError::Io(source)) if source.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(self.corrupt(offset, "the file is shorter than what was written"));
                }
                Err(ReadError::Io(source)) => {
                    return Err(SpoolError::io("read", &self.segment.path, source));
                }
            }
        }
    }

    /// Takes note of a frame; answers whether it is to be handed out.
    fn step(&mut self, frame: &Frame, offset: u64) -> Result<bool, SpoolError> {
        if frame.checkpoint().is_some() && self.place == Place::Between {
            return Ok(false);
        }
        if frame.is_first() != (self.place == Place::Between) {
            return Err(self.corrupt(offset, "a frame is not where it belongs"));
        }
        if let Some(commit_lsn) = frame.commit_lsn() {
            self.place = if commit_lsn > self.last { Place::Inside } else { Place::Skipping };
            self.last = self.last.max(commit_lsn);
        }
        let wanted = self.place == Place::Inside;
        if frame.is_last() {
            self.place = Place::Between;
        }
        Ok(wanted)
    }

    fn next_segment(&mut self) -> Result<(), SpoolError> {
        if self.place != Place::Between {
            let end = self.frames.offset();
            return Err(self.corrupt(end, "the segment ends within a transaction"));
        }
        let next = self.shared.segments().get(&(self.segment.number + 1)).cloned();
        let gone = || SpoolError::Gone { first_available: self.shared.first_available() };
        let next = next.ok_or_else(gone)?;
        let frames = match open(&self.shared, &next, Lsn::ZERO) {
            Err(SpoolError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound
                    && !self.shared.segments().contains_key(&next.number) =>
            {
                return Err(gone());
            }
            opened => opened?,
        };
        if next.before > self.last {
            return Err(SpoolError::corrupt(&next.path, 0, "transactions before it are missing"));
        }
        (self.segment, self.frames) = (next, frames);
        Ok(())
    }

    fn corrupt(&self, offset: u64, what: impl std::fmt::Display) -> SpoolError {
        SpoolError::corrupt(&self.segment.path, offset, what)
    }
}

fn open(shared: &Shared, segment: &Segment, after: Lsn) -> Result<Frames, SpoolError> {
    let file = File::open(&segment.path);
    let file = file.map_err(|source| SpoolError::io("open", &segment.path, source))?;
    Ok(Frames::new(Arc::new(file), segment.start(after), shared.config.frame_bytes_max))
}
