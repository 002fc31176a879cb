//! The prepared statements of all clients of a worker: the same text and types are one statement, under one name on
//! the servers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use synapsedb_pg::sql::statement::Own;
use synapsedb_pg::sql::traits::Flags;

use super::expected::StatementId;
use super::session::Session;
use super::split::Judged;
use super::startup::split_text;

/// The names of the router's prepared statements begin with this.
pub(super) const NAME_PREFIX: &str = "__synapsedb_";

/// The name of a statement on the servers.
pub(super) fn name(id: StatementId) -> Box<[u8]> {
    format!("{NAME_PREFIX}{id}").into_bytes().into()
}

/// The text in a Parse message's body behind the name.
pub(super) fn text(body: &[u8]) -> &[u8] {
    split_text(body).map_or(body, |(text, _)| text)
}

/// A statement that clients have prepared.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) id: StatementId,
    /// Its name on the servers.
    pub(super) name: Box<[u8]>,
    /// The Parse message's body behind the name, as servers get it: the text, its end, the parameter types.
    pub(super) body: Rc<[u8]>,
    /// It is about a setting of the router's own.
    pub(super) own: Option<Own>,
    /// What the text may do ([`synapsedb_pg::sql::Traits`]).
    pub(super) traits: Flags,
    /// How the split endpoint has judged it, and the stamp of what it was judged by.
    pub(super) judged: RefCell<Option<(u64, Rc<Judged>)>>,
    /// Its plan no longer fits the schema: whoever prepares the text again gets another statement.
    pub(super) stale: Cell<bool>,
}

/// What is to be known of a new statement.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) traits: Flags,
    pub(super) own: Option<Own>,
    /// What servers get in place of the client's body.
    pub(super) sent: Option<Vec<u8>>,
}

/// The statements that are known, by the bodies of the clients' Parse messages.
#[derive(Debug, Default)]
pub(super) struct Statements {
    known: RefCell<HashMap<Rc<[u8]>, Weak<Statement>>>,
    next: Cell<StatementId>,
    sweep_at: Cell<usize>,
}

/// With fewer statements known, those that nobody holds are left.
const SWEEP_MIN: usize = 256;

impl Statements {
    /// The statement of a Parse body (without the name); `facts` are those of its text, if it is new.
    pub(super) fn intern(&self, body: &[u8], facts: impl FnOnce() -> Facts) -> Rc<Statement> {
        let mut known = self.known.borrow_mut();
        let same = known.get(body).and_then(Weak::upgrade);
        if let Some(same) = same.filter(|same| !same.stale.get()) {
            return same;
        }
        if known.len() >= self.sweep_at.get().max(SWEEP_MIN) {
            known.retain(|_, statement| statement.strong_count() > 0);
            self.sweep_at.set(known.len() * 2);
        }
        let id = self.next.get() + 1;
        self.next.set(id);
        let key: Rc<[u8]> = body.into();
        let Facts { traits, own, sent } = facts();
        let statement = Rc::new(Statement {
            id,
            name: name(id),
            body: sent.map_or_else(|| Rc::clone(&key), Into::into),
            own,
            traits,
            judged: RefCell::default(),
            stale: Cell::new(false),
        });
        known.insert(key, Rc::downgrade(&statement));
        statement
    }

    /// How many are known.
    pub(super) fn len(&self) -> usize {
        self.known.borrow().len()
    }
}

impl Session {
    /// A Parse of the client's was not done.
    pub(super) fn not_prepared(&mut self, id: Option<StatementId>) {
        let Some(id) = id else {
            self.unnamed.clear();
            return;
        };
        for (name, _) in self.parsing.iter().filter(|(_, parsed)| *parsed == id) {
            // What has been sent meanwhile may still use the name.
            self.unprepared.extend(self.prepared.remove(name).map(|was| (name.clone(), was)));
        }
    }

    /// A prepared statement is used.
    pub(super) fn bound(&mut self, statement: Rc<Statement>) {
        self.used.push(statement);
    }

    /// The plans of the statements in use no longer fit the schema.
    pub(super) fn plans_are_stale(&mut self) {
        for statement in &self.used {
            statement.stale.set(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_is_the_same_statement_until_it_is_stale() {
        let statements = Statements::default();
        let writes = || Facts { traits: Flags::WRITES, ..Facts::default() };
        let first = statements.intern(b"select 1\0\0\0", writes);
        let again = statements.intern(b"select 1\0\0\0", Facts::default);
        assert!(Rc::ptr_eq(&first, &again));
        assert_eq!((again.traits, &*again.name), (Flags::WRITES, b"__synapsedb_1".as_slice()));
        first.stale.set(true);
        let newer = statements.intern(b"select 1\0\0\0", Facts::default);
        assert_eq!((newer.id, newer.traits), (2, Flags::default()));
    }

    #[test]
    fn servers_may_get_another_text_than_the_clients() {
        let statements = Statements::default();
        let sent = || Facts { sent: Some(b"other".to_vec()), ..Facts::default() };
        let first = statements.intern(b"text", sent);
        assert_eq!(&*first.body, b"other");
        assert!(Rc::ptr_eq(&first, &statements.intern(b"text", Facts::default)));
        assert_eq!(&*statements.intern(b"other", Facts::default).body, b"other");
    }

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let statements = Statements::default();
        let held = statements.intern(b"held", Facts::default);
        for n in 0..10_000 {
            statements.intern(format!("{n}").as_bytes(), Facts::default);
        }
        assert!(statements.len() <= SWEEP_MIN + 1);
        assert!(Rc::ptr_eq(&held, &statements.intern(b"held", Facts::default)));
    }
}
