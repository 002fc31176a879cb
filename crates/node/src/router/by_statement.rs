//! Pooling by statement: a server connection is lent for one request, which must not leave a transaction open.

use super::PoolMode;
use super::ending::cancel_if_busy;
use super::metrics::EndedBy;
use super::server::Server;
use super::session::{Ended, Lent, Session};
use super::startup::Failure;

fn not_allowed() -> Failure {
    Failure {
        sqlstate: "0A000",
        message: "transaction blocks are not allowed in statement pooling mode".to_owned(),
        hint: "The transaction was rolled back. Send all of it in one request, from BEGIN to COMMIT, or set \
               router.pool_mode, or the mode of a [[router.pools]] for this client, to \"transaction\"."
            .to_owned(),
    }
}

impl Session {
    /// Whether a request has left a transaction open that this session may not have. In one that has failed nothing
    /// takes effect: there what the client has sent meanwhile is answered by the server first.
    pub(super) fn leaves_open(&self, server: &Server) -> bool {
        let is_open = server.status != b'I' && self.account.pooling.mode == PoolMode::Statement;
        is_open && (server.status != b'E' || !self.has_sent_more(server))
    }

    /// Rolls back what a request has left open. Its client is told in place of ReadyForQuery, which it has not got; one
    /// that has sent more by then ends, as what it has sent runs in the transaction and nobody could say what of it
    /// takes effect.
    ///
    /// # Errors
    /// The session has ended.
    pub(super) async fn refuse_transaction(
        &mut self,
        mut lent: Lent,
    ) -> Result<Option<Lent>, Ended> {
        let failure = not_allowed();
        if self.has_sent_more(&lent.server) || lent.server.ask("rollback").await.is_err() {
            cancel_if_busy(&lent.server, &self.worker).await;
            let cut = lent.server.passing > 0;
            self.end_lent(lent);
            let by = EndedBy::Client;
            return Err(if cut { Ended::quietly(by) } else { Ended::telling(by, &failure) });
        }
        self.unsent.extend_from_slice(&failure.error());
        self.unsent.extend_from_slice(b"Z\0\0\0\x05I");
        Ok(Some(lent))
    }

    fn has_sent_more(&self, server: &Server) -> bool {
        let under_way = self.batch_open || self.passing > 0 || self.fresh;
        under_way || server.expected.cycles() > 0 || server.passing > 0 || !server.unsent.is_empty()
    }
}
