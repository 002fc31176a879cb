//! How far a spool is on the disk for certain: in memory for the writer, and in a small file for recovery.
//!
//! Without the file, a flipped bit in the last frame would look like a frame that was torn by a crash, and a
//! transaction that peers and the replication slot rely on would be cut off in silence.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Buf as _;

use super::SpoolError;

/// The name of the file.
pub(super) const NAME: &str = "durable";
const BYTES: usize = 20;

/// A place in a spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// The number of the segment; zero is before all.
    pub(super) segment: u64,
    /// Bytes from its start.
    pub(super) offset: u64,
}

/// What is durable, shared by the writer and the syncs it has started.
#[derive(Debug)]
pub(super) struct Durable {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    through: Position,
    /// After a failed sync the system may have dropped what it could not write, so that a later success tells nothing.
    failed: Option<PathBuf>,
}

impl Durable {
    /// Opens the file in `dir`, and answers what it says.
    pub(super) fn open(dir: &Path) -> Result<(Self, Position), SpoolError> {
        let path = dir.join(NAME);
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).open(&path)
        };
        let file = open().map_err(|source| SpoolError::io("open", &path, source))?;
        let mut bytes = [0; BYTES];
        let length = file.metadata().map_err(|source| SpoolError::io("read", &path, source))?.len();
        // A crash may leave the file without content; then it says nothing.
        if length > 0 {
            let read = file.read_exact_at(&mut bytes, 0);
            read.map_err(|_| SpoolError::corrupt(&path, 0, "it is cut short"))?;
        }
        let position = if bytes == [0; BYTES] { Some(Position::default()) } else { decode(&bytes) };
        let what = "its checksum does not match";
        let position = position.ok_or_else(|| SpoolError::corrupt(&path, 0, what))?;
        // This process has synced nothing: what the last one wrote may still be in memory only.
        Ok((Self { file, state: Mutex::default() }, position))
    }

    /// Refuses when the disk failed earlier.
    pub(super) fn usable(&self) -> Result<(), SpoolError> {
        self.covers(Position::default()).map(|_| ())
    }

    /// Whether all before `position` is durable.
    pub(super) fn covers(&self, position: Position) -> Result<bool, SpoolError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &state.failed {
            Some(file) => Err(SpoolError::Failed { file: file.clone() }),
            None => Ok(state.through >= position),
        }
    }

    /// Waits until all that is in `file`, the segment at `path`, is on the disk, and notes `position` as durable.
    pub(super) fn sync(
        &self,
        file: &File,
        path: &Path,
        position: Position,
    ) -> Result<(), SpoolError> {
        if self.covers(position)? {
            return Ok(());
        }
        if let Err(source) = file.sync_data() {
            self.fail(path);
            return Err(SpoolError::io("sync", path, source));
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if position > state.through {
            state.through = position;
            // An older note only makes recovery less strict, so neither a failure nor a crash here does harm.
            let _ = self.file.write_all_at(&encode(position), 0);
        }
        Ok(())
    }

    /// Refuses everything from now on.
    pub(super) fn fail(&self, path: &Path) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.failed.get_or_insert_with(|| path.to_owned());
    }
}

fn encode(position: Position) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&position.segment.to_le_bytes());
    bytes[8..16].copy_from_slice(&position.offset.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..16]);
    bytes[16..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn decode(mut bytes: &[u8]) -> Option<Position> {
    let checksum = crc32c::crc32c(bytes.get(..16)?);
    let position = Position { segment: bytes.get_u64_le(), offset: bytes.get_u64_le() };
    (bytes.get_u32_le() == checksum).then_some(position)
}
