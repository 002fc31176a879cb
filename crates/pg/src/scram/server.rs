//! The server's side of an exchange: checks a client's proof against a verifier.

use ring::{digest, hmac};

use super::message::{Attributes, is_nonce};
use super::{BOUND_HEADER, KEY_BYTES, Keys, PLAIN, PLUS, ScramError, Verifier, are_equal, base64};

/// One client's login: [`first`](Self::first), then [`finish`](Self::finish).
pub struct ServerExchange {
    verifier: Verifier,
    end_point: Option<Vec<u8>>,
    /// Our part of the nonce.
    nonce: String,
    /// What of the first two messages the second half needs; `None` before and after.
    begun: Option<Begun>,
    /// Whether the first half has been tried: a nonce serves once.
    is_used: bool,
}

struct Begun {
    /// What the client must bind, in base64.
    binding: String,
    /// Whether the channel is bound.
    is_bound: bool,
    /// Both parts of the nonce.
    nonce: Vec<u8>,
    /// The beginning of what is signed: the client's first message and ours.
    signed: Vec<u8>,
}

impl ServerExchange {
    /// A login against `verifier`. `end_point` is what [`tls_server_end_point`](super::tls_server_end_point) gives of
    /// our certificate when the client is connected by TLS; `nonce` is random and never used twice.
    pub fn new(verifier: Verifier, end_point: Option<Vec<u8>>, nonce: [u8; 18]) -> Self {
        Self { verifier, end_point, nonce: base64::encode(&nonce), begun: None, is_used: false }
    }

