//! Any life of a spool beside a list that it must read as.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::super::segment::HEADER_BYTES;
use super::*;

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Abort(usize),
    Checkpoint,
    Trim(u64),
    Cut(u64),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..20).prop_map(Step::Append),
        1 => (0usize..20).prop_map(Step::Abort),
        1 => Just(Step::Checkpoint),
        1 => (0u64..8).prop_map(Step::Trim),
        1 => (0u64..2_000).prop_map(Step::Cut),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Any life of a spool that is never synced, with crashes that cut its last segment anywhere.
    #[test]
    fn any_life_of_a_spool_reads_as_a_list_would(steps in steps()) {
        let dir = temporary();
        let (mut writer, mut spool) = open(dir.path(), id(), small()).unwrap();
        let mut model: Vec<(u64, usize)> = Vec::new();
        let mut next = 1;
        for step in steps {
            match step {
                Step::Append(count) => {
                    append(&mut writer, next, count).unwrap();
                    model.push((next, count));
                    next += 1;
                }
                Step::Abort(count) => {
                    writer.begin(&header(next)).unwrap();
                    for message in messages(next, count) {
                        writer.message(&message).unwrap();
                    }
                    writer.abort();
                }
                Step::Checkpoint => writer.checkpoint(Lsn(next + 8), &header(next).vector).unwrap(),
                Step::Trim(back) => {
                    let through = next.saturating_sub(back);
                    let most = spool.first_available().max(Lsn(through));
                    spool.trim(Lsn(through)).unwrap();
                    prop_assert!(spool.first_available() <= most);
                }
                Step::Cut(back) => {
                    drop(writer);
                    let last = segments(dir.path()).pop().unwrap();
                    let length = last.metadata().unwrap().len();
                    let cut = length.saturating_sub(back).max(HEADER_BYTES);
                    File::options().write(true).open(last).unwrap().set_len(cut).unwrap();
                    (writer, spool) = open(dir.path(), id(), small()).unwrap();
                    let tail = writer.tail().commit_lsn.0;
                    prop_assert!(cut < length || model.last().is_none_or(|&(lsn, _)| lsn == tail));
                    model.retain(|&(lsn, _)| lsn <= tail);
                }
                Step::Reopen => {
                    drop(writer);
                    (writer, spool) = open(dir.path(), id(), small()).unwrap();
                }
            }
            let from = spool.first_available().0;
            let expected: Vec<Transaction> = model
                .iter()
                .filter(|&&(lsn, _)| lsn > from)
                .map(|&(lsn, count)| transaction(lsn, count))
                .collect();
            prop_assert_eq!(read_after(&spool, from).unwrap(), expected);
        }
    }
}
