//! The unit of the spool and of its transport: a checksummed frame with a piece of one transaction, or a checkpoint.
//!
//! ```text
//! [bytes that follow u32][crc32c of flags and body u32][flags u8][body]
//! body       = header if FIRST · ([bytes u32][message])* · end_lsn u64 if LAST
//! header     = commit_lsn u64 · commit_time i64 · xid u32 · vector
//! checkpoint = lsn u64 · vector
//! vector     = entries u8 · (node u16 · lsn u64)*
//! ```
//!
//! All numbers are little-endian. The checksum does not cover the length: a wrong one makes it cover the wrong bytes.

use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::time::Timestamp;
use synapsedb_core::version::VersionVector;

/// The frame begins a transaction and carries its header.
pub(super) const FIRST: u8 = 1;
/// The frame completes a transaction and carries its end LSN.
pub(super) const LAST: u8 = 2;
/// The frame is a checkpoint and belongs to no transaction.
pub(super) const CHECKPOINT: u8 = 4;

/// The length.
pub(super) const LENGTH_BYTES: usize = 4;
/// The length and the checksum.
const PREFIX_BYTES: usize = 8;
/// Where the body begins: after the length, the checksum and the flags.
const BODY: usize = PREFIX_BYTES + 1;

/// What is known of a transaction before its changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its commit LSN at its origin, which identifies it there.
    pub commit_lsn: Lsn,
    /// When it committed there.
    pub commit_time: Timestamp,
    /// Its transaction id there.
    pub xid: u32,
    /// What its origin had seen of the other nodes when it committed.
    pub vector: VersionVector,
}

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAFrame {
    /// Fewer bytes, or more, than the frame's own length says.
    #[error("its length is {got} bytes where it says {expected}")]
    Length {
        /// By its own account, or the least that a frame can have.
        expected: u64,
        /// What there is.
        got: u64,
    },
    /// The checksum is not that of the bytes.
    #[error("its checksum does not match")]
    Checksum,
    /// The checksum is right and the content is not what this version writes.
    #[error("it is malformed: {0}")]
    Malformed(&'static str),
}

/// A whole, verified frame. Its parts are slices of [`Frame::raw`] that share its memory.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The frame as it is stored and as it travels.
    pub raw: Bytes,
    messages: Range<usize>,
}

impl Frame {
    /// Verifies that `raw` is exactly one frame.
    ///
    /// # Errors
    /// It is not; see [`NotAFrame`].
    pub fn parse(raw: Bytes) -> Result<Self, NotAFrame> {
        let messages = verify(&raw)?;
        Ok(Self { raw, messages })
    }

    /// The header of the transaction; only its first frame has it.
    pub fn header(&self) -> Option<Header> {
        (self.flags() & FIRST != 0).then(|| read_header(&self.raw)).flatten()
    }

    /// The commit LSN of the transaction; only its first frame has it. Cheaper than [`Frame::header`].
    pub fn commit_lsn(&self) -> Option<Lsn> {
        (self.flags() & FIRST != 0).then(|| u64_at(&self.raw, BODY)).flatten().map(Lsn)
    }

    /// Whether the frame begins a transaction.
    pub fn is_first(&self) -> bool {
        self.flags() & FIRST != 0
    }

    /// Whether the frame completes a transaction.
    pub fn is_last(&self) -> bool {
        self.flags() & LAST != 0
    }

    /// The LSN after the transaction's commit record; only its last frame has it.
    pub fn end_lsn(&self) -> Option<Lsn> {
        self.is_last().then(|| u64_at(&self.raw, self.messages.end)).flatten().map(Lsn)
    }

    /// The messages of the logical replication protocol in this frame.
    pub fn messages(&self) -> impl Iterator<Item = Bytes> + use<> {
        let (raw, mut rest) = (self.raw.clone(), self.messages.clone());
        std::iter::from_fn(move || {
            let message = message_at(&raw, &rest)?;
            rest.start = message.end;
            Some(raw.slice(message))
        })
    }

    /// [`Frame::messages`] that do not outlive the frame.
    pub fn message_slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.messages.clone();
        std::iter::from_fn(move || {
            let message = message_at(&self.raw, &rest)?;
            rest.start = message.end;
            Some(&self.raw[message])
        })
    }

    /// The LSN and the vector if the frame is a checkpoint.
    pub(super) fn checkpoint(&self) -> Option<(Lsn, VersionVector)> {
        if self.flags() != CHECKPOINT {
            return None;
        }
        let (vector, _) = read_vector(&self.raw, BODY + 8)?;
        Some((Lsn(u64_at(&self.raw, BODY)?), vector))
    }

    fn flags(&self) -> u8 {
        self.raw.get(PREFIX_BYTES).copied().unwrap_or_default()
    }
}

