//! Puts markers in front of what commits, so that its outcome can be found out when the server connection is lost.
//!
//! A marker is a statement of the router's own, prepared once on each server connection, whose answers the client never
//! sees: in front of a COMMIT that comes by Query as a cycle of its own, in front of one that comes by Bind, and in
//! front of the Sync that commits writes outside a transaction block. A write that comes by Query has none: whatever
//! stood beside it would be seen, by `current_query()` or in the place of a syntax error.

use bytes::BufMut as _;
use synapsedb_pg::sql::traits::Flags;

use super::{HEADER_BYTES, NOBODY, Up};
use crate::router::outcome::{Kind, Pending};
use crate::router::startup::put_message;

/// What makes a write outside a transaction block more than one transaction, or takes the marker's statement away.
const NOT_PLAIN: Flags = Flags::UTILITY
    .with(Flags::BEGIN)
    .with(Flags::END)
    .with(Flags::MAY_RELEASE)
    .with(Flags::SEVERAL);

const WROTE: Flags = Flags::WRITES.with(Flags::CALLS);

impl Up<'_, '_> {
    /// A Query with these traits comes, after what had those of `before`.
    pub(super) fn mark_query(&mut self, seen: Flags, before: Flags) {
        let commits = seen.has(Flags::COMMITS) && !seen.has(Flags::SEVERAL);
        let in_block = self.server.status == b'T' && !self.session.batch_open;
        // What has not been answered may have failed: then the marker fails too, and nobody sees it. But it must not
        // have ended the transaction: what it was is not told by the marker of another.
        let expected = &self.server.expected;
        let one = expected.is_settled()
            || !expected.is_copying() && !before.has(Flags::END.with(Flags::MAY_RELEASE));
        if commits && in_block && one && self.may_mark() {
            self.mark(Kind::CommitByQuery { chains: seen.has(Flags::BEGIN) });
            // What fails here must not keep the server from the Query.
            self.splice.output().put_slice(b"S\0\0\0\x04");
            self.server.expected.hidden_sync();
        }
    }

    /// A Bind of a statement with these traits comes.
    pub(super) fn mark_bind(&mut self, portal: &[u8], traits: Flags) {
        if let Some(pending) = self.session.pending.as_deref_mut().filter(|one| one.is_in_batch()) {
            pending.is_not_all();
            return;
        }
        if self.session.batch.executes == 0 {
            self.session.batch.begins |= traits.has(Flags::BEGIN);
        }
        // Of two that end in one batch neither tells of the other.
        let second = self.session.batch.ends;
        self.session.batch.ends |= traits.has(Flags::END);
        // A portal with a name would outlive the marker's, which has none.
        let commits = traits.has(Flags::COMMITS) && portal.is_empty() && !second;
        let failed = self.server.status == b'E';
        let releases = self.session.traits.has(Flags::MAY_RELEASE);
        let settled = self.server.expected.is_settled();
        if commits && settled && !failed && !releases && self.may_mark() {
            self.mark(Kind::Commit { chains: traits.has(Flags::BEGIN) });
        }
    }

    /// An Execute comes: one of another portal than the COMMIT's runs behind the marker.
    pub(super) fn mark_execute(&mut self) {
        let unnamed = self.data.get(self.at + HEADER_BYTES) == Some(&0);
        let pending = self.session.pending.as_deref_mut().filter(|one| one.is_in_batch());
        if let Some(pending) = pending.filter(|_| !unnamed) {
            pending.is_not_all();
        }
    }

    /// A Sync comes.
    pub(super) fn mark_sync(&mut self) {
        let settled = self.server.expected.is_settled();
        let session = &self.session;
        let plain = session.batch.executes > 0
            && session.traits.has(Flags::WRITES)
            && !session.traits.has(NOT_PLAIN);
        if plain && settled && self.server.status == b'I' && self.may_mark() {
            self.mark(Kind::Write);
        }
        let batch = std::mem::take(&mut self.session.batch);
        self.session.opens = batch.begins && settled && !self.session.traits.has(Flags::END);
        if let Some(pending) = self.session.pending.as_deref_mut() {
            pending.synced(batch);
        }
    }

    /// Whether the transaction under way may have written, and markers be put here.
    fn may_mark(&self) -> bool {
        let session = &self.session;
        session.traits.has(WROTE)
            && session.pending.is_none()
            && !session.turns.one_by_one
            && !session.keeps_server()
            && session.worker.marks.may_mark(&session.account.database)
    }

    /// Puts the marker in front of the message at hand.
    fn mark(&mut self, kind: Kind) {
        let statement = self.session.worker.marks.statement(&self.session.worker.statements);
        self.ensure(&statement);
        let id = self.session.worker.marks.next();
        let out = self.splice.output_at(self.at);
        if kind == Kind::Write {
            // The server says how many rows it were before it commits, and not only with the commit.
            out.put_slice(b"H\0\0\0\x04");
        }
        // Its answer says that what follows it answers the marker.
        put_message(out, b'C', &[b"S", NOBODY, b"\0"]);
        // One parameter in text format, of 33 bytes.
        let parameter = b"\0\0\0\x01\0\0\0\x21";
        let (name, digits) = (&statement.name[..], id.digits());
        put_message(out, b'B', &[b"\0", name, b"\0", parameter, &digits, b" \0\0"]);
        out.put_slice(b"E\0\0\0\x09\0\0\0\0\0");
        self.server.expected.marker();
        let is_proof = self.session.traits.has(Flags::WRITES);
        let ahead = self.server.expected.cycles();
        let pending = Pending::new(id, kind, is_proof, ahead);
        self.session.pending = Some(self.session.worker.marks.keep(pending));
    }
}
