//! Standard base64 with padding (RFC 4648 §4), as SCRAM's messages and verifiers are written.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The text of some bytes.
pub(super) fn encode(bytes: &[u8]) -> String {
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

/// The bytes of a text; `None` unless all of it is base64 with its padding. Bits beyond the last byte are ignored, as
/// the server ignores them.
pub(super) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let (quads, rest) = text.as_chunks::<4>();
    if !rest.is_empty() {
        return None;
    }
    let mut bytes = Vec::with_capacity(quads.len() * 3);
    for (index, quad) in quads.iter().enumerate() {
        let padding = match quad {
            [.., b'=', b'='] => 2,
            [.., b'='] => 1,
            _ => 0,
        };
        if padding > 0 && index + 1 < quads.len() {
            return None;
        }
        let mut group = 0;
        for symbol in &quad[..4 - padding] {
            group = group << 6 | u32::from(value(*symbol)?);
        }
        let [_, decoded @ ..] = (group << (6 * padding)).to_be_bytes();
        bytes.extend_from_slice(&decoded[..3 - padding]);
    }
    Some(bytes)
}

fn value(symbol: u8) -> Option<u8> {
    match symbol {
        b'A'..=b'Z' => Some(symbol - b'A'),
        b'a'..=b'z' => Some(symbol - b'a' + 26),
        b'0'..=b'9' => Some(symbol - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn of_rfc_4648() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text.as_bytes()).unwrap(), bytes.as_bytes());
        }
    }

    #[test]
    fn refuses_what_is_none() {
        for text in
            ["A", "Zg", "Zg=", "Z===", "====", "Zg==Zm9v", "Zm9v\n", " Zm9", "Zm9-", "Z=9v", "Zm=v"]
        {
            assert_eq!(decode(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn round_trips(bytes: Vec<u8>) {
            prop_assert_eq!(decode(encode(&bytes).as_bytes()), Some(bytes));
        }

        #[test]
        fn nothing_panics(bytes: Vec<u8>, text in "[A-Za-z0-9+/=]{0,12}") {
            let _ = decode(&bytes);
            if let Some(decoded) = decode(text.as_bytes()) {
                prop_assert_eq!(decoded.len().div_ceil(3), text.len() / 4);
            }
        }
    }
}
