//! The statistics as a page.

use std::fmt::Write as _;

use super::line::{Kind, Line};
use super::{Report, Shared};

const STYLE: &str = include_str!("page.css");

/// The columns that people look at, with their headings.
const SHOWN: [(&str, &str); 14] = [
    ("status", "status"),
    ("check_desc", ""),
    ("qcur", "waiting"),
    ("scur", "now"),
    ("smax", "most"),
    ("slim", "limit"),
    ("stot", "total"),
    ("bin", "in"),
    ("bout", "out"),
    ("dreq", "denied"),
    ("ereq", "requests"),
    ("econ", "connects"),
    ("act", "active"),
    ("bck", "backup"),
];

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number of bytes as people read it.
fn bytes(text: &str) -> String {
    let Ok(count) = text.parse::<u64>() else { return text.to_owned() };
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let digits = usize::from(unit != "B");
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

pub(super) fn page(shared: &Shared, report: &Report, lines: &[Line]) -> String {
    let primary = shared.state.borrow().primary;
    let primary = primary.map_or("none".to_owned(), |node| format!("node {node}"));
    let agents: Vec<String> = report.agents.iter().map(ToString::to_string).collect();
    let members = shared.state.borrow().members.len();
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>SynapseDB router</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><meta http-equiv=\"refresh\" content=\"5\">\
         <style>{STYLE}</style></head><body><h1>SynapseDB router</h1>\
         <p>Primary: <b>{primary}</b>. Counted by {} of {members} agents: {}. Answered by node {}. \
         <a href=\"/stats;csv\">CSV</a> · <a href=\"/metrics\">metrics</a></p>",
        agents.len(),
        agents.join(", "),
        shared.own,
    );
    let mut table = None;
    for line in lines {
        if table != Some(line.endpoint) {
            if table.is_some() {
                html.push_str("</tbody></table>");
            }
            table = Some(line.endpoint);
            let address = shared.listens(line.endpoint);
            let name = line.endpoint.name();
            let _ = write!(
                html,
                "<h2>{name} <small>{address}</small></h2><table><thead><tr><th></th><th colspan=\"2\"></th><th></th>\
                 <th colspan=\"4\">sessions</th><th colspan=\"2\">bytes</th><th></th><th colspan=\"2\">errors</th>\
                 <th colspan=\"2\">nodes</th></tr><tr><th></th>"
            );
            for (_, heading) in SHOWN {
                let _ = write!(html, "<th>{heading}</th>");
            }
            html.push_str("</tr></thead><tbody>");
        }
        row(&mut html, line);
    }
    html.push_str("</tbody></table></body></html>");
    html
}

fn row(html: &mut String, line: &Line) {
    let backup = line.kind == Kind::Server && line.value("bck") == "1";
    let class = match (line.kind, line.value("status")) {
        (_, "DOWN") => "down",
        (Kind::Server, _) if backup => "backup",
        (Kind::Server, _) => "up",
        (Kind::Frontend | Kind::Backend, _) => "sum",
    };
    let title = escaped(line.value("addr"));
    let name = escaped(line.value("svname"));
    let _ = write!(html, "<tr class=\"{class}\"><th title=\"{title}\">{name}</th>");
    for (column, _) in SHOWN {
        let value = line.value(column);
        let shown = match column {
            "bin" | "bout" => bytes(value),
            _ => value.to_owned(),
        };
        let align = if matches!(column, "status" | "check_desc") { " class=\"text\"" } else { "" };
        let _ = write!(html, "<td{align}>{}</td>", escaped(&shown));
    }
    html.push_str("</tr>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_rounded_and_texts_are_escaped() {
        assert_eq!(bytes("1023"), "1023 B");
        assert_eq!(bytes("1536"), "1.5 KiB");
        assert_eq!(bytes(""), "");
        assert_eq!(escaped("<a&\">"), "&lt;a&amp;&quot;&gt;");
    }
}
