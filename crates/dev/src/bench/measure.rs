//! The measurements: how fast a backlog drains, and how long after its commit a row is seen on the other side.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::system::{Pause, System};
use crate::client::{Server, Session};
use crate::eventually::try_eventually;

/// How long a backlog may take to drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(900);
/// How often the receiver is asked while a backlog drains: seldom, since asking costs it time.
const DRAIN_POLL: Duration = Duration::from_millis(5);
/// How long after another marker the next one is written.
const MARKER_PAUSE: Duration = Duration::from_millis(20);
/// Sessions that share the load while the lag is measured.
const LOAD_SESSIONS: u32 = 8;
/// Makes the single-row transactions inside the server.
const SINGLE: &str = include_str!("generate_single.sql");

/// Lags and the load under which they were measured.
pub(super) struct Lags {
    /// Milliseconds from the acknowledged commit until the row was seen, sorted.
    pub sorted_ms: Vec<f64>,
    /// Transactions per second that were really made beside the markers.
    pub rate_per_s: f64,
}

impl Lags {
    /// The lag below which this share of all lags lies.
    pub(super) fn percentile_ms(&self, share: f64) -> f64 {
        let last = self.sorted_ms.len().saturating_sub(1);
        let index = (share * last as f64).round() as usize;
        self.sorted_ms.get(index).copied().unwrap_or(f64::NAN)
    }
}

/// How long `transactions` single-row transactions take to arrive that were written while the receiver stood still.
pub(super) async fn drain_single(
    system: &System,
    pause: Pause,
    transactions: u64,
) -> Result<Duration> {
    let session = system.origin().try_session().await?;
    session.batch_execute("truncate bench_single").await?;
    rest(system, &session).await?;
    system.pause(pause).await?;
    // How durable the backlog itself is at the origin is not measured.
    session.batch_execute("set synchronous_commit = off").await?;
    session.batch_execute(&single(transactions)).await.context("write the transactions")?;
    session.batch_execute("reset synchronous_commit").await?;
    let drained = drain(system, &session).await?;
    same(system, "select count(*), sum(id) from bench_single").await?;
    Ok(drained)
}

/// What one large transaction does, in the order in which they are measured.
#[derive(Clone, Copy, Debug)]
pub(super) enum Large {
    /// It inserts all rows.
    Insert,
    /// It updates all rows, which stay where they are.
    Update,
    /// It deletes all rows.
    Delete,
}

impl Large {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Insert, Self::Update, Self::Delete];

    /// How its figure is told from the others'.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Insert => "",
            Self::Update => ", updates",
            Self::Delete => ", deletes",
        }
    }

    fn sql(self, rows: u64) -> String {
        match self {
            Self::Insert => large(rows),
            Self::Update => "update bench_large set payload = payload || '!'".to_owned(),
            Self::Delete => "delete from bench_large".to_owned(),
        }
    }
}

/// How long one transaction of `rows` rows takes to arrive that was written while the receiver stood still.
pub(super) async fn drain_large(system: &System, what: Large, rows: u64) -> Result<Duration> {
    let session = system.origin().try_session().await?;
    if let Large::Insert = what {
        session.batch_execute("truncate bench_large").await?;
    }
    rest(system, &session).await?;
    system.pause(Pause::Receiver).await?;
    session.batch_execute(&what.sql(rows)).await.context("write the transaction")?;
    let drained = drain(system, &session).await?;
    same(system, "select count(*), sum(id), sum(length(payload)) from bench_large").await?;
    Ok(drained)
}

