//! Whether nodes hold the same rows: one digest per table, and the first rows that differ.

use std::collections::{BTreeMap, BTreeSet};

use crate::node::Node;

/// The tables of the application: not the system's, not SynapseDB's own, not an extension's.
const TABLES: &str = include_str!("digest_tables.sql");
/// The number of rows of a table and the md5 over its rows in order.
const TABLE: &str = include_str!("digest_table.sql");
/// How many differing rows of a table are shown.
const SHOWN: usize = 10;

/// Table to "rows|md5", as PostgreSQL quotes the names.
pub type Digest = BTreeMap<String, String>;

/// The digest of every table of the application on a node.
///
/// # Errors
/// The server's error.
pub async fn take(node: &Node) -> Result<Digest, String> {
    let session = node.server().try_session().await.map_err(|error| format!("{error:#}"))?;
    let said = |error| format!("node {}: {}", node.number(), crate::client::words(&error));
    let mut digest = Digest::new();
    for table in session.rows(TABLES).await.map_err(said)? {
        let sql = TABLE.replace("$table", &table);
        let rows = session.rows(&sql).await.map_err(said)?;
        digest.insert(table, rows.concat());
    }
    Ok(digest)
}

/// Whether all nodes have the same tables with the same rows.
///
/// # Errors
/// Which tables differ, with the number of rows and the digest of each side, or why a node does not answer.
pub async fn compare(nodes: &[Node]) -> Result<(), String> {
    let Some((first, others)) = nodes.split_first() else { return Ok(()) };
    let expected = take(first).await?;
    for node in others {
        let found = take(node).await?;
        let differences = differences(&expected, &found);
        if !differences.is_empty() {
            return Err(format!(
                "node {} and node {}: {}",
                first.number(),
                node.number(),
                differences.join("; ")
            ));
        }
    }
    Ok(())
}

fn differences(left: &Digest, right: &Digest) -> Vec<String> {
    let tables: BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let missing = "no such table";
    tables
        .into_iter()
        .filter(|table| left.get(*table) != right.get(*table))
        .map(|table| {
            let side = |digest: &Digest| digest.get(table).cloned().unwrap_or(missing.to_owned());
            format!("{table} is {} here and {} there", side(left), side(right))
        })
        .collect()
}

/// The first rows by which each differing table of the other nodes differs from that of the first node.
pub async fn first_differences(nodes: &[Node]) -> String {
    let Some((first, others)) = nodes.split_first() else { return String::new() };
    let mut report = Vec::new();
    let Ok(expected) = take(first).await else { return "node 1 does not answer".to_owned() };
    for node in others {
        let Ok(found) = take(node).await else { continue };
        for (table, digest) in &expected {
            if found.get(table).is_none_or(|other| other == digest) {
                continue;
            }
            let sql = format!("select t::text from only {table} t");
            let left = first.server().try_rows(&sql).await.unwrap_or_default();
            let right = node.server().try_rows(&sql).await.unwrap_or_default();
            report.push(format!("{table}, node {} and node {}:", first.number(), node.number()));
            report.extend(row_differences(&left, &right));
        }
    }
    report.join("\n")
}

fn row_differences(left: &[String], right: &[String]) -> Vec<String> {
    let mut count: BTreeMap<&str, i64> = BTreeMap::new();
    for row in left {
        *count.entry(row).or_default() += 1;
    }
    for row in right {
        *count.entry(row).or_default() -= 1;
    }
    let differing = count.into_iter().filter(|(_, surplus)| *surplus != 0);
    let lines = differing.map(|(row, surplus)| {
        let side = if surplus > 0 { "only on the first" } else { "only on the second" };
        format!("  {side} ({} times): {row}", surplus.abs())
    });
    lines.take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_only_one_side_has() {
        let rows = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let found = row_differences(&rows(&["(1)", "(2)", "(2)"]), &rows(&["(2)", "(3)"]));
        assert_eq!(
            found,
            [
                "  only on the first (1 times): (1)",
                "  only on the first (1 times): (2)",
                "  only on the second (1 times): (3)"
            ]
        );
    }

    #[test]
    fn a_missing_table_is_a_difference() {
        let left = Digest::from([("a".to_owned(), "1|x".to_owned())]);
        assert_eq!(differences(&left, &Digest::new()), ["a is 1|x here and no such table there"]);
        assert!(differences(&left, &left.clone()).is_empty());
    }
}
