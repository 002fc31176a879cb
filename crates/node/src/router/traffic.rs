//! What passes between clients and nodes, by endpoint and node: counted by one worker, read by those who look.
//!
//! Plain cells in plain arrays, and no clock of its own: counting costs a transaction a few additions.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use synapsedb_core::ids::NodeId;

use super::Endpoint;
use super::account::add;

/// Buckets of a histogram, but for the last, which has no bound.
pub(super) const BUCKETS: usize = 24;
/// The bound of the first bucket; each next one is twice as long.
const FIRST_BOUND_US: u64 = 16;

/// How often something took how long.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    counts: [Cell<u64>; BUCKETS + 1],
    sum_us: Cell<u64>,
}

/// A histogram at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) counts: [u64; BUCKETS + 1],
    pub(super) sum_us: u64,
}

impl Histogram {
    pub(super) fn note(&self, took: Duration) {
        let us = took.as_micros() as u64;
        add(&self.counts[bucket(us)], 1);
        add(&self.sum_us, us);
    }

    fn times(&self) -> Times {
        let mut counts = [0; BUCKETS + 1];
        for (count, cell) in counts.iter_mut().zip(&self.counts) {
            *count = cell.get();
        }
        Times { counts, sum_us: self.sum_us.get() }
    }
}

/// The bucket of a duration: the first whose bound is not shorter.
fn bucket(us: u64) -> usize {
    let doublings = u64::BITS - (us.saturating_sub(1) / FIRST_BOUND_US).leading_zeros();
    (doublings as usize).min(BUCKETS)
}

/// The bound of a bucket in seconds; that of the last is infinite, as the exposition has it.
pub(super) fn bound_seconds(bucket: usize) -> f64 {
    if bucket < BUCKETS { (FIRST_BOUND_US << bucket) as f64 / 1e6 } else { f64::MAX }
}

impl Times {
    pub(super) fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum_us += other.sum_us;
    }
}

/// The transactions of one endpoint on one node.
#[derive(Debug)]
pub(super) struct Flow {
    endpoint: Endpoint,
    node: NodeId,
    current: Cell<u64>,
    current_max: Cell<u64>,
    total: Cell<u64>,
    received: Cell<u64>,
    sent: Cell<u64>,
    durations: Histogram,
}

impl Flow {
    /// A client has got a server connection.
    pub(super) fn begin(&self) {
        add(&self.total, 1);
        add(&self.current, 1);
        self.current_max.set(self.current_max.get().max(self.current.get()));
    }

    /// It has let go of it; so many bytes came from the client and went to it.
    pub(super) fn end(&self, received: u64, sent: u64) {
        self.current.set(self.current.get().saturating_sub(1));
        add(&self.received, received);
        add(&self.sent, sent);
    }

    /// How long a transaction had a server connection.
    pub(super) fn note(&self, took: Duration) {
        self.durations.note(took);
    }

    fn totals(&self) -> FlowTotals {
        FlowTotals {
            endpoint: self.endpoint,
            node: self.node,
            counts: FlowCounts {
                current: self.current.get(),
                current_max: self.current_max.get(),
                total: self.total.get(),
                received: self.received.get(),
                sent: self.sent.get(),
            },
            durations: self.durations.times(),
        }
    }
}

/// A flow at one moment.
#[derive(Clone, Debug)]
pub(super) struct FlowTotals {
    pub(super) endpoint: Endpoint,
    pub(super) node: NodeId,
    pub(super) counts: FlowCounts,
    pub(super) durations: Times,
}

/// What was counted of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct FlowCounts {
    /// Clients that have a server connection now.
    pub(super) current: u64,
    /// The most at once; of several workers the sum of theirs.
    pub(super) current_max: u64,
    /// How often a client got one.
    pub(super) total: u64,
    /// Bytes from clients, of what has ended.
    pub(super) received: u64,
    /// Bytes to clients, of what has ended.
    pub(super) sent: u64,
}

impl FlowCounts {
    pub(super) fn add(&mut self, other: &Self) {
        self.current += other.current;
        self.current_max += other.current_max;
        self.total += other.total;
        self.received += other.received;
        self.sent += other.sent;
    }
}

/// All that passes a worker.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    flows: RefCell<Vec<Rc<Flow>>>,
    waits: [Histogram; Endpoint::COUNT],
}

impl Traffic {
    /// There are as many for each node as endpoints.
    pub(super) fn flow(&self, endpoint: Endpoint, node: NodeId) -> Rc<Flow> {
        let mut flows = self.flows.borrow_mut();
        let known = flows.iter().find(|flow| flow.node == node && flow.endpoint == endpoint);
        if let Some(flow) = known {
            return Rc::clone(flow);
        }
        let flow = Rc::new(Flow {
            endpoint,
            node,
            current: Cell::default(),
            current_max: Cell::default(),
            total: Cell::default(),
            received: Cell::default(),
            sent: Cell::default(),
            durations: Histogram::default(),
        });
        flows.push(Rc::clone(&flow));
        flow
    }

    /// A client has waited for a server connection.
    pub(super) fn waited(&self, endpoint: Endpoint, took: Duration) {
        self.waits[endpoint as usize].note(took);
    }

    pub(super) fn flows(&self) -> Vec<FlowTotals> {
        self.flows.borrow().iter().map(|flow| flow.totals()).collect()
    }

    /// How long clients have waited, by endpoint.
    pub(super) fn waits(&self) -> [Times; Endpoint::COUNT] {
        std::array::from_fn(|place| self.waits[place].times())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_that_holds_it() {
        for (us, expected) in
            [(0, 0), (1, 0), (16, 0), (17, 1), (32, 1), (33, 2), (1_000, 6), (u64::MAX, BUCKETS)]
        {
            let place = bucket(us);
            assert_eq!(place, expected, "{us}");
            assert!(bound_seconds(place) >= us as f64 / 1e6);
        }
        let histogram = Histogram::default();
        histogram.note(Duration::from_millis(1));
        histogram.note(Duration::from_secs(3_600));
        let mut times = histogram.times();
        times.add(&histogram.times());
        assert_eq!((times.counts[6], times.counts[BUCKETS]), (2, 2));
        assert_eq!(times.sum_us, 2 * 3_600_001_000);
    }
}
