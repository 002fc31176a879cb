//! Passwords by SCRAM-SHA-256 (RFC 5802, RFC 7677), both sides, without IO.
//!
//! PostgreSQL stores a [`Verifier`] instead of a password (`pg_authid.rolpassword`). A login checked against it
//! ([`ServerExchange`]) reveals [`Keys`], with which one can log in ([`ClientExchange`]) wherever the same verifier is
//! stored: who stands between a client and its servers needs no password of the client's.

mod base64;
mod client;
mod end_point;
mod message;
mod server;

use std::fmt;
use std::num::NonZeroU32;

use ring::{digest, hmac, pbkdf2};

pub use client::{Channel, ClientExchange};
pub use end_point::tls_server_end_point;
pub use message::MESSAGE_BYTES_MAX;
pub use server::ServerExchange;

/// PostgreSQL's number of PBKDF2 rounds for new verifiers (`scram_iterations`).
pub const ITERATIONS: u32 = 4096;

/// The length of every key, in bytes.
const KEY_BYTES: usize = digest::SHA256_OUTPUT_LEN;
/// The length of PostgreSQL's salts, in bytes.
const SALT_BYTES: usize = 16;
/// What a verifier's text begins with.
const SCHEME: &str = "SCRAM-SHA-256";
/// SCRAM-SHA-256 without channel binding.
const PLAIN: &str = "SCRAM-SHA-256";
/// SCRAM-SHA-256 bound to the TLS connection it runs on.
const PLUS: &str = "SCRAM-SHA-256-PLUS";
/// What a client that binds the channel begins with, in its first message and in what it binds.
const BOUND_HEADER: &[u8] = b"p=tls-server-end-point,,";

/// The text `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>` for `CREATE ROLE … PASSWORD '…'`.
///
/// The same password, salt and iterations give the same text, so that all servers can hold the same verifier. An
/// `iterations` of zero counts as one.
pub fn verifier(password: &str, salt: [u8; SALT_BYTES], iterations: u32) -> String {
    let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    let (stored_key, server_key) = derive(password, &salt, rounds);
    format!(
        "{SCHEME}${rounds}:{}${}:{}",
        base64::encode(&salt),
        base64::encode(&stored_key),
        base64::encode(&server_key)
    )
}

/// What a server stores of a password: enough to check it, not enough to log in elsewhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    /// The rounds of PBKDF2, at least one.
    pub iterations: u32,
    /// The salt of the password.
    pub salt: Vec<u8>,
    /// The hash of the client's key.
    pub stored_key: [u8; KEY_BYTES],
    /// The key by which a server proves that it holds this verifier.
    pub server_key: [u8; KEY_BYTES],
    /// Whether it is of nobody, so that no proof may fit.
    is_mock: bool,
}

impl Verifier {
    /// Reads `pg_authid.rolpassword`; `None` when it is no SCRAM verifier (an MD5 hash, for one).
    pub fn parse(text: &str) -> Option<Self> {
        let (head, keys) = text.strip_prefix(SCHEME)?.strip_prefix('$')?.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let key = |text: &str| base64::decode(text.as_bytes())?.try_into().ok();
        Some(Self {
            iterations: read_iterations(iterations.as_bytes())?,
            salt: base64::decode(salt.as_bytes()).filter(|salt| !salt.is_empty())?,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
            is_mock: false,
        })
    }

