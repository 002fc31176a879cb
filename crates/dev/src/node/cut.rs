//! Cuts between a node's agent and its peers.

use std::sync::PoisonError;

use anyhow::anyhow;

use super::Node;
use crate::firewall::Cut;

impl Node {
    /// Whether this machine allows [`Node::cut_off`].
    ///
    /// # Errors
    /// What is missing, to be said by a test that is skipped for it.
    pub fn can_be_cut_off(&self) -> Result<(), String> {
        self.group.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// Drops everything between this agent and its peers, in both directions, until [`Node::rejoin`].
    ///
    /// # Panics
    /// When this machine does not allow it, see [`Node::can_be_cut_off`].
    pub fn cut_off(&self) {
        let table = format!("synapsedb_dev_{}_{}", self.server.port, self.number);
        self.reaper.table(&table);
        let cut = match &self.group {
            Ok(group) => Cut::make(&table, group, self.peers, &self.others),
            Err(reason) => Err(anyhow!("{reason}")),
        };
        match cut {
            Ok(cut) => *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = Some(cut),
            Err(error) => panic!("node {} could not be cut off: {error:#}", self.number),
        }
    }

    /// Repairs the cut.
    pub fn rejoin(&self) {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
