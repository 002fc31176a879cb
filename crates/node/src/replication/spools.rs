//! The spools of this node: its own, one per origin that it receives, and those of lives that have ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::state::{ClusterState, MemberStatus};
use synapsedb_core::version::VersionVector;
use tokio::sync::watch;

use super::spool::{self, Spool, SpoolError, SpoolId, Writer};
use crate::layout::Identity;

/// The open spools, for readers; writers belong to the publisher and the fetchers.
pub(crate) struct Spools {
    dir: PathBuf,
    limits: spool::Config,
    identity: Identity,
    open: watch::Sender<BTreeMap<NodeId, (Incarnation, Spool)>>,
    /// Spools of lives that have ended, of nodes that were re-seeded or have left: nothing is added to them, and what
    /// they hold may still meet a concurrent write.
    ended: Mutex<BTreeMap<(NodeId, Incarnation), Spool>>,
    /// Spools in which a reader met damage; their fetchers set them aside.
    corrupt: Mutex<BTreeMap<NodeId, SpoolError>>,
    /// The own writer, until the publisher takes it.
    own: Mutex<Option<Writer>>,
    /// What the own spool had seen when it was opened.
    own_vector: VersionVector,
}

impl Spools {
    /// Opens this node's own spool; those of other origins are opened when they are met.
    ///
    /// # Errors
    /// The own spool cannot be read, is corrupt, or belongs to another cluster, node or incarnation.
    pub(crate) fn new(config: &super::Config, identity: &Identity) -> Result<Self> {
        let mut spools = Self {
            dir: config.spool_dir.clone(),
            limits: config.spool,
            identity: identity.clone(),
            open: watch::Sender::new(BTreeMap::new()),
            ended: Mutex::default(),
            corrupt: Mutex::default(),
            own: Mutex::new(None),
            own_vector: VersionVector::new(),
        };
        let writer = spools.open(identity.node, identity.incarnation)?;
        spools.own_vector = writer.tail().vector;
        *lock(&spools.own) = Some(writer);
        Ok(spools)
    }

    /// Opens the spool of one life of one origin and shows it to readers.
    ///
    /// # Errors
    /// As [`spool::open`].
    pub(crate) fn open(&self, origin: NodeId, incarnation: Incarnation) -> Result<Writer> {
        let dir = self.path(origin, incarnation);
        let id = SpoolId { cluster: self.identity.cluster_id, origin, incarnation };
        let (writer, spool) = spool::open(&dir, id, self.limits)?;
        let mut before = None;
        self.open.send_modify(|open| before = open.insert(origin, (incarnation, spool)));
        if let Some((life, spool)) = before.filter(|(life, _)| *life < incarnation) {
            lock(&self.ended).insert((origin, life), spool);
        }
        Ok(writer)
    }

