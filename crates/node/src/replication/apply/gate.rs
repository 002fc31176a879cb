//! When a transaction may be applied here: after its causes, and not before its time; and the times as SQL.

use std::time::Duration;

use anyhow::{Result, anyhow};
use synapsedb_core::delivery::{self, Delivery, TransactionPoint};
use synapsedb_core::history::History;
use synapsedb_core::ids::NodeId;
use synapsedb_core::time::Timestamp;

use super::lane::{Lane, Step};
use crate::replication::clock::now;
use crate::replication::spool::Header;

/// How often a lane that waits for a wrong clock looks again.
const CLOCK_RECHECK: Duration = Duration::from_millis(100);

impl Lane<'_> {
    /// Whether the transaction may be applied now.
    pub(super) fn delivery(&self, header: &Header) -> Delivery {
        let point = TransactionPoint {
            origin: self.source.origin,
            commit_lsn: header.commit_lsn,
            commit_time: header.commit_time,
            vector: &header.vector,
        };
        let here = self.shared.identity.node;
        let lsn = header.vector.get(here);
        if !self.shared.own_commits.are_visible(lsn) {
            return Delivery::AwaitOrigin { origin: here, lsn };
        }
        let skew_us = i64::try_from(self.shared.config.clock_skew_max_ms).unwrap_or(i64::MAX);
        self.shared.applied.with_visible(|applied| {
            delivery::decide(&point, here, applied, now(), skew_us.saturating_mul(1000))
        })
    }

    pub(super) async fn gate(&mut self, header: &Header) -> Step<()> {
        let mut visible = self.shared.applied.watch_visible();
        let origin = self.source.origin;
        loop {
            visible.borrow_and_update();
            match self.delivery(header) {
                Delivery::Deliver => {
                    self.shared.status.flowing(origin);
                    return Ok(());
                }
                Delivery::AlreadyApplied => {
                    return Err(anyhow!(
                        "transaction {} of node {origin} is offered again after it was applied",
                        header.commit_lsn
                    )
                    .into());
                }
                Delivery::AwaitOrigin { origin: cause, lsn }
                    if cause == self.shared.identity.node =>
                {
                    let shared = self.shared;
                    self.wait(shared.own_commits.wait_visible(shared, lsn)).await?;
                }
                Delivery::AwaitOrigin { origin: cause, lsn } => {
                    self.shared.status.waiting_for(origin, cause, lsn);
                    self.wait(async { visible.changed().await.map_err(Into::into) }).await?;
                }
                Delivery::AwaitClock { us } => {
                    let us = u64::try_from(us).unwrap_or(0);
                    self.wait(sleep(Duration::from_micros(us))).await?;
                }
                Delivery::ClockSkew { us } => {
                    self.shared.status.clock_skew(origin, us);
                    self.shared.metrics.clock_skew_waits.inc();
                    self.wait(sleep(CLOCK_RECHECK)).await?;
                }
            }
        }
    }

    /// Waits for `event` or for an outcome, whichever comes first.
    async fn wait(&mut self, event: impl Future<Output = Result<()>>) -> Step<()> {
        let busy = self.session.busy();
        let outcome = tokio::select! {
            biased;
            outcome = self.session.outcome(), if busy => outcome?,
            woken = event => return Ok(woken?),
        };
        self.settle(outcome)
    }
}

async fn sleep(duration: Duration) -> Result<()> {
    tokio::time::sleep(duration).await;
    Ok(())
}

/// Up to which commit time a transaction has certainly seen the writers of rows here.
pub(super) fn bound(history: &History, here: NodeId, origin: NodeId, header: &Header) -> Timestamp {
    let bound = history.bound(here, origin, &header.vector, header.commit_time);
    if bound <= EARLIEST { Timestamp(i64::MIN) } else { bound }
}

/// [`bound`] as SQL.
pub(super) fn sql_bound(bound: Timestamp) -> String {
    if bound <= EARLIEST { "-infinity".to_owned() } else { sql_time(bound) }
}

/// Before any commit.
const EARLIEST: Timestamp = Timestamp(0);

/// The instant as PostgreSQL reads it in any session.
pub(super) fn sql_time(time: Timestamp) -> String {
    let nanos = i128::from(time.unix_us()) * 1000;
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    format!(
        "{}-{:02}-{:02} {:02}:{:02}:{:02}.{:06}+00",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.microsecond()
    )
}