    /// A verifier for a user without one, so that an attacker cannot tell by the challenge who exists. The salt of a
    /// user is always the same for the same `secret`, which must stay unknown; no password fits.
    pub fn mock(user: &str, secret: &[u8; KEY_BYTES]) -> Self {
        let hash = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), user.as_bytes());
        Self {
            iterations: ITERATIONS,
            salt: hash.as_ref().iter().copied().take(SALT_BYTES).collect(),
            stored_key: [0; KEY_BYTES],
            server_key: [0; KEY_BYTES],
            is_mock: true,
        }
    }

    /// Whether it is of this password. Takes as long as `iterations` say.
    pub fn is_of(&self, password: &str) -> bool {
        let Some(rounds) = NonZeroU32::new(self.iterations) else { return false };
        let (stored_key, _) = derive(password, &self.salt, rounds);
        !self.is_mock && are_equal(&stored_key, &self.stored_key)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Verifier");
        shown.field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// What a client's proof reveals: enough to log in wherever the same verifier is stored. Overwritten when dropped.
pub struct Keys {
    client_key: [u8; KEY_BYTES],
    server_key: [u8; KEY_BYTES],
}

impl Keys {
    /// Whether they log in where this verifier is stored; no longer when the password has been changed.
    pub fn fit(&self, verifier: &Verifier) -> bool {
        let stored_key = digest::digest(&digest::SHA256, &self.client_key);
        are_equal(stored_key.as_ref(), &verifier.stored_key)
            && are_equal(&self.server_key, &verifier.server_key)
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.client_key.fill(0);
        self.server_key.fill(0);
        // Keeps the compiler from leaving out what nobody reads.
        std::hint::black_box(&self);
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// Why a login by SCRAM has failed. The session is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The other side breaks the protocol.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The client has chosen what was not offered.
    #[error("client selected an invalid SASL authentication mechanism")]
    Mechanism,
    /// The other side needs what neither PostgreSQL nor we support.
    #[error("SCRAM without support: {0}")]
    Unsupported(&'static str),
    /// The client could bind the channel but has been told that we cannot: somebody stands in between.
    #[error(
        "SCRAM channel binding negotiation error: the client supports channel binding but thinks the server does not"
    )]
    Downgrade,
    /// The client has bound another channel: somebody stands in between.
    #[error("SCRAM channel binding check failed")]
    Binding,
    /// The proof is of another password, or there is no such user.
    #[error("password authentication failed")]
    Password,
    /// A server has answered our proof with this error.
    #[error("the server refuses the SCRAM proof: {0}")]
    Refused(String),
    /// A server does not hold the verifier that the keys are of.
    #[error("the server's SCRAM signature is wrong: it does not hold this password's verifier")]
    ServerSignature,
}

impl ScramError {
    /// The SQLSTATE with which PostgreSQL reports it.
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Mechanism => "08P01",
            Self::Unsupported(_) => "0A000",
            Self::Downgrade | Self::Binding | Self::ServerSignature => "28000",
            Self::Password | Self::Refused(_) => "28P01",
        }
    }
}

/// The stored key and the server key of a password.
fn derive(password: &str, salt: &[u8], rounds: NonZeroU32) -> ([u8; KEY_BYTES], [u8; KEY_BYTES]) {
    // As the server does: a password that SASLprep forbids is used as it is.
    let prepared = stringprep::saslprep(password).unwrap_or(password.into());
    let mut salted = [0; KEY_BYTES];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, prepared.as_bytes(), &mut salted);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
    let stored_key = digest::digest(&digest::SHA256, hmac::sign(&key, b"Client Key").as_ref());
    let mut keys = ([0; KEY_BYTES], [0; KEY_BYTES]);
    keys.0.copy_from_slice(stored_key.as_ref());
    keys.1.copy_from_slice(hmac::sign(&key, b"Server Key").as_ref());
    keys
}

/// The rounds as a verifier or a challenge has them: digits, at least one.
fn read_iterations(text: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(text).ok()?;
    digits.parse().ok().filter(|rounds| *rounds > 0 && !digits.starts_with('+'))
}

/// Whether two keys are the same, in a time that does not tell where they differ.
fn are_equal(left: &[u8], right: &[u8]) -> bool {
    let pairs = left.iter().zip(right);
    let difference = pairs.fold(0, |sum, (left, right)| std::hint::black_box(sum | (left ^ right)));
    left.len() == right.len() && difference == 0
}

#[cfg(test)]
mod tests;
