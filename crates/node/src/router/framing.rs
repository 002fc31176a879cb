//! Follows the messages in a stream that is passed on as it is: where one ends, and what a few of them say.

/// The longest body that is kept of a message of interest: BackendKeyData with a key of 256 bytes.
const HEAD_BYTES_MAX: usize = 264;
const HEADER_BYTES: usize = 5;

/// A message that has just ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its type.
    pub tag: u8,
    /// The beginning of its body, for the tags that were asked for; else empty.
    pub head: &'a [u8],
}

/// A position in a stream of tagged messages. Bodies are skipped, not collected.
#[derive(Debug)]
pub struct Framer {
    /// How many bytes of a body to keep, by tag.
    keep: fn(u8) -> usize,
    header: [u8; HEADER_BYTES],
    header_filled: usize,
    body_left: usize,
    head: Vec<u8>,
    /// A length below 4 was seen: the stream is no longer understood.
    lost: bool,
}

impl Framer {
    /// At the beginning of a stream. `keep` says how many bytes of the body of each kind of message are wanted.
    pub fn new(keep: fn(u8) -> usize) -> Self {
        Self {
            keep,
            header: [0; HEADER_BYTES],
            header_filled: 0,
            body_left: 0,
            head: Vec::new(),
            lost: false,
        }
    }

    /// Whether all bytes so far are whole messages.
    pub fn at_boundary(&self) -> bool {
        self.header_filled == 0 && !self.lost
    }

    /// Whether the stream stopped making sense; it is then never at a boundary again.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Follows `bytes` and tells `seen` of each message that ends within them.
    pub fn follow(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Message<'_>)) {
        while !bytes.is_empty() {
            let (used, ended) = self.step(bytes);
            if ended {
                seen(Message { tag: self.header[0], head: &self.head });
            }
            bytes = &bytes[used..];
        }
    }

    /// Follows `bytes` to the end of the first message in them; how many bytes that took.
    pub fn follow_to_boundary(&mut self, bytes: &[u8], mut seen: impl FnMut(Message<'_>)) -> usize {
        let mut used = 0;
        while used < bytes.len() {
            let (more, ended) = self.step(&bytes[used..]);
            used += more;
            if ended {
                seen(Message { tag: self.header[0], head: &self.head });
                break;
            }
        }
        used
    }

    /// Takes bytes up to the end of a header or of a message: how many, and whether a message has ended.
    fn step(&mut self, bytes: &[u8]) -> (usize, bool) {
        if self.lost {
            return (bytes.len(), false);
        }
        if self.header_filled < HEADER_BYTES {
            let used = bytes.len().min(HEADER_BYTES - self.header_filled);
            self.header[self.header_filled..self.header_filled + used]
                .copy_from_slice(&bytes[..used]);
            self.header_filled += used;
            return (used, self.header_filled == HEADER_BYTES && self.begin_body());
        }
        let used = bytes.len().min(self.body_left);
        let wanted = (self.keep)(self.header[0]).min(HEAD_BYTES_MAX);
        if self.head.len() < wanted {
            let kept = used.min(wanted - self.head.len());
            self.head.extend_from_slice(&bytes[..kept]);
        }
        self.body_left -= used;
        (used, self.body_left == 0 && self.end_message())
    }

    /// The header is complete. Whether the message is, too, having no body.
    fn begin_body(&mut self) -> bool {
        let [_, length @ ..] = self.header;
        self.head.clear();
        match u32::from_be_bytes(length).checked_sub(4) {
            Some(0) => self.end_message(),
            Some(body) => {
                self.body_left = usize::try_from(body).unwrap_or(usize::MAX);
                false
            }
            None => {
                self.lost = true;
                false
            }
        }
    }

    fn end_message(&mut self) -> bool {
        self.header_filled = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn keep(tag: u8) -> usize {
        if tag == b'Z' { 1 } else { 0 }
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn messages_end_where_they_end_however_the_bytes_are_cut() {
        let bytes = [message(b'D', b"row"), message(b'1', b""), message(b'Z', b"I")].concat();
        for cut in 1..=bytes.len() {
            let mut framer = Framer::new(keep);
            let mut seen = Vec::new();
            for chunk in bytes.chunks(cut) {
                framer.follow(chunk, |message| seen.push((message.tag, message.head.to_vec())));
            }
            assert!(framer.at_boundary());
            assert_eq!(seen, [(b'D', vec![]), (b'1', vec![]), (b'Z', vec![b'I'])], "cut {cut}");
        }
    }

    #[test]
    fn stops_at_the_first_boundary() {
        let bytes = [message(b'D', b"row"), message(b'D', b"next")].concat();
        let mut framer = Framer::new(keep);
        framer.follow(&bytes[..3], |_| ());
        assert!(!framer.at_boundary());
        assert_eq!(framer.follow_to_boundary(&bytes[3..], |_| ()), 5);
        assert!(framer.at_boundary());
    }

    #[test]
    fn a_senseless_length_is_never_a_boundary() {
        let mut framer = Framer::new(keep);
        framer.follow(&[b'D', 0, 0, 0, 3, 0, 0], |_| panic!("no message"));
        assert!(framer.is_lost() && !framer.at_boundary());
    }

    proptest! {
        #[test]
        fn garbage_neither_panics_nor_is_kept(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut framer = Framer::new(|_| usize::MAX);
            framer.follow(&bytes, |message| assert!(message.head.len() <= HEAD_BYTES_MAX));
        }
    }
}
