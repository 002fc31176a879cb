//! Opens a spool after any end of the last process: cuts off what was torn, refuses what was damaged.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::durable::{Durable, Position};
use super::frame::{self, Frame};
use super::segment::{self, Frames, HEADER_BYTES, Index, ReadError, Segment, SegmentHeader};
use super::{Config, Shared, Spool, SpoolError, SpoolId, Tail, Writer};

/// How much is searched for whole frames behind a broken one. A torn write is never longer than one frame.
const SEARCH_BYTES_MAX: u64 = 64 << 20;

/// Opens the spool in `dir`, and makes it if there is none.
///
/// A frame that was torn by a crash, and a transaction without its last frame, are cut off. The last segment is
/// verified whole; of the others the headers and lengths, and the rest whenever it is read.
///
/// # Errors
/// [`SpoolError::Corrupt`] when anything but a torn end is broken or missing; [`SpoolError::OtherSpool`];
/// [`SpoolError::InUse`]; [`SpoolError::Io`] and [`SpoolError::DiskFull`]. Nothing is changed then.
pub fn open(dir: &Path, id: SpoolId, config: Config) -> Result<(Writer, Spool), SpoolError> {
    fs::create_dir_all(dir).map_err(|source| SpoolError::io("create", dir, source))?;
    let lock = lock(dir)?;
    let (durable, durable_through) = Durable::open(dir)?;
    let mut headers = list(dir)?
        .into_iter()
        .map(|(number, path)| inspect(number, path, id))
        .collect::<Result<Vec<_>, _>>()?;
    connected(&headers)?;
    let (tail, last, index) = match headers.pop() {
        Some(last) => recover(last, durable_through, &config)?,
        None if durable_through.segment > 0 => {
            let path = segment::path(dir, durable_through.segment);
            return Err(SpoolError::corrupt(&path, 0, "the file is missing"));
        }
        None => begin(dir, id)?,
    };
    let mut segments: BTreeMap<u64, Arc<Segment>> = headers
        .into_iter()
        .map(|found| Arc::new(Segment::sealed(found.path, &found.header, found.bytes)))
        .map(|segment| (segment.number, segment))
        .collect();
    let segment = Arc::new(Segment::last(last.path, &last.header, last.bytes, index));
    segments.insert(segment.number, segment.clone());
    let (sender, receiver) = watch::channel(tail.commit_lsn);
    let shared = Arc::new(Shared {
        dir: dir.to_owned(),
        id,
        config,
        segments: Mutex::new(segments),
        tail: receiver,
        tail_end: AtomicU64::new(tail.end_lsn.0),
    });
    let writer =
        Writer::new(shared.clone(), segment, last.file, tail, sender, Arc::new(durable), lock);
    Ok((writer, Spool { shared }))
}

/// A segment as it was found.
struct Found {
    path: PathBuf,
    file: File,
    header: SegmentHeader,
    bytes: u64,
}

fn lock(dir: &Path) -> Result<File, SpoolError> {
    let path = dir.join("lock");
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|source| SpoolError::io("open", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SpoolError::InUse { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(SpoolError::io("lock", &path, source)),
    }
}

/// The segments by number. What a crash left of the making of one is removed.
fn list(dir: &Path) -> Result<BTreeMap<u64, PathBuf>, SpoolError> {
    let failed = |source| SpoolError::io("list", dir, source);
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(number) = segment::number(name) {
            found.insert(number, path);
        } else if name.ends_with(".tmp") {
            fs::remove_file(&path).map_err(|source| SpoolError::io("delete", &path, source))?;
        }
    }
    Ok(found)
}

fn inspect(number: u64, path: PathBuf, id: SpoolId) -> Result<Found, SpoolError> {
    let file = File::options().read(true).write(true).open(&path);
    let file = file.map_err(|source| SpoolError::io("open", &path, source))?;
    let header = segment::read_header(&path, &file)?;
    if header.id != id {
        return Err(SpoolError::OtherSpool { file: path, expected: id, found: header.id });
    }
    if header.number != number {
        return Err(SpoolError::corrupt(&path, 0, "its name is not the one it was written under"));
    }
    let metadata = file.metadata().map_err(|source| SpoolError::io("read", &path, source))?;
    Ok(Found { path, file, header, bytes: metadata.len() })
}

/// Verifies that no segment between the first and the last is missing, or is longer or shorter than it was.
fn connected(found: &[Found]) -> Result<(), SpoolError> {
    for pair in found.windows(2) {
        let [before, after] = pair else { continue };
        if after.header.number != before.header.number + 1 {
            let what =
                format!("the file before it, number {}, is missing", after.header.number - 1);
            return Err(SpoolError::corrupt(&after.path, 0, what));
        }
        if after.header.previous_bytes != before.bytes {
            let what = format!("it should have {} bytes", after.header.previous_bytes);
            return Err(SpoolError::corrupt(&before.path, before.bytes, what));
        }
    }
    Ok(())
}

