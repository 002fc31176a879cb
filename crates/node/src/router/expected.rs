//! What a server connection still owes: the answers that are due, in order, so that those to messages of the router's
//! own are kept from the client. Pure.

use std::collections::VecDeque;

/// A prepared statement of the router, by its number; the unnamed statement has none.
pub(super) type StatementId = u64;

/// One answer that is due. Only the answers that must be told apart have an entry, and those that end a cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// ParseComplete that the client waits for.
    Parse(Option<StatementId>),
    /// ParseComplete of a statement that the router prepared anew.
    Injected(Option<StatementId>),
    /// ParseComplete of a statement for one answer of the router's own.
    Answer,
    /// CloseComplete of a Close that stands for a Parse: to the client it is a ParseComplete.
    Faked(StatementId),
    /// CloseComplete that the client waits for.
    Close,
    /// CloseComplete of a statement that the router dropped.
    Evicted,
    /// CloseComplete in front of the answers to a marker.
    Marker,
    /// ReadyForQuery of the router's own Sync.
    HiddenSync,
    /// The end of a COPY from the client; nothing answers it.
    CopyEnd,
    /// ReadyForQuery of a Sync.
    Sync,
    /// ReadyForQuery of a Query or FunctionCall.
    Query,
}

/// What becomes of a ParseComplete or CloseComplete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The client gets it.
    Pass,
    /// It was asked for by the router.
    Swallow,
    /// The client gets a ParseComplete instead.
    AsParse,
}

/// The answers that are due on one server connection.
#[derive(Debug, Default)]
pub(super) struct Expected {
    due: VecDeque<Due>,
    /// Entries of `due` that end with ReadyForQuery.
    cycles: usize,
    /// The server has reported an error and skips everything up to the next Sync.
    skipping: bool,
    /// What comes answers a marker, up to its CommandComplete.
    marking: bool,
    /// The server takes CopyData and ignores Sync, up to the next CopyDone or CopyFail.
    copying: bool,
}

impl Expected {
    pub(super) fn parse(&mut self, id: Option<StatementId>) {
        self.due.push_back(Due::Parse(id));
    }

    pub(super) fn injected(&mut self, id: Option<StatementId>) {
        self.due.push_back(Due::Injected(id));
    }

    pub(super) fn answer(&mut self) {
        self.due.push_back(Due::Answer);
    }

    pub(super) fn faked(&mut self, id: StatementId) {
        self.due.push_back(Due::Faked(id));
    }

    pub(super) fn close(&mut self) {
        self.due.push_back(Due::Close);
    }

    pub(super) fn evicted(&mut self) {
        self.due.push_back(Due::Evicted);
    }

    /// Close, Bind and Execute of a marker were sent.
    pub(super) fn marker(&mut self) {
        self.due.push_back(Due::Marker);
    }

    /// A Sync of the router's own was sent: its cycle is none of the client's.
    pub(super) fn hidden_sync(&mut self) {
        self.due.push_back(Due::HiddenSync);
    }

    /// Whether what comes answers a marker.
    pub(super) fn is_marking(&self) -> bool {
        self.marking
    }

    /// The CommandComplete of a marker came.
    pub(super) fn marked(&mut self) {
        self.marking = false;
    }

    /// Whether the server works on a cycle of the router's own.
    pub(super) fn is_hidden(&self) -> bool {
        let ends = |due: &&Due| matches!(due, Due::Sync | Due::Query | Due::HiddenSync);
        self.due.iter().find(ends) == Some(&Due::HiddenSync)
    }

    pub(super) fn query(&mut self) {
        self.due.push_back(Due::Query);
        self.cycles += 1;
    }

    pub(super) fn sync(&mut self) {
        if !self.copying {
            self.due.push_back(Due::Sync);
            self.cycles += 1;
        }
    }

    /// CopyDone or CopyFail was sent. Whether a Sync must follow it, for the COPY came by Execute.
    pub(super) fn copy_end(&mut self) -> bool {
        if self.copying {
            self.copying = false;
            return self.cycles == 0;
        }
        self.due.push_back(Due::CopyEnd);
        false
    }

