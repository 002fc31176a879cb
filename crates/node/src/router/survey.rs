//! Asks all members together how far they are. One survey that begins after a request serves all who have asked by
//! then, so that a thousand sessions cost no more than one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use synapsedb_core::ids::NodeId;
use tokio::sync::watch;

use super::Shared;
use super::sight::Told;
use super::worker::Worker;
use crate::gossip::MemberState;

/// The surveys of one worker.
pub(super) struct Surveys {
    /// How many have asked, and how many of them the surveys that have begun serve.
    asked: Cell<u64>,
    begun: Cell<u64>,
    running: Cell<bool>,
    last: RefCell<Rc<Told>>,
    ended: watch::Sender<u64>,
}

impl Default for Surveys {
    fn default() -> Self {
        Self {
            asked: Cell::new(0),
            begun: Cell::new(0),
            running: Cell::new(false),
            last: RefCell::default(),
            ended: watch::Sender::new(0),
        }
    }
}

impl Worker {
    /// What the members say of themselves, asked after this was called.
    pub(super) async fn survey(self: &Rc<Self>) -> Rc<Told> {
        let surveys = &self.surveys;
        let own = surveys.asked.get() + 1;
        surveys.asked.set(own);
        let mut ended = surveys.ended.subscribe();
        if !surveys.running.replace(true) {
            tokio::task::spawn_local(Rc::clone(self).run_surveys());
        }
        // The sender lives as long as the worker, which we hold.
        let _ = ended.wait_for(|ended| *ended >= own).await;
        Rc::clone(&surveys.last.borrow())
    }

    /// Surveys until nobody waits for one.
    async fn run_surveys(self: Rc<Self>) {
        let surveys = &self.surveys;
        while surveys.begun.get() < surveys.asked.get() {
            let serves = surveys.asked.get();
            surveys.begun.set(serves);
            let told = ask_all(&self.shared).await;
            *surveys.last.borrow_mut() = Rc::new(told);
            surveys.ended.send_replace(serves);
        }
        surveys.running.set(false);
    }
}

/// All members at once; who is known to be away is not asked.
async fn ask_all(shared: &Shared) -> Told {
    let patience = Duration::from_millis(shared.config().position_timeout_ms);
    let members: Vec<NodeId> = shared.state.borrow().present().map(|(node, _)| node).collect();
    let answers = members.into_iter().map(|node| async move {
        let answer = match (away(shared, node), &shared.replication) {
            (Some(why), _) => Err(why.to_owned()),
            (None, None) => Err("this router knows of no replication".to_owned()),
            (None, Some(replication)) => replication.position_of(node, patience).await,
        };
        (node, answer)
    });
    futures_util::future::join_all(answers).await.into_iter().collect()
}

/// Why it is of no use to ask a member.
fn away(shared: &Shared, node: NodeId) -> Option<&'static str> {
    if node == shared.own {
        return None;
    }
    match shared.view.borrow().members.get(&node).map(|member| member.state) {
        Some(MemberState::Alive | MemberState::Suspect) => None,
        Some(MemberState::Down) => Some("its agent is down"),
        Some(MemberState::Left) => Some("its agent has stopped"),
        None => Some("it was not heard of yet"),
    }
}
