//! Where a request goes, by its texts and by what the client has said of it. Pure.

use std::fmt;
use std::rc::Rc;

use synapsedb_core::ids::NodeId;
use synapsedb_pg::sql::reads::{self, Names, Reason};
use synapsedb_pg::sql::statement::{self, Access};
use synapsedb_pg::sql::traits::{Flags, Traits};

use crate::router::Endpoint;

/// Where a client wants its statements to go (`synapsedb.route`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::router) enum Hint {
    /// To any node that may be read from.
    Read,
    /// To the primary.
    Write,
    /// To this node, to be read there.
    Node(NodeId),
}

impl Hint {
    /// Reads a value.
    ///
    /// # Errors
    /// It is none: which there are.
    pub(in crate::router) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim_ascii();
        let is = |word: &str| text.eq_ignore_ascii_case(word);
        if is("read") {
            return Ok(Self::Read);
        }
        if is("write") || is("primary") {
            return Ok(Self::Write);
        }
        let after = text.get(..4).filter(|word| word.eq_ignore_ascii_case("node"));
        let number = after.map(|_| text[4..].trim_start_matches([' ', ':']));
        let node = number.and_then(|number| NodeId::new(number.parse().ok()?));
        node.map(Self::Node).ok_or_else(|| {
            let max = NodeId::MAX;
            format!("synapsedb.route is read, write, primary or \"node N\" (N from 1 to {max}), not \"{text}\"")
        })
    }

    /// Whether it can be followed at an endpoint.
    ///
    /// # Errors
    /// It cannot: why, and what to do.
    pub(in crate::router) fn check_at(self, endpoint: Endpoint) -> Result<(), String> {
        match (endpoint, self) {
            (Endpoint::Write, Self::Read | Self::Node(_)) => Err(format!(
                "synapsedb.route cannot be \"{self}\" here: the write endpoint leads to the primary; connect to the \
                 read endpoint or the split endpoint"
            )),
            (Endpoint::Read | Endpoint::Split, _) | (Endpoint::Write, Self::Write) => Ok(()),
        }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read => f.write_str("read"),
            Self::Write => f.write_str("write"),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// What is known of a text, whoever says it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::router) struct Judged {
    verdict: Verdict,
    /// The hint at its front, or what is wrong with it.
    hint: Option<Result<Hint, String>>,
    /// Why no hint sends it to a reader.
    stays: Option<&'static str>,
    /// It is about the router's own settings.
    is_own: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Read,
    /// It begins a transaction block, and does nothing else.
    Begin(Access),
    /// It writes, or may: why.
    Write(String),
}

/// What keeps a session's connection, or is of it.
const OF_SESSION: Flags = Flags::MAY_HOLD.with(Flags::MAY_RELEASE);

impl Judged {
    /// Judges a text by the functions of its database.
    pub(in crate::router) fn of(text: &[u8], names: &Names) -> Self {
        let hint = reads::route_hint(text).map(Hint::parse);
        let flags = Traits::of(text).flags;
        let is_own = flags.has(Flags::OWN) && statement::own(text).is_some();
        let stays = if is_own {
            None
        } else if flags.has(OF_SESSION) {
            Some("it leaves something in the session, or takes it away")
        } else if flags.has(Flags::MAY_SET) {
            Some("it may set something for the session")
        } else if flags.has(Flags::BACKSLASH) {
            Some("it has a backslash in a plain string")
        } else if reads::touches_read_only(text) {
            Some("it is about whether it may write")
        } else {
            None
        };
        let verdict = if is_own { Verdict::Read } else { verdict(text, names) };
        Self { verdict, hint, stays, is_own }
    }

    /// Of a text that was taken for a read, and was none.
    pub(in crate::router) fn wrote(text: &[u8]) -> Self {
        let hint = reads::route_hint(text).map(Hint::parse);
        let verdict = Verdict::Write("it wanted to write when it was taken for a read".to_owned());
        Self { verdict, hint, stays: None, is_own: false }
    }
}

fn verdict(text: &[u8], names: &Names) -> Verdict {
    if let Some(access) = statement::begin(text) {
        return Verdict::Begin(access);
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return Verdict::Write("it is not UTF-8".to_owned());
    };
    match reads::decide(text, names) {
        reads::Verdict::Read => Verdict::Read,
        reads::Verdict::Write(reason) => Verdict::Write(match reason {
            Reason::Words => match names.writing_in(text) {
                Some(name) if is_called(text, &name) => format!("calls {name}()"),
                Some(_) | None => "its words write, lock rows or are of the session".to_owned(),
            },
            Reason::Name(name) if is_called(text, &name) => format!("calls {name}()"),
            Reason::Name(name) => format!("names {name}, which may write"),
            Reason::UnknownFunction(name) => format!("calls {name}(), which is not known"),
            Reason::Unparsed => "it cannot be parsed".to_owned(),
        }),
    }
}

/// Whether a name stands before a parenthesis.
fn is_called(text: &str, name: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.match_indices(&name.to_ascii_lowercase()).any(|(at, found)| {
        text[at + found.len()..].trim_start_matches('"').trim_ascii_start().starts_with('(')
    })
}