fn begin(dir: &Path, id: SpoolId) -> Result<(Tail, Found, Index), SpoolError> {
    let before = Tail::default();
    let header = SegmentHeader { id, number: 1, previous_bytes: 0, before: before.clone() };
    let (path, file) = segment::create(dir, &header)?;
    Ok((before, Found { path, file, header, bytes: HEADER_BYTES }, Index::default()))
}

/// Verifies the last segment, cuts off its torn end, and answers where the spool ends.
fn recover(
    mut last: Found,
    durable: Position,
    config: &Config,
) -> Result<(Tail, Found, Index), SpoolError> {
    let file =
        last.file.try_clone().map_err(|source| SpoolError::io("open", &last.path, source))?;
    let mut frames = Frames::new(Arc::new(file), HEADER_BYTES, config.frame_bytes_max);
    let mut scan = Scan {
        tail: last.header.before.clone(),
        open: None,
        whole: HEADER_BYTES,
        index: Index::default(),
    };
    loop {
        let offset = frames.offset();
        match frames.next(last.bytes) {
            Ok(Some(frame)) => scan
                .take(&frame, frames.offset())
                .map_err(|what| SpoolError::corrupt(&last.path, offset, what))?,
            Ok(None) => break,
            Err(ReadError::Io(source)) => return Err(SpoolError::io("read", &last.path, source)),
            Err(ReadError::NotAFrame(what)) => {
                if frame_after(&last, offset)? {
                    return Err(SpoolError::corrupt(&last.path, offset, what));
                }
                break;
            }
        }
    }
    let here = Position { segment: last.header.number, offset: scan.whole };
    if here < durable {
        let what = "here it ends, and more was on the disk";
        return Err(SpoolError::corrupt(&last.path, scan.whole, what));
    }
    if scan.whole < last.bytes {
        let torn = last.bytes - scan.whole;
        tracing::info!(file = %last.path.display(), torn_bytes = torn, "cut off an unfinished transaction");
        let cut = last.file.set_len(scan.whole);
        cut.map_err(|source| SpoolError::io("truncate", &last.path, source))?;
        last.bytes = scan.whole;
    }
    Ok((scan.tail, last, scan.index))
}

/// What the frames of the last segment amount to.
struct Scan {
    tail: Tail,
    open: Option<frame::Header>,
    /// The end of the last complete transaction or checkpoint.
    whole: u64,
    index: Index,
}

impl Scan {
    fn take(&mut self, frame: &Frame, end: u64) -> Result<(), &'static str> {
        if let Some((lsn, vector)) = frame.checkpoint() {
            if self.open.is_some() {
                return Err("a checkpoint is within a transaction");
            }
            self.tail.end_lsn = lsn;
            self.tail.vector = vector;
            self.whole = end;
            return Ok(());
        }
        if frame.is_first() != self.open.is_none() {
            return Err("a frame is not where it belongs");
        }
        if let Some(header) = frame.header() {
            if header.commit_lsn <= self.tail.commit_lsn {
                return Err("a transaction is not later than the one before it");
            }
            self.open = Some(header);
        }
        if let Some(end_lsn) = frame.end_lsn()
            && let Some(header) = self.open.take()
        {
            self.tail = Tail { commit_lsn: header.commit_lsn, end_lsn, vector: header.vector };
            self.whole = end;
            self.index.note(self.tail.commit_lsn, end);
        }
        Ok(())
    }
}

/// Whether any whole frame begins after the broken one at `offset`: then it was not torn by a crash.
fn frame_after(found: &Found, offset: u64) -> Result<bool, SpoolError> {
    let length = (found.bytes - offset).min(SEARCH_BYTES_MAX);
    let mut bytes = vec![0; length as usize];
    let read = found.file.read_exact_at(&mut bytes, offset);
    read.map_err(|source| SpoolError::io("read", &found.path, source))?;
    let bytes = bytes::Bytes::from(bytes);
    let whole = |start: &usize| {
        let rest = &bytes[*start..];
        let length = frame::whole_bytes(rest).and_then(|whole| usize::try_from(whole).ok());
        let Some(length) = length.filter(|&length| length <= rest.len()) else { return false };
        Frame::parse(bytes.slice(*start..*start + length)).is_ok()
    };
    Ok((1..bytes.len()).any(|start| whole(&start)))
}
