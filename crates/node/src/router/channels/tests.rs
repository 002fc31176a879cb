//! The registry and the handing over against a model: PostgreSQL's queue of notifications, and what a client that
//! listens on one connection for all its life would hear.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// The channel of the tokens.
const POST: &str = "post";

fn set(channels: &[&str]) -> BTreeSet<String> {
    channels.iter().map(|channel| (*channel).to_owned()).collect()
}

fn body(channel: &str, payload: &str) -> Vec<u8> {
    [&7_u32.to_be_bytes()[..], channel.as_bytes(), b"\0", payload.as_bytes(), b"\0"].concat()
}

#[test]
fn a_body_is_read() {
    assert_eq!(parse(&body("a", "x y")), Some((7, "a", &b"x y"[..])));
    assert_eq!(parse(&body("a", "")), Some((7, "a", &b""[..])));
    // A payload may be in any encoding, the name of a channel may not.
    assert_eq!(parse(b"\0\0\0\x01a\0\xff\0"), Some((1, "a", &b"\xff"[..])));
    for broken in [&b""[..], b"\0\0\0", b"\0\0\0\x01a", b"\0\0\0\x01\xff\0x\0"] {
        assert_eq!(parse(broken), None, "{broken:?}");
    }
}

#[test]
fn what_was_heard_is_cut_at_the_token() {
    let heard =
        || vec![body("a", "1"), body(POST, "8"), body("b", "2"), body(POST, "9"), body("a", "3")];
    let cut = split_at(heard(), POST, 9).unwrap();
    assert_eq!(cut, (vec![body("a", "1"), body("b", "2")], vec![body("a", "3")]));
    assert_eq!(split_at(heard(), POST, 7), None);
    assert_eq!(split_at(heard(), "other", 9), None);
}

#[test]
fn a_channel_is_listened_to_while_somebody_wants_it() {
    let mut registry = Registry::default();
    registry.join(1, &set(&["a", "b"]), 10);
    registry.join(2, &set(&["b", "c"]), 11);
    assert_eq!(registry.channels(), 3);
    let mut difference = registry.difference(9);
    difference.0.sort();
    assert_eq!(difference, (vec!["a".to_owned(), "b".to_owned(), "c".to_owned()], vec![]));
    registry.listens(difference);
    assert_eq!(registry.difference(9), (vec![], vec![]));
    registry.leave(1, None);
    assert_eq!(registry.difference(9), (vec![], vec!["a".to_owned()]));
    // Wanted again before it was given up.
    registry.join(3, &set(&["a"]), 12);
    assert_eq!(registry.difference(9), (vec![], vec![]));
    registry.leave(2, None);
    registry.leave(3, None);
    assert!(registry.is_empty());
    let difference = registry.difference(2);
    assert_eq!((difference.0.len(), difference.1.len()), (0, 2));
    registry.listens(difference);
    assert_eq!((registry.difference(9).1.len(), registry.channels()), (1, 1));
}

#[test]
fn delivery_begins_and_ends_at_a_token() {
    let mut registry = Registry::default();
    registry.join(1, &set(&["a"]), 10);
    assert_eq!(registry.heard("a").count(), 0);
    assert_eq!(registry.token(9), None);
    assert_eq!(registry.token(10), Some(Passed::Begins(1)));
    // More channels of the same client wait for a token of their own.
    registry.join(1, &set(&["a", "b"]), 11);
    assert!(registry.delivers(1, "a") && !registry.delivers(1, "b"));
    // They are given up, as if they had never been asked for.
    registry.leave(1, Some(11));
    assert_eq!((registry.of(1), registry.count_of(1)), (set(&["a"]), 1));
    registry.end_at(1, Some(12));
    registry.end_at(1, None);
    assert_eq!(registry.token(12), None);
    registry.end_at(1, Some(13));
    assert_eq!(registry.heard("a").collect::<Vec<_>>(), [1]);
    assert_eq!(registry.token(13), Some(Passed::Ended(1)));
    assert!(registry.is_empty());
}

/// One client whose channels change, while somebody notifies and the shared connection reads when it likes.
#[derive(Default)]
struct World {
    /// Channel and payload of each notification, in the order of the commits.
    queue: Vec<(String, String)>,
    registry: Registry<u32>,
    /// How much of the queue the shared connection has read.
    shared_at: usize,
    /// What the client's own connection listens to, and how much it has read.
    own: BTreeSet<String>,
    own_at: usize,
    /// What it has not passed on.
    held: Vec<Vec<u8>>,
    tokens: Token,
    ended: bool,
    got: Vec<String>,
    /// What the client would have heard on a connection of its own.
    wanted: Vec<String>,
    channels: BTreeSet<String>,
}

