//! A request of a client as far as it must be there before it can be sent anywhere: a Query, or all messages up to a
//! Sync. Pure.

use crate::router::upstream::{HEADER_BYTES, header};

/// How much of a request is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::router) enum Extent {
    /// More must come.
    Partial,
    /// All of it, in so many bytes.
    Whole(usize),
    /// It goes on after what is there, and nobody can say how: it is longer than what is kept, or the client wants
    /// answers before its end (Flush).
    Open,
}

/// How much of the first request in `data` is there, of which `max` bytes are waited for.
pub(in crate::router) fn extent(data: &[u8], max: usize) -> Extent {
    let mut at = 0;
    loop {
        let (tag, length) = match header(&data[at..]) {
            Ok(Some(header)) => header,
            Ok(None) => return Extent::Partial,
            // Whoever passes it on says what is wrong with it.
            Err(_) => return Extent::Open,
        };
        at += HEADER_BYTES + length;
        if at > max || matches!(tag, b'H' | b'X') {
            return Extent::Open;
        }
        if at > data.len() {
            return Extent::Partial;
        }
        if matches!(tag, b'Q' | b'F' | b'S') {
            return Extent::Whole(at);
        }
    }
}

/// The messages of a request that is there as a whole: their tags and bodies.
pub(in crate::router) fn messages(mut request: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (tag, length) = header(request).ok().flatten()?;
        let (message, rest) = request.split_at_checked(HEADER_BYTES + length)?;
        request = rest;
        Some((tag, &message[HEADER_BYTES..]))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::router::startup::put_message;

    fn said(messages: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        messages.iter().for_each(|(tag, body)| put_message(&mut out, *tag, &[body]));
        out
    }

    #[test]
    fn a_request_ends_with_its_query_or_sync() {
        let query = said(&[(b'Q', b"select 1\0"), (b'Q', b"select 2\0")]);
        assert_eq!(extent(&query, 100), Extent::Whole(query.len() / 2));
        for length in 0..query.len() / 2 {
            assert_eq!(extent(&query[..length], 100), Extent::Partial, "{length}");
        }
        let batch = said(&[(b'P', b"\0a\0\0\0"), (b'B', b"\0\0"), (b'E', b"\0"), (b'S', b"")]);
        let more = [&batch[..], &query].concat();
        assert_eq!(extent(&more, 100), Extent::Whole(batch.len()));
        let tags: Vec<u8> = messages(&batch).map(|(tag, _)| tag).collect();
        assert_eq!(tags, b"PBES");
        assert_eq!(extent(&more, batch.len() - 1), Extent::Open);
        for other in [&[(b'P', &b"\0a\0\0\0"[..]), (b'H', b"")][..], &[(b'X', b"")]] {
            assert_eq!(extent(&said(other), 100), Extent::Open);
        }
        assert_eq!(extent(b"Q\0\0\0\0", 100), Extent::Open);
        assert_eq!(extent(b"Q\x7f\xff\xff\xff", 100), Extent::Open);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes: Vec<u8>, max in 0_usize..100) {
            let _ = extent(&bytes, max);
            let _ = messages(&bytes).count();
        }
    }
}
