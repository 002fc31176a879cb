//! What a text may do to its session, told by its words alone: fast enough for every text that passes.
//!
//! A guess errs to the side of caution. A text without [`Flags::MAY_SET`] changes no setting, one without
//! [`Flags::MAY_HOLD`] leaves nothing in the session, one without [`Flags::WRITES`] is no statement that writes —
//! but for what the functions that it calls do, of which only PostgreSQL's own are known here. Text that PostgreSQL
//! refuses may get any flags.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

use super::keyword::{self, Function, Keyword};
use super::lexer::{Kind, Lexer, Token};

/// What the words of a text tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// What its statements may do, all together.
    pub flags: Flags,
}

/// A set of traits.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// It may change a setting beyond its transaction: SET (not SET LOCAL, TRANSACTION or CONSTRAINTS), RESET,
    /// DISCARD, `set_config` (unless its third argument is `true`), UPDATE of `pg_settings`, DO, CALL, and ALTER of
    /// a role, a database or the system, whose defaults are of new sessions.
    pub const MAY_SET: Self = Self(1);
    /// With [`MAY_SET`](Self::MAY_SET): the text does not name the setting.
    pub const SETS_UNNAMED: Self = Self(1 << 1);
    /// It may leave something in the session: temporary tables, LISTEN, PREPARE, DECLARE … WITH HOLD, advisory locks,
    /// LOAD, DO, CALL, `setseed`, and what else PostgreSQL's functions and extensions keep there.
    pub const MAY_HOLD: Self = Self(1 << 2);
    /// It may take away what the session holds: UNLISTEN, CLOSE, DEALLOCATE, DISCARD, DROP, the end of advisory locks.
    pub const MAY_RELEASE: Self = Self(1 << 3);
    /// It begins a transaction: BEGIN, START TRANSACTION, or AND CHAIN.
    pub const BEGIN: Self = Self(1 << 4);
    /// It ends a transaction: COMMIT, END, ROLLBACK (not to a savepoint), ABORT, PREPARE TRANSACTION.
    pub const END: Self = Self(1 << 5);
    /// It may write, lock rows, or needs a node that takes writes.
    pub const WRITES: Self = Self(1 << 6);
    /// It calls a function, or what looks like one, that is not known to only read: it may write all the same.
    pub const CALLS: Self = Self(1 << 11);
    /// It holds more than one statement. The statements of a body BEGIN ATOMIC … END count.
    pub const SEVERAL: Self = Self(1 << 7);
    /// It drops a database, in which no session may be.
    pub const OTHER_DATABASE_DROP: Self = Self(1 << 8);
    /// It shows, sets or resets a setting of the class `synapsedb`.
    pub const OWN: Self = Self(1 << 9);
    /// It commits a transaction block: COMMIT or END, not that of a prepared transaction.
    pub const COMMITS: Self = Self(1 << 12);
    /// It has a statement other than SELECT, INSERT, UPDATE, DELETE, MERGE, VALUES and TABLE, which may commit by
    /// itself or do what no transaction holds together.
    pub const UTILITY: Self = Self(1 << 13);
    /// A string without escapes holds a backslash: with `standard_conforming_strings = off` the text may be another,
    /// and nothing else that is said here holds.
    pub const BACKSLASH: Self = Self(1 << 10);
    /// It says or asks something about notifications: LISTEN, UNLISTEN, NOTIFY, DISCARD, DO, CALL,
    /// `pg_notify`, `pg_listening_channels`. What other functions do is not known.
    pub const CHANNELS: Self = Self(1 << 14);
    /// It may change which functions and views there are, or what they do: CREATE, ALTER or DROP of one, of a schema,
    /// an extension or an operator, or a DO whose body speaks of one.
    pub const DEFINES: Self = Self(1 << 15);

    const NAMES: [(Self, &str); 16] = [
        (Self::MAY_SET, "MAY_SET"),
        (Self::SETS_UNNAMED, "SETS_UNNAMED"),
        (Self::MAY_HOLD, "MAY_HOLD"),
        (Self::MAY_RELEASE, "MAY_RELEASE"),
        (Self::BEGIN, "BEGIN"),
        (Self::END, "END"),
        (Self::WRITES, "WRITES"),
        (Self::CALLS, "CALLS"),
        (Self::COMMITS, "COMMITS"),
        (Self::UTILITY, "UTILITY"),
        (Self::SEVERAL, "SEVERAL"),
        (Self::OTHER_DATABASE_DROP, "OTHER_DATABASE_DROP"),
        (Self::OWN, "OWN"),
        (Self::BACKSLASH, "BACKSLASH"),
        (Self::CHANNELS, "CHANNELS"),
        (Self::DEFINES, "DEFINES"),
    ];
    const NONE: Self = Self(0);

    /// Whether any of these is in it.
    pub const fn has(self, any: Self) -> bool {
        self.0 & any.0 != 0
    }

    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// These and the others.
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Takes these out.
    pub fn remove(&mut self, flags: Self) {
        self.0 &= !flags.0;
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Self::NAMES.iter().filter(|(flag, _)| self.has(*flag));
        formatter.debug_set().entries(names.map(|(_, name)| name)).finish()
    }
}

