//! The client's side of an exchange: logs in with the keys that another login has revealed.

use std::sync::Arc;

use ring::{digest, hmac};

use super::message::{Attributes, is_nonce};
use super::{Keys, ScramError, base64};

/// What a client that does not bind the channel begins with.
const HEADER: &str = "n,,";

/// One login to a server by `SCRAM-SHA-256`: [`first`](Self::first), [`reply`](Self::reply),
/// [`verify`](Self::verify). The server's verifier must be the one that the keys are of.
pub struct ClientExchange {
    keys: Arc<Keys>,
    nonce: String,
    /// What both sides have signed, once we have.
    signed: Option<Vec<u8>>,
}

impl ClientExchange {
    /// A login with these keys; `nonce` is random and never used twice.
    pub fn new(keys: Arc<Keys>, nonce: [u8; 18]) -> Self {
        Self { keys, nonce: base64::encode(&nonce), signed: None }
    }

    /// The client-first-message. It names no user: PostgreSQL takes the one of the start-up packet.
    pub fn first(&self) -> Vec<u8> {
        format!("{HEADER}{}", self.bare()).into_bytes()
    }

    fn bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// Takes the server-first-message; gives the client-final-message.
    ///
    /// Errors when it is malformed or answers another client.
    pub fn reply(&mut self, server_first: &[u8]) -> Result<Vec<u8>, ScramError> {
        let mut attributes = Attributes::of(server_first)?;
        if attributes.rest.starts_with(b"m") {
            return Err(ScramError::Unsupported("a mandatory extension of SCRAM"));
        }
        let nonce = attributes.value(b'r')?;
        if !nonce.starts_with(self.nonce.as_bytes()) || !is_nonce(nonce) {
            return Err(ScramError::Malformed("the nonce is another"));
        }
        let salt = base64::decode(attributes.value(b's')?);
        let iterations = super::read_iterations(attributes.value(b'i')?);
        if salt.is_none() || iterations.is_none() {
            return Err(ScramError::Malformed("the salt or the iterations are none"));
        }
        if !attributes.rest.is_empty() {
            return Err(ScramError::Malformed("bytes after the iterations"));
        }
        let binding = base64::encode(HEADER.as_bytes());
        let mut message = [b"c=", binding.as_bytes(), b",r=", nonce].concat();
        let bare = self.bare();
        let signed = [bare.as_bytes(), b",", server_first, b",", &message].concat();
        message.extend_from_slice(format!(",p={}", self.proof(&signed)).as_bytes());
        self.signed = Some(signed);
        Ok(message)
    }

    fn proof(&self, signed: &[u8]) -> String {
        let stored_key = digest::digest(&digest::SHA256, &self.keys.client_key);
        let key = hmac::Key::new(hmac::HMAC_SHA256, stored_key.as_ref());
        let signature = hmac::sign(&key, signed);
        let bytes = signature.as_ref().iter().zip(&self.keys.client_key);
        base64::encode(&bytes.map(|(byte, mask)| byte ^ mask).collect::<Vec<u8>>())
    }

    /// Takes the server-final-message; whether the server knows the same verifier.
    ///
    /// Errors when it does not, when it refuses the proof, and when the message is malformed or comes too early.
    pub fn verify(&self, server_final: &[u8]) -> Result<(), ScramError> {
        let signed = self.signed.as_ref().ok_or(ScramError::Malformed("it comes too early"))?;
        let mut attributes = Attributes::of(server_final)?;
        let signature = match attributes.any()? {
            (b'v', value) => base64::decode(value),
            (b'e', value) => {
                return Err(ScramError::Refused(String::from_utf8_lossy(value).into_owned()));
            }
            _ => return Err(ScramError::Malformed("neither a signature nor an error")),
        };
        let signature = signature.ok_or(ScramError::Malformed("the signature is no base64"))?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.keys.server_key);
        hmac::verify(&key, signed, &signature).map_err(|_| ScramError::ServerSignature)
    }

    /// Takes the place of the random nonce.
    #[cfg(test)]
    pub(super) fn set_nonce(&mut self, nonce: &str) {
        self.nonce = nonce.to_owned();
    }
}
