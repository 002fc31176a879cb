//! A transaction that begins on a connection which the client keeps: it waits until the node shows what it must.

use std::rc::Rc;

use tokio::time::Instant;

use super::entry::Activity;
use super::fresh::{self, Where};
use super::origin;
use super::reach::Unreached;
use super::server::Server;
use super::session::{Ended, Lent, Session};

impl Session {
    /// Whether what the client says next begins a transaction that may not begin at once: not before all that it has
    /// asked until now is answered, and the node shows what it must.
    pub(super) fn must_gate(&self, server: &Server) -> bool {
        !self.cleared
            && !self.fresh
            && self.reading.must_settle(server.node())
            // What belongs to a request that has begun goes on.
            && self.passing == 0
            && !self.batch_open
            && !server.expected.is_copying()
    }

    /// A transaction has ended, and another may follow on the same connection.
    pub(super) fn transaction_ended(&mut self) {
        self.cleared = false;
    }

    /// Waits until the node shows what the request at hand must see. Requests are refused until one may begin.
    ///
    /// # Errors
    /// The session has ended meanwhile.
    pub(super) async fn gate(&mut self, lent: &Lent) -> Result<(), Ended> {
        let endpoint = self.entry.route.get().to;
        let address = &lent.server.cancel.address;
        loop {
            if self.asks_only_own() {
                self.fresh = true;
                return Ok(());
            }
            let deadline = Instant::now() + origin::patience(&self.worker, endpoint);
            self.entry.activity.set(Activity::Waiting);
            self.entry.asked.set(Some(std::time::Instant::now()));
            let there = Where::There(Rc::clone(address));
            match fresh::find(&self.worker, &self.reading, there, deadline).await {
                Ok(_) => {
                    self.stay_at(address.node);
                    self.fresh = true;
                    self.entry.activity.set(Activity::Active);
                    return Ok(());
                }
                Err(why) => {
                    self.worker.shared.metrics.not_shown();
                    self.refuse(Unreached::Nobody(why).failure(endpoint));
                }
            }
            if let Some(ended) = std::future::poll_fn(|cx| self.poll_request(cx)).await {
                return Err(ended);
            }
        }
    }
}
