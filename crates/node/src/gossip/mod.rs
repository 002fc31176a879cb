//! Who lives, who hears whom, and what every node says of itself: liveness, and nothing that must not be lost.
//!
//! **Runs on:** every node. **Invariant:** gossip gives evidence and decides nothing: what it says may be late or
//! wrong, and costs latency then, never data.
//!
//! Two things travel in sealed datagrams. foca's SWIM messages answer *does it live by any way* (a probe through
//! a third node counts), and drive [`MemberState`]. Heartbeats, sent to every peer, answer *does it reach me directly*:
//! they carry the sender's [`Facts`] and its row of the reachability matrix.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use prometheus_client::registry::Registry;
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::layout::Identity;
use crate::peers::PeerAddress;
use crate::tls;

pub mod api;
mod intake;
mod life;
mod message;
mod roster;
mod swim;
mod task;
#[cfg(test)]
mod tests;

pub use task::Task;

/// The pace and the limits of gossip.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where datagrams are received (`host:port`); by default this node's address in the list of members.
    pub listen: Option<String>,
    /// Time between two heartbeats to every peer.
    pub heartbeat_ms: u64,
    /// Time between two probes; each probes one peer, in turn. A peer that has not answered by then is suspected.
    pub probe_period_ms: u64,
    /// Time for a direct answer to a probe before other nodes are asked to try.
    pub probe_rtt_ms: u64,
    /// Time that a suspected node has to refute before it is declared down.
    pub suspect_to_down_ms: u64,
    /// A node whose heartbeat is younger than this is not shown as suspected and not declared down.
    pub fresh_ms: u64,
    /// A datagram sent longer ago, or further in the future, is dropped: the bound on the difference of clocks.
    pub datagram_age_max_ms: u64,
    /// The longest SWIM message.
    pub datagram_bytes_max: usize,
    /// How many datagrams of one sender are remembered to recognise repetitions.
    pub replay_window: usize,
    /// Time between two look-ups of the peers' host names.
    pub resolve_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: None,
            heartbeat_ms: 100,
            probe_period_ms: 200,
            probe_rtt_ms: 80,
            suspect_to_down_ms: 600,
            fresh_ms: 350,
            datagram_age_max_ms: 10_000,
            datagram_bytes_max: 1_400,
            replay_window: 8_192,
            resolve_ms: 10_000,
        }
    }
}

impl Config {
    fn check(&self) -> Result<()> {
        for (key, value) in [
            ("heartbeat_ms", self.heartbeat_ms),
            ("probe_rtt_ms", self.probe_rtt_ms),
            ("suspect_to_down_ms", self.suspect_to_down_ms),
            ("datagram_age_max_ms", self.datagram_age_max_ms),
            ("resolve_ms", self.resolve_ms),
        ] {
            ensure!(value > 0, "gossip.{key} must be at least 1");
        }
        ensure!(
            self.probe_rtt_ms < self.probe_period_ms,
            "gossip.probe_rtt_ms = {} must be below gossip.probe_period_ms = {}",
            self.probe_rtt_ms,
            self.probe_period_ms
        );
        ensure!(
            (512..=60_000).contains(&self.datagram_bytes_max),
            "gossip.datagram_bytes_max = {} must be from 512 to 60000",
            self.datagram_bytes_max
        );
        Ok(())
    }

    fn fresh(&self) -> Duration {
        Duration::from_millis(self.fresh_ms)
    }
}

/// What a node says of itself in every heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Facts {
    /// Whether its PostgreSQL server takes sessions.
    pub postgres_ready: bool,
    /// Whether its clock was set back behind what it has committed: it should not be written to.
    pub clock_set_back: bool,
    /// What it has applied, durably, of every origin.
    pub applied: VersionVector,
    /// What it has received of every origin, applied or not: what it can hand on.
    pub received: VersionVector,
    /// Where its own WAL ends.
    pub wal_lsn: Lsn,
    /// The last transaction of its own that it has spooled for the others.
    pub published_lsn: Lsn,
    /// Bytes of its own WAL that it has not read yet: they may hold more transactions.
    pub unread_bytes: u64,
    /// How old what it shows is: the age of the oldest of the newest probe rows of all members that live.
    pub lag_ms: u64,
}

