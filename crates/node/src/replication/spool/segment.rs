//! One file of the spool: its header, its name, and how its frames are read.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;

use super::frame::{self, Frame, NotAFrame};
use super::{SpoolError, SpoolId, Tail};

/// The header takes this much of a file, and frames begin after it.
pub(super) const HEADER_BYTES: u64 = 256;
/// How much is read ahead at once.
const BLOCK_BYTES: u64 = 256 * 1024;
const MAGIC: &[u8; 8] = b"SYNSPOOL";
const FORMAT: u32 = 1;
const SUFFIX: &str = ".seg";

/// What stands at the beginning of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) id: SpoolId,
    /// Segments are numbered without gaps.
    pub(super) number: u64,
    /// The bytes of the segment before it: a shorter or longer one was damaged.
    pub(super) previous_bytes: u64,
    /// Where the spool ended when the segment was begun: all its transactions are later.
    pub(super) before: Tail,
}

impl SegmentHeader {
    fn encode(&self) -> BytesMut {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES as usize);
        bytes.put_slice(MAGIC);
        bytes.put_u32_le(FORMAT);
        bytes.put_slice(self.id.cluster.as_bytes());
        bytes.put_u16_le(self.id.origin.get());
        bytes.put_u32_le(self.id.incarnation.0);
        bytes.put_u64_le(self.number);
        bytes.put_u64_le(self.previous_bytes);
        bytes.put_u64_le(self.before.commit_lsn.0);
        bytes.put_u64_le(self.before.end_lsn.0);
        frame::write_vector(&mut bytes, &self.before.vector);
        bytes.resize(HEADER_BYTES as usize - 4, 0);
        let checksum = crc32c::crc32c(&bytes);
        bytes.put_u32_le(checksum);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (content, mut checksum) = bytes.split_at(HEADER_BYTES as usize - 4);
        if !content.starts_with(MAGIC) {
            return Err("it is no spool segment");
        }
        if crc32c::crc32c(content) != checksum.get_u32_le() {
            return Err("the checksum of its header does not match");
        }
        let mut rest = &content[MAGIC.len()..];
        if rest.get_u32_le() != FORMAT {
            return Err("it has a format that this version does not know");
        }
        let cluster = uuid::Uuid::from_u128(rest.get_u128());
        let origin = NodeId::new(rest.get_u16_le()).ok_or("its origin is no node")?;
        let incarnation = Incarnation(rest.get_u32_le());
        let (number, previous_bytes) = (rest.get_u64_le(), rest.get_u64_le());
        let (commit_lsn, end_lsn) = (Lsn(rest.get_u64_le()), Lsn(rest.get_u64_le()));
        let (vector, _) = frame::read_vector(rest, 0).ok_or("its version vector is malformed")?;
        let before = Tail { commit_lsn, end_lsn, vector };
        let id = SpoolId { cluster, origin, incarnation };
        Ok(Self { id, number, previous_bytes, before })
    }
}

/// Where some of a segment's transactions end, so that a reader need not begin at the start.
#[derive(Debug, Default)]
pub(super) struct Index(Vec<(Lsn, u64)>);

impl Index {
    /// Notes that the transaction with `commit_lsn` ends at `end`, if that is far enough from the last note.
    pub(super) fn note(&mut self, commit_lsn: Lsn, end: u64) {
        let last = self.0.last().map_or(HEADER_BYTES, |&(_, end)| end);
        if end >= last + BLOCK_BYTES {
            self.0.push((commit_lsn, end));
        }
    }

    /// Where to begin for what is after `lsn`: not far before it.
    fn start(&self, lsn: Lsn) -> u64 {
        let later = self.0.partition_point(|&(commit_lsn, _)| commit_lsn <= lsn);
        self.0[..later].last().map_or(HEADER_BYTES, |&(_, end)| end)
    }
}

/// A segment that writer and readers share.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    /// The last transaction before this segment.
    pub(super) before: Lsn,
    /// Up to here there are whole transactions and checkpoints only; beyond it the writer may be at work.
    end: AtomicU64,
    sealed: AtomicBool,
    /// Empty for a segment that an earlier process completed.
    index: Mutex<Index>,
}

impl Segment {
    /// A segment that an earlier process completed.
    pub(super) fn sealed(path: PathBuf, header: &SegmentHeader, end: u64) -> Self {
        let segment = Self::last(path, header, end, Index::default());
        segment.seal();
        segment
    }

