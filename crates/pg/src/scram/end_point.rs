//! The channel binding `tls-server-end-point` (RFC 5929 §4): the hash of a server's certificate.

use ring::digest::{self, Algorithm, SHA256, SHA384, SHA512};

/// DER's tag of a SEQUENCE.
const SEQUENCE: u8 = 0x30;
/// DER's tag of an OBJECT IDENTIFIER.
const OBJECT_IDENTIFIER: u8 = 0x06;
/// DER's tag of `[0]` around a value.
const EXPLICIT_0: u8 = 0xa0;

/// 1.2.840.113549.1.1, PKCS #1; what follows is one byte.
const PKCS_1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
/// 1.2.840.10045.4.3, ECDSA with SHA-2.
const ECDSA_SHA_2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
/// 1.2.840.10045.4.1, ECDSA with SHA-1.
const ECDSA_SHA_1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
/// 2.16.840.1.101.3.4.2, NIST's hashes.
const NIST_HASHES: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];

/// The hash of a certificate (DER), by the hash of its signature algorithm, SHA-256 in place of MD5 and SHA-1.
///
/// `None` when the bytes are no certificate, or when its algorithm has no hash of its own (Ed25519) or one that is not
/// in use (SHA-224): such a server cannot offer channel binding.
pub fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (certificate_fields, _) = take(certificate, SEQUENCE)?;
    let (_, after_signed_part) = take(certificate_fields, SEQUENCE)?;
    let (algorithm_fields, _) = take(after_signed_part, SEQUENCE)?;
    let hash = hash_of_signature(algorithm_fields)?;
    Some(digest::digest(hash, certificate).as_ref().to_vec())
}

fn hash_of_signature(fields: &[u8]) -> Option<&'static Algorithm> {
    let (identifier, parameters) = take(fields, OBJECT_IDENTIFIER)?;
    if identifier == ECDSA_SHA_1 {
        return Some(&SHA256);
    }
    let (last, family) = identifier.split_last()?;
    match (family, last) {
        (PKCS_1, 4 | 5 | 11) | (ECDSA_SHA_2, 2) => Some(&SHA256),
        (PKCS_1, 12) | (ECDSA_SHA_2, 3) => Some(&SHA384),
        (PKCS_1, 13) | (ECDSA_SHA_2, 4) => Some(&SHA512),
        (PKCS_1, 10) => hash_of_pss(parameters),
        _ => None,
    }
}

/// RSASSA-PSS names its hash in its parameters; SHA-1 when it does not (RFC 4055 §3.1).
fn hash_of_pss(parameters: &[u8]) -> Option<&'static Algorithm> {
    let (parameters, _) = take(parameters, SEQUENCE)?;
    let Some((wrapped, _)) = take(parameters, EXPLICIT_0) else { return Some(&SHA256) };
    let (algorithm, _) = take(wrapped, SEQUENCE)?;
    let (identifier, _) = take(algorithm, OBJECT_IDENTIFIER)?;
    match identifier.split_last()? {
        (1, NIST_HASHES) => Some(&SHA256),
        (2, NIST_HASHES) => Some(&SHA384),
        (3, NIST_HASHES) => Some(&SHA512),
        _ => None,
    }
}

/// The contents of the value with this tag at the front, and what follows it.
fn take(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let [tag, length, rest @ ..] = bytes else { return None };
    if *tag != wanted {
        return None;
    }
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        // The length of the length; a certificate of 4 GiB is none.
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn der(tag: u8, contents: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag, 0x82, (contents.len() >> 8) as u8, contents.len() as u8];
        bytes.extend_from_slice(contents);
        bytes
    }

    fn identifier(family: &[u8], last: u8) -> Vec<u8> {
        der(OBJECT_IDENTIFIER, &[family, &[last]].concat())
    }

    /// What stands where it must in a certificate with this signature algorithm.
    fn certificate(algorithm: &[u8]) -> Vec<u8> {
        let signed = der(SEQUENCE, &[7; 300]);
        der(SEQUENCE, &[signed, der(SEQUENCE, algorithm), der(3, &[0; 64])].concat())
    }

    fn check(certificate: &[u8], hash: Option<&'static Algorithm>) {
        let expected = hash.map(|hash| digest::digest(hash, certificate).as_ref().to_vec());
        assert_eq!(tls_server_end_point(certificate), expected);
    }

    #[test]
    fn real_certificates() {
        for (algorithm, hash) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Some(&SHA256)),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Some(&SHA384)),
            (&rcgen::PKCS_ED25519, None),
        ] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let names = vec!["localhost".to_owned()];
            let made = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
            check(made.der(), hash);
        }
    }

    #[test]
    fn every_algorithm() {
        for (family, last, hash) in [
            (PKCS_1, 4, Some(&SHA256)),
            (PKCS_1, 5, Some(&SHA256)),
            (PKCS_1, 11, Some(&SHA256)),
            (PKCS_1, 12, Some(&SHA384)),
            (PKCS_1, 13, Some(&SHA512)),
            (PKCS_1, 14, None),
            (ECDSA_SHA_2, 1, None),
            (ECDSA_SHA_2, 4, Some(&SHA512)),
            (&ECDSA_SHA_1[..6], 1, Some(&SHA256)),
        ] {
            check(&certificate(&identifier(family, last)), hash);
        }
        for (last, hash) in [(1, Some(&SHA256)), (2, Some(&SHA384)), (3, Some(&SHA512)), (4, None)]
        {
            let named = der(EXPLICIT_0, &der(SEQUENCE, &identifier(NIST_HASHES, last)));
            let pss = [identifier(PKCS_1, 10), der(SEQUENCE, &named)].concat();
            check(&certificate(&pss), hash);
        }
        let pss = [identifier(PKCS_1, 10), der(SEQUENCE, &[])].concat();
        check(&certificate(&pss), Some(&SHA256));
    }

    proptest! {
        #[test]
        fn nothing_panics(mut bytes: Vec<u8>, at: usize, byte: u8, cut: usize) {
            tls_server_end_point(&bytes);
            bytes = certificate(&identifier(PKCS_1, 11));
            let index = at % bytes.len();
            bytes[index] = byte;
            tls_server_end_point(&bytes);
            tls_server_end_point(&bytes[..cut % bytes.len()]);
        }
    }
}
