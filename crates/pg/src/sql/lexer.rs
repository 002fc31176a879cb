//! Cuts SQL text into tokens as PostgreSQL's scanner does, without allocating and without judging.
//!
//! Text that PostgreSQL refuses is cut somehow. The characters are taken as ASCII or UTF-8: in the encodings whose
//! second bytes may be a backslash (SJIS, BIG5, GBK, …), an `E'…'` string may end elsewhere than on the server.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A keyword or a name without quotes.
    Word,
    /// A name in double quotes.
    Quoted,
    /// A name as `U&"…"`, which may mean another than is written.
    Escaped,
    /// A string of any kind without escapes: `'…'`, `$tag$…$tag$`, `N'…'`, `B'…'`, `X'…'`.
    String,
    /// A string with escapes: `E'…'` or `U&'…'`.
    EscapedString,
    /// A number or a parameter (`$1`).
    Number,
    /// One character of anything else.
    Symbol(u8),
}

/// A piece of a text: `start..end`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Goes through a text. Comments are skipped.
#[derive(Clone)]
pub(super) struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    /// Whether a string without escapes held a backslash, so that `standard_conforming_strings = off` would read the
    /// text differently.
    pub(super) has_backslash: bool,
}

const SPACE: u8 = 1;
/// Begins a name.
const LETTER: u8 = 2;
const DIGIT: u8 = 3;
const DOLLAR: u8 = 4;
const QUOTE: u8 = 5;
const DOUBLE_QUOTE: u8 = 6;
/// May begin a comment.
const MINUS: u8 = 7;
/// May begin a comment.
const SLASH: u8 = 8;