/// The bytes of the whole frame that begins with `prefix`; `None` as long as the length itself is not there.
pub(super) fn whole_bytes(prefix: &[u8]) -> Option<u64> {
    let length = prefix.first_chunk::<LENGTH_BYTES>()?;
    Some(u64::from(u32::from_le_bytes(*length)) + LENGTH_BYTES as u64)
}

/// Verifies a frame; answers where its messages are.
fn verify(raw: &[u8]) -> Result<Range<usize>, NotAFrame> {
    let expected = whole_bytes(raw).unwrap_or(BODY as u64).max(BODY as u64);
    if raw.len() as u64 != expected {
        return Err(NotAFrame::Length { expected, got: raw.len() as u64 });
    }
    let flags = raw[PREFIX_BYTES];
    if flags != CHECKPOINT && flags & !(FIRST | LAST) != 0 {
        return Err(NotAFrame::Malformed("flags"));
    }
    let checksum = crc32c::crc32c(&raw[PREFIX_BYTES..]).to_le_bytes();
    if raw[LENGTH_BYTES..PREFIX_BYTES] != checksum {
        return Err(NotAFrame::Checksum);
    }
    if flags == CHECKPOINT {
        let (_, end) = read_vector(raw, BODY + 8).ok_or(NotAFrame::Malformed("checkpoint"))?;
        let whole = end == raw.len();
        return if whole { Ok(end..end) } else { Err(NotAFrame::Malformed("checkpoint")) };
    }
    let start = match flags & FIRST {
        0 => BODY,
        _ => read_vector(raw, BODY + 20).ok_or(NotAFrame::Malformed("header"))?.1,
    };
    let end = raw.len().saturating_sub(if flags & LAST == 0 { 0 } else { 8 });
    let mut rest = start..end;
    while rest.start < end {
        rest.start = message_at(raw, &rest).ok_or(NotAFrame::Malformed("messages"))?.end;
    }
    if rest.start == end { Ok(start..end) } else { Err(NotAFrame::Malformed("end")) }
}

