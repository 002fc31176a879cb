//! The client's side of an exchange: logs in with the keys that another login has revealed.

use std::sync::Arc;

use ring::{digest, hmac};

use super::message::{Attributes, is_nonce};
use super::{BOUND_HEADER, Keys, PLAIN, PLUS, ScramError, base64};

/// What a client binds its proof to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    /// A connection in clear, or one whose certificate has no hash of its own.
    Unbound,
    /// A connection by TLS whose server has not offered to bind it: one that has offered it, while somebody in between
    /// left that out, refuses the login.
    NotOffered,
    /// A connection by TLS to the server whose certificate has this hash
    /// ([`tls_server_end_point`](super::tls_server_end_point)).
    EndPoint(Vec<u8>),
}

impl Channel {
    /// For a connection whose server has a certificate with this hash (`None` without TLS) and offers these mechanisms.
    /// `None` when SCRAM-SHA-256 is not among them in any form.
    pub fn choose(end_point: Option<Vec<u8>>, offered: &[&[u8]]) -> Option<Self> {
        let offers = |mechanism: &str| offered.contains(&mechanism.as_bytes());
        match end_point {
            Some(hash) if offers(PLUS) => Some(Self::EndPoint(hash)),
            _ if !offers(PLAIN) => None,
            Some(_) => Some(Self::NotOffered),
            None => Some(Self::Unbound),
        }
    }

    /// What a client begins with.
    fn header(&self) -> &'static [u8] {
        match self {
            Self::Unbound => b"n,,",
            Self::NotOffered => b"y,,",
            Self::EndPoint(_) => BOUND_HEADER,
        }
    }

    /// The beginning of the client-final-message that says what is bound.
    fn binding(&self) -> String {
        let hash = match self {
            Self::EndPoint(hash) => &hash[..],
            Self::Unbound | Self::NotOffered => &[],
        };
        base64::encode(&[self.header(), hash].concat())
    }
}

/// One login to a server by SCRAM-SHA-256: [`first`](Self::first), [`reply`](Self::reply),
/// [`verify`](Self::verify). The server's verifier must be the one that the keys are of.
pub struct ClientExchange {
    keys: Arc<Keys>,
    channel: Channel,
    nonce: String,
    /// What both sides have signed, once we have.
    signed: Option<Vec<u8>>,
}

impl ClientExchange {
    /// A login with these keys; `nonce` is random and never used twice.
    pub fn new(keys: Arc<Keys>, channel: Channel, nonce: [u8; 18]) -> Self {
        Self { keys, channel, nonce: base64::encode(&nonce), signed: None }
    }

    /// The mechanism that the channel asks for.
    pub fn mechanism(&self) -> &'static str {
        match self.channel {
            Channel::Unbound | Channel::NotOffered => PLAIN,
            Channel::EndPoint(_) => PLUS,
        }
    }

    /// The client-first-message. It names no user: PostgreSQL takes the one of the start-up packet.
    pub fn first(&self) -> Vec<u8> {
        [self.channel.header(), self.bare().as_bytes()].concat()
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
        let binding = self.channel.binding();
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
