//! Runs pgbench and reads what it found.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::client::Server;
use crate::postgres::programs;

/// Transactions whose times are logged at more than one client: writing all of them would be a load of its own.
const SAMPLED: f64 = 0.1;

/// Clients of one thread of pgbench in a crowd.
const CLIENTS_PER_THREAD: u32 = 250;

/// How statements are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// As one text.
    Simple,
    /// As text and parameters, parsed each time.
    Extended,
    /// As parameters of a statement that was parsed before.
    Prepared,
}

impl Protocol {
    /// All, in the order in which they are measured.
    pub(super) const ALL: [Self; 3] = [Self::Simple, Self::Extended, Self::Prepared];

    /// As pgbench calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
        }
    }
}

/// One point: what is run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    /// How statements are sent.
    pub(super) protocol: Protocol,
    /// Clients at once.
    pub(super) clients: u32,
    /// For how long.
    pub(super) seconds: u32,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Transactions per second without the time of connecting.
    pub(super) tps: f64,
    /// Transactions.
    pub(super) transactions: u64,
    /// Times of the sampled transactions, sorted, in microseconds.
    pub(super) times_us: Vec<u64>,
    /// From the start of pgbench to its end, connecting included.
    pub(super) elapsed: Duration,
}

impl Outcome {
    /// The time below which this share of all times lies, in microseconds.
    pub(super) fn percentile_us(&self, share: f64) -> f64 {
        let index = (share * self.times_us.len().saturating_sub(1) as f64).round() as usize;
        self.times_us.get(index).map_or(f64::NAN, |time| *time as f64)
    }
}

/// Makes and fills pgbench's tables.
///
/// # Errors
/// What pgbench says.
pub(super) async fn fill(server: &Server, scale: u32) -> Result<()> {
    let scale = scale.to_string();
    run(server, &["-i", "-q", "-s", &scale]).await?;
    server.try_rows("checkpoint").await.map(drop).or_else(|_| anyhow::Ok(()))
}

/// How long so many clients take to connect, in seconds: pgbench counts it as part of the time that it is given.
///
/// # Errors
/// What pgbench says.
pub(super) async fn connecting_s(server: &Server, clients: u32) -> Result<f64> {
    let count = clients.to_string();
    let threads = threads(clients).to_string();
    let text = run(server, &["-n", "-S", "-c", &count, "-j", &threads, "-t", "1"]).await?;
    let line = text.lines().find_map(|line| line.strip_prefix("initial connection time = "));
    let milliseconds = line.and_then(|line| line.split(' ').next());
    let milliseconds: f64 = milliseconds.context("pgbench says no time of connecting")?.parse()?;
    Ok(milliseconds / 1000.0)
}

/// Runs the read-only script at one point.
///
/// # Errors
/// What pgbench says, also when a single client of it got an error.
pub(super) async fn select(server: &Server, point: Point) -> Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let prefix = folder.path().join("log").display().to_string();
    let (clients, seconds) = (point.clients.to_string(), point.seconds.to_string());
    let threads = threads(point.clients).to_string();
    let sampled = if point.clients == 1 { 1.0 } else { SAMPLED };
    let rate = format!("--sampling-rate={sampled}");
    let log = format!("--log-prefix={prefix}");
    let mut arguments = vec!["-n", "-S", "-M", point.protocol.name(), "-l", &rate, &log];
    arguments.extend(["-c", &clients, "-j", &threads, "-T", &seconds]);
    let begin = std::time::Instant::now();
    let text = run(server, &arguments).await?;
    let elapsed = begin.elapsed();
    let (tps, transactions) = figures(&text)?;
    Ok(Outcome { tps, transactions, times_us: times(folder.path())?, elapsed })
}

/// Threads of pgbench: two, and more for a crowd, since each looks at all its clients whenever one has an answer.
fn threads(clients: u32) -> u32 {
    clients.min(2).max(clients / CLIENTS_PER_THREAD)
}

async fn run(server: &Server, arguments: &[&str]) -> Result<String> {
    let mut pgbench = Command::new(programs(None)?.join("pgbench"));
    pgbench
        .args(arguments)
        .args(["-h", "127.0.0.1", "-p", &server.port.to_string()])
        .args(["-U", &server.user, &server.database])
        .env("PGPASSWORD", &server.password)
        .env("PGSSLMODE", "disable")
        .env("PGGSSENCMODE", "disable");
    let output = tokio::task::spawn_blocking(move || pgbench.output()).await??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || said.contains("aborted") {
        let mut lines: Vec<_> = said.lines().collect();
        lines.dedup();
        lines.truncate(10);
        bail!("pgbench {} at {}: {}", arguments.join(" "), server.name, lines.join("\n"));
    }
    Ok(text)
}

/// Transactions per second, and transactions.
fn figures(text: &str) -> Result<(f64, u64)> {
    let after = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
    let word = |text: &str| text.trim().split([' ', '/']).next().map(str::to_owned);
    let tps = after("tps = ").and_then(word).context("pgbench says no tps")?;
    let count = after("number of transactions actually processed: ").and_then(word);
    let failed = after("number of failed transactions: ").and_then(word);
    if let Some(failed) = failed.filter(|failed| failed != "0") {
        bail!("pgbench: {failed} transactions failed");
    }
    Ok((tps.parse()?, count.context("pgbench does not say how many")?.parse()?))
}

/// The third column of every log file.
fn times(folder: &Path) -> Result<Vec<u64>> {
    let mut times = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let text = std::fs::read_to_string(entry?.path())?;
        // The last line may be cut: pgbench was told to end by the clock.
        let third = text.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok());
        times.extend::<Vec<u64>>(third.collect());
    }
    times.sort_unstable();
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_pgbench_prints() -> Result<()> {
        let text = "number of transactions actually processed: 1200\n\
                    number of failed transactions: 0 (0.000%)\n\
                    tps = 240.5 (without initial connection time)\n";
        assert_eq!(figures(text)?, (240.5, 1200));
        assert!(figures(&text.replace(": 0 (", ": 3 (")).is_err());
        assert!(figures("").is_err());
        Ok(())
    }

    #[test]
    fn a_crowd_has_more_threads() {
        assert_eq!([1, 2, 100, 5_000].map(threads), [1, 2, 2, 20]);
    }

    #[test]
    fn reads_the_times_of_all_threads() -> Result<()> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("log.1"), "0 1 90 0 1 2\n0 2 30 0 1 3\n")?;
        std::fs::write(folder.path().join("log.1.1"), "1 1 60 0 1 2\n")?;
        let times_us = times(folder.path())?;
        assert_eq!(times_us, [30, 60, 90]);
        let outcome =
            Outcome { tps: 1.0, transactions: 3, times_us, elapsed: Duration::from_secs(1) };
        assert_eq!(outcome.percentile_us(0.5), 60.0);
        assert_eq!(outcome.percentile_us(0.99), 90.0);
        Ok(())
    }
}