/// What can hide another name, or hides what is called.
const HIDDEN: Flags =
    Flags::MAY_SET.with(Flags::SETS_UNNAMED).with(Flags::MAY_HOLD).with(Flags::WRITES);

impl Traits {
    /// The traits of a text of any number of statements, without the NUL byte behind it.
    pub fn of(text: &[u8]) -> Self {
        let mut lexer = Lexer::new(text);
        let (mut scan, mut statements) = (Scan::default(), 0_u32);
        let mut flags = Flags::NONE;
        for token in lexer.by_ref() {
            if token.kind == Kind::Symbol(b';') {
                flags |= scan.finish();
                continue;
            }
            if scan.tokens == 0 {
                statements += 1;
            }
            scan.take(token, text);
        }
        flags |= scan.finish();
        if statements > 1 {
            flags |= Flags::SEVERAL;
        }
        if lexer.has_backslash {
            flags |= Flags::BACKSLASH;
        }
        Self { flags }
    }
}

/// What is known of the current statement.
#[derive(Default)]
struct Scan {
    flags: Flags,
    /// Its verb, once there is one.
    verb: Option<Keyword>,
    /// How many tokens it has so far, without the parentheses in front of the verb.
    tokens: u32,
    /// The word before, when it is known.
    previous: Option<Keyword>,
    /// How many parentheses and brackets are open.
    depth: u32,
    /// Whether the token before is a name that would be called by a parenthesis.
    is_callable: bool,
    /// Whether the token before is a point.
    is_qualified: bool,
    call: Call,
    updates: bool,
    has_settings_view: bool,
}

/// Where in a call of `set_config` the text is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Call {
    /// In none.
    #[default]
    Outside,
    /// Behind the name.
    Named,
    /// Between the parentheses, the outer of which is at this depth.
    Inside {
        depth: u32,
        argument: u32,
        /// How many tokens the argument has so far.
        tokens: u32,
        /// Whether the first is the one that makes it local, or, of the first argument, names a setting.
        is_plain: bool,
    },
}

impl Scan {
    /// Ends the statement; its flags.
    fn finish(&mut self) -> Flags {
        let Self { mut flags, call, updates, has_settings_view, .. } = std::mem::take(self);
        if matches!(call, Call::Inside { .. }) || updates && has_settings_view {
            flags |= Flags::MAY_SET | Flags::SETS_UNNAMED;
        }
        flags
    }

