//! The loops of replication: preparation, publisher, fetchers, generations of lanes, probes, progress and trimming.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::VersionVector;
use synapsedb_pg::client;
use tokio::task::JoinSet;

use super::api::NotReplicatedBody;
use super::apply::{self, Source};
use super::spool::SpoolError;
use super::status::Board;
use super::{
    Shared, bootstrap, durability, fetch, foreign_keys, guard, lag, other_members, outcome,
    parse_origin_name, part, position, probe, publish, quarantine, realign, recent, recheck, retry,
    rewrites, serve, verify,
};
use crate::gossip::Facts;
use crate::tasks::Shutdown;

/// How often progress is read, told to the peers, and the spools are trimmed by it.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// How long the loops may take to end when the node was removed; then its server is given back all the same.
const HALT_WITHIN: Duration = Duration::from_secs(3);

/// How often is looked for what is not replicated.
const LOCAL_LOOKED_AT_EVERY: Duration = Duration::from_secs(2);

/// Large objects that are counted; there may be millions.
const LARGE_OBJECTS_COUNTED_MAX: u64 = 1000;

/// How often the log of conflicts is cut to its limits.
const CONFLICTS_TRIMMED_EVERY: Duration = Duration::from_secs(10);

/// Runs replication.
pub struct Task {
    shared: Arc<Shared>,
}

impl Task {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Replicates until shutdown.
    ///
    /// # Errors
    /// A spool of another origin is corrupt or cannot be opened, or this node was removed from the cluster; everything
    /// else is waited for and tried again.
    pub async fn run(self, stop: Shutdown) -> Result<()> {
        let shared = self.shared;
        let halt = stop.child_token();
        let mut loops = start(&shared, &halt);
        loop {
            tokio::select! {
                ended = loops.join_next() => {
                    let Some(ended) = ended else { return Ok(()) };
                    ended.map_err(|error| anyhow!("a loop of replication panicked: {error}"))??;
                    if !stop.is_cancelled() {
                        return Err(anyhow!("a loop of replication ended by itself"));
                    }
                }
                () = part::removed(&shared), if !stop.is_cancelled() => {
                    halt.cancel();
                    let ended = async { while loops.join_next().await.is_some() {} };
                    let _ = tokio::time::timeout(HALT_WITHIN, ended).await;
                    loops.shutdown().await;
                    part::give_back(&shared).await;
                    return part::end(shared.identity.node);
                }
            }
        }
    }
}

/// Starts what is asked by others, and the loops.
fn start(shared: &Arc<Shared>, stop: &Shutdown) -> JoinSet<Result<()>> {
    let serving = shared.clone();
    shared.peers.serve_stream(serve::SERVICE, move |stream| {
        let shared = serving.clone();
        Box::pin(async move { serve::run(&shared, stream).await })
    });
    lag::serve(shared);
    position::serve(shared);
    verify::serve(shared);
    super::row_of::serve(shared);
    guard::serve(shared);
    outcome::serve(shared);
    let mut loops = JoinSet::new();
    loops.spawn(verify::run(shared.clone(), stop.clone()));
    loops.spawn(publisher(shared.clone(), stop.clone()));
    loops.spawn(fetchers(shared.clone(), stop.clone()));
    loops.spawn(generations(shared.clone(), stop.clone()));
    loops.spawn(durability::keeper::run(shared.clone(), stop.clone()));
    loops.spawn(foreign_keys::check::run(shared.clone(), stop.clone()));
    loops.spawn(recheck::run(shared.clone(), stop.clone()));
    loops.spawn(repeated(shared.clone(), stop.clone(), Part::Probe));
    loops.spawn(repeated(shared.clone(), stop.clone(), Part::Progress));
    loops.spawn(repeated(shared.clone(), stop.clone(), Part::Realign));
    loops
}

