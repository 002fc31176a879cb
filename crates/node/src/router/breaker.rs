//! Circuit breakers: a node whose server could not be reached is left alone for a while, then tried by one. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use synapsedb_core::ids::NodeId;

/// The longest rest, as a multiple of the shortest.
const REST_MAX_FACTOR: u32 = 64;

/// The nodes that could not be reached lately. A node without an entry is closed: it is used.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    open: BTreeMap<NodeId, Open>,
}

#[derive(Debug)]
struct Open {
    failures: u32,
    /// Until then nobody tries; after it, one does.
    until: Instant,
}

/// What a breaker lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Passage {
    /// Everybody.
    Closed,
    /// One, to find out.
    HalfOpen,
    /// Nobody, unless there is no other node.
    Open,
}

impl Breakers {
    /// What the node's breaker lets through at `now`.
    pub(super) fn passage(&self, node: NodeId, now: Instant) -> Passage {
        match self.open.get(&node) {
            None => Passage::Closed,
            Some(open) if open.until <= now => Passage::HalfOpen,
            Some(_) => Passage::Open,
        }
    }

    /// Somebody tries a half-open node: the others wait for what comes of it.
    pub(super) fn tried(&mut self, node: NodeId, now: Instant, rest: Duration) {
        if let Some(open) = self.open.get_mut(&node) {
            open.until = now + rest;
        }
    }

    /// The node could not be reached.
    pub(super) fn failed(&mut self, node: NodeId, now: Instant, rest: Duration) {
        let open = self.open.entry(node).or_insert(Open { failures: 0, until: now });
        let factor = 1_u32.checked_shl(open.failures).unwrap_or(REST_MAX_FACTOR);
        open.failures += 1;
        open.until = now + rest * factor.min(REST_MAX_FACTOR);
    }

    /// The node was reached.
    pub(super) fn reached(&mut self, node: NodeId) {
        self.open.remove(&node);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn closed_open_half_open() {
        let (node, rest) = (NodeId::new(1).unwrap(), Duration::from_secs(1));
        let start = Instant::now();
        let mut breakers = Breakers::default();
        assert_eq!(breakers.passage(node, start), Passage::Closed);
        breakers.failed(node, start, rest);
        assert_eq!(breakers.passage(node, start), Passage::Open);
        assert_eq!(breakers.passage(node, start + rest), Passage::HalfOpen);
        breakers.tried(node, start + rest, rest);
        assert_eq!(breakers.passage(node, start + rest), Passage::Open);
        // Each failure doubles the rest, up to a limit.
        breakers.failed(node, start, rest);
        assert_eq!(breakers.passage(node, start + rest), Passage::Open);
        assert_eq!(breakers.passage(node, start + rest * 2), Passage::HalfOpen);
        for _ in 0..100 {
            breakers.failed(node, start, rest);
        }
        assert_eq!(breakers.passage(node, start + rest * 64), Passage::HalfOpen);
        breakers.reached(node);
        assert_eq!(breakers.passage(node, start), Passage::Closed);
    }
}