    #[inline]
    fn take(&mut self, token: Token, text: &[u8]) {
        let piece = &text[token.start..token.end];
        let word = match token.kind {
            Kind::Word => keyword::of(piece),
            _ => None,
        };
        if self.call != Call::Outside {
            self.in_call(token.kind, word);
        }
        match token.kind {
            Kind::Word => self.word(word, piece),
            Kind::Quoted => self.name(&piece[1..]),
            Kind::Escaped => self.flags |= HIDDEN,
            Kind::String | Kind::EscapedString => self.string(piece),
            Kind::Number => {}
            Kind::Symbol(b'(') if self.verb.is_none() => {
                self.depth += 1;
                self.tokens = self.tokens.max(1);
                return;
            }
            Kind::Symbol(symbol) => self.symbol(symbol),
        }
        if self.verb.is_none() {
            self.begin(Keyword::Other);
        }
        self.is_callable = match (token.kind, word) {
            (Kind::Quoted, _) | (Kind::Word, None) => true,
            (Kind::Word, Some(word)) => self.is_qualified || !word.is_before_parenthesis(),
            _ => false,
        };
        self.is_qualified = token.kind == Kind::Symbol(b'.');
        self.previous = word;
        self.tokens += 1;
    }

    fn symbol(&mut self, symbol: u8) {
        match symbol {
            b'(' => {
                self.depth += 1;
                if self.is_callable {
                    self.flags |= Flags::CALLS;
                }
            }
            b'[' => self.depth += 1,
            b')' | b']' => self.depth = self.depth.saturating_sub(1),
            // A setting whose class is called like a clause of SET.
            b'.' | b'=' if self.is_set_clause() => self.flags |= Flags::MAY_SET,
            _ => {}
        }
    }

    /// Whether what is before is the LOCAL, TRANSACTION or CONSTRAINTS of a SET.
    fn is_set_clause(&self) -> bool {
        use Keyword::{Constraints, Local, Set, Transaction};
        self.verb == Some(Set)
            && self.tokens == 2
            && matches!(self.previous, Some(Local | Transaction | Constraints))
    }

    fn string(&mut self, piece: &[u8]) {
        let is_second = self.tokens == 2 && self.previous == Some(Keyword::Transaction);
        if self.verb == Some(Keyword::Prepare) && is_second {
            self.flags.remove(Flags::MAY_HOLD);
            self.flags |= Flags::END | Flags::WRITES;
        }
        // A search path that begins with it makes plain tables temporary.
        let may_be_path = self.verb == Some(Keyword::Set) || self.call != Call::Outside;
        if may_be_path && contains(piece, b"pg_temp") {
            self.flags |= Flags::MAY_HOLD;
        }
        if self.verb == Some(Keyword::Do)
            && keyword::DEFINITIONS.iter().any(|word| contains(piece, word.as_bytes()))
        {
            self.flags |= Flags::DEFINES;
        }
    }

    #[inline]
    fn word(&mut self, word: Option<Keyword>, piece: &[u8]) {
        match (self.verb, word) {
            (None, word) => self.begin(word.unwrap_or(Keyword::Other)),
            (Some(verb), Some(word)) => self.go_on(verb, word),
            (Some(_), None) => self.name(piece),
        }
    }

    /// Takes the verb.
    fn begin(&mut self, word: Keyword) {
        self.verb = Some(word);
        self.tokens = 0;
        self.flags |= keyword::flags_of_verb(word);
        self.updates = word == Keyword::Update;
    }

