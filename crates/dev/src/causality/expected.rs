//! What the hot tables must hold in the end, computed from what the writers did and when that was committed: the latest
//! write of a row stays, unless a later one of another row took a unique value of it; and what the policies of the
//! other tables say.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

/// The order of transactions: commit time, node, number. Of one microsecond and node there is one.
type Version = (i64, i32, i64);

/// A step of a writer's transaction, as the log tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Logged {
    pub writer: i32,
    pub number: i64,
    step: i32,
    kind: String,
    key: i32,
    other: i32,
    values: (i32, i32),
    kept: String,
    committed_us: i64,
}

/// What a write leaves: the unique values and who wrote; `None` is a delete.
type Left = Option<(i32, i32, i32, i64)>;

/// The rows of the hot tables as `psql -At` prints them, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    pub rows: Vec<String>,
    pub uniques: Vec<String>,
    /// Only the rows that were changed, as the rest.
    pub large: Vec<String>,
    pub balances: Vec<String>,
    pub merged: Vec<String>,
}

impl Logged {
    /// From a row of `log.sql`.
    pub(super) fn read(row: &str) -> Result<Self> {
        let columns: Vec<_> = row.split('|').collect();
        let [writer, number, step, kind, key, other, code, tag, kept, committed_us] = columns[..]
        else {
            bail!("{row} has no columns");
        };
        Ok(Self {
            writer: writer.parse()?,
            number: number.parse()?,
            step: step.parse()?,
            kind: kind.to_owned(),
            key: key.parse()?,
            other: other.parse()?,
            values: (code.parse()?, tag.parse()?),
            kept: kept.to_owned(),
            committed_us: committed_us.parse().context("the time of a commit")?,
        })
    }

    fn version(&self) -> Version {
        (self.committed_us, self.writer / 100, self.number)
    }

    /// What tells this step from all others, in the row that it leaves.
    fn mark(&self) -> String {
        format!("{}/{}/{}", self.writer, self.number, self.step)
    }
}

/// What the tables must hold after exactly these transactions, whose steps are in their order.
pub(super) fn tables(log: &[Logged]) -> Tables {
    let mut writes: BTreeMap<(bool, i32), Vec<(Version, Left)>> = BTreeMap::new();
    for logged in log {
        let Some((what, table @ ("row" | "unique"))) = logged.kind.split_once(' ') else {
            continue;
        };
        let unique = table == "unique";
        let (code, tag) = logged.values;
        let left = (what != "delete").then_some((code, tag, logged.writer, logged.number));
        let key = if what == "move" { logged.other } else { logged.key };
        if what == "move" {
            writes.entry((unique, logged.key)).or_default().push((logged.version(), None));
        }
        writes.entry((unique, key)).or_default().push((logged.version(), left));
    }
    let mut tables = with_policies(log);
    for ((unique, key), written) in &writes {
        // Of one transaction the last step.
        let latest = written.iter().max_by_key(|(version, _)| *version);
        let Some((version, Some(left))) = latest else { continue };
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

/// The tables whose rows are only updated: each update of a balance counts, each column of a merged row is as its
/// latest write left it, and a row with a large value is as a whole as its latest write left it.
fn with_policies(log: &[Logged]) -> Tables {
    let mut balances: BTreeMap<i32, i64> = BTreeMap::new();
    let mut latest: BTreeMap<(&str, i32), &Logged> = BTreeMap::new();
    for logged in log {
        let place = match logged.kind.as_str() {
            "add balance" => {
                *balances.entry(logged.key).or_default() += i64::from(logged.values.0);
                continue;
            }
            "text large" | "value large" => "large",
            kind @ ("a merge" | "b merge") => kind,
            _ => continue,
        };
        let latest = latest.entry((place, logged.key)).or_insert(logged);
        if logged.version() >= latest.version() {
            *latest = logged;
        }
    }
    let mut tables = Tables {
        balances: balances.iter().map(|(key, balance)| format!("{key}|{balance}")).collect(),
        ..Tables::default()
    };
    let large = latest.iter().filter(|((place, _), _)| *place == "large");
    tables.large =
        large.map(|((_, key), write)| format!("{key}|{}|{}", write.mark(), write.kept)).collect();
    let mut merged: BTreeMap<i32, [String; 2]> = BTreeMap::new();
    for ((place, key), write) in latest {
        let columns = merged.entry(key).or_insert_with(|| ["-", "-"].map(str::to_owned));
        match place {
            "a merge" => columns[0] = write.mark(),
            "b merge" => columns[1] = write.mark(),
            _ => {}
        }
    }
    merged.retain(|_, [a, b]| a != "-" || b != "-");
    tables.merged = merged.iter().map(|(key, [a, b])| format!("{key}|{a}|{b}")).collect();
    tables
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn expected(log: &[&str]) -> (Vec<String>, Vec<String>) {
        let log: Vec<_> = log.iter().map(|row| Logged::read(row).unwrap()).collect();
        let Tables { rows, uniques, .. } = tables(&log);
        (rows, uniques)
    }

    #[test]
    fn the_latest_write_stays() {
        let log = [
            "101|1|1|insert row|5|0|0|0||10",
            "201|1|1|update row|5|0|0|0||12",
            "101|2|1|update row|5|0|0|0||11",
        ];
        assert_eq!(expected(&log).0, ["5|201|1"]);
        assert_eq!(expected(&[log[0], log[1], "301|1|1|delete row|5|0|0|0||13"]).0, [""; 0]);
        assert_eq!(expected(&[log[0], "301|1|1|move row|5|6|0|0||13"]).0, ["6|301|1"]);
        let tie = ["101|1|1|insert row|5|0|0|0||10", "201|1|1|insert row|5|0|0|0||10"];
        assert_eq!(expected(&tie).0, ["5|201|1"]);
    }

    #[test]
    fn a_later_claim_of_another_row_takes_the_value_wherever_that_row_is_now() {
        let log = ["101|1|1|insert unique|1|0|7|70||10", "201|1|1|insert unique|2|0|7|71||12"];
        assert_eq!(expected(&log).1, ["2|7|71|201|1"]);
        let moved = [log[0], log[1], "201|2|1|update unique|2|0|8|71||14"];
        assert_eq!(expected(&moved).1, ["2|8|71|201|2"]);
        let earlier = [log[0], "201|1|1|insert unique|2|0|9|70||9"];
        assert_eq!(expected(&earlier).1, ["1|7|70|101|1"]);
    }

    #[test]
    fn of_one_transaction_the_last_step_counts() {
        let log = ["101|1|1|insert row|5|0|0|0||10", "101|1|2|delete row|5|0|0|0||10"];
        assert_eq!(expected(&log).0, [""; 0]);
    }

    #[test]
    fn balances_add_up_columns_merge_and_large_values_go_with_their_row() {
        let log = [
            "101|1|1|add balance|5|0|7|0||10",
            "201|1|1|add balance|5|0|4|0||9",
            "101|2|1|a merge|5|0|0|0||11",
            "201|2|1|b merge|5|0|0|0||12",
            "201|3|1|value large|5|0|0|0|201/3/1|13",
            "101|4|1|text large|5|0|0|0|-|14",
        ];
        let log: Vec<_> = log.iter().map(|row| Logged::read(row).unwrap()).collect();
        let tables = tables(&log);
        assert_eq!(tables.balances, ["5|11"]);
        assert_eq!(tables.merged, ["5|101/2/1|201/2/1"]);
        assert_eq!(tables.large, ["5|101/4/1|-"]);
    }
}
