//! Reads the few statements that whoever stands between a client and its server answers or must know, by their words.

use super::lexer::{Kind, Lexer, Token};

/// The longest name that PostgreSQL keeps, in bytes; what is longer is cut (`NAMEDATALEN - 1`).
const NAME_BYTES_MAX: usize = 63;
/// The class of the settings that no server knows.
const CLASS: &str = "synapsedb";

/// A setting that belongs to the session with whoever stands in between, not to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnSetting {
    /// `synapsedb.consistency`
    Consistency,
    /// `synapsedb.token`
    Token,
    /// `synapsedb.last_route`
    LastRoute,
    /// `synapsedb.route`
    Route,
    /// `synapsedb.report_token`
    ReportToken,
}

impl OwnSetting {
    /// All of them, by their names without the class.
    pub const ALL: [(&str, Self); 5] = [
        ("consistency", Self::Consistency),
        ("token", Self::Token),
        ("last_route", Self::LastRoute),
        ("route", Self::Route),
        ("report_token", Self::ReportToken),
    ];

    /// Its name with its class.
    pub fn name(self) -> &'static str {
        match self {
            Self::Consistency => "synapsedb.consistency",
            Self::Token => "synapsedb.token",
            Self::LastRoute => "synapsedb.last_route",
            Self::Route => "synapsedb.route",
            Self::ReportToken => "synapsedb.report_token",
        }
    }
}

/// A statement about such a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// `SHOW synapsedb.x`
    Show(OwnSetting),
    /// `SET [SESSION] synapsedb.x = value`
    Set(OwnSetting, String),
    /// `RESET synapsedb.x`, or `SET … TO DEFAULT`
    Reset(OwnSetting),
    /// One that a server would take and that would have no effect; what to tell the client.
    Refused(OwnSetting, &'static str),
}

/// What a DEALLOCATE takes away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deallocate {
    /// One prepared statement.
    Name(String),
    /// All of them.
    All,
}

/// What a transaction block asks to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// READ ONLY.
    ReadOnly,
    /// READ WRITE.
    ReadWrite,
    /// Nothing is said: as `default_transaction_read_only` has it.
    Default,
}

/// Reads a text that is one BEGIN or START TRANSACTION.
pub fn begin(text: &[u8]) -> Option<Access> {
    let mut reader = Reader::new(text);
    let begins = match reader.word("begin") {
        true => {
            let _ = reader.word("work") || reader.word("transaction");
            true
        }
        false => reader.word("start") && reader.word("transaction"),
    };
    let mut access = Access::Default;
    while begins && !reader.is_over() {
        if reader.word("read") {
            // The last one counts.
            access = match reader.word("only") {
                true => Access::ReadOnly,
                false if reader.word("write") => Access::ReadWrite,
                false => return None,
            };
        } else if reader.word("isolation") {
            let is_level = reader.word("level")
                && (reader.word("serializable")
                    || reader.word("repeatable") && reader.word("read")
                    || reader.word("read")
                        && (reader.word("committed") || reader.word("uncommitted")));
            if !is_level {
                return None;
            }
        } else if !(reader.word("deferrable") || reader.word("not") && reader.word("deferrable")) {
            return None;
        }
        reader.symbol(b',');
    }
    begins.then_some(access)
}

/// Reads a text that is one statement about a setting of our own. Other settings of the class are the server's.
pub fn own(text: &[u8]) -> Option<Own> {
    let mut reader = Reader::new(text);
    if reader.word("show") {
        let setting = reader.own_setting()?;
        return reader.is_over().then_some(Own::Show(setting));
    }
    if reader.word("reset") {
        let setting = reader.own_setting()?;
        return reader.is_over().then_some(Own::Reset(setting));
    }
    if !reader.word("set") {
        return None;
    }
    let is_local = reader.word("local");
    let _ = is_local || reader.word("session");
    let setting = reader.own_setting()?;
    if !(reader.symbol(b'=') || reader.word("to")) {
        return None;
    }
    let read = reader.own_value();
    if is_local {
        return Some(Own::Refused(setting, "it cannot be set for one transaction (SET LOCAL)"));
    }
    Some(match read {
        Value::Default if reader.is_over() => Own::Reset(setting),
        Value::Text(value) if reader.is_over() => Own::Set(setting, value),
        Value::Default | Value::Text(_) if reader.is_statement_over() => return None,
        Value::Default | Value::Text(_) | Value::Other => {
            Own::Refused(setting, "it takes one plain value: a word, a number or a '…' string")
        }
    })
}

