//! Who listens to what on one shared connection, and how a client's channels come to it and leave it so that the
//! client misses no notification and gets none twice. Pure.
//!
//! All sessions of one database read the same queue of notifications, in the order of the commits. To hand a client's
//! channels from one connection to another, a *token* is notified on a channel that both listen to: whatever stands in
//! front of it in the queue is the first one's to deliver, whatever stands behind it the other's.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Marks one place in the queue of notifications.
pub(super) type Token = u64;

/// A client as it is registered.
#[derive(Debug, Default)]
struct Member {
    /// Its channels; those that wait for a token are not delivered yet.
    channels: BTreeMap<String, Option<Token>>,
    /// At this token its delivery ends.
    until: Option<Token>,
}

/// What a token has brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed<K> {
    /// From here on the client gets what its channels bring.
    Begins(K),
    /// The client has got what was in front of the token, and is not a member any more.
    Ended(K),
}

/// The members of one shared connection, and what it has to listen to for them.
#[derive(Debug)]
pub(super) struct Registry<K> {
    members: HashMap<K, Member>,
    /// Who listens, by channel.
    by_channel: HashMap<String, BTreeSet<K>>,
    /// What the connection listens to.
    listened: BTreeSet<String>,
}

impl<K> Default for Registry<K> {
    fn default() -> Self {
        Self { members: HashMap::new(), by_channel: HashMap::new(), listened: BTreeSet::new() }
    }
}

impl<K: Copy + Ord + std::hash::Hash> Registry<K> {
    /// Adds channels to a client's, which are delivered from the token on; those that it has stay as they are.
    pub(super) fn join(&mut self, member: K, channels: &BTreeSet<String>, from: Token) {
        let joined = self.members.entry(member).or_default();
        for channel in channels {
            joined.channels.entry(channel.clone()).or_insert(Some(from));
            self.by_channel.entry(channel.clone()).or_default().insert(member);
        }
    }

    /// Takes a client out, or undoes what it has joined from this token on.
    pub(super) fn leave(&mut self, member: K, from: Option<Token>) {
        let Some(leaving) = self.members.get_mut(&member) else { return };
        let goes = |since: &Option<Token>| from.is_none_or(|from| *since == Some(from));
        let gone: Vec<String> = leaving
            .channels
            .iter()
            .filter(|(_, since)| goes(since))
            .map(|(channel, _)| channel.clone())
            .collect();
        for channel in gone {
            leaving.channels.remove(&channel);
            if let Some(members) = self.by_channel.get_mut(&channel) {
                members.remove(&member);
                if members.is_empty() {
                    self.by_channel.remove(&channel);
                }
            }
        }
        if leaving.channels.is_empty() {
            self.members.remove(&member);
        }
    }

    /// A client's delivery is to end at this token; `None` takes that back.
    pub(super) fn end_at(&mut self, member: K, until: Option<Token>) {
        if let Some(member) = self.members.get_mut(&member) {
            member.until = until;
        }
    }

    /// The connection has read a token.
    pub(super) fn token(&mut self, token: Token) -> Option<Passed<K>> {
        let ends = |member: &Member| member.until == Some(token);
        if let Some(ended) = self.members.iter().find(|(_, member)| ends(member)) {
            let key = *ended.0;
            self.leave(key, None);
            return Some(Passed::Ended(key));
        }
        let mut begun = None;
        for (key, member) in &mut self.members {
            for since in member.channels.values_mut().filter(|since| **since == Some(token)) {
                *since = None;
                begun = Some(*key);
            }
        }
        begun.map(Passed::Begins)
    }

    /// The clients that get what this channel brings now.
    pub(super) fn heard<'a>(&'a self, channel: &'a str) -> impl Iterator<Item = K> + 'a {
        let listening = self.by_channel.get(channel).into_iter().flatten().copied();
        listening.filter(move |key| self.delivers(*key, channel))
    }

    /// Whether a client gets what this channel brings now.
    pub(super) fn delivers(&self, member: K, channel: &str) -> bool {
        let member = self.members.get(&member);
        member.and_then(|member| member.channels.get(channel)).is_some_and(Option::is_none)
    }

    /// At most so many channels that the connection must begin, and may end, to listen to.
    pub(super) fn difference(&self, max: usize) -> (Vec<String>, Vec<String>) {
        let begins = self.by_channel.keys().filter(|channel| !self.listened.contains(*channel));
        let ends = self.listened.iter().filter(|channel| !self.by_channel.contains_key(*channel));
        (begins.take(max).cloned().collect(), ends.take(max).cloned().collect())
    }

    /// The connection has done so.
    pub(super) fn listens(&mut self, (begun, ended): (Vec<String>, Vec<String>)) {
        self.listened.extend(begun);
        for channel in ended {
            self.listened.remove(&channel);
        }
    }

    /// How many channels there are, those included that nobody waits for any more.
    pub(super) fn channels(&self) -> usize {
        let left = self.listened.iter().filter(|channel| !self.by_channel.contains_key(*channel));
        self.by_channel.len() + left.count()
    }

    /// A client's channels.
    pub(super) fn of(&self, member: K) -> BTreeSet<String> {
        let member = self.members.get(&member);
        member.map(|member| member.channels.keys().cloned().collect()).unwrap_or_default()
    }

    /// How many channels a client has.
    pub(super) fn count_of(&self, member: K) -> usize {
        self.members.get(&member).map_or(0, |member| member.channels.len())
    }

    /// Whether nobody listens.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

/// A notification's body: the process that sent it, the channel, and the payload.
pub(super) fn parse(body: &[u8]) -> Option<(u32, &str, &[u8])> {
    let (pid, rest) = body.split_first_chunk::<4>()?;
    let mut texts = rest.split(|byte| *byte == 0);
    let channel = std::str::from_utf8(texts.next()?).ok()?;
    Some((u32::from_be_bytes(*pid), channel, texts.next()?))
}

/// What was heard in front of a token on the channel `post`, and behind it; `None` if it was not heard. Other tokens
/// are left out.
pub(super) fn split_at<B: AsRef<[u8]>>(
    heard: Vec<B>,
    post: &str,
    token: Token,
) -> Option<(Vec<B>, Vec<B>)> {
    let (mut before, mut behind, mut passed) = (Vec::new(), Vec::new(), false);
    let text = token.to_string();
    for body in heard {
        match parse(body.as_ref()) {
            Some((_, channel, payload)) if channel == post => passed |= payload == text.as_bytes(),
            _ if passed => behind.push(body),
            _ => before.push(body),
        }
    }
    passed.then_some((before, behind))
}

#[cfg(test)]
mod tests;
