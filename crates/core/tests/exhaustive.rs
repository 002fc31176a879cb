//! Checks the rules of the core over every small case: every history, every order of delivery, every command.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use synapsedb_core::conflict::{Resolution, last_write_wins};
use synapsedb_core::delivery::{Delivery, TransactionPoint, decide};
use synapsedb_core::failover;
use synapsedb_core::ids::{Epoch, Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::state::{Addresses, ClusterState, Command, MemberStatus, Outcome, Refusal};
use synapsedb_core::time::Timestamp;
use synapsedb_core::version::{RowVersion, VersionVector};

const NODES: u16 = 3;

fn node(number: u16) -> NodeId {
    NodeId::new(number).unwrap()
}

fn nodes() -> impl Iterator<Item = NodeId> {
    (1..=NODES).map(node)
}

/// A transaction that writes the one row of the model. The n-th of an origin has the commit LSN n.
#[derive(Clone, Debug)]
struct Transaction {
    origin: NodeId,
    commit_lsn: Lsn,
    commit_time: Timestamp,
    /// What the origin had seen of the others.
    vector: VersionVector,
}

impl Transaction {
    fn version(&self) -> RowVersion {
        let Self { origin, commit_lsn: lsn, commit_time, .. } = *self;
        RowVersion { commit_time, origin, lsn }
    }
}

#[derive(Clone, Debug, Default)]
struct History(Vec<Transaction>);

impl History {
    fn of(&self, origin: NodeId) -> impl Iterator<Item = &Transaction> {
        self.0.iter().filter(move |transaction| transaction.origin == origin)
    }

    fn find(&self, origin: NodeId, lsn: Lsn) -> Option<&Transaction> {
        self.of(origin).find(|transaction| transaction.commit_lsn == lsn)
    }

    /// All that `vector` stands for, with the causes of each, as a vector.
    fn closure(&self, vector: &VersionVector) -> VersionVector {
        let mut closed = vector.clone();
        for (origin, lsn) in vector.iter() {
            for seen in self.of(origin).filter(|seen| seen.commit_lsn <= lsn) {
                closed.merge(&self.closure(&seen.vector));
            }
        }
        closed
    }

    /// Every history that is longer by one transaction: of any origin, having seen any causally closed past.
    fn longer(&self) -> Vec<Self> {
        let mut longer = Vec::new();
        for origin in nodes() {
            let own = self.of(origin).last();
            let commit_lsn = Lsn(self.of(origin).count() as u64 + 1);
            for vector in self.pasts(origin) {
                let before = own.map(|own| own.vector.clone()).unwrap_or_default();
                if !vector.covers(&before) {
                    continue;
                }
                let seen = self.0.iter().filter(|t| vector.get(t.origin) >= t.commit_lsn);
                let latest = seen.chain(own).map(|t| t.commit_time).max().unwrap_or_default();
                // Directly after what was seen (so that concurrent ones tie); in short histories also later than
                // everything (so that none ties).
                let late = (self.0.len() < 3).then_some(Timestamp(4 + self.0.len() as i64));
                for commit_time in late.into_iter().chain([latest.plus_us(1)]) {
                    let mut history = self.clone();
                    let vector = vector.clone();
                    history.0.push(Transaction { origin, commit_lsn, commit_time, vector });
                    longer.push(history);
                }
            }
        }
        longer
    }

    fn pasts(&self, origin: NodeId) -> Vec<VersionVector> {
        let mut pasts = vec![VersionVector::new()];
        for other in nodes().filter(|&other| other != origin) {
            let count = self.of(other).count() as u64;
            pasts = pasts
                .iter()
                .flat_map(|past| {
                    (0..=count).map(|lsn| {
                        let mut past = past.clone();
                        past.advance(other, Lsn(lsn));
                        past
                    })
                })
                .collect();
        }
        let own = self.of(origin).count() as u64;
        let closed = |past: &VersionVector| {
            let closure = self.closure(past);
            closure.iter().all(|(seen, lsn)| match seen == origin {
                true => lsn <= Lsn(own),
                false => past.get(seen) >= lsn,
            })
        };
        pasts.into_iter().filter(closed).collect()
    }
}

fn histories(transactions: usize) -> Vec<History> {
    let mut histories = vec![History::default()];
    for _ in 0..transactions {
        histories = histories.iter().flat_map(History::longer).collect();
    }
    histories
}

/// One node while it receives a history: everything that decides what may happen next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Receiver {
    applied: BTreeMap<NodeId, Lsn>,
    now: Timestamp,
    row: Option<RowVersion>,
}

