//! The loop of gossip: one socket, foca's timers, and a heartbeat to everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use synapsedb_core::ids::NodeId;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::intake::Intake;
use super::life::Life;
use super::message::{Heartbeat, Message};
use super::swim::Swim;
use super::{Config, Shared};
use crate::layout::Identity;
use crate::tasks::Shutdown;
use crate::tls::GossipCipher;

/// How many datagrams are read before timers get their turn.
const READ_BATCH: usize = 512;
/// How often a goodbye is said: datagrams get lost.
const GOODBYES: u32 = 3;
/// The pause between two goodbyes.
const GOODBYE_PAUSE: Duration = Duration::from_millis(20);

type Addresses = Arc<Mutex<BTreeMap<NodeId, SocketAddr>>>;

/// Sends and receives this node's datagrams.
pub struct Task {
    config: Config,
    socket: std::net::UdpSocket,
    shared: Arc<Shared>,
    intake: Intake,
    swim: Swim,
    addresses: Addresses,
    counter: u64,
    changes: Family<[(&'static str, &'static str); 1], Counter>,
    received: Counter,
}

impl Task {
    pub(super) fn new(
        config: Config,
        identity: Identity,
        socket: std::net::UdpSocket,
        cipher: GossipCipher,
        shared: Arc<Shared>,
        registry: &mut Registry,
    ) -> Self {
        let others = others(&shared).into_iter().collect();
        let intake = Intake::new(&config, shared.me, others, cipher);
        let start = u64::try_from(unix_us() / 1_000).unwrap_or(0);
        let life = Life { node: identity.node, incarnation: identity.incarnation, start };
        let (changes, received) = (Family::default(), Counter::default());
        registry.register(
            "synapsedb_gossip_datagrams_dropped",
            "Datagrams that were not of a member, not fresh, repeated or malformed, by reason",
            intake.dropped.clone(),
        );
        registry.register(
            "synapsedb_gossip_changes",
            "Changes of what is believed of a member, by the new state",
            changes.clone(),
        );
        registry.register(
            "synapsedb_gossip_heartbeats_received",
            "Heartbeats of other members that arrived",
            received.clone(),
        );
        let swim = Swim::new(&config, life);
        let addresses = Addresses::default();
        Self { config, socket, shared, intake, swim, addresses, counter: 0, changes, received }
    }

    #[cfg(test)]
    pub(super) fn swim(&mut self) -> &mut Swim {
        &mut self.swim
    }

