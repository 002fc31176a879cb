//! Hands the spools to the peers: any origin that is here, from any position.
//!
//! A stream begins with a [`Request`] and an [`Answer`]. Then frames go one way, each with its length in front, and now
//! and then a length that is none: [`ALIVE`], [`HURRY_DURABLE`] or [`HURRY_VISIBLE`]. The other way go
//! acknowledgements: two LSNs, the last commit on the receiver's disk, and the last one that its readers see.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use synapsedb_core::durability::Class;
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufWriter};

use super::Shared;
use super::durability::{Ack, AckStream};
use super::spool::{Reader, Spool, SpoolError};
use crate::peers::PeerStream;

/// The service under which the streams are opened.
pub(crate) const SERVICE: &str = "spool";

/// The version of request, answer and frames; another one is refused.
pub(crate) const FORMAT: u16 = 2;

/// In place of a frame's length: nothing is new.
pub(crate) const ALIVE: u32 = 0;

/// In place of a frame's length: somebody waits until the frames before it are on the receiver's disk.
pub(crate) const HURRY_DURABLE: u32 = u32::MAX;

/// In place of a frame's length: somebody waits until the receiver's readers see what the frames before it hold.
pub(crate) const HURRY_VISIBLE: u32 = u32::MAX - 1;

/// The longest request or answer; both are a few hundred bytes.
pub(crate) const GREETING_BYTES_MAX: u32 = 64 << 10;

/// What a peer asks for: an origin's transactions after a position.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) format: u16,
    pub(crate) origin: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) after: Lsn,
}

/// What it is told before the frames.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub(crate) enum Answer {
    /// The frames follow; an empty one now and then says that the stream is alive.
    Frames,
    /// The position is no longer here: the asking node must be re-seeded.
    Gone { first_available: Lsn },
    /// This node does not have it (yet), or cannot serve it.
    Unavailable { reason: String },
}

/// Serves one stream until the peer leaves.
pub(crate) async fn run(shared: &Shared, stream: PeerStream) {
    let peer = stream.peer;
    match serve(shared, stream).await {
        Ok(()) => {}
        Err(error) => tracing::info!(%peer, "spool stream ended: {error:#}"),
    }
}

async fn serve(shared: &Shared, stream: PeerStream) -> Result<()> {
    let (peer, incarnation) = (stream.peer, stream.peer_incarnation);
    let (mut from, to) = tokio::io::split(stream.io);
    let mut io = BufWriter::with_capacity(256 << 10, to);
    let request: Request = read_greeting(&mut from).await.context("read the request")?;
    let reader = match find(shared, &request) {
        Ok(reader) => {
            write_greeting(&mut io, &Answer::Frames).await?;
            reader
        }
        Err(answer) => return write_greeting(&mut io, &answer).await,
    };
    // Only what this node committed waits for acknowledgements.
    let own = request.origin == shared.identity.node;
    let acknowledged = own.then(|| shared.durability.connect(peer, incarnation));
    let spool = own.then(|| shared.spools.get(request.origin)).flatten().map(|(_, spool)| spool);
    // Both at once: who stops reading the acknowledgements while it writes may wait for a peer that waits for it.
    tokio::select! {
        ended = send(shared, &mut io, reader, own) => ended,
        ended = receive_acks(&mut from, acknowledged, spool.as_ref()) => ended,
    }
}

async fn send<W>(shared: &Shared, io: &mut W, mut reader: Reader, own: bool) -> Result<()>
where
    W: tokio::io::AsyncWrite + Unpin,
{
    let alive = Duration::from_millis(shared.config.stream_timeout_ms / 5 + 1);
    let mut sent = false;
    loop {
        while let Some(frame) = reader.try_next()? {
            io.write_all(&frame.raw).await?;
            shared.metrics.served_bytes.inc_by(frame.raw.len() as u64);
            sent = true;
        }
        if std::mem::take(&mut sent) && own {
            match shared.durability.hurry() {
                Class::Local => {}
                Class::Quorum => io.write_u32_le(HURRY_DURABLE).await?,
                Class::Applied => io.write_u32_le(HURRY_VISIBLE).await?,
            }
        }
        io.flush().await?;
        match tokio::time::timeout(alive, reader.next()).await {
            Ok(frame) => {
                io.write_all(&frame?.raw).await?;
                sent = true;
            }
            Err(_) => io.write_u32_le(ALIVE).await?,
        }
    }
}

async fn receive_acks<R>(
    from: &mut R,
    to: Option<AckStream<'_>>,
    spool: Option<&Spool>,
) -> Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
{
    loop {
        let durable = match from.read_u64_le().await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            read => Lsn(read.context("read an acknowledgement")?),
        };
        let visible = Lsn(from.read_u64_le().await.context("read an acknowledgement")?);
        // Commits wait for these: nobody can have more than there is.
        if let Some(last) = spool.map(|spool| *spool.tail_watch().borrow())
            && durable.max(visible) > last
        {
            bail!("it acknowledges {}, though all ends with {last}", durable.max(visible));
        }
        if let Some(stream) = &to {
            stream.acknowledged(Ack { durable, visible });
        }
    }
}

/// Writes what [`receive_acks`] reads, and flushes.
pub(crate) async fn write_ack<W>(io: &mut W, ack: Ack) -> Result<()>
where
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&ack.durable.0.to_le_bytes());
    bytes[8..].copy_from_slice(&ack.visible.0.to_le_bytes());
    io.write_all(&bytes).await?;
    Ok(io.flush().await?)
}

fn find(shared: &Shared, request: &Request) -> Result<Reader, Answer> {
    let unavailable = |reason: String| Answer::Unavailable { reason };
    if request.format != FORMAT {
        return Err(unavailable(format!(
            "spool format {} is asked for, this node speaks {FORMAT}: update the older agent",
            request.format
        )));
    }
    let (incarnation, spool) = shared
        .spools
        .get(request.origin)
        .ok_or_else(|| unavailable(format!("nothing of node {} is here yet", request.origin)))?;
    if incarnation != request.incarnation {
        return Err(unavailable(format!(
            "node {} is in incarnation {incarnation} here, {} is asked for",
            request.origin, request.incarnation
        )));
    }
    spool.reader_after(request.after).map_err(|error| match error {
        SpoolError::Gone { first_available } => Answer::Gone { first_available },
        other => unavailable(other.to_string()),
    })
}

/// Writes a length and a JSON document, and flushes.
pub(crate) async fn write_greeting<W>(io: &mut W, greeting: &impl Serialize) -> Result<()>
where
    W: tokio::io::AsyncWrite + Unpin,
{
    let json = serde_json::to_vec(greeting)?;
    io.write_u32_le(u32::try_from(json.len())?).await?;
    io.write_all(&json).await?;
    Ok(io.flush().await?)
}

/// Reads what [`write_greeting`] wrote.
pub(crate) async fn read_greeting<R, T>(io: &mut R) -> Result<T>
where
    R: tokio::io::AsyncRead + Unpin,
    T: for<'de> Deserialize<'de>,
{
    let length = io.read_u32_le().await?;
    if length > GREETING_BYTES_MAX {
        bail!("a greeting of {length} bytes is longer than {GREETING_BYTES_MAX}");
    }
    let mut json = vec![0; length as usize];
    io.read_exact(&mut json).await?;
    Ok(serde_json::from_slice(&json)?)
}