static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => SPACE,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => LETTER,
            b'0'..=b'9' => DIGIT,
            b'$' => DOLLAR,
            b'\'' => QUOTE,
            b'"' => DOUBLE_QUOTE,
            b'-' => MINUS,
            b'/' => SLASH,
            _ => 0,
        };
        byte += 1;
    }
    classes
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, has_backslash: false }
    }

    fn byte(&self, at: usize) -> u8 {
        self.text.get(at).copied().unwrap_or(0)
    }

    /// Moves on over bytes of these classes.
    fn skip(&mut self, belongs: impl Fn(u8) -> bool) {
        while self.text.get(self.at).is_some_and(|byte| belongs(CLASSES[usize::from(*byte)])) {
            self.at += 1;
        }
    }

    fn word(&mut self, start: usize) -> Kind {
        let quote = match (self.byte(start), self.byte(start + 1)) {
            (b'e' | b'E', b'\'') => return self.string_with_backslashes(start + 2),
            (b'b' | b'B' | b'x' | b'X', b'\'') => return self.bits(start + 2),
            (b'n' | b'N', b'\'') => return self.string(start + 2),
            (b'u' | b'U', b'&') => self.byte(start + 2),
            _ => 0,
        };
        match quote {
            b'\'' => {
                let had_backslash = self.has_backslash;
                self.string(start + 3);
                self.has_backslash = had_backslash;
                Kind::EscapedString
            }
            b'"' => {
                self.quoted(start + 3, b'"');
                Kind::Escaped
            }
            _ => {
                self.skip(|class| matches!(class, LETTER | DIGIT | DOLLAR));
                Kind::Word
            }
        }
    }

    /// Goes behind the closing quote; a doubled one does not close. `at` is behind the opening one.
    fn quoted(&mut self, at: usize, quote: u8) {
        self.at = at;
        while let Some(length) = self.rest().iter().position(|byte| *byte == quote) {
            self.at += length + 1;
            if self.byte(self.at) != quote {
                return;
            }
            self.at += 1;
        }
        self.at = self.text.len();
    }

    fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn string(&mut self, at: usize) -> Kind {
        let mut at = at;
        loop {
            self.quoted(at, b'\'');
            let part = self.text.get(at..self.at).unwrap_or_default();
            self.has_backslash |= part.contains(&b'\\');
            match self.continued() {
                Some(next) => at = next,
                None => return Kind::String,
            }
        }
    }

    /// A string of bits, in which a doubled quote closes and begins another.
    fn bits(&mut self, at: usize) -> Kind {
        self.at = at;
        while let Some(length) = self.rest().iter().position(|byte| *byte == b'\'') {
            self.at += length + 1;
            match self.continued() {
                Some(next) => self.at = next,
                None => return Kind::String,
            }
        }
        self.at = self.text.len();
        Kind::String
    }

    fn string_with_backslashes(&mut self, at: usize) -> Kind {
        self.at = at;
        while let Some(byte) = self.text.get(self.at) {
            self.at += 1;
            match (byte, self.byte(self.at)) {
                (b'\\', _) | (b'\'', b'\'') => self.at += 1,
                (b'\'', _) => match self.continued() {
                    Some(next) => self.at = next,
                    None => return Kind::EscapedString,
                },
                _ => {}
            }
        }
        self.at = self.text.len();
        Kind::EscapedString
    }

    /// Where a string goes on whose quote has been closed: behind the opening quote on a later line.
    fn continued(&self) -> Option<usize> {
        let mut ahead = Lexer { at: self.at, ..self.clone() };
        let mut has_line_end = false;
        loop {
            match ahead.byte(ahead.at) {
                b'\n' | b'\r' => has_line_end = true,
                byte if CLASSES[usize::from(byte)] == SPACE => {}
                b'-' if ahead.byte(ahead.at + 1) == b'-' => {
                    ahead.line_comment();
                    continue;
                }
                b'\'' if has_line_end => return Some(ahead.at + 1),
                _ => return None,
            }
            ahead.at += 1;
        }
    }

    /// Goes to the end of the line.
    fn line_comment(&mut self) {
        let length = self.rest().iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        self.at += length.unwrap_or(self.rest().len());
    }

    /// Goes behind the end of a comment, which may hold others.
    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        while self.at < self.text.len() {
            match (self.byte(self.at), self.byte(self.at + 1)) {
                (b'/', b'*') => depth += 1,
                (b'*', b'/') => depth -= 1,
                _ => {
                    self.at += 1;
                    continue;
                }
            }
            self.at += 2;
            if depth == 0 {
                return;
            }
        }
    }

    fn number(&mut self) -> Kind {
        let start = self.at;
        self.number_part();
        let is_decimal = !self.text[start..self.at].iter().any(u8::is_ascii_alphabetic);
        if is_decimal && self.byte(self.at) == b'.' && self.byte(self.at + 1) != b'.' {
            self.at += 1;
            self.number_part();
        }
        Kind::Number
    }

    /// Moves on over the digits, also of other bases, and an exponent without a sign.
    fn number_part(&mut self) {
        let belongs = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let length = self.rest().iter().position(|byte| !belongs(byte));
        self.at += length.unwrap_or(self.rest().len());
    }

    /// A parameter, a string in dollars, or the dollar alone.
    fn dollar(&mut self, start: usize) -> Kind {
        self.at = start + 1;
        if CLASSES[usize::from(self.byte(self.at))] == DIGIT {
            self.skip(|class| class == DIGIT);
            return Kind::Number;
        }
        if CLASSES[usize::from(self.byte(self.at))] == LETTER {
            self.skip(|class| matches!(class, LETTER | DIGIT));
        }
        if self.byte(self.at) != b'$' {
            self.at = start + 1;
            return Kind::Symbol(b'$');
        }
        self.at += 1;
        let tag = &self.text[start..self.at];
        while let Some(length) = self.rest().iter().position(|byte| *byte == b'$') {
            self.at += length;
            if self.rest().starts_with(tag) {
                self.at += tag.len();
                return Kind::String;
            }
            self.at += 1;
        }
        self.at = self.text.len();
        Kind::String
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    #[inline]
    fn next(&mut self) -> Option<Token> {
        loop {
            let start = self.at;
            let byte = *self.text.get(start)?;
            let kind = match CLASSES[usize::from(byte)] {
                SPACE => {
                    self.at += 1;
                    continue;
                }
                LETTER => self.word(start),
                DIGIT => self.number(),
                0 if byte == b'.' && CLASSES[usize::from(self.byte(start + 1))] == DIGIT => {
                    self.at += 1;
                    self.number_part();
                    Kind::Number
                }
                DOLLAR => self.dollar(start),
                QUOTE => self.string(start + 1),
                DOUBLE_QUOTE => {
                    self.quoted(start + 1, b'"');
                    Kind::Quoted
                }
                MINUS if self.byte(start + 1) == b'-' => {
                    self.line_comment();
                    continue;
                }
                SLASH if self.byte(start + 1) == b'*' => {
                    self.block_comment();
                    continue;
                }
                _ => {
                    self.at += 1;
                    Kind::Symbol(byte)
                }
            };
            return Some(Token { kind, start, end: self.at });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use pg_query::protobuf::Token as Theirs;
    use proptest::prelude::*;

    /// Names and strings, as PostgreSQL's scanner cuts them; `None` for what it refuses.
    fn scanned(text: &str) -> Option<Vec<(Kind, &str)>> {
        let tokens = pg_query::scan(text).ok()?.tokens.into_iter();
        let named = tokens.filter_map(|token| {
            let theirs = Theirs::try_from(token.token).unwrap();
            let piece = &text[token.start as usize..token.end as usize];
            let kind = match theirs {
                Theirs::Ident if piece.starts_with('"') => Kind::Quoted,
                Theirs::Uident => Kind::Escaped,
                Theirs::Usconst => Kind::EscapedString,
                Theirs::Sconst if piece.starts_with(['e', 'E']) => Kind::EscapedString,
                Theirs::Sconst | Theirs::Bconst | Theirs::Xconst => Kind::String,
                Theirs::Ident => Kind::Word,
                _ if token.keyword_kind != 0 => Kind::Word,
                _ => return None,
            };
            Some((kind, piece))
        });
        Some(named.collect())
    }

    /// The same by ours; `N'…'` is a keyword and a string for PostgreSQL.
    fn ours(text: &str) -> Vec<(Kind, &str)> {
        let tokens = Lexer::new(text.as_bytes());
        let named = tokens.filter(|token| !matches!(token.kind, Kind::Number | Kind::Symbol(_)));
        let mut pieces = Vec::new();
        for token in named {
            let piece = &text[token.start..token.end];
            match piece.strip_prefix(['n', 'N']).filter(|_| token.kind == Kind::String) {
                Some(string) => {
                    pieces.extend([(Kind::Word, &piece[..1]), (Kind::String, string)]);
                }
                None => pieces.push((token.kind, piece)),
            }
        }
        pieces
    }

    /// Everything by which tokens begin, end or go on.
    const PIECES: [&str; 45] = [
        "'", "''", "\"", "\"\"", "\\", "E'", "e'", "U&'", "u&\"", "N'", "x'", "B'", "$$", "$a$",
        "$b$", "$", "$1", "--", "/*", "*/", "/", "*", "-", "\n", " ", "\r", "a", "select", "ä",
        "_b$c", ";", "(", ")", ",", ".", "1", "1.5", "e", "u&", "n", "+", "'x'", "\"y\"",
        "/* z */", "-- w\n",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]
        #[test]
        fn cuts_as_postgresql(pieces in prop::collection::vec(0..PIECES.len(), 0..24)) {
            let text: String = pieces.into_iter().map(|index| PIECES[index]).collect();
            if let Some(theirs) = scanned(&text) {
                prop_assert_eq!(ours(&text), theirs, "{}", text);
            }
        }

        #[test]
        fn goes_through_anything(bytes: Vec<u8>, text in "['\"$/*ub&eU\\\\ \n-]{0,30}") {
            for text in [&bytes[..], text.as_bytes()] {
                let mut at = 0;
                for token in Lexer::new(text) {
                    prop_assert!(at <= token.start && token.start < token.end);
                    at = token.end;
                }
                prop_assert!(at <= text.len());
            }
        }
    }

    /// The generated texts are accepted often enough to say something, and these are.
    #[test]
    fn known_texts() {
        for text in [
            "SELECT 'it''s', E'it\\'s', U&'d\\0061t\\+000061', $$a'b$$, $t$ $$ $u$ $t$, a$$b, \"x\"\"y\"",
            "SELECT 'a' -- one\n 'b', E'a\\\\'\n'\\'b', 'c' 'd'",
            "/* a /* b */ c */ SELECT 1 --'\n, 2 */*'*/ 3 -- end",
            "SELECT $1, $2::text, 1e5, 0x1f, 1_000, .5, x.y, b'01', X'1f', n'n', u&\"\\0061\"",
        ] {
            assert_eq!(ours(text), scanned(text).unwrap(), "{text}");
        }
    }

    #[test]
    fn sees_backslashes() {
        let has_backslash = |text: &str| {
            let mut lexer = Lexer::new(text.as_bytes());
            lexer.by_ref().for_each(drop);
            lexer.has_backslash
        };
        assert!(has_backslash(r"SELECT 'a\'"));
        assert!(has_backslash("SELECT 'a'\n'\\'"));
        for text in [r"SELECT E'\\', U&'\0061', $$\$$", r#"SELECT "\" -- \"#, "SELECT 'a'"] {
            assert!(!has_backslash(text), "{text}");
        }
    }
}
