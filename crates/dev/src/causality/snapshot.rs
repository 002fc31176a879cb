//! What an observer sees at one moment, and whether an effect is there without its cause.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

/// What a reader sees in one statement.
pub(super) const SQL: &str = include_str!("snapshot.sql");

/// What one reader saw at one moment.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// How far each writer is, and what it had seen of the others.
    progress: BTreeMap<i32, (i64, BTreeMap<i32, i64>)>,
    /// Whose rows there are: table, writer, number.
    rows: Vec<(String, i32, i64)>,
}

impl Snapshot {
    /// From the rows of [`SQL`].
    pub(super) fn read(rows: &[String]) -> Result<Self> {
        let mut snapshot = Self::default();
        for row in rows {
            let columns: Vec<_> = row.splitn(4, '|').collect();
            let [table, writer, number, saw] = columns[..] else { bail!("{row} has no columns") };
            let (writer, number) = (writer.parse()?, number.parse()?);
            if table != "progress" {
                snapshot.rows.push((table.to_owned(), writer, number));
                continue;
            }
            let saw: BTreeMap<String, i64> = serde_json::from_str(saw).context("what was seen")?;
            let saw = saw.into_iter().map(|(writer, number)| Ok((writer.parse()?, number)));
            snapshot.progress.insert(writer, (number, saw.collect::<Result<_>>()?));
        }
        Ok(snapshot)
    }

    /// Every effect that is seen without its cause.
    pub(super) fn violations(&self) -> Vec<String> {
        let reached = |writer: i32| self.progress.get(&writer).map_or(0, |(number, _)| *number);
        let mut violations = Vec::new();
        for (writer, (number, saw)) in &self.progress {
            for (&other, &seen) in saw.iter().filter(|(other, seen)| reached(**other) < **seen) {
                violations.push(format!(
                    "transaction {number} of writer {writer} is seen, but not transaction {seen} of writer {other}, \
                     which it had seen (only {})",
                    reached(other)
                ));
            }
        }
        for (table, writer, number) in &self.rows {
            if reached(*writer) < *number {
                violations.push(format!(
                    "a row of {table} by transaction {number} of writer {writer} is seen, but only {} of its own rows",
                    reached(*writer)
                ));
            }
        }
        violations
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn violations(rows: &[&str]) -> Vec<String> {
        let rows: Vec<_> = rows.iter().map(|row| (*row).to_owned()).collect();
        Snapshot::read(&rows).unwrap().violations()
    }

    #[test]
    fn a_causal_snapshot_violates_nothing() {
        let rows = ["progress|101|5|{\"201\": 7}", "progress|201|7|{\"101\": 4}", "hot_row|101|5|"];
        assert!(violations(&rows).is_empty());
    }

    #[test]
    fn an_effect_without_its_cause_is_found() {
        let found = violations(&["progress|101|5|{\"201\": 8}", "progress|201|7|{}"]);
        assert!(found.len() == 1 && found[0].contains("transaction 8 of writer 201"), "{found:?}");
        assert_eq!(violations(&["progress|101|5|{\"201\": 1}"]).len(), 1);
    }

    #[test]
    fn a_torn_transaction_is_found() {
        assert_eq!(violations(&["progress|101|5|{}", "hot_unique|101|6|"]).len(), 1);
    }
}
