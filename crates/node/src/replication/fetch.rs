//! Receives the spool of one origin: from the origin itself, or from a peer that has more of it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::{Buf as _, BytesMut};
use synapsedb_core::backoff::Backoff;
use synapsedb_core::durability::Class;
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::outcome::{Id, Promise};
use synapsedb_core::source::{self, Candidate};
use synapsedb_core::version::VersionVector;
use synapsedb_pg::pgoutput;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::durability::Ack;
use super::publish::{Syncing, TICK, synced};
use super::serve::{self, Answer, Request};
use super::spool::{Frame, SpoolError, Tail, Writer};
use super::{Shared, outcome, retry};
use crate::gossip::MemberState;
use crate::peers::PeerStream;
use crate::tasks::Shutdown;

/// How long after a sender's wish acknowledgements are hurried.
const HURRY: Duration = Duration::from_secs(10);
/// A node that was not heard directly for this long is asked only when nobody else has what is missing.
const HEARD_WITHIN_MS: u64 = 1500;

/// How long a failure is kept at most; the configuration says how long it counts.
const FAILURE_REMEMBERED: Duration = Duration::from_secs(60);

/// The stream was left for another, which is no failure.
#[derive(Debug, thiserror::Error)]
#[error("node {best} is asked from now on")]
struct BetterSource {
    best: NodeId,
}

/// Fetches one origin for as long as the agent runs.
///
/// A spool that turns out to be corrupt is set aside and fetched anew: whoever sent it keeps it until all have applied
/// it.
///
/// # Errors
/// Its spool here belongs to another cluster or node, or is in use.
pub(crate) async fn run(
    shared: Arc<Shared>,
    origin: NodeId,
    incarnation: Incarnation,
    stop: Shutdown,
) -> Result<()> {
    let mut backoff = retry::backoff(&shared.config);
    while !stop.is_cancelled() {
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = life(&shared, origin, incarnation, &mut backoff) => ended,
        };
        let Err(error) = ended;
        match error.downcast_ref::<SpoolError>() {
            Some(SpoolError::OtherSpool { .. } | SpoolError::InUse { .. }) => return Err(error),
            Some(SpoolError::Corrupt { .. }) => {
                shared.status.fetch_failed(origin, origin, &error);
                shared.spools.set_aside(origin, incarnation)?;
            }
            _ => shared.status.fetch_failed(origin, origin, &error),
        }
        retry::pause(&mut backoff, &stop).await;
    }
    Ok(())
}

/// From the opening of the spool until it fails.
async fn life(
    shared: &Shared,
    origin: NodeId,
    incarnation: Incarnation,
    backoff: &mut Backoff,
) -> Result<Infallible> {
    let mut writer = open(shared, origin, incarnation).await?;
    let mut failed = BTreeMap::new();
    loop {
        let tail = writer.tail().commit_lsn;
        let source = source::choose(origin, tail, &candidates(shared, origin, &failed));
        let started = Instant::now();
        let Err(error) = receive(shared, &mut writer, origin, incarnation, source, &failed).await;
        writer.abort();
        failed.retain(|_, at: &mut Instant| at.elapsed() < FAILURE_REMEMBERED);
        if !error.is::<BetterSource>() {
            failed.insert(source, Instant::now());
        }
        if started.elapsed() > Duration::from_millis(shared.config.retry_max_ms) {
            backoff.succeeded();
        }
        if let Some(SpoolError::Failed { .. } | SpoolError::Corrupt { .. }) = error.downcast_ref() {
            return Err(error);
        }
        shared.status.fetch_failed(origin, source, &error);
        retry::wait(backoff).await;
    }
}

/// An empty spool begins after what this server has applied already.
async fn open(shared: &Shared, origin: NodeId, incarnation: Incarnation) -> Result<Writer> {
    let mut writer = shared.spools.open(origin, incarnation)?;
    if writer.tail().commit_lsn == Lsn::ZERO {
        let mut durable = shared.applied.watch_durable();
        durable.wait_for(Option::is_some).await.context("progress is gone")?;
        let applied = shared.durable_of(origin, incarnation).await?;
        if applied > Lsn::ZERO {
            let vector = VersionVector::new();
            writer.start_at(&Tail { commit_lsn: applied, end_lsn: applied, vector })?;
        }
    }
    Ok(writer)
}

