//! Thousands of clients: what an idle one costs in memory, and how they share a few server connections.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use super::bed::Bed;
use super::pgbench::{self, Point, Protocol};
use super::report::Report;
use super::{Options, Part, Route};
use crate::client::{Server, Session};
use crate::process;

/// Figures that have a bar.
pub(super) const PER_CLIENT: &str = "resident memory per idle client";
pub(super) const SPREAD: &str = "crowd, p99 by p50";
pub(super) const ERRORS: &str = "crowd, errors";

/// Logins at once while the idle clients come.
const LOGINS: usize = 16;
/// How long the idle clients have been idle when memory is read.
const SETTLED: Duration = Duration::from_secs(3);

/// Both figures of all ways, once.
pub(super) async fn measure(bed: &Bed, options: &Options, report: &mut Report) -> Result<()> {
    for route in options.of(&[Route::Synapsedb, Route::Pgbouncer]) {
        if options.has(Part::Memory) {
            idle(bed, route, options, report).await.with_context(|| route.name())?;
        }
    }
    for route in options.of(&[Route::Synapsedb, Route::Pgbouncer]) {
        if options.has(Part::Crowd) {
            crowd(bed, route, options, report).await;
        }
    }
    Ok(())
}

async fn idle(bed: &Bed, route: Route, options: &Options, report: &mut Report) -> Result<()> {
    let (server, pid) = (bed.entrance(route, false)?, bed.pid(route, false)?);
    let pid = pid.context("a process")?;
    let resident = || process::memory(pid).context("the process is gone").map(|now| now.now_bytes);
    // What the first clients cost once is no cost of a client.
    drop(log_in(&server, LOGINS).await?);
    tokio::time::sleep(SETTLED).await;
    let before = resident()?;
    let sessions = log_in(&server, options.crowd as usize).await?;
    tokio::time::sleep(SETTLED).await;
    let bytes = resident()?.saturating_sub(before) as f64 / sessions.len() as f64;
    report.add(PER_CLIENT, route, bytes, "bytes");
    // All are still there and of use.
    for session in sessions.iter().step_by(100) {
        session.rows("select 1").await.context("an idle client")?;
    }
    Ok(())
}

/// Sessions that have asked once and are idle since.
async fn log_in(server: &Server, count: usize) -> Result<Vec<Session>> {
    let mut running = JoinSet::new();
    let mut sessions = Vec::with_capacity(count);
    for _ in 0..count {
        if running.len() >= LOGINS
            && let Some(ended) = running.join_next().await
        {
            sessions.push(ended??);
        }
        let server = server.clone();
        running.spawn(async move {
            let session = server.try_session().await?;
            session.rows("select 1").await?;
            anyhow::Ok(session)
        });
    }
    while let Some(ended) = running.join_next().await {
        sessions.push(ended??);
    }
    Ok(sessions)
}

/// An error of a client is a figure here, not the end of the benchmark.
async fn crowd(bed: &Bed, route: Route, options: &Options, report: &mut Report) {
    let measured = async || {
        let server = bed.entrance(route, false)?;
        let clients = options.crowd;
        let connecting_s = pgbench::connecting_s(&server, clients).await?;
        let seconds = options.crowd_seconds + connecting_s.ceil() as u32;
        pgbench::select(&server, Point { protocol: Protocol::Simple, clients, seconds }).await
    };
    match measured().await {
        Ok(outcome) => {
            report.add(ERRORS, route, 0.0, "");
            report.add("crowd, tps", route, outcome.tps, "tx/s");
            let [p50, p99] = [0.5, 0.99].map(|share| outcome.percentile_us(share));
            report.add("crowd, p50", route, p50 / 1000.0, "ms");
            report.add("crowd, p99", route, p99 / 1000.0, "ms");
            report.add(SPREAD, route, p99 / p50, "");
        }
        Err(error) => {
            eprintln!("{}: {error:#}", route.name());
            report.add(ERRORS, route, 1.0, "");
        }
    }
}
