//! What became of transactions whose COMMIT was interrupted: remembers the markers of the routers that were read, here
//! from the local WAL and from what peers sent, and answers who asks for one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::outcome::{Answer, AtOrigin, Id, Index, Promise, Seen, at_origin};
use synapsedb_core::time::Timestamp;
use synapsedb_pg::client::Client;
use synapsedb_pg::pgoutput::{self, Message};

use super::spool::{Frame, Header};
use super::{Handle, Shared};
use crate::peers::CallError;

/// The prefix of the markers.
pub(crate) const PREFIX: &str = "synapsedb.outcome";

/// The service under which an agent answers.
const SERVICE: &str = "replication.outcome";

/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How long a question may have been under way, in addition to the age that it says: nobody waits longer for an
/// answer, and a little more.
const ON_THE_WAY_MS: u64 = 3 * ANSWER_WITHIN.as_millis() as u64;

/// The instant at which this process began, on the clock of the index: what was before it has an instant too.
const BEGINNING_MS: u64 = 1 << 40;

/// Who asks for the outcome of a transaction, and what he knows of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Question {
    /// The number in its marker.
    pub id: Id,
    /// The node on whose server it was, and the life of that.
    pub origin: NodeId,
    /// See [`Question::origin`].
    pub incarnation: Incarnation,
    /// The process id of the server's session that worked on it.
    pub pid: u32,
    /// How long ago its marker was sent.
    pub age_ms: u64,
}

/// The markers that were seen here.
pub(crate) struct Outcomes {
    index: Mutex<Index>,
    begun: Instant,
    keep_ms: u64,
    /// The commit time of the first transaction that the own spool held at the start.
    spool_begins: Mutex<Option<Timestamp>>,
    /// Whether everybody may write markers.
    allowed: Arc<AtomicBool>,
    /// Asks the local server, for one question at a time.
    session: tokio::sync::Mutex<Option<Client>>,
    /// Where that session lives: questions come from other threads too.
    runtime: Option<tokio::runtime::Handle>,
}

impl Outcomes {
    pub(crate) fn new(count_max: usize, keep_ms: u64) -> Self {
        Self {
            index: Mutex::new(Index::new(count_max.max(1), keep_ms, BEGINNING_MS)),
            begun: Instant::now(),
            keep_ms,
            spool_begins: Mutex::new(None),
            allowed: Arc::default(),
            session: tokio::sync::Mutex::default(),
            runtime: tokio::runtime::Handle::try_current().ok(),
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        BEGINNING_MS + self.begun.elapsed().as_millis() as u64
    }

    /// A transaction with these markers has committed.
    pub(crate) fn note(&self, lsn: Lsn, marks: &mut Vec<(Id, Promise)>) {
        if marks.is_empty() {
            return;
        }
        let (now_ms, mut index) = (self.now_ms(), self.index());
        for (id, promise) in marks.drain(..) {
            index.note(id, Seen { promise, lsn }, now_ms);
        }
    }

    /// A frame of a spool is read at the start.
    pub(crate) fn reread(&self, frame: &Frame, header: &Header, is_own: bool) {
        if is_own {
            let mut begins = self.spool_begins.lock().unwrap_or_else(PoisonError::into_inner);
            begins.get_or_insert(header.commit_time);
        }
        let age_ms = age_ms(header.commit_time);
        if age_ms <= self.keep_ms.saturating_mul(2) {
            let mut marks = Vec::new();
            collect(frame, &mut marks);
            self.note(header.commit_lsn, &mut marks);
        }
    }

    /// Nothing was ever taken out of the own spool.
    pub(crate) fn spool_is_whole(&self) {
        let mut begins = self.spool_begins.lock().unwrap_or_else(PoisonError::into_inner);
        *begins = Some(Timestamp::default());
    }

    /// The own spool was read as a whole: what was committed since its beginning, and lately, is known.
    pub(crate) fn filled(&self) {
        let begins = *self.spool_begins.lock().unwrap_or_else(PoisonError::into_inner);
        let known_ms = begins.map_or(0, age_ms).min(self.keep_ms);
        let since_ms = self.now_ms() - known_ms;
        self.index().filled_from(since_ms);
    }

    /// Asks the server whether everybody may write markers: where somebody has taken that away, none are written.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub(crate) async fn look_whether_allowed(&self, client: &Client) -> Result<()> {
        let row = client.query_one(include_str!("sql/may_mark.sql"), &[]).await?;
        self.allowed.store(row.get(0), Ordering::Release);
        Ok(())
    }

