//! Finds a node that shows what a transaction must see, and waits for one as long as there is time.

use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use synapsedb_core::ids::NodeId;
use synapsedb_core::version::VersionVector;
use tokio::time::{Instant, timeout};

use super::choose::Why;
use super::server::Address;
use super::sight::{self, Told};
use super::token::{self, Consistency, Reading};
use super::worker::Worker;

/// So much earlier than all others the node that is preferred is asked.
const HEAD_START: Duration = Duration::from_millis(20);
/// How many sessions of one worker wait at other nodes at once; the others wait for one of these.
pub(super) const WAITS_MAX: usize = 24;

/// Where a transaction may begin.
pub(super) enum Where {
    /// At this node, or at any other that may be read from.
    Rather(Rc<Address>),
    /// At this node only.
    There(Rc<Address>),
}

/// The node for a transaction that may not begin anywhere: the first that shows all that must be seen.
///
/// # Errors
/// None shows it within the time, or a member that must be heard says nothing.
pub(super) async fn find(
    worker: &Rc<Worker>,
    reading: &Reading,
    place: Where,
    deadline: Instant,
) -> Result<Rc<Address>, Why> {
    let told = worker.survey().await;
    let (preferred, mut others) = match place {
        Where::Rather(address) => {
            let others = worker.readers_but(address.node);
            (address, others)
        }
        Where::There(address) => (address, Vec::new()),
    };
    let sight = Sight::new(worker, reading, &told)?;
    let first = preferred.node;
    if sight.at(preferred.node).is_empty() {
        return Ok(preferred);
    }
    let ask = |address: Rc<Address>| {
        let target = sight.at(address.node);
        async move {
            let outcome = reach(worker, address.node, target, deadline).await;
            outcome.map(|()| Rc::clone(&address)).map_err(|why| (address.node, why))
        }
    };
    let mut asked = FuturesUnordered::new();
    asked.push(ask(preferred));
    let mut lacking = Vec::new();
    loop {
        let next = match others.is_empty() {
            true => asked.next().await,
            false => match timeout(HEAD_START, asked.next()).await {
                Ok(Some(Ok(address))) => return Ok(address),
                Ok(Some(Err(why))) => {
                    lacking.push(why);
                    asked.extend(std::mem::take(&mut others).into_iter().map(ask));
                    continue;
                }
                Ok(None) | Err(_) => {
                    asked.extend(std::mem::take(&mut others).into_iter().map(ask));
                    continue;
                }
            },
        };
        match next {
            Some(Ok(address)) => return Ok(address),
            Some(Err(why)) => lacking.push(why),
            None => {
                lacking.sort();
                return Err(Why::Stale(token::to_text(&sight.at(first)), lacking));
            }
        }
    }
}

/// What must be seen, in commits.
struct Sight {
    /// By the session's token.
    token: VersionVector,
    /// Where the session was, and what it can have seen there.
    left: Option<(NodeId, VersionVector)>,
    /// Because somebody was told of it.
    acknowledged: VersionVector,
}

impl Sight {
    fn new(worker: &Worker, reading: &Reading, told: &Told) -> Result<Self, Why> {
        let acknowledged = match reading.consistency {
            Consistency::Eventual | Consistency::Session => VersionVector::new(),
            Consistency::Global => {
                let writers = sight::writers(&worker.shared.state.borrow());
                sight::everything(&writers, told).map_err(Why::Unheard)?
            }
        };
        let left = reading.home.map(|home| (home, sight::seen_at(home, told)));
        let token = sight::in_commits(&reading.token, told, &worker.shared.view.borrow());
        Ok(Self { token, left, acknowledged })
    }

    /// As a node must show it. What was acknowledged there is visible there, and so is what was seen there.
    fn at(&self, node: NodeId) -> VersionVector {
        let mut target = self.acknowledged.clone();
        target.remove(node);
        target.merge(&self.token);
        if let Some((_, seen)) = self.left.as_ref().filter(|(home, _)| *home != node) {
            target.merge(seen);
        }
        target
    }
}

/// Waits until a node shows all of the target.
async fn reach(
    worker: &Worker,
    node: NodeId,
    target: VersionVector,
    deadline: Instant,
) -> Result<(), String> {
    let Some(replication) = &worker.shared.replication else {
        return Err("this router knows of no replication".to_owned());
    };
    let _place = match node == worker.shared.own {
        true => None,
        // It is never closed.
        false => worker.waits.acquire().await.ok(),
    };
    replication.reach(node, target, deadline.saturating_duration_since(Instant::now())).await
}
