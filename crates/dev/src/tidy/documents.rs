//! The rules of prose and manifests: links resolve, decisions are numbered, every dependency has its record, and no
//! text names a place that exists on one machine only.

use super::architecture::resolve;
use super::{Finding, Source};

/// Where the decision records are.
const DECISIONS: &str = "docs/decisions/";

/// Paths that mean something on one machine only. In two parts, or this file would be its own finding.
const MACHINE: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/fa", "rm/")];

/// No text names a directory of one machine, nor the home of whoever checks.
pub(super) fn no_machine_paths(file: &Source) -> Vec<Finding> {
    let home = std::env::var("HOME").map(|home| format!("{}/", home.trim_end_matches('/')));
    let home = home.ok().filter(|home| home.len() > 2);
    let mut findings = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        let mut places = MACHINE.iter().copied().chain(home.as_deref());
        if let Some(place) = places.find(|place| names(line, place)) {
            let message = format!("{place} exists on one machine only");
            findings.push(file.at(number + 1, message));
        }
    }
    findings
}

/// Whether a line names an absolute path that begins with `place`.
fn names(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !(c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '}' | '*')))
    })
}

/// The links of the Markdown files lead to files that exist.
pub(super) fn links(files: &[Source]) -> Vec<Finding> {
    let exists = |path: &str| {
        files.iter().any(|file| {
            file.path == path
                || file.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
        })
    };
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        for (number, line) in file.text.lines().enumerate() {
            for target in line.split("](").skip(1).filter_map(|part| part.split(')').next()) {
                let path = target.split(['#', ' ']).next().unwrap_or("");
                let outside =
                    path.is_empty() || path.contains("://") || path.starts_with("mailto:");
                if !outside && !exists(&resolve(file.folder(), path)) {
                    findings.push(file.at(number + 1, format!("the link leads nowhere: {path}")));
                }
            }
        }
    }
    findings
}

/// The decision records are numbered from 001 without a gap and say context, decision and cost.
pub(super) fn decisions(files: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let records = files.iter().filter(|file| file.path.starts_with(DECISIONS));
    for (index, file) in records.enumerate() {
        let number = format!("{:03}-", index + 1);
        if !file.name().starts_with(&number) {
            findings.push(file.at(0, format!("the next decision record begins with {number}")));
        }
        for section in ["## Context", "## Decision", "## Cost"] {
            if !file.text.lines().any(|line| line == section) {
                findings.push(file.at(0, format!("a decision record has a section \"{section}\"")));
            }
        }
    }
    findings
}

/// Every dependency of the workspace is named in a decision record.
pub(super) fn dependencies(files: &[Source]) -> Vec<Finding> {
    let Some(manifest) = files.iter().find(|file| file.path == "Cargo.toml") else {
        return Vec::new();
    };
    let records: String = files
        .iter()
        .filter(|file| file.path.starts_with(DECISIONS))
        .map(|file| file.text.as_str())
        .collect();
    let table: toml::Table = match manifest.text.parse() {
        Ok(table) => table,
        Err(error) => return vec![manifest.at(0, format!("is not TOML: {error}"))],
    };
    let workspace = table.get("workspace").and_then(|workspace| workspace.get("dependencies"));
    let Some(dependencies) = workspace.and_then(toml::Value::as_table) else { return Vec::new() };
    let own = |value: &toml::Value| value.get("path").is_some();
    let unrecorded = dependencies
        .iter()
        .filter(|(name, value)| !own(value) && !records.contains(&format!("`{name}`")));
    unrecorded
        .map(|(name, _)| manifest.at(0, format!("the dependency {name} has no decision record")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_path_of_one_machine_is_found() {
        let text = format!("see {}x\nand target{}x\n", MACHINE[0], MACHINE[0]);
        let found = no_machine_paths(&source("a.md", &text));
        assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_dead_link_is_found() {
        let files = [
            source("docs/a.md", "[b](b.md) [up](../README.md#x) [web](https://x.y) [dead](c.md)"),
            source("docs/b.md", "[folder](decisions)"),
            source("docs/decisions/001-x.md", ""),
            source("README.md", ""),
        ];
        let found = links(&files);
        assert_eq!(found.len(), 1);
        assert!(found[0].message.contains("c.md"));
    }

    #[test]
    fn a_gap_in_the_decisions_is_found() {
        let text = "# X\n## Context\n## Decision\n## Cost\n";
        let files =
            [source("docs/decisions/001-a.md", text), source("docs/decisions/003-b.md", "")];
        assert_eq!(decisions(&files).len(), 4);
    }

    #[test]
    fn a_dependency_without_record_is_found() {
        let manifest = "[workspace.dependencies]\na = \"1\"\nb = \"1\"\nown = { path = \"x\" }\n";
        let files = [source("Cargo.toml", manifest), source("docs/decisions/001-a.md", "`a`")];
        let found = dependencies(&files);
        assert_eq!(found.len(), 1);
        assert!(found[0].message.contains("dependency b "));
    }
}
