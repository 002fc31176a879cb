//! What became of a COMMIT, or of a write outside a transaction block, whose server connection was lost: what is kept
//! of it while it is under way, and whom to ask then.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use synapsedb_core::ids::NodeId;
use synapsedb_core::outcome::{Answer, Id};

use super::loss::Lost;
use super::session::Session;
use super::statements::{Facts, Statement, Statements};
use super::{Consistency, Shared};
use crate::replication::{self, outcome::Question};

/// The answer to a write is kept back up to this size until it has committed, in bytes.
const HELD_BYTES_MAX: usize = 16 * 1024;
/// Places for what is under way that a worker keeps for the next ones.
const SPARE_MAX: usize = 64;
/// The first and the longest pause before a node is asked again.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// The markers of a worker.
pub(super) struct Marks {
    own: NodeId,
    /// Another one in each life of the worker.
    life: u64,
    count: Cell<u64>,
    statement: OnceCell<Rc<Statement>>,
    /// Room for what is under way.
    #[allow(clippy::vec_box, reason = "the boxes are what is used again")]
    spare: RefCell<Vec<Box<Pending>>>,
    /// The database whose WAL is read, and whether everybody may write markers there; nothing if none are written.
    written: Option<(String, Arc<AtomicBool>)>,
}

impl Marks {
    pub(super) fn new(shared: &Shared) -> Self {
        let replication = shared.replication.as_ref().filter(|_| shared.config().resolve_commits);
        let local = shared.local.as_ref();
        let written = replication
            .zip(local)
            .map(|(replication, local)| (local.control.database.clone(), replication.may_mark()));
        let (count, statement, spare) = (Cell::new(0), OnceCell::new(), RefCell::default());
        Self { own: shared.own, life: rand::random(), count, statement, spare, written }
    }

    /// Whether markers are written in this database.
    pub(super) fn may_mark(&self, database: &str) -> bool {
        let written = self.written.as_ref().filter(|(replicated, _)| replicated == database);
        written.is_some_and(|(_, allowed)| allowed.load(Ordering::Relaxed))
    }

    pub(super) fn next(&self) -> Id {
        self.count.set(self.count.get() + 1);
        Id::new(self.own, self.life, self.count.get())
    }

    /// Gives it a place, a used one if there is any.
    pub(super) fn keep(&self, pending: Pending) -> Box<Pending> {
        match self.spare.borrow_mut().pop() {
            Some(mut place) => {
                let held = std::mem::take(&mut place.held);
                *place = Pending { held, ..pending };
                place
            }
            None => Box::new(pending),
        }
    }

    /// Takes a place back.
    fn give_back(&self, mut place: Box<Pending>) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_MAX {
            place.held.clear();
            spare.push(place);
        }
    }

    /// The statement that writes a marker.
    pub(super) fn statement(&self, statements: &Statements) -> Rc<Statement> {
        let made = self.statement.get_or_init(|| {
            // One parameter of type text.
            let body = [include_str!("mark.sql").as_bytes(), &b"\0\0\x01\0\0\0\x19"[..]].concat();
            statements.intern(&body, Facts::default)
        });
        Rc::clone(made)
    }
}

/// What carries a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// COMMIT as a Query; AND CHAIN if it `chains`.
    CommitByQuery { chains: bool },
    /// COMMIT by Bind and Execute.
    Commit { chains: bool },
    /// Writes outside a transaction block, which the Sync commits.
    Write,
}

/// The messages of a client since its last Sync.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Batch {
    tags: [u8; 8],
    count: usize,
    pub(super) executes: u32,
    /// Its first statement begins a transaction block.
    pub(super) begins: bool,
    /// A statement of it ends a transaction block.
    pub(super) ends: bool,
}

impl Batch {
    /// A message passes; `of` is the first byte of its body.
    pub(super) fn note(&mut self, tag: u8, of: Option<u8>) {
        if tag == b'E' {
            self.executes = self.executes.saturating_add(1);
        }
        if let Some(place) = self.tags.get_mut(self.count) {
            *place = if tag == b'D' && of == Some(b'S') { b'd' } else { tag };
        }
        self.count += 1;
    }

