//! Changes in quarantine that are to be tried again: the lane of their origin does it between two transactions, since
//! only one session can write as an origin. And local writes that are to be decided upon beside remote ones: any lane
//! does it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use tokio::sync::{Notify, oneshot};

/// What a lane is asked to look at.
pub(crate) enum Asked {
    /// The change with this number in `synapsedb.quarantine`.
    Quarantined(i64),
    /// A write of this node.
    Local(LocalWrite),
}

/// A local write whose place is looked at again.
pub(crate) struct LocalWrite {
    /// Its transaction.
    pub(crate) lsn: Lsn,
    /// The relation of the change as its stream describes it.
    pub(crate) relation: Bytes,
    /// Its change, or the remote change beside which it is looked at.
    pub(crate) change: Bytes,
    /// Whether it is the remote change.
    pub(crate) is_of_other: bool,
}

/// A change that is to be tried again.
pub(crate) struct Retry {
    /// Whose it is.
    pub(crate) origin: NodeId,
    pub(crate) asked: Asked,
    /// Who waits for what becomes of it: applied, or why not.
    pub(crate) answer: oneshot::Sender<Result<(), String>>,
}

/// The changes that wait for their lanes.
#[derive(Default)]
pub(crate) struct Retries {
    /// By the lane that must do it; nothing where any can.
    waiting: Mutex<BTreeMap<Option<NodeId>, VecDeque<Retry>>>,
    asked: Notify,
    /// Whether what they met is forgotten, since it was too much.
    too_much: AtomicBool,
}

impl Retries {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Option<NodeId>, VecDeque<Retry>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the changes in quarantine met is too much to be remembered, or not any more. Answers whether that is new.
    pub(crate) fn note_too_much(&self, too_much: bool) -> bool {
        !self.too_much.swap(too_much, Ordering::Relaxed) && too_much
    }

    pub(crate) fn is_too_much(&self) -> bool {
        self.too_much.load(Ordering::Relaxed)
    }

    /// Asks the lane of `origin`, or any for what is of this node, `here`.
    pub(crate) fn ask(
        &self,
        here: NodeId,
        origin: NodeId,
        asked: Asked,
    ) -> oneshot::Receiver<Result<(), String>> {
        let (answer, answered) = oneshot::channel();
        let lane = (origin != here).then_some(origin);
        let retry = Retry { origin, asked, answer };
        self.lock().entry(lane).or_default().push_back(retry);
        self.asked.notify_waiters();
        answered
    }

    /// The next for a lane.
    pub(crate) fn take(&self, origin: NodeId) -> Option<Retry> {
        let mut waiting = self.lock();
        [Some(origin), None].iter().find_map(|lane| {
            loop {
                let retry = waiting.get_mut(lane)?.pop_front()?;
                // Who has asked for it may wait no more, and asks again.
                if !retry.answer.is_closed() {
                    return Some(retry);
                }
            }
        })
    }

    /// Whether a lane has any to try.
    pub(crate) fn has_any(&self, origin: NodeId) -> bool {
        let waiting = self.lock();
        let any = |lane: Option<NodeId>| waiting.get(&lane).is_some_and(|of| !of.is_empty());
        any(Some(origin)) || any(None)
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
