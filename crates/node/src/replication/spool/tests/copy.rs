//! Copies of a spool that is written at the same time.
#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn a_copy_begins_as_the_original_and_holds_what_was_shown_before() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    append(&mut writer, 1, 1).unwrap();
    let tail = spool.tail_watch();
    let writing = std::thread::spawn(move || {
        for lsn in 2..400 {
            append(&mut writer, lsn, (lsn % 9) as usize).unwrap();
        }
    });
    let mut copies = 0;
    while !writing.is_finished() || copies == 0 {
        let (to, shown) = (temporary(), *tail.borrow());
        copy(dir.path(), &to.path().join("copy"), id(), small()).unwrap();
        let (_writer, copied) = open(&to.path().join("copy"), id(), small()).unwrap();
        let read = lsns(&read_after(&copied, 0).unwrap());
        assert_eq!(read, (1..=read.len() as u64).collect::<Vec<_>>());
        assert!(read.len() as u64 >= shown.0, "{} of {shown}", read.len());
        copies += 1;
    }
    writing.join().unwrap();
}

#[test]
fn the_last_transaction_before_a_position_is_found() {
    let dir = temporary();
    let (mut writer, spool) = open(dir.path(), id(), small()).unwrap();
    assert_eq!(spool.commit_before(Lsn(50)).unwrap(), Lsn::ZERO);
    (1..40).for_each(|lsn| append(&mut writer, lsn * 10, 3).unwrap());
    for (before, found) in [(5, 0), (10, 0), (11, 10), (200, 190), (205, 200), (9_999, 390)] {
        assert_eq!(spool.commit_before(Lsn(before)).unwrap(), Lsn(found), "before {before}");
    }
    spool.trim(Lsn(200)).unwrap();
    let first = spool.first_available();
    assert!(first > Lsn(100), "{first}");
    assert_eq!(spool.commit_before(Lsn(first.0 + 1)).unwrap(), first);
    let refused = spool.commit_before(first).unwrap_err();
    assert!(matches!(refused, SpoolError::Gone { .. }), "{refused}");
}

#[test]
fn a_damaged_spool_and_another_ones_are_not_copied() {
    let dir = temporary();
    let (mut writer, _spool) = open(dir.path(), id(), small()).unwrap();
    (1..40).for_each(|lsn| append(&mut writer, lsn, 3).unwrap());
    let other = SpoolId { incarnation: Incarnation(2), ..id() };
    let to = temporary();
    let refused = copy(dir.path(), &to.path().join("other"), other, small()).unwrap_err();
    assert!(matches!(refused, SpoolError::OtherSpool { .. }), "{refused}");
    let segments = segments(dir.path());
    fs::remove_file(&segments[1]).unwrap();
    let refused = copy(dir.path(), &to.path().join("damaged"), id(), small()).unwrap_err();
    assert!(matches!(refused, SpoolError::Corrupt { .. }), "{refused}");
}
