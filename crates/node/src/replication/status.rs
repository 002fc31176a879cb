//! What the loops of replication say of themselves, collected for the status page, readiness and the log.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::state::MemberStatus;
use synapsedb_core::time::Timestamp;
use tokio::sync::watch;

use super::api::{LaneBody, NotReplicatedBody, PublisherBody, StatusBody};
use super::{Shared, lag};
use crate::gossip::MemberState;

/// The status of this component.
pub type Status = StatusBody;

/// How long after its start a node waits for the probes of all members, also of those that gossip does not know yet.
const GATHERING: Duration = Duration::from_secs(10);

/// What a lane is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LaneState {
    /// It has not applied or waited yet.
    #[default]
    Starting,
    /// Transactions are applied as they come.
    Flowing,
    /// The next transaction had seen one of another node that has not been applied here.
    Waiting(NodeId, Lsn),
    /// The next transaction's commit time is this many microseconds too far ahead of the clock here.
    ClockSkew(i64),
    /// The transaction cannot be applied, with the reason; it is tried again.
    Blocked(Lsn, String),
}

#[derive(Default)]
struct Lane {
    state: LaneState,
    source: Option<NodeId>,
    fetch_error: Option<String>,
    /// The transactions that are being applied, with their commit times.
    sent: VecDeque<(Lsn, Timestamp)>,
    /// The commit time of the transaction applied last.
    applied_time: Option<Timestamp>,
    /// How many workers have applied.
    by_workers: u64,
}

#[derive(Default)]
struct Inner {
    /// The internal schema, the triggers and the publication are there.
    installed: bool,
    publishing: bool,
    read: Lsn,
    confirmed: Lsn,
    publish_error: Option<String>,
    /// The slot or its WAL is gone: what is not spooled will never be.
    slot_lost: bool,
    not_replicated: NotReplicatedBody,
    lanes: BTreeMap<NodeId, Lane>,
    probes: BTreeMap<NodeId, (Probe, Instant)>,
}

/// The newest probe row of a node that arrived here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    /// How long ago it was written, by the clocks of writer and reader.
    pub(crate) age_ms: u64,
    /// When the writing transaction committed, if the server still knows.
    pub(crate) commit_time: Option<Timestamp>,
}

