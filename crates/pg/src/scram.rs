//! The verifier that PostgreSQL stores instead of a password (`pg_authid.rolpassword`).

use std::num::NonZeroU32;

use ring::{digest, hmac, pbkdf2};

/// PostgreSQL's number of PBKDF2 rounds for new verifiers (`scram_iterations`).
pub const ITERATIONS: u32 = 4096;

/// The text `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>` for `CREATE ROLE … PASSWORD '…'`.
///
/// The same password, salt and iterations give the same text, so that all servers can hold the same verifier. An
/// `iterations` of zero counts as one.
pub fn verifier(password: &str, salt: [u8; 16], iterations: u32) -> String {
    let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    // As the server does: a password that SASLprep forbids is used as it is.
    let prepared = stringprep::saslprep(password).unwrap_or(password.into());
    let mut salted = [0; digest::SHA256_OUTPUT_LEN];
    let bytes = prepared.as_bytes();
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, bytes, &mut salted);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
    let stored_key = digest::digest(&digest::SHA256, hmac::sign(&key, b"Client Key").as_ref());
    let server_key = hmac::sign(&key, b"Server Key");
    format!(
        "SCRAM-SHA-256${rounds}:{}${}:{}",
        base64(&salt),
        base64(stored_key.as_ref()),
        base64(server_key.as_ref())
    )
}

/// Standard base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let symbol = ALPHABET[(group >> (18 - 6 * place)) as usize & 63] as char;
            text.push(if place <= chunk.len() { symbol } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    /// Computed by `postgres_protocol::password` (its own test has the same numbers).
    #[test]
    fn the_verifier_of_postgresql() {
        let salt = std::array::from_fn(|index| index as u8 + 1);
        assert_eq!(
            verifier("secret", salt, ITERATIONS),
            "SCRAM-SHA-256$4096:AQIDBAUGBwgJCgsMDQ4PEA==$\
             8rrDg00OqaiWXJ7p+sCgHEIaBSHY89ZJl3mfIsf32oY=:05L1f+yZbiN8O0AnO40Og85NNRhvzTS57naKRWCcsIA="
        );
    }
}
