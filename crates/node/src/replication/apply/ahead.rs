//! The lane with its workers: reads ahead, hands over what is worth it, and lets everything commit in its turn.
//!
//! It begins where a large transaction comes and ends when none is left: whatever comes between is applied by the
//! lane as ever. What may be done when decides [`synapsedb_core::schedule`].

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use synapsedb_core::delivery::Delivery;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::schedule::{Effect, Event, Schedule, Worker};
use synapsedb_core::writeset::WriteSet;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

use super::lane::{CONFLICTING_MIN, Lane, Step};
use super::scope;
use super::worker::{self, Order, Report, Said, Transaction};
use crate::replication::recent;
use crate::replication::spool::Frame;

/// The least that a row takes in a frame: a frame that is shorter than so many rows need not be looked at.
const ROW_BYTES_MIN: usize = 12;

/// What a lane has of its workers.
pub(super) struct Workers {
    schedule: Schedule,
    /// The transactions of the schedule that the lane has not begun; the last may go on in the spool.
    read: VecDeque<Arc<Transaction>>,
    /// Bytes of them.
    bytes: usize,
    /// The last one is so large that it was not read to its end.
    unfinished: bool,
    /// Up to where commits are noted.
    noted: Lsn,
    orders: Vec<UnboundedSender<Order>>,
    reports: UnboundedReceiver<Report>,
    reporter: UnboundedSender<Report>,
    running: JoinSet<()>,
    /// The last transaction that a worker committed.
    pub(super) committed: Lsn,
}

impl Workers {
    /// None yet.
    pub(super) fn none() -> Self {
        let (reporter, reports) = mpsc::unbounded_channel();
        Self {
            schedule: Schedule::default(),
            read: VecDeque::new(),
            bytes: 0,
            unfinished: false,
            noted: Lsn::ZERO,
            orders: Vec::new(),
            reports,
            reporter,
            running: JoinSet::new(),
            committed: Lsn::ZERO,
        }
    }

    /// The lane has applied everything through this one.
    pub(super) fn applied(&mut self, lsn: Lsn) {
        self.schedule.step(Event::Committed(lsn));
        self.forget(lsn);
    }

    fn forget(&mut self, through: Lsn) {
        while self.read.front().is_some_and(|first| first.header.commit_lsn <= through) {
            let frames = self.read.pop_front().map_or(0, |first| bytes(&first.frames));
            self.bytes = self.bytes.saturating_sub(frames);
        }
    }

    fn tell(&self, Worker(worker): Worker, order: Order) {
        if let Some(orders) = self.orders.get(worker) {
            // One that is gone has said so.
            let _ = orders.send(order);
        }
    }

    /// The lane begins anew behind what is applied: workers take back what they have.
    pub(super) fn clear(&mut self) {
        for worker in self.schedule.clear() {
            self.tell(worker, Order::TakeBack);
        }
        self.read.clear();
        (self.bytes, self.unfinished) = (0, false);
    }
}

fn bytes(frames: &[Frame]) -> usize {
    frames.iter().map(|frame| frame.raw.len()).sum()
}

