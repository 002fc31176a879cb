//! Rust source with its comments and literals blanked, so that words and braces in them do not count as code.

/// The code of a file, line by line, with the extent of its test modules.
pub(super) struct Code {
    /// The lines with comments, strings and characters replaced by blanks.
    pub lines: Vec<String>,
    /// Per line, whether it belongs to a module that is compiled only for tests.
    pub test: Vec<bool>,
}

/// A function with a body.
pub(super) struct Function {
    /// Its name.
    pub name: String,
    /// Its first line, from 0.
    pub first: usize,
    /// Its last line.
    pub last: usize,
}

#[derive(Clone, Copy)]
enum State {
    Code,
    Line,
    Block(u32),
    Text,
    Raw(usize),
}

/// Blanks what is not code.
pub(super) fn code(text: &str) -> Code {
    let lines: Vec<_> = blank(text).lines().map(str::to_owned).collect();
    let mut test = vec![false; lines.len()];
    for (number, line) in lines.iter().enumerate() {
        if line.trim() == "#[cfg(test)]" {
            let end = extent(&lines, number).unwrap_or(number);
            test[number..=end].fill(true);
        }
    }
    Code { lines, test }
}

fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut state = State::Code;
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let (next, taken) = step(state, rest, at.checked_sub(1).map(|before| chars[before]));
        for c in &rest[..taken] {
            let code = matches!((state, next), (State::Code, State::Code)) && taken == 1;
            out.push(if *c == '\n' || code { *c } else { ' ' });
        }
        state = next;
        at += taken;
    }
    out
}

/// The state after the next characters and how many of them belong together.
fn step(state: State, rest: &[char], before: Option<char>) -> (State, usize) {
    let starts =
        |pattern: &str| pattern.chars().zip(rest).filter(|(a, b)| a == *b).count() == pattern.len();
    match state {
        State::Code if starts("//") => (State::Line, 2),
        State::Code if starts("/*") => (State::Block(1), 2),
        State::Code if starts("\"") => (State::Text, 1),
        State::Code => match (raw_string(rest, before), character(rest)) {
            (Some(hashes), _) => (State::Raw(hashes), hashes + 2),
            (None, Some(length)) => (State::Code, length),
            (None, None) => (State::Code, 1),
        },
        State::Line if starts("\n") => (State::Code, 1),
        State::Line => (State::Line, 1),
        State::Block(depth) if starts("/*") => (State::Block(depth + 1), 2),
        State::Block(1) if starts("*/") => (State::Code, 2),
        State::Block(depth) if starts("*/") => (State::Block(depth - 1), 2),
        State::Block(depth) => (State::Block(depth), 1),
        State::Text if starts("\\") => (State::Text, 2.min(rest.len())),
        State::Text if starts("\"") => (State::Code, 1),
        State::Text => (State::Text, 1),
        State::Raw(hashes) => {
            let end: String =
                std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            if starts(&end) { (State::Code, hashes + 1) } else { (State::Raw(hashes), 1) }
        }
    }
}

/// The number of `#` of a raw string that begins here (`r"`, `r#"`; `br` and `cr` end in the same way).
fn raw_string(rest: &[char], before: Option<char>) -> Option<usize> {
    let word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let prefixed = before.is_some_and(|c| c == 'b' || c == 'c');
    if rest.first() != Some(&'r') || (word && !prefixed) {
        return None;
    }
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    (rest.get(hashes + 1) == Some(&'"')).then_some(hashes)
}

/// The length of a character literal that begins here; a lifetime is none.
fn character(rest: &[char]) -> Option<usize> {
    match rest {
        ['\'', '\\', ..] => {
            let end = rest[3..].iter().take(10).position(|c| *c == '\'')?;
            Some(end + 4)
        }
        ['\'', _, '\'', ..] => Some(3),
        _ => None,
    }
}

/// The last line of the item that begins at `first`: the line of the brace that closes its first one, or of the
/// semicolon that ends it without any.
fn extent(lines: &[String], first: usize) -> Option<usize> {
    let (mut depth, mut nested) = (0u32, 0u32);
    for (number, line) in lines.iter().enumerate().skip(first) {
        for c in line.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 1 => return Some(number),
                '}' => depth = depth.saturating_sub(1),
                '(' | '[' => nested += 1,
                ')' | ']' => nested = nested.saturating_sub(1),
                ';' if depth == 0 && nested == 0 => return Some(number),
                _ => {}
            }
        }
    }
    None
}

/// The functions of a file, nested ones too.
pub(super) fn functions(code: &Code) -> Vec<Function> {
    let mut functions = Vec::new();
    for (number, line) in code.lines.iter().enumerate() {
        let Some((before, after)) = line.split_once("fn ") else { continue };
        let word = before.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
        let name: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if word || name.is_empty() {
            continue;
        }
        if let Some(last) = extent(&code.lines, number) {
            functions.push(Function { name, first: number, last });
        }
    }
    functions
}

/// Whether `word` stands in a line of code as a word of its own; a `*` at the end of it is a prefix.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(is_word);
        let after = line[at + word.len()..].chars().next().is_some_and(is_word);
        !before && !after
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_comments_are_no_code() {
        let text = "let a = \"{ // }\"; // {\nlet b = '{'; /* { \n } */ let c = r#\"{\"{\"#;\nfn f<'a>() {}";
        let lines = code(text).lines;
        assert_eq!(lines.iter().map(|line| line.matches('{').count()).sum::<usize>(), 1);
        assert!(lines[3].contains("fn f<'a>() {}"));
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn the_extent_of_functions_and_tests_is_known() {
        let text = "fn one() {\n    x()\n}\nfn two(a: [u8; 3]);\n#[cfg(test)]\nmod tests {\n fn three() {}\n}\n";
        let code = code(text);
        let found: Vec<_> =
            functions(&code).into_iter().map(|f| (f.name, f.first, f.last)).collect();
        let expected = [("one", 0, 2), ("two", 3, 3), ("three", 6, 6)];
        assert_eq!(found, expected.map(|(name, first, last)| (name.to_owned(), first, last)));
        assert_eq!(code.test, [false, false, false, false, true, true, true, true]);
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("use std::collections::HashMap;", "HashMap"));
        assert!(!has_word("let my_HashMap = 1;", "HashMap"));
    }
}
