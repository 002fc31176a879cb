//! `pgbench -S` at every protocol and number of clients: speed, time and cost of all ways in turn.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::bed::Bed;
use super::pgbench::{self, Outcome, Point, Protocol};
use super::report::Report;
use super::{Options, Part, Route};
use crate::bench::cpu::spent_s;
use crate::binary::Binary;

/// How long a process is watched that has nothing to do.
const IDLE: Duration = Duration::from_secs(3);
/// The key of the router's configuration that says how many single-threaded loops it has.
const WORKERS: &str = "workers";

/// What a point costs one way.
struct Measured {
    outcome: Outcome,
    /// Processor time of the proxy, in seconds.
    spent_s: Option<f64>,
}

/// One round.
pub(super) async fn measure(
    bed: &Bed,
    options: &Options,
    round: u32,
    report: &mut Report,
) -> Result<()> {
    let mut idle = Vec::new();
    for route in turn(&options.of(&Route::ALL), round) {
        let Some(pid) = bed.pid(route, false)? else { continue };
        let share = idle_share(pid).await?;
        idle.push((route, share));
        if options.has(Part::Cpu) {
            report.add("processor time when idle", route, share * 100.0, "% of a core");
        }
    }
    let share = |route| idle.iter().find(|(of, _)| *of == route).map_or(0.0, |(_, share)| *share);
    for protocol in Protocol::ALL {
        for clients in &options.clients {
            let point = Point { protocol, clients: *clients, seconds: options.seconds };
            let mut direct_us = None;
            // The direct way is the first of each point: what a proxy adds is told against it.
            for route in turn(&options.of(&Route::ALL), round) {
                let measured = one(bed, route, point).await?;
                if route == Route::Direct {
                    direct_us = Some(measured.outcome.percentile_us(0.5));
                }
                add(report, options, route, point, &measured, share(route), direct_us);
            }
        }
    }
    Ok(())
}

/// The same ways, another one first in each round, but for the direct one.
pub(super) fn turn(routes: &[Route], round: u32) -> Vec<Route> {
    let (mut turned, mut proxies): (Vec<_>, Vec<_>) =
        routes.iter().copied().partition(|route| *route == Route::Direct);
    if !proxies.is_empty() {
        let first = round as usize % proxies.len();
        proxies.rotate_left(first);
    }
    turned.extend(proxies);
    turned
}

async fn one(bed: &Bed, route: Route, point: Point) -> Result<Measured> {
    let prepared = point.protocol == Protocol::Prepared;
    let pid = bed.pid(route, prepared)?;
    let entrance = bed.entrance(route, prepared)?;
    let spent = || pid.map(spent_s).transpose();
    let before = spent()?;
    let outcome = pgbench::select(&entrance, point).await.with_context(|| route.name())?;
    let spent_s = before.zip(spent()?).map(|(before, after)| after - before);
    Ok(Measured { outcome, spent_s })
}

fn add(
    report: &mut Report,
    options: &Options,
    route: Route,
    point: Point,
    measured: &Measured,
    idle: f64,
    direct_us: Option<f64>,
) {
    let outcome = &measured.outcome;
    let what = format!("{}, {} clients", point.protocol.name(), point.clients);
    if options.has(Part::Tps) {
        report.add(&format!("tps, {what}"), route, outcome.tps, "tx/s");
    }
    if options.has(Part::Cpu)
        && let Some(spent_s) = measured.spent_s
    {
        let per_query = |seconds: f64| seconds * 1e6 / outcome.transactions as f64;
        report.add(&format!("cost, {what}"), route, per_query(spent_s), "us/query");
        let net = (spent_s - idle * outcome.elapsed.as_secs_f64()).max(0.0);
        report.add(&format!("cost without idle, {what}"), route, per_query(net), "us/query");
    }
    if options.has(Part::Latency) {
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            let figure = format!("time {name}, {what}");
            report.add(&figure, route, outcome.percentile_us(share), "us");
        }
        if point.clients == 1
            && route != Route::Direct
            && let Some(direct_us) = direct_us
        {
            let added = outcome.percentile_us(0.5) - direct_us;
            report.add(&format!("added time p50, {what}"), route, added, "us");
        }
    }
}

/// Which share of a core a process takes that has nothing to do.
async fn idle_share(pid: u32) -> Result<f64> {
    let before = spent_s(pid)?;
    tokio::time::sleep(IDLE).await;
    Ok((spent_s(pid)? - before) / IDLE.as_secs_f64())
}

/// The router with one and with two workers.
pub(super) async fn measure_workers(
    binary: &Binary,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let mut beds = Vec::new();
    for workers in [1, 2] {
        let key = [(WORKERS, toml::Value::Integer(workers))];
        beds.push((workers, Bed::make(binary, options, &[], &key).await?));
    }
    let most = options.clients.iter().copied().max().unwrap_or(1);
    for _ in 1..=options.rounds {
        for (workers, bed) in &beds {
            for protocol in Protocol::ALL {
                let point = Point { protocol, clients: most, seconds: options.seconds };
                let measured = one(bed, Route::Synapsedb, point).await?;
                let what = format!("{}, {most} clients, workers = {workers}", protocol.name());
                report.add(&format!("tps, {what}"), Route::Synapsedb, measured.outcome.tps, "tx/s");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_proxy_has_its_turn_and_the_direct_way_comes_first() {
        let firsts: Vec<_> = (0..4).map(|round| turn(&Route::ALL, round)[1]).collect();
        assert_eq!(firsts, &Route::ALL[1..]);
        assert!((0..4).all(|round| turn(&Route::ALL, round)[0] == Route::Direct));
        assert!(turn(&[], 1).is_empty());
    }
}