    /// Whether nothing is due, and the server waits for no data.
    pub(super) fn is_settled(&self) -> bool {
        self.cycles == 0 && !self.copying
    }

    /// Whether the server waits for the client's data.
    pub(super) fn is_copying(&self) -> bool {
        self.copying
    }

    /// How many ReadyForQuery are due.
    pub(super) fn cycles(&self) -> usize {
        self.cycles
    }

    /// Whether the statement that the server works on came by a Query.
    pub(super) fn is_simple(&self) -> bool {
        let ends = |due: &&Due| matches!(due, Due::Sync | Due::Query | Due::HiddenSync);
        self.due.iter().find(ends) == Some(&Due::Query)
    }

    /// A ParseComplete or CloseComplete came.
    pub(super) fn completed(&mut self) -> Verdict {
        let verdict = match self.due.front() {
            Some(Due::Parse(_) | Due::Close) => Verdict::Pass,
            Some(Due::Injected(_) | Due::Answer | Due::Evicted) => Verdict::Swallow,
            Some(Due::Faked(_)) => Verdict::AsParse,
            Some(Due::Marker) => {
                self.marking = true;
                Verdict::Swallow
            }
            // Not asked for: the server's own affair.
            Some(Due::CopyEnd | Due::Sync | Due::Query | Due::HiddenSync) | None => {
                return Verdict::Pass;
            }
        };
        self.due.pop_front();
        verdict
    }

    /// An ErrorResponse came.
    pub(super) fn failed(&mut self) {
        (self.copying, self.marking) = (false, false);
        self.skipping = !self.is_simple();
    }

    /// CopyInResponse or CopyBothResponse came: the server ignores the Syncs that were sent in front of the data.
    pub(super) fn copy_begins(&mut self) {
        let mut kept = VecDeque::with_capacity(self.due.len());
        let mut ended = false;
        for due in self.due.drain(..) {
            match due {
                Due::CopyEnd if !ended => ended = true,
                Due::Sync if !ended => self.cycles -= 1,
                Due::Parse(_)
                | Due::Injected(_)
                | Due::Answer
                | Due::Faked(_)
                | Due::Close
                | Due::Evicted
                | Due::Marker
                | Due::HiddenSync
                | Due::CopyEnd
                | Due::Sync
                | Due::Query => kept.push_back(due),
            }
        }
        self.due = kept;
        self.copying = !ended;
    }

    /// ReadyForQuery came: each Parse that the server has skipped is given to `lost`. Whether the client waits for it.
    pub(super) fn ready(&mut self, mut lost: impl FnMut(Lost)) -> bool {
        self.marking = false;
        let skipping = std::mem::take(&mut self.skipping);
        // After an error in an extended cycle a Query is skipped like everything else, up to the Sync.
        let wants_sync = skipping && self.due.contains(&Due::Sync);
        while let Some(due) = self.due.pop_front() {
            match due {
                Due::HiddenSync => return false,
                Due::Sync => {
                    self.cycles -= 1;
                    return true;
                }
                Due::Query => {
                    self.cycles -= 1;
                    if !wants_sync {
                        return true;
                    }
                }
                Due::Parse(id) => lost(Lost { id, by_client: true, on_server: true }),
                Due::Injected(id) => lost(Lost { id, by_client: false, on_server: true }),
                Due::Faked(id) => lost(Lost { id: Some(id), by_client: true, on_server: false }),
                Due::Answer | Due::Close | Due::Evicted | Due::Marker | Due::CopyEnd => {}
            }
        }
        true
    }
}

