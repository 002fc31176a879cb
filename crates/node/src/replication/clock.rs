//! This node's clock, and whether it was set back behind what has been committed by it: what is written then carries an
//! earlier time than what it may have seen.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use synapsedb_core::time::Timestamp;

/// What the clock says, as PostgreSQL tells time.
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_us(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}

/// The clock by which this node's transactions are committed.
pub(crate) struct OwnClock {
    latest: AtomicI64,
    told: AtomicBool,
    /// Milliseconds by which it is behind.
    behind_ms: Gauge,
}

impl OwnClock {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let behind_ms = Gauge::default();
        registry.register(
            "synapsedb_replication_clock_behind_milliseconds",
            "How far the clock is behind what was committed here: it was set back",
            behind_ms.clone(),
        );
        Self { latest: AtomicI64::new(i64::MIN), told: AtomicBool::new(false), behind_ms }
    }

    /// A transaction of this node has this commit time.
    pub(crate) fn committed(&self, time: Timestamp) {
        self.latest.fetch_max(time.0, Ordering::Relaxed);
    }

    /// How far the clock is behind the latest of them, if it is. Only setting it back does that.
    pub(crate) fn behind(&self) -> Option<Duration> {
        let us = self.latest.load(Ordering::Relaxed).saturating_sub(now().0);
        u64::try_from(us).ok().filter(|us| *us > 0).map(Duration::from_micros)
    }

    /// Looks, and says so when it was set back, once. Whether it is behind.
    pub(crate) fn look(&self) -> bool {
        let behind = self.behind();
        let ms = behind.map_or(0, |behind| behind.as_millis());
        self.behind_ms.set(i64::try_from(ms).unwrap_or(i64::MAX));
        let told = self.told.swap(behind.is_some(), Ordering::Relaxed);
        if behind.is_some() && !told {
            tracing::error!(
                "the clock of this node was set back: it is {ms} ms behind what was committed here. Another node \
                 becomes the primary until it has caught up; do not write to this one meanwhile. Let NTP slew the clock"
            );
        }
        behind.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_behind_what_was_committed_was_set_back() {
        let clock = OwnClock::new(&mut Registry::default());
        assert_eq!((clock.behind(), clock.look()), (None, false), "nothing was committed");
        clock.committed(now());
        assert!(!clock.look());
        // As if it had been set back by a minute.
        clock.committed(now().plus_us(60_000_000));
        clock.committed(now());
        let behind = clock.behind().unwrap_or_default();
        assert!(
            behind > Duration::from_secs(50) && behind <= Duration::from_secs(60),
            "{behind:?}"
        );
        assert!(clock.look() && clock.behind_ms.get() > 50_000);
    }
}
