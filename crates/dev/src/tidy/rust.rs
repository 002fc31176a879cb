//! The rules of one Rust file: its length, its functions, its lines, its first sentence, its name.

use super::lexer::{self, Code};
use super::{Finding, Source};

/// Lines of a file, its test modules not counted.
const FILE_LINES_MAX: usize = 500;
/// Lines of a function.
const FUNCTION_LINES_MAX: usize = 70;
/// Characters of a line.
const LINE_CHARS_MAX: usize = 120;
/// Names that say nothing of what is inside.
const GRAB_BAGS: [&str; 6] = ["utils", "helpers", "common", "misc", "manager", "types"];

/// Everything that is wrong with one Rust file.
pub(super) fn check(file: &Source) -> Vec<Finding> {
    let code = lexer::code(&file.text);
    let mut findings = Vec::new();
    findings.extend(opening(file));
    findings.extend(name(file));
    findings.extend(length(file, &code));
    findings.extend(functions(file, &code));
    findings.extend(lines(file, &code));
    findings
}

fn opening(file: &Source) -> Option<Finding> {
    let sentence = file.text.lines().next().and_then(|line| line.strip_prefix("//!"));
    let empty = sentence.is_none_or(|sentence| sentence.trim().len() < 10);
    empty.then(|| file.at(1, "a file opens with //! and a sentence on what it is for"))
}

fn name(file: &Source) -> Option<Finding> {
    let stem = file.name().trim_end_matches(".rs");
    let folder = file.folder().rsplit('/').next().unwrap_or("");
    let bag = GRAB_BAGS.iter().find(|bag| stem == **bag || folder == **bag)?;
    Some(file.at(0, format!("\"{bag}\" is a grab bag: name the idea that is inside")))
}

fn length(file: &Source, code: &Code) -> Option<Finding> {
    if file.name() == "tests.rs" {
        return None;
    }
    let counted = code.test.iter().filter(|test| !**test).count();
    (counted > FILE_LINES_MAX).then(|| {
        file.at(0, format!("{counted} lines without its tests; at most {FILE_LINES_MAX}: cut it"))
    })
}

fn functions(file: &Source, code: &Code) -> Vec<Finding> {
    let found = lexer::functions(code).into_iter();
    let long = found.filter(|function| function.last - function.first + 1 > FUNCTION_LINES_MAX);
    long.map(|function| {
        let lines = function.last - function.first + 1;
        let message =
            format!("fn {} has {lines} lines; at most {FUNCTION_LINES_MAX}: cut it", function.name);
        file.at(function.first + 1, message)
    })
    .collect()
}

fn lines(file: &Source, code: &Code) -> Vec<Finding> {
    // In two parts, or this file would be its own finding.
    let unfinished = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    let mut findings = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        let length = line.chars().count();
        // An expected text of a test is one literal, which cannot be broken without changing what it says.
        let expected = file.name() == "tests.rs"
            && !line.trim_start().starts_with("//")
            && code.lines.get(number).is_some_and(|code| code.trim().len() <= LINE_CHARS_MAX);
        if length > LINE_CHARS_MAX && !expected {
            findings.push(
                file.at(number + 1, format!("{length} characters; at most {LINE_CHARS_MAX}")),
            );
        }
        if let Some(word) = unfinished.iter().find(|word| lexer::has_word(line, word)) {
            findings.push(file.at(number + 1, format!("{word}: finish it or file an issue")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        let file = Source { path: path.to_owned(), text: text.to_owned() };
        check(&file).into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn a_tidy_file_passes() {
        assert!(
            messages("crates/core/src/lsn.rs", "//! Positions in a log.\nfn f() {}\n").is_empty()
        );
    }

    #[test]
    fn a_bad_sample_is_found() {
        let body = "    x();\n".repeat(70);
        let text =
            format!("fn long() {{\n{body}}}\n// {}\n{}\n", concat!("TO", "DO"), "x".repeat(121));
        let found = messages("crates/node/src/utils.rs", &text);
        for part in ["opens with", "grab bag", "72 lines", "finish it", "121 characters"] {
            assert!(found.iter().any(|message| message.contains(part)), "{part}: {found:?}");
        }
    }

    #[test]
    fn tests_do_not_count_as_length() {
        let many = "const A: u8 = 1;\n".repeat(600);
        let tests = format!("//! A sentence of it.\n#[cfg(test)]\nmod tests {{\n{many}}}\n");
        assert!(messages("a.rs", &tests).is_empty());
        let found = messages("a.rs", &format!("//! A sentence of it.\n{many}"));
        assert!(found[0].starts_with("601 lines"));
    }
}