/// Waits until the server is there and `what` holds; false on shutdown.
async fn wait_for(shared: &Shared, stop: &Shutdown, what: impl Fn(&Board) -> bool) -> bool {
    while !stop.is_cancelled() {
        shared.postgres.wait_ready(stop).await;
        if what(&shared.status) {
            return !stop.is_cancelled();
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    false
}

async fn publisher(shared: Arc<Shared>, stop: Shutdown) -> Result<()> {
    let mut backoff = retry::backoff(&shared.config);
    let mut own = shared.spools.take_own();
    while wait_for(&shared, &stop, Board::is_installed).await {
        let mut writer = match own.take() {
            Some(writer) => writer,
            None => shared.spools.open(shared.identity.node, shared.identity.incarnation)?,
        };
        let before = writer.tail().end_lsn;
        let Err(error) = publish::run(&shared, &mut writer, &stop).await else {
            return Ok(());
        };
        if error.is::<guard::Refused>() {
            return Err(error);
        }
        shared.status.publish_failed(&error);
        if error.is::<bootstrap::SlotLost>() {
            shared.status.slot_is_lost();
        }
        if writer.tail().end_lsn > before {
            backoff.succeeded();
        }
        // After a failed fsync nobody knows what is on disk: the spool is opened anew, which finds out.
        let failed = matches!(error.downcast_ref(), Some(SpoolError::Failed { .. }));
        own = (!failed).then_some(writer);
        retry::pause(&mut backoff, &stop).await;
    }
    Ok(())
}

/// One fetcher per life of each other member; a member that is restored gets a new one.
async fn fetchers(shared: Arc<Shared>, stop: Shutdown) -> Result<()> {
    let mut state = shared.raft.watch();
    let mut running: BTreeMap<NodeId, (Incarnation, Shutdown)> = BTreeMap::new();
    let mut fetching = JoinSet::new();
    loop {
        state.borrow_and_update();
        let members = other_members(&shared);
        let gone: Vec<_> =
            running.keys().filter(|node| !members.contains_key(node)).copied().collect();
        for origin in gone {
            if let Some((incarnation, token)) = running.remove(&origin) {
                token.cancel();
                shared.spools.end(origin, incarnation);
            }
        }
        for (origin, incarnation) in members {
            if running.get(&origin).is_some_and(|(running, _)| *running == incarnation) {
                continue;
            }
            let token = stop.child_token();
            if let Some((_, old)) = running.insert(origin, (incarnation, token.clone())) {
                old.cancel();
                shared.recent.lock().reborn(origin);
            }
            fetching.spawn(fetch::run(shared.clone(), origin, incarnation, token));
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            changed = state.changed() => changed.context("the cluster state is gone")?,
            Some(ended) = fetching.join_next() => {
                ended.map_err(|error| anyhow!("a fetcher panicked: {error}"))??;
            }
        }
    }
    while let Some(ended) = fetching.join_next().await {
        ended.map_err(|error| anyhow!("a fetcher panicked: {error}"))??;
    }
    Ok(())
}

/// Lanes live and die together: when the server goes away, what it had applied is asked anew before any of them goes
/// on, since a crash may have taken the last of it back.
async fn generations(shared: Arc<Shared>, stop: Shutdown) -> Result<()> {
    let mut backoff = retry::backoff(&shared.config);
    while !stop.is_cancelled() {
        shared.postgres.wait_ready(&stop).await;
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = generation(&shared) => ended,
        };
        match ended {
            // A spool was opened: its lane joins with the next generation.
            Ok(()) => backoff.succeeded(),
            Err(error) => {
                tracing::info!("the lanes of replication start anew: {error:#}");
                retry::pause(&mut backoff, &stop).await;
            }
        }
    }
    Ok(())
}

async fn generation(shared: &Arc<Shared>) -> Result<()> {
    if !shared.status.is_installed() {
        bootstrap::prepare(shared).await?;
        shared.status.installed();
    }
    let mut opened = shared.spools.watch();
    let sources: Vec<Source> = opened
        .borrow_and_update()
        .iter()
        .filter(|(origin, _)| **origin != shared.identity.node)
        .map(|(origin, (incarnation, spool))| Source {
            origin: *origin,
            incarnation: *incarnation,
            spool: spool.clone(),
        })
        .collect();
    let members: Vec<_> =
        sources.iter().map(|source| (source.origin, source.incarnation)).collect();
    bootstrap::ensure_origins(shared, members).await?;
    for source in &sources {
        apply::take_back(shared, source).await?;
    }
    let (mut visible, durable, _) = read_progress(shared).await?;
    for (node, _) in shared.raft.state().members.iter() {
        // It left when everybody had applied all of it; its origin may be gone.
        if part::is_removed(&shared.raft.state(), *node) {
            visible.advance(*node, Lsn(u64::MAX));
        }
    }
    shared.applied.reset(visible);
    shared.applied.set_durable(durable);
    await_spools(shared).await?;
    recent::rebuild(shared, &shared.applied.visible()).await?;
    let mut lanes = JoinSet::new();
    for source in sources {
        lanes.spawn(apply::run(shared.clone(), source));
    }
    tokio::select! {
        changed = opened.changed() => changed.context("the spools are gone"),
        Some(ended) = lanes.join_next() => match ended {
            Ok(Err(error)) => Err(error),
            Ok(Ok(never)) => match never {},
            Err(error) => Err(anyhow!("a lane panicked: {error}")),
        },
    }
}

/// Waits until the spools of all members are open: they hold recent writes that every lane must know.
async fn await_spools(shared: &Shared) -> Result<()> {
    let (mut opened, mut state) = (shared.spools.watch(), shared.raft.watch());
    loop {
        state.borrow_and_update();
        // Asked for anew each time: a member may begin another life meanwhile.
        let members = other_members(shared);
        let open = opened.borrow_and_update().clone();
        let is_open = |(node, life): (&NodeId, &Incarnation)| {
            open.get(node).is_some_and(|(open, _)| open == life)
        };
        if members.iter().all(is_open) {
            return Ok(());
        }
        tokio::select! {
            changed = opened.changed() => changed.context("the spools are gone")?,
            changed = state.changed() => changed.context("the cluster state is gone")?,
        }
    }
}

/// What is visible here of every origin, what of it is on disk, and where the own WAL ends.
async fn read_progress(shared: &Shared) -> Result<(VersionVector, VersionVector, Lsn)> {
    let client = shared.sql("progress").await?;
    progress_of(shared, &client).await
}

pub(super) async fn progress_of(
    shared: &Shared,
    client: &client::Client,
) -> Result<(VersionVector, VersionVector, Lsn)> {
    let (mut visible, mut durable, mut wal) =
        (VersionVector::new(), shared.applied.durable(), Lsn::ZERO);
    for row in client.query_again(include_str!("sql/durable_progress.sql"), &[]).await? {
        wal = row.get::<_, String>(3).parse()?;
        let name: Option<String> = row.get(0);
        // Every life of a node begins its WAL after all earlier ones: the furthest says what has been seen of it.
        let Some((origin, _)) = name.as_deref().and_then(parse_origin_name) else {
            continue;
        };
        let lsn: Lsn = row.get::<_, Option<String>>(1).unwrap_or_default().parse()?;
        visible.advance(origin, lsn);
        if row.get(2) {
            durable.advance(origin, lsn);
        }
    }
    Ok((visible, durable, wal))
}

/// Loops over one session, opened anew when it breaks.
#[derive(Clone, Copy)]
enum Part {
    Probe,
    Progress,
    Realign,
}

async fn repeated(shared: Arc<Shared>, stop: Shutdown, part: Part) -> Result<()> {
    let mut backoff = retry::backoff(&shared.config);
    while wait_for(&shared, &stop, Board::is_prepared).await {
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = async {
                match part {
                    Part::Probe => probe::run(&shared).await,
                    Part::Progress => progress(&shared).await,
                    Part::Realign => realign::run(&shared).await,
                }
            } => ended,
        };
        if let Err(error) = ended {
            tracing::debug!("a session of replication is opened anew: {error:#}");
        }
        if matches!(part, Part::Progress) {
            // Nobody says any more how far this node is.
            shared.gossip.publish(Facts {
                postgres_ready: false,
                applied: shared.applied.durable(),
                received: shared.spools.tails(),
                wal_lsn: Lsn::ZERO,
                ..Facts::default()
            });
        }
        retry::pause(&mut backoff, &stop).await;
    }
    Ok(())
}