/// Why a request went where it went.
#[derive(Clone, Debug)]
pub(in crate::router) enum Why {
    Said(&'static str),
    Judged(Rc<Judged>),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Said(text) => text,
            Self::Judged(judged) => match &judged.verdict {
                Verdict::Read | Verdict::Begin(_) => "the words only read",
                Verdict::Write(why) => why,
            },
        })
    }
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub(in crate::router) struct Decision {
    /// To the primary.
    pub(in crate::router) writes: bool,
    /// Nobody has said that it only reads: should it turn out to write, it is run again on the primary.
    pub(in crate::router) is_guess: bool,
    /// The node that it names.
    pub(in crate::router) only: Option<NodeId>,
    /// `None` for one that is about the router's own settings.
    pub(in crate::router) why: Option<Why>,
}

impl Decision {
    pub(in crate::router) fn write(why: Why) -> Self {
        Self { writes: true, is_guess: false, only: None, why: Some(why) }
    }
}

/// What is said of the session whose request it is.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::router) struct Session {
    /// `synapsedb.route`, as it was set.
    pub(in crate::router) hint: Option<Hint>,
    /// `default_transaction_read_only`
    pub(in crate::router) reads_only: bool,
}

/// Decides by all texts of a request: one that writes makes it a write.
///
/// # Errors
/// A hint that is none: what to tell the client.
pub(in crate::router) fn decide<'a>(
    texts: impl IntoIterator<Item = &'a Rc<Judged>>,
    session: Session,
) -> Result<Decision, String> {
    let mut decision = Decision { writes: false, is_guess: true, only: None, why: None };
    let mut write = None;
    for judged in texts {
        let hint = match &judged.hint {
            Some(Err(wrong)) => return Err(wrong.clone()),
            Some(Ok(hint)) => Some(*hint),
            None => session.hint,
        };
        if judged.is_own {
            continue;
        }
        let written = written(judged, hint, session);
        write = write.or(written);
        decision.is_guess &= hint.is_none() && !matches!(judged.verdict, Verdict::Begin(_));
        if let Some(Hint::Node(node)) = hint {
            decision.only = decision.only.or(Some(node));
        }
        decision.why = decision.why.take().or_else(|| {
            Some(match (hint, &judged.verdict) {
                (Some(Hint::Node(_)), _) => Why::Said("synapsedb.route names the node"),
                (Some(Hint::Read | Hint::Write), _) => Why::Said("synapsedb.route says so"),
                (None, Verdict::Begin(_)) => Why::Said("the transaction is read only"),
                (None, Verdict::Read | Verdict::Write(_)) => Why::Said("the words only read"),
            })
        });
    }
    Ok(write.map_or(decision, Decision::write))
}

