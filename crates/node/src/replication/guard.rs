//! The guard before publishing: asks the peers what they have of this node, and checks its own WAL against it.
//!
//! An older copy of the data, of the spool or of both would give LSNs away a second time. [`synapsedb_core::guard`]
//! decides; here the questions are asked and answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use synapsedb_core::guard::{self, Decision, Mark, Own, Says};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::state::{MemberStatus, Refusal};
use synapsedb_core::time::Timestamp;
use synapsedb_pg::client;
use synapsedb_pg::pgoutput::{self, Message};

use super::Shared;
use super::spool::{Spool, SpoolError};
use crate::tasks::Shutdown;

const SERVICE: &str = "replication.guard";

/// How long a peer may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause before the peers that have not answered are asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// This node must not publish: its data is not what the cluster knows. The agent ends with it, and its server with the
/// agent, so that nobody writes what nobody will ever receive.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) String);

/// Who asks.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    uuid: uuid::Uuid,
    incarnation: Incarnation,
}

/// What is said of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Knows { received: Lsn, content: Option<(i64, u32)>, applied: Lsn },
    Refuses { reason: String },
}

/// Answers the other members' questions.
pub(crate) fn serve(shared: &Arc<Shared>) {
    let peers = shared.peers.clone();
    let shared = Arc::downgrade(shared);
    peers.serve(SERVICE, move |from, body| {
        let shared = shared.upgrade();
        Box::pin(async move {
            let shared = shared.ok_or("replication has stopped")?;
            let question = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
            let answer = answer(&shared, from, &question).await?;
            serde_json::to_vec(&answer).map(Bytes::from).map_err(|error| error.to_string())
        })
    });
}

/// What is known here of the life of a node that asks; an error when that is not known yet.
async fn answer(shared: &Shared, from: NodeId, question: &Question) -> Result<Answer, String> {
    if let Some(refusal) = refusal(shared, from, question) {
        return Ok(Answer::Refuses { reason: refusal.to_string() });
    }
    let open = shared.spools.get(from).filter(|(life, _)| *life == question.incarnation);
    if open.is_none() && shared.spools.path(from, question.incarnation).exists() {
        return Err("the spool is not open yet".to_owned());
    }
    let applied = match shared.durable_of(from, question.incarnation).await {
        Ok(applied) => applied,
        Err(_) if open.is_some() => Lsn::ZERO,
        Err(error) => return Err(format!("the server cannot be asked: {error:#}")),
    };
    let last = open.and_then(|(_, spool)| last(&spool));
    let received = last.map_or(Lsn::ZERO, |mark| mark.commit_lsn);
    let content = last.and_then(|mark| mark.content).map(|(time, xid)| (time.unix_us(), xid));
    Ok(Answer::Knows { received, content, applied })
}

fn refusal(shared: &Shared, node: NodeId, question: &Question) -> Option<Refusal> {
    let state = shared.raft.state();
    let known = state.members.get(&node)?;
    let (uuid, incarnation) = (question.uuid.to_string(), question.incarnation);
    if known.uuid != uuid {
        return Some(Refusal::OtherIdentity { node, known: known.uuid.clone(), got: uuid });
    }
    if known.status == MemberStatus::Removed {
        return Some(Refusal::RemovedMember { node });
    }
    let (old, got) = (known.incarnation, incarnation);
    (got < old).then_some(Refusal::OldIncarnation { node, known: old, got })
}

/// The last transaction of a spool, with its content if it is still there.
pub(crate) fn last(spool: &Spool) -> Option<Mark> {
    let commit_lsn = *spool.tail_watch().borrow();
    if commit_lsn == Lsn::ZERO {
        return None;
    }
    let header = || -> Result<_, SpoolError> {
        let frame = spool.reader_after(Lsn(commit_lsn.0 - 1))?.try_next()?;
        Ok(frame.and_then(|frame| frame.header()))
    };
    let header = header().ok().flatten().filter(|header| header.commit_lsn == commit_lsn);
    Some(Mark { commit_lsn, content: header.map(|header| (header.commit_time, header.xid)) })
}

