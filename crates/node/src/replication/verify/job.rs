//! The course of a comparison: which nodes, which tables, and what it comes to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use synapsedb_core::ids::NodeId;

use super::Job;
use super::api::{JobState, TableBody, UnreachableBody, Verdict};
use super::call::{Ask, Circle, Described, TableName, Trouble};
use super::table;
use crate::http::api::rfc3339;
use crate::replication::{Shared, other_members};

/// How often the description of tables that differ is asked again: DDL may be on its way.
const DESCRIPTIONS_MAX: usize = 3;

/// The tables of every node.
type Tables = BTreeMap<TableName, BTreeMap<NodeId, Described>>;

/// Runs a comparison to its end, whatever that is.
pub(super) async fn run(shared: &Shared, job: &Job) {
    job.update(|body| body.state = JobState::Running);
    shared.verify.metrics.jobs.inc();
    let mut nodes: Vec<NodeId> = other_members(shared).into_keys().collect();
    nodes.push(shared.identity.node);
    nodes.sort_unstable();
    let mut circle = Circle { shared, job: job.id, nodes, cancelled: &job.cancelled };
    let ended = compare(&mut circle, job).await;
    circle.end().await;
    job.update(|body| {
        body.nodes = circle.nodes.iter().map(|node| node.get()).collect();
        body.finished_at = Some(rfc3339(SystemTime::now()));
        match ended {
            Ok(()) => {
                body.state = JobState::Done;
                body.verdict = Some(verdict(&body.tables, &body.unreachable));
            }
            Err(Trouble::Cancelled) => body.state = JobState::Cancelled,
            Err(Trouble::Failed(reason) | Trouble::Lost { reason, .. }) => {
                shared.verify.metrics.failures.inc();
                body.state = JobState::Failed;
                body.error = Some(reason);
            }
        }
    });
    let body = job.body();
    tracing::info!(id = %job.id, state = ?body.state, verdict = ?body.verdict, rows = body.progress.rows,
        different = body.progress.different, "the nodes were compared");
}

fn verdict(tables: &[TableBody], unreachable: &[UnreachableBody]) -> Verdict {
    let incomplete = |table: &TableBody| table.error.is_some() || table.undecided > 0;
    if tables.iter().any(|table| table.left > 0 || table.schema_difference.is_some()) {
        Verdict::Different
    } else if !unreachable.is_empty() || tables.iter().any(incomplete) {
        Verdict::Incomplete
    } else if tables.iter().any(|table| table.different > 0) {
        Verdict::Repaired
    } else {
        Verdict::Equal
    }
}

async fn compare(circle: &mut Circle<'_>, job: &Job) -> Result<(), Trouble> {
    let asked = job.body();
    let from = asked.repair_from.and_then(NodeId::new);
    let tables = loop {
        match describe_all(circle, asked.table.as_ref()).await {
            Ok(tables) => break tables,
            Err(trouble) => without(circle, job, from, trouble)?,
        }
    };
    if let Some(name) = asked.table.as_ref().filter(|_| tables.is_empty()) {
        return Err(Trouble::Failed(format!(
            "there is no table {name} on any node; name it as in SQL, with its schema if need be"
        )));
    }
    job.update(|body| body.progress.tables = tables.len());
    for (name, described) in tables {
        job.update(|body| body.progress.table = Some(format!("{}.{}", name.schema, name.name)));
        let body = compare_table(circle, job, from, &name, described).await?;
        job.update(|job| {
            job.progress.tables_done += 1;
            job.tables.extend(body);
        });
    }
    job.update(|body| body.progress.table = None);
    Ok(())
}

/// Compares a table with whom it can; nothing if the table is dropped meanwhile.
async fn compare_table(
    circle: &mut Circle<'_>,
    job: &Job,
    from: Option<NodeId>,
    name: &TableName,
    mut described: BTreeMap<NodeId, Described>,
) -> Result<Option<TableBody>, Trouble> {
    loop {
        if let Some(difference) = schema_difference(&circle.nodes, &described) {
            return Ok(Some(table::body(name, Some(difference), None)));
        }
        let Some(here) = described.get(&circle.here()) else { return Ok(None) };
        let trouble = match table::verify(circle, job, here, from).await {
            Ok(body) => return Ok(Some(body)),
            Err(Trouble::Failed(reason)) => match describe_all(circle, None).await {
                // It was altered or dropped while it was compared.
                Ok(mut tables) => match tables.remove(name) {
                    None => return Ok(None),
                    Some(same) if same == described => {
                        return Ok(Some(table::body(name, None, Some(reason))));
                    }
                    Some(other) => {
                        described = other;
                        continue;
                    }
                },
                Err(trouble) => trouble,
            },
            Err(trouble) => trouble,
        };
        without(circle, job, from, trouble)?;
    }
}

/// Goes on without a node that was lost, if it can.
fn without(
    circle: &mut Circle<'_>,
    job: &Job,
    from: Option<NodeId>,
    trouble: Trouble,
) -> Result<(), Trouble> {
    let Trouble::Lost { node, reason } = trouble else { return Err(trouble) };
    circle.nodes.retain(|other| *other != node);
    job.update(|body| {
        body.unreachable.push(UnreachableBody { node: node.get(), reason: reason.clone() });
    });
    if from == Some(node) {
        return Err(Trouble::Failed(format!("the node to repair from is unreachable: {reason}")));
    }
    if circle.nodes.len() < 2 {
        return Err(Trouble::Failed(format!("there is no other node to compare with: {reason}")));
    }
    Ok(())
}