/// Where the loops write down what they do.
pub(crate) struct Board {
    inner: Mutex<Inner>,
    /// The slot is there too, and the peers know this data: from now on nothing that is written here escapes it.
    prepared: watch::Sender<bool>,
    started: Instant,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            prepared: watch::Sender::new(false),
            started: Instant::now(),
        }
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn installed(&self) {
        self.lock().installed = true;
    }

    pub(crate) fn is_installed(&self) -> bool {
        self.lock().installed
    }

    pub(crate) fn slot_is_there(&self) {
        self.prepared.send_if_modified(|prepared| !std::mem::replace(prepared, true));
    }

    pub(crate) fn is_prepared(&self) -> bool {
        *self.prepared.borrow()
    }

    pub(crate) fn prepared(&self) -> watch::Receiver<bool> {
        self.prepared.subscribe()
    }

    pub(crate) fn published(&self, read: Lsn, confirmed: Lsn) {
        let mut inner = self.lock();
        (inner.publishing, inner.read, inner.confirmed) = (true, read, confirmed);
        inner.publish_error = None;
    }

    pub(crate) fn not_replicated(&self) -> NotReplicatedBody {
        self.lock().not_replicated
    }

    pub(crate) fn set_not_replicated(&self, found: NotReplicatedBody) {
        self.lock().not_replicated = found;
    }

    pub(crate) fn slot_is_lost(&self) {
        self.lock().slot_lost = true;
    }

    pub(crate) fn has_lost_slot(&self) -> bool {
        self.lock().slot_lost
    }

    pub(crate) fn is_publishing(&self) -> bool {
        self.lock().publishing
    }

    pub(crate) fn publish_failed(&self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        let mut inner = self.lock();
        inner.publishing = false;
        if inner.publish_error.as_ref() != Some(&text) {
            tracing::warn!("the own WAL is not being read: {text}");
        }
        inner.publish_error = Some(text);
    }

    /// It is not reading, and nothing is wrong yet.
    pub(crate) fn publisher_waits(&self, text: &str) {
        let mut inner = self.lock();
        inner.publishing = false;
        if inner.publish_error.as_deref() != Some(text) {
            tracing::info!("the own WAL is not being read yet: {text}");
        }
        inner.publish_error = Some(text.to_owned());
    }

    pub(crate) fn fetching(&self, origin: NodeId, source: NodeId) {
        let mut inner = self.lock();
        let lane = inner.lanes.entry(origin).or_default();
        (lane.source, lane.fetch_error) = (Some(source), None);
    }

    pub(crate) fn fetch_failed(&self, origin: NodeId, source: NodeId, error: &anyhow::Error) {
        let text = format!("from node {source}: {error:#}");
        let mut inner = self.lock();
        let lane = inner.lanes.entry(origin).or_default();
        if lane.fetch_error.as_ref() != Some(&text) {
            tracing::info!(%origin, "transactions are not received {text}");
        }
        (lane.source, lane.fetch_error) = (None, Some(text));
    }

    fn set(&self, origin: NodeId, state: LaneState) -> bool {
        let mut inner = self.lock();
        let lane = inner.lanes.entry(origin).or_default();
        let changed = lane.state != state;
        if changed {
            lane.state = state;
        }
        changed
    }

    pub(crate) fn flowing(&self, origin: NodeId) {
        // What is blocked flows again only when it has been applied.
        let mut inner = self.lock();
        let lane = inner.lanes.entry(origin).or_default();
        if !matches!(lane.state, LaneState::Blocked(..) | LaneState::Flowing) {
            lane.state = LaneState::Flowing;
        }
    }

    pub(crate) fn applied(&self, origin: NodeId, lsn: Lsn) {
        let mut inner = self.lock();
        let lane = inner.lanes.entry(origin).or_default();
        if lane.state != LaneState::Flowing {
            lane.state = LaneState::Flowing;
        }
        while let Some((_, time)) = lane.sent.front().filter(|(sent, _)| *sent <= lsn) {
            lane.applied_time = Some(*time);
            lane.sent.pop_front();
        }
    }

    /// A worker has applied a transaction.
    pub(crate) fn applied_by_worker(&self, origin: NodeId) {
        self.lock().lanes.entry(origin).or_default().by_workers += 1;
    }

    /// A transaction, or the last one of a run, is on its way to the server.
    pub(crate) fn sent(&self, origin: NodeId, lsn: Lsn, time: Timestamp) {
        self.lock().lanes.entry(origin).or_default().sent.push_back((lsn, time));
    }

    /// What was on its way through an earlier session was applied or will be sent again.
    pub(crate) fn lane_starts(&self, origin: NodeId) {
        self.lock().lanes.entry(origin).or_default().sent.clear();
    }

    /// Up to where the own WAL has been read.
    pub(crate) fn read(&self) -> Lsn {
        self.lock().read
    }

    pub(crate) fn waiting_for(&self, origin: NodeId, cause: NodeId, lsn: Lsn) {
        self.set(origin, LaneState::Waiting(cause, lsn));
    }

    pub(crate) fn clock_skew(&self, origin: NodeId, us: i64) {
        let known = matches!(
            self.lock().lanes.get(&origin).map(|lane| &lane.state),
            Some(LaneState::ClockSkew(_))
        );
        self.set(origin, LaneState::ClockSkew(us));
        if !known {
            tracing::error!(%origin, "its commit times are {} ms ahead of the clock here: one of the two clocks is \
                wrong. Its transactions wait; set the clocks right (NTP)", us / 1000);
        }
    }

    pub(crate) fn blocked(&self, origin: NodeId, lsn: Lsn, reason: &str) {
        if self.set(origin, LaneState::Blocked(lsn, reason.to_owned())) {
            tracing::error!(%origin, %lsn, "the transaction cannot be applied, its stream waits: {reason}");
        }
    }

    pub(crate) fn probes(&self, probes: BTreeMap<NodeId, Probe>) {
        let now = Instant::now();
        self.lock().probes = probes.into_iter().map(|(node, probe)| (node, (probe, now))).collect();
    }
}

