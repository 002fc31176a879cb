//! `synapsedb verify`: compares the rows of all nodes, and sets those that differ as they are on one of them.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::ask::{self, Output, field};
use super::progress::Progress;
use super::{DIFFERENT, Data, FAILURE};
use crate::layout::{Cluster, Node};

/// How often is asked how far it is.
const POLL: Duration = Duration::from_millis(200);
/// How many differing rows of a table are shown.
const SHOWN_MAX: usize = 20;

/// The arguments of `verify`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    data: Data,
    /// The table, with or without its schema [default: all tables]
    table: Option<String>,
    /// Sets the rows that differ as they are on the node that --from names
    #[arg(long, requires = "from")]
    repair: bool,
    /// The node that is right
    #[arg(long, value_name = "NODE", requires = "repair")]
    from: Option<u16>,
    /// Does not ask before it repairs
    #[arg(long, requires = "repair")]
    yes: bool,
    /// The node that coordinates [default: the first that answers]
    #[arg(long)]
    node: Option<u16>,
    /// How it is printed
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let cluster = arguments.data.cluster()?;
    let node = match arguments.node {
        Some(number) => cluster.node(number)?,
        None => ask::get_first(&cluster, "/health")?.0,
    };
    if let Some(from) = arguments.from {
        cluster.node(from)?;
    }
    if !arguments.repair || arguments.yes {
        return compare(&cluster, node, arguments, arguments.from);
    }
    let from = arguments.from.context("--repair needs --from")?;
    let found = compare(&cluster, node, arguments, None)?;
    if found != ExitCode::from(DIFFERENT) {
        return Ok(found);
    }
    ask::confirm(&format!(
        "Set the rows that differ as they are on node {from}, on all other nodes?"
    ))?;
    compare(&cluster, node, arguments, Some(from))
}

fn compare(
    cluster: &Cluster,
    node: &Node,
    arguments: &Arguments,
    from: Option<u16>,
) -> Result<ExitCode> {
    let asked = json!({ "table": arguments.table, "repair_from": from });
    let job = ask::post(node, "/replication/verify", &asked)?;
    let path = format!("/replication/verify/{}", field(&job, "id"));
    let job = super::runtime()?.block_on(follow(node, &path, cluster.nodes.len()))?;
    match arguments.output {
        Output::Json => super::say(serde_json::to_string_pretty(&job)?),
        Output::Table => super::say(render(&job)),
    }
    Ok(match field(&job, "verdict").as_str() {
        "equal" | "repaired" => ExitCode::SUCCESS,
        "different" => ExitCode::from(DIFFERENT),
        _ => ExitCode::from(FAILURE),
    })
}

/// Shows how far it is until it is over; Ctrl-C cancels it.
async fn follow(node: &Node, path: &str, nodes: usize) -> Result<Value> {
    let mut progress = Progress::start(&format!("Comparing {nodes} nodes"));
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let job = ask::get(node, path, &[])?;
        if !matches!(field(&job, "state").as_str(), "waiting" | "running") {
            progress.clear();
            return Ok(job);
        }
        if let Some(at) =
            job.get("progress").filter(|at| at.get("table").is_some_and(Value::is_string))
        {
            progress.tell(&format!(
                "{} ({} of {} tables): {} rows compared, {} differ",
                field(at, "table"),
                field(at, "tables_done"),
                field(at, "tables"),
                field(at, "rows"),
                field(at, "different")
            ));
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = &mut interrupt => {
                ask::delete(node, path)?;
                interrupt.set(tokio::signal::ctrl_c());
            }
        }
    }
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn render(job: &Value) -> String {
    let mut lines = Vec::new();
    let tables = list(job, "tables");
    if !tables.is_empty() {
        let header = ["TABLE", "ROWS", "DIFFERENT", "LEFT", "IN FLIGHT", "NOTE"];
        let header = header.iter().map(ToString::to_string).collect();
        lines.push(ask::table(header, tables.iter().map(row).collect()));
    }
    for table in tables {
        lines.extend(differences(table));
    }
    for node in list(job, "unreachable") {
        let (node, reason) = (field(node, "node"), field(node, "reason"));
        lines.push(format!("node {node} was not compared: {reason}"));
    }
    let nodes: Vec<_> = list(job, "nodes").iter().map(ToString::to_string).collect();
    let nodes = nodes.join(", ");
    lines.push(match (field(job, "state").as_str(), field(job, "verdict").as_str()) {
        ("done", "equal") => format!("EQUAL  nodes {nodes} hold the same rows"),
        ("done", "repaired") => format!("REPAIRED  nodes {nodes} hold the same rows now"),
        ("done", "different") => format!("DIFFERENT  nodes {nodes} do not hold the same rows"),
        ("done", _) => {
            format!("INCOMPLETE  nothing differs on nodes {nodes}, but not everything was compared")
        }
        ("cancelled", _) => "CANCELLED".to_owned(),
        _ => format!("FAILED  {}", field(job, "error")),
    });
    lines.join("\n")
}

fn row(table: &Value) -> Vec<String> {
    let keyless = table.get("keyless") == Some(&Value::Bool(true));
    let told = ["schema_difference", "error", "undecided_reason"].map(|key| field(table, key));
    let note = told.into_iter().find(|note| note != "-");
    let note = note.unwrap_or_else(|| if keyless { "no primary key" } else { "" }.to_owned());
    vec![
        format!("{}.{}", field(table, "schema"), field(table, "name")),
        field(table, "rows"),
        field(table, "different"),
        field(table, "left"),
        field(table, "in_flight"),
        note,
    ]
}

fn differences(table: &Value) -> Vec<String> {
    let name = format!("{}.{}", field(table, "schema"), field(table, "name"));
    let named = list(table, "differences");
    let line = |difference: &Value| {
        let key: Vec<_> =
            list(difference, "key").iter().map(|part| part.as_str().unwrap_or_default()).collect();
        let faults = difference.get("faults").and_then(Value::as_object);
        let faults: Vec<_> = faults
            .into_iter()
            .flatten()
            .map(|(node, fault)| format!("{} on node {node}", fault.as_str().unwrap_or_default()))
            .collect();
        let row =
            if key.is_empty() { name.clone() } else { format!("{name} ({})", key.join(", ")) };
        let failed = match field(difference, "not_repaired").as_str() {
            "-" => String::new(),
            reason => format!("; not repaired: {reason}"),
        };
        format!("{row}: {}{failed}", faults.join(", "))
    };
    let mut lines: Vec<_> = named.iter().take(SHOWN_MAX).map(line).collect();
    let all = table.get("different").and_then(Value::as_u64).unwrap_or(0);
    let more = all.saturating_sub(lines.len() as u64);
    if more > 0 {
        lines.push(format!("{name}: and {more} rows more (-o json)"));
    }
    lines
}