/// The tables of all nodes; those that differ are asked for again when all DDL has arrived.
async fn describe_all(circle: &Circle<'_>, wanted: Option<&String>) -> Result<Tables, Trouble> {
    let mut round = 1;
    loop {
        let ask = Ask::Tables { wanted: wanted.cloned() };
        let answers: BTreeMap<NodeId, Vec<Described>> = circle.ask_all(ask).await?;
        let mut tables = Tables::new();
        for (node, described) in answers {
            for table in described {
                tables.entry(table.table.clone()).or_default().insert(node, table);
            }
        }
        let differ =
            |of: &BTreeMap<NodeId, Described>| schema_difference(&circle.nodes, of).is_some();
        if round >= DESCRIPTIONS_MAX || !tables.values().any(differ) {
            return Ok(tables);
        }
        round += 1;
        // What keeps a node from applying is told by the rows, or is the very DDL that is missing.
        circle.barrier().await?;
    }
}

/// How a table differs between the nodes, as a sentence.
fn schema_difference(nodes: &[NodeId], described: &BTreeMap<NodeId, Described>) -> Option<String> {
    let missing: Vec<_> = nodes
        .iter()
        .filter(|node| !described.contains_key(node))
        .map(ToString::to_string)
        .collect();
    if !missing.is_empty() {
        return Some(format!("it is not on node {}", missing.join(" and ")));
    }
    let mut all = nodes.iter().filter_map(|node| Some((node, described.get(node)?)));
    let (first, expected) = all.next()?;
    let (other, found) = all.find(|(_, found)| *found != expected)?;
    let columns = |described: &Described| -> BTreeSet<String> {
        described
            .columns
            .iter()
            .map(|column| format!("{} {}", column.name, column.r#type))
            .collect()
    };
    let (expected_columns, found_columns) = (columns(expected), columns(found));
    let only = |some: &BTreeSet<String>, others: &BTreeSet<String>| {
        let only: Vec<_> = some.difference(others).cloned().collect();
        if only.is_empty() { "nothing".to_owned() } else { only.join(", ") }
    };
    Some(if expected_columns == found_columns {
        format!("its primary key is another one on node {first} than on node {other}")
    } else {
        format!(
            "its columns differ: only node {first} has {}, only node {other} has {}",
            only(&expected_columns, &found_columns),
            only(&found_columns, &expected_columns)
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::call::Column;
    use super::*;

    fn described(columns: &[(&str, &str)], key: &[(&str, &str)]) -> Described {
        let all = |all: &[(&str, &str)]| {
            let column = |(name, kind): &(&str, &str)| Column {
                name: (*name).to_owned(),
                r#type: (*kind).to_owned(),
            };
            all.iter().map(column).collect()
        };
        let table = TableName { schema: "public".to_owned(), name: "t".to_owned() };
        Described { table, columns: all(columns), key: all(key) }
    }

    #[test]
    fn a_table_that_differs_is_told_by_its_difference() {
        let nodes = [1, 2].map(|number| NodeId::new(number).unwrap());
        let of = |first: &Described, second: &Described| {
            let both = [(nodes[0], first.clone()), (nodes[1], second.clone())].into();
            schema_difference(&nodes, &both)
        };
        let id = [("id", "integer")];
        let one = described(&[("id", "integer"), ("v", "text")], &id);
        assert_eq!(of(&one, &one), None);
        assert_eq!(
            schema_difference(&nodes, &[(nodes[0], one.clone())].into()).unwrap(),
            "it is not on node 2"
        );
        assert_eq!(
            of(&one, &described(&id, &id)).unwrap(),
            "its columns differ: only node 1 has v text, only node 2 has nothing"
        );
        assert!(
            of(&one, &described(&[("id", "integer"), ("v", "text")], &[])).unwrap().contains("key")
        );
    }

    #[test]
    fn nothing_is_called_equal_that_was_not_compared() {
        let table = |change: fn(&mut TableBody)| {
            let mut table = TableBody::default();
            change(&mut table);
            table
        };
        let lost = [UnreachableBody { node: 3, reason: String::new() }];
        let one = |table| verdict(&[TableBody::default(), table], &[]);
        assert_eq!(one(table(|_| ())), Verdict::Equal);
        assert_eq!(one(table(|table| table.in_flight = 1)), Verdict::Equal);
        assert_eq!(verdict(&[], &lost), Verdict::Incomplete);
        assert_eq!(one(table(|table| table.undecided = 1)), Verdict::Incomplete);
        assert_eq!(one(table(|table| table.error = Some(String::new()))), Verdict::Incomplete);
        assert_eq!(one(table(|table| table.different = 1)), Verdict::Repaired);
        assert_eq!(
            one(table(|table| table.schema_difference = Some(String::new()))),
            Verdict::Different
        );
        let left = table(|table| (table.different, table.left) = (2, 1));
        assert_eq!(verdict(&[left], &lost), Verdict::Different);
    }
}
