//! The process ids that clients are told: they say which agent and which worker has the session.
//!
//! Those of PostgreSQL's own processes are below 2²² (Linux' highest `pid_max`), these are above.

use synapsedb_core::ids::NodeId;

const SESSION_BITS: u32 = 19;
const WORKER_BITS: u32 = 3;
const NODE_BITS: u32 = 9;

/// Sessions of one worker that can be told apart.
pub(super) const SESSIONS_MAX: u32 = 1 << SESSION_BITS;
/// Workers of one agent that can be told apart.
pub(super) const WORKERS_MAX: u16 = 1 << WORKER_BITS;

/// Whose session it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// The agent's node, of which only the last nine bits are known.
    pub(super) node_bits: u16,
    pub(super) worker: u16,
}

pub(super) fn make(node: NodeId, worker: u16, session: u32) -> u32 {
    let node = u32::from(node_bits(node)).max(1);
    let worker = u32::from(worker % WORKERS_MAX);
    (node << (SESSION_BITS + WORKER_BITS)) | (worker << SESSION_BITS) | (session % SESSIONS_MAX)
}

/// Whose session this is; `None` for the process id of a server.
pub(super) fn owner(pid: u32) -> Option<Owner> {
    let node_bits = pid >> (SESSION_BITS + WORKER_BITS);
    let worker = (pid >> SESSION_BITS) % u32::from(WORKERS_MAX);
    (node_bits > 0 && node_bits < 1 << NODE_BITS)
        .then_some(Owner { node_bits: node_bits as u16, worker: worker as u16 })
}

/// What of a node's number is in the process ids of its sessions.
pub(super) fn node_bits(node: NodeId) -> u16 {
    node.get() % (1 << NODE_BITS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_id_names_its_owner_and_is_no_servers() {
        for (node, worker, session) in [(1, 0, 0), (3, 7, SESSIONS_MAX - 1), (16, 2, 77)] {
            let pid = make(NodeId::new(node).unwrap(), worker, session);
            assert!(pid >= 1 << 22, "{pid}");
            assert!(i32::try_from(pid).is_ok());
            assert_eq!(owner(pid), Some(Owner { node_bits: node, worker }));
        }
        assert_eq!(owner(4_194_303), None);
        assert_eq!(owner(u32::MAX), None);
    }
}
