//! What a client that asks for it is told after each write: its token, as the ParameterStatus `synapsedb.token`, in
//! front of the ReadyForQuery that ends the write. That one is kept back until the token is known.

use synapsedb_core::lsn::Lsn;
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
                && self.entry.client.endpoint == super::Endpoint::Read
                && self.reading.consistency.keeps_home()
    }

    /// Takes note of how far the node is, the session's own commit included.
    pub(super) async fn sample(&mut self, server: &mut Server) {
        let rows = server.ask(include_str!("position.sql")).await;
        let position = rows.ok().and_then(|rows| rows.first()?.first()?.clone());
        let position = position.and_then(|text| text.parse().ok());
        if let Some(lsn) = position {
            self.reading.token.advance(server.node(), lsn);
        }
        self.traits.remove(Flags::WRITES);
        self.report_token(position);
    }

    /// Tells the client its token, and that the server is ready.
    fn report_token(&mut self, known: Option<Lsn>) {
        if !self.kept_ready {
            return;
        }
        // A token without this write would be taken for one with it.
        let text = known.map_or_else(String::new, |_| token::to_text(&self.reading.token));
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
