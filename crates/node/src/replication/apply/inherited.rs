//! Who wrote the rows that a copied server brought along as its own.
//!
//! A row that was written locally has no replication origin. After a physical copy "locally" means another node: the
//! rows written before the copy are those of the server that was copied, told by their transaction ids.

use std::fmt::Write as _;

use synapsedb_core::ids::NodeId;

/// Rows without an origin belong to `node` when their transaction is older than `before_xid`; of several, the one with
/// the oldest boundary counts. Kept in `synapsedb.inherited`, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inherited(Vec<(u32, NodeId)>);

impl Inherited {
    /// From the rows of `sql/inherited.sql`: the boundary as a 32-bit transaction id, and the node.
    pub(crate) fn new(boundaries: Vec<(u32, NodeId)>) -> Self {
        Self(boundaries)
    }

    /// SQL for the number of the node that wrote the row `target`, whose transaction had no origin. `here` is this
    /// node.
    pub(crate) fn node_sql(&self, target: &str, here: NodeId) -> String {
        if self.0.is_empty() {
            return here.to_string();
        }
        let mut sql = "(case".to_owned();
        for (before_xid, node) in &self.0 {
            // Ages compare transaction ids over their wraparound; a row whose age is no longer true has no commit time
            // any more either, and is not asked.
            let _ = write!(
                sql,
                " when pg_catalog.age({target}.xmin) > pg_catalog.age('{before_xid}'::pg_catalog.xid) then {node}"
            );
        }
        let _ = write!(sql, " else {here} end)");
        sql
    }

    /// Whether rows without an origin may be of `node`, as seen at node `here`.
    pub(crate) fn may_be(&self, node: NodeId) -> bool {
        self.0.iter().any(|(_, inherited)| *inherited == node)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_without_an_origin_are_told_apart_by_their_age() {
        let node = |number| NodeId::new(number).unwrap();
        assert_eq!(Inherited::default().node_sql("t", node(3)), "3");
        let twice = Inherited::new(vec![(100, node(1)), (200, node(2))]);
        assert_eq!(
            twice.node_sql("t", node(3)),
            "(case when pg_catalog.age(t.xmin) > pg_catalog.age('100'::pg_catalog.xid) then 1 \
             when pg_catalog.age(t.xmin) > pg_catalog.age('200'::pg_catalog.xid) then 2 else 3 end)"
        );
        assert!(twice.may_be(node(2)) && !twice.may_be(node(3)));
    }
}