/// What is known of everybody from whom the origin's transactions could come.
fn candidates(
    shared: &Shared,
    origin: NodeId,
    failed: &BTreeMap<NodeId, Instant>,
) -> BTreeMap<NodeId, Candidate> {
    let view = shared.gossip.view();
    let patience = Duration::from_millis(shared.config.stream_timeout_ms);
    let candidate = |node: NodeId| {
        let member = view.members.get(&node);
        let alive = member.is_none_or(|member| match member.state {
            MemberState::Alive | MemberState::Suspect => true,
            MemberState::Down | MemberState::Left => false,
        });
        let heard = member.and_then(|member| member.heartbeat_age_ms);
        let failed = failed.get(&node).is_some_and(|at| at.elapsed() < patience);
        let facts = member.and_then(|member| member.facts.as_ref());
        Candidate {
            alive,
            reached: !failed && heard.is_none_or(|age_ms| age_ms < HEARD_WITHIN_MS),
            received: facts.map_or(Lsn::ZERO, |facts| facts.received.get(origin)),
        }
    };
    shared.peers.others().into_iter().map(|node| (node, candidate(node))).collect()
}

/// Opens a stream of what follows the spool's end.
async fn open_stream(
    shared: &Shared,
    writer: &Writer,
    origin: NodeId,
    incarnation: Incarnation,
    source: NodeId,
) -> Result<PeerStream> {
    let timeout = Duration::from_millis(shared.config.stream_timeout_ms);
    let mut stream = shared.peers.open(source, serve::SERVICE).await?;
    let after = writer.tail().commit_lsn;
    let request = Request { format: serve::FORMAT, origin, incarnation, after };
    let greeting = async {
        serve::write_greeting(&mut stream.io, &request).await?;
        serve::read_greeting(&mut stream.io).await
    };
    match tokio::time::timeout(timeout, greeting).await.context("wait for the answer")?? {
        Answer::Frames => Ok(stream),
        Answer::Unavailable { reason } => bail!("node {source} cannot serve it: {reason}"),
        Answer::Gone { first_available } => bail!(
            "node {source} has deleted what follows {after} (it begins after {first_available}): \
             this node was away for too long and must be re-seeded"
        ),
    }
}

async fn receive(
    shared: &Shared,
    writer: &mut Writer,
    origin: NodeId,
    incarnation: Incarnation,
    source: NodeId,
    failed: &BTreeMap<NodeId, Instant>,
) -> Result<Infallible> {
    let mut stream = open_stream(shared, writer, origin, incarnation, source).await?;
    shared.status.fetching(origin, source);
    let timeout = Duration::from_millis(shared.config.stream_timeout_ms);
    let mut due = tokio::time::interval(TICK);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut silent_since = Instant::now();
    let mut buffer = BytesMut::with_capacity(256 << 10);
    let mut visible = shared.applied.watch_visible();
    let mut answers = Answers::default();
    // What is here already is acknowledged too.
    let mut syncing: Option<Syncing> = Some(Box::pin(writer.sync()));
    let sync_interval = Duration::from_millis(shared.config.sync_interval_ms);
    let (mut dirty, mut synced_at) = (false, Instant::now());
    let mut marks = Vec::new();
    loop {
        tokio::select! {
            read = stream.io.read_buf(&mut buffer) => {
                if read.context("read the stream")? == 0 {
                    bail!("node {source} closed the stream");
                }
                silent_since = Instant::now();
                let taken = append(shared, writer, &mut buffer, &mut marks, origin)?;
                dirty |= taken.frames;
                answers.hurried(taken.hurry);
            }
            tail = synced(&mut syncing) => {
                answers.now.durable = tail?.commit_lsn;
                answers.send(&mut stream).await?;
            }
            _ = visible.changed(), if answers.hurry() == Class::Applied => {
                answers.now.visible = visible.borrow_and_update().get(origin);
                answers.send(&mut stream).await?;
            }
            _ = due.tick() => {
                if dirty && syncing.is_none() && synced_at.elapsed() >= sync_interval {
                    (dirty, synced_at) = (false, Instant::now());
                    syncing = Some(Box::pin(writer.sync()));
                }
                answers.now.visible = visible.borrow().get(origin);
                answers.send(&mut stream).await?;
                if let Some(corrupt) = shared.spools.take_corruption(origin) {
                    return Err(corrupt.into());
                }
                let candidates = candidates(shared, origin, failed);
                let tail = writer.tail().commit_lsn;
                if let Some(best) = source::should_leave(source, origin, tail, &candidates) {
                    return Err(BetterSource { best }.into());
                }
                if silent_since.elapsed() > timeout {
                    bail!("node {source} has been silent for {} ms", timeout.as_millis());
                }
            }
        }
        if dirty && syncing.is_none() && answers.hurry() > Class::Local {
            dirty = false;
            syncing = Some(Box::pin(writer.sync()));
        }
    }
}

