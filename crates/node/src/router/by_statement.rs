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
    /// Whether a request has left a transaction open that this session may not have. What the client has sent meanwhile
    /// waits for the answer, so that nothing of it runs in that transaction.
    pub(super) fn leaves_open(&self, server: &Server) -> bool {
        server.status != b'I' && self.account.pooling.get().mode == PoolMode::Statement
    }

    /// Rolls back what a request has left open. Its client is told in place of ReadyForQuery, which it has not got.
    ///
    /// # Errors
    /// The server does not answer: the session has ended.
    pub(super) async fn refuse_transaction(
        &mut self,
        mut lent: Lent,
    ) -> Result<Option<Lent>, Ended> {
        let failure = not_allowed();
        if lent.server.ask("rollback").await.is_err() {
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
}