    /// Gossips until `stop`, then says goodbye.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub async fn run(mut self, stop: Shutdown) -> Result<()> {
        let socket = UdpSocket::from_std(self.socket.try_clone()?)?;
        let looking_up = tokio::spawn(look_up(
            self.shared.clone(),
            self.addresses.clone(),
            self.config.resolve_ms,
        ));
        let _looking_up = AbortOnDrop(looking_up);
        let heartbeat = Duration::from_millis(self.config.heartbeat_ms);
        let mut next_heartbeat = Instant::now();
        let mut members = self.shared.addresses.subscribe();
        // They may have changed since this task was made.
        members.mark_changed();
        loop {
            if members.has_changed().unwrap_or(false) {
                members.mark_unchanged();
                let others = others(&self.shared);
                self.intake.set_others(&others);
                self.addresses().retain(|node, _| others.contains(node));
            }
            // What has arrived comes before what is due: after a pause of this process, answers that wait in the
            // socket must not count as missing.
            self.receive(&socket);
            let now = Instant::now();
            self.run_timers(now);
            let beat = now >= next_heartbeat;
            if beat {
                self.send_heartbeats(&socket, now);
                next_heartbeat = now + heartbeat;
            }
            self.send_swim(&socket);
            self.publish(now, beat);
            let wake = self.swim.next_timer().map_or(next_heartbeat, |due| due.min(next_heartbeat));
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(wake) => {}
                ready = socket.readable() => ready?,
                () = self.shared.news.notified() => next_heartbeat = Instant::now(),
            }
        }
        self.say_goodbye(&socket).await;
        Ok(())
    }

    fn receive(&mut self, socket: &UdpSocket) {
        let mut bytes = [0; u16::MAX as usize];
        for _ in 0..READ_BATCH {
            match socket.try_recv_from(&mut bytes) {
                Ok((length, _)) => self.take(&bytes[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // Such as an ICMP answer to something sent earlier: the next datagram may be fine.
                Err(error) => tracing::debug!("gossip: receiving: {error}"),
            }
        }
    }

    fn take(&mut self, datagram: &[u8]) {
        let Some((_, message)) = self.intake.take(datagram, unix_us()) else { return };
        let now = Instant::now();
        match message {
            Message::Swim(bytes) => self.swim.message(&bytes, now),
            Message::Goodbye(life) => {
                self.shared.with_roster(|roster| roster.said_goodbye(life));
                self.swim.gone(life, now);
            }
            Message::Heartbeat(heartbeat) => self.heard(heartbeat, now),
        }
    }

    fn heard(&mut self, heartbeat: Heartbeat, now: Instant) {
        let me = self.swim.life();
        if let Some(heard) = heartbeat.hears.get(&self.shared.me) {
            let remembered = Life { incarnation: heard.incarnation, start: heard.start, ..me };
            if remembered.incarnation == me.incarnation && remembered.start > me.start {
                self.swim.outlive(remembered, now);
            }
        }
        let life = heartbeat.life;
        if self.shared.with_roster(|roster| roster.heard(now, heartbeat)) {
            self.received.inc();
            self.swim.heard(life, now);
        }
    }

    fn run_timers(&mut self, now: Instant) {
        let (shared, fresh) = (self.shared.clone(), self.config.fresh());
        let is_fresh = |node| shared.with_roster(|roster| roster.is_fresh(node, now, fresh));
        self.swim.run_timers(now, is_fresh);
    }

    fn send_heartbeats(&mut self, socket: &UdpSocket, now: Instant) {
        self.counter += 1;
        let (facts, hears) = self.shared.with_roster(|roster| (roster.facts(), roster.hears(now)));
        let heartbeat = Heartbeat { life: self.swim.life(), counter: self.counter, facts, hears };
        self.send_to_all(socket, &Message::Heartbeat(heartbeat));
    }

    fn send_to_all(&self, socket: &UdpSocket, message: &Message) {
        for (&node, &address) in &*self.addresses() {
            if node != self.shared.me {
                self.send(socket, address, message);
            }
        }
    }

    fn send_swim(&mut self, socket: &UdpSocket) {
        while let Some((node, bytes)) = self.swim.next_to_send() {
            let address = self.addresses().get(&node).copied();
            if let Some(address) = address {
                self.send(socket, address, &Message::Swim(bytes));
            }
        }
    }

    fn send(&self, socket: &UdpSocket, address: SocketAddr, message: &Message) {
        // A datagram may always be lost; one that the system does not take is.
        if let Some(datagram) = self.intake.seal(message, unix_us())
            && let Err(error) = socket.try_send_to(&datagram, address)
        {
            tracing::trace!("gossip: sending to {address}: {error}");
        }
    }

    fn addresses(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, SocketAddr>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&mut self, now: Instant, always: bool) {
        let (believed, fresh) = (self.swim.beliefs(), self.config.fresh());
        let (changes, view) = self.shared.with_roster(|roster| {
            let changes = roster.believe(&believed, now, fresh);
            let view = (always || !changes.is_empty()).then(|| roster.view(now));
            (changes, view)
        });
        for (node, state) in changes {
            tracing::info!(%node, state = state.word(), "a member's state has changed");
            self.changes.get_or_create(&[("state", state.word())]).inc();
        }
        if let Some(view) = view {
            self.shared.views.send_replace(Arc::new(view));
        }
    }

    async fn say_goodbye(&mut self, socket: &UdpSocket) {
        let goodbye = Message::Goodbye(self.swim.life());
        self.swim.leave(Instant::now());
        for _ in 0..GOODBYES {
            self.send_to_all(socket, &goodbye);
            self.send_swim(socket);
            tokio::time::sleep(GOODBYE_PAUSE).await;
        }
    }
}

fn others(shared: &Shared) -> BTreeSet<NodeId> {
    shared.addresses.borrow().keys().copied().filter(|&node| node != shared.me).collect()
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps the addresses of the peers current: host names may come to mean something else.
async fn look_up(shared: Arc<Shared>, addresses: Addresses, every_ms: u64) {
    let mut members = shared.addresses.subscribe();
    loop {
        let known = members.borrow_and_update().clone();
        for (&node, address) in &known {
            match tokio::net::lookup_host(address).await.map(|mut found| found.next()) {
                Ok(Some(found)) => {
                    addresses.lock().unwrap_or_else(PoisonError::into_inner).insert(node, found);
                }
                Ok(None) => tracing::warn!(%node, "the name {address} has no address"),
                Err(error) => tracing::warn!(%node, "cannot look {address} up: {error}"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(every_ms)) => {}
            Ok(()) = members.changed() => {}
        }
    }
}

/// The wall clock, in microseconds since 1970.
pub(super) fn unix_us() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