    /// Opens what is on the disk of lives that have ended, as the cluster has agreed. One that is damaged is left where
    /// it is.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub(crate) fn open_ended(&self, state: &ClusterState) -> Result<()> {
        let open = self.open.borrow().clone();
        for (origin, incarnation, dir) in lives(&self.dir)? {
            let life = (origin, incarnation);
            let known = open.get(&origin).is_some_and(|(open, _)| *open == incarnation);
            if known || !self.has_ended(state, life) || lock(&self.ended).contains_key(&life) {
                continue;
            }
            let id = SpoolId { cluster: self.identity.cluster_id, origin, incarnation };
            match spool::open(&dir, id, self.limits) {
                Ok((_writer, spool)) => drop(lock(&self.ended).insert(life, spool)),
                Err(error) => {
                    tracing::error!(%origin, "what a life that has ended deleted last is not remembered: \
                    {error}")
                }
            }
        }
        Ok(())
    }

    fn has_ended(&self, state: &ClusterState, (node, life): (NodeId, Incarnation)) -> bool {
        if node == self.identity.node {
            return life < self.identity.incarnation;
        }
        state.members.get(&node).is_some_and(|member| {
            member.status == MemberStatus::Removed || life < member.incarnation
        })
    }

    /// The spools of lives that have ended, by node and life.
    pub(crate) fn ended(&self) -> BTreeMap<(NodeId, Incarnation), Spool> {
        lock(&self.ended).clone()
    }

    /// Where the spool of one life of one origin lies.
    pub(crate) fn path(&self, origin: NodeId, incarnation: Incarnation) -> PathBuf {
        self.dir.join(format!("{origin}-{incarnation}"))
    }

    /// What the own spool had seen when it was opened: up to there, applied transactions were decoded before this
    /// start.
    pub(crate) fn own_vector(&self) -> VersionVector {
        self.own_vector.clone()
    }

    /// The publisher's writer, once: a publisher that needs another opens the spool anew.
    pub(crate) fn take_own(&self) -> Option<Writer> {
        lock(&self.own).take()
    }

    /// A lane has met damage in a spool.
    pub(crate) fn mark_corrupt(&self, origin: NodeId, error: SpoolError) {
        lock(&self.corrupt).insert(origin, error);
    }

    /// The damage that was met in a spool, once.
    pub(crate) fn take_corruption(&self, origin: NodeId) -> Option<SpoolError> {
        lock(&self.corrupt).remove(&origin)
    }

    /// Moves a damaged spool of another origin out of the way; nothing of it is used again, and nothing is deleted.
    ///
    /// # Errors
    /// The directory cannot be renamed.
    pub(crate) fn set_aside(&self, origin: NodeId, incarnation: Incarnation) -> Result<()> {
        let dir = self.path(origin, incarnation);
        let aside = dir.with_extension(format!("corrupt-{}", uuid::Uuid::new_v4().simple()));
        tracing::error!(%origin, "the spool {} is corrupt: it is kept as {} and fetched anew",
            dir.display(), aside.display());
        std::fs::rename(&dir, &aside)
            .with_context(|| format!("rename {} to {}", dir.display(), aside.display()))
    }

    /// The spool of an origin, if it is open.
    pub(crate) fn get(&self, origin: NodeId) -> Option<(Incarnation, Spool)> {
        self.open.borrow().get(&origin).cloned()
    }

    /// All that are open.
    pub(crate) fn all(&self) -> BTreeMap<NodeId, (Incarnation, Spool)> {
        self.open.borrow().clone()
    }

    /// The origin has been removed from the cluster, and everybody has applied what it sent.
    pub(crate) fn end(&self, origin: NodeId, incarnation: Incarnation) {
        let mut gone = None;
        self.open.send_modify(|open| gone = open.remove(&origin));
        if let Some((_, spool)) = gone {
            lock(&self.ended).insert((origin, incarnation), spool);
        }
    }

    /// Everybody has seen what a life that has ended had committed.
    pub(crate) fn forget(&self, origin: NodeId, incarnation: Incarnation) {
        lock(&self.ended).remove(&(origin, incarnation));
        let dir = self.path(origin, incarnation);
        if let Err(error) = std::fs::remove_dir_all(&dir) {
            tracing::warn!(%origin, "the spool {} of a life that has ended is left behind: {error}", dir.display());
        }
    }

    /// The last transaction of each: what this node can hand on.
    pub(crate) fn tails(&self) -> VersionVector {
        let open = self.open.borrow();
        open.iter().map(|(origin, (_, spool))| (*origin, *spool.tail_watch().borrow())).collect()
    }

    /// Of every origin whose spool is open, before where in its WAL all that it has committed is here.
    pub(crate) fn tail_ends(&self) -> VersionVector {
        let open = self.open.borrow();
        open.iter().map(|(origin, (_, spool))| (*origin, spool.tail_end())).collect()
    }

    /// Told whenever a spool is opened.
    pub(crate) fn watch(&self) -> watch::Receiver<BTreeMap<NodeId, (Incarnation, Spool)>> {
        self.open.subscribe()
    }
}

/// The spools in a directory: whose they are, of which life, and where.
///
/// # Errors
/// The directory cannot be listed.
pub(crate) fn lives(dir: &Path) -> Result<Vec<(NodeId, Incarnation, PathBuf)>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let mut lives = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        let name =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('-'));
        let life = name
            .and_then(|(node, life)| Some((node.parse().ok()?, Incarnation(life.parse().ok()?))));
        lives.extend(life.map(|(node, life)| (node, life, path)));
    }
    lives.sort();
    Ok(lives)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
