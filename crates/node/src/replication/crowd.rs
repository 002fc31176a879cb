//! Tells when so many transactions stream in that reading them one by one would waste both sides' time.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// The span over which transactions are counted.
const SPAN: Duration = Duration::from_millis(20);

/// From this many transactions in [`SPAN`] on, they are left to gather: 500 per second.
const SOME: u64 = 10;

/// So many transactions gather, about as many as fit into a quarter of the socket to the server.
const GATHERED: u64 = 32;

/// They gather no shorter than this: the waiting itself costs something.
const GATHER_MIN: Duration = Duration::from_micros(200);

/// Watches the rate of a stream. Every message wakes its reader, which costs more than the message itself; in a crowd
/// the reader lets them gather for a moment. A stream below the rate is read at once.
pub(super) struct Crowd {
    since: Instant,
    count: u64,
    /// No longer than this; zero for never.
    gather_max: Duration,
    /// How long transactions gather, if there are many.
    gather: Option<Duration>,
    /// The runtime's own timers are not finer than a millisecond or two.
    timer: AsyncFd<OwnedFd>,
}

impl Crowd {
    /// # Errors
    /// The system gives no timer.
    #[allow(
        deprecated,
        reason = "its successor is unsafe; an owned descriptor stays open as long as the timer lives"
    )]
    pub(super) fn new(gather_max: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = AsyncFd::new(timerfd_create(TimerfdClockId::Monotonic, flags)?)?;
        Ok(Self { since: Instant::now(), count: 0, gather_max, gather: None, timer })
    }

    /// `count` more transactions were read. Answers how long the next ones are to gather if there are many.
    pub(super) fn counted(&mut self, count: u64) -> Option<Duration> {
        self.count += count;
        let elapsed = self.since.elapsed();
        if elapsed >= SPAN {
            self.gather = gather(self.count, elapsed, self.gather_max);
            (self.since, self.count) = (Instant::now(), 0);
        }
        self.gather
    }

    /// Waits while more gather.
    ///
    /// # Errors
    /// The timer fails.
    pub(super) async fn wait(&mut self, gather: Duration) -> io::Result<()> {
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec { tv_sec: 0, tv_nsec: gather.subsec_nanos().into() },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.timer.readable().await?;
            let mut expirations = [0; 8];
            let read =
                ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut expirations)?));
            if let Ok(read) = read {
                return read.map(|_| ());
            }
        }
    }
}

/// How long transactions gather of which so many came in `elapsed`.
fn gather(count: u64, elapsed: Duration, max: Duration) -> Option<Duration> {
    let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    if max.is_zero()
        || count == 0
        || count < elapsed_us.saturating_mul(SOME) / SPAN.as_micros() as u64
    {
        return None;
    }
    let us = elapsed_us.saturating_mul(GATHERED) / count;
    Some(Duration::from_micros(us).clamp(GATHER_MIN, max.max(GATHER_MIN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_transactions_are_read_at_once_and_many_gather() {
        let max = Duration::from_millis(5);
        let of = |count, ms| gather(count, Duration::from_millis(ms), max);
        assert_eq!((of(0, 20), of(9, 20), of(19, 40), of(1, 1000)), (None, None, None, None));
        assert_eq!(of(10, 20), Some(max), "500 per second");
        assert_eq!(of(200, 20), Some(Duration::from_micros(3200)), "10,000 per second");
        assert_eq!(of(320, 10), Some(Duration::from_millis(1)), "32,000 per second");
        assert_eq!(of(100_000, 10), Some(GATHER_MIN));
        assert_eq!(gather(100, Duration::from_millis(20), Duration::ZERO), None, "never");
    }
}