impl Receiver {
    fn vector(&self) -> VersionVector {
        self.applied.iter().map(|(&origin, &lsn)| (origin, lsn)).collect()
    }

    fn next_of<'h>(&self, history: &'h History, origin: NodeId) -> Option<&'h Transaction> {
        let seen = self.applied.get(&origin).copied().unwrap_or(Lsn::ZERO);
        history.find(origin, Lsn(seen.0 + 1))
    }

    fn with(&self, transaction: &Transaction, row: RowVersion) -> Self {
        let mut next = self.clone();
        next.applied.insert(transaction.origin, transaction.commit_lsn);
        next.row = Some(row);
        next
    }
}

const SKEW_MAX_US: i64 = 2;

/// What can happen at `here` next: a delivery, its own next commit, or a tick of its clock.
fn steps(history: &History, here: NodeId, at: &Receiver, last: Timestamp) -> Vec<Receiver> {
    let applied = at.vector();
    let ask = |transaction: &Transaction| {
        let Transaction { origin, commit_lsn, commit_time, ref vector } = *transaction;
        let point = TransactionPoint { origin, commit_lsn, commit_time, vector };
        decide(&point, here, &applied, at.now, SKEW_MAX_US)
    };
    let own = at.next_of(history, here);
    let mut steps = Vec::new();
    for origin in nodes().filter(|&origin| origin != here) {
        for earlier in history.of(origin).filter(|t| t.commit_lsn <= applied.get(origin)) {
            assert_eq!(ask(earlier), Delivery::AlreadyApplied);
        }
        let Some(transaction) = at.next_of(history, origin) else { continue };
        if history.closure(&transaction.vector).get(here) > applied.get(here) {
            continue; // It has seen a transaction of this node, so it does not exist before that one does.
        }
        match ask(transaction) {
            Delivery::AlreadyApplied => panic!("{transaction:?} was never delivered to {here}"),
            Delivery::AwaitOrigin { origin, lsn } => assert!(applied.get(origin) < lsn),
            Delivery::AwaitClock { us } => assert!((1..=SKEW_MAX_US).contains(&us)),
            Delivery::ClockSkew { us } => assert!(us > SKEW_MAX_US),
            Delivery::Deliver => {
                let causes = history.closure(&transaction.vector);
                assert!(applied.covers(&causes), "{transaction:?} overtook {causes} at {here}");
                assert!(at.now >= transaction.commit_time);
                // In this history, the node commits its own next one before it sees more than that one had seen.
                if own.is_none_or(|own| own.vector.get(origin) >= transaction.commit_lsn) {
                    let remote = transaction.version();
                    let row = match (last_write_wins(at.row, remote), at.row) {
                        (Resolution::KeepLocal, Some(local)) => local,
                        (Resolution::KeepLocal | Resolution::ApplyRemote, _) => remote,
                    };
                    steps.push(at.with(transaction, row));
                }
            }
        }
    }
    if let Some(own) = own.filter(|own| applied.covers(&own.vector) && at.now >= own.commit_time) {
        assert!(at.row.is_none_or(|row| row < own.version()), "a local commit is the latest here");
        steps.push(at.with(own, own.version()));
    }
    if at.now < last {
        steps.push(Receiver { now: at.now.plus_us(1), ..at.clone() });
    }
    steps
}

