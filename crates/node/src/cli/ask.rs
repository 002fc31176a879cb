//! Asks the agents of this machine over HTTP.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

use crate::layout::{Cluster, Node};

/// How long an agent may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into()
}

fn url(node: &Node, path: &str) -> String {
    format!("http://127.0.0.1:{}{path}", node.ports.raft)
}

/// Reads an answer; one that is no success is an error with its own words.
fn read(
    node: &Node,
    answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<Value> {
    let mut answer =
        answer.with_context(|| format!("the agent of node {} does not answer", node.id))?;
    let text = answer.body_mut().read_to_string()?;
    let body: Value = serde_json::from_str(&text).with_context(|| {
        format!("the agent of node {} answers what is no JSON: {text}", node.id)
    })?;
    if !answer.status().is_success() {
        let message = body.get("message").and_then(Value::as_str).unwrap_or(&text);
        bail!("node {}: {message}", node.id);
    }
    Ok(body)
}

/// Gets a route of a node.
pub(super) fn get(node: &Node, path: &str, query: &[(&str, String)]) -> Result<Value> {
    let query = query.iter().map(|(name, value)| (*name, value.as_str()));
    read(node, agent().get(url(node, path)).query_pairs(query).call())
}

/// Posts JSON to a route of a node.
pub(super) fn post(node: &Node, path: &str, body: &Value) -> Result<Value> {
    read(node, agent().post(url(node, path)).send_json(body))
}

/// Deletes a route of a node.
pub(super) fn delete(node: &Node, path: &str) -> Result<Value> {
    read(node, agent().delete(url(node, path)).call())
}

/// Gets a route of the first node that answers.
pub(super) fn get_first<'c>(cluster: &'c Cluster, path: &str) -> Result<(&'c Node, Value)> {
    let mut failed = anyhow!("the cluster has no nodes");
    for node in &cluster.nodes {
        match get(node, path, &[]) {
            Ok(body) => return Ok((node, body)),
            Err(error) => failed = error,
        }
    }
    Err(failed.context("no agent answers; is the cluster running? (synapsedb status)"))
}

/// Gets a route of all nodes, or of one, at once.
pub(super) fn get_all<'c>(
    cluster: &'c Cluster,
    node: Option<u16>,
    path: &str,
    query: &[(&str, String)],
) -> Result<Vec<(&'c Node, Result<Value>)>> {
    let nodes: Vec<_> = match node {
        Some(number) => vec![cluster.node(number)?],
        None => cluster.nodes.iter().collect(),
    };
    Ok(std::thread::scope(|scope| {
        let asked: Vec<_> = nodes
            .into_iter()
            .map(|node| (node, scope.spawn(move || get(node, path, query))))
            .collect();
        let panicked = || Err(anyhow!("the question panicked"));
        asked
            .into_iter()
            .map(|(node, thread)| (node, thread.join().unwrap_or_else(|_| panicked())))
            .collect()
    }))
}

/// What every node keeps under numbers of its own is named by both: `2/17`, or `17` with the node named otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    node: Option<u16>,
    number: i64,
}

impl std::str::FromStr for Entry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |_| format!("{text} is no number of an entry, such as 2/17: entry 17 of node 2");
        let (node, number) = match text.split_once('/') {
            Some((node, number)) => (Some(node.parse().map_err(wrong)?), number),
            None => (None, text),
        };
        Ok(Self { node, number: number.parse().map_err(wrong)? })
    }
}

impl Entry {
    /// The node that keeps it, and its number there.
    pub(super) fn of(self, cluster: &Cluster, node: Option<u16>) -> Result<(&Node, i64)> {
        match (self.node, node) {
            (Some(one), Some(other)) if one != other => {
                bail!("{one}/{} is of node {one}, --node says {other}", self.number)
            }
            (Some(node), _) | (None, Some(node)) => Ok((cluster.node(node)?, self.number)),
            (None, None) => bail!(
                "which node's entry {number}? Every node has its own: say N/{number}, or --node N",
                number = self.number
            ),
        }
    }
}

/// Asks whether to go on; without a terminal, `--yes` must have been said.
pub(super) fn confirm(question: &str) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("{question} Say --yes to do it; nothing was changed");
    }
    print!("{question} Type yes: ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() != "yes" {
        bail!("nothing was changed");
    }
    Ok(())
}

/// A field as text: nothing as a dash.
pub(super) fn field(value: &Value, name: &str) -> String {
    match value.get(name) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// A table of columns without lines.
pub(super) fn table(header: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_names_its_node() {
        assert_eq!("2/17".parse(), Ok(Entry { node: Some(2), number: 17 }));
        assert_eq!("17".parse(), Ok(Entry { node: None, number: 17 }));
        for text in ["", "/", "2/", "/17", "a/1", "1/2/3"] {
            assert!(text.parse::<Entry>().is_err(), "{text}");
        }
    }
}
