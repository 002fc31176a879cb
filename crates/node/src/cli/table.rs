//! The table of `synapsedb status`: at most one screen.

use comfy_table::{Cell, Color, Table};

use super::status::{NodeReport, Report, Verdict};

/// How many reasons are shown.
const REASONS_MAX: usize = 5;

pub(super) fn render(report: &Report) -> String {
    let verdict = match report.verdict {
        Verdict::Healthy => "HEALTHY",
        Verdict::Degraded => "DEGRADED",
        Verdict::Down => "DOWN",
    };
    let number = |value: Option<u64>| value.map_or("none".to_owned(), |value| value.to_string());
    let mut lines = vec![
        format!("{verdict}  cluster {} in {}", report.cluster_id, report.data),
        format!(
            "primary: {} (epoch {})   raft leader: {} (term {})   read: {}   write: {}{}",
            number(report.primary),
            number(report.epoch),
            number(report.leader),
            number(report.term),
            report.read_port,
            report.write_port,
            report.split_port.map_or(String::new(), |port| format!("   split: {port}"))
        ),
        nodes(report).to_string(),
    ];
    lines.extend(report.reasons.iter().take(REASONS_MAX).map(|reason| format!("- {reason}")));
    if report.reasons.len() > REASONS_MAX {
        lines.push(format!("- and {} more: -o json", report.reasons.len() - REASONS_MAX));
    }
    if report.verdict != Verdict::Healthy {
        lines.push("next: synapsedb logs, synapsedb up".to_owned());
    }
    lines.join("\n")
}

fn nodes(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([
        "NODE", "AGENT", "READY", "POSTGRES", "PORT", "HTTP", "ROLE", "GOSSIP", "LAG MAX",
    ]);
    for node in &report.nodes {
        table.add_row(row(report, node));
    }
    table
}

fn row(report: &Report, node: &NodeReport) -> Vec<Cell> {
    let dash = || "-".to_owned();
    let id = Some(u64::from(node.id));
    let agent = match (node.agent_pid, node.answers) {
        (Some(pid), true) => format!("pid {pid}"),
        (Some(pid), false) => format!("pid {pid}, silent"),
        (None, true) => "answers".to_owned(),
        (None, false) => "down".to_owned(),
    };
    let role = match (report.primary == id, report.leader == id) {
        (true, true) => "primary, leader",
        (true, false) => "primary",
        (false, true) => "leader",
        (false, false) => "-",
    };
    let version = node.postgres_version.filter(|version| *version > 0);
    let version = version.map_or(String::new(), |v| format!(" {}.{}", v / 10_000, v % 10_000));
    let lag = node.lag_ms.map_or_else(dash, |lag| format!("{lag} ms"));
    vec![
        Cell::new(node.id),
        Cell::new(agent),
        if node.ready { Cell::new("yes").fg(Color::Green) } else { Cell::new("no").fg(Color::Red) },
        Cell::new(node.postgres.as_ref().map_or(dash(), |state| format!("{state}{version}"))),
        Cell::new(node.postgres_port),
        Cell::new(node.http_port),
        Cell::new(role),
        Cell::new(node.gossip.clone().unwrap_or_else(dash)),
        Cell::new(lag),
    ]
}