/// Reads a text that is one DEALLOCATE.
pub fn deallocate(text: &[u8]) -> Option<Deallocate> {
    let mut reader = Reader::new(text);
    if !reader.word("deallocate") {
        return None;
    }
    let after_verb = reader.clone();
    if reader.word("prepare") && reader.is_over() {
        // The name of a statement.
        reader = after_verb;
    }
    let which = match reader.word("all") {
        true => Deallocate::All,
        false => Deallocate::Name(reader.name()?),
    };
    reader.is_over().then_some(which)
}

/// Reads a text that is one DROP DATABASE; the database's name.
pub fn drop_database(text: &[u8]) -> Option<String> {
    let mut reader = Reader::new(text);
    if !(reader.word("drop") && reader.word("database")) {
        return None;
    }
    let named_if = reader.clone();
    if reader.word("if") && !reader.word("exists") {
        reader = named_if;
    }
    let name = reader.name()?;
    reader.word("with");
    if reader.symbol(b'(') {
        while reader.word("force") || reader.symbol(b',') {}
        if !reader.symbol(b')') {
            return None;
        }
    }
    reader.is_over().then_some(name)
}

/// The settings with a class (`a.b`) that a text sets or resets by SET, RESET or `set_config`, as far as it names
/// them, each once, in lower case.
pub fn custom_names(text: &[u8]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut reader = Reader::new(text);
    let mut is_start = true;
    loop {
        let name = match is_start && (reader.word("set") || reader.word("reset")) {
            true => reader.setting_name(),
            false => reader.name_in_set_config(),
        };
        if let Some(name) = name.filter(|name| !names.contains(name)) {
            names.push(name);
        }
        match reader.tokens.next() {
            Some(token) => is_start = token.kind == Kind::Symbol(b';'),
            None => return names,
        }
    }
}

/// The value in a SET.
enum Value {
    Default,
    Text(String),
    Other,
}