/// What is acknowledged to the sender, and how fast it wants to hear it.
#[derive(Default)]
struct Answers {
    now: Ack,
    sent: Ack,
    wanted: Option<(Class, Instant)>,
}

impl Answers {
    fn hurried(&mut self, hurry: Option<Class>) {
        if let Some(class) = hurry {
            self.wanted = Some((class, Instant::now()));
        }
    }

    /// What somebody waited for lately: a transaction may be applied some time after it came.
    fn hurry(&self) -> Class {
        let lately = self.wanted.filter(|(_, at)| at.elapsed() < HURRY);
        lately.map_or(Class::Local, |(class, _)| class)
    }

    async fn send(&mut self, stream: &mut PeerStream) -> Result<()> {
        if self.now != self.sent {
            self.sent = self.now;
            serve::write_ack(&mut stream.io, self.now).await.context("acknowledge")?;
        }
        Ok(())
    }
}

/// What a buffer held.
struct Taken {
    frames: bool,
    hurry: Option<Class>,
}

/// What cannot be read is not taken: it would stand in the way of everything after it, here and wherever it is handed
/// on.
fn readable(frame: &Frame) -> Result<(), SpoolError> {
    for message in frame.message_slices() {
        pgoutput::check(message).map_err(|error| SpoolError::FrameRefused(error.to_string()))?;
    }
    Ok(())
}

/// Appends every whole frame of the buffer.
fn append(
    shared: &Shared,
    writer: &mut Writer,
    buffer: &mut BytesMut,
    marks: &mut Vec<(Id, Promise)>,
    origin: NodeId,
) -> Result<Taken> {
    let refused = || format!("append a frame of node {origin} to the spool");
    let mut taken = Taken { frames: false, hurry: None };
    while let Some(prefix) = buffer.first_chunk::<4>() {
        let prefix = u32::from_le_bytes(*prefix);
        let sign = match prefix {
            serve::ALIVE => Some(None),
            serve::HURRY_DURABLE => Some(Some(Class::Quorum)),
            serve::HURRY_VISIBLE => Some(Some(Class::Applied)),
            _ => None,
        };
        if let Some(hurry) = sign {
            buffer.advance(4);
            taken.hurry = hurry.or(taken.hurry);
            continue;
        }
        let rest = prefix as usize;
        let limit = usize::try_from(shared.config.spool.frame_bytes_max).unwrap_or(usize::MAX);
        if rest > limit {
            return Err(anyhow!("a frame of {rest} bytes is longer than {limit}: refused"));
        }
        if buffer.len() < 4 + rest {
            buffer.reserve(4 + rest - buffer.len());
            break;
        }
        let frame = buffer.split_to(4 + rest).freeze();
        shared.metrics.fetched_bytes.inc_by(frame.len() as u64);
        let check = |frame: &Frame| {
            readable(frame)?;
            if frame.is_first() {
                marks.clear();
            }
            outcome::collect(frame, marks);
            Ok(())
        };
        if let Some(lsn) = writer.append_frame(&frame, check).with_context(refused)? {
            shared.outcomes.note(lsn, marks);
        }
        taken.frames = true;
    }
    writer.show().with_context(refused)?;
    Ok(taken)
}
