//! The identity of a running agent in SWIM: which node, which life of its data, which start of the process.

use serde::{Deserialize, Serialize};
use synapsedb_core::ids::{Incarnation, NodeId};

/// A running agent. A later start of the same node replaces an earlier one everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Life {
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    /// Grows from start to start: milliseconds since 1970, or one more than what peers remember of this node.
    pub(super) start: u64,
}

impl foca::Identity for Life {
    type Addr = NodeId;

    /// A node that learns that it was declared down comes back as a new life at once.
    fn renew(&self) -> Option<Self> {
        Some(Self { start: self.start.saturating_add(1), ..*self })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.incarnation, self.start) > (adversary.incarnation, adversary.start)
    }
}