/// Walks every order in which `here` can receive the history; answers how many situations there were.
fn receive_in_every_order(history: &History, here: NodeId) -> usize {
    let times = || history.0.iter().map(|t| t.commit_time);
    let (first, last) = (times().min().unwrap(), times().max().unwrap());
    let winner = history.0.iter().map(Transaction::version).max();
    // The clock begins before the first commit (by more than is allowed as skew) and at the end.
    let begins = [first.plus_us(-SKEW_MAX_US - 1), last];
    let mut open: Vec<Receiver> = begins
        .into_iter()
        .map(|now| Receiver { applied: BTreeMap::new(), now, row: None })
        .collect();
    let mut seen: BTreeSet<Receiver> = open.iter().cloned().collect();
    while let Some(at) = open.pop() {
        let delivered: u64 = at.applied.values().map(|lsn| lsn.0).sum();
        if delivered == history.0.len() as u64 {
            assert_eq!(at.row, winner, "node {here} ended with another row: {history:?}");
            continue;
        }
        let steps = steps(history, here, &at, last);
        assert!(!steps.is_empty(), "node {here} is stuck at {at:?} in {history:?}");
        open.extend(steps.into_iter().filter(|step| seen.insert(step.clone())));
    }
    seen.len()
}

#[test]
fn every_history_is_delivered_causally_once_and_wholly_in_every_order_and_converges() {
    let (mut count, mut situations) = (0, 0);
    for transactions in 1..=4 {
        for history in histories(transactions) {
            count += 1;
            situations += nodes().map(|here| receive_in_every_order(&history, here)).sum::<usize>();
        }
    }
    assert!(count > 5_000 && situations > 100_000, "{count} histories, {situations} situations");
}

fn commands() -> Vec<Command> {
    let mut commands = Vec::new();
    for number in 1..=2 {
        commands.push(Command::RemoveMember { node: node(number) });
        commands.push(Command::DismissMember { node: node(number) });
        commands.extend((1..=2).map(|incarnation| Command::AdmitMember {
            node: node(number),
            uuid: "a".to_owned(),
            incarnation: Incarnation(incarnation),
            addresses: Addresses::default(),
        }));
        for uuid in ["a", "b"] {
            for incarnation in 1..=2 {
                commands.push(register(node(number), uuid, incarnation));
            }
        }
    }
    for number in 1..=NODES {
        let set = |epoch| Command::SetPrimary { node: node(number), expected: Epoch(epoch) };
        commands.extend((0..=3).map(set));
    }
    commands
}

fn register(node: NodeId, uuid: &str, incarnation: u32) -> Command {
    Command::RegisterMember {
        node,
        uuid: uuid.to_owned(),
        incarnation: Incarnation(incarnation),
        addresses: Addresses::default(),
        system_identifier: format!("{uuid}{incarnation}"),
        postgres_version: 150_000,
    }
}

/// Applies a command and checks all that holds for every command in every state.
fn apply_checked(before: &ClusterState, command: &Command) -> ClusterState {
    let mut after = before.clone();
    let outcome = after.apply(command);
    let json = serde_json::to_string(before).unwrap();
    let mut restored: ClusterState = serde_json::from_str(&json).unwrap();
    assert_eq!((restored.apply(command), &restored), (outcome.clone(), &after));
    assert_eq!(outcome == Outcome::Applied, after != *before, "{outcome:?} tells what happened");

    let moved = u64::from(after.primary != before.primary);
    assert_eq!(after.epoch.0, before.epoch.0 + moved, "one epoch per change of the primary");
    assert!(after.primary.is_none_or(|primary| after.active(primary).is_some()));
    for (node, member) in &before.members {
        let now = &after.members[node];
        assert_eq!(now.uuid, member.uuid);
        assert!(now.incarnation >= member.incarnation);
        assert!(member.status != MemberStatus::Removed || now == member, "{node} came back");
    }
    if let Command::SetPrimary { expected, .. } = *command
        && expected != before.epoch
    {
        let current = before.epoch;
        assert_eq!(outcome, Outcome::Refused(Refusal::StaleEpoch { expected, current }));
    }
    after
}

