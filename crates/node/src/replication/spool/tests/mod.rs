//! The spool over real files: what is appended is read, by whom and when it may be.
#![allow(clippy::unwrap_used)]

mod copy;
mod damage;
mod follow;
mod killed;
mod life;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use synapsedb_core::time::Timestamp;
use tempfile::TempDir;

use super::*;

fn id() -> SpoolId {
    let origin = NodeId::new(2).unwrap();
    SpoolId { cluster: uuid::Uuid::from_u128(7), origin, incarnation: Incarnation::FIRST }
}

/// Small limits, so that a few transactions make several frames and segments.
fn small() -> Config {
    Config { segment_bytes: 600, frame_bytes: 100, ..Config::default() }
}

fn header(commit_lsn: u64) -> Header {
    let seen = [(NodeId::new(1).unwrap(), Lsn(commit_lsn / 2)), (id().origin, Lsn(commit_lsn))];
    Header {
        commit_lsn: Lsn(commit_lsn),
        commit_time: Timestamp(commit_lsn as i64 * 10),
        xid: commit_lsn as u32,
        vector: seen.into_iter().collect(),
    }
}

fn messages(commit_lsn: u64, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|index| format!("I transaction {commit_lsn} row {index}").into_bytes()).collect()
}

/// Appends a transaction that ends 8 bytes after its commit LSN.
fn append(writer: &mut Writer, commit_lsn: u64, count: usize) -> Result<(), SpoolError> {
    writer.begin(&header(commit_lsn))?;
    for message in messages(commit_lsn, count) {
        writer.message(&message)?;
    }
    writer.commit(Lsn(commit_lsn + 8))?;
    writer.show()
}

#[derive(Debug, PartialEq)]
struct Transaction {
    header: Header,
    messages: Vec<Vec<u8>>,
    end_lsn: Lsn,
}

fn transaction(commit_lsn: u64, count: usize) -> Transaction {
    let (header, messages) = (header(commit_lsn), messages(commit_lsn, count));
    Transaction { header, messages, end_lsn: Lsn(commit_lsn + 8) }
}

fn collect(frames: impl IntoIterator<Item = Frame>) -> Vec<Transaction> {
    let mut read = Vec::new();
    let mut open: Option<(Header, Vec<Vec<u8>>)> = None;
    for frame in frames {
        assert_eq!(frame.is_first(), open.is_none());
        let (header, mut messages) =
            open.take().unwrap_or_else(|| (frame.header().unwrap(), vec![]));
        messages.extend(frame.messages().map(|message| message.to_vec()));
        match frame.end_lsn() {
            Some(end_lsn) => read.push(Transaction { header, messages, end_lsn }),
            None => open = Some((header, messages)),
        }
    }
    assert!(open.is_none(), "a reader ended within a transaction");
    read
}

fn read_after(spool: &Spool, lsn: u64) -> Result<Vec<Transaction>, SpoolError> {
    let mut reader = spool.reader_after(Lsn(lsn))?;
    let mut frames = Vec::new();
    while let Some(frame) = reader.try_next()? {
        frames.push(frame);
    }
    Ok(collect(frames))
}

fn lsns(transactions: &[Transaction]) -> Vec<u64> {
    transactions.iter().map(|transaction| transaction.header.commit_lsn.0).collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|ext| ext == "seg")).collect();
    paths.sort();
    paths
}

fn flip(path: &Path, offset: u64, bit: u8) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], offset).unwrap();
}

fn temporary() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn what_was_appended_is_read_also_after_reopening_and_from_every_position() {
    let dir = temporary();
    let sizes = [1, 0, 3, 40, 1, 9, 2];
    let whole: Vec<_> = (1..).zip(sizes).map(|(n, size)| transaction(n * 10, size)).collect();
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    for (n, size) in (1..).zip(sizes) {
        append(&mut writer, n * 10, size).unwrap();
    }
    assert_eq!(
        writer.tail(),
        Tail { commit_lsn: Lsn(70), end_lsn: Lsn(78), vector: header(70).vector }
    );
    assert!(segments(dir.path()).len() > 2);
    let stored: u64 = segments(dir.path()).iter().map(|p| p.metadata().unwrap().len()).sum();
    assert_eq!(spool.bytes(), stored);
    assert_eq!(read_after(&spool, 0).unwrap(), whole);
    for after in 0..90 {
        let later = lsns(&whole).into_iter().filter(|&lsn| lsn > after).collect::<Vec<_>>();
        assert_eq!(lsns(&read_after(&spool, after).unwrap()), later, "after {after}");
    }
    let tail = writer.tail();
    drop((writer, spool));
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    assert_eq!(writer.tail(), tail);
    assert_eq!(read_after(&spool, 0).unwrap(), whole);
    append(&mut writer, 80, 1).unwrap();
    assert_eq!(lsns(&read_after(&spool, 60).unwrap()), [70, 80]);
}

