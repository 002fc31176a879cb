//! The keywords and names by which statements are told, and how they are found quickly.

use super::traits::Flags;

/// A keyword that says something where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keyword {
    Abort,
    Alter,
    Analyze,
    And,
    Begin,
    Call,
    Chain,
    Close,
    Commit,
    Constraints,
    Copy,
    Create,
    Database,
    Deallocate,
    Declare,
    Delete,
    Discard,
    Do,
    Drop,
    End,
    Execute,
    Explain,
    Fetch,
    For,
    From,
    Global,
    Hold,
    Insert,
    Into,
    Key,
    Listen,
    Load,
    Local,
    Merge,
    Move,
    Notify,
    Prepare,
    Prepared,
    Program,
    Release,
    Replace,
    Reset,
    Role,
    Rollback,
    Savepoint,
    Select,
    Set,
    Share,
    Show,
    Start,
    System,
    Table,
    /// TEMP or TEMPORARY.
    Temporary,
    To,
    Transaction,
    True,
    Unlisten,
    Update,
    User,
    Values,
    With,
    /// One of [`DEFINITIONS`].
    Definition,
    /// One of [`READING`].
    Reading,
    /// Any other verb.
    Other,
}

impl Keyword {
    /// Whether a parenthesis behind it begins no call, or one that only reads.
    pub(super) fn is_before_parenthesis(self) -> bool {
        use Keyword as K;
        matches!(
            self,
            K::Reading
                | K::Analyze
                | K::And
                | K::Copy
                | K::Do
                | K::End
                | K::Explain
                | K::For
                | K::From
                | K::Into
                | K::Replace
                | K::Select
                | K::Set
                | K::Table
                | K::To
                | K::True
                | K::User
                | K::Values
                | K::With
        )
    }
}

#[rustfmt::skip]
const KEYWORDS: [(&str, Keyword); 64] = [
    ("abort", Keyword::Abort), ("alter", Keyword::Alter), ("analyze", Keyword::Analyze),
    ("analyse", Keyword::Analyze), ("and", Keyword::And), ("begin", Keyword::Begin), ("call", Keyword::Call),
    ("chain", Keyword::Chain), ("close", Keyword::Close), ("commit", Keyword::Commit),
    ("constraints", Keyword::Constraints), ("copy", Keyword::Copy), ("create", Keyword::Create),
    ("database", Keyword::Database), ("deallocate", Keyword::Deallocate), ("declare", Keyword::Declare),
    ("delete", Keyword::Delete), ("discard", Keyword::Discard), ("do", Keyword::Do), ("drop", Keyword::Drop),
    ("end", Keyword::End), ("execute", Keyword::Execute), ("explain", Keyword::Explain), ("fetch", Keyword::Fetch),
    ("for", Keyword::For), ("from", Keyword::From), ("global", Keyword::Global), ("hold", Keyword::Hold),
    ("insert", Keyword::Insert), ("into", Keyword::Into), ("key", Keyword::Key), ("listen", Keyword::Listen),
    ("load", Keyword::Load), ("local", Keyword::Local), ("merge", Keyword::Merge), ("move", Keyword::Move),
    ("prepare", Keyword::Prepare), ("prepared", Keyword::Prepared), ("program", Keyword::Program),
    ("release", Keyword::Release), ("replace", Keyword::Replace), ("reset", Keyword::Reset), ("role", Keyword::Role),
    ("rollback", Keyword::Rollback), ("savepoint", Keyword::Savepoint), ("select", Keyword::Select),
    ("set", Keyword::Set), ("share", Keyword::Share), ("show", Keyword::Show), ("start", Keyword::Start),
    ("system", Keyword::System), ("table", Keyword::Table), ("temp", Keyword::Temporary),
    ("temporary", Keyword::Temporary), ("to", Keyword::To), ("transaction", Keyword::Transaction),
    ("true", Keyword::True), ("unlisten", Keyword::Unlisten), ("update", Keyword::Update), ("user", Keyword::User),
    ("values", Keyword::Values), ("with", Keyword::With), ("group", Keyword::Role),
    ("notify", Keyword::Notify),
];

