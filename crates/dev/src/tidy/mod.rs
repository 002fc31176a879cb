//! Tidy: the style rules and architecture invariants that a program can check, run by `cargo dev check` and as a test.
//!
//! A rule is a function from the files of the tree to findings. It looks at text, not at a syntax tree: what it
//! cannot see is left to the reviewer, and STYLE.md says which rules those are.

mod architecture;
mod documents;
mod lexer;
mod rust;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Folders that are not ours to judge.
const SKIPPED: [&str; 6] =
    [".git", "target", "data", "bin", "node_modules", "proptest-regressions"];

/// A file of the tree.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its path from the root, with slashes.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// A rule that is broken, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file, from the root.
    pub path: String,
    /// The line, from 1; 0 when the whole file is meant.
    pub line: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

impl Source {
    /// A finding at a line of this file.
    fn at(&self, line: usize, message: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line, message: message.into() }
    }

    /// The last part of the path.
    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// The folder, without the last slash.
    fn folder(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    /// Whether it is Rust source.
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Everything that is wrong in the tree under `root`, in the order of the files.
///
/// # Errors
/// When the tree cannot be read.
pub fn check(root: &Path) -> Result<Vec<Finding>> {
    Ok(judge(&read(root)?))
}

/// Everything that is wrong with these files.
pub fn judge(files: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        if file.is_rust() {
            findings.extend(rust::check(file));
            findings.extend(architecture::check(file));
        }
        findings.extend(documents::no_machine_paths(file));
    }
    findings.extend(architecture::components(files));
    findings.extend(architecture::sql_is_included(files));
    findings.extend(documents::links(files));
    findings.extend(documents::decisions(files));
    findings.extend(documents::dependencies(files));
    findings.sort();
    findings
}

/// The text files of the tree under `root`.
fn read(root: &Path) -> Result<Vec<Source>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let skipped = SKIPPED.iter().any(|skipped| name == *skipped);
            if entry.file_type()?.is_dir() {
                if !skipped {
                    folders.push(entry.path());
                }
            } else if let Some(file) = read_file(root, entry.path()) {
                files.push(file);
            }
        }
    }
    files.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(files)
}

/// A file as text; what is not UTF-8, and the lock file, is no one's prose.
fn read_file(root: &Path, path: PathBuf) -> Option<Source> {
    let relative = path.strip_prefix(root).ok()?.to_str()?.to_owned();
    if relative == "Cargo.lock" || relative.ends_with(".log") || relative == ".git" {
        return None;
    }
    Some(Source { path: relative, text: std::fs::read_to_string(&path).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() -> Result<()> {
        let findings = check(&crate::binary::root())?;
        let lines: Vec<_> = findings.iter().map(Finding::to_string).collect();
        assert!(lines.is_empty(), "{}", lines.join("\n"));
        Ok(())
    }
}
