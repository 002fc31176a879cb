//! The password of the role that owns the database, which is kept only as a SCRAM verifier.

use std::num::NonZeroU32;

use super::{Config, DEFAULT_PASSWORD};

/// The verifier of a password, with a salt of its own, as `CREATE ROLE … PASSWORD` takes it.
pub fn verifier(password: &str) -> String {
    postgres_protocol::password::scram_sha_256(password.as_bytes())
}

/// Whether the configured verifier is that of the default password. No, when there is none or it cannot be read.
pub fn has_default_password(config: &Config) -> bool {
    let Some(file) = &config.role_verifier_file else { return false };
    std::fs::read_to_string(file).is_ok_and(|text| belongs_to(text.trim(), DEFAULT_PASSWORD))
}

/// Whether a verifier, `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, was made of an ASCII password.
pub(super) fn belongs_to(verifier: &str, password: &str) -> bool {
    let check = || -> Option<bool> {
        let (head, keys) = verifier.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let stored = decode_base64(keys.split_once(':')?.0)?;
        let iterations = NonZeroU32::new(iterations.parse().ok()?)?;
        let mut salted = [0_u8; 32];
        ring::pbkdf2::derive(
            ring::pbkdf2::PBKDF2_HMAC_SHA256,
            iterations,
            &decode_base64(salt)?,
            password.as_bytes(),
            &mut salted,
        );
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &salted);
        let client_key = ring::hmac::sign(&key, b"Client Key");
        let digest = ring::digest::digest(&ring::digest::SHA256, client_key.as_ref());
        Some(digest.as_ref() == stored.as_slice())
    };
    check().unwrap_or(false)
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for letter in text.trim_end_matches('=').bytes() {
        let value = ALPHABET.iter().position(|known| *known == letter)?;
        bits = (bits << 6) | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    Some(bytes)
}