    /// What the index says now, and whether it would know a transaction of this age.
    fn look(&self, question: &Question, asked: Instant) -> (Option<Seen>, bool) {
        let waited_ms = asked.elapsed().as_millis() as u64;
        let age_ms = question.age_ms.saturating_add(waited_ms).saturating_add(ON_THE_WAY_MS);
        let (now_ms, index) = (self.now_ms(), self.index());
        (index.get(question.id), index.covers(now_ms.saturating_sub(age_ms)))
    }
}

/// The marker that a message of the stream is, if it is one.
pub(crate) fn mark(raw: &[u8]) -> Option<(Id, Promise)> {
    if raw.first() != Some(&b'M') {
        return None;
    }
    let Ok(Message::LogicalMessage { transactional: true, prefix: PREFIX, content, .. }) =
        pgoutput::decode(raw)
    else {
        return None;
    };
    let (id, synchronous_commit) = std::str::from_utf8(content).ok()?.split_once(' ')?;
    Some((id.parse().ok()?, Promise::of(synchronous_commit)))
}

/// Adds the markers of a frame.
pub(crate) fn collect(frame: &Frame, marks: &mut Vec<(Id, Promise)>) {
    marks.extend(frame.message_slices().filter_map(mark));
}

fn age_ms(commit_time: Timestamp) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = Timestamp::from_unix_us(i64::try_from(now.as_micros()).unwrap_or(i64::MAX));
    u64::try_from(now.us_since(commit_time) / 1000).unwrap_or(0)
}

/// Answers the peers from now on.
pub(crate) fn serve(shared: &Arc<Shared>) {
    let serving = shared.clone();
    shared.peers.serve(SERVICE, move |_, body| {
        let shared = serving.clone();
        Box::pin(async move {
            let question: Question =
                serde_json::from_slice(&body).map_err(|error| error.to_string())?;
            let answer = answer(&shared, &question).await;
            serde_json::to_vec(&answer).map(Bytes::from).map_err(|error| error.to_string())
        })
    });
}

/// What this agent knows of a transaction.
async fn answer(shared: &Shared, question: &Question) -> Answer {
    let asked = Instant::now();
    if let (Some(seen), _) = shared.outcomes.look(question, asked) {
        return Answer::Committed(seen);
    }
    let own = &shared.identity;
    if (question.origin, question.incarnation) != (own.node, own.incarnation) {
        return Answer::Unknown;
    }
    let looked = async {
        let wal_end = end_after(shared, question.pid).await?;
        let Some(wal_end) = wal_end else { return Ok(Answer::Unknown) };
        shared.recent.wait_decoded(wal_end, ANSWER_WITHIN).await?;
        let (seen, index_covers) = shared.outcomes.look(question, asked);
        let facts = AtOrigin { session_gone: true, wal_end, read: wal_end, seen, index_covers };
        anyhow::Ok(at_origin(&facts))
    };
    match tokio::time::timeout(ANSWER_WITHIN, looked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::debug!("the outcome of a transaction is not known yet: {error:#}");
            Answer::Unknown
        }
        Err(_) => Answer::Unknown,
    }
}

