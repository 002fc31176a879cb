//! A Raft log that was restored from an older copy has forgotten entries and votes on which the others count: it is
//! found before Raft starts, by what the leader knows that this node had acknowledged.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures_util::future::join_all;
use uuid::Uuid;

use super::Shared;
use crate::peers;

const SERVICE: &str = "raft.acknowledged";
/// How long a peer may take to answer; one that leads has no reason to take long.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Tells a member the index of the last entry that it has acknowledged to this leader; nothing when this node does not
/// lead, or knows another node under that number, which is refused for that.
pub(super) fn serve(shared: &Arc<Shared>) {
    let peers = shared.peers.clone();
    let shared = Arc::downgrade(shared);
    peers.serve(SERVICE, move |from, uuid| {
        let shared = shared.upgrade();
        Box::pin(async move {
            let shared = shared.ok_or("Raft has stopped")?;
            let known = shared.state.borrow().members.get(&from).map(|known| known.uuid.clone());
            if known.is_some_and(|known| known.as_bytes() != uuid) {
                return Ok(Bytes::new());
            }
            let metrics = shared.raft.metrics();
            let metrics = metrics.borrow();
            let of = |log: &std::collections::BTreeMap<u64, Option<openraft::LogId<u64>>>| {
                log.get(&u64::from(from.get())).copied().flatten()
            };
            let matched = metrics.replication.as_ref().and_then(of);
            Ok(matched
                .map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id.index.to_be_bytes())))
        })
    });
}

/// Asks the peers before Raft starts. A cluster that starts from cold has nobody who answers: then an election follows,
/// in which an older log cannot win.
///
/// # Errors
/// The log ends before what it has acknowledged.
pub(super) async fn check(
    peers: &peers::Handle,
    uuid: Uuid,
    last_index: Option<u64>,
) -> Result<()> {
    let (others, uuid) = (peers.others(), Bytes::from(uuid.to_string()));
    let calls = others.iter().map(|node| peers.call_within(*node, SERVICE, uuid.clone(), TIMEOUT));
    for answer in join_all(calls).await.into_iter().flatten() {
        let Some(index) = answer.first_chunk::<8>().map(|index| u64::from_be_bytes(*index)) else {
            continue;
        };
        let ours = last_index.unwrap_or(0);
        ensure!(
            index <= ours,
            "the Raft log of this node ends at {ours}, but it had acknowledged everything until {index}: it was \
             restored from an older copy, and its server may be one too. Nothing was changed; put the newer directory \
             back, or re-seed this node (synapsedb node reseed)"
        );
    }
    Ok(())
}
