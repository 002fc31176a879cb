//! `synapsedb repl`: how far every node is behind every other, and the changes that wait for a person.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::ask::{self, Entry, Output, field};
use super::{DEGRADED, Data};
use crate::layout::Cluster;

/// The arguments of `repl`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    shown: Shown,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Args)]
struct Shown {
    #[command(flatten)]
    data: Data,
    /// How it is printed
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Lists the changes that could not be applied
    Quarantine {
        #[command(flatten)]
        shown: Shown,
        /// Of this node only
        #[arg(long)]
        node: Option<u16>,
        /// How many of each node
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Tries a change again that could not be applied
    Retry {
        #[command(flatten)]
        data: Data,
        /// Which: node and number, such as 2/17
        id: Entry,
        /// The node, if it is not in the number
        #[arg(long)]
        node: Option<u16>,
    },
    /// Gives a change up that could not be applied
    Skip {
        #[command(flatten)]
        data: Data,
        /// Which: node and number, such as 2/17
        id: Entry,
        /// The node, if it is not in the number
        #[arg(long)]
        node: Option<u16>,
        /// Does not ask
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let before = &arguments.shown.data;
    match &arguments.command {
        None => matrix(&arguments.shown),
        Some(Command::Quarantine { shown, node, limit }) => {
            let cluster = shown.data.or(before).cluster()?;
            quarantine(&cluster, shown.output, *node, *limit)
        }
        Some(Command::Retry { data, id, node }) => {
            let cluster = data.or(before).cluster()?;
            let (node, number) = id.of(&cluster, *node)?;
            let path = format!("/replication/quarantine/{number}/retry");
            ask::post(node, &path, &json!({}))?;
            super::say(format_args!("Change {}/{number} is applied.", node.id));
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Skip { data, id, node, yes }) => {
            skip(&data.or(before).cluster()?, *id, *node, *yes)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn skip(cluster: &Cluster, id: Entry, node: Option<u16>, yes: bool) -> Result<()> {
    let (node, number) = id.of(cluster, node)?;
    if !yes {
        ask::confirm(&format!(
            "Give change {number} of the quarantine of node {} up, so that its row stays different there?",
            node.id
        ))?;
    }
    let path = format!("/replication/quarantine/{number}/skip");
    let given_up = ask::post(node, &path, &json!({}))?;
    super::say(format_args!(
        "Given up: {} on {}.{} of node {}; the log of the agent keeps what it was.",
        field(&given_up, "kind"),
        field(&given_up, "schema_name"),
        field(&given_up, "table_name"),
        field(&given_up, "origin"),
    ));
    Ok(())
}

fn matrix(shown: &Shown) -> Result<ExitCode> {
    let cluster = shown.data.cluster()?;
    let (_, body) = ask::get_first(&cluster, "/replication/status")?;
    let rows = body.get("matrix").and_then(Value::as_array).cloned().unwrap_or_default();
    let problems: Vec<String> = rows.iter().flat_map(problems).collect();
    match shown.output {
        Output::Json => {
            let shown = json!({ "node": body.get("node"), "matrix": rows, "problems": problems });
            super::say(serde_json::to_string_pretty(&shown)?);
        }
        Output::Table => {
            super::say(format_args!(
                "Age of the newest row from each node, and bytes of its log not applied yet, seen by node {}:",
                field(&body, "node")
            ));
            super::say(render(&rows));
            problems.iter().for_each(|problem| super::say(format_args!("- {problem}")));
        }
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DEGRADED) })
}

fn render(rows: &[Value]) -> String {
    let nodes: Vec<String> = rows.iter().map(|row| field(row, "node")).collect();
    let header =
        ["NODE".to_owned()].into_iter().chain(nodes.iter().map(|node| format!("FROM {node}")));
    let lines = rows.iter().map(|row| {
        let own = field(row, "node");
        let cells = nodes.iter().map(|origin| cell(row, &own, origin));
        [own.clone()].into_iter().chain(cells).collect()
    });
    ask::table(header.collect(), lines.collect())
}

fn cell(row: &Value, own: &str, origin: &str) -> String {
    if own == origin {
        return "-".to_owned();
    }
    let Some(lanes) = row.get("lanes").and_then(Value::as_array) else {
        return "unreachable".to_owned();
    };
    let Some(lane) = lanes.iter().find(|lane| field(lane, "origin") == origin) else {
        return "-".to_owned();
    };
    let number = |name: &str| lane.get(name).and_then(Value::as_u64);
    let age = number("probe_age_ms").map_or("never".to_owned(), |age| format!("{age} ms"));
    let bytes = number("lag_bytes").map_or("? B".to_owned(), |bytes| format!("{bytes} B"));
    match field(lane, "state").as_str() {
        "flowing" => format!("{age}, {bytes}"),
        state => format!("{age}, {bytes}, {state}"),
    }
}

/// What is wrong with a node's row of the matrix, a sentence each.
fn problems(row: &Value) -> Vec<String> {
    let node = field(row, "node");
    let Some(lanes) = row.get("lanes").and_then(Value::as_array) else {
        return vec![format!("node {node} is unreachable: {}", field(row, "unreachable"))];
    };
    let problem = |lane: &Value| {
        let (origin, state) = (field(lane, "origin"), field(lane, "state"));
        if matches!(state.as_str(), "blocked" | "clock_skew") {
            let detail = field(lane, "detail");
            return Some(format!("node {node} does not apply node {origin} ({state}): {detail}"));
        }
        let unknown = lane.get("lag_bytes").is_none_or(Value::is_null);
        unknown.then(|| {
            let heard = match field(lane, "heartbeat_age_ms").as_str() {
                "-" => "it was never heard of".to_owned(),
                age => format!("it was heard last {age} ms ago"),
            };
            format!("node {node} does not know how far it is behind node {origin}: {heard}")
        })
    };
    lanes.iter().filter_map(problem).collect()
}

fn quarantine(
    cluster: &Cluster,
    output: Output,
    node: Option<u16>,
    limit: u32,
) -> Result<ExitCode> {
    let query = [("limit", limit.to_string())];
    let answers = ask::get_all(cluster, node, "/replication/quarantine", &query)?;
    let (entries, unreachable) = gather(answers, "quarantined")?;
    if output == Output::Json {
        let shown = json!({ "quarantined": entries, "unreachable": unreachable });
        super::say(serde_json::to_string_pretty(&shown)?);
    } else if entries.is_empty() {
        super::say("Nothing is in quarantine.");
    } else {
        let header = ["ID", "AT", "ORIGIN", "TABLE", "KIND", "ATTEMPTS", "REASON"];
        let line = |entry: &Value| {
            vec![
                format!("{}/{}", field(entry, "node"), field(entry, "id")),
                field(entry, "at"),
                field(entry, "origin"),
                format!("{}.{}", field(entry, "schema_name"), field(entry, "table_name")),
                field(entry, "kind"),
                field(entry, "attempts"),
                field(entry, "reason"),
            ]
        };
        let header = header.iter().map(ToString::to_string).collect();
        super::say(ask::table(header, entries.iter().map(line).collect()));
    }
    Ok(tell_unreachable(&unreachable))
}

/// The entries of all nodes, each with its node, and the nodes that did not answer.
pub(super) fn gather(
    answers: Vec<(&crate::layout::Node, Result<Value>)>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>)> {
    let (mut entries, mut unreachable) = (Vec::new(), Vec::new());
    let asked = answers.len();
    for (node, answer) in answers {
        match answer {
            Ok(body) => {
                for entry in body.get(key).and_then(Value::as_array).cloned().unwrap_or_default() {
                    let mut entry = entry;
                    entry["node"] = json!(node.id.get());
                    entries.push(entry);
                }
            }
            // One node that was asked, or all: then there is nothing to show.
            Err(error) if unreachable.len() + 1 == asked => return Err(error),
            Err(error) => {
                let reason = format!("{error:#}");
                unreachable.push(json!({ "node": node.id.get(), "reason": reason }));
            }
        }
    }
    Ok((entries, unreachable))
}

/// Says which nodes did not answer; the exit code for it.
pub(super) fn tell_unreachable(unreachable: &[Value]) -> ExitCode {
    for node in unreachable {
        super::tell(format_args!(
            "node {} is not in it: {}",
            field(node, "node"),
            field(node, "reason")
        ));
    }
    if unreachable.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DEGRADED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_shown_as_nothing() {
        let lane = json!({"origin": 2, "state": "flowing", "probe_age_ms": 900_000, "lag_bytes": null,
            "heartbeat_age_ms": 900_100});
        let row = json!({"node": 1, "unreachable": null, "lanes": [lane]});
        assert_eq!(cell(&row, "1", "2"), "900000 ms, ? B");
        assert_eq!(
            problems(&row),
            ["node 1 does not know how far it is behind node 2: it was heard last 900100 ms ago"]
        );
        let gone = json!({"node": 3, "unreachable": "refused", "lanes": null});
        assert_eq!(cell(&gone, "3", "2"), "unreachable");
        assert_eq!(problems(&gone), ["node 3 is unreachable: refused"]);
    }
}