/// Waits until a majority has said that this node may publish, or one that it must not; false on shutdown.
///
/// # Errors
/// [`Refused`].
pub(crate) async fn pass(
    shared: &Shared,
    slot: &str,
    spooled: Lsn,
    from: Lsn,
    stop: &Shutdown,
) -> Result<bool> {
    let mut answers = BTreeMap::new();
    loop {
        ask(shared, &mut answers).await;
        let own = own(shared, spooled, from).await?;
        let members = shared.peers.others().len() + 1;
        match guard::decide(own, members, &answers) {
            Decision::Publish(marks) => {
                for mark in marks {
                    meet(shared, slot, mark).await?;
                }
                return Ok(true);
            }
            Decision::Refuse(refusal) => return Err(Refused(refusal.to_string()).into()),
            Decision::Wait { missing } => {
                let silent: Vec<_> = shared
                    .peers
                    .others()
                    .iter()
                    .filter(|node| !answers.contains_key(node))
                    .map(NodeId::to_string)
                    .collect();
                shared.status.publisher_waits(&format!(
                    "{missing} more of the nodes {} must say what they have of this node before it may publish",
                    silent.join(", ")
                ));
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(false),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

async fn own(shared: &Shared, spooled: Lsn, slot: Lsn) -> Result<Own> {
    let client = shared.sql("guard").await?;
    let row = client.query_one(include_str!("sql/wal_end.sql"), &[]).await?;
    Ok(Own { spooled, wal_end: row.get::<_, String>(0).parse()?, slot })
}

/// Asks everybody who has not answered.
async fn ask(shared: &Shared, answers: &mut BTreeMap<NodeId, Says>) {
    let question =
        Question { uuid: shared.identity.uuid, incarnation: shared.identity.incarnation };
    let body = Bytes::from(serde_json::to_vec(&question).unwrap_or_default());
    let silent = shared.peers.others().into_iter().filter(|node| !answers.contains_key(node));
    let calls = silent.map(|node| {
        let body = body.clone();
        async move {
            let answer = shared.peers.call_within(node, SERVICE, body, ANSWER_TIMEOUT).await;
            let answer: Answer = serde_json::from_slice(&answer.ok()?).ok()?;
            Some((node, says(answer)))
        }
    });
    answers.extend(join_all(calls).await.into_iter().flatten());
}

fn says(answer: Answer) -> Says {
    match answer {
        Answer::Refuses { reason } => Says::Refuses(reason),
        Answer::Knows { received, content, applied } => {
            let content = content.map(|(time, xid)| (Timestamp::from_unix_us(time), xid));
            let received = Mark { commit_lsn: received, content };
            let applied = Mark { commit_lsn: applied, content: None };
            let last = if received.commit_lsn >= applied.commit_lsn { received } else { applied };
            Says::Knows((last.commit_lsn > Lsn::ZERO).then_some(last))
        }
    }
}

/// The WAL must hold the transaction that a peer received and the own spool lost; looked at without consuming it.
async fn meet(shared: &Shared, slot: &str, mark: Mark) -> Result<()> {
    let client = client::connect(&shared.postgres.local().named("synapsedb guard")).await?;
    // The record at this position is the commit: looking ends with the one that reaches beyond it.
    let upto = Lsn(mark.commit_lsn.0 + 1).to_string();
    let rows = client
        .query(include_str!("sql/peek_begins.sql"), &[&slot, &upto])
        .await
        .context("look into the WAL for what a peer has received")?;
    let met = rows.iter().any(|row| {
        let body = Bytes::from(row.get::<_, Vec<u8>>(0));
        matches!(pgoutput::decode(&body), Ok(Message::Begin { commit_lsn, commit_time, xid })
            if mark.is(commit_lsn, commit_time, xid))
    });
    if met {
        return Ok(());
    }
    Err(other_history(mark.commit_lsn, "a peer has received").into())
}

/// The WAL does not hold a transaction that is known to have been published.
pub(crate) fn other_history(lsn: Lsn, whence: &str) -> Refused {
    Refused(format!(
        "the WAL of this server has no transaction at {lsn} like the one that {whence}: the server was replaced by an \
         older copy, which has gone its own way since. Nothing is published; re-seed this node (synapsedb node reseed)"
    ))
}
