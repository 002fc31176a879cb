//! What a session must see: how consistent its reads are, and the token of what it has written. Pure.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;

use crate::gossip::View;

/// How consistent the reads of a session are (`synapsedb.consistency`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Each transaction reads from whichever node has the least to do, as far as that node is.
    Eventual,
    /// A session sees what it has written, and stays on its node while that serves.
    #[default]
    Session,
}

impl Consistency {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Eventual => "eventual",
            Self::Session => "session",
        }
    }

    /// As `SET synapsedb.consistency` has it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Eventual, Self::Session]
            .into_iter()
            .find(|one| text.eq_ignore_ascii_case(one.name()))
    }
}

/// What decides where a session may read.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    pub(super) consistency: Consistency,
    /// The node it reads from, and writes to on the read endpoint.
    pub(super) home: Option<NodeId>,
    /// What it must see: of each origin everything up to an LSN.
    pub(super) token: VersionVector,
}

impl Reading {
    /// Whether a node shows the session all that it must see, by what gossip tells of the nodes.
    pub(super) fn may_read(&self, node: NodeId, view: &View) -> bool {
        self.consistency == Consistency::Eventual
            || self.token.iter().all(|(origin, lsn)| origin == node || has(node, origin, lsn, view))
    }
}

/// Whether `node` has applied all that `origin` had committed up to `lsn`.
fn has(node: NodeId, origin: NodeId, lsn: Lsn, view: &View) -> bool {
    let facts = |node| view.members.get(&node).and_then(|member| member.facts.as_ref());
    let applied = facts(node).map_or(Lsn::ZERO, |facts| facts.applied.get(origin));
    if applied >= lsn {
        return true;
    }
    // The LSN may lie behind the last commit in front of it: then there is nothing more to wait for when the origin
    // has read its WAL beyond it, and what it had published by then is applied.
    facts(origin).is_some_and(|facts| {
        let read = Lsn(facts.wal_lsn.0.saturating_sub(facts.unread_bytes));
        read >= lsn && applied >= facts.published_lsn
    })
}

/// A token as text: `1=0/16B3748,3=0/2000028`.
pub(super) fn to_text(token: &VersionVector) -> String {
    let mut text = String::new();
    for (origin, lsn) in token.iter() {
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{origin}={lsn}");
    }
    text
}

/// Reads a token; `None` when it is none.
pub(super) fn from_text(text: &str) -> Option<VersionVector> {
    let mut token = VersionVector::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (origin, lsn) = part.split_once('=')?;
        token.advance(NodeId::new(origin.parse().ok()?)?, lsn.parse().ok()?);
    }
    Some(token)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::{Seen, node, view};
    use super::*;

    fn reading(text: &str) -> Reading {
        Reading { token: from_text(text).unwrap(), ..Reading::default() }
    }

    #[test]
    fn tokens_are_read_as_they_are_written() {
        for text in ["", "1=0/16B3748", "1=0/10,3=1/2000028"] {
            assert_eq!(to_text(&from_text(text).unwrap()), text);
        }
        assert_eq!(to_text(&from_text("1=0/10, 1=0/20").unwrap()), "1=0/20");
        for bad in ["x", "1", "1=", "0=0/1", "99=0/1", "1=0/1;2=0/1", "1=zz"] {
            assert!(from_text(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_node_is_read_from_when_it_has_what_the_token_names() {
        let mut view = view(&[Seen::Ready, Seen::Ready]);
        let wanted = reading("1=0/100");
        assert!(wanted.may_read(node(1), &view), "the origin has what it has committed");
        assert!(!wanted.may_read(node(2), &view));
        let applied = |view: &mut View, lsn: u64| {
            let facts = view.members.get_mut(&node(2)).unwrap().facts.as_mut().unwrap();
            facts.applied.advance(node(1), Lsn(lsn));
        };
        applied(&mut view, 0xff);
        assert!(!wanted.may_read(node(2), &view));
        applied(&mut view, 0x100);
        assert!(wanted.may_read(node(2), &view));
        let eventual = Reading { consistency: Consistency::Eventual, ..reading("1=0/999") };
        assert!(eventual.may_read(node(2), &view));
    }

    #[test]
    fn what_lies_behind_the_last_commit_is_not_waited_for() {
        let mut view = view(&[Seen::Ready, Seen::Ready]);
        view.members
            .get_mut(&node(2))
            .unwrap()
            .facts
            .as_mut()
            .unwrap()
            .applied
            .advance(node(1), Lsn(80));
        let wanted = reading("1=0/64");
        let origin = |view: &mut View, wal: u64, unread: u64, published: u64| {
            let facts = view.members.get_mut(&node(1)).unwrap().facts.as_mut().unwrap();
            (facts.wal_lsn, facts.unread_bytes, facts.published_lsn) =
                (Lsn(wal), unread, Lsn(published));
        };
        for (wal, unread, published, expected) in [
            (100, 0, 80, true),
            (120, 20, 80, true),
            // The origin has not read so far.
            (100, 1, 80, false),
            // Something that it has published is not applied.
            (100, 0, 90, false),
        ] {
            origin(&mut view, wal, unread, published);
            assert_eq!(wanted.may_read(node(2), &view), expected, "{wal} {unread} {published}");
        }
    }
}
