//! A worker of a lane: a session of its own that applies a transaction ahead of its turn, and commits it when told.
//!
//! It is a lane that is given its transactions. Until it is told to commit, nothing that it has done is seen by
//! anybody, and it lets go of it whenever it is in doubt: when something is not as expected, when a lock is not free,
//! and when it keeps others waiting. So whoever waits for whatever reason, a worker is not the cause for long.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::schedule::Worker;
use synapsedb_pg::pgoutput::Message;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::Source;
use super::lane::{Lane, Step, Stop, UNSENT_BYTES};
use super::session::{Parameter, Purpose, text};
use crate::replication::recent;
use crate::replication::spool::{Frame, Header};
use crate::replication::{Shared, origin_name};

/// How long a worker that has lost its session waits before it opens another.
const PAUSE: Duration = Duration::from_secs(1);

/// A whole transaction that was read.
pub(super) struct Transaction {
    pub(super) header: Header,
    pub(super) frames: Vec<Frame>,
}

/// What a worker is told.
pub(super) enum Order {
    /// To do all of a transaction but the commit.
    Execute(Arc<Transaction>),
    /// To commit it, if `previous` is the last that is applied.
    Commit { previous: Lsn },
    /// To take it back.
    TakeBack,
}

/// What a worker says.
#[derive(Debug)]
pub(super) enum Said {
    /// It has a session and nothing to do.
    Ready,
    /// All but the commit is done.
    Executed,
    /// What it was given is taken back.
    Refused(String),
    /// Committed, with the number of its rows that changed nothing.
    Committed(u64),
    /// Its session is lost; if it was about to commit, nobody knows whether it did.
    Lost(String),
}

/// Who says what.
pub(super) struct Report {
    pub(super) worker: Worker,
    pub(super) said: Said,
}

/// Works until the lane is gone.
pub(super) async fn run(
    shared: Arc<Shared>,
    source: Source,
    worker: Worker,
    mut orders: UnboundedReceiver<Order>,
    reports: UnboundedSender<Report>,
) {
    let report = |said| reports.send(Report { worker, said }).is_ok();
    loop {
        let why = match Lane::for_worker(&shared, &source, worker).await {
            Ok(lane) => {
                let mut session = Session { lane, orders: &mut orders, report: &report };
                match session.follow().await {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        tracing::info!(origin = %source.origin, worker = worker.0, "a worker has no session: {why:#}");
        if !report(Said::Lost(format!("{why:#}"))) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
        // What it was told meanwhile it was told too late.
        while orders.try_recv().is_ok() {}
    }
}

struct Session<'a, R: Fn(Said) -> bool> {
    lane: Lane<'a>,
    orders: &'a mut UnboundedReceiver<Order>,
    report: &'a R,
}

/// What became of a transaction ahead of its turn.
enum Ahead {
    Executed,
    Refused(String),
}

impl<R: Fn(Said) -> bool> Session<'_, R> {
    /// Does what it is told until nobody is there to tell.
    async fn follow(&mut self) -> Result<()> {
        (self.report)(Said::Ready);
        while let Some(order) = self.orders.recv().await {
            let Order::Execute(transaction) = order else { continue };
            let done = match self.execute(&transaction).await {
                Ok(Ahead::Executed) => {
                    (self.report)(Said::Executed);
                    self.await_turn(&transaction).await
                }
                Ok(Ahead::Refused(why)) => self.take_back(why).await,
                Err(stop) => Err(stop),
            };
            match done {
                Ok(said) => drop((self.report)(said)),
                Err(Stop::Broken(error)) => return Err(error),
                Err(Stop::Failed(failure)) => {
                    let said = self.take_back(failure.text()).await;
                    match said {
                        Ok(said) => drop((self.report)(said)),
                        Err(Stop::Broken(error)) => return Err(error),
                        Err(Stop::Failed(failure)) => return Err(anyhow!("{}", failure.text())),
                    }
                }
            }
        }
        Ok(())
    }

    async fn execute(&mut self, transaction: &Transaction) -> Step<Ahead> {
        let lane = &mut self.lane;
        lane.notice_change();
        lane.begin(&transaction.header).await?;
        for raw in transaction.frames.iter().flat_map(Frame::messages) {
            lane.message(raw).await?;
            lane.session.drain_to(UNSENT_BYTES).await?;
            if lane.session.failing() {
                return Err(lane.failure().await);
            }
            if !self.orders.is_empty() {
                return Ok(Ahead::Refused("the lane begins anew".to_owned()));
            }
        }
        lane.flush_batch()?;
        if lane.session.lookup("keeps_waiting", &[]).await?.is_none() {
            return Err(lane.failure().await);
        }
        Ok(Ahead::Executed)
    }

    async fn await_turn(&mut self, transaction: &Transaction) -> Step<Said> {
        let look = Duration::from_millis(self.lane.shared.config.apply_worker_yield_ms);
        loop {
            match tokio::time::timeout(look, self.orders.recv()).await {
                Ok(Some(Order::Commit { previous })) => {
                    return self.commit(transaction, previous).await;
                }
                Ok(Some(Order::TakeBack | Order::Execute(_)) | None) => {
                    return self.take_back("the lane begins anew".to_owned()).await;
                }
                Err(_) => {}
            }
            let Some(rows) = self.lane.session.lookup("keeps_waiting", &[]).await? else {
                return Err(self.lane.failure().await);
            };
            if text(rows.first().context("no answer")?, 0)? == "true" {
                return self.take_back("it keeps another session waiting".to_owned()).await;
            }
        }
    }

    async fn commit(&mut self, transaction: &Transaction, previous: Lsn) -> Step<Said> {
        let lane = &mut self.lane;
        if lane.meets_unseen(transaction)? {
            let why = "a write that it had not seen has come meanwhile";
            return self.take_back(why.to_owned()).await;
        }
        let name = origin_name(lane.source.origin, lane.source.incarnation);
        let previous = previous.to_string();
        let guard = [name.as_bytes(), previous.as_bytes()].map(Parameter::Text);
        lane.session.execute("turn", &guard, Purpose::Other)?;
        lane.end().await?;
        let outcome = lane.session.outcome().await?;
        match outcome.error {
            None => Ok(Said::Committed(outcome.ineffective)),
            // It was said already which transaction it is: whether that counts, the next lane finds out.
            Some(error) => Err(anyhow!("a worker could not commit: {error}").into()),
        }
    }

    async fn take_back(&mut self, why: String) -> Step<Said> {
        self.lane.give_up().await?;
        Ok(Said::Refused(why))
    }
}

impl Lane<'_> {
    /// Whether a write is known by now that a transaction had not seen and that is in its way, though it was not when
    /// it was executed: no row shows where a delete has been.
    fn meets_unseen(&self, transaction: &Transaction) -> Step<bool> {
        let Transaction { header, frames } = transaction;
        let version = recent::version(self.source.origin, header);
        let writer = synapsedb_core::history::Writer { version, vector: &header.vector };
        for frame in frames {
            for raw in frame.message_slices() {
                let relation = recent::relation_id(raw);
                if !matches!(raw.first(), Some(b'I' | b'U')) {
                    continue;
                }
                let Some((_, Some(plan))) = self.current.get(&relation) else { continue };
                let Some(keys) = &self.plans[*plan].keys else { return Ok(true) };
                let Message::Change(change) = self.decode(raw)? else { continue };
                if recent::meets_unseen(&mut self.shared.recent.lock(), keys, &change, &writer) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