/// Where the WAL of the local server ends after its session `pid` has gone; `None` while the session is there.
async fn end_after(shared: &Shared, pid: u32) -> Result<Option<Lsn>> {
    let mut session = shared.outcomes.session.lock().await;
    // Taken out: an answer that is given up leaves nothing half asked behind.
    let client = match session.take().filter(|client| !client.is_closed()) {
        Some(client) => client,
        None => shared.sql("outcome").await?,
    };
    let pid = i32::try_from(pid).context("a process id")?;
    let is_there = client.query_opt(include_str!("sql/session_of.sql"), &[&pid]).await?.is_some();
    let end = if is_there {
        None
    } else {
        let row = client.query_one(include_str!("sql/flush_wal.sql"), &[]).await?;
        Some(row.get::<_, String>(0).parse()?)
    };
    *session = Some(client);
    Ok(end)
}

impl Handle {
    /// Whether markers may be written by everybody, as far as is known.
    pub(crate) fn may_mark(&self) -> Arc<AtomicBool> {
        self.shared.outcomes.allowed.clone()
    }

    /// What `node`'s agent knows of a transaction; from any thread.
    ///
    /// # Errors
    /// It cannot be asked.
    pub(crate) async fn outcome(
        &self,
        node: NodeId,
        question: &Question,
    ) -> Result<Answer, CallError> {
        if node == self.shared.identity.node {
            let (shared, question) = (self.shared.clone(), question.clone());
            let Some(runtime) = &self.shared.outcomes.runtime else { return Ok(Answer::Unknown) };
            let answered = runtime.spawn(async move { answer(&shared, &question).await });
            return Ok(answered.await.unwrap_or(Answer::Unknown));
        }
        let body = serde_json::to_vec(question).unwrap_or_default();
        let within = 2 * ANSWER_WITHIN;
        let answer = self.shared.peers.call_within(node, SERVICE, body.into(), within).await?;
        Ok(serde_json::from_slice(&answer).unwrap_or(Answer::Unknown))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message(flags: u8, prefix: &str, content: &str) -> Vec<u8> {
        let mut raw = vec![b'M', flags];
        raw.extend_from_slice(&7_u64.to_be_bytes());
        raw.extend_from_slice(prefix.as_bytes());
        raw.push(0);
        raw.extend_from_slice(&(content.len() as u32).to_be_bytes());
        raw.extend_from_slice(content.as_bytes());
        raw
    }

    #[test]
    fn only_what_a_router_wrote_is_a_marker() {
        let id = Id::new(NodeId::new(2).unwrap(), 3, 4);
        let content = format!("{id} local");
        assert_eq!(mark(&message(1, PREFIX, &content)), Some((id, Promise::Local)));
        assert_eq!(mark(&message(1, PREFIX, &format!("{id} on"))), Some((id, Promise::Members)));
        for (flags, prefix, content) in [
            (0, PREFIX, content.as_str()),
            (1, "synapsedb.flush", &content),
            (1, PREFIX, "local"),
            (1, PREFIX, "x local"),
            (1, PREFIX, ""),
        ] {
            assert_eq!(mark(&message(flags, prefix, content)), None, "{prefix} {content}");
        }
        assert_eq!(mark(b"I"), None);
    }

    #[test]
    fn what_was_before_the_start_is_known_only_after_the_spool_was_read() {
        let outcomes = Outcomes::new(10, 60_000);
        let id = Id::new(NodeId::new(1).unwrap(), 1, 1);
        let (origin, incarnation) = (NodeId::new(1).unwrap(), Incarnation(1));
        let question = Question { id, origin, incarnation, pid: 1, age_ms: 1_000 };
        let asked = Instant::now();
        assert_eq!(outcomes.look(&question, asked), (None, false));
        outcomes.filled();
        assert_eq!(outcomes.look(&question, asked), (None, false), "the spool was empty");
        outcomes.spool_is_whole();
        outcomes.filled();
        assert_eq!(outcomes.look(&question, asked), (None, true));
        let older = Question { age_ms: 100_000, ..question.clone() };
        assert_eq!(outcomes.look(&older, asked), (None, false));
        outcomes.note(Lsn(7), &mut vec![(id, Promise::Local)]);
        let seen = Seen { promise: Promise::Local, lsn: Lsn(7) };
        assert_eq!(outcomes.look(&question, asked), (Some(seen), true));
    }
}
