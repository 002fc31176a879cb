//! A writing process that is killed at any instant, again and again.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use super::*;

const KILLED_DIR: &str = "SYNAPSEDB_TEST_SPOOL_DIR";

/// Not a test by itself: the process that the next test kills. It tells every transaction that is complete.
#[test]
fn the_writer_that_is_killed() {
    let Ok(dir) = std::env::var(KILLED_DIR) else { return };
    let config = Config { segment_bytes: 20_000, frame_bytes: 500, ..Config::default() };
    let (mut writer, _spool) = open(Path::new(&dir), id(), config).unwrap();
    for lsn in writer.tail().commit_lsn.0 + 1.. {
        append(&mut writer, lsn, (lsn * 7 % 60) as usize).unwrap();
        println!("\ncomplete {lsn}");
    }
}

#[test]
fn a_killed_writer_loses_nothing_that_was_complete() {
    let dir = temporary();
    let config = Config { segment_bytes: 20_000, frame_bytes: 500, ..Config::default() };
    let mut complete = 0;
    for round in 0..10u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "replication::spool::tests::killed::the_writer_that_is_killed",
                "--nocapture",
            ])
            .env(KILLED_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let enough = complete + 20 + round * 13;
        let told = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in told {
            let line = line.unwrap();
            let Some(lsn) = line.strip_prefix("complete ") else { continue };
            complete = lsn.parse().unwrap();
            if complete == enough {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let (writer, spool) = open(dir.path(), id(), config).unwrap();
        let read = read_after(&spool, 0).unwrap();
        let last = writer.tail().commit_lsn.0;
        assert!(last >= complete && complete >= enough, "{last} {complete} {enough}");
        assert_eq!(lsns(&read), (1..=last).collect::<Vec<_>>());
        complete = last;
    }
}
