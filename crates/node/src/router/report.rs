//! What a client that asks for it is told after each write: its token, as the ParameterStatus `synapsedb.token`, in
//! front of the ReadyForQuery that ends the write. That one is kept back until the token is known.

use synapsedb_core::ids::NodeId;
use synapsedb_pg::sql::statement::OwnSetting;
use synapsedb_pg::sql::traits::Flags;

use super::server::Server;
use super::session::Session;
use super::token;

/// ReadyForQuery, outside a transaction.
const READY: [u8; 6] = [b'Z', 0, 0, 0, 5, b'I'];

impl Session {
    /// Whether the ReadyForQuery that has just come waits for the token.
    pub(super) fn keeps_back_ready(&mut self, server: &Server) -> bool {
        // What a function does is not known.
        let wrote = Flags::WRITES.with(Flags::CALLS);
        self.kept_ready = self.reports_token
            && server.status == b'I'
            && self.traits.has(wrote)
            && server.expected.is_settled()
            && !self.batch_open
            && !self.ending;
        self.kept_ready
    }

    /// Whether what the session has written here must be known by its LSN: it may read elsewhere next.
    pub(super) fn must_sample(&self) -> bool {
        self.kept_ready
            || self.traits.has(Flags::WRITES)
                && self.may_read_elsewhere()
                && self.reading.consistency.keeps_home()
    }

    /// The server was lost: if a write on it was acknowledged before, its place is not known any more.
    pub(super) fn lost_with(&mut self, server: NodeId) {
        if std::mem::take(&mut self.has_written)
            && self.may_read_elsewhere()
            && self.reading.consistency.keeps_home()
        {
            self.reading.has_written(server, None);
        }
    }

    /// Takes note of how far the node is, the session's own commit included.
    pub(super) async fn sample(&mut self, server: &mut Server) {
        let rows = server.ask(include_str!("position.sql")).await;
        let position = rows.ok().and_then(|rows| rows.first()?.first()?.clone());
        let position = position.and_then(|text| text.parse().ok());
        self.reading.has_written(server.node(), position);
        self.has_written = false;
        self.traits.remove(Flags::WRITES);
        self.report_token();
    }

    /// Tells the client its token, and that the server is ready.
    fn report_token(&mut self) {
        if !self.kept_ready {
            return;
        }
        let text = token::to_text(&self.reading.token);
        let mut out = bytes::BytesMut::new();
        let name = OwnSetting::Token.name();
        synapsedb_pg::wire::startup::parameter_status(&mut out, name, &text);
        self.unsent.extend_from_slice(&out);
        self.release_ready();
    }

    /// Passes a ReadyForQuery on that was kept back.
    pub(super) fn release_ready(&mut self) {
        if std::mem::take(&mut self.kept_ready) {
            self.unsent.extend_from_slice(&READY);
        }
    }
}