    /// Takes a keyword behind the verb.
    fn go_on(&mut self, verb: Keyword, word: Keyword) {
        use Keyword as K;
        match word {
            K::Insert | K::Update | K::Delete | K::Merge | K::Into if verb != K::Explain => {
                self.flags |= Flags::WRITES;
                self.updates |= word == K::Update;
            }
            K::Share if matches!(self.previous, Some(K::For | K::Key)) => {
                self.flags |= Flags::WRITES;
            }
            K::Analyze if verb == K::Explain => self.flags |= Flags::WRITES,
            K::From | K::Program if verb == K::Copy && self.depth == 0 => {
                self.flags |= Flags::WRITES;
            }
            K::Temporary if self.makes_temporary() => self.flags |= Flags::MAY_HOLD,
            K::Hold if verb == K::Declare && self.previous == Some(K::With) => {
                self.flags |= Flags::MAY_HOLD;
            }
            K::To if verb == K::Rollback && self.tokens <= 2 => self.flags.remove(Flags::END),
            K::To if self.is_set_clause() => self.flags |= Flags::MAY_SET,
            K::Prepared if self.flags.has(Flags::END) && self.tokens == 1 => {
                self.flags.remove(Flags::END.with(Flags::COMMITS));
                self.flags |= Flags::WRITES;
            }
            K::Chain if self.flags.has(Flags::END) && self.previous == Some(K::And) => {
                self.flags |= Flags::BEGIN;
            }
            K::Local | K::Transaction | K::Constraints if verb == K::Set && self.tokens == 1 => {
                self.flags.remove(Flags::MAY_SET);
            }
            K::Database if verb == K::Drop && self.tokens == 1 => {
                self.flags |= Flags::OTHER_DATABASE_DROP;
            }
            K::Definition if matches!(verb, K::Create | K::Alter | K::Drop) => {
                self.flags |= Flags::DEFINES;
            }
            K::Database | K::Role | K::User | K::System if verb == K::Alter && self.tokens == 1 => {
                self.flags |= Flags::MAY_SET | Flags::SETS_UNNAMED;
            }
            _ => {}
        }
    }

    /// Whether a TEMP here makes a temporary object: behind CREATE or INTO and what may follow them.
    fn makes_temporary(&self) -> bool {
        use Keyword as K;
        matches!(self.previous, Some(K::Create | K::Into | K::Local | K::Global | K::Replace))
    }

    /// Takes a name.
    fn name(&mut self, piece: &[u8]) {
        match keyword::function(piece) {
            None => {}
            Some(Function::Sets) if self.call == Call::Outside => self.call = Call::Named,
            // One in another's arguments: it is not looked into.
            Some(Function::Sets) => self.flags |= Flags::MAY_SET | Flags::SETS_UNNAMED,
            Some(Function::Flags(flags)) => self.flags |= flags,
            Some(Function::Settings) => self.has_settings_view = true,
            Some(Function::Synapsedb) => {
                use Keyword::{Reset, Set, Show};
                if matches!(self.verb, Some(Set | Reset | Show)) && self.tokens <= 2 {
                    self.flags |= Flags::OWN;
                }
            }
        }
    }

    /// Follows a call of `set_config` up to its end.
    fn in_call(&mut self, kind: Kind, word: Option<Keyword>) {
        match (self.call, kind) {
            (Call::Named, Kind::Symbol(b'(')) => {
                let depth = self.depth + 1;
                self.call = Call::Inside { depth, argument: 0, tokens: 0, is_plain: false };
            }
            (Call::Named, _) | (Call::Outside, _) => self.call = Call::Outside,
            (Call::Inside { depth, argument, tokens, is_plain }, kind) if self.depth == depth => {
                match kind {
                    Kind::Symbol(b')') => {
                        if !(argument == 2 && tokens == 1 && is_plain) {
                            self.flags |= Flags::MAY_SET;
                        }
                        self.call = Call::Outside;
                    }
                    Kind::Symbol(b',') => {
                        if argument == 0 && !(tokens == 1 && is_plain) {
                            self.flags |= Flags::SETS_UNNAMED;
                        }
                        let argument = argument + 1;
                        self.call = Call::Inside { depth, argument, tokens: 0, is_plain: false };
                    }
                    kind => {
                        let is_plain = match argument {
                            0 => kind == Kind::String,
                            _ => word == Some(Keyword::True),
                        };
                        let tokens = tokens + 1;
                        self.call = Call::Inside { depth, argument, tokens, is_plain };
                    }
                }
            }
            // What is deeper makes an argument more than a word.
            (Call::Inside { depth, argument, .. }, _) => {
                self.call = Call::Inside { depth, argument, tokens: 9, is_plain: false };
            }
        }
    }
}

/// Whether a part stands in a text.
fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

#[cfg(test)]
mod tests;