    /// The messages that answer a batch of one statement, a COMMIT that has succeeded, up to ReadyForQuery.
    fn committed(&self) -> Option<Vec<&'static [u8]>> {
        let tags = self.tags.get(..self.count)?;
        let statements = |tag| tags.iter().filter(|one| **one == tag).count();
        if (statements(b'B'), statements(b'E')) != (1, 1) || statements(b'P') > 1 {
            return None;
        }
        let answers = tags.iter().flat_map(|tag| -> &[&'static [u8]] {
            match tag {
                b'P' => &[b"1\0\0\0\x04"],
                b'B' => &[b"2\0\0\0\x04"],
                b'C' => &[b"3\0\0\0\x04"],
                b'd' => &[b"t\0\0\0\x06\0\0", b"n\0\0\0\x04"],
                b'D' => &[b"n\0\0\0\x04"],
                b'E' => &[COMMITTED],
                _ => &[],
            }
        });
        Some(answers.copied().collect())
    }
}

const COMMITTED: &[u8] = b"C\0\0\0\x0bCOMMIT\0";

/// What was sent with a marker and is not answered.
#[derive(Debug)]
pub(super) struct Pending {
    id: Id,
    sent: Instant,
    kind: Kind,
    /// Whether it is known to write: then it was not committed if its marker is nowhere.
    is_proof: bool,
    /// Whether all that is under way with it is in the transaction of the marker.
    is_all: bool,
    /// The messages that it was sent with, once their Sync was.
    batch: Option<Batch>,
    /// What of the answer the client has not been given.
    held: Vec<u8>,
    /// So many messages of the answer were given to the client; nothing if that is not known.
    given: Option<usize>,
    /// So many ReadyForQuery are due before its own.
    ahead: usize,
}

impl Pending {
    pub(super) fn new(id: Id, kind: Kind, is_proof: bool, ahead: usize) -> Self {
        let (sent, held) = (Instant::now(), Vec::new());
        Self { id, sent, kind, is_proof, is_all: true, batch: None, held, given: Some(0), ahead }
    }

    /// Whether the client goes on with the messages that it was sent with.
    pub(super) fn is_in_batch(&self) -> bool {
        match self.kind {
            Kind::CommitByQuery { .. } => false,
            Kind::Commit { .. } | Kind::Write => self.batch.is_none(),
        }
    }

    pub(super) fn is_not_all(&mut self) {
        self.is_all = false;
    }

    pub(super) fn synced(&mut self, batch: Batch) {
        if self.is_in_batch() {
            self.batch = Some(batch);
        }
    }

    /// Whether it was COMMIT AND CHAIN.
    pub(super) fn chains(&self) -> bool {
        match self.kind {
            Kind::CommitByQuery { chains } | Kind::Commit { chains } => chains,
            Kind::Write => false,
        }
    }

    /// The rest of the answer, up to ReadyForQuery, when it has taken effect; nothing if that is not known. Of its
    /// statements so many were answered.
    pub(super) fn answer(self, completed: u32) -> Option<Vec<u8>> {
        if self.ahead > 0 {
            return None;
        }
        match self.kind {
            Kind::CommitByQuery { .. } => self.rest(&[COMMITTED]),
            Kind::Commit { .. } => self.rest(&self.batch?.committed()?),
            Kind::Write => {
                self.batch.filter(|batch| batch.executes == completed).map(|_| self.held)
            }
        }
    }
}

/// How many messages answer what is under way, after so many `before`: those behind the last ReadyForQuery, without
/// notices, parameters and notifications.
fn answers(before: usize, mut messages: &[u8]) -> usize {
    let mut given = before;
    while let Some(&[tag, a, b, c, d]) = messages.first_chunk() {
        given = match tag {
            b'Z' => 0,
            b'N' | b'S' | b'A' => given,
            _ => given + 1,
        };
        let whole = 1 + u32::from_be_bytes([a, b, c, d]) as usize;
        messages = messages.get(whole..).unwrap_or_default();
    }
    given
}

