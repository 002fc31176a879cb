//! The invariants of ARCHITECTURE.md that can be read off the source: `core` is pure, `pg` knows no cluster, every
//! component says where it runs, every SQL file is used.

use std::collections::BTreeSet;

use super::lexer::{self, has_word};
use super::{Finding, Source};

/// The components of `node`: each is a folder with a face.
const COMPONENTS: [&str; 9] =
    ["tls", "peers", "gossip", "raft", "postgres", "replication", "router", "failover", "http"];
/// What `core` has no business with: IO, clocks, chance, and order that differs from run to run.
const IMPURE: [&str; 12] = [
    "tokio",
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "async",
    "await",
    "rand",
];
/// What `pg` may know of `core`.
const PG_MAY_USE: [&str; 3] = ["lsn", "time", "change"];

/// The rules of one file.
pub(super) fn check(file: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let code = lexer::code(&file.text);
    for (number, line) in code.lines.iter().enumerate() {
        if file.path.starts_with("crates/core/src/")
            && !code.test[number]
            && let Some(word) = IMPURE.iter().find(|word| has_word(line, word))
        {
            let message = format!("core is deterministic: no {word} here, take it as an argument");
            findings.push(file.at(number + 1, message));
        }
        if file.path.starts_with("crates/pg/") {
            findings.extend(foreign_words(line).map(|word| {
                let message = format!(
                    "pg knows no cluster: of core it may use only lsn, time and change, not {word}"
                );
                file.at(number + 1, message)
            }));
        }
    }
    findings
}

/// The modules of `core` that a line of `pg` names and may not.
fn foreign_words(line: &str) -> impl Iterator<Item = String> {
    let parts = line.split("synapsedb_core::").skip(1);
    parts.flat_map(modules).filter(|word| !PG_MAY_USE.contains(&word.as_str()))
}

/// The first segments of what follows `synapsedb_core::`: one module, or several in braces.
fn modules(path: &str) -> Vec<String> {
    let first = |text: &str| -> String {
        text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '*').collect()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![first(path)] };
    let (mut depth, mut words, mut start) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                words.push(first(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Every component of `node` says in its face where it runs and what it keeps.
pub(super) fn components(files: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for component in COMPONENTS {
        let path = format!("crates/node/src/{component}/mod.rs");
        let Some(face) = files.iter().find(|file| file.path == path) else {
            let message = "the component has no face".to_owned();
            findings.push(Finding { path, line: 0, message });
            continue;
        };
        let docs: Vec<_> = face.text.lines().take_while(|line| line.starts_with("//!")).collect();
        for mark in ["**Runs on:**", "**Invariant:**"] {
            if !docs.iter().any(|line| line.contains(mark)) {
                findings.push(face.at(1, format!("the face of a component says {mark} …")));
            }
        }
    }
    findings
}

/// Every `.sql` file is included by a Rust file.
pub(super) fn sql_is_included(files: &[Source]) -> Vec<Finding> {
    let mut included = BTreeSet::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        for part in file.text.split("include_str!(").skip(1) {
            if let Some(path) =
                part.trim_start().strip_prefix('"').and_then(|p| p.split('"').next())
            {
                included.insert(resolve(file.folder(), path));
            }
        }
    }
    let unused =
        files.iter().filter(|file| file.path.ends_with(".sql") && !included.contains(&file.path));
    unused.map(|file| file.at(0, "no include_str! names this file: use it or delete it")).collect()
}

/// A relative path from a folder, without `.` and `..`.
pub(super) fn resolve(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn an_impure_core_is_found() {
        let file = source(
            "crates/core/src/a.rs",
            "use std::collections::HashMap;\n// HashMap\nasync fn f() {}\n",
        );
        let lines: Vec<_> = check(&file).iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [1, 3]);
        assert!(check(&source("crates/node/src/a.rs", "async fn f() {}")).is_empty());
        let tests = "#[cfg(test)]\nmod tests {\n use std::collections::HashSet;\n}\n";
        assert!(check(&source("crates/core/src/a.rs", tests)).is_empty());
    }

    #[test]
    fn a_cluster_in_pg_is_found() {
        let found = |text: &str| check(&source("crates/pg/src/a.rs", text)).len();
        assert_eq!(found("use synapsedb_core::lsn::Lsn;"), 0);
        assert_eq!(found("use synapsedb_core::{change::{A, B}, lsn::Lsn, time};"), 0);
        assert_eq!(found("use synapsedb_core::ids::NodeId;"), 1);
        assert_eq!(found("use synapsedb_core::{lsn::Lsn, ids::NodeId, state};"), 2);
    }

    #[test]
    fn a_component_without_invariant_is_found() {
        let mut files: Vec<_> = COMPONENTS
            .iter()
            .map(|name| {
                let text = "//! What.\n//! **Runs on:** every node. **Invariant:** x.\n";
                source(&format!("crates/node/src/{name}/mod.rs"), text)
            })
            .collect();
        assert!(components(&files).is_empty());
        files[0].text = "//! What.\n//! **Runs on:** every node.\n".to_owned();
        files.pop();
        assert_eq!(components(&files).len(), 2);
    }

    #[test]
    fn an_unused_query_is_found() {
        let files = [
            source("crates/a/src/b/task.rs", "include_str!(\"sql/used.sql\")"),
            source("crates/a/src/b/sql/used.sql", "select 1"),
            source("crates/a/src/b/sql/unused.sql", "select 1"),
        ];
        let found = sql_is_included(&files);
        assert_eq!(found.len(), 1);
        assert!(found[0].path.ends_with("unused.sql"));
    }
}
