//! The bars: what the router has to reach beside the others of the same run.

use std::fmt;

use serde::Serialize;

use super::Route;
use super::pgbench::Protocol;

/// Bytes of resident memory that an idle client may cost.
const IDLE_BYTES_MAX: f64 = 4096.0;
/// How much longer than the median client of a crowd one in a hundred may wait.
const CROWD_SPREAD_MAX: f64 = 3.0;
/// The share of PgBouncer's speed that a large answer must reach.
const COPY_SHARE_MIN: f64 = 0.95;

/// Gives the median of a figure, if it was measured.
type Median<'a> = dyn Fn(&str, Route) -> Option<f64> + 'a;

/// A bar, and whether it was reached.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Judged {
    what: String,
    value: f64,
    bar: f64,
    /// The value must not be more than the bar, or else not less.
    at_most: bool,
    met: bool,
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.met { "met   " } else { "missed" };
        let sign = if self.at_most { "<=" } else { ">=" };
        write!(f, "{verdict} {}: {:.2} (bar {sign} {:.2})", self.what, self.value, self.bar)
    }
}

fn at_most(what: &str, value: f64, bar: f64) -> Judged {
    Judged { what: what.to_owned(), value, bar, at_most: true, met: value <= bar }
}

fn at_least(what: &str, value: f64, bar: f64) -> Judged {
    Judged { what: what.to_owned(), value, bar, at_most: false, met: value >= bar }
}

/// All bars whose figures were measured.
pub(super) fn judge(median: &Median<'_>, clients: &[u32]) -> Vec<Judged> {
    let mut bars = Vec::new();
    let pair = |what: &str, other| median(what, Route::Synapsedb).zip(median(what, other));
    for protocol in Protocol::ALL {
        for clients in clients {
            let point = format!("{}, {clients} clients", protocol.name());
            let tps = format!("tps, {point}");
            if let Some((ours, theirs)) = pair(&tps, Route::Pgbouncer) {
                bars.push(at_least(&format!("{tps}, by PgBouncer's"), ours / theirs, 1.0));
            }
            if let Some((ours, theirs)) = pair(&tps, Route::Haproxy).filter(|_| *clients > 1) {
                bars.push(at_least(&format!("{tps}, by HAProxy's"), ours / theirs, 1.0));
            }
            let cost = format!("cost, {point}");
            if let Some((ours, theirs)) = pair(&cost, Route::Pgbouncer) {
                bars.push(at_most(&format!("{cost}, PgBouncer's"), ours, theirs));
            }
            let added = format!("added time p50, {point}");
            if let Some((ours, theirs)) = pair(&added, Route::Pgbouncer) {
                bars.push(at_most(&format!("{added}, PgBouncer's"), ours, theirs));
            }
        }
    }
    if let Some(bytes) = median(super::crowd::PER_CLIENT, Route::Synapsedb) {
        bars.push(at_most(super::crowd::PER_CLIENT, bytes, IDLE_BYTES_MAX));
    }
    if let Some(spread) = median(super::crowd::SPREAD, Route::Synapsedb) {
        bars.push(at_most(super::crowd::SPREAD, spread, CROWD_SPREAD_MAX));
    }
    if let Some(errors) = median(super::crowd::ERRORS, Route::Synapsedb) {
        bars.push(at_most(super::crowd::ERRORS, errors, 0.0));
    }
    if let Some((ours, theirs)) = pair(super::copy::SPEED, Route::Pgbouncer) {
        let what = format!("{}, by PgBouncer's", super::copy::SPEED);
        bars.push(at_least(&what, ours / theirs, COPY_SHARE_MIN));
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slower_and_dearer_than_pgbouncer_is_missed() {
        let median = |what: &str, route| match (what, route) {
            ("tps, simple, 16 clients", Route::Synapsedb) => Some(9.0),
            ("tps, simple, 16 clients", Route::Pgbouncer) => Some(10.0),
            ("cost, simple, 16 clients", Route::Synapsedb) => Some(20.0),
            ("cost, simple, 16 clients", Route::Pgbouncer) => Some(25.0),
            _ => None,
        };
        let judged = judge(&median, &[16]);
        assert_eq!(judged.iter().map(|bar| bar.met).collect::<Vec<_>>(), [false, true]);
        assert!(judged[0].to_string().starts_with("missed tps, simple, 16 clients"));
    }
}
