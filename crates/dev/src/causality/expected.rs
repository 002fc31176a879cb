//! What the hot tables must hold in the end, computed from what the writers did and when that was committed: the latest
//! write of a row stays, unless a later one of another row took a unique value of it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

/// The order of transactions: commit time, node, number. Of one microsecond and node there is one.
type Version = (i64, i32, i64);

/// A transaction of a writer, as the log tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Logged {
    pub writer: i32,
    pub number: i64,
    kind: String,
    key: i32,
    other: i32,
    values: (i32, i32),
    committed_us: i64,
}

/// What a write leaves: the unique values and who wrote; `None` is a delete.
type Left = Option<(i32, i32, i32, i64)>;

/// The rows of `hot_row` and of `hot_unique` as `psql -At` prints them, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    pub rows: Vec<String>,
    pub uniques: Vec<String>,
}

impl Logged {
    /// From a row of `log.sql`.
    pub(super) fn read(row: &str) -> Result<Self> {
        let columns: Vec<_> = row.split('|').collect();
        let [writer, number, kind, key, other, code, tag, committed_us] = columns[..] else {
            bail!("{row} has no columns");
        };
        Ok(Self {
            writer: writer.parse()?,
            number: number.parse()?,
            kind: kind.to_owned(),
            key: key.parse()?,
            other: other.parse()?,
            values: (code.parse()?, tag.parse()?),
            committed_us: committed_us.parse().context("the time of a commit")?,
        })
    }

    fn version(&self) -> Version {
        (self.committed_us, self.writer / 100, self.number)
    }
}

/// What the tables must hold after exactly these transactions, the first rows of all among them.
pub(super) fn tables(log: &[Logged]) -> Tables {
    let mut writes: BTreeMap<(bool, i32), Vec<(Version, Left)>> = BTreeMap::new();
    for logged in log {
        let (what, table) = logged.kind.split_once(' ').unwrap_or((&logged.kind, ""));
        let unique = table == "unique";
        let (code, tag) = logged.values;
        let left = (what != "delete").then_some((code, tag, logged.writer, logged.number));
        let key = if what == "move" { logged.other } else { logged.key };
        if what == "move" {
            writes.entry((unique, logged.key)).or_default().push((logged.version(), None));
        }
        writes.entry((unique, key)).or_default().push((logged.version(), left));
    }
    let mut tables = Tables::default();
    for ((unique, key), written) in &writes {
        let Some((version, Some(left))) = written.iter().max() else { continue };
        let (code, tag, writer, number) = *left;
        let takes = |(other, writes): (&(bool, i32), &Vec<(Version, Left)>)| {
            let same = |left: &Left| left.is_some_and(|(c, t, ..)| c == code || t == tag);
            other.0
                && other.1 != *key
                && writes.iter().any(|(later, left)| later > version && same(left))
        };
        if !unique {
            tables.rows.push(format!("{key}|{writer}|{number}"));
        } else if !writes.iter().any(takes) {
            tables.uniques.push(format!("{key}|{code}|{tag}|{writer}|{number}"));
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn expected(log: &[&str]) -> (Vec<String>, Vec<String>) {
        let log: Vec<_> = log.iter().map(|row| Logged::read(row).unwrap()).collect();
        let Tables { rows, uniques } = tables(&log);
        (rows, uniques)
    }

    #[test]
    fn the_latest_write_stays() {
        let log = [
            "101|1|insert row|5|0|0|0|10",
            "201|1|update row|5|0|0|0|12",
            "101|2|update row|5|0|0|0|11",
        ];
        assert_eq!(expected(&log).0, ["5|201|1"]);
        assert_eq!(expected(&[log[0], log[1], "301|1|delete row|5|0|0|0|13"]).0, [""; 0]);
        assert_eq!(expected(&[log[0], "301|1|move row|5|6|0|0|13"]).0, ["6|301|1"]);
        let tie = ["101|1|insert row|5|0|0|0|10", "201|1|insert row|5|0|0|0|10"];
        assert_eq!(expected(&tie).0, ["5|201|1"]);
    }

    #[test]
    fn a_later_claim_of_another_row_takes_the_value_wherever_that_row_is_now() {
        let log = ["101|1|insert unique|1|0|7|70|10", "201|1|insert unique|2|0|7|71|12"];
        assert_eq!(expected(&log).1, ["2|7|71|201|1"]);
        let moved = [log[0], log[1], "201|2|update unique|2|0|8|71|14"];
        assert_eq!(expected(&moved).1, ["2|8|71|201|2"]);
        let earlier = [log[0], "201|1|insert unique|2|0|9|70|9"];
        assert_eq!(expected(&earlier).1, ["1|7|70|101|1"]);
    }
}
