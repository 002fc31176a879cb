//! Where a lane takes its frames from: those that were read ahead of their turn, and then the spool.

use std::collections::VecDeque;

use anyhow::{Result, bail};

use crate::replication::spool::{Frame, Reader};

/// The frames of one origin, in order.
pub(super) struct Feed {
    /// Of a transaction that was read before.
    back: VecDeque<Frame>,
    /// A worker has none: it is given its frames.
    reader: Option<Reader>,
}

impl Feed {
    /// Follows a spool.
    pub(super) fn new(reader: Reader) -> Self {
        Self { back: VecDeque::new(), reader: Some(reader) }
    }

    /// Has nothing by itself.
    pub(super) fn nothing() -> Self {
        Self { back: VecDeque::new(), reader: None }
    }

    /// These are next.
    pub(super) fn put_back(&mut self, frames: Vec<Frame>) {
        frames.into_iter().rev().for_each(|frame| self.back.push_front(frame));
    }

    /// The next frame; waits until there is one. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Frame> {
        match (self.back.pop_front(), &mut self.reader) {
            (Some(frame), _) => Ok(frame),
            (None, Some(reader)) => Ok(reader.next().await?),
            (None, None) => bail!("a worker was given a transaction without its end"),
        }
    }

    /// The next frame if it is there.
    pub(super) fn try_next(&mut self) -> Result<Option<Frame>> {
        match (self.back.pop_front(), &mut self.reader) {
            (Some(frame), _) => Ok(Some(frame)),
            (None, Some(reader)) => Ok(reader.try_next()?),
            (None, None) => Ok(None),
        }
    }
}