#[test]
fn an_open_transaction_is_not_seen_and_an_aborted_one_leaves_nothing() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    append(&mut writer, 10, 1).unwrap();
    let (bytes, tail) = (spool.bytes(), writer.tail());
    writer.begin(&header(20)).unwrap();
    for message in messages(20, 30) {
        writer.message(&message).unwrap();
    }
    assert!(segments(dir.path())[0].metadata().unwrap().len() > bytes, "nothing was written yet");
    assert_eq!(lsns(&read_after(&spool, 0).unwrap()), [10]);
    writer.abort();
    assert_eq!(segments(dir.path())[0].metadata().unwrap().len(), bytes);
    assert_eq!((spool.bytes(), writer.tail()), (bytes, tail));
    writer.abort();
    append(&mut writer, 20, 2).unwrap();
    assert_eq!(read_after(&spool, 10).unwrap(), [transaction(20, 2)]);
}

#[test]
fn what_is_complete_is_seen_when_it_is_shown_and_survives_an_abort() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    let complete = |writer: &mut Writer, lsn, count| {
        writer.begin(&header(lsn)).unwrap();
        messages(lsn, count).iter().for_each(|message| writer.message(message).unwrap());
        writer.commit(Lsn(lsn + 8)).unwrap();
    };
    append(&mut writer, 10, 1).unwrap();
    complete(&mut writer, 20, 1);
    complete(&mut writer, 30, 2);
    assert_eq!((lsns(&read_after(&spool, 0).unwrap()), writer.tail_commit_lsn().0), (vec![10], 30));
    for unfinished in [1, 30] {
        writer.begin(&header(40)).unwrap();
        messages(40, unfinished).iter().for_each(|message| writer.message(message).unwrap());
        writer.abort();
    }
    writer.show().unwrap();
    assert_eq!(lsns(&read_after(&spool, 0).unwrap()), [10, 20, 30]);
    complete(&mut writer, 40, 60);
    drop((writer, spool));
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    let kept = writer.tail_commit_lsn().0;
    assert!(kept == 30 || kept == 40, "what was not shown is there as a whole or not at all");
    append(&mut writer, 50, 1).unwrap();
    let read: Vec<_> = lsns(&read_after(&spool, 20).unwrap());
    assert_eq!(read, if kept == 30 { vec![30, 50] } else { vec![30, 40, 50] });
}

#[test]
fn the_writer_refuses_what_does_not_fit_and_changes_nothing() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    assert!(matches!(writer.message(b"I"), Err(SpoolError::Misuse(_))));
    assert!(matches!(writer.commit(Lsn(1)), Err(SpoolError::Misuse(_))));
    append(&mut writer, 10, 1).unwrap();
    let again = writer.begin(&header(10));
    assert!(matches!(again, Err(SpoolError::OutOfOrder { last: Lsn(10), got: Lsn(10) })));
    writer.begin(&header(20)).unwrap();
    assert!(matches!(writer.begin(&header(30)), Err(SpoolError::Misuse(_))));
    assert!(matches!(
        writer.checkpoint(Lsn(30), &VersionVector::new()),
        Err(SpoolError::Misuse(_))
    ));
    let refused = writer.append_frame(&Bytes::from_static(b"x"), |_| Ok(()));
    assert!(matches!(refused, Err(SpoolError::FrameRefused(_))));
    writer.commit(Lsn(28)).unwrap();
    writer.show().unwrap();
    assert_eq!(lsns(&read_after(&spool, 0).unwrap()), [10, 20]);
    assert!(matches!(open(dir.path(), id(), small()), Err(SpoolError::InUse { .. })));
}

#[test]
fn a_message_that_is_too_large_undoes_its_transaction() {
    let dir = temporary();
    let config = Config { frame_bytes_max: 1_000, ..small() };
    let (mut writer, spool) = open(dir.path(), id(), config).unwrap();
    writer.begin(&header(10)).unwrap();
    writer.message(&[b'I'; 500]).unwrap();
    assert!(matches!(writer.message(&[b'I'; 1_000]), Err(SpoolError::TooLarge { max: 1_000, .. })));
    append(&mut writer, 10, 1).unwrap();
    assert_eq!(read_after(&spool, 0).unwrap(), [transaction(10, 1)]);
}