/// Lets one transaction of `rows` rows pass while nothing is paused, until every node of a mesh has it.
pub(super) async fn pass_large(system: &System, rows: u64) -> Result<()> {
    let session = system.origin().try_session().await?;
    session.batch_execute("truncate bench_large").await?;
    rest(system, &session).await?;
    session.batch_execute(&large(rows)).await?;
    if let System::Native(cluster) = system {
        let count = rows.to_string();
        for node in cluster.nodes() {
            let end = Instant::now() + DRAIN_TIMEOUT;
            while let Err(reason) = node.shows("select count(*) from bench_large", &[&count]).await
            {
                if Instant::now() > end {
                    bail!("the transaction has not arrived: {reason}");
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
    Ok(())
}

/// SQL that makes single-row transactions.
pub(super) fn single(transactions: u64) -> String {
    SINGLE.replace("$count", &transactions.to_string())
}

fn large(rows: u64) -> String {
    format!(
        "insert into bench_large (id, payload) select n, md5(n::text) from generate_series(1, {rows}) n"
    )
}

/// Waits until everything written so far has arrived, and until no server has any of it left to send: what a receiver
/// has applied it decodes too.
pub(super) async fn rest(system: &System, origin: &Session) -> Result<()> {
    for receiver in system.receivers() {
        settle(receiver, origin).await?;
    }
    for server in system.receivers().into_iter().chain([system.origin()]) {
        let written = server.try_rows("select pg_current_wal_lsn()").await?.concat();
        let sent = format!(
            "select coalesce(bool_and(confirmed_flush_lsn >= '{written}'), true)::text from pg_replication_slots"
        );
        let confirmed = async || match server.try_rows(&sent).await {
            Ok(rows) if rows == ["true"] => Ok(()),
            Ok(_) => Err(format!("{} has not sent its WAL up to {written}", server.name)),
            Err(error) => Err(format!("{error:#}")),
        };
        try_eventually(DRAIN_TIMEOUT, confirmed).await.map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

/// Waits until everything written so far has arrived.
pub(super) async fn settle(receiver: &Server, origin: &Session) -> Result<()> {
    let marker = mark(origin).await?;
    arrived(receiver, marker, DRAIN_POLL).await?;
    Ok(())
}

/// Writes the last marker, lets the system go on, and waits for the marker.
pub(super) async fn drain(system: &System, origin: &Session) -> Result<Duration> {
    let marker = mark(origin).await?;
    let begin = Instant::now();
    system.resume().await?;
    let end = arrived(system.receiver(), marker, DRAIN_POLL).await?;
    Ok(end - begin)
}

/// Moves the marker and returns where it is now.
async fn mark(session: &Session) -> Result<i64> {
    let rows = session.rows("update bench_marker set n = n + 1 where id = 1 returning n").await?;
    rows.concat().parse().context("the marker")
}

/// When the receiver showed the marker.
async fn arrived(receiver: &Server, marker: i64, poll: Duration) -> Result<Instant> {
    let session = receiver.try_session().await?;
    let end = Instant::now() + DRAIN_TIMEOUT;
    loop {
        if shown(&session).await? >= marker {
            return Ok(Instant::now());
        }
        if Instant::now() > end {
            bail!("the rows have not arrived within {DRAIN_TIMEOUT:?}");
        }
        tokio::time::sleep(poll).await;
    }
}

async fn shown(session: &Session) -> Result<i64> {
    let rows = session.rows("select n from bench_marker where id = 1").await?;
    rows.concat().parse().context("the marker")
}

/// Both sides must show the same, or the figure means nothing.
pub(super) async fn same(system: &System, sql: &str) -> Result<()> {
    let there = system.origin().try_rows(sql).await?;
    for receiver in system.receivers() {
        let here = receiver.try_rows(sql).await?;
        if there != here {
            bail!("the origin shows {there:?} and a receiver {here:?}\n  {sql}");
        }
    }
    Ok(())
}

/// Writes `rate_per_s` transactions per second for `seconds`, waits until they have arrived, and answers how many.
pub(super) async fn load(system: &System, rate_per_s: u32, seconds: u32) -> Result<u64> {
    let session = system.origin().try_session().await?;
    session.batch_execute("truncate bench_load").await?;
    rest(system, &session).await?;
    let (stop, stopped) = watch::channel(false);
    let mut load = writers(system, rate_per_s, &stopped);
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    stop.send_replace(true);
    let mut written = 0;
    while let Some(ended) = load.join_next().await {
        written += ended??;
    }
    rest(system, &session).await?;
    Ok(written)
}

fn writers(
    system: &System,
    rate_per_s: u32,
    stopped: &watch::Receiver<bool>,
) -> JoinSet<Result<u64>> {
    let mut load = JoinSet::new();
    let pause = Duration::from_secs_f64(f64::from(LOAD_SESSIONS) / f64::from(rate_per_s));
    for number in 0..LOAD_SESSIONS {
        load.spawn(write_load(system.origin().clone(), number, pause, stopped.clone()));
    }
    load
}

/// Measures the lag for `seconds` at `rate_per_s` transactions per second; 0 is an idle system.
pub(super) async fn lag(system: &System, rate_per_s: u32, seconds: u32) -> Result<Lags> {
    let (stop, stopped) = watch::channel(false);
    let base = Instant::now();
    let mut load = JoinSet::new();
    if rate_per_s > 0 {
        system.origin().try_rows("truncate bench_load").await?;
        load = writers(system, rate_per_s, &stopped);
    }
    let committed = Arc::new(Mutex::new(Vec::new()));
    let origin = system.origin().try_session().await?;
    rest(system, &origin).await?;
    let watcher =
        tokio::spawn(watch_markers(system.receiver().clone(), committed.clone(), stopped.clone()));
    let end = Instant::now() + Duration::from_secs(seconds.into());
    while Instant::now() < end {
        let number = mark(&origin).await?;
        let acknowledged = (number, Instant::now());
        committed.lock().unwrap_or_else(PoisonError::into_inner).push(acknowledged);
        tokio::time::sleep(MARKER_PAUSE).await;
    }
    // What is on its way is still seen: the last marker of a settled system has arrived.
    rest(system, &origin).await?;
    tokio::time::sleep(MARKER_PAUSE).await;
    let wall_s = base.elapsed().as_secs_f64();
    stop.send_replace(true);
    let mut written = 0u64;
    while let Some(ended) = load.join_next().await {
        written += ended??;
    }
    let mut sorted_ms = watcher.await??;
    sorted_ms.sort_by(f64::total_cmp);
    Ok(Lags { sorted_ms, rate_per_s: written as f64 / wall_s })
}

type Committed = Arc<Mutex<Vec<(i64, Instant)>>>;

/// Looks at the receiver's marker in a tight loop and returns the lag of every marker in milliseconds.
async fn watch_markers(
    receiver: Server,
    committed: Committed,
    stopped: watch::Receiver<bool>,
) -> Result<Vec<f64>> {
    let session = receiver.try_session().await?;
    let mut seen: Vec<(i64, Instant)> = Vec::new();
    let mut newest = -1;
    while !*stopped.borrow() {
        let number = shown(&session).await?;
        if number > newest {
            seen.push((number, Instant::now()));
            newest = number;
        }
    }
    let committed = committed.lock().unwrap_or_else(PoisonError::into_inner);
    let mut lags = Vec::with_capacity(committed.len());
    for (number, at) in committed.iter() {
        let Some((_, visible)) = seen.iter().find(|(shown, _)| shown >= number) else { continue };
        // A row may be seen before its writer has read the acknowledgement.
        let lag = visible.saturating_duration_since(*at);
        lags.push(lag.as_secs_f64() * 1000.0);
    }
    Ok(lags)
}

/// Writes single-row transactions at a steady pace and returns how many.
async fn write_load(
    origin: Server,
    number: u32,
    pause: Duration,
    stopped: watch::Receiver<bool>,
) -> Result<u64> {
    let session = origin.try_session().await?;
    let sql = "insert into bench_load values ($1, $2, 'about as long as a md5 of it')";
    let statement = session.prepare(sql).await?;
    let session_number = i32::try_from(number)?;
    let mut due = Instant::now();
    let mut written = 0u64;
    while !*stopped.borrow() {
        let id = i64::try_from(written)?;
        session.execute(&statement, &[&session_number, &id]).await?;
        written += 1;
        due += pause;
        tokio::time::sleep_until(due).await;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_measurement_works_on_a_real_pair() -> Result<()> {
        let settings = "fsync = off\ntrack_commit_timestamp = on";
        let system = match System::pglogical(15, settings, 1).await {
            Ok(system) => system,
            Err(error) => {
                eprintln!("skipped: {error:#}");
                return Ok(());
            }
        };
        assert!(drain_single(&system, Pause::Receiver, 50).await? > Duration::ZERO);
        for what in Large::ALL {
            assert!(drain_large(&system, what, 100).await? > Duration::ZERO);
        }
        let lags = lag(&system, 50, 1).await?;
        assert!(lags.sorted_ms.len() > 5 && lags.rate_per_s > 10.0);
        assert!(lags.percentile_ms(0.5) <= lags.percentile_ms(0.99));
        Ok(())
    }

    #[test]
    fn percentiles_are_taken_from_the_sorted_lags() {
        let lags = Lags { sorted_ms: (0..=100).map(f64::from).collect(), rate_per_s: 0.0 };
        assert_eq!(lags.percentile_ms(0.5), 50.0);
        assert_eq!(lags.percentile_ms(0.99), 99.0);
        assert!(Lags { sorted_ms: Vec::new(), rate_per_s: 0.0 }.percentile_ms(0.5).is_nan());
    }
}
