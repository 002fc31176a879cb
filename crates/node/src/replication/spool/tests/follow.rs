//! Readers that follow the tail while the oldest is deleted, and large transactions.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use super::*;

#[test]
fn trimming_never_takes_what_is_needed_and_readers_live_on() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    for lsn in 1..=40 {
        append(&mut writer, lsn, 2).unwrap();
    }
    let mut inside = spool.reader_after(Lsn::ZERO).unwrap();
    let mut ahead = spool.reader_after(Lsn(30)).unwrap();
    assert_eq!(inside.try_next().unwrap().unwrap().commit_lsn(), Some(Lsn(1)));
    let before = spool.bytes();
    let freed = spool.trim(Lsn(20)).unwrap();
    assert!(freed > 0 && spool.bytes() == before - freed);
    let first_available = spool.first_available();
    assert!(first_available <= Lsn(20) && first_available > Lsn(10));
    for after in first_available.0..=40 {
        let expected: Vec<u64> = (after + 1..=40).collect();
        assert_eq!(lsns(&read_after(&spool, after).unwrap()), expected);
    }
    for after in 0..first_available.0 {
        let gone = spool.reader_after(Lsn(after)).unwrap_err();
        assert!(matches!(gone, SpoolError::Gone { first_available: at } if at == first_available));
    }
    // One reads on in the file that it has open and is then told; the other never notices.
    let mut last = Lsn(1);
    let error = loop {
        match inside.try_next() {
            Ok(frame) => last = frame.unwrap().commit_lsn().unwrap_or(last),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SpoolError::Gone { .. }) && last > Lsn(1));
    let rest: Vec<Frame> = std::iter::from_fn(|| ahead.try_next().unwrap()).collect();
    assert_eq!(lsns(&collect(rest)), (31..=40).collect::<Vec<_>>());
    spool.trim(Lsn(u64::MAX)).unwrap();
    assert_eq!(segments(dir.path()).len(), 1, "the last one stays");
    drop(writer);
    assert_eq!(open(dir.path(), id(), small()).unwrap().0.tail().commit_lsn, Lsn(40));
}

#[test]
fn the_limit_deletes_the_oldest_and_tells() {
    let dir = temporary();
    let config = Config { bytes_max: 3_000, ..small() };
    let (mut writer, spool) = open(dir.path(), id(), config).unwrap();
    append(&mut writer, 1, 2).unwrap();
    assert_eq!(spool.enforce_limit().unwrap(), None);
    for lsn in 2..=60 {
        append(&mut writer, lsn, 2).unwrap();
    }
    let gone = spool.enforce_limit().unwrap().unwrap();
    assert!(spool.bytes() <= 3_000 && gone == spool.first_available());
    assert_eq!(spool.enforce_limit().unwrap(), None);
    assert_eq!(lsns(&read_after(&spool, gone.0).unwrap()), (gone.0 + 1..=60).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_follow_the_tail_across_segments() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    let mut readers = tokio::task::JoinSet::new();
    for start in 0..8 {
        let mut reader = spool.reader_after(Lsn(start)).unwrap();
        readers.spawn(async move {
            let mut frames = Vec::new();
            loop {
                // A wait that is given up must lose nothing.
                let wait = Duration::from_micros(50);
                match tokio::time::timeout(wait, reader.next()).await {
                    Ok(Ok(frame)) => frames.push(frame),
                    Ok(Err(SpoolError::Closed)) => return (start, lsns(&collect(frames))),
                    Ok(Err(error)) => panic!("{error}"),
                    Err(_) => {}
                }
            }
        });
    }
    for lsn in 1..=300 {
        append(&mut writer, lsn, (lsn % 5) as usize).unwrap();
        if lsn % 7 == 0 {
            tokio::task::yield_now().await;
            assert!(writer.sync().await.unwrap().commit_lsn == Lsn(lsn));
        }
    }
    assert_eq!(*spool.tail_watch().borrow(), Lsn(300));
    drop(writer);
    while let Some(read) = readers.join_next().await {
        let (start, lsns) = read.unwrap();
        assert_eq!(lsns, (start + 1..=300).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_waiting_reader_is_woken_at_once() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), Config::default()).unwrap();
    let mut reader = spool.reader_after(Lsn::ZERO).unwrap();
    let mut waits = Vec::new();
    for lsn in 1..=200 {
        let (frame, began) = tokio::join!(reader.next(), async {
            tokio::task::yield_now().await;
            let began = Instant::now();
            append(&mut writer, lsn, 1).unwrap();
            began
        });
        waits.push(began.elapsed());
        assert_eq!(frame.unwrap().commit_lsn(), Some(Lsn(lsn)));
    }
    waits.sort();
    println!("append to read: median {:?}, 99th percentile {:?}", waits[100], waits[198]);
    assert!(waits[100] < Duration::from_millis(2), "median {:?}", waits[100]);
}

#[test]
fn large_transactions_and_messages_pass_whole() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), Config::default()).unwrap();
    let row = vec![b'I'; 3 << 20];
    writer.begin(&header(10)).unwrap();
    for _ in 0..8 {
        writer.message(&row).unwrap();
        writer.message(b"Ismall").unwrap();
    }
    writer.commit(Lsn(18)).unwrap();
    writer.show().unwrap();
    append(&mut writer, 20, 1).unwrap();
    assert_eq!(segments(dir.path()).len(), 2);
    let read = read_after(&spool, 0).unwrap();
    assert_eq!((read[0].messages.len(), lsns(&read)), (16, vec![10, 20]));
    assert!(read[0].messages.iter().step_by(2).all(|message| *message == row));
}

/// A small file system that is taken away in the end.
#[test]
fn a_reader_begins_anywhere_in_a_large_segment() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), Config::default()).unwrap();
    for lsn in 1..=500 {
        append(&mut writer, lsn, 200).unwrap();
    }
    let from_everywhere = |spool: &Spool| {
        for after in (0..=500).step_by(23) {
            let expected: Vec<u64> = (after + 1..=500).collect();
            assert_eq!(lsns(&read_after(spool, after).unwrap()), expected);
        }
    };
    assert!(spool.bytes() > 2 << 20);
    from_everywhere(&spool);
    drop((writer, spool));
    let (_writer, spool) = open(dir.path(), id(), Config::default()).unwrap();
    from_everywhere(&spool);
}