/// A Parse that was sent and not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    /// The statement; `None` for the unnamed one.
    pub(super) id: Option<StatementId>,
    /// The client had asked for it: its name for it is free again.
    pub(super) by_client: bool,
    /// The server connection was to have it.
    pub(super) on_server: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(expected: &mut Expected) -> Vec<StatementId> {
        let mut lost = Vec::new();
        expected.ready(|one| lost.extend(one.id));
        lost
    }

    #[test]
    fn answers_to_messages_of_the_router_are_told_apart() {
        let mut expected = Expected::default();
        expected.faked(6);
        expected.injected(Some(7));
        expected.parse(Some(8));
        expected.evicted();
        expected.close();
        expected.sync();
        let verdicts = std::array::from_fn(|_| expected.completed());
        assert_eq!(
            verdicts,
            [
                Verdict::AsParse,
                Verdict::Swallow,
                Verdict::Pass,
                Verdict::Swallow,
                Verdict::Pass,
                Verdict::Pass
            ]
        );
        assert_eq!((lost(&mut expected), expected.cycles()), (vec![], 0));
    }

    #[test]
    fn an_error_skips_to_the_next_sync() {
        let mut expected = Expected::default();
        expected.injected(Some(1));
        expected.parse(Some(2));
        assert_eq!(expected.completed(), Verdict::Swallow);
        expected.failed();
        expected.query();
        expected.sync();
        expected.parse(Some(3));
        expected.sync();
        assert_eq!(lost(&mut expected), [2]);
        assert_eq!(expected.cycles(), 1);
        assert_eq!(expected.completed(), Verdict::Pass);
        assert_eq!((lost(&mut expected), expected.cycles()), (vec![], 0));
    }

    #[test]
    fn an_error_of_a_query_ends_with_it() {
        let mut expected = Expected::default();
        expected.query();
        expected.sync();
        expected.failed();
        assert_eq!((lost(&mut expected), expected.cycles()), (vec![], 1));
    }

    #[test]
    fn a_marker_and_its_answers_are_hidden() {
        let mut expected = Expected::default();
        expected.injected(Some(1));
        expected.marker();
        expected.hidden_sync();
        expected.query();
        assert_eq!(
            (expected.cycles(), expected.is_hidden(), expected.is_marking()),
            (1, true, false)
        );
        assert_eq!(expected.completed(), Verdict::Swallow);
        assert!(!expected.is_marking());
        assert_eq!(expected.completed(), Verdict::Swallow);
        assert!(expected.is_marking());
        expected.marked();
        assert!(!expected.ready(|_| unreachable!()));
        assert!(!expected.is_hidden() && expected.is_simple());
        assert!(expected.ready(|_| unreachable!()));
        // One that fails ends with its own Sync, also when its statement was to be prepared.
        expected.injected(Some(1));
        expected.marker();
        expected.hidden_sync();
        expected.query();
        expected.failed();
        let mut lost = Vec::new();
        assert!(!expected.ready(|one| lost.extend(one.id)));
        assert_eq!((lost, expected.cycles()), (vec![1], 1));
        assert!(expected.ready(|_| unreachable!()));
        // In a batch it is skipped with all that is behind an error.
        expected.parse(None);
        expected.marker();
        expected.sync();
        expected.failed();
        assert!(expected.ready(|one| assert!(one.by_client)));
        assert_eq!((expected.cycles(), expected.is_marking()), (0, false));
    }

    #[test]
    fn syncs_within_a_copy_are_not_answered() {
        // As libpq does: Execute, Sync, then the data, CopyDone, Sync.
        let mut expected = Expected::default();
        expected.sync();
        expected.copy_begins();
        expected.sync();
        assert_eq!((expected.cycles(), expected.is_settled()), (0, false));
        assert!(expected.copy_end());
        expected.sync();
        assert_eq!((lost(&mut expected), expected.cycles()), (vec![], 0));
        // All of it sent at once.
        expected.sync();
        assert!(!expected.copy_end());
        expected.sync();
        expected.copy_begins();
        assert_eq!(expected.cycles(), 1);
        assert_eq!((lost(&mut expected), expected.cycles()), (vec![], 0));
        // By a Query, with the next one behind it.
        expected.query();
        assert!(!expected.copy_end());
        expected.query();
        expected.copy_begins();
        assert_eq!(expected.cycles(), 2);
    }
}