async fn progress(shared: &Shared) -> Result<()> {
    let client = shared.sql("progress").await?;
    let mut due = tokio::time::interval(PROGRESS_INTERVAL);
    let mut trimmed = tokio::time::Instant::now();
    let mut looked: Option<tokio::time::Instant> = None;
    loop {
        due.tick().await;
        if looked.is_none_or(|at| at.elapsed() >= LOCAL_LOOKED_AT_EVERY) {
            looked = Some(tokio::time::Instant::now());
            look_at_local(shared, &client).await?;
        }
        if trimmed.elapsed() >= CONFLICTS_TRIMMED_EVERY {
            trimmed = tokio::time::Instant::now();
            let days = i32::try_from(shared.config.conflict_keep_days).unwrap_or(i32::MAX);
            let rows = i64::try_from(shared.config.conflict_rows_max).unwrap_or(i64::MAX);
            client.execute(include_str!("sql/trim_conflicts.sql"), &[&days, &rows]).await?;
        }
        let (_, durable, wal_lsn) = progress_of(shared, &client).await?;
        shared.applied.set_durable(durable.clone());
        // What is written to a server whose WAL nobody can read any more reaches nobody.
        let ready = shared.status.is_prepared() && !shared.status.has_lost_slot();
        let received = shared.spools.tails();
        shared.gossip.publish(Facts { received, ..lag::facts(shared, ready, durable, wal_lsn) });
        // What was put into quarantine is applied: it is seen here before what it met is forgotten.
        let held = quarantine::holds(shared, &client).await?;
        let stable = trim(shared, held, wal_lsn).await?;
        forget_lives(shared, &client, &stable).await?;
        rewrites::settle(shared, &client, &stable).await?;
    }
}

