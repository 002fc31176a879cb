//! foca and its timers: messages and elapsed time in, messages to send out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use bytes::Bytes;
use foca::{AccumulatingRuntime, Foca, NoCustomBroadcast, PeriodicParams, PostcardCodec, Timer};
use foca_rand::rngs::StdRng;
use synapsedb_core::ids::NodeId;
use tokio::time::Instant;

use super::Config;
use super::life::Life;

/// The SWIM protocol of this node.
pub(super) struct Swim {
    foca: Foca<Life, PostcardCodec, StdRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Life>,
    timers: BinaryHeap<Reverse<(Instant, Timer<Life>)>>,
}

impl Swim {
    pub(super) fn new(config: &Config, life: Life) -> Self {
        let rng: StdRng = foca_rand::make_rng();
        Self {
            foca: Foca::new(life, foca_config(config), rng, PostcardCodec),
            runtime: AccumulatingRuntime::new(),
            timers: BinaryHeap::new(),
        }
    }

    pub(super) fn life(&self) -> Life {
        *self.foca.identity()
    }

    /// What is believed of each node.
    pub(super) fn beliefs(&self) -> BTreeMap<NodeId, (Life, foca::State)> {
        let members = self.foca.iter_membership_state();
        members.map(|member| (member.id().node, (*member.id(), member.state()))).collect()
    }

    pub(super) fn message(&mut self, bytes: &[u8], now: Instant) {
        let result = self.foca.handle_data(bytes, &mut self.runtime);
        self.done("a message", result, now);
    }

    /// Somebody was heard directly: an unknown life joins, and one that was declared down is told so, which makes it
    /// come back as a new life.
    pub(super) fn heard(&mut self, life: Life, now: Instant) {
        let known = self.foca.iter_membership_state().find(|member| member.id().node == life.node);
        let (newer, down) = match known {
            None => (true, false),
            Some(member) if *member.id() == life => (false, member.state() == foca::State::Down),
            Some(member) => (foca::Identity::win_addr_conflict(&life, member.id()), false),
        };
        if newer {
            let joined = std::iter::once(foca::Member::alive(life));
            let result = self.foca.apply_many(joined, true, &mut self.runtime);
            self.done("a join", result, now);
        }
        if newer || down {
            let result = self.foca.announce(life, &mut self.runtime);
            self.done("an announcement", result, now);
        }
    }

    /// Somebody said goodbye.
    pub(super) fn gone(&mut self, life: Life, now: Instant) {
        let known = self.foca.iter_membership_state().any(|member| *member.id() == life);
        if known {
            let left = std::iter::once(foca::Member::down(life));
            let result = self.foca.apply_many(left, true, &mut self.runtime);
            self.done("a goodbye", result, now);
        }
    }

    /// Peers remember a later start of this node than this one (its clock was set back): start after that.
    pub(super) fn outlive(&mut self, remembered: Life, now: Instant) {
        let life = Life { start: remembered.start.saturating_add(1), ..self.life() };
        let result = self.foca.change_identity(life, &mut self.runtime);
        self.done("a change of identity", result, now);
    }

    pub(super) fn leave(&mut self, now: Instant) {
        let result = self.foca.leave_cluster(&mut self.runtime);
        self.done("leaving", result, now);
    }

    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((due, _))| *due)
    }

    /// Runs the timers that are due. A suspicion does not become a death while `is_fresh` says that the node is
    /// heard directly; if it still does not answer probes, the next one raises the suspicion anew.
    pub(super) fn run_timers(&mut self, now: Instant, is_fresh: impl Fn(NodeId) -> bool) {
        while self.next_timer().is_some_and(|due| due <= now) {
            let Some(Reverse((_, timer))) = self.timers.pop() else { return };
            let refuted = match &timer {
                Timer::ChangeSuspectToDown { member_id, .. } => is_fresh(member_id.node),
                _ => false,
            };
            if !refuted {
                let result = self.foca.handle_timer(timer, &mut self.runtime);
                self.done("a timer", result, now);
            }
        }
    }

    /// What is to be sent now.
    pub(super) fn next_to_send(&mut self) -> Option<(NodeId, Bytes)> {
        self.runtime.to_send().map(|(life, bytes)| (life.node, bytes))
    }

    fn done(&mut self, what: &str, result: Result<(), foca::Error>, now: Instant) {
        if let Err(error) = result {
            // foca recovers by itself; late timers on a busy machine end here too.
            tracing::debug!("gossip: {what} was not handled: {error}");
        }
        while let Some((delay, timer)) = self.runtime.to_schedule() {
            self.timers.push(Reverse((now + delay, timer)));
        }
        // The states are read after every step, so the notifications tell nothing new.
        while self.runtime.to_notify().is_some() {}
    }
}

fn foca_config(config: &Config) -> foca::Config {
    let ms = Duration::from_millis;
    let count = |number| NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN);
    let every = |frequency, number| Some(PeriodicParams { frequency, num_members: count(number) });
    foca::Config {
        probe_period: ms(config.probe_period_ms),
        probe_rtt: ms(config.probe_rtt_ms),
        num_indirect_probes: count(3),
        max_transmissions: NonZeroU8::new(10).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: ms(config.suspect_to_down_ms),
        // Nodes are few, and each is remembered once: nobody is forgotten.
        remove_down_after: None,
        max_packet_size: count(config.datagram_bytes_max),
        notify_down_members: true,
        periodic_announce: every(ms(5_000), 1),
        periodic_announce_to_down_members: every(ms(1_000), 2),
        periodic_gossip: every(ms(config.heartbeat_ms), 3),
    }
}
