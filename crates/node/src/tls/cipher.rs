//! Datagrams that only members of this cluster can write and read.
//!
//! ```text
//! version u8 | sender u16 | nonce 12 bytes | sealed( sent_unix_us i64 | payload ) | tag 16 bytes
//! ```
//! Version, cluster and sender are authenticated with the rest (ChaCha20-Poly1305). The nonce is random: with 96 bits
//! and some hundred datagrams a second, a repetition is not to be expected in the life of a key.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
pub use ring::aead::NONCE_LEN;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use synapsedb_core::ids::NodeId;
use uuid::Uuid;

/// The length of the key.
pub(super) const KEY_BYTES: usize = 32;
/// The format of the datagrams.
const VERSION: u8 = 1;
const TAG_BYTES: usize = 16;
const STAMP_BYTES: usize = 8;
const HEADER_BYTES: usize = 1 + 2 + NONCE_LEN;
/// How many bytes a datagram is longer than its payload.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + STAMP_BYTES + TAG_BYTES;

/// Why a datagram was dropped; its label counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum DatagramError {
    /// Shorter than its own header, or of a version that is not spoken here.
    #[error("it is not a datagram of this protocol")]
    Malformed,
    /// The seal does not fit: another key, another cluster, or a changed bit.
    #[error("its seal does not fit: it is of a stranger, of another cluster, or damaged")]
    Forged,
    /// Sent too long ago, or in the future: replayed, or the clocks differ too much.
    #[error("its time is too far from this node's clock: it is replayed, or the clocks differ")]
    Stale,
}

impl DatagramError {
    /// The label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Forged => "forged",
            Self::Stale => "stale",
        }
    }
}

/// An opened datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The node that sealed it.
    pub sender: NodeId,
    /// When it was sealed, by the sender's clock, in microseconds since 1970.
    pub sent_unix_us: i64,
    /// Its random number, by which a repetition is known.
    pub nonce: [u8; NONCE_LEN],
    /// What it says.
    pub payload: Vec<u8>,
}

/// Seals and opens datagrams with the cluster's key.
#[derive(Clone)]
pub struct GossipCipher {
    cluster_id: Uuid,
    key: Arc<LessSafeKey>,
    random: SystemRandom,
}

impl GossipCipher {
    pub(super) fn new(cluster_id: Uuid, key: &[u8; KEY_BYTES]) -> Self {
        // The length is fixed by the type, and nothing else can be wrong with a key of this cipher.
        let unbound = UnboundKey::new(&CHACHA20_POLY1305, key).expect("a key of 32 bytes");
        Self { cluster_id, key: Arc::new(LessSafeKey::new(unbound)), random: SystemRandom::new() }
    }

    /// Seals `payload` as `sender`, stamped with `now_unix_us`.
    ///
    /// # Errors
    /// The system's source of randomness failed.
    pub fn seal(&self, sender: NodeId, now_unix_us: i64, payload: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok().context("the system gives no random numbers")?;
        let mut datagram = Vec::with_capacity(payload.len() + OVERHEAD_BYTES);
        datagram.push(VERSION);
        datagram.extend_from_slice(&sender.get().to_be_bytes());
        datagram.extend_from_slice(&nonce);
        let mut body = Vec::with_capacity(payload.len() + STAMP_BYTES + TAG_BYTES);
        body.extend_from_slice(&now_unix_us.to_be_bytes());
        body.extend_from_slice(payload);
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key
            .seal_in_place_append_tag(nonce, self.authenticated(sender.get()), &mut body)
            .ok()
            .context("a datagram is too long to be sealed")?;
        datagram.append(&mut body);
        Ok(datagram)
    }

    /// Opens a datagram that was sealed at most `age_max_us` before or after `now_unix_us`.
    ///
    /// # Errors
    /// [`DatagramError`]: it is to be dropped and counted.
    pub fn open(
        &self,
        datagram: &[u8],
        now_unix_us: i64,
        age_max_us: i64,
    ) -> Result<Opened, DatagramError> {
        if datagram.len() < OVERHEAD_BYTES || datagram[0] != VERSION {
            return Err(DatagramError::Malformed);
        }
        let (header, body) = datagram.split_at(HEADER_BYTES);
        let number = u16::from_be_bytes([header[1], header[2]]);
        let sender = NodeId::new(number).ok_or(DatagramError::Malformed)?;
        let nonce = header[3..].try_into().map_err(|_| DatagramError::Malformed)?;
        let mut body = body.to_vec();
        let plain = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(nonce),
                self.authenticated(number),
                &mut body,
            )
            .map_err(|_| DatagramError::Forged)?;
        let (stamp, payload) =
            plain.split_first_chunk::<STAMP_BYTES>().ok_or(DatagramError::Malformed)?;
        let sent_unix_us = i64::from_be_bytes(*stamp);
        if now_unix_us.abs_diff(sent_unix_us) > age_max_us.unsigned_abs() {
            return Err(DatagramError::Stale);
        }
        Ok(Opened { sender, sent_unix_us, nonce, payload: payload.to_vec() })
    }

    fn authenticated(&self, sender: u16) -> Aad<[u8; 1 + 16 + 2]> {
        let mut bytes = [0; 1 + 16 + 2];
        bytes[0] = VERSION;
        bytes[1..17].copy_from_slice(self.cluster_id.as_bytes());
        bytes[17..].copy_from_slice(&sender.to_be_bytes());
        Aad::from(bytes)
    }
}

/// A fresh key as text: hexadecimal digits and a line end.
pub(super) fn generate_key() -> Result<String> {
    let mut key = [0; KEY_BYTES];
    SystemRandom::new().fill(&mut key).ok().context("the system gives no random numbers")?;
    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(digits + "\n")
}

/// Reads what [`generate_key`] wrote.
pub(super) fn parse_key(text: &[u8]) -> Result<[u8; KEY_BYTES]> {
    let digits = text.trim_ascii();
    ensure!(digits.len() == 2 * KEY_BYTES, "it has {} characters", digits.len());
    ensure!(digits.iter().all(u8::is_ascii_hexdigit), "it has other characters");
    let mut key = [0; KEY_BYTES];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair)?, 16)?;
    }
    Ok(key)
}