#[test]
fn every_sequence_of_commands_keeps_the_rules_of_the_state() {
    let commands = commands();
    let mut states = vec![ClusterState::default()];
    for _ in 0..4 {
        let apply = |state| commands.iter().map(move |command| apply_checked(state, command));
        let all: Vec<ClusterState> = states.iter().flat_map(apply).collect();
        states.clear();
        for state in all {
            if !states.contains(&state) {
                states.push(state);
            }
        }
    }
    assert!(states.len() > 50, "only {} states were reached", states.len());
}

fn all_facts() -> Vec<failover::NodeFacts> {
    let mut facts = Vec::new();
    for agent in [failover::Agent::Alive, failover::Agent::Suspect, failover::Agent::Down] {
        for (reachable, takes_writes) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            for since_ms in [0, 900] {
                for applied in [Lsn(1), Lsn(2)] {
                    let applied = VersionVector::from_iter([(node(1), applied)]);
                    let facts_of_one =
                        failover::NodeFacts { reachable, agent, takes_writes, since_ms, applied };
                    facts.push(facts_of_one);
                }
            }
        }
    }
    facts
}

fn clusters() -> Vec<ClusterState> {
    let mut whole = ClusterState::default();
    for number in nodes() {
        whole.apply(&register(number, "a", 1));
    }
    let mut clusters = vec![whole.clone()];
    for primary in nodes() {
        let mut state = whole.clone();
        state.apply(&Command::SetPrimary { node: primary, expected: Epoch(0) });
        clusters.push(state);
    }
    let mut shrunk = clusters.clone();
    for state in &mut shrunk {
        state.apply(&Command::RemoveMember { node: node(3) });
    }
    clusters.extend(shrunk);
    clusters
}

#[test]
fn every_failover_decision_that_is_applied_leads_to_keep() {
    let config = failover::Config { unready_ms: 500, cooldown_ms: 300 };
    let (facts, clusters) = (all_facts(), clusters());
    let mut appointed = 0;
    for first in &facts {
        for second in &facts {
            for third in facts.iter().step_by(5) {
                let nodes: BTreeMap<NodeId, failover::NodeFacts> =
                    nodes().zip([first, second, third].map(Clone::clone)).collect();
                for state in &clusters {
                    appointed += u64::from(decision_holds(state, &nodes, &config));
                }
            }
        }
    }
    assert!(appointed > 10_000, "only {appointed} appointments were made");
}

fn decision_holds(
    state: &ClusterState,
    nodes: &BTreeMap<NodeId, failover::NodeFacts>,
    config: &failover::Config,
) -> bool {
    let decide = |state: &ClusterState, changed_ms| {
        failover::decide(&failover::Facts { state, nodes, changed_ms, now_ms: 1_000 }, config)
    };
    let serves = |node: &NodeId| {
        let facts = &nodes[node];
        let ready = facts.reachable && facts.takes_writes;
        ready && facts.agent == failover::Agent::Alive && state.active(*node).is_some()
    };
    match decide(state, None) {
        failover::Decision::Keep => {
            assert!(state.primary.is_some());
            false
        }
        failover::Decision::NobodyEligible => {
            assert!(!nodes.keys().any(serves));
            false
        }
        failover::Decision::Appoint(node) => {
            assert!(serves(&node) && !state.primary.as_ref().is_some_and(serves));
            let mut after = state.clone();
            let set = Command::SetPrimary { node, expected: state.epoch };
            assert_eq!(after.apply(&set), Outcome::Applied);
            assert_eq!(decide(&after, Some(1_000)), failover::Decision::Keep);
            assert_eq!(decide(&after, None), failover::Decision::Keep);
            assert!(matches!(after.clone().apply(&set), Outcome::Refused(_)), "twice is stale");
            true
        }
    }
}