/// Reads a text word by word; what does not match stays unread.
#[derive(Clone)]
struct Reader<'a> {
    text: &'a [u8],
    tokens: Lexer<'a>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, tokens: Lexer::new(text) }
    }

    fn piece(&self, token: Token) -> &'a [u8] {
        &self.text[token.start..token.end]
    }

    /// Takes the next token when it is wanted.
    fn take(&mut self, is_wanted: impl FnOnce(Kind, &'a [u8]) -> bool) -> bool {
        let mut ahead = self.tokens.clone();
        let is_next = ahead.next().is_some_and(|token| is_wanted(token.kind, self.piece(token)));
        if is_next {
            self.tokens = ahead;
        }
        is_next
    }

    fn word(&mut self, word: &str) -> bool {
        self.take(|kind, piece| kind == Kind::Word && piece.eq_ignore_ascii_case(word.as_bytes()))
    }

    fn symbol(&mut self, symbol: u8) -> bool {
        self.take(|kind, _| kind == Kind::Symbol(symbol))
    }

    /// Whether nothing follows but semicolons.
    fn is_over(&self) -> bool {
        self.tokens.clone().all(|token| token.kind == Kind::Symbol(b';'))
    }

    fn is_statement_over(&self) -> bool {
        self.tokens.clone().next().is_none_or(|token| token.kind == Kind::Symbol(b';'))
    }

    /// Takes a name, as PostgreSQL folds and cuts it.
    fn name(&mut self) -> Option<String> {
        let mut ahead = self.tokens.clone();
        let token = ahead.next()?;
        let piece = std::str::from_utf8(self.piece(token)).ok()?;
        let mut name = match token.kind {
            Kind::Word => piece.to_ascii_lowercase(),
            Kind::Quoted => piece.strip_prefix('"')?.strip_suffix('"')?.replace("\"\"", "\""),
            Kind::Escaped | Kind::String | Kind::EscapedString | Kind::Number => return None,
            Kind::Symbol(_) => return None,
        };
        while name.len() > NAME_BYTES_MAX {
            name.pop();
        }
        self.tokens = ahead;
        (!name.is_empty()).then_some(name)
    }

    /// Takes the name of a setting with its class, behind SET or RESET.
    fn setting_name(&mut self) -> Option<String> {
        let after_verb = self.clone();
        if (self.word("session") || self.word("local")) && self.symbol(b'.') {
            // A class of this name.
            *self = after_verb;
        }
        let mut name = self.name()?;
        let mut has_class = false;
        while self.symbol(b'.') {
            has_class = true;
            name = format!("{name}.{}", self.name()?);
        }
        has_class.then(|| name.to_ascii_lowercase())
    }

    /// Takes a call of `set_config` up to its first argument, if it is next and the argument a string.
    fn name_in_set_config(&mut self) -> Option<String> {
        let mut ahead = self.clone();
        if !(ahead.name()? == "set_config" && ahead.symbol(b'(')) {
            return None;
        }
        let name = ahead.string().filter(|name| name.contains('.'))?;
        *self = ahead;
        Some(name.to_ascii_lowercase())
    }

    /// Takes a string without escapes.
    fn string(&mut self) -> Option<String> {
        let mut ahead = self.tokens.clone();
        let token = ahead.next().filter(|token| token.kind == Kind::String)?;
        let piece = std::str::from_utf8(self.piece(token)).ok()?;
        let text = match piece.strip_prefix('\'') {
            Some(rest) => {
                // One that goes on on a later line is not read.
                let halves = rest.strip_suffix('\'')?.replace("''", "\0");
                if halves.contains('\'') {
                    return None;
                }
                halves.replace('\0', "'")
            }
            None => {
                let tag = &piece[..piece.strip_prefix('$')?.find('$')? + 2];
                piece.strip_prefix(tag)?.strip_suffix(tag)?.to_owned()
            }
        };
        self.tokens = ahead;
        Some(text)
    }

    fn own_setting(&mut self) -> Option<OwnSetting> {
        let class = self.name()?;
        if !(class.eq_ignore_ascii_case(CLASS) && self.symbol(b'.')) {
            return None;
        }
        let name = self.name()?;
        let mut known = OwnSetting::ALL.into_iter();
        known.find(|(known, _)| known.eq_ignore_ascii_case(&name)).map(|(_, setting)| setting)
    }

    fn own_value(&mut self) -> Value {
        if self.word("default") {
            return Value::Default;
        }
        let number = |kind, piece: &[u8]| kind == Kind::Number && !piece.starts_with(b"$");
        let before = self.clone();
        if self.take(number) {
            let digits = before.clone().tokens.next().map(|token| before.piece(token));
            let digits = String::from_utf8_lossy(digits.unwrap_or_default());
            return Value::Text(digits.into_owned());
        }
        match self.string().or_else(|| self.name()) {
            Some(text) => Value::Text(text),
            None => Value::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn own_statements() {
        use OwnSetting::{Consistency, LastRoute, Route, Token};
        let set = |setting, value: &str| Some(Own::Set(setting, value.to_owned()));
        for (text, expected) in [
            ("SHOW synapsedb.token", Some(Own::Show(Token))),
            ("/* a */ show SynapseDB.\"last_route\" ; ;-- b", Some(Own::Show(LastRoute))),
            ("SHOW synapsedb . route", Some(Own::Show(Route))),
            ("SET synapsedb.consistency = 'session'", set(Consistency, "session")),
            ("set session synapsedb.Consistency to Eventual;", set(Consistency, "eventual")),
            ("SET synapsedb.token = $$a'b$$", set(Token, "a'b")),
            ("SET synapsedb.token = $x$a$$b$x$", set(Token, "a$$b")),
            ("SET synapsedb.token='it''s'", set(Token, "it's")),
            ("SET synapsedb.token=''", set(Token, "")),
            ("SET synapsedb.route TO 3", set(Route, "3")),
            ("SET synapsedb.route TO \"Node\"", set(Route, "Node")),
            ("SET synapsedb.route TO DEFAULT", Some(Own::Reset(Route))),
            ("RESET synapsedb.consistency", Some(Own::Reset(Consistency))),
            // The server's, somebody else's, or several.
            ("SET synapsedb.durability = 'quorum'", None),
            ("SHOW synapsedb.applied", None),
            ("SHOW token", None),
            ("SHOW other.token", None),
            ("SHOW synapsedb.token.more", None),
            ("SHOW synapsedb.token; SELECT 1", None),
            ("SET synapsedb.route = 1; SELECT 1", None),
            ("RESET synapsedb.route; RESET ALL", None),
            ("SELECT 1; SHOW synapsedb.token", None),
            ("SHOW 'synapsedb.token'", None),
            ("SET \"synapsedb.token\" = 1", None),
            ("SET SESSION SESSION synapsedb.token = 1", None),
            ("SET synapsedb.token", None),
            ("", None),
        ] {
            assert_eq!(own(text.as_bytes()), expected, "{text}");
        }
        for text in [
            "SET LOCAL synapsedb.token = 'x'",
            "SET synapsedb.token = E'a\\n'",
            "SET synapsedb.token = 'a', 'b'",
            "SET synapsedb.token = 'a'\n'b'",
            "SET synapsedb.token = -1",
        ] {
            let found = own(text.as_bytes());
            assert!(matches!(found, Some(Own::Refused(Token, _))), "{text} {found:?}");
        }
        for (name, setting) in OwnSetting::ALL {
            assert_eq!(setting.name(), format!("{CLASS}.{name}"));
        }
    }

    #[test]
    fn begins() {
        use Access::{Default, ReadOnly, ReadWrite};
        for (text, expected) in [
            ("BEGIN", Some(Default)),
            ("/* a */ begin work;;", Some(Default)),
            ("START TRANSACTION READ ONLY", Some(ReadOnly)),
            (
                "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY, NOT DEFERRABLE",
                Some(ReadOnly),
            ),
            ("begin isolation level serializable read only deferrable", Some(ReadOnly)),
            ("BEGIN ISOLATION LEVEL READ COMMITTED", Some(Default)),
            ("BEGIN READ ONLY READ WRITE", Some(ReadWrite)),
            ("BEGIN READ ONLY; SELECT 1", None),
            ("BEGIN READ", None),
            ("BEGIN ISOLATION LEVEL READ ONLY", None),
            ("BEGIN ATOMIC", None),
            ("START", None),
            ("COMMIT", None),
            ("SELECT 1; BEGIN READ ONLY", None),
            ("", None),
        ] {
            assert_eq!(begin(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn deallocates() {
        let name = |name: &str| Some(Deallocate::Name(name.to_owned()));
        let long = "x".repeat(70);
        for (text, expected) in [
            ("DEALLOCATE a", name("a")),
            ("deallocate prepare B ;", name("b")),
            ("DEALLOCATE \"B\"\"c\"", name("B\"c")),
            ("DEALLOCATE prepare", name("prepare")),
            ("DEALLOCATE PREPARE prepare", name("prepare")),
            ("DEALLOCATE ALL", Some(Deallocate::All)),
            ("DEALLOCATE PREPARE all;;", Some(Deallocate::All)),
            ("DEALLOCATE \"all\"", name("all")),
            (&format!("DEALLOCATE {long}"), name(&long[..63])),
            (
                &format!("DEALLOCATE x{}", "\u{e4}".repeat(40)),
                name(&format!("x{}", "\u{e4}".repeat(31))),
            ),
            ("DEALLOCATE a; SELECT 1", None),
            ("DEALLOCATE a b", None),
            ("DEALLOCATE 'a'", None),
            ("DEALLOCATE U&\"\\0061\"", None),
            ("DEALLOCATE", None),
            ("SELECT 1; DEALLOCATE a", None),
        ] {
            assert_eq!(deallocate(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn drops() {
        for (text, expected) in [
            ("DROP DATABASE a", Some("a")),
            ("drop database if exists \"B c\" with (force);", Some("B c")),
            ("DROP DATABASE a (FORCE, FORCE)", Some("a")),
            ("DROP DATABASE if", Some("if")),
            ("DROP TABLE a", None),
            ("DROP DATABASE a, b", None),
            ("DROP DATABASE a (", None),
            ("DROP DATABASE", None),
            ("DROP DATABASE a; DROP DATABASE b", None),
        ] {
            assert_eq!(drop_database(text.as_bytes()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn names_of_custom_settings() {
        for (text, expected) in [
            ("SET a.b = 1", &["a.b"] as &[&str]),
            (
                "SET SESSION \"A\".b TO 'x'; SET LOCAL c.d = 2; RESET e.f; SET a.B = 3",
                &["a.b", "c.d", "e.f"],
            ),
            ("SET local.x = 1; SET session.y = 2", &["local.x", "session.y"]),
            ("SET a.b.c = 1", &["a.b.c"]),
            ("SET search_path = a.b", &[]),
            ("SET ROLE a; RESET ALL; SELECT a.b; SHOW a.b", &[]),
            (
                "SELECT set_config('app.user', $1, false), pg_catalog.SET_CONFIG ( 'App.x', '', true)",
                &["app.user", "app.x"],
            ),
            ("SELECT \"set_config\"('a.b', set_config('c.d', '1', false), false)", &["a.b", "c.d"]),
            ("SELECT set_config('work_mem', '1', false), set_config($1, 'a.b', false), 'c.d'", &[]),
            ("SELECT 'SET a.b = 1' /* SET c.d = 1 */", &[]),
            ("SET", &[]),
            ("SET a.", &[]),
        ] {
            assert_eq!(custom_names(text.as_bytes()), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(
            bytes: Vec<u8>, text in "(SET|BEGIN|set_config|DROP DATABASE|DEALLOCATE|SHOW)[ a.'\"$(;=ä]{0,30}",
        ) {
            for text in [&bytes[..], text.as_bytes()] {
                let _ = (own(text), deallocate(text), drop_database(text), custom_names(text));
                let _ = begin(text);
            }
        }
    }
}
