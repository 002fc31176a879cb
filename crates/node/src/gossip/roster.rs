//! What this node knows of every member: the material of the view.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use synapsedb_core::ids::{Incarnation, NodeId};
use tokio::time::Instant;

use super::life::Life;
use super::message::{Heard, Heartbeat};
use super::{Facts, MemberState, MemberView, View};

/// All members, this node included.
pub(super) struct Roster {
    me: NodeId,
    incarnation: Incarnation,
    started: Instant,
    facts: Facts,
    others: BTreeMap<NodeId, Other>,
}

/// What is known of another member.
struct Other {
    state: MemberState,
    since: Instant,
    heartbeat: Option<(Instant, Heartbeat)>,
    /// The life that said goodbye.
    left: Option<Life>,
}

impl Roster {
    pub(super) fn new(
        me: NodeId,
        incarnation: Incarnation,
        others: Vec<NodeId>,
        now: Instant,
    ) -> Self {
        let others = others.into_iter().map(|node| (node, Other::unknown(now))).collect();
        Self { me, incarnation, started: now, facts: Facts::default(), others }
    }

    /// Forgets who is no member any more, and begins to listen to new ones.
    pub(super) fn set_others(&mut self, others: &BTreeSet<NodeId>, now: Instant) {
        self.others.retain(|node, _| others.contains(node));
        for node in others {
            self.others.entry(*node).or_insert_with(|| Other::unknown(now));
        }
    }

    /// Answers whether the change is worth a heartbeat of its own.
    pub(super) fn publish(&mut self, facts: Facts) -> bool {
        let urgent = (facts.postgres_ready, facts.clock_set_back)
            != (self.facts.postgres_ready, self.facts.clock_set_back);
        self.facts = facts;
        urgent
    }

    pub(super) fn facts(&self) -> Facts {
        self.facts.clone()
    }

    /// Takes a heartbeat in; an older one than the last, or one of an earlier life, is ignored.
    pub(super) fn heard(&mut self, now: Instant, heartbeat: Heartbeat) -> bool {
        let Some(other) = self.others.get_mut(&heartbeat.life.node) else { return false };
        let newer = other.heartbeat.as_ref().is_none_or(|(_, last)| {
            (heartbeat.life, heartbeat.counter) > (last.life, last.counter)
        });
        if newer {
            other.heartbeat = Some((now, heartbeat));
        }
        newer
    }

    pub(super) fn said_goodbye(&mut self, life: Life) {
        if let Some(other) = self.others.get_mut(&life.node) {
            other.left = Some(life);
        }
    }

    /// Whether the last heartbeat of `node` is younger than `age`.
    pub(super) fn is_fresh(&self, node: NodeId, now: Instant, age: Duration) -> bool {
        let heartbeat = self.others.get(&node).and_then(|other| other.heartbeat.as_ref());
        heartbeat.is_some_and(|(at, _)| now.duration_since(*at) < age)
    }

    /// Takes over what SWIM believes; answers the changes.
    pub(super) fn believe(
        &mut self,
        believed: &BTreeMap<NodeId, (Life, foca::State)>,
        now: Instant,
        fresh: Duration,
    ) -> Vec<(NodeId, MemberState)> {
        let mut changes = Vec::new();
        for (&node, other) in &mut self.others {
            let fresh =
                other.heartbeat.as_ref().is_some_and(|(at, _)| now.duration_since(*at) < fresh);
            let state = match believed.get(&node) {
                None => MemberState::Down,
                Some((_, foca::State::Alive)) => MemberState::Alive,
                Some((_, foca::State::Suspect)) if fresh => MemberState::Alive,
                Some((_, foca::State::Suspect)) => MemberState::Suspect,
                Some((life, foca::State::Down)) if other.left == Some(*life) => MemberState::Left,
                Some((_, foca::State::Down)) => MemberState::Down,
            };
            if state != other.state {
                (other.state, other.since) = (state, now);
                changes.push((node, state));
            }
        }
        changes
    }

    /// This node's row of the reachability matrix, for its heartbeats.
    pub(super) fn hears(&self, now: Instant) -> BTreeMap<NodeId, Heard> {
        let row = self.others.iter().filter_map(|(&node, other)| {
            let (at, heartbeat) = other.heartbeat.as_ref()?;
            let heard = Heard {
                incarnation: heartbeat.life.incarnation,
                start: heartbeat.life.start,
                age_ms: u32::try_from(now.duration_since(*at).as_millis()).unwrap_or(u32::MAX),
            };
            Some((node, heard))
        });
        row.collect()
    }

    pub(super) fn view(&self, now: Instant) -> View {
        let ms = |since: Instant| {
            u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX)
        };
        let mut members: BTreeMap<_, _> =
            self.others.iter().map(|(&node, other)| (node, other.view(&ms))).collect();
        let own = MemberView {
            state: MemberState::Alive,
            incarnation: self.incarnation,
            heartbeat_age_ms: Some(0),
            facts: Some(self.facts.clone()),
            hears: self
                .others
                .iter()
                .filter_map(|(&node, other)| Some((node, ms(other.heartbeat.as_ref()?.0))))
                .collect(),
            since_ms: ms(self.started),
        };
        members.insert(self.me, own);
        View { members }
    }
}

impl Other {
    fn unknown(now: Instant) -> Self {
        Self { state: MemberState::Down, since: now, heartbeat: None, left: None }
    }

    fn view(&self, ms: &impl Fn(Instant) -> u64) -> MemberView {
        let heartbeat = self.heartbeat.as_ref();
        let age_ms = heartbeat.map(|(at, _)| ms(*at));
        let hears = heartbeat.map(|(_, heartbeat)| heartbeat.hears.iter()).into_iter().flatten();
        MemberView {
            state: self.state,
            incarnation: heartbeat
                .map_or(Incarnation(0), |(_, heartbeat)| heartbeat.life.incarnation),
            heartbeat_age_ms: age_ms,
            facts: heartbeat.map(|(_, heartbeat)| heartbeat.facts.clone()),
            hears: hears
                .map(|(&node, heard)| (node, u64::from(heard.age_ms) + age_ms.unwrap_or(0)))
                .collect(),
            since_ms: ms(self.since),
        }
    }
}
