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
const SPAN: Duration = Duration::from_millis(2);

/// From this many transactions in [`SPAN`] on, they are left to gather: 5000 per second.
const MANY: u64 = 10;

/// How long they gather: no more than fits into the socket to the server, and nothing that anybody would notice.
const GATHER: Duration = Duration::from_micros(400);

/// Watches the rate of a stream. Every message wakes its reader, which costs more than the message itself; in a crowd
/// the reader lets them gather for a moment. A stream below the rate is read at once.
pub(super) struct Crowd {
    since: Instant,
    count: u64,
    many: bool,
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
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = AsyncFd::new(timerfd_create(TimerfdClockId::Monotonic, flags)?)?;
        Ok(Self { since: Instant::now(), count: 0, many: false, timer })
    }

    /// `count` more transactions were read: whether there are many.
    pub(super) fn is_many(&mut self, count: u64) -> bool {
        self.count += count;
        let elapsed = self.since.elapsed();
        if elapsed >= SPAN {
            let expected = elapsed.as_micros() * u128::from(MANY) / SPAN.as_micros();
            self.many = u128::from(self.count) >= expected;
            (self.since, self.count) = (Instant::now(), 0);
        }
        self.many
    }

    /// Waits while more gather.
    ///
    /// # Errors
    /// The timer fails.
    pub(super) async fn gather(&mut self) -> io::Result<()> {
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec { tv_sec: 0, tv_nsec: GATHER.subsec_nanos().into() },
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