/// What may stand before a parenthesis in a text that only reads: syntax, and functions of PostgreSQL in everyday use.
#[rustfmt::skip]
const READING: [&str; 136] = [
    "in", "or", "not", "any", "all", "some", "where", "having", "on", "using", "when", "then", "else", "as",
    "exists", "array", "distinct", "union", "except", "intersect", "row", "over", "filter", "by", "limit", "offset",
    "coalesce", "greatest", "least", "nullif", "cast", "extract", "between", "like", "ilike", "is", "lateral",
    "only", "case", "interval", "numeric", "decimal", "varchar", "char", "character", "varying", "time", "timestamp",
    "float", "bit", "returning", "rollup", "cube", "sets", "materialized", "current_timestamp", "current_time",
    "localtime", "localtimestamp", "position", "substring", "overlay", "trim", "normalize", "count", "sum", "avg",
    "min", "max", "now", "lower", "upper", "length", "round", "abs", "floor", "ceil", "ceiling", "mod", "concat",
    "concat_ws", "left", "right", "split_part", "to_char", "to_date", "to_timestamp", "to_number", "date_trunc",
    "date_part", "age", "array_agg", "string_agg", "json_agg", "jsonb_agg", "json_build_object",
    "jsonb_build_object", "bool_and", "bool_or", "row_number", "rank", "dense_rank", "lag", "lead", "first_value",
    "unnest", "generate_series", "array_length", "cardinality", "md5", "random", "current_setting", "format",
    "version", "ltrim", "rtrim", "btrim", "strpos", "pg_sleep", "pg_backend_pid", "pg_is_in_recovery",
    "inet_server_addr", "inet_server_port", "current_database", "current_schema", "pg_typeof", "format_type",
    "to_regclass", "pg_size_pretty", "row_to_json", "to_json", "to_jsonb", "trunc", "sqrt", "power",
    "clock_timestamp",
];

/// What can be, or hold, a function or a view, or be what calls one.
pub(super) const DEFINITIONS: [&str; 8] =
    ["aggregate", "extension", "function", "operator", "procedure", "routine", "schema", "view"];

/// The longest word in the table, in bytes.
const LENGTH_MAX: usize = 18;

/// All lists, one behind the other, as a hash table with open addresses.
static TABLE: [u8; TABLE_SIZE] = table();
const TABLE_SIZE: usize = 1024;
const FREE: u8 = u8::MAX;
const WORDS: usize = KEYWORDS.len() + READING.len() + DEFINITIONS.len();

const fn table() -> [u8; TABLE_SIZE] {
    let mut table = [FREE; TABLE_SIZE];
    let mut index = 0;
    while index < WORDS {
        let mut place = place(word(index).as_bytes());
        while table[place] != FREE {
            place = (place + 1) % TABLE_SIZE;
        }
        table[place] = index as u8;
        index += 1;
    }
    table
}

const fn word(index: usize) -> &'static str {
    const READING_END: usize = KEYWORDS.len() + READING.len();
    if index < KEYWORDS.len() {
        KEYWORDS[index].0
    } else if index < READING_END {
        READING[index - KEYWORDS.len()]
    } else {
        DEFINITIONS[index - READING_END]
    }
}

/// Where a word of at least two letters belongs; letters of both cases lead to the same place.
const fn place(word: &[u8]) -> usize {
    let (first, second) = (word[0] & 0x1f, word[1] & 0x1f);
    let (middle, last) = (word[word.len() / 2] & 0x1f, word[word.len() - 1] & 0x1f);
    let sum = first as usize * 41 + second as usize * 7 + middle as usize * 3 + last as usize * 19;
    (sum + word.len() * 5) % TABLE_SIZE
}

/// The keyword that a word without quotes is.
#[inline]
pub(super) fn of(word: &[u8]) -> Option<Keyword> {
    if !(2..=LENGTH_MAX).contains(&word.len()) {
        return None;
    }
    let mut at = place(word);
    loop {
        let index = TABLE[at];
        if index == FREE {
            return None;
        }
        let name = self::word(usize::from(index));
        if name.len() == word.len() && name.as_bytes().eq_ignore_ascii_case(word) {
            let index = usize::from(index);
            let keyword = KEYWORDS.get(index).map(|(_, keyword)| *keyword);
            let is_reading = index < KEYWORDS.len() + READING.len();
            let other = if is_reading { Keyword::Reading } else { Keyword::Definition };
            return Some(keyword.unwrap_or(other));
        }
        at = (at + 1) % TABLE_SIZE;
    }
}

