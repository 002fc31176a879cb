//! Who wrote a row, and whether a transaction had seen it: the part of the fast path that keeps conflicts out.

use std::fmt::Write as _;

use synapsedb_core::ids::NodeId;
use synapsedb_pg::quote;

use super::inherited::Inherited;

/// How the writer of a row is told: which node applies, and which replication origin belongs to which node.
#[derive(Clone, Debug)]
pub(crate) struct VersionCheck {
    /// The writer's node.
    pub(crate) origin: NodeId,
    /// This node: rows without an origin are its own.
    pub(crate) here: NodeId,
    /// The local number of each node's replication origin.
    pub(crate) origins: Vec<(u32, NodeId)>,
    /// Rows without an origin that are not this node's own.
    pub(crate) inherited: Inherited,
}

impl VersionCheck {
    /// Before the origins are known.
    pub(crate) fn new(origin: NodeId, here: NodeId, inherited: Inherited) -> Self {
        Self { origin, here, origins: Vec::new(), inherited }
    }

    /// SQL that is true when the transaction has certainly seen the writer of the row `target` of `table` (quoted): it
    /// is of the same origin, or no younger than `bound`, and its row was not rewritten since. Unknown writers (long
    /// ago, or this very transaction) were seen.
    pub(super) fn seen(&self, table: &str, target: &str, bound: &str) -> String {
        let writer = format!("(pg_catalog.pg_xact_commit_timestamp_origin({target}.xmin)).roident");
        // Of a node that was re-seeded there is one origin for each life.
        let mine = self.origins.iter().filter(|(_, node)| *node == self.origin);
        let mine: Vec<_> = mine.map(|(identifier, _)| identifier.to_string()).collect();
        // The time alone costs least, and is enough for most rows.
        let mut sql = format!("(pg_catalog.pg_xact_commit_timestamp({target}.xmin) <= {bound}");
        match mine.as_slice() {
            [] => {}
            [only] => drop(write!(sql, " or {writer} = {only}")),
            many => drop(write!(sql, " or {writer} in ({})", many.join(", "))),
        }
        if self.inherited.may_be(self.origin) {
            let node = self.without_origin(target);
            let _ = write!(sql, " or ({writer} = 0 and {node} = {})", self.origin);
        }
        let table = quote::literal(table);
        let _ = write!(
            sql,
            ") is not false and {target}.xmin <> all (synapsedb.rewriters({table}::pg_catalog.regclass))"
        );
        sql
    }

    /// SQL for the number of the node that wrote the row `target`, whose transaction had no origin.
    pub(super) fn without_origin(&self, target: &str) -> String {
        self.inherited.node_sql(target, self.here)
    }

    /// The node whose replication origin has this local number.
    pub(super) fn node(&self, roident: u32) -> Option<NodeId> {
        self.origins.iter().find(|(known, _)| *known == roident).map(|(_, node)| *node)
    }
}