    /// The segment that is written to.
    pub(super) fn last(path: PathBuf, header: &SegmentHeader, end: u64, index: Index) -> Self {
        Self {
            number: header.number,
            path,
            before: header.before.commit_lsn,
            end: AtomicU64::new(end),
            sealed: AtomicBool::new(false),
            index: Mutex::new(index),
        }
    }

    /// Notes where a transaction ends.
    pub(super) fn note(&self, commit_lsn: Lsn, end: u64) {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).note(commit_lsn, end);
    }

    /// Where to begin for what is after `lsn`.
    pub(super) fn start(&self, lsn: Lsn) -> u64 {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).start(lsn)
    }

    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    pub(super) fn publish(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    /// Says that nothing more will be written to it. Its successor is listed before this is said.
    pub(super) fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    /// Asked before [`Segment::end`], a yes means that the end is final.
    pub(super) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }
}

pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}{SUFFIX}"))
}

/// The number in a segment's file name.
pub(super) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX).filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Makes a segment so that after any crash it is there with its whole header, or not at all.
pub(super) fn create(dir: &Path, header: &SegmentHeader) -> Result<(PathBuf, File), SpoolError> {
    let path = path(dir, header.number);
    let unfinished = path.with_extension("tmp");
    let make = || -> io::Result<File> {
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(&unfinished)?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync_data()?;
        fs::rename(&unfinished, &path)?;
        File::open(dir)?.sync_all()?;
        Ok(file)
    };
    match make() {
        Ok(file) => Ok((path, file)),
        Err(source) => {
            // What is left of it would be in the way of nobody; it is removed to give back its space.
            let _ = fs::remove_file(&unfinished);
            let _ = fs::remove_file(&path);
            Err(SpoolError::io("create", &path, source))
        }
    }
}

/// Reads a segment's header.
pub(super) fn read_header(path: &Path, file: &File) -> Result<SegmentHeader, SpoolError> {
    let mut bytes = [0; HEADER_BYTES as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => SpoolError::corrupt(path, 0, "its header is cut short"),
        _ => SpoolError::io("read", path, source),
    })?;
    SegmentHeader::decode(&bytes).map_err(|what| SpoolError::corrupt(path, 0, what))
}

/// Why no frame could be read.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    NotAFrame(NotAFrame),
}

/// Reads the frames of one segment in order, in large blocks.
#[derive(Debug)]
pub(super) struct Frames {
    file: Arc<File>,
    /// Where the next frame begins.
    offset: u64,
    /// Bytes of the file from `offset` on that were read ahead.
    block: Bytes,
    frame_bytes_max: u64,
}

impl Frames {
    /// Reads from `offset` on, where a frame must begin.
    pub(super) fn new(file: Arc<File>, offset: u64, frame_bytes_max: u64) -> Self {
        Self { file, offset, block: Bytes::new(), frame_bytes_max }
    }

    /// Where the next frame begins.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next frame before `end`; `None` at the end. After an error it stays where it is.
    pub(super) fn next(&mut self, end: u64) -> Result<Option<Frame>, ReadError> {
        let left = end.saturating_sub(self.offset);
        if left == 0 {
            return Ok(None);
        }
        let too_long = |expected| ReadError::NotAFrame(NotAFrame::Length { expected, got: left });
        if self.block.len() < frame::LENGTH_BYTES {
            self.fill(left, frame::LENGTH_BYTES as u64)?;
        }
        let whole = frame::whole_bytes(&self.block).ok_or(too_long(frame::LENGTH_BYTES as u64))?;
        if whole > left || whole > self.frame_bytes_max {
            return Err(too_long(whole));
        }
        if (self.block.len() as u64) < whole {
            self.fill(left, whole)?;
        }
        let raw = self.block.slice(..whole as usize);
        let frame = Frame::parse(raw).map_err(ReadError::NotAFrame)?;
        self.block.advance(whole as usize);
        self.offset += whole;
        Ok(Some(frame))
    }

    /// Reads on, so that the block has `need` of the `left` bytes, and a good deal more where there is more.
    fn fill(&mut self, left: u64, need: u64) -> Result<(), ReadError> {
        let target = left.min(need.max(BLOCK_BYTES)) as usize;
        let have = self.block.len();
        let mut block = BytesMut::zeroed(target);
        block[..have].copy_from_slice(&self.block);
        self.file
            .read_exact_at(&mut block[have..], self.offset + have as u64)
            .map_err(ReadError::Io)?;
        self.block = block.freeze();
        Ok(())
    }
}