/// What a statement with this verb does by the verb alone.
pub(super) fn flags_of_verb(verb: Keyword) -> Flags {
    use Keyword as K;
    match verb {
        K::Select
        | K::Values
        | K::Table
        | K::With
        | K::Insert
        | K::Update
        | K::Delete
        | K::Merge => effects_of_verb(verb),
        K::Commit | K::End => effects_of_verb(verb) | Flags::UTILITY | Flags::COMMITS,
        _ => effects_of_verb(verb) | Flags::UTILITY,
    }
}

fn effects_of_verb(verb: Keyword) -> Flags {
    use Keyword as K;
    let none = Flags::default();
    match verb {
        K::Select | K::Values | K::Table | K::With | K::Show | K::Explain | K::Copy => none,
        K::Fetch | K::Move | K::Declare | K::Savepoint | K::Release => none,
        K::Set | K::Reset => Flags::MAY_SET,
        K::Discard => Flags::MAY_SET | Flags::SETS_UNNAMED | Flags::MAY_RELEASE | Flags::CHANNELS,
        K::Do | K::Call => {
            let session = Flags::MAY_SET | Flags::SETS_UNNAMED | Flags::MAY_HOLD;
            session | Flags::WRITES | Flags::CHANNELS
        }
        K::Listen => Flags::MAY_HOLD | Flags::CHANNELS,
        K::Load => Flags::MAY_HOLD,
        // Of the statement in it the words tell; the name of a transaction does.
        K::Prepare => Flags::MAY_HOLD,
        K::Unlisten => Flags::MAY_RELEASE | Flags::CHANNELS,
        K::Notify => Flags::WRITES | Flags::CHANNELS,
        K::Close | K::Deallocate => Flags::MAY_RELEASE,
        K::Drop => Flags::MAY_RELEASE | Flags::WRITES,
        K::Begin | K::Start => Flags::BEGIN,
        K::Commit | K::End | K::Rollback | K::Abort => Flags::END,
        K::Insert | K::Update | K::Delete | K::Merge | K::Create | K::Alter | K::Execute => {
            Flags::WRITES
        }
        K::Analyze | K::And | K::Chain | K::Constraints | K::Database | K::For | K::From => {
            Flags::WRITES
        }
        K::Global | K::Hold | K::Into | K::Key | K::Local | K::Prepared | K::Program => {
            Flags::WRITES
        }
        K::Replace | K::Role | K::Share | K::System | K::Temporary | K::To => Flags::WRITES,
        K::Transaction | K::True | K::User => Flags::WRITES,
        K::Definition | K::Reading | K::Other => Flags::WRITES,
    }
}

/// What a name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    /// `set_config`.
    Sets,
    /// The view by which settings can be changed.
    Settings,
    /// Our class of settings.
    Synapsedb,
    /// A function, or something temporary.
    Flags(Flags),
}

/// What a name tells. It begins at the front of `name` and goes on as far as it is one.
#[inline]
pub(super) fn function(name: &[u8]) -> Option<Function> {
    let [first, second, ..] = name else { return None };
    match (first | 0x20, second | 0x20) {
        (b'p', b'g') | (b's', b'e' | b'y') | (b'l', b'o') => {}
        (b'n', b'e') | (b't', b'x') | (b'd', b'b') => {}
        _ => return None,
    }
    let name = name.strip_suffix(b"\"").unwrap_or(name);
    NAMES.iter().find(|(known, _)| matches(name, known)).map(|(_, function)| *function)
}

/// Whether a name is this one, or begins so when it ends with a `*`.
fn matches(name: &[u8], known: &str) -> bool {
    match known.strip_suffix('*') {
        Some(start) => {
            name.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start.as_bytes()))
        }
        None => name.eq_ignore_ascii_case(known.as_bytes()),
    }
}

const HOLDS: Function = Function::Flags(Flags::MAY_HOLD);
const RELEASES: Function = Function::Flags(Flags::MAY_RELEASE);
const WRITES: Function = Function::Flags(Flags::WRITES);
const HOLDS_AND_WRITES: Function = Function::Flags(Flags::MAY_HOLD.with(Flags::WRITES));
const RELEASES_AND_WRITES: Function = Function::Flags(Flags::MAY_RELEASE.with(Flags::WRITES));

