//! Which requests may be run a second time on another node when the first one is lost before it has answered: reads
//! of the read endpoint that nothing can have happened by. Pure, but for the session's own state.

use synapsedb_pg::sql::traits::Flags;

use super::Endpoint;
use super::server::Server;
use super::session::Session;
use super::turn::Turns;

/// The longest request of the read endpoint that is kept for this, in bytes.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// How often one request is repeated.
const REPEATS_MAX: u32 = 3;

/// What may stand in front of a parenthesis: keywords, and functions of PostgreSQL's that change nothing. Whatever
/// else is called may do anything.
const HARMLESS: [&str; 46] = [
    "abs",
    "all",
    "and",
    "any",
    "array_agg",
    "as",
    "avg",
    "between",
    "by",
    "case",
    "coalesce",
    "concat",
    "count",
    "date_trunc",
    "distinct",
    "else",
    "except",
    "exists",
    "extract",
    "filter",
    "from",
    "greatest",
    "in",
    "intersect",
    "join",
    "least",
    "length",
    "like",
    "lower",
    "max",
    "min",
    "not",
    "now",
    "nullif",
    "on",
    "or",
    "over",
    "round",
    "select",
    "some",
    "sum",
    "then",
    "union",
    "upper",
    "using",
    "where",
];

/// What is kept of a request while it may be repeated.
#[derive(Debug, Default)]
pub(super) struct Repeat {
    bytes: Vec<u8>,
    bytes_max: usize,
    /// Whether `bytes` is all that the client has sent, and nothing has been answered.
    possible: bool,
    repeats: u32,
}

impl Repeat {
    /// A request begins outside a transaction, of which so many bytes may be kept.
    pub(super) fn begin(&mut self, bytes: &[u8], bytes_max: usize) {
        self.bytes.clear();
        self.bytes_max = bytes_max;
        self.possible = true;
        self.add(bytes);
    }

    /// More of the request has come.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            self.forbid();
        }
        if self.possible {
            self.bytes.extend_from_slice(bytes);
        }
    }

    pub(super) fn is_possible(&self) -> bool {
        self.possible
    }

    /// What is kept of the request.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Gives the request away.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.possible = false;
        std::mem::take(&mut self.bytes)
    }

    /// It may have had an effect, or the client has seen a part of the answer.
    pub(super) fn forbid(&mut self) {
        self.possible = false;
    }

    /// The request was answered.
    pub(super) fn done(&mut self) {
        self.possible = false;
        self.repeats = 0;
        if self.bytes.capacity() > 1024 {
            self.bytes = Vec::new();
        }
    }
}

impl Session {
    /// Keeps a request that may have to run again: `data` begins with it, or `more` of it has come.
    pub(super) fn keep_for_repeat(
        &mut self,
        server: &Server,
        is_first: bool,
        data: &[u8],
        more: &[u8],
    ) {
        match (is_first, self.entry.route.get().to) {
            (true, Endpoint::Read) if server.status == b'I' => {
                let bytes_max = match self.turns.is_guess {
                    // On the primary all of it must run.
                    true => self.worker.shared.config().query_bytes_max,
                    false => REQUEST_BYTES_MAX,
                };
                self.repeat.begin(self.request(data), bytes_max);
            }
            (false, Endpoint::Read) => self.repeat.add(more),
            (_, Endpoint::Read | Endpoint::Write | Endpoint::Split) => {}
        }
    }

    /// What was sent is sent again, and its Parse messages with it.
    pub(super) fn parse_again(&mut self) {
        for (name, _) in self.parsing.drain(..) {
            self.prepared.remove(&name);
        }
    }

    /// Puts a request whose server was lost back, to be run elsewhere. Whether that was possible.
    pub(super) fn repeat(&mut self) -> bool {
        let harms = Flags::WRITES.with(Flags::MAY_SET).with(Flags::MAY_HOLD).with(Flags::BEGIN);
        let again = self.repeat.possible
            && self.repeat.repeats < REPEATS_MAX
            && !self.traits.has(harms)
            && !self.keeps_server();
        if !again {
            return false;
        }
        self.repeat.possible = false;
        self.repeat.repeats += 1;
        let behind = match self.turns.one_by_one {
            true => std::mem::take(&mut self.inbox),
            // It is among what is repeated.
            false => Vec::new(),
        };
        self.inbox = [self.repeat.bytes(), &behind].concat();
        self.turns = Turns::default();
        self.parse_again();
        (self.passing, self.discarding, self.batch_open) = (0, 0, false);
        self.reading.leaves = true;
        true
    }
}

/// Whether a text calls nothing but functions that change nothing.
pub(super) fn calls_nothing_unknown(text: &[u8]) -> bool {
    text.iter().enumerate().filter(|(_, byte)| **byte == b'(').all(|(at, _)| {
        let before = text[..at].trim_ascii_end();
        let is_word =
            |byte: &u8| byte.is_ascii_alphanumeric() || !byte.is_ascii() || b"_$\".".contains(byte);
        let word =
            before.iter().rposition(|byte| !is_word(byte)).map_or(before, |end| &before[end + 1..]);
        let known = |harmless: &str| word.eq_ignore_ascii_case(harmless.as_bytes());
        word.is_empty() || HARMLESS.iter().any(|harmless| known(harmless))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_functions_are_harmless() {
        for harmless in [
            "select 1",
            "select (1 + 2) * (3)",
            "SELECT count(*), max (a) from t where id in (1, 2) and (b or c)",
            "select * from (select 1) x join (select 2) y on (true)",
        ] {
            assert!(calls_nothing_unknown(harmless.as_bytes()), "{harmless}");
        }
        for harmful in [
            "select f(1)",
            "select nextval('s')",
            "select count(*), s.f()",
            "select \"f\"(1)",
            "select \"count\"(1)",
            "select my.count(1)",
        ] {
            assert!(!calls_nothing_unknown(harmful.as_bytes()), "{harmful}");
        }
    }

    #[test]
    fn long_requests_are_not_kept() {
        let mut repeat = Repeat::default();
        repeat.begin(&[0; 10], REQUEST_BYTES_MAX);
        assert!(repeat.possible);
        repeat.add(&[0; REQUEST_BYTES_MAX]);
        assert!(!repeat.possible);
        repeat.begin(b"x", REQUEST_BYTES_MAX);
        assert!(repeat.possible);
        repeat.done();
        assert!(!repeat.possible);
    }
}