    /// What the client may choose from, the best first.
    pub fn mechanisms(&self) -> &'static [&'static str] {
        if self.end_point.is_some() { &[PLUS, PLAIN] } else { &[PLAIN] }
    }

    /// Takes the client's choice and its client-first-message; gives the server-first-message.
    ///
    /// Errors on a mechanism that was not offered, on a malformed message, on what is not supported, and when the
    /// client has been made to believe that we do not bind channels.
    pub fn first(&mut self, mechanism: &str, client_first: &[u8]) -> Result<Vec<u8>, ScramError> {
        if std::mem::replace(&mut self.is_used, true) {
            return Err(ScramError::Malformed("it comes twice"));
        }
        if !self.mechanisms().contains(&mechanism) {
            return Err(ScramError::Mechanism);
        }
        let is_bound = mechanism == PLUS;
        let bare = self.read_header(is_bound, client_first)?;
        let header = &client_first[..client_first.len() - bare.len()];
        let client_nonce = read_bare(bare)?;
        let nonce = [client_nonce, self.nonce.as_bytes()].concat();
        let salt = base64::encode(&self.verifier.salt);
        let challenge = format!(",s={salt},i={}", self.verifier.iterations);
        let server_first = [b"r=", &nonce[..], challenge.as_bytes()].concat();
        let bound_to = if is_bound { self.end_point.as_deref().unwrap_or_default() } else { &[] };
        self.begun = Some(Begun {
            binding: base64::encode(&[header, bound_to].concat()),
            is_bound,
            nonce,
            signed: [bare, b",", &server_first[..], b","].concat(),
        });
        Ok(server_first)
    }

    /// Reads the part of a client-first-message that says what is bound; gives the rest.
    fn read_header<'a>(&self, is_bound: bool, message: &'a [u8]) -> Result<&'a [u8], ScramError> {
        let rest = Attributes::of(message)?.rest;
        if is_bound {
            if let Some(bare) = rest.strip_prefix(BOUND_HEADER) {
                return Ok(bare);
            }
            return Err(match rest {
                [b'n' | b'y', ..] => ScramError::Malformed("it does not bind the channel"),
                [b'p', b'=', ..] if !rest.starts_with(b"p=tls-server-end-point,") => {
                    ScramError::Malformed("another channel binding than tls-server-end-point")
                }
                [b'p', b'=', ..] => identity(&rest[BOUND_HEADER.len() - 1..]),
                _ => ScramError::Malformed("an unknown channel binding flag"),
            });
        }
        match rest {
            [b'y', ..] if self.end_point.is_some() => Err(ScramError::Downgrade),
            [b'n' | b'y', b',', b',', bare @ ..] => Ok(bare),
            [b'n' | b'y', b',', after @ ..] => Err(identity(after)),
            [b'n' | b'y', ..] => Err(ScramError::Malformed("a comma was expected")),
            [b'p', ..] => Err(ScramError::Malformed("it binds the channel unasked")),
            _ => Err(ScramError::Malformed("an unknown channel binding flag")),
        }
    }

    /// Takes the client-final-message; gives the server-final-message and what the proof has revealed.
    ///
    /// Errors with [`ScramError::Password`] when the proof is not of this password, with others when the message is
    /// malformed, does not belong to this exchange, or binds another channel.
    pub fn finish(&mut self, client_final: &[u8]) -> Result<(Vec<u8>, Keys), ScramError> {
        let begun = self.begun.take().ok_or(ScramError::Malformed("it comes too early"))?;
        let mut attributes = Attributes::of(client_final)?;
        if attributes.value(b'c')? != begun.binding.as_bytes() {
            return Err(match begun.is_bound {
                true => ScramError::Binding,
                false => ScramError::Malformed("it binds another channel than it began with"),
            });
        }
        let nonce = attributes.value(b'r')?;
        let (before_proof, proof) = loop {
            let before = client_final.len() - attributes.rest.len();
            if let (b'p', value) = attributes.any()? {
                // Without the comma in front of the proof.
                break (&client_final[..before - 1], value);
            }
        };
        let proof = base64::decode(proof).and_then(|proof| <[u8; KEY_BYTES]>::try_from(proof).ok());
        let proof = proof.ok_or(ScramError::Malformed("the proof is no base64 of 32 bytes"))?;
        if !attributes.rest.is_empty() {
            return Err(ScramError::Malformed("bytes after the proof"));
        }
        if nonce != begun.nonce {
            return Err(ScramError::Malformed("the nonce is another"));
        }
        self.check([&begun.signed[..], before_proof].concat(), proof)
    }

    fn check(
        &self,
        signed: Vec<u8>,
        proof: [u8; KEY_BYTES],
    ) -> Result<(Vec<u8>, Keys), ScramError> {
        let stored_key = hmac::Key::new(hmac::HMAC_SHA256, &self.verifier.stored_key);
        let signature = hmac::sign(&stored_key, &signed);
        let mut keys = Keys { client_key: proof, server_key: self.verifier.server_key };
        for (byte, mask) in keys.client_key.iter_mut().zip(signature.as_ref()) {
            *byte ^= mask;
        }
        let hash = digest::digest(&digest::SHA256, &keys.client_key);
        let is_right = are_equal(hash.as_ref(), &self.verifier.stored_key);
        if !is_right || self.verifier.is_mock {
            return Err(ScramError::Password);
        }
        let server_key = hmac::Key::new(hmac::HMAC_SHA256, &keys.server_key);
        let signature = hmac::sign(&server_key, &signed);
        Ok((format!("v={}", base64::encode(signature.as_ref())).into_bytes(), keys))
    }

    /// Takes the place of the random part of the nonce.
    #[cfg(test)]
    pub(super) fn set_nonce(&mut self, nonce: &str) {
        self.nonce = nonce.to_owned();
    }
}

/// Why what stands where an authorization identity may stand is refused.
fn identity(rest: &[u8]) -> ScramError {
    match rest {
        [b'a', ..] => ScramError::Unsupported("an authorization identity"),
        _ => ScramError::Malformed("an unknown attribute in front of the user"),
    }
}

/// The client's nonce. The user is not read: it is the one of the start-up packet, as with PostgreSQL.
fn read_bare(bare: &[u8]) -> Result<&[u8], ScramError> {
    if bare.starts_with(b"m") {
        return Err(ScramError::Unsupported("a mandatory extension of SCRAM"));
    }
    let mut attributes = Attributes { rest: bare };
    attributes.value(b'n')?;
    let nonce = attributes.value(b'r')?;
    if !is_nonce(nonce) {
        return Err(ScramError::Malformed("the nonce has characters that are not printable"));
    }
    while !attributes.rest.is_empty() {
        attributes.any()?;
    }
    Ok(nonce)
}
