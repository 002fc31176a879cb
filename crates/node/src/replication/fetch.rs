//! Receives the spool of one origin: from the origin itself, or from a peer that has more of it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::{Buf as _, BytesMut};
use synapsedb_core::backoff::{self, Backoff};
use synapsedb_core::ids::{Incarnation, NodeId};
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::Shared;
use super::serve::{self, Answer, Request};
use super::spool::Writer;
use crate::gossip::MemberState;
use crate::tasks::Shutdown;

/// Fetches one origin for as long as the agent runs.
///
/// # Errors
/// Its spool here cannot be opened (corrupt, or of another cluster).
pub(crate) async fn run(
    shared: Arc<Shared>,
    origin: NodeId,
    incarnation: Incarnation,
    stop: Shutdown,
) -> Result<()> {
    let mut writer = shared.spools.open(origin, incarnation)?;
    let config = &shared.config;
    let mut backoff = Backoff::new(backoff::Config {
        first_ms: config.retry_min_ms,
        limit_ms: config.retry_max_ms,
    });
    while !stop.is_cancelled() {
        let source = source(&shared, origin);
        let started = Instant::now();
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = receive(&shared, &mut writer, origin, incarnation, source) => ended,
        };
        writer.abort();
        if started.elapsed() > Duration::from_millis(config.retry_max_ms) {
            backoff.succeeded();
        }
        if let Err(error) = ended {
            shared.status.fetch_failed(origin, source, &error);
        }
        let wait = Duration::from_millis(backoff.failed(rand::random()));
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    writer.abort();
    Ok(())
}

/// The origin while it may be alive; else the live member that has applied most of it.
fn source(shared: &Shared, origin: NodeId) -> NodeId {
    let view = shared.gossip.view();
    let usable = |node: &NodeId| {
        view.members.get(node).is_none_or(|member| match member.state {
            MemberState::Alive | MemberState::Suspect => true,
            MemberState::Down | MemberState::Left => false,
        })
    };
    if usable(&origin) {
        return origin;
    }
    let applied = |node: &NodeId| {
        let facts = view.members.get(node).and_then(|member| member.facts.as_ref());
        facts.map(|facts| facts.applied.get(origin))
    };
    let others = shared.peers.others().into_iter().filter(|node| *node != origin && usable(node));
    others.max_by_key(applied).unwrap_or(origin)
}

async fn receive(
    shared: &Shared,
    writer: &mut Writer,
    origin: NodeId,
    incarnation: Incarnation,
    source: NodeId,
) -> Result<()> {
    let mut stream = shared.peers.open(source, serve::SERVICE).await?;
    let after = writer.tail().commit_lsn;
    let request = Request { format: serve::FORMAT, origin, incarnation, after };
    serve::write_greeting(&mut stream.io, &request).await?;
    match serve::read_greeting(&mut stream.io).await? {
        Answer::Frames => {}
        Answer::Unavailable { reason } => bail!("node {source} cannot serve it: {reason}"),
        Answer::Gone { first_available } => bail!(
            "node {source} has deleted what follows {after} (it begins after {first_available}): \
             this node was away for too long and must be re-seeded"
        ),
    }
    shared.status.fetching(origin, source);
    let period = Duration::from_millis(shared.config.sync_interval_ms.max(1));
    let mut sync_due = tokio::time::interval(period);
    sync_due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut silent_since = Instant::now();
    let timeout = Duration::from_millis(shared.config.stream_timeout_ms);
    let mut buffer = BytesMut::with_capacity(256 << 10);
    let mut dirty = false;
    loop {
        tokio::select! {
            read = stream.io.read_buf(&mut buffer) => {
                if read.context("read the stream")? == 0 {
                    bail!("node {source} closed the stream");
                }
                silent_since = Instant::now();
                dirty |= append(shared, writer, &mut buffer, origin)?;
            }
            _ = sync_due.tick() => {
                if std::mem::take(&mut dirty) {
                    writer.sync().await?;
                }
                if silent_since.elapsed() > timeout {
                    bail!("node {source} has been silent for {} ms", timeout.as_millis());
                }
            }
        }
    }
}

/// Appends every whole frame of the buffer; answers whether there was any.
fn append(
    shared: &Shared,
    writer: &mut Writer,
    buffer: &mut BytesMut,
    origin: NodeId,
) -> Result<bool> {
    let mut any = false;
    while let Some(prefix) = buffer.first_chunk::<4>() {
        let rest = u32::from_le_bytes(*prefix) as usize;
        if rest == 0 {
            buffer.advance(4);
            continue;
        }
        let limit = usize::try_from(shared.config.spool.frame_bytes_max).unwrap_or(usize::MAX);
        if rest > limit {
            return Err(anyhow!("a frame of {rest} bytes is longer than {limit}: refused"));
        }
        if buffer.len() < 4 + rest {
            buffer.reserve(4 + rest - buffer.len());
            break;
        }
        let frame = buffer.split_to(4 + rest);
        shared.metrics.fetched_bytes.inc_by(frame.len() as u64);
        writer
            .append_frame(&frame)
            .with_context(|| format!("append a frame of node {origin} to the spool"))?;
        any = true;
    }
    Ok(any)
}
