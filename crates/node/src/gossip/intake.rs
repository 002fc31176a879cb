//! The door for datagrams: sealed by a member, fresh, and seen for the first time, or dropped and counted.

use std::collections::{BTreeMap, BTreeSet};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use synapsedb_core::ids::NodeId;

use super::Config;
use super::message::Message;
use crate::tls::{GossipCipher, NONCE_LEN};

/// Why a datagram was dropped, as the label of the metric.
pub(super) type Dropped = &'static str;

/// Opens and checks datagrams.
pub(super) struct Intake {
    cipher: GossipCipher,
    me: NodeId,
    age_max_us: i64,
    window: usize,
    /// Per sender, the time and the random number of what was received: a repetition is in it.
    seen: BTreeMap<NodeId, BTreeSet<(i64, [u8; NONCE_LEN])>>,
    pub(super) dropped: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Intake {
    pub(super) fn new(
        config: &Config,
        me: NodeId,
        others: Vec<NodeId>,
        cipher: GossipCipher,
    ) -> Self {
        let age_max_ms = i64::try_from(config.datagram_age_max_ms).unwrap_or(i64::MAX);
        Self {
            cipher,
            me,
            age_max_us: age_max_ms.saturating_mul(1_000),
            window: config.replay_window.max(1),
            seen: others.into_iter().map(|node| (node, BTreeSet::new())).collect(),
            dropped: Family::default(),
        }
    }

    /// The members other than this node are these from now on.
    pub(super) fn set_others(&mut self, others: &BTreeSet<NodeId>) {
        self.seen.retain(|node, _| others.contains(node));
        for node in others {
            self.seen.entry(*node).or_default();
        }
    }

    /// The sender and the message, or `None` for a datagram that was dropped and counted.
    pub(super) fn take(&mut self, datagram: &[u8], now_unix_us: i64) -> Option<(NodeId, Message)> {
        match self.open(datagram, now_unix_us) {
            Ok(opened) => Some(opened),
            Err(reason) => {
                self.dropped.get_or_create(&[("reason", reason)]).inc();
                None
            }
        }
    }

    fn open(&mut self, datagram: &[u8], now_unix_us: i64) -> Result<(NodeId, Message), Dropped> {
        let opened = self
            .cipher
            .open(datagram, now_unix_us, self.age_max_us)
            .map_err(crate::tls::DatagramError::label)?;
        if opened.sender == self.me {
            return Err("own");
        }
        let seen = self.seen.get_mut(&opened.sender).ok_or("unknown_node")?;
        // What is older than the limit would be dropped as stale anyway: it need not be remembered.
        let oldest = now_unix_us.saturating_sub(self.age_max_us);
        while seen.first().is_some_and(|&(sent, _)| sent < oldest || seen.len() > self.window) {
            seen.pop_first();
        }
        if !seen.insert((opened.sent_unix_us, opened.nonce)) {
            return Err("replayed");
        }
        let message = Message::decode(opened.sender, opened.payload).ok_or("bad_message")?;
        Ok((opened.sender, message))
    }

    pub(super) fn seal(&self, message: &Message, now_unix_us: i64) -> Option<Vec<u8>> {
        match self.cipher.seal(self.me, now_unix_us, &message.encode()) {
            Ok(datagram) => Some(datagram),
            Err(error) => {
                tracing::warn!("a datagram was not sent: {error:#}");
                None
            }
        }
    }
}