fn message_at(raw: &[u8], rest: &Range<usize>) -> Option<Range<usize>> {
    let length = raw.get(rest.clone())?.first_chunk::<4>()?;
    let start = rest.start + 4;
    let end = start.checked_add(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    (end <= rest.end).then_some(start..end)
}

fn u64_at(raw: &[u8], at: usize) -> Option<u64> {
    raw.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

fn read_header(raw: &[u8]) -> Option<Header> {
    let xid = raw.get(BODY + 16..)?.first_chunk()?;
    Some(Header {
        commit_lsn: Lsn(u64_at(raw, BODY)?),
        commit_time: Timestamp(u64_at(raw, BODY + 8)?.cast_signed()),
        xid: u32::from_le_bytes(*xid),
        vector: read_vector(raw, BODY + 20)?.0,
    })
}

/// The vector at `at`, and where it ends.
pub(super) fn read_vector(raw: &[u8], at: usize) -> Option<(VersionVector, usize)> {
    let count = usize::from(*raw.get(at)?);
    let mut vector = VersionVector::new();
    for index in 0..count {
        let entry = at + 1 + index * 10;
        let number = raw.get(entry..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))?;
        vector.advance(NodeId::new(number)?, Lsn(u64_at(raw, entry + 2)?));
    }
    Some((vector, at + 1 + count * 10))
}

pub(super) fn write_vector(buffer: &mut BytesMut, vector: &VersionVector) {
    buffer.put_u8(u8::try_from(vector.len()).unwrap_or(u8::MAX));
    for (node, lsn) in vector.iter() {
        buffer.put_u16_le(node.get());
        buffer.put_u64_le(lsn.0);
    }
}

/// Builds one frame at a time in a buffer that it keeps.
#[derive(Debug, Default)]
pub(super) struct Builder {
    buffer: BytesMut,
    messages: usize,
}

impl Builder {
    /// Starts a frame, the first of its transaction if it has a header.
    pub(super) fn start(&mut self, header: Option<&Header>) {
        self.clear();
        self.buffer.put_bytes(0, BODY);
        let Some(header) = header else { return };
        self.buffer[PREFIX_BYTES] = FIRST;
        self.buffer.put_u64_le(header.commit_lsn.0);
        self.buffer.put_i64_le(header.commit_time.0);
        self.buffer.put_u32_le(header.xid);
        write_vector(&mut self.buffer, &header.vector);
    }

    /// Adds a message. Its length has been checked by [`Builder::with`].
    pub(super) fn message(&mut self, message: &[u8]) {
        self.buffer.put_u32_le(u32::try_from(message.len()).unwrap_or(u32::MAX));
        self.buffer.put_slice(message);
        self.messages += 1;
    }

    /// The bytes of the whole frame if one more message of `message_bytes` is added and it is the last frame.
    pub(super) fn with(&self, message_bytes: usize) -> u64 {
        self.buffer.len() as u64 + 4 + message_bytes as u64 + 8
    }

    /// The messages so far.
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    /// Completes the frame, the last of its transaction if it has an end.
    pub(super) fn seal(&mut self, end_lsn: Option<Lsn>) {
        if let Some(end_lsn) = end_lsn {
            self.buffer[PREFIX_BYTES] |= LAST;
            self.buffer.put_u64_le(end_lsn.0);
        }
        self.complete();
    }

    /// The completed frame.
    pub(super) fn sealed(&self) -> &[u8] {
        &self.buffer
    }

    /// Builds a checkpoint.
    pub(super) fn checkpoint(&mut self, lsn: Lsn, vector: &VersionVector) {
        self.start(None);
        self.buffer[PREFIX_BYTES] = CHECKPOINT;
        self.buffer.put_u64_le(lsn.0);
        write_vector(&mut self.buffer, vector);
        self.complete();
    }

    /// Forgets the frame, and gives back the memory that an unusually large one took.
    pub(super) fn clear(&mut self) {
        const KEEP_BYTES: usize = 1 << 20;
        if self.buffer.capacity() > KEEP_BYTES {
            self.buffer = BytesMut::new();
        }
        self.buffer.clear();
        self.messages = 0;
    }

    fn complete(&mut self) {
        let length = u32::try_from(self.buffer.len() - LENGTH_BYTES).unwrap_or(u32::MAX);
        let checksum = crc32c::crc32c(&self.buffer[PREFIX_BYTES..]);
        self.buffer[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        self.buffer[LENGTH_BYTES..PREFIX_BYTES].copy_from_slice(&checksum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        let vector = [(1, 7), (16, u64::MAX)];
        Header {
            commit_lsn: Lsn(42),
            commit_time: Timestamp(-5),
            xid: 9,
            vector: vector.iter().map(|&(n, l)| (NodeId::new(n).unwrap(), Lsn(l))).collect(),
        }
    }

    fn small() -> Bytes {
        let mut builder = Builder::default();
        builder.start(Some(&header()));
        builder.message(b"Ihello");
        builder.message(b"");
        builder.seal(Some(Lsn(50)));
        Bytes::copy_from_slice(builder.sealed())
    }

    #[test]
    fn a_small_transaction_is_one_frame() {
        let frame = Frame::parse(small()).unwrap();
        assert_eq!(frame.header(), Some(header()));
        assert_eq!((frame.commit_lsn(), frame.end_lsn()), (Some(Lsn(42)), Some(Lsn(50))));
        assert!(frame.is_first() && frame.is_last() && frame.checkpoint().is_none());
        assert_eq!(frame.messages().collect::<Vec<_>>(), [&b"Ihello"[..], b""]);
    }

    #[test]
    fn a_checkpoint_is_no_transaction() {
        let mut builder = Builder::default();
        builder.checkpoint(Lsn(3), &header().vector);
        let frame = Frame::parse(Bytes::copy_from_slice(builder.sealed())).unwrap();
        assert_eq!(frame.checkpoint(), Some((Lsn(3), header().vector)));
        assert!(!frame.is_first() && !frame.is_last() && frame.header().is_none());
        assert_eq!((frame.end_lsn(), frame.messages().count()), (None, 0));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let whole = small();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::parse(flipped.into()).is_err(), "bit {bit}");
        }
        for end in 0..whole.len() {
            assert!(Frame::parse(whole.slice(..end)).is_err());
        }
    }

    proptest! {
        #[test]
        fn content_with_a_right_checksum_never_panics(flags in 0u8..8, body: Vec<u8>) {
            let mut rest = vec![flags];
            rest.extend(body);
            let mut raw = u32::try_from(rest.len() + 4).unwrap().to_le_bytes().to_vec();
            raw.extend(crc32c::crc32c(&rest).to_le_bytes());
            raw.extend(rest);
            if let Ok(frame) = Frame::parse(raw.into()) {
                let _ = (frame.header(), frame.end_lsn(), frame.checkpoint());
                let _ = frame.messages().count();
            }
        }
    }
}
