//! What is inside a datagram: a SWIM message, a heartbeat, or a goodbye.
//!
//! ```text
//! 1 | foca's bytes
//! 2 | incarnation u32, start u64, counter u64, ready u8, wal_lsn u64, published_lsn u64, unread_bytes u64,
//!     lag_ms u64, applied, received: each n u8, n × (node u16, lsn u64),
//!     m u8, m × (node u16, incarnation u32, start u64, age_ms u32)
//! 3 | incarnation u32, start u64
//! ```

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _, Bytes};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;

use super::Facts;
use super::life::Life;

const SWIM: u8 = 1;
const HEARTBEAT: u8 = 2;
const GOODBYE: u8 = 3;

/// What a datagram says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// For foca.
    Swim(Bytes),
    /// The sender lives, and this is what it says.
    Heartbeat(Heartbeat),
    /// The sender stops of its own will.
    Goodbye(Life),
}

/// A sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Heartbeat {
    pub(super) life: Life,
    /// Grows with every heartbeat of a life.
    pub(super) counter: u64,
    pub(super) facts: Facts,
    /// Whom the sender has heard, and how long ago.
    pub(super) hears: BTreeMap<NodeId, Heard>,
}

/// The last heartbeat that somebody heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) incarnation: Incarnation,
    pub(super) start: u64,
    pub(super) age_ms: u32,
}

impl Message {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        match self {
            Self::Swim(bytes) => {
                out.put_u8(SWIM);
                out.put_slice(bytes);
            }
            Self::Goodbye(life) => {
                out.put_u8(GOODBYE);
                put_life(&mut out, life);
            }
            Self::Heartbeat(heartbeat) => {
                out.put_u8(HEARTBEAT);
                heartbeat.encode(&mut out);
            }
        }
        out
    }

    /// `None` when the bytes are no message of `sender`.
    pub(super) fn decode(sender: NodeId, payload: Vec<u8>) -> Option<Self> {
        let mut from = Bytes::from(payload);
        let message = match from.try_get_u8().ok()? {
            SWIM => return Some(Self::Swim(from)),
            HEARTBEAT => Self::Heartbeat(Heartbeat::decode(sender, &mut from)?),
            GOODBYE => Self::Goodbye(get_life(sender, &mut from)?),
            _ => return None,
        };
        from.is_empty().then_some(message)
    }
}

/// A heartbeat's flags. An agent that knows only the first takes a node with another one for not ready.
const READY: u8 = 1;
/// See [`READY`].
const CLOCK_SET_BACK: u8 = 2;

impl Heartbeat {
    fn encode(&self, out: &mut Vec<u8>) {
        put_life(out, &self.life);
        out.put_u64(self.counter);
        let clock = if self.facts.clock_set_back { CLOCK_SET_BACK } else { 0 };
        out.put_u8(u8::from(self.facts.postgres_ready) | clock);
        out.put_u64(self.facts.wal_lsn.0);
        out.put_u64(self.facts.published_lsn.0);
        out.put_u64(self.facts.unread_bytes);
        out.put_u64(self.facts.lag_ms);
        put_vector(out, &self.facts.applied);
        put_vector(out, &self.facts.received);
        out.put_u8(u8::try_from(self.hears.len()).unwrap_or(u8::MAX));
        for (node, heard) in &self.hears {
            out.put_u16(node.get());
            out.put_u32(heard.incarnation.0);
            out.put_u64(heard.start);
            out.put_u32(heard.age_ms);
        }
    }

    fn decode(sender: NodeId, from: &mut Bytes) -> Option<Self> {
        let life = get_life(sender, from)?;
        let counter = from.try_get_u64().ok()?;
        let flags = from.try_get_u8().ok()?;
        let facts = Facts {
            postgres_ready: flags & READY != 0,
            clock_set_back: flags & CLOCK_SET_BACK != 0,
            wal_lsn: Lsn(from.try_get_u64().ok()?),
            published_lsn: Lsn(from.try_get_u64().ok()?),
            unread_bytes: from.try_get_u64().ok()?,
            lag_ms: from.try_get_u64().ok()?,
            applied: get_vector(from)?,
            received: get_vector(from)?,
        };
        let mut hears = BTreeMap::new();
        for _ in 0..from.try_get_u8().ok()? {
            let node = NodeId::new(from.try_get_u16().ok()?)?;
            let heard = Heard {
                incarnation: Incarnation(from.try_get_u32().ok()?),
                start: from.try_get_u64().ok()?,
                age_ms: from.try_get_u32().ok()?,
            };
            hears.insert(node, heard);
        }
        Some(Self { life, counter, facts, hears })
    }
}

fn put_vector(out: &mut Vec<u8>, vector: &VersionVector) {
    // At most NodeId::MAX entries, so a byte counts them.
    out.put_u8(u8::try_from(vector.len()).unwrap_or(u8::MAX));
    for (origin, lsn) in vector.iter() {
        out.put_u16(origin.get());
        out.put_u64(lsn.0);
    }
}

fn get_vector(from: &mut Bytes) -> Option<VersionVector> {
    let mut vector = VersionVector::new();
    for _ in 0..from.try_get_u8().ok()? {
        let origin = NodeId::new(from.try_get_u16().ok()?)?;
        vector.advance(origin, Lsn(from.try_get_u64().ok()?));
    }
    Some(vector)
}

fn put_life(out: &mut Vec<u8>, life: &Life) {
    out.put_u32(life.incarnation.0);
    out.put_u64(life.start);
}

fn get_life(node: NodeId, from: &mut Bytes) -> Option<Life> {
    let incarnation = Incarnation(from.try_get_u32().ok()?);
    Some(Life { node, incarnation, start: from.try_get_u64().ok()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn messages_survive_the_way_and_truncations_do_not() {
        let node = NodeId::new(2).unwrap();
        let life = Life { node, incarnation: Incarnation(3), start: 77 };
        let applied = [(node, Lsn(5)), (NodeId::new(16).unwrap(), Lsn(u64::MAX))];
        let heard = Heard { incarnation: Incarnation(1), start: 9, age_ms: 40 };
        let heartbeat = Heartbeat {
            life,
            counter: 8,
            facts: Facts {
                postgres_ready: true,
                clock_set_back: true,
                applied: applied.into_iter().collect(),
                received: [(node, Lsn(9))].into_iter().collect(),
                wal_lsn: Lsn(6),
                published_lsn: Lsn(4),
                unread_bytes: 2,
                lag_ms: 3,
            },
            hears: [(NodeId::new(1).unwrap(), heard)].into(),
        };
        for message in [Message::Heartbeat(heartbeat), Message::Goodbye(life)] {
            let bytes = message.encode();
            assert_eq!(Message::decode(node, bytes.clone()), Some(message));
            for length in 0..bytes.len() {
                assert_eq!(Message::decode(node, bytes[..length].to_vec()), None);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode_or_not_but_never_panic(bytes: Vec<u8>) {
            let _ = Message::decode(NodeId::new(1).unwrap(), bytes);
        }
    }
}