fn probe_age_ms(inner: &Inner, node: NodeId) -> Option<u64> {
    let (probe, read_at) = inner.probes.get(&node)?;
    Some(probe.age_ms + u64::try_from(read_at.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// How old what readers here see is: the age of the newest probe row of that member whose is oldest. Of members that do
/// not live, or whose server is away, nothing new can come.
pub(crate) fn lag_ms(shared: &Shared) -> u64 {
    let (view, inner) = (shared.gossip.view(), shared.status.lock());
    let lives = |node: &NodeId| {
        view.members.get(node).is_some_and(|member| {
            let alive = match member.state {
                MemberState::Alive => true,
                MemberState::Suspect | MemberState::Down | MemberState::Left => false,
            };
            alive && member.facts.as_ref().is_some_and(|facts| facts.postgres_ready)
        })
    };
    let others = shared.peers.others().into_iter().filter(lives);
    others.filter_map(|node| probe_age_ms(&inner, node)).max().unwrap_or(0)
}

/// When the origin's transaction that was applied last committed there: what the lane says, or after a start the
/// probe row.
fn applied_time(inner: &Inner, origin: NodeId) -> Option<Timestamp> {
    let by_lane = inner.lanes.get(&origin).and_then(|lane| lane.applied_time);
    let by_probe = inner.probes.get(&origin).and_then(|(probe, _)| probe.commit_time);
    by_lane.max(by_probe)
}

/// The whole status.
pub(crate) fn collect(shared: &Shared) -> Status {
    let visible = shared.applied.visible();
    let spools = shared.spools.all();
    let view = shared.gossip.view();
    let durability = shared.durability.status(shared);
    let inner = shared.status.lock();
    let lanes = shared.peers.others().into_iter().map(|origin| {
        let starting = Lane::default();
        let lane = inner.lanes.get(&origin).unwrap_or(&starting);
        let received = spools.get(&origin).map(|(_, spool)| *spool.tail_watch().borrow());
        let (state, detail) = describe(&lane.state);
        let member = view.members.get(&origin);
        LaneBody {
            origin: origin.get(),
            source: lane.source.map(NodeId::get),
            fetch_error: lane.fetch_error.clone(),
            state,
            detail,
            workers: shared.config.apply_workers,
            worker_transactions: lane.by_workers,
            received_lsn: received.unwrap_or_default().to_string(),
            applied_lsn: visible.get(origin).to_string(),
            probe_age_ms: probe_age_ms(&inner, origin),
            lag_bytes: lag::bytes(member, visible.get(origin)),
            applied_commit_time: applied_time(&inner, origin).map(lag::rfc3339),
            heartbeat_age_ms: member.and_then(|member| member.heartbeat_age_ms),
        }
    });
    StatusBody {
        node: shared.identity.node.get(),
        incarnation: shared.identity.incarnation.0,
        prepared: shared.status.is_prepared(),
        publisher: PublisherBody {
            running: inner.publishing,
            read_lsn: inner.read.to_string(),
            confirmed_lsn: inner.confirmed.to_string(),
            error: inner.publish_error.clone(),
        },
        lanes: lanes.collect(),
        durability,
        not_replicated: inner.not_replicated,
        applied: visible.iter().map(|(node, lsn)| (node.to_string(), lsn.to_string())).collect(),
        spool_bytes: spools
            .iter()
            .map(|(node, (_, spool))| (node.to_string(), spool.bytes()))
            .collect(),
    }
}

fn describe(state: &LaneState) -> (&'static str, Option<String>) {
    match state {
        LaneState::Starting => ("starting", None),
        LaneState::Flowing => ("flowing", None),
        LaneState::Waiting(cause, lsn) => {
            ("waiting", Some(format!("for transaction {lsn} of node {cause}, which it had seen")))
        }
        LaneState::ClockSkew(us) => {
            ("clock_skew", Some(format!("the origin's clock is {} ms ahead", us / 1000)))
        }
        LaneState::Blocked(lsn, reason) => {
            ("blocked", Some(format!("transaction {lsn}: {reason}")))
        }
    }
}

/// Why this node is not ready; nothing when it is.
pub(crate) fn not_ready(shared: &Shared) -> Option<String> {
    let view = shared.gossip.view();
    let inner = shared.status.lock();
    if !shared.status.is_prepared() {
        let why = inner.publish_error.as_deref().unwrap_or("the server is not prepared yet");
        return Some(format!("replication has not begun: {why}"));
    }
    if !inner.publishing {
        let why = inner.publish_error.as_deref().unwrap_or("starting");
        return Some(format!("the own WAL is not being read: {why}"));
    }
    if let Some(behind) = shared.clock.behind() {
        return Some(format!(
            "the clock was set back: it is {} ms behind what was committed here, and catches up",
            behind.as_millis()
        ));
    }
    if let Some(reason) = shared.durability.not_in_force() {
        return Some(reason);
    }
    let gathering = shared.status.started.elapsed() < GATHERING;
    let fresh_ms = shared.config.probe_interval_ms.saturating_mul(3) + 1000;
    let state = shared.raft.state();
    let partial = |node: NodeId| {
        state.members.get(&node).is_some_and(|member| member.status != MemberStatus::Active)
    };
    for node in shared.peers.others().into_iter().filter(|node| !partial(*node)) {
        let alive = view.members.get(&node).is_some_and(|member| match member.state {
            MemberState::Alive => true,
            MemberState::Suspect | MemberState::Down | MemberState::Left => false,
        });
        match probe_age_ms(&inner, node) {
            None => return Some(format!("no row of node {node} has arrived here yet")),
            Some(age_ms) if age_ms > fresh_ms && (alive || gathering) => {
                return Some(format!(
                    "the newest row of node {node} that arrived here is {age_ms} ms old"
                ));
            }
            Some(_) => {}
        }
    }
    None
}
