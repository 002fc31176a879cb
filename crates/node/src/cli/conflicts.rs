//! `synapsedb conflicts`: the conflicts that were settled, of all nodes.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::ask::{self, Entry, Output, field};
use super::{Data, repl};
use crate::http::api::rfc3339;

/// The verbs of `conflicts`.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Lists the conflicts, the newest first
    Ls(List),
    /// Shows a conflict with both rows
    Show(Show),
}

/// Which conflicts.
#[derive(clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    data: Data,
    /// Settled on this node only
    #[arg(long)]
    node: Option<u16>,
    /// Of this table, with or without its schema
    #[arg(long)]
    table: Option<String>,
    /// Of this type, such as update_update
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Settled since: how long ago (30s, 10m, 2h, 7d), or an instant
    #[arg(long)]
    since: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// How they are printed
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Which conflict.
#[derive(clap::Args)]
pub(super) struct Show {
    #[command(flatten)]
    data: Data,
    /// Which: node and number, such as 2/17
    id: Entry,
    /// The node, if it is not in the number
    #[arg(long)]
    node: Option<u16>,
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Ls(arguments) => list(arguments),
        Command::Show(arguments) => {
            let cluster = arguments.data.cluster()?;
            let (node, number) = arguments.id.of(&cluster, arguments.node)?;
            let mut conflict = ask::get(node, &format!("/replication/conflicts/{number}"), &[])?;
            conflict["node"] = json!(node.id.get());
            super::say(serde_json::to_string_pretty(&conflict)?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list(arguments: &List) -> Result<ExitCode> {
    let cluster = arguments.data.cluster()?;
    let mut query = vec![("limit", arguments.limit.to_string())];
    let filters = [("table", arguments.table.clone()), ("type", arguments.kind.clone())];
    query.extend(filters.into_iter().filter_map(|(name, value)| Some((name, value?))));
    if let Some(since) = &arguments.since {
        query.push(("since", instant(since, SystemTime::now())?));
    }
    let answers = ask::get_all(&cluster, arguments.node, "/replication/conflicts", &query)?;
    let (mut conflicts, unreachable) = repl::gather(answers, "conflicts")?;
    conflicts.sort_by_key(|conflict| std::cmp::Reverse(field(conflict, "at")));
    conflicts.truncate(arguments.limit as usize);
    if arguments.output == Output::Json {
        let shown = json!({ "conflicts": conflicts, "unreachable": unreachable });
        super::say(serde_json::to_string_pretty(&shown)?);
    } else if conflicts.is_empty() {
        super::say("There are no conflicts.");
    } else {
        super::say(render(&conflicts));
    }
    Ok(repl::tell_unreachable(&unreachable))
}

fn render(conflicts: &[Value]) -> String {
    let header = ["ID", "AT", "TABLE", "KEY", "TYPE", "RESOLUTION", "LOCAL", "REMOTE"];
    let line = |conflict: &Value| {
        vec![
            format!("{}/{}", field(conflict, "node"), field(conflict, "id")),
            field(conflict, "at"),
            format!("{}.{}", field(conflict, "schema_name"), field(conflict, "table_name")),
            field(conflict, "key"),
            field(conflict, "type"),
            field(conflict, "resolution"),
            field(conflict, "local_node"),
            field(conflict, "remote_node"),
        ]
    };
    let header = header.iter().map(ToString::to_string).collect();
    ask::table(header, conflicts.iter().map(line).collect())
}

/// An instant as it is sent: `10m` is ten minutes before `now`, everything else is left to the server.
fn instant(text: &str, now: SystemTime) -> Result<String> {
    let unit = |unit: char| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(86_400),
        _ => None,
    };
    let ago = text.char_indices().last().and_then(|(at, last)| {
        let number: u64 = text[..at].parse().ok()?;
        number.checked_mul(unit(last)?)
    });
    let Some(seconds) = ago else { return Ok(text.to_owned()) };
    let since = now.checked_sub(Duration::from_secs(seconds));
    since.map(rfc3339).with_context(|| format!("--since {text} is before all time"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_time_span_is_counted_back_from_now() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(90_000);
        assert_eq!(instant("30m", now).unwrap(), "1970-01-02T00:30:00.000Z");
        assert_eq!(instant("1d", now).unwrap(), "1970-01-01T01:00:00.000Z");
        for text in ["2026-01-02", "yesterday", "", "m", "-1h"] {
            assert_eq!(instant(text, now).unwrap(), text);
        }
    }
}
