//! Every cut, every flipped bit, missing files, a full disk.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use super::super::segment::HEADER_BYTES;
use super::*;

#[test]
fn a_spool_cut_at_any_byte_keeps_everything_before_the_cut() {
    let dir = temporary();
    let config = Config { segment_bytes: 1 << 20, ..small() };
    let (mut writer, _spool) = open(dir.path(), id(), config).unwrap();
    let mut ends = Vec::new();
    for (lsn, count) in [(10, 1), (20, 7), (30, 0), (40, 2)] {
        append(&mut writer, lsn, count).unwrap();
        ends.push((lsn, _spool.bytes()));
        writer.checkpoint(Lsn(lsn + 9), &header(lsn).vector).unwrap();
    }
    drop(writer);
    let path = &segments(dir.path())[0];
    let whole = fs::read(path).unwrap();
    for cut in HEADER_BYTES..=whole.len() as u64 {
        fs::write(path, &whole[..cut as usize]).unwrap();
        let (mut writer, spool) = open(dir.path(), id(), config).unwrap();
        let left: Vec<u64> =
            ends.iter().filter(|&&(_, end)| end <= cut).map(|&(lsn, _)| lsn).collect();
        assert_eq!(lsns(&read_after(&spool, 0).unwrap()), left, "cut at {cut}");
        append(&mut writer, 50, 3).unwrap();
        assert_eq!(read_after(&spool, 40).unwrap(), [transaction(50, 3)]);
    }
    fs::write(path, &whole[..100]).unwrap();
    assert!(matches!(open(dir.path(), id(), config), Err(SpoolError::Corrupt { offset: 0, .. })));
}

#[tokio::test]
async fn every_flipped_bit_in_a_synced_spool_is_an_error_and_never_data() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    for (lsn, count) in [(10, 1), (20, 14), (30, 2), (40, 1)] {
        append(&mut writer, lsn, count).unwrap();
    }
    writer.sync().await.unwrap();
    let whole = read_after(&spool, 0).unwrap();
    drop((writer, spool));
    let segments = segments(dir.path());
    assert_eq!(segments.len(), 2);
    for path in segments.iter().chain([&dir.path().join(durable::NAME)]) {
        for offset in 0..path.metadata().unwrap().len() {
            let bit = (offset % 8) as u8;
            flip(path, offset, bit);
            let error = open(dir.path(), id(), small())
                .and_then(|(_writer, spool)| read_after(&spool, 0))
                .expect_err("a flipped bit was served");
            let SpoolError::Corrupt { file, .. } = error else { panic!("{error}") };
            assert_eq!(&file, path, "at {offset}");
            flip(path, offset, bit);
        }
    }
    let (_writer, spool) = open(dir.path(), id(), small()).unwrap();
    assert_eq!(read_after(&spool, 0).unwrap(), whole);
    // Also under a reader that has it open, and not only once.
    flip(&segments[0], HEADER_BYTES + 200, 3);
    let mut reader = spool.reader_after(Lsn::ZERO).unwrap();
    let first = reader.try_next().unwrap().unwrap();
    assert_eq!(first.commit_lsn(), Some(Lsn(10)));
    let mut next = || std::iter::repeat_with(|| reader.try_next()).find_map(Result::err).unwrap();
    assert!(matches!(next(), SpoolError::Corrupt { .. }));
    assert!(matches!(next(), SpoolError::Corrupt { .. }));
}