#[test]
fn checkpoints_move_the_end_and_are_not_read() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    append(&mut writer, 10, 1).unwrap();
    let vector = header(99).vector;
    writer.checkpoint(Lsn(50), &vector).unwrap();
    let bytes = spool.bytes();
    writer.checkpoint(Lsn(50), &vector).unwrap();
    writer.checkpoint(Lsn(40), &vector).unwrap();
    assert_eq!(spool.bytes(), bytes);
    let tail = Tail { commit_lsn: Lsn(10), end_lsn: Lsn(50), vector };
    assert_eq!(writer.tail(), tail);
    drop((writer, spool));
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    assert_eq!(writer.tail(), tail);
    append(&mut writer, 60, 1).unwrap();
    assert_eq!(lsns(&read_after(&spool, 0).unwrap()), [10, 60]);
}

#[test]
fn the_tail_outlives_the_deletion_of_all_transactions() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    append(&mut writer, 10, 40).unwrap();
    writer.checkpoint(Lsn(30), &header(20).vector).unwrap();
    assert!(spool.trim(Lsn(10)).unwrap() > 600);
    let tail = writer.tail();
    assert_eq!((tail.commit_lsn, tail.end_lsn), (Lsn(10), Lsn(30)));
    drop((writer, spool));
    let (writer, spool) = open(dir.path(), id(), small()).unwrap();
    assert_eq!(writer.tail(), tail);
    assert!(matches!(
        spool.reader_after(Lsn(9)),
        Err(SpoolError::Gone { first_available: Lsn(10) })
    ));
    assert_eq!(read_after(&spool, 10).unwrap(), []);
}

#[test]
fn an_empty_spool_can_begin_anywhere() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    let tail = Tail { commit_lsn: Lsn(100), end_lsn: Lsn(108), vector: header(100).vector };
    writer.start_at(&tail).unwrap();
    assert_eq!((writer.tail(), spool.first_available()), (tail.clone(), Lsn(100)));
    assert!(matches!(writer.begin(&header(100)), Err(SpoolError::OutOfOrder { .. })));
    assert!(matches!(writer.start_at(&tail), Err(SpoolError::Misuse(_))));
    drop((writer, spool));
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    assert_eq!(writer.tail(), tail);
    append(&mut writer, 110, 1).unwrap();
    assert!(matches!(
        spool.reader_after(Lsn(0)),
        Err(SpoolError::Gone { first_available: Lsn(100) })
    ));
    assert_eq!(lsns(&read_after(&spool, 100).unwrap()), [110]);
}

#[test]
fn a_peer_appends_frames_as_they_are_and_nothing_else() {
    let (origin_dir, peer_dir) = (temporary(), temporary());
    let (mut origin, spool) = open(origin_dir.path(), id(), small()).unwrap();
    append(&mut origin, 10, 1).unwrap();
    append(&mut origin, 20, 12).unwrap();
    append(&mut origin, 30, 1).unwrap();
    let mut reader = spool.reader_after(Lsn::ZERO).unwrap();
    let frames: Vec<Frame> = std::iter::from_fn(|| reader.try_next().unwrap()).collect();
    assert!(frames.len() > 4);

    let (mut peer, received) = open(peer_dir.path(), id(), small()).unwrap();
    let refused = |peer: &mut Writer, raw: &[u8]| {
        let before = (peer.tail(), received.bytes());
        let error = peer.append_frame(&Bytes::copy_from_slice(raw), |_| Ok(())).unwrap_err();
        assert_eq!((peer.tail(), received.bytes()), before);
        matches!(error, SpoolError::FrameRefused(_) | SpoolError::OutOfOrder { .. })
    };
    assert!(refused(&mut peer, &frames[2].raw), "a frame without its first one");
    for frame in &frames {
        let mut flipped = frame.raw.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(refused(&mut peer, &flipped) && refused(&mut peer, &frame.raw[1..]));
        assert!(refused(&mut peer, &[&frame.raw[..], b"x"].concat()));
        let completed = peer.append_frame(&frame.raw, |_| Ok(())).unwrap();
        peer.show().unwrap();
        assert_eq!(completed.is_some(), frame.is_last());
        assert!(refused(&mut peer, &frames[0].raw), "a first frame again");
    }
    assert_eq!(read_after(&received, 0).unwrap(), read_after(&spool, 0).unwrap());
    assert_eq!(peer.tail(), origin.tail());
    let mut builder = frame::Builder::default();
    builder.checkpoint(Lsn(99), &VersionVector::new());
    assert!(refused(&mut peer, builder.sealed()));

    append(&mut origin, 40, 12).unwrap();
    let mut reader = spool.reader_after(Lsn(30)).unwrap();
    let first = reader.try_next().unwrap().unwrap();
    peer.append_frame(&first.raw, |_| Ok(())).unwrap();
    assert!(matches!(peer.message(b"I"), Err(SpoolError::Misuse(_))));
    peer.abort();
    append(&mut peer, 50, 1).unwrap();
    assert_eq!(lsns(&read_after(&received, 20).unwrap()), [30, 50]);
}