impl Lane<'_> {
    /// Whether a transaction may be worth a hand-over, told from its first frame.
    pub(super) fn may_be_for_workers(&self, frame: &Frame) -> bool {
        let rows = self.shared.config.apply_worker_min_rows;
        self.shared.config.apply_workers > 0
            && self.open.is_none()
            && self.begun_any
            && frame.is_first()
            && (!frame.is_last() || frame.raw.len() >= rows * ROW_BYTES_MIN)
            && self.goes_fast()
            && scope::rows(frame, rows) >= rows
    }

    /// Whether transactions are not expected to go row by row.
    pub(super) fn goes_fast(&self) -> bool {
        !self.deferred && self.conflicting < CONFLICTING_MIN
    }

    /// Applies a transaction, and those behind it as long as there are any for workers among them.
    pub(super) async fn work_ahead(&mut self, first: Frame) -> Step<()> {
        self.send_run().await?;
        self.settle_all().await?;
        self.feed.put_back(vec![first]);
        loop {
            while let Ok(report) = self.workers.reports.try_recv() {
                self.hear(report)?;
            }
            self.notice_catalog().await?;
            while self.has_room() && self.read_ahead()? {}
            while let Some(effect) = self.workers.schedule.due() {
                match effect {
                    Effect::Begin(worker, lsn) => self.hand_over(worker, lsn)?,
                    Effect::Commit(worker, lsn) => self.commit_by(worker, lsn),
                    Effect::Own(lsn) => self.apply_own(lsn).await?,
                }
            }
            if self.workers.schedule.is_empty() {
                return Ok(());
            }
            self.await_something().await?;
        }
    }

    /// Starts the workers; each has a session before the first transaction for it comes.
    pub(super) fn start_workers(&mut self) {
        for number in self.workers.orders.len()..self.shared.config.apply_workers {
            let (orders, told) = mpsc::unbounded_channel();
            let (shared, source) = (self.shared.clone(), self.source.clone());
            let reporter = self.workers.reporter.clone();
            let worker = worker::run(shared, source, Worker(number), told, reporter);
            self.workers.running.spawn(worker);
            self.workers.orders.push(orders);
        }
    }

    /// Whether to read on: nothing is gained by it when there is nothing for workers.
    fn has_room(&self) -> bool {
        let Workers { schedule, bytes, unfinished, .. } = &self.workers;
        let config = &self.shared.config;
        !unfinished
            && (schedule.is_empty() || schedule.has_for_workers())
            && schedule.len() < config.apply_ahead_transactions_max
            && *bytes < config.apply_ahead_bytes_max
            && !self.shared.retries.has_any(self.source.origin)
    }

    /// Reads the next transaction if it is there.
    fn read_ahead(&mut self) -> Step<bool> {
        let Some(first) = self.feed.try_next()? else { return Ok(false) };
        self.take_in(first)?;
        Ok(true)
    }

    fn take_in(&mut self, first: Frame) -> Step<()> {
        let header = first.header().context("the spool goes on in the middle of something")?;
        let limit = self.shared.config.apply_ahead_bytes_max;
        let (mut frames, mut size) = (vec![first], 0);
        while let Some(last) = frames.last().filter(|last| !last.is_last()) {
            size += last.raw.len();
            if size >= limit {
                break;
            }
            let next = self.feed.try_next()?;
            frames.push(next.ok_or_else(|| anyhow!("a transaction of the spool has no end"))?);
        }
        let whole = frames.last().is_some_and(Frame::is_last);
        let set = if whole { self.write_set(&frames) } else { WriteSet::everything() };
        let rows = self.shared.config.apply_worker_min_rows;
        let suits = whole
            && self.goes_fast()
            && !set.is_everything()
            && !set.is_over()
            && frames.iter().map(|frame| scope::rows(frame, rows)).sum::<usize>() >= rows
            && matches!(self.delivery(&header), Delivery::Deliver);
        self.workers.bytes += bytes(&frames);
        self.workers.unfinished = !whole;
        self.workers.schedule.step(Event::Read { lsn: header.commit_lsn, set, suits });
        self.workers.read.push_back(Arc::new(Transaction { header, frames }));
        Ok(())
    }

    fn hand_over(&mut self, worker: Worker, lsn: Lsn) -> Step<()> {
        // The index takes commits in their order only.
        let mut history = self.shared.recent.lock();
        let workers = &mut self.workers;
        for transaction in &workers.read {
            let header = &transaction.header;
            if header.commit_lsn > workers.noted && header.commit_lsn <= lsn {
                recent::note_commit(&mut history, self.source.origin, header, true);
                workers.noted = header.commit_lsn;
            }
        }
        drop(history);
        let found = workers.read.iter().find(|read| read.header.commit_lsn == lsn);
        let transaction = found.context("a transaction for a worker was not read")?;
        workers.tell(worker, Order::Execute(transaction.clone()));
        Ok(())
    }

    fn commit_by(&mut self, worker: Worker, lsn: Lsn) {
        let read = &self.workers.read;
        if let Some(found) = read.iter().find(|read| read.header.commit_lsn == lsn) {
            self.shared.status.sent(self.source.origin, lsn, found.header.commit_time);
        }
        self.workers.tell(worker, Order::Commit { previous: self.sent });
    }

    /// Applies a transaction whose turn it is in the ordinary way.
    async fn apply_own(&mut self, lsn: Lsn) -> Step<()> {
        let workers = &mut self.workers;
        let at = workers.read.iter().position(|read| read.header.commit_lsn == lsn);
        let own = at.and_then(|at| workers.read.remove(at));
        let own = own.context("a transaction for the lane was not read")?;
        workers.bytes = workers.bytes.saturating_sub(bytes(&own.frames));
        self.feed.put_back(own.frames.clone());
        drop(own);
        loop {
            self.make_room().await?;
            let frame = self.feed.next().await?;
            self.take(frame).await?;
            if self.open.is_none() {
                break;
            }
        }
        self.workers.unfinished &= !self.workers.read.is_empty();
        Ok(())
    }

    /// Waits for a worker, for an outcome of the lane's own, or for more to read.
    async fn await_something(&mut self) -> Step<()> {
        self.send_run().await?;
        let (busy, room) = (self.session.busy(), self.has_room());
        tokio::select! {
            biased;
            report = self.workers.reports.recv() => {
                self.hear(report.context("the lane keeps the way to itself")?)
            }
            outcome = self.session.outcome(), if busy => {
                let outcome = outcome?;
                self.settle(outcome)
            }
            frame = self.feed.next(), if room => {
                let frame = frame?;
                self.take_in(frame)
            }
        }
    }

    fn hear(&mut self, Report { worker, said }: Report) -> Step<()> {
        let schedule = &mut self.workers.schedule;
        match said {
            Said::Ready => schedule.step(Event::Free(worker)),
            Said::Executed => schedule.step(Event::Executed(worker)),
            Said::Refused(why) => {
                tracing::debug!(origin = %self.source.origin, worker = worker.0,
                    "a worker leaves its transaction to the lane: {why}");
                self.shared.metrics.worker_refusals.inc();
                schedule.step(Event::Refused(worker));
            }
            Said::Committed(ineffective) => {
                let Some(lsn) = schedule.committing(worker) else {
                    return Err(anyhow!("a worker has committed what it was not told to").into());
                };
                (self.sent, self.workers.committed) = (lsn, lsn);
                self.applied_any = true;
                self.shared.applied.advance(self.source.origin, lsn);
                self.shared.status.applied(self.source.origin, lsn);
                self.shared.status.applied_by_worker(self.source.origin);
                self.shared.metrics.applied(1, ineffective);
                self.shared.metrics.worker_transactions.inc();
                self.workers.applied(lsn);
            }
            Said::Lost(why) if schedule.committing(worker).is_some() => {
                let what = "a worker was lost while it committed, what it has done is asked for";
                return Err(anyhow!("{what}: {why}").into());
            }
            Said::Lost(_) => schedule.step(Event::Gone(worker)),
        }
        Ok(())
    }
}