#[tokio::test]
async fn damage_before_the_torn_end_is_told_from_it() {
    let dir = temporary();
    let config = Config { segment_bytes: 1 << 20, ..small() };
    let (mut writer, spool) = open(dir.path(), id(), config).unwrap();
    append(&mut writer, 10, 1).unwrap();
    append(&mut writer, 20, 1).unwrap();
    drop((writer, spool));
    let path = segments(dir.path()).remove(0);
    flip(&path, HEADER_BYTES + 30, 0);
    let Err(SpoolError::Corrupt { file, offset, .. }) = open(dir.path(), id(), config) else {
        panic!("the damage was not noticed")
    };
    assert_eq!((file, offset), (path.clone(), HEADER_BYTES));
    flip(&path, HEADER_BYTES + 30, 0);

    // Bytes that never were a frame are a torn end, unless more than is left was synced.
    let whole = fs::read(&path).unwrap();
    for junk in [vec![0; 1000], vec![0xff; 1000], vec![1, 0, 0, 0, 0, 0, 0, 0, 0]] {
        fs::write(&path, [&whole[..], &junk].concat()).unwrap();
        let (_writer, spool) = open(dir.path(), id(), config).unwrap();
        assert_eq!(lsns(&read_after(&spool, 0).unwrap()), [10, 20]);
    }
    let (writer, _) = open(dir.path(), id(), config).unwrap();
    assert_eq!(writer.sync().await.unwrap().commit_lsn, Lsn(20));
    drop(writer);
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(open(dir.path(), id(), config), Err(SpoolError::Corrupt { .. })));
    fs::remove_file(&path).unwrap();
    assert!(matches!(open(dir.path(), id(), config), Err(SpoolError::Corrupt { .. })));
}

#[test]
fn missing_foreign_and_renamed_segments_are_refused() {
    let dir = temporary();
    let (mut writer, _spool) = open(dir.path(), id(), small()).unwrap();
    for lsn in 1..30 {
        append(&mut writer, lsn, 2).unwrap();
    }
    drop(writer);
    let found = segments(dir.path());
    assert!(found.len() > 3);
    let other = SpoolId { incarnation: Incarnation(2), ..id() };
    let refused = open(dir.path(), other, small()).unwrap_err();
    assert!(matches!(refused, SpoolError::OtherSpool { found, .. } if found == id()));

    let aside = dir.path().join("aside");
    fs::rename(&found[1], &aside).unwrap();
    assert!(matches!(open(dir.path(), id(), small()), Err(SpoolError::Corrupt { .. })));
    fs::rename(&aside, dir.path().join("00000000000000ff.seg")).unwrap();
    assert!(matches!(open(dir.path(), id(), small()), Err(SpoolError::Corrupt { .. })));
    fs::rename(dir.path().join("00000000000000ff.seg"), &found[1]).unwrap();

    // What a crash while a segment is made leaves behind.
    fs::write(found[found.len() - 1].with_extension("tmp"), b"half a header").unwrap();
    let (_writer, spool) = open(dir.path(), id(), small()).unwrap();
    assert_eq!(read_after(&spool, 0).unwrap().len(), 29);
}

struct TinyDisk(TempDir);

impl TinyDisk {
    fn mount(bytes: u64) -> Option<Self> {
        let dir = temporary();
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path());
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        mounted.then_some(Self(dir))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_undoes_the_transaction_and_the_writer_goes_on() {
    let Some(disk) = TinyDisk::mount(1 << 20) else {
        println!("skipped: a tmpfs cannot be mounted here (needs root)");
        return;
    };
    let dir = disk.0.path().join("spool");
    let config = Config { segment_bytes: 64 << 10, frame_bytes: 4 << 10, ..Config::default() };
    let (mut writer, spool) = open(&dir, id(), config).unwrap();
    let ballast = disk.0.path().join("ballast");
    let mut last = 0;
    for (round, ballast_bytes) in [(1, 700_000), (2, 600_000), (3, 500_000)] {
        fs::write(&ballast, vec![1; ballast_bytes]).unwrap();
        let full = loop {
            // Small and large transactions in turn, so that it becomes full in begin, message and commit.
            let count = if last % 3 == 0 { 400 } else { 2 };
            match append(&mut writer, last + 1, count) {
                Ok(()) => last += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(full, SpoolError::DiskFull { .. }), "{full}");
        assert_eq!(writer.tail().commit_lsn, Lsn(last));
        assert!(append(&mut writer, last + 1, 20_000).is_err());
        assert_eq!(read_after(&spool, 0).unwrap().len() as u64, last, "round {round}");
        fs::remove_file(&ballast).unwrap();
        last += 1;
        append(&mut writer, last, 3).unwrap();
        assert_eq!(writer.sync().await.unwrap().commit_lsn, Lsn(last));
    }
    drop((writer, spool));
    let (_writer, spool) = open(&dir, id(), config).unwrap();
    assert_eq!(lsns(&read_after(&spool, 0).unwrap()), (1..=last).collect::<Vec<_>>());
}