/// What gossip believes of a member.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It answers, or somebody says so.
    Alive,
    /// It does not answer; it may refute.
    Suspect,
    /// It did not refute in time, or it was never heard of.
    Down,
    /// It said goodbye.
    Left,
}

impl MemberState {
    /// The word for it in JSON, metrics and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
        }
    }
}

/// One member as seen from here.
#[derive(Clone, Debug)]
pub struct MemberView {
    /// What gossip believes.
    pub state: MemberState,
    /// The life of its data; 0 when it was never heard of.
    pub incarnation: Incarnation,
    /// Milliseconds since its last heartbeat reached this node; `None` if none ever did.
    pub heartbeat_age_ms: Option<u64>,
    /// What it said last.
    pub facts: Option<Facts>,
    /// Its row of the reachability matrix: per node, the age in milliseconds of the last heartbeat it heard. It grows
    /// on while the member is silent.
    pub hears: BTreeMap<NodeId, u64>,
    /// Milliseconds since `state` last changed.
    pub since_ms: u64,
}

/// All members as seen from here, this node included.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// By node.
    pub members: BTreeMap<NodeId, MemberView>,
}

/// What the handle and the task share.
struct Shared {
    roster: Mutex<roster::Roster>,
    views: watch::Sender<Arc<View>>,
    /// A fact has changed that others should know at once.
    news: Notify,
    addresses: watch::Sender<BTreeMap<NodeId, String>>,
    me: NodeId,
}

impl Shared {
    fn with_roster<T>(&self, work: impl FnOnce(&mut roster::Roster) -> T) -> T {
        work(&mut self.roster.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads the view and publishes this node's facts.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// Binds the socket; nothing is sent before the task runs.
///
/// # Errors
/// A setting is out of range, this node is not among the members, or the address cannot be bound.
pub fn new(
    config: Config,
    identity: Identity,
    addresses: Vec<PeerAddress>,
    tls: &tls::Handle,
    registry: &mut Registry,
) -> Result<(Handle, Task)> {
    config.check()?;
    let me = identity.node;
    let addresses: BTreeMap<_, _> =
        addresses.into_iter().map(|member| (member.node, member.address)).collect();
    let own = addresses.get(&me).with_context(|| {
        format!("node {me} is not in the list of members; add a [[member]] table for it")
    })?;
    let listen = config.listen.as_ref().unwrap_or(own);
    let socket = UdpSocket::bind(listen).with_context(|| {
        format!("cannot receive datagrams on {listen} (gossip.listen); is it in use?")
    })?;
    socket.set_nonblocking(true)?;
    // A busy machine must not lose heartbeats that have already arrived; the system may grant less.
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER_BYTES);

    let others = addresses.keys().copied().filter(|&node| node != me).collect();
    let roster = roster::Roster::new(me, identity.incarnation, others, Instant::now());
    let first = Arc::new(roster.view(Instant::now()));
    let shared = Arc::new(Shared {
        roster: Mutex::new(roster),
        views: watch::Sender::new(first),
        news: Notify::new(),
        addresses: watch::Sender::new(addresses),
        me,
    });
    let task = Task::new(config, identity, socket, tls.gossip_cipher(), shared.clone(), registry);
    Ok((Handle { shared }, task))
}

/// The kernel's buffer for datagrams that wait to be read.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;

impl Handle {
    /// Sets what this node says of itself from the next heartbeat on; a change of `postgres_ready` is sent at once.
    pub fn publish(&self, facts: Facts) {
        if self.shared.with_roster(|roster| roster.publish(facts)) {
            self.shared.news.notify_one();
        }
    }

    /// The members are these from now on.
    pub fn set_members(&self, members: &BTreeMap<NodeId, String>) {
        let changed = self.shared.addresses.send_if_modified(|addresses| {
            let changed = addresses != members;
            if changed {
                addresses.clone_from(members);
            }
            changed
        });
        if changed {
            let others = members.keys().copied().filter(|&node| node != self.shared.me).collect();
            self.shared.with_roster(|roster| roster.set_others(&others, Instant::now()));
            self.shared.news.notify_one();
        }
    }

    /// The view as it changes: at every change of a state, and with every heartbeat interval.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.shared.views.subscribe()
    }

    /// The view at this instant.
    pub fn view(&self) -> Arc<View> {
        Arc::new(self.shared.with_roster(|roster| roster.view(Instant::now())))
    }
}
