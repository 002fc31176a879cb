//! Raft's messages over `peers`. Each carries the sender's identity, so that a node whose data was wiped or copied
//! neither votes nor counts under a number that the cluster knows as another's.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use openraft::error::{
    InstallSnapshotError, RPCError, RaftError, RemoteError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, EmptyNode, RPCTypes, RaftNetwork, RaftNetworkFactory};
use serde::Serialize;
use serde::de::DeserializeOwned;
use synapsedb_core::ids::NodeId;
use synapsedb_core::state::ClusterState;
use tokio::sync::watch;
use uuid::Uuid;

use super::machine::Types;
use super::{Shared, node_id};
use crate::layout::Identity;
use crate::peers::{self, CallError};

const APPEND: &str = "raft.append";
const VOTE: &str = "raft.vote";
const SNAPSHOT: &str = "raft.snapshot";
const UUID_BYTES: usize = 16;
/// How long an unreachable follower is left alone before the next attempt.
const RETRY_UNREACHABLE: Duration = Duration::from_millis(100);

/// Makes a client per follower.
#[derive(Clone)]
pub(super) struct Network {
    peers: peers::Handle,
    me: NodeId,
    uuid: Uuid,
    state: watch::Receiver<Arc<ClusterState>>,
}

/// The way to one follower.
pub(super) struct Client {
    network: Network,
    target: u64,
}

impl Network {
    pub(super) fn new(
        peers: peers::Handle,
        identity: &Identity,
        state: watch::Receiver<Arc<ClusterState>>,
    ) -> Self {
        Self { peers, me: identity.node, uuid: identity.uuid, state }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Client {
        Client { network: self.clone(), target }
    }
}

type Failure<E> = RPCError<u64, EmptyNode, RaftError<u64, E>>;

impl Client {
    async fn call<Q: Serialize, A: DeserializeOwned, E: std::error::Error + DeserializeOwned>(
        &self,
        service: &'static str,
        action: RPCTypes,
        request: Q,
        option: RPCOption,
    ) -> Result<A, Failure<E>> {
        let unreachable =
            |text: String| Failure::Unreachable(Unreachable::from(AnyError::error(text)));
        let node = node_id(self.target)
            .ok_or_else(|| unreachable(format!("{} is no node", self.target)))?;
        let body = seal(self.network.uuid, &request).map_err(unreachable)?;
        // A little less than openraft's own limit: then `peers` sees the time-out and gives a dead connection up.
        let timeout = option.hard_ttl().mul_f32(0.95);
        let answer = self.network.peers.call_within(node, service, body, timeout).await;
        let answer = answer.map_err(|error| match error {
            CallError::Timeout { .. } => Failure::Timeout(Timeout {
                action,
                id: u64::from(self.network.me.get()),
                target: self.target,
                timeout,
            }),
            error => unreachable(error.to_string()),
        })?;
        let answer: Result<A, RaftError<u64, E>> =
            open(&self.network.state.borrow(), node, &answer).map_err(unreachable)?;
        answer.map_err(|error| Failure::RemoteError(RemoteError::new(self.target, error)))
    }
}

impl RaftNetwork<Types> for Client {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, EmptyNode, RaftError<u64>>> {
        self.call(APPEND, RPCTypes::AppendEntries, request, option).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<u64>,
        RPCError<u64, EmptyNode, RaftError<u64, InstallSnapshotError>>,
    > {
        self.call(SNAPSHOT, RPCTypes::InstallSnapshot, request, option).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, EmptyNode, RaftError<u64>>> {
        self.call(VOTE, RPCTypes::Vote, request, option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY_UNREACHABLE))
    }
}

/// Answers the messages of the other members.
pub(super) fn serve(shared: &Arc<Shared>) {
    register(
        shared,
        APPEND,
        |shared, request| async move { shared.raft.append_entries(request).await },
    );
    register(shared, VOTE, |shared, request| async move { shared.raft.vote(request).await });
    register(shared, SNAPSHOT, |shared, request| async move {
        shared.raft.install_snapshot(request).await
    });
}

fn register<Q, A, E, F>(
    shared: &Arc<Shared>,
    service: &'static str,
    work: impl Fn(Arc<Shared>, Q) -> F + Copy + Send + Sync + 'static,
) where
    Q: DeserializeOwned + Send + 'static,
    A: Serialize,
    E: Serialize,
    F: Future<Output = Result<A, RaftError<u64, E>>> + Send + 'static,
{
    let peers = shared.peers.clone();
    let shared = Arc::downgrade(shared);
    peers.serve(service, move |from, body| {
        let shared = shared.upgrade();
        Box::pin(async move {
            let shared = shared.ok_or("Raft has stopped")?;
            let state = shared.state.borrow().clone();
            let request: Q = open(&state, from, &body)?;
            let uuid = shared.identity.uuid;
            seal(uuid, &work(shared, request).await)
        })
    });
}

/// A message as it travels: who sends it, and what.
fn seal(uuid: Uuid, message: &impl Serialize) -> Result<Bytes, String> {
    let json = serde_json::to_vec(message).map_err(|error| error.to_string())?;
    let mut bytes = BytesMut::with_capacity(UUID_BYTES + json.len());
    bytes.put_slice(uuid.as_bytes());
    bytes.put_slice(&json);
    Ok(bytes.freeze())
}

/// Reads a message of `from`, unless the cluster knows that node as another.
fn open<T: DeserializeOwned>(
    state: &ClusterState,
    from: NodeId,
    bytes: &[u8],
) -> Result<T, String> {
    let (uuid, json) =
        bytes.split_first_chunk::<UUID_BYTES>().ok_or("a Raft message is too short")?;
    let (known, uuid) = (state.members.get(&from), Uuid::from_bytes(*uuid));
    if let Some(known) = known
        && known.uuid.parse() != Ok(uuid)
    {
        return Err(format!(
            "node {from} is known as {}, this one is {uuid}: its data was wiped or copied, and it must join as a new \
             node",
            known.uuid
        ));
    }
    serde_json::from_slice(json).map_err(|error| format!("a malformed Raft message: {error}"))
}
