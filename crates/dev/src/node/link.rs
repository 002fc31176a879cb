//! The link between two agents, cut while both go on with everybody else.

use anyhow::anyhow;

use super::Node;
use crate::firewall::Cut;

impl Node {
    /// Drops everything between this agent and one other, until the answer is dropped.
    ///
    /// # Panics
    /// When this machine does not allow it, see [`Node::can_be_cut_off`].
    pub fn cut_link(&self, other: &Self) -> Cut {
        let (port, numbers) = (self.server.port, (self.number, other.number));
        let table = format!("synapsedb_dev_{port}_{}_{}", numbers.0, numbers.1);
        self.reaper.table(&table);
        let cut = match (&self.group, &other.group) {
            (Ok(one), Ok(two)) => Cut::between(&table, (one, self.peers), (two, other.peers)),
            (Err(reason), _) | (_, Err(reason)) => Err(anyhow!("{reason}")),
        };
        match cut {
            Ok(cut) => cut,
            Err(error) => panic!("the link between {numbers:?} could not be cut: {error:#}"),
        }
    }
}