impl Pending {
    /// What of an answer was not given yet.
    fn rest(&self, answer: &[&[u8]]) -> Option<Vec<u8>> {
        answer.get(self.given?..).map(<[_]>::concat)
    }

    /// Messages were given to the client.
    fn give(&mut self, messages: &[u8], whole: bool) {
        self.given = self.given.filter(|_| whole).map(|before| answers(before, messages));
    }
}

impl Session {
    /// Keeps back what is for the client, while it answers a write that has not committed yet; whether it did. If it is
    /// `whole`, it begins with a message.
    pub(super) fn keeps_back(&mut self, onward: &[u8], whole: bool) -> bool {
        let Some(pending) = self.pending.as_deref_mut() else { return false };
        let room = pending.held.len() + onward.len() <= HELD_BYTES_MAX;
        if pending.kind == Kind::Write && room && pending.given == Some(0) {
            pending.held.extend_from_slice(onward);
            return true;
        }
        if pending.ahead == 0 && !onward.is_empty() {
            pending.give(onward, whole);
        }
        self.unsent.append(&mut pending.held);
        false
    }

    /// A ReadyForQuery came.
    pub(super) fn not_pending(&mut self) {
        if let Some(pending) = self.pending.as_deref_mut().filter(|pending| pending.ahead > 0) {
            pending.ahead -= 1;
        } else if let Some(pending) = self.pending.take() {
            self.unsent.extend_from_slice(&pending.held);
            self.worker.marks.give_back(pending);
        }
    }

    /// Finds out what became of what was lost, if it carried a marker.
    pub(super) async fn resolve(&mut self, lost: &Lost) -> Answer {
        let shared = Arc::clone(&self.worker.shared);
        let pending = self.pending.as_deref().filter(|pending| pending.is_all);
        let (Some(pending), Some(replication)) = (pending, &shared.replication) else {
            return Answer::Unknown;
        };
        let state = Arc::clone(&shared.state.borrow());
        let Some(member) = state.members.get(&lost.node) else { return Answer::Unknown };
        let (origin, incarnation, is_proof) = (lost.node, member.incarnation, pending.is_proof);
        let question = Question { id: pending.id, origin, incarnation, pid: lost.pid, age_ms: 0 };
        let ask = |node| ask(replication, node, question.clone(), pending.sent);
        let mut answers: FuturesUnordered<_> = state.active_nodes().map(ask).collect();
        let answer = tokio::select! {
            answer = answers.next() => answer.unwrap_or(Answer::Unknown),
            () = tokio::time::sleep(Duration::from_millis(shared.config().resolve_wait_ms)) => {
                Answer::Unknown
            }
            () = shared.draining.cancelled() => Answer::Unknown,
        };
        drop(answers);
        match answer {
            Answer::Aborted if !is_proof => Answer::Unknown,
            Answer::Committed(seen) => {
                // What the session reads next, it reads where this is.
                if self.reading.consistency == Consistency::Session {
                    self.reading.token.advance(origin, seen.lsn);
                }
                answer
            }
            Answer::Aborted | Answer::Unknown => answer,
        }
    }
}

