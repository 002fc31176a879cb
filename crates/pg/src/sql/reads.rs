//! Decides whether a text only reads, so that any node can answer it: by its words, and by PostgreSQL's parser when it
//! calls functions.
//!
//! What operators, casts, policies and rules of users call is not seen: who sends a read to a node that must not take
//! writes has that node refuse them (`default_transaction_read_only`), and a write that this has taken for a read ends
//! there in 25006.

use std::collections::HashSet;
use std::panic::catch_unwind;

use super::TEXT_BYTES_MAX;
use super::keyword::{self, Keyword};
use super::lexer::{Kind, Lexer, Token};
use super::traits::{Flags, Traits};

/// Gives the rows for [`Names::add_function`].
pub const FUNCTIONS_SQL: &str = include_str!("functions.sql");
/// Gives the rows for [`Names::add_views`].
pub const VIEWS_SQL: &str = include_str!("views.sql");

/// A text with more words and symbols is not given to the parser: what goes through its tree goes down level by level,
/// and not everywhere with an eye on the stack. Values and commas make no level.
const PARSED_TOKENS_MAX: usize = 10_000;

/// Functions of PostgreSQL that are volatile and yet only read; sorted.
const HARMLESS: [&str; 17] = [
    "clock_timestamp",
    "gen_random_uuid",
    "pg_database_size",
    "pg_indexes_size",
    "pg_is_in_recovery",
    "pg_relation_size",
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
    "pg_table_size",
    "pg_tablespace_size",
    "pg_total_relation_size",
    "random",
    "random_normal",
    "timeofday",
    "uuidv4",
    "uuidv7",
];

/// What a text does, as far as it can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It only reads.
    Read,
    /// It writes, or may.
    Write(Reason),
}

/// Why a text is not taken for a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// By its words it writes, locks rows, or is of its session (settings, transactions, what is kept).
    Words,
    /// It calls or names what writes, or may: a volatile function, or a view that calls one.
    Name(String),
    /// It calls a function that is not known.
    UnknownFunction(String),
    /// It is too long, too deep, or PostgreSQL's parser refuses it.
    Unparsed,
}

/// The functions and views of a database, by their names. Overloads of one name count as one.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Functions that only read.
    reading: HashSet<Box<str>>,
    /// Functions and views of which at least one of the name writes, or may.
    writing: HashSet<Box<str>>,
}

impl Names {
    /// Adds a function: the name of its schema, its own, and whether it is volatile.
    pub fn add_function(&mut self, schema: &str, name: &str, is_volatile: bool) {
        let is_harmless = schema == "pg_catalog" && HARMLESS.binary_search(&name).is_ok();
        let names = match is_volatile && !is_harmless {
            true => &mut self.writing,
            false => &mut self.reading,
        };
        names.insert(name.into());
    }

    /// The first name in a text that is one of what writes, or may.
    pub fn writing_in(&self, text: &str) -> Option<String> {
        let mut names = Lexer::new(text.as_bytes()).filter_map(|token| name(text, token));
        names.find(|name| self.writing.contains(&**name)).map(std::borrow::Cow::into_owned)
    }

    /// Adds views with their definitions, after all functions.
    pub fn add_views(&mut self, mut views: Vec<(String, String)>) {
        // A view may stand on another: until no more is found.
        loop {
            let count = self.writing.len();
            views.retain(|(name, definition)| {
                let is_read = decide(definition, self) == Verdict::Read;
                if !is_read {
                    self.writing.insert(name.as_str().into());
                }
                is_read
            });
            if self.writing.len() == count {
                return;
            }
        }
    }
}

/// Decides whether every statement of a text only reads.
pub fn decide(text: &str, names: &Names) -> Verdict {
    if text.len() > TEXT_BYTES_MAX {
        return Verdict::Write(Reason::Unparsed);
    }
    let words = Traits::of(text.as_bytes()).flags;
    if words.has(NO_READS) || !all_verbs_read(text.as_bytes()) {
        return Verdict::Write(Reason::Words);
    }
    let (mut calls, mut parsed_tokens) = (false, 0);
    let mut previous = Kind::Symbol(b';');
    for token in Lexer::new(text.as_bytes()) {
        calls |= token.kind == Kind::Symbol(b'(') && previous != Kind::Symbol(b';');
        previous = token.kind;
        let is_value = matches!(
            token.kind,
            Kind::Number | Kind::String | Kind::EscapedString | Kind::Symbol(b',')
        );
        parsed_tokens += usize::from(!is_value);
        if let Some(name) = name(text, token).filter(|name| names.writing.contains(&**name)) {
            return Verdict::Write(Reason::Name(name.into_owned()));
        }
    }
    match calls {
        true if parsed_tokens > PARSED_TOKENS_MAX => Verdict::Write(Reason::Unparsed),
        true => decide_calls(text, names),
        false => Verdict::Read,
    }
}