/// Names that tell something, most of them PostgreSQL's functions.
const NAMES: [(&str, Function); 43] = [
    ("set_config", Function::Sets),
    ("pg_settings", Function::Settings),
    ("synapsedb", Function::Synapsedb),
    ("pg_temp*", HOLDS),
    ("pg_advisory_lock*", HOLDS),
    ("pg_try_advisory_lock*", HOLDS),
    ("setseed", HOLDS),
    ("dblink_connect*", HOLDS),
    ("pg_create_logical_replication_slot", HOLDS_AND_WRITES),
    ("pg_create_physical_replication_slot", HOLDS_AND_WRITES),
    ("pg_copy_logical_replication_slot", HOLDS_AND_WRITES),
    ("pg_copy_physical_replication_slot", HOLDS_AND_WRITES),
    ("pg_replication_origin_session_setup", HOLDS_AND_WRITES),
    ("pg_advisory_unlock*", RELEASES),
    ("dblink_disconnect", RELEASES),
    ("pg_replication_origin_session_reset", RELEASES),
    ("pg_drop_replication_slot", RELEASES_AND_WRITES),
    ("nextval", WRITES),
    ("setval", WRITES),
    ("pg_notify", Function::Flags(Flags::WRITES.with(Flags::CHANNELS))),
    ("pg_listening_channels", Function::Flags(Flags::CHANNELS)),
    ("pg_logical_emit_message", WRITES),
    ("pg_current_xact_id", WRITES),
    ("txid_current", WRITES),
    ("lo_creat*", WRITES),
    ("lo_from_bytea", WRITES),
    ("lo_import*", WRITES),
    ("lo_open", WRITES),
    ("lo_put", WRITES),
    ("lo_truncate*", WRITES),
    ("lo_unlink", WRITES),
    ("lowrite", WRITES),
    ("dblink*", WRITES),
    ("pg_replication_origin_*", WRITES),
    ("pg_replication_slot_advance", WRITES),
    ("pg_create_restore_point", WRITES),
    ("pg_switch_wal", WRITES),
    ("pg_import_system_collations", WRITES),
    ("pg_extension_config_dump", WRITES),
    ("pg_restore_relation_stats", WRITES),
    ("pg_restore_attribute_stats", WRITES),
    ("pg_clear_relation_stats", WRITES),
    ("pg_clear_attribute_stats", WRITES),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_keyword_is_found_and_nothing_else() {
        for (name, keyword) in KEYWORDS {
            assert!((2..=LENGTH_MAX).contains(&name.len()), "{name}");
            assert_eq!(of(name.as_bytes()), Some(keyword));
            assert_eq!(of(name.to_uppercase().as_bytes()), Some(keyword));
            assert_eq!(of(format!("{name}_").as_bytes()), None, "{name}");
        }
        for word in
            ["", "a", "at", "selecd", "sel", "\u{e4}b", "setting", "transactional", "t\u{fc}"]
        {
            assert_eq!(of(word.as_bytes()), None, "{word}");
        }
    }

    #[test]
    fn words_are_found_at_once() {
        let probes = |index: usize| {
            let mut at = place(word(index).as_bytes());
            let mut count = 1;
            while usize::from(TABLE[at]) != index {
                (at, count) = ((at + 1) % TABLE_SIZE, count + 1);
            }
            count
        };
        let count = WORDS;
        assert!(count < usize::from(FREE));
        let sum: usize = (0..count).map(probes).sum();
        assert!(sum < 2 * count, "{sum}");
        for name in READING {
            assert!((2..=LENGTH_MAX).contains(&name.len()), "{name}");
            assert_eq!(of(name.to_uppercase().as_bytes()), Some(Keyword::Reading));
        }
        for name in DEFINITIONS {
            assert!((2..=LENGTH_MAX).contains(&name.len()), "{name}");
            assert_eq!(of(name.as_bytes()), Some(Keyword::Definition));
        }
    }

    #[test]
    fn every_name_is_found() {
        for (name, function_of_it) in NAMES {
            let found = function(name.trim_end_matches('*').as_bytes());
            assert_eq!(found, Some(function_of_it), "{name}");
            let quoted = format!("{}\"", name.trim_end_matches('*'));
            assert_eq!(function(quoted.as_bytes()), Some(function_of_it), "{name}");
        }
        for name in
            ["", "p", "pg", "pg_class", "sum", "lower", "set_configs", "pg_advisory_xact_lock"]
        {
            assert_eq!(function(name.as_bytes()), None, "{name}");
        }
    }
}