impl World {
    fn notify(&mut self, channel: &str) {
        let payload = self.queue.len().to_string();
        if self.channels.contains(channel) {
            self.wanted.push(payload.clone());
        }
        self.queue.push((channel.to_owned(), payload));
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        self.tokens
    }

    fn post(&mut self, token: Token) {
        self.queue.push((POST.to_owned(), token.to_string()));
    }

    fn read_shared(&mut self, upto: usize) {
        while self.shared_at < upto.min(self.queue.len()) {
            let (channel, payload) = self.queue[self.shared_at].clone();
            self.shared_at += 1;
            if channel == POST {
                let passed = self.registry.token(payload.parse().unwrap());
                self.ended |= passed == Some(Passed::Ended(1));
            } else if self.registry.listened.contains(&channel) {
                let count = self.registry.heard(&channel).count();
                self.got.extend(std::iter::repeat_n(payload, count));
            }
        }
    }

    fn read_own(&mut self) {
        for (channel, payload) in &self.queue[self.own_at..] {
            if self.own.contains(channel) || channel == POST && !self.own.is_empty() {
                self.held.push(body(channel, payload));
            }
        }
        self.own_at = self.queue.len();
    }

    fn pass_on(&mut self, bodies: Vec<Vec<u8>>) {
        for body in bodies {
            let (_, channel, payload) = parse(&body).unwrap();
            if channel != POST && !self.registry.delivers(1, channel) {
                self.got.push(String::from_utf8(payload.to_vec()).unwrap());
            }
        }
    }

    /// From the client's own connection to the shared one; others notify in between.
    fn share(&mut self, noise: &[usize]) {
        self.read_own();
        let token = self.token();
        self.registry.join(1, &self.own.clone(), token);
        self.noise(noise);
        // LISTEN begins behind what is in the queue by then.
        let unread = self.queue.len();
        self.read_shared(unread);
        let difference = self.registry.difference(100);
        self.registry.listens(difference);
        self.noise(noise);
        self.post(token);
        self.read_own();
        self.noise(noise);
        self.read_own();
        let (before, _) = split_at(std::mem::take(&mut self.held), POST, token).unwrap();
        self.pass_on(before);
        self.own.clear();
    }

    /// From the shared connection to one that the client is lent.
    fn take(&mut self, noise: &[usize]) {
        let token = self.token();
        self.registry.end_at(1, Some(token));
        self.own = self.registry.of(1);
        self.own_at = self.queue.len();
        self.noise(noise);
        self.post(token);
        self.noise(noise);
        self.read_own();
        self.ended = false;
        self.read_shared(usize::MAX);
        assert!(self.ended || self.own.is_empty());
        if self.own.is_empty() {
            return;
        }
        let (_, behind) = split_at(std::mem::take(&mut self.held), POST, token).unwrap();
        self.pass_on(behind);
    }

    fn noise(&mut self, noise: &[usize]) {
        for channel in noise {
            self.notify(["a", "b", "c"][channel % 3]);
        }
    }
}

proptest! {
    /// Whatever a client begins and ends to listen to, and whenever: nothing is missed, doubled or out of order.
    #[test]
    fn nothing_is_missed_and_nothing_doubled(
        changes in prop::collection::vec(
            (prop::collection::btree_set(0..3_usize, 0..=3), prop::collection::vec(0..3_usize, 0..4), any::<bool>()),
            1..12,
        ),
    ) {
        let mut world = World::default();
        for (wanted, noise, reads) in changes {
            world.take(&noise);
            // The client's transaction commits on its own connection.
            world.channels = wanted.iter().map(|channel| ["a", "b", "c"][*channel].to_owned()).collect();
            world.read_own();
            world.own = world.channels.clone();
            world.own_at = world.queue.len();
            let held = std::mem::take(&mut world.held);
            world.pass_on(held);
            world.noise(&noise);
            if !world.own.is_empty() {
                world.share(&noise);
            }
            world.noise(&noise);
            if reads {
                world.read_shared(usize::MAX);
            }
        }
        world.read_shared(usize::MAX);
        prop_assert_eq!(world.got, world.wanted);
    }
}