/// What the words of a text say that is no read, or is of one session or transaction.
const NO_READS: Flags = Flags::WRITES
    .with(Flags::MAY_SET)
    .with(Flags::MAY_HOLD)
    .with(Flags::MAY_RELEASE)
    .with(Flags::BEGIN)
    .with(Flags::END)
    .with(Flags::BACKSLASH);

/// Whether each statement begins with the verb of a read. Those that leave a trace in their transaction do not, nor
/// does a COPY to anywhere but the client.
fn all_verbs_read(text: &[u8]) -> bool {
    use Keyword::{Copy, Explain, Select, Show, Table, To, Values, With};
    let (mut is_start, mut is_copy, mut after_to) = (true, false, false);
    for token in Lexer::new(text) {
        let piece = &text[token.start..token.end];
        let word = if token.kind == Kind::Word { keyword::of(piece) } else { None };
        if is_copy && after_to && piece.eq_ignore_ascii_case(b"stdout") {
            is_copy = false;
        }
        after_to = word == Some(To);
        match token.kind {
            Kind::Symbol(b';') if is_copy => return false,
            Kind::Symbol(b';') => is_start = true,
            Kind::Symbol(b'(') if is_start => {}
            _ if !is_start => {}
            Kind::Word => {
                match word {
                    Some(Select | Values | Table | With | Show | Explain) => {}
                    Some(Copy) => is_copy = true,
                    Some(_) | None => return false,
                }
                is_start = false;
            }
            Kind::Quoted | Kind::Escaped | Kind::String | Kind::EscapedString => return false,
            Kind::Number | Kind::Symbol(_) => return false,
        }
    }
    !is_copy
}

/// The name that a token is, as PostgreSQL folds it.
fn name(text: &str, token: Token) -> Option<std::borrow::Cow<'_, str>> {
    let piece = text.get(token.start..token.end)?;
    match token.kind {
        Kind::Word if !piece.bytes().any(|byte| byte.is_ascii_uppercase()) => Some(piece.into()),
        Kind::Word => Some(piece.to_ascii_lowercase().into()),
        Kind::Quoted if !piece[1..].contains("\"\"") => Some(piece.trim_matches('"').into()),
        Kind::Quoted => {
            let inside = piece.strip_prefix('"')?.strip_suffix('"')?;
            Some(inside.replace("\"\"", "\"").into())
        }
        Kind::Escaped | Kind::String | Kind::EscapedString | Kind::Number => None,
        Kind::Symbol(_) => None,
    }
}

/// Decides by the functions that PostgreSQL's parser finds in the text.
fn decide_calls(text: &str, names: &Names) -> Verdict {
    let Ok(Ok(summary)) = catch_unwind(|| pg_query::summary(text, 0, -1)) else {
        return Verdict::Write(Reason::Unparsed);
    };
    for function in summary.protobuf.functions {
        let name = function.function_name;
        if names.writing.contains(&*name) {
            return Verdict::Write(Reason::Name(name));
        }
        if !names.reading.contains(&*name) {
            return Verdict::Write(Reason::UnknownFunction(name));
        }
    }
    Verdict::Read
}

/// The value of the hint `synapsedb.route=…` in a comment at the very front of a text.
pub fn route_hint(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(text).ok().or_else(|| {
        // A text in another encoding begins with ASCII as well.
        let end = text.iter().position(|byte| !byte.is_ascii())?;
        std::str::from_utf8(&text[..end]).ok()
    })?;
    let comment = text.trim_ascii_start().strip_prefix("/*")?.split_once("*/")?.0;
    let (name, value) = comment.trim_ascii().split_once('=')?;
    let is_hint = name.trim_ascii_end().eq_ignore_ascii_case("synapsedb.route");
    is_hint.then(|| value.trim_ascii_start())
}

/// Whether a text may leave the read-only transaction in which a server runs it, or sees that it is in one: it speaks
/// of the settings that make it so, or of READ WRITE. Of a setting that is set without being named
/// ([`Flags::SETS_UNNAMED`]) nothing is said.
pub fn touches_read_only(text: &[u8]) -> bool {
    const SETTING: &[u8] = b"transaction_read_only";
    let names_it = |piece: &[u8]| {
        piece.windows(SETTING.len()).any(|window| window.eq_ignore_ascii_case(SETTING))
    };
    let mut after_read = false;
    for token in Lexer::new(text) {
        let piece = &text[token.start..token.end];
        match token.kind {
            Kind::Word if after_read && piece.eq_ignore_ascii_case(b"write") => return true,
            Kind::Word | Kind::Quoted | Kind::String if names_it(piece) => return true,
            Kind::Escaped => return true,
            Kind::Word | Kind::Quoted | Kind::String | Kind::EscapedString => {}
            Kind::Number | Kind::Symbol(_) => {}
        }
        after_read = token.kind == Kind::Word && piece.eq_ignore_ascii_case(b"read");
    }
    false
}

#[cfg(test)]
mod tests;
