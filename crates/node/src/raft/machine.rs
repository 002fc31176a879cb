//! The replicated state machine: `core::state` applied in the order of the log, kept on disk, and published.

use std::collections::VecDeque;
use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{
    EmptyNode, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta,
    StorageError, StorageIOError, StoredMembership,
};
use serde::{Deserialize, Serialize};
use synapsedb_core::state::{ClusterState, Command, Outcome};
use tokio::sync::watch;
use uuid::Uuid;

use super::store::{self, Store, name};

openraft::declare_raft_types!(
    /// What openraft is about here.
    pub(super) Types:
        D = Request,
        R = Outcome,
        NodeId = u64,
        Node = EmptyNode,
);

/// An entry of the log.
pub(super) type Entry = openraft::Entry<Types>;

/// How many outcomes are remembered to recognise a repeated request.
const REMEMBERED: usize = 256;

/// A command with a name, so that a request that is repeated counts once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(super) id: Uuid,
    pub(super) command: Command,
}

/// The state machine as it is stored and as it travels in a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Applied {
    pub(super) last_applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, EmptyNode>,
    state: ClusterState,
    /// The outcomes of the last requests, the oldest first.
    recent: VecDeque<(Uuid, Outcome)>,
}

/// A snapshot as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StoredSnapshot {
    meta: SnapshotMeta<u64, EmptyNode>,
    content: Applied,
}

/// How far this node has applied the log.
pub(super) type Published = Option<u64>;

/// openraft's view of the state machine.
pub(super) struct Machine {
    store: Store,
    applied: Applied,
    published: watch::Sender<Published>,
    state: watch::Sender<Arc<ClusterState>>,
}

impl Machine {
    pub(super) fn new(
        store: Store,
        applied: Applied,
    ) -> (Self, watch::Receiver<Published>, watch::Receiver<Arc<ClusterState>>) {
        let (published, index) = watch::channel(applied.index());
        let (state, reader) = watch::channel(Arc::new(applied.state.clone()));
        (Self { store, applied, published, state }, index, reader)
    }

    /// Takes over what is on disk now, and tells everybody.
    fn publish(&mut self, applied: Applied) {
        self.applied = applied;
        self.state.send_if_modified(|state| {
            let changed = **state != self.applied.state;
            if changed {
                *state = Arc::new(self.applied.state.clone());
            }
            changed
        });
        self.published.send_replace(self.applied.index());
    }
}

impl Applied {
    fn index(&self) -> Published {
        self.last_applied.map(|last| last.index)
    }

    fn apply(&mut self, entry: Entry) -> Outcome {
        self.last_applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Outcome::Unchanged,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Outcome::Unchanged
            }
            EntryPayload::Normal(request) => self.apply_request(&request),
        }
    }

    fn apply_request(&mut self, request: &Request) -> Outcome {
        if let Some((_, outcome)) = self.recent.iter().find(|(id, _)| *id == request.id) {
            return outcome.clone();
        }
        let outcome = self.state.apply(&request.command);
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back((request.id, outcome.clone()));
        outcome
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, EmptyNode>), StorageError<u64>> {
        Ok((self.applied.last_applied, self.applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError<u64>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = self.applied.clone();
        let outcomes = entries.into_iter().map(|entry| applied.apply(entry)).collect();
        // Nobody sees a state that a crash could take back.
        let stored = applied.clone();
        self.store
            .write(move |transaction| store::put(transaction, name::APPLIED, &stored))
            .await?;
        self.publish(applied);
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Builder { store: self.store.clone(), applied: self.applied.clone() }
    }

    async fn begin_receiving_snapshot(
        &mut self,
    ) -> Result<Box<Cursor<Vec<u8>>>, StorageError<u64>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, EmptyNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<u64>> {
        let mut content: Applied = serde_json::from_slice(snapshot.get_ref())
            .map_err(|error| StorageIOError::read_snapshot(Some(meta.signature()), &error))?;
        content.last_applied = meta.last_log_id;
        content.membership = meta.last_membership.clone();
        let stored = StoredSnapshot { meta: meta.clone(), content: content.clone() };
        self.store
            .write(move |transaction| {
                store::put(transaction, name::APPLIED, &stored.content)?;
                store::put(transaction, name::SNAPSHOT, &stored)
            })
            .await?;
        self.publish(content);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<u64>> {
        let stored: Option<StoredSnapshot> = self.store.read_meta(name::SNAPSHOT).await?;
        stored.map(travelling).transpose()
    }
}

/// Makes a snapshot of the state as it was when the builder was made.
pub(super) struct Builder {
    store: Store,
    applied: Applied,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<u64>> {
        let meta = SnapshotMeta {
            last_log_id: self.applied.last_applied,
            last_membership: self.applied.membership.clone(),
            snapshot_id: Uuid::new_v4().to_string(),
        };
        let stored = StoredSnapshot { meta, content: self.applied.clone() };
        let snapshot = travelling(stored.clone())?;
        self.store
            .write(move |transaction| store::put(transaction, name::SNAPSHOT, &stored))
            .await?;
        Ok(snapshot)
    }
}

#[allow(clippy::result_large_err, reason = "the error is openraft's")]
fn travelling(stored: StoredSnapshot) -> Result<Snapshot<Types>, StorageError<u64>> {
    let content = serde_json::to_vec(&stored.content)
        .map_err(|error| StorageIOError::read_snapshot(Some(stored.meta.signature()), &error))?;
    Ok(Snapshot { meta: stored.meta, snapshot: Box::new(Cursor::new(content)) })
}
