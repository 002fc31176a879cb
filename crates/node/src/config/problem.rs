//! What is wrong with a configuration: every problem with its file, line, key and what is allowed.

use std::fmt;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// The file as a whole.
    File,
    /// A line of the file, the first is 1.
    Line(usize),
    /// A variable of the environment.
    Variable(String),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub(super) place: Place,
    /// The key with its sections, for example `postgres.port`; empty when no key is meant.
    pub path: String,
    /// What is wrong and what is allowed.
    pub text: String,
}

/// All that is wrong with one file; never empty when it is an error.
#[derive(Clone, Debug)]
pub struct Problems {
    file: String,
    /// In the order of the file's lines.
    pub list: Vec<Problem>,
}

impl Problems {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), list: Vec::new() }
    }

    pub(super) fn one(file: &str, text: String) -> Self {
        let problem = Problem { place: Place::File, path: String::new(), text };
        Self { file: file.to_owned(), list: vec![problem] }
    }

    pub(super) fn add(&mut self, place: Place, path: impl Into<String>, text: impl Into<String>) {
        let problem = Problem { place, path: path.into(), text: text.into() };
        // A removed key is missing afterwards: one problem per key is enough.
        if problem.path.is_empty() || !self.list.iter().any(|known| known.path == problem.path) {
            self.list.push(problem);
        }
    }

    pub(super) fn sort(&mut self) {
        self.list.sort_by(|a, b| a.place.cmp(&b.place));
    }

    pub(super) fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.list.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match &problem.place {
                Place::File => write!(f, "{}: ", self.file)?,
                Place::Line(line) => write!(f, "{}:{line}: ", self.file)?,
                Place::Variable(name) => write!(f, "environment {name}: ")?,
            }
            if !problem.path.is_empty() {
                write!(f, "{}: ", problem.path)?;
            }
            f.write_str(&problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Turns what serde says into what is wrong and what is allowed.
pub(super) fn explain(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field") || message.starts_with("unknown variant") {
        let what = if message.starts_with("unknown field") { "key" } else { "value" };
        let [given, allowed @ ..] = quoted.as_slice() else { return message.to_owned() };
        let hint =
            nearest(given, allowed).map_or(String::new(), |n| format!("did you mean `{n}`? "));
        let list = match allowed {
            [] => "no key is allowed here".to_owned(),
            names => format!("allowed: {}", names.join(", ")),
        };
        return format!("unknown {what} `{given}`; {hint}{list}");
    }
    let Some((given, expected)) = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))
        .and_then(|rest| rest.rsplit_once(", expected "))
    else {
        return message.trim_end().replace('\n', "; ");
    };
    format!("is {}; expected {}", given.replace('`', ""), in_words(expected))
}

fn in_words(expected: &str) -> String {
    let whole = |max: &str| format!("a whole number from 0 to {max}");
    match expected {
        "u8" => whole("255"),
        "u16" => whole("65535"),
        "u32" => whole("4294967295"),
        "u64" | "usize" => whole("9223372036854775807"),
        "i32" | "i64" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" | "path string" => "a text in quotes".to_owned(),
        "a sequence" => "a list in brackets".to_owned(),
        "a map" => "a section".to_owned(),
        other => match other.strip_prefix("struct ") {
            Some(_) => "a section".to_owned(),
            None => other.to_owned(),
        },
    }
}

/// The allowed name that is most like the given one, if any is like it.
fn nearest<'a>(given: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let limit = (given.chars().count() / 3).max(2);
    let near = allowed.iter().map(|name| (distance(given, name), *name)).min()?;
    (near.0 <= limit).then_some(near.1)
}

/// The number of letters to insert, delete or replace to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
