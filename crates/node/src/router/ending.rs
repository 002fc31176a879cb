//! How a session, or its hold on a server connection, comes to an end that is not the plain end of a transaction.

use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use synapsedb_pg::sql::traits::Flags;
use tokio::time::timeout;

use super::entry::End;
use super::loss::Lost;
use super::metrics::EndedBy;
use super::pool::Pool;
use super::server::{self, Server};
use super::session::{Ended, Lent, Session};
use super::startup::Failure;
use super::traffic::Flow;
use super::turn::Turn;
use super::worker::Worker;

/// The agent is stopping.
pub(super) fn draining() -> Failure {
    Failure {
        sqlstate: "57P01",
        message: "terminating connection because this agent is stopping".to_owned(),
        hint: "Connect again. A transaction in progress was rolled back, unless its COMMIT had been sent: then look \
               whether it took effect."
            .to_owned(),
    }
}

/// An operator has ended the session.
pub(super) fn killed() -> Failure {
    Failure {
        sqlstate: "57P01",
        message: "terminating connection due to administrator command".to_owned(),
        hint: String::new(),
    }
}

impl Session {
    /// What follows from a turn that is no plain end of a transaction.
    pub(super) async fn turned(&mut self, turn: Turn, lent: Lent) -> Result<Option<Lent>, Ended> {
        match turn {
            Turn::Quiet => {
                self.end_lent(lent);
                Ok(None)
            }
            Turn::LeftOpen => self.refuse_transaction(lent).await,
            Turn::ServerLost(why) if self.repeat() => {
                tracing::debug!(node = %lent.server.node(), "a read is repeated: {why}");
                self.worker.shared.metrics.repeated();
                self.end_lent(lent);
                Ok(None)
            }
            Turn::ServerLost(why) => {
                let lost = Lost::new(self, &lent.server);
                self.end_lent(lent);
                let known = Box::pin(self.resolve(&lost)).await;
                let ended = self.server_lost(&lost, &why, known);
                ended.map_or(Ok(None), Err)
            }
            Turn::ClientLost(by) => {
                self.client_lost(lent, by).await;
                Err(Ended::quietly(by))
            }
            Turn::Violation(failure) => {
                self.client_lost(lent, EndedBy::Client).await;
                Err(Ended::telling(EndedBy::Client, &failure))
            }
            Turn::Misjudged => {
                self.run_again(lent);
                Ok(None)
            }
            Turn::Told(end) => self.end_soon(end, lent).await,
            Turn::Gate => match self.gate(&lent).await {
                Ok(()) => Ok(Some(lent)),
                Err(ended) => {
                    self.client_lost(lent, ended.by).await;
                    Err(ended)
                }
            },
        }
    }

    /// Lets what is under way end within the time there is, if that is bounded, and cuts it then.
    pub(super) async fn end_soon(
        &mut self,
        end: End,
        mut lent: Lent,
    ) -> Result<Option<Lent>, Ended> {
        let config = &self.worker.shared.config();
        let grace = match end {
            End::PrimaryChanged(_) | End::Deaf => Some(config.primary_change_grace_ms),
            End::Draining => Some(config.drain_ms),
            End::Killed => Some(0),
            End::Missed => None,
        };
        self.ending = true;
        let ends = std::future::poll_fn(|cx| match self.entry.told(cx) {
            Some(sooner) if end == End::Missed && sooner != end => Poll::Ready(Turn::Told(sooner)),
            _ => self.poll_turn(cx, &mut lent),
        });
        let turn = match grace {
            Some(grace) => timeout(Duration::from_millis(grace), ends).await,
            None => Ok(ends.await),
        };
        self.ending = false;
        match (turn, end) {
            (Ok(Turn::Quiet), End::PrimaryChanged(_)) if !self.keeps_server() => {
                self.entry.settled();
                self.end_lent(lent);
                Ok(None)
            }
            (Ok(Turn::Quiet), _) => {
                self.end_lent(lent);
                Err(self.told(end))
            }
            (Ok(other), _) => Box::pin(self.turned(other, lent)).await,
            (Err(_), End::PrimaryChanged(primary)) if !self.keeps_server() => {
                self.entry.settled();
                let node = lent.server.node();
                cancel_if_busy(&lent.server, &self.worker).await;
                let lost = Lost::new(self, &lent.server);
                self.end_lent(lent);
                let known = Box::pin(self.resolve(&lost)).await;
                let why = super::loss::moved(node, primary);
                self.transaction_lost(&lost, &why, known).map_or(Ok(None), Err)
            }
            (Err(_), _) => {
                cancel_if_busy(&lent.server, &self.worker).await;
                let cut = lent.server.passing > 0;
                self.end_lent(lent);
                let ended = self.told(end);
                // In the middle of a message there is no way to say anything.
                Err(if cut { Ended::quietly(ended.by) } else { ended })
            }
        }
    }

    pub(super) fn told(&self, end: End) -> Ended {
        match end {
            End::PrimaryChanged(primary) => {
                Ended::telling(EndedBy::PrimaryChanged, &super::loss::primary_changed(primary))
            }
            End::Draining => Ended::telling(EndedBy::Draining, &draining()),
            End::Killed => Ended::telling(EndedBy::Killed, &killed()),
            End::Deaf | End::Missed => self.deafened(),
        }
    }

    /// Closes the connection.
    pub(super) fn end_lent(&mut self, lent: Lent) {
        self.lost_with(lent.server.node());
        self.lent_ended(lent.pool.as_ref(), &lent.flow, lent.since);
    }

    pub(super) fn lent_ended(&mut self, pool: Option<&Rc<Pool>>, flow: &Flow, since: Instant) {
        self.account_for(pool, flow, since);
        self.active = false;
        self.traits = Flags::default();
        self.used.clear();
        self.entry.current.borrow_mut().take();
        if self.origin.dedicated.is_none() {
            self.entry.pin.set(None);
        }
        if let Some(pool) = pool {
            pool.end();
        }
    }

    /// The client has gone: what the server still does for it is ended, and a clean connection goes back.
    pub(super) async fn client_lost(&mut self, lent: Lent, by: EndedBy) {
        if by == EndedBy::Client && self.is_quiet(&lent.server) && self.leaves_nothing() {
            self.give_back(lent);
            return;
        }
        cancel_if_busy(&lent.server, &self.worker).await;
        // What the session held is free when the client sees its end, as on a connection to the server itself.
        let Lent { server, pool, flow, since } = lent;
        server.io.part(&[b'X', 0, 0, 0, 4], self.worker.farewell()).await;
        self.lent_ended(pool.as_ref(), &flow, since);
    }
}

/// Whatever the server still works on, nobody waits for it any more.
pub(super) async fn cancel_if_busy(server: &Server, worker: &Worker) {
    if server.expected.cycles() > 0 {
        let _ = server::cancel(&server.cancel, &worker.shared).await;
    }
}
