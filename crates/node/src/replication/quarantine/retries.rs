//! Changes in quarantine that are to be tried again: the lane of their origin does it between two transactions, since
//! only one session can write as an origin.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use synapsedb_core::ids::NodeId;
use tokio::sync::{Notify, oneshot};

/// A change that is to be tried again.
pub(crate) struct Retry {
    /// Its number in `synapsedb.quarantine`.
    pub(crate) id: i64,
    /// Who waits for what becomes of it: applied, or why not.
    pub(crate) answer: oneshot::Sender<Result<(), String>>,
}

/// The changes that wait for their lanes.
#[derive(Default)]
pub(crate) struct Retries {
    waiting: Mutex<BTreeMap<NodeId, VecDeque<Retry>>>,
    asked: Notify,
    /// Whether what they met is forgotten, since it was too much.
    too_much: AtomicBool,
}

impl Retries {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, VecDeque<Retry>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the changes in quarantine met is too much to be remembered, or not any more. Answers whether that is new.
    pub(crate) fn note_too_much(&self, too_much: bool) -> bool {
        !self.too_much.swap(too_much, Ordering::Relaxed) && too_much
    }

    pub(crate) fn is_too_much(&self) -> bool {
        self.too_much.load(Ordering::Relaxed)
    }

    /// Asks the lane of `origin`.
    pub(crate) fn ask(&self, origin: NodeId, id: i64) -> oneshot::Receiver<Result<(), String>> {
        let (answer, answered) = oneshot::channel();
        self.lock().entry(origin).or_default().push_back(Retry { id, answer });
        self.asked.notify_waiters();
        answered
    }

    /// The next for a lane.
    pub(crate) fn take(&self, origin: NodeId) -> Option<Retry> {
        self.lock().get_mut(&origin)?.pop_front()
    }

    /// Whether a lane has any to try.
    pub(crate) fn has_any(&self, origin: NodeId) -> bool {
        self.lock().get(&origin).is_some_and(|waiting| !waiting.is_empty())
    }

    /// Waits until the lane of `origin` has something to try again. Cancel safe.
    pub(crate) async fn wait(&self, origin: NodeId) {
        loop {
            let mut asked = std::pin::pin!(self.asked.notified());
            asked.as_mut().enable();
            if self.has_any(origin) {
                return;
            }
            asked.await;
        }
    }
}