/// Asks a node until it knows what became of a transaction whose marker was sent at this instant.
async fn ask(
    replication: &replication::Handle,
    node: NodeId,
    mut question: Question,
    sent: Instant,
) -> Answer {
    let mut pause = PAUSE_MIN;
    loop {
        question.age_ms = sent.elapsed().as_millis() as u64;
        match replication.outcome(node, &question).await {
            Ok(known @ (Answer::Committed(_) | Answer::Aborted)) => return known,
            Ok(Answer::Unknown) => {}
            Err(error) => tracing::debug!(%node, "cannot ask for an outcome: {error}"),
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn batch(messages: &[(u8, u8)]) -> Batch {
        let mut batch = Batch::default();
        messages.iter().for_each(|(tag, of)| batch.note(*tag, Some(*of)));
        batch
    }

    fn pending(kind: Kind) -> Pending {
        Pending::new(Id::new(NodeId::new(1).unwrap(), 1, 1), kind, true, 0)
    }

    #[test]
    fn a_notice_is_no_answer() {
        let notice = [&b"N\0\0\0\x09SINFO"[..], b"S\0\0\0\x08a\0b\0"].concat();
        assert_eq!(answers(2, &notice), 2);
        let ready = [&notice[..], b"2\0\0\0\x04", b"Z\0\0\0\x05T", &notice].concat();
        assert_eq!(answers(2, &ready), 0);
        assert_eq!(answers(2, &[&ready[..], b"1\0\0\0\x04"].concat()), 1);
    }

    #[test]
    fn what_the_client_has_is_not_said_again() {
        let messages = [(b'P', 0), (b'B', 0), (b'E', 0)];
        let parts = [&b"1\0\0\0\x04"[..], b"2\0\0\0\x04", COMMITTED];
        for given in 0..=parts.len() {
            let mut commit = pending(Kind::Commit { chains: false });
            commit.synced(batch(&messages));
            commit.give(&parts[..given].concat(), true);
            assert_eq!(commit.answer(0), Some(parts[given..].concat()));
        }
        let mut too_much = pending(Kind::CommitByQuery { chains: false });
        too_much.give(&parts.concat(), true);
        assert_eq!(too_much.answer(0), None);
        let mut cut = pending(Kind::CommitByQuery { chains: false });
        cut.give(b"", false);
        assert_eq!(cut.answer(0), None);
    }

    #[test]
    fn a_commit_is_answered_as_the_server_would() {
        let by_query = pending(Kind::CommitByQuery { chains: false });
        assert!(!by_query.is_in_batch());
        assert_eq!(by_query.answer(0).unwrap(), COMMITTED);
        let mut as_jdbc = pending(Kind::Commit { chains: false });
        assert!(as_jdbc.is_in_batch());
        as_jdbc.synced(batch(&[(b'P', 0), (b'B', 0), (b'D', b'P'), (b'E', 0)]));
        assert!(!as_jdbc.is_in_batch());
        let expected = [&b"1\0\0\0\x04"[..], b"2\0\0\0\x04", b"n\0\0\0\x04"].concat();
        assert_eq!(as_jdbc.answer(0).unwrap(), [&expected[..], COMMITTED].concat());
        let mut described = pending(Kind::Commit { chains: false });
        described.synced(batch(&[(b'D', b'S'), (b'B', 0), (b'E', 0), (b'C', b'S')]));
        let expected = [b"t\0\0\0\x06\0\0n\0\0\0\x04".as_slice(), b"2\0\0\0\x04", COMMITTED];
        assert_eq!(described.answer(0).unwrap(), [&expected.concat()[..], b"3\0\0\0\x04"].concat());
    }

    #[test]
    fn what_is_not_known_of_an_answer_is_not_made_up() {
        let two = [(b'B', 0), (b'E', 0), (b'B', 0), (b'E', 0)];
        let long = [(b'H', 0); 9];
        for messages in [&two[..], &two[..1], &long[..]] {
            let mut commit = pending(Kind::Commit { chains: false });
            commit.synced(batch(messages));
            assert_eq!(commit.answer(0), None, "{messages:?}");
        }
        assert_eq!(pending(Kind::Commit { chains: false }).answer(0), None, "no Sync yet");
        let behind = Pending { ahead: 1, ..pending(Kind::CommitByQuery { chains: false }) };
        assert_eq!(behind.answer(0), None);
        for (completed, expected) in [(0, None), (1, None), (2, Some(b"x".to_vec()))] {
            let mut write = Pending { held: b"x".to_vec(), ..pending(Kind::Write) };
            write.synced(batch(&two));
            assert_eq!(write.answer(completed), expected);
        }
    }
}
