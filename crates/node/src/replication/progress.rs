//! What has been applied here of every origin: what causal delivery waits for and what the peers may forget.

use std::sync::Arc;

use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;
use tokio::sync::watch;

/// The applied version vectors, shared by the lanes. Entries are commit LSNs of the origin.
#[derive(Clone)]
pub struct Applied {
    visible: Arc<watch::Sender<VersionVector>>,
    durable: Arc<watch::Sender<Option<VersionVector>>>,
}

impl Default for Applied {
    fn default() -> Self {
        Self {
            visible: Arc::new(watch::Sender::new(VersionVector::new())),
            durable: Arc::new(watch::Sender::new(None)),
        }
    }
}

impl Applied {
    /// What readers on this node can see of every origin. A crash of the server may take the last of it back, which
    /// ends all lanes and resets this.
    pub fn visible(&self) -> VersionVector {
        self.visible.borrow().clone()
    }

    /// Looks at [`Applied::visible`] without a copy.
    pub(crate) fn with_visible<T>(&self, look: impl FnOnce(&VersionVector) -> T) -> T {
        look(&self.visible.borrow())
    }

    /// Whether everything of the others in `awaits` is visible on the node `here`.
    pub(crate) fn shows(&self, here: NodeId, awaits: &VersionVector) -> bool {
        self.with_visible(|visible| {
            awaits.iter().all(|(node, lsn)| node == here || visible.get(node) >= lsn)
        })
    }

    /// Told at every change of [`Applied::visible`].
    pub fn watch_visible(&self) -> watch::Receiver<VersionVector> {
        self.visible.subscribe()
    }

    /// What is on disk here of every origin: the peers need not keep it for this node.
    pub fn durable(&self) -> VersionVector {
        self.durable.borrow().clone().unwrap_or_default()
    }

    /// Told at every change of [`Applied::durable`]; `None` until the server was asked for the first time.
    pub(crate) fn watch_durable(&self) -> watch::Receiver<Option<VersionVector>> {
        self.durable.subscribe()
    }

    /// A lane has committed everything of `origin` through `lsn`.
    pub(crate) fn advance(&self, origin: NodeId, lsn: Lsn) {
        self.visible.send_if_modified(|vector| vector.advance(origin, lsn));
    }

    /// The server itself says what it has applied: the start of a generation of lanes.
    pub(crate) fn reset(&self, vector: VersionVector) {
        self.visible.send_replace(vector);
    }

    /// The server says what of it is durable.
    pub(crate) fn set_durable(&self, vector: VersionVector) {
        self.durable.send_replace(Some(vector));
    }
}