/// Why a text makes its request a write, if it does.
fn written(judged: &Rc<Judged>, hint: Option<Hint>, session: Session) -> Option<Why> {
    if let Some(why) = judged.stays {
        return Some(match &judged.verdict {
            Verdict::Write(_) if hint.is_none() => Why::Judged(Rc::clone(judged)),
            Verdict::Read | Verdict::Begin(_) | Verdict::Write(_) => Why::Said(why),
        });
    }
    match (hint, &judged.verdict) {
        (Some(Hint::Write), _) => Some(Why::Said("synapsedb.route says so")),
        (Some(Hint::Read | Hint::Node(_)), _) | (None, Verdict::Read) => None,
        (None, Verdict::Begin(Access::ReadOnly)) => None,
        (None, Verdict::Begin(Access::Default)) if session.reads_only => None,
        (None, Verdict::Begin(Access::Default | Access::ReadWrite)) => {
            Some(Why::Said("the transaction may write"))
        }
        (None, Verdict::Write(_)) => Some(Why::Judged(Rc::clone(judged))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names() -> Names {
        let mut names = Names::default();
        names.add_function("pg_catalog", "lower", false);
        names.add_function("pg_catalog", "nextval", true);
        names.add_function("public", "audit", true);
        names.add_function("pg_catalog", "current_setting", false);
        names.add_views(vec![("trail".to_owned(), "SELECT audit()".to_owned())]);
        names
    }

    fn at(texts: &[&str], session: Session) -> Result<(bool, bool, Option<u16>, String), String> {
        let judged: Vec<_> =
            texts.iter().map(|text| Rc::new(Judged::of(text.as_bytes(), &names()))).collect();
        let decision = decide(&judged, session)?;
        let why = decision.why.map(|why| why.to_string()).unwrap_or_default();
        Ok((decision.writes, decision.is_guess, decision.only.map(NodeId::get), why))
    }

    #[test]
    fn a_request_goes_by_all_its_texts() {
        let said = |why: &str| why.to_owned();
        let words = || said("its words write, lock rows or are of the session");
        for (texts, expected) in [
            (&["SELECT lower(a) FROM t"][..], (false, true, None, said("the words only read"))),
            (&["SELECT 1", "SELECT 2"], (false, true, None, said("the words only read"))),
            (&["SELECT 1", "INSERT INTO t VALUES (1)", "SELECT 2"], (true, false, None, words())),
            (&["SELECT nextval('s')"], (true, false, None, said("calls nextval()"))),
            (&["SELECT audit ()"], (true, false, None, said("calls audit()"))),
            (&["SELECT * FROM trail"], (true, false, None, said("names trail, which may write"))),
            (&["SELECT x()"], (true, false, None, said("calls x(), which is not known"))),
            (&["BEGIN"], (true, false, None, said("the transaction may write"))),
            (&["BEGIN READ ONLY"], (false, false, None, said("the transaction is read only"))),
            (
                &["BEGIN READ ONLY", "SELECT 1"],
                (false, false, None, said("the transaction is read only")),
            ),
            (&["BEGIN READ WRITE"], (true, false, None, said("it is about whether it may write"))),
            (
                &["SHOW transaction_read_only"],
                (true, false, None, said("it is about whether it may write")),
            ),
            (
                &["SELECT current_setting('default_transaction_read_only')"],
                (true, false, None, said("it is about whether it may write")),
            ),
            (&["SHOW synapsedb.last_route"], (false, true, None, said(""))),
            (&["SET synapsedb.consistency = eventual"], (false, true, None, said(""))),
            (
                &["SHOW synapsedb.token", "SELECT 1"],
                (false, true, None, said("the words only read")),
            ),
            (&[], (false, true, None, said(""))),
            (&["COMMIT"], (true, false, None, words())),
            (&["SELECT '\\'"], (true, false, None, words())),
        ] {
            assert_eq!(at(texts, Session::default()).unwrap(), expected, "{texts:?}");
        }
    }

    #[test]
    fn hints_are_followed_as_far_as_nothing_breaks() {
        let says = "synapsedb.route says so";
        for (text, writes, only, why) in [
            ("/* synapsedb.route=write */ SELECT 1", true, None, says),
            ("/* synapsedb.route=primary */ SELECT 1", true, None, says),
            ("/* synapsedb.route=read */ SELECT audit()", false, None, says),
            ("/* synapsedb.route=read */ BEGIN", false, None, says),
            (
                "/* synapsedb.route=node 2 */ SELECT 1",
                false,
                Some(2),
                "synapsedb.route names the node",
            ),
            (
                "/* synapsedb.route=read */ BEGIN READ WRITE",
                true,
                None,
                "it is about whether it may write",
            ),
            (
                "/* synapsedb.route=read */ SELECT pg_advisory_lock(1)",
                true,
                None,
                "it leaves something in the session, or takes it away",
            ),
            (
                "/* synapsedb.route=read */ SET work_mem = 1",
                true,
                None,
                "it may set something for the session",
            ),
        ] {
            let found = at(&[text], Session::default()).unwrap();
            let expected = (writes, false, only, why.to_owned());
            assert_eq!(found, expected, "{text}");
            // The same by the session.
            let (hint, rest) =
                text.strip_prefix("/* synapsedb.route=").unwrap().split_once(" */ ").unwrap();
            let hint = Some(Hint::parse(hint).unwrap());
            let session = Session { hint, ..Session::default() };
            assert_eq!(at(&[rest], session).unwrap(), expected, "{text}");
        }
        let hint = Some(Hint::Write);
        let session = Session { hint, reads_only: false };
        assert!(!at(&["/* synapsedb.route=read */ SELECT 1"], session).unwrap().0);
        assert!(at(&["SELECT 1", "/* synapsedb.route=read */ SELECT 1"], session).unwrap().0);
        let wrong = at(&["/* synapsedb.route=fast */ SELECT 1"], session).unwrap_err();
        assert!(wrong.contains("read, write, primary or \"node N\""), "{wrong}");
    }

    #[test]
    fn a_session_that_only_reads_begins_at_a_reader() {
        let session = Session { reads_only: true, ..Session::default() };
        assert!(!at(&["BEGIN"], session).unwrap().0);
        assert!(at(&["BEGIN READ WRITE"], session).unwrap().0);
        assert!(at(&["INSERT INTO t VALUES (1)"], session).unwrap().0);
    }

    #[test]
    fn values_of_the_route() {
        let node = |number| Ok(Hint::Node(NodeId::new(number).unwrap()));
        for (text, expected) in [
            (" Read ", Ok(Hint::Read)),
            ("WRITE", Ok(Hint::Write)),
            ("primary", Ok(Hint::Write)),
            ("node 2", node(2)),
            ("NODE:16", node(16)),
            ("node3", node(3)),
        ] {
            assert_eq!(Hint::parse(text), expected, "{text}");
        }
        for text in ["", "node", "node 0", "node 17", "node x", "2", "reads", "n\u{f6}de 1"] {
            assert!(Hint::parse(text).is_err(), "{text}");
        }
        assert!(Hint::Read.check_at(Endpoint::Write).is_err());
        assert!(Hint::Write.check_at(Endpoint::Write).is_ok());
        assert!(Hint::Read.check_at(Endpoint::Read).is_ok());
    }
}
