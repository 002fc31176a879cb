//! What a session must see: how consistent its reads are, and the token of what it has written. Pure.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;

/// In a token: as far as the origin is when it is asked. So it stands for a write whose place is not known.
pub(super) const ALL: Lsn = Lsn(u64::MAX);

/// How consistent the reads of a session are (`synapsedb.consistency`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Each transaction reads from whichever node has the least to do, as far as that node is.
    Eventual,
    /// A session sees what it has written and what it has seen, and stays on its node while that serves.
    #[default]
    Session,
    /// A transaction sees all that was acknowledged to anybody before it began.
    Global,
}

impl Consistency {
    const ALL: [Self; 3] = [Self::Eventual, Self::Session, Self::Global];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Eventual => "eventual",
            Self::Session => "session",
            Self::Global => "global",
        }
    }

    /// As `SET synapsedb.consistency` has it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| text.eq_ignore_ascii_case(one.name()))
    }

    /// Whether a session keeps to its node.
    pub(super) fn keeps_home(self) -> bool {
        match self {
            Self::Eventual => false,
            Self::Session | Self::Global => true,
        }
    }
}

/// What decides where a session may read.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    pub(super) consistency: Consistency,
    /// The node of its last transaction: what it has seen, it has seen there.
    pub(super) home: Option<NodeId>,
    /// What it must see: of each origin everything up to an LSN.
    pub(super) token: VersionVector,
    /// Its home shows all of the token.
    pub(super) settled: bool,
    /// It goes elsewhere if it can: its home has just been lost.
    pub(super) leaves: bool,
    /// It listens on its home, and stays there for that.
    pub(super) listens: bool,
    /// It has written at its home, or may have, and reads wherever there is the least to do.
    pub(super) roams: bool,
    /// It reads from this node and no other.
    pub(super) only: Option<NodeId>,
    /// The transaction that begins reads nothing: it may begin anywhere, and shows nothing.
    pub(super) excused: bool,
}

impl Reading {
    /// Whether a transaction on the node must wait until it is known that the node shows what it must.
    pub(super) fn must_settle(&self, node: NodeId) -> bool {
        if self.excused {
            return false;
        }
        match self.consistency {
            Consistency::Eventual => false,
            Consistency::Session if self.home == Some(node) => {
                !self.settled && !self.token.is_empty()
            }
            Consistency::Session => self.home.is_some() || !self.token.is_empty(),
            Consistency::Global => true,
        }
    }

    /// It has written on a node, at some place before `lsn`, or nobody knows where.
    pub(super) fn has_written(&mut self, node: NodeId, lsn: Option<Lsn>) {
        if self.token.get(node) == ALL {
            // What is known now lies behind what was not.
            self.token.remove(node);
        }
        self.token.advance(node, lsn.unwrap_or(ALL));
    }

    /// What it must see is more than before.
    pub(super) fn must_see(&mut self, token: &VersionVector) {
        self.token.merge(token);
        self.settled = false;
    }
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
    use super::super::testing::node;
    use super::*;

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
    fn only_a_node_that_is_known_to_show_enough_is_used_at_once() {
        use Consistency::{Eventual, Global, Session};
        let token = |text| from_text(text).unwrap();
        for (consistency, home, text, settled, here, elsewhere) in [
            // Nothing seen and nothing to see.
            (Session, None, "", false, false, false),
            (Session, Some(1), "", true, false, true),
            (Session, Some(1), "", false, false, true),
            (Session, Some(1), "2=0/9", true, false, true),
            (Session, Some(1), "2=0/9", false, true, true),
            (Session, None, "2=0/9", false, true, true),
            (Eventual, Some(1), "2=0/9", false, false, false),
            (Global, Some(1), "", true, true, true),
            (Global, None, "", false, true, true),
        ] {
            let home = home.map(node);
            let token = token(text);
            let reading = Reading { consistency, home, token, settled, ..Reading::default() };
            let must = (reading.must_settle(node(1)), reading.must_settle(node(2)));
            assert_eq!(must, (here, elsewhere), "{reading:?}");
            let excused = Reading { excused: true, ..reading };
            assert!(!excused.must_settle(node(1)) && !excused.must_settle(node(2)));
        }
        let mut reading = Reading { settled: true, ..Reading::default() };
        reading.must_see(&token("1=0/5"));
        assert!(!reading.settled && reading.token == token("1=0/5"));
        for (lsn, expected) in [(None, ALL), (Some(Lsn(7)), Lsn(7)), (Some(Lsn(6)), Lsn(7))] {
            reading.has_written(node(1), lsn);
            assert_eq!(reading.token.get(node(1)), expected);
        }
    }
}