/// Deletes the spools and the origins of lives that have ended, when everybody has seen all of them.
async fn forget_lives(
    shared: &Shared,
    client: &client::Client,
    stable: &VersionVector,
) -> Result<()> {
    for ((origin, incarnation), spool) in shared.spools.ended() {
        let tail = *spool.tail_watch().borrow();
        let seen = tail <= stable.get(origin).max(spool.first_available());
        if seen && part::drop_origin(shared, client, origin, incarnation).await? {
            shared.spools.forget(origin, incarnation);
        }
    }
    Ok(())
}

/// What is on this node only and cannot be replicated is told: PostgreSQL shows it to no stream.
async fn look_at_local(shared: &Shared, client: &client::Client) -> Result<()> {
    let most = i64::try_from(LARGE_OBJECTS_COUNTED_MAX).unwrap_or(i64::MAX);
    let row = client.query_one(include_str!("sql/not_replicated.sql"), &[&most]).await?;
    let count = |column: usize| u64::try_from(row.get::<_, i64>(column)).unwrap_or_default();
    let found = NotReplicatedBody { large_objects: count(0), unlogged_tables: count(1) };
    let before = shared.status.not_replicated();
    if found.large_objects > before.large_objects && before.large_objects == 0 {
        tracing::warn!(
            large_objects = found.large_objects,
            "there are large objects on this node: they are not \
            replicated, the other nodes do not have them, and a copy of this node's rows holds only their numbers. Use \
            a column of type bytea instead"
        );
    }
    shared.metrics.not_replicated(&found);
    shared.status.set_not_replicated(found);
    Ok(())
}

/// Deletes what every member has applied, unless it is held for the quarantine, and what is beyond the limit. Answers
/// up to where everything may be forgotten.
async fn trim(shared: &Shared, held: bool, wal_lsn: Lsn) -> Result<VersionVector> {
    let view = shared.gossip.view();
    let stable = recent::forget(shared, held, wal_lsn).await;
    let members = other_members(shared);
    for (origin, (_, spool)) in shared.spools.all() {
        let mut least =
            (origin != shared.identity.node).then(|| shared.applied.durable().get(origin));
        for member in shared.peers.others().into_iter().filter(|member| *member != origin) {
            // What an earlier life had applied says nothing of the copy that replaces it.
            let life = members.get(&member);
            let seen = view
                .members
                .get(&member)
                .filter(|seen| life.is_none_or(|life| *life == seen.incarnation));
            let facts = seen.and_then(|seen| seen.facts.as_ref());
            let applied = facts.map_or(Lsn::ZERO, |facts| facts.applied.get(origin));
            least = Some(least.map_or(applied, |least| least.min(applied)));
        }
        // What may still meet a concurrent write is read again at the next start.
        let least = least.map(|least| least.min(stable.get(origin)));
        if let Some(least) = least.filter(|least| *least > Lsn::ZERO) {
            spool.trim(least)?;
        }
        if let Some(gone) = spool.enforce_limit()? {
            tracing::error!(%origin, through = %gone, "the spool is over its limit (replication.spool.bytes_max): its \
                oldest transactions were deleted. A member that has not applied them must be re-seeded");
        }
    }
    Ok(stable)
}
