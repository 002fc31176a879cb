//! Cancel requests: they come on a connection of their own, to whichever agent and worker the kernel gave it.

use std::rc::Rc;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes};
use synapsedb_core::state::MemberStatus;
use tokio::sync::oneshot;

use super::pid;
use super::server::{self, Address, CancelKey};
use super::worker::{Command, Worker};
use crate::peers;

/// The service under which an agent takes cancel requests for its sessions from its peers.
pub(super) const SERVICE: &str = "router.cancel";

/// Passes a cancel request to whoever has the session. As in PostgreSQL nobody learns whether it hit anything.
pub(super) async fn pass_on(worker: &Rc<Worker>, pid: u32, key: Bytes) {
    let shared = &worker.shared;
    shared.metrics.cancels.inc();
    match pid::owner(pid) {
        Some(owner) if owner.node_bits == pid::node_bits(shared.own) => {
            shared.cancel(pid, key).await;
        }
        Some(owner) => {
            let Some(peers) = &shared.peers else { return };
            let members: Vec<_> = shared.state.borrow().members.keys().copied().collect();
            let node = members.into_iter().find(|node| pid::node_bits(*node) == owner.node_bits);
            let Some(node) = node else { return };
            let mut body = Vec::with_capacity(4 + key.len());
            body.put_u32(pid);
            body.put_slice(&key);
            if let Err(error) = peers.call(node, SERVICE, body.into()).await {
                tracing::debug!(%node, "a cancel request was not passed on: {error}");
            }
        }
        None => every_server(worker, pid, &key).await,
    }
}

/// A session that keeps one server connection has that one's process id and key: they match only the one meant.
async fn every_server(worker: &Worker, pid: u32, key: &[u8]) {
    let mut data = Vec::with_capacity(4 + key.len());
    data.put_u32(pid);
    data.put_slice(key);
    let data = Bytes::from(data);
    let addresses: Vec<Address> = {
        let state = worker.shared.state.borrow();
        let active =
            state.members.iter().filter(|(_, member)| member.status == MemberStatus::Active);
        let active = active.filter(|(_, member)| !member.addresses.postgres.is_empty());
        let address = |(&node, member): (_, &synapsedb_core::state::Member)| Address {
            node,
            tcp: member.addresses.postgres.clone(),
            unix: None,
        };
        active.map(address).collect()
    };
    let cancels = addresses.into_iter().map(|address| {
        let since = std::time::SystemTime::now();
        let key = CancelKey { address: Rc::new(address), data: data.clone(), since };
        async move {
            if let Err(error) = server::cancel(&key, &worker.shared).await {
                tracing::debug!("a cancel request did not reach {}: {error}", key.address.tcp);
            }
        }
    });
    futures_util::future::join_all(cancels).await;
}

impl super::Shared {
    /// Has the worker that owns a session of this agent cancel what it works on.
    pub(super) async fn cancel(&self, pid: u32, key: Bytes) {
        let Some(owner) = pid::owner(pid) else { return };
        let Some(commands) = self.commands.get(usize::from(owner.worker)) else { return };
        let (done, answered) = oneshot::channel();
        if commands.send(Command::Cancel { pid, key, done }).is_ok() {
            let _ = answered.await;
        }
    }
}

/// Takes cancel requests for this agent's sessions from the peers that got them.
pub(super) fn serve(shared: &Arc<super::Shared>, peers: &peers::Handle) {
    let shared = Arc::downgrade(shared);
    peers.serve(SERVICE, move |_, body| {
        let shared = shared.clone();
        Box::pin(async move {
            let (pid, key) = body.split_first_chunk().ok_or("a cancel request is cut off")?;
            let (pid, key) = (u32::from_be_bytes(*pid), Bytes::copy_from_slice(key));
            if let Some(shared) = shared.upgrade() {
                shared.cancel(pid, key).await;
            }
            Ok(Bytes::new())
        })
    });
}
