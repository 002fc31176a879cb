//! Gives a node its data: a physical copy of another node's server and of its spools, made into those of this one.
//!
//! The copy keeps transaction ids, commit times and replication origins, so every row keeps its version; the spools
//! keep what was deleted. Everything happens in a directory of another name, which is renamed when it is complete: a
//! node has whole data or none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use synapsedb_core::guard::Mark;
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_pg::replication as walsender;

use crate::config::AgentConfig;
use crate::layout::{self, Identity};
use crate::postgres;
use crate::postgres::copy::{self, Original, Private};
use crate::replication::seed::{self, Copied};
use crate::replication::spool::SpoolId;

/// What is copied, and for whom.
pub(crate) struct Plan<'a> {
    pub(crate) config: &'a AgentConfig,
    /// Who the node will be.
    pub(crate) identity: &'a Identity,
    pub(crate) original: Original,
    pub(crate) copied: Copied,
    /// Where the spools of the copied node lie.
    pub(crate) spools: PathBuf,
    /// The file with the password of the agent's role there, which the copy has too.
    pub(crate) password_file: PathBuf,
    pub(crate) earlier: EarlierLives,
    /// The nodes that were removed from the cluster.
    pub(crate) departed: BTreeSet<NodeId>,
    /// Waits until the copied node has everything in its spools that its server committed before this.
    pub(crate) await_spooled: &'a dyn Fn(Lsn) -> Result<()>,
}

/// What the others know of the lives of the node that have ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EarlierLives {
    /// The WAL of the copy must go on after this: what is before is used.
    pub(crate) through: Lsn,
    /// The last transaction, as far as it is kept.
    pub(crate) last: Option<Mark>,
}

impl EarlierLives {
    /// What `source` has of the life of a node.
    ///
    /// # Errors
    /// The identity of the node cannot be read.
    pub(crate) fn of(through: Lsn, source: &AgentConfig, node: &AgentConfig) -> Result<Self> {
        let identity = node.identity()?;
        let (origin, incarnation) = (identity.node, identity.incarnation);
        let life = SpoolId { cluster: identity.cluster_id, origin, incarnation };
        let scratch = node.replication.spool_dir.with_extension("last");
        remove(&scratch)?;
        let (spools, limits) = (&source.replication.spool_dir, source.replication.spool);
        Ok(Self { through, last: seed::last_received(spools, &scratch, life, limits) })
    }
}

/// Makes the data of a node. Where the node has some already, it and its spools are removed when the copy is complete.
/// Answers the sequences of which an earlier life may have given values that come again.
///
/// # Errors
/// What failed; the node's own data is untouched until the copy is complete, and the copied node is never changed.
pub(crate) async fn make(plan: &Plan<'_>, mut tell: impl FnMut(&str)) -> Result<Vec<String>> {
    let password_file = plan.password_file.clone();
    let config = postgres::Config { password_file, ..copy::partial(&plan.config.postgres) };
    copy::clear(&config);
    tell(&format!("Copying the server of node {}", plan.copied.node));
    let (backup, original) = (config.clone(), plan.original.clone());
    tokio::task::spawn_blocking(move || copy::base_backup(&backup, &original))
        .await
        .context("the copying was interrupted")??;
    tell("Replaying the WAL of the copy");
    let server = Private::start(config.clone()).await?;
    let adopted = async {
        let replayed = seed::replayed(server.target()).await?;
        let holds = seed::adopt(server.target(), plan.identity, plan.copied).await?;
        let end = seed::wal_end(server.target()).await?;
        let timeline = walsender::identify(server.target()).await?.timeline;
        anyhow::Ok((replayed, holds, end, timeline))
    };
    let adopted = adopted.await;
    server.stop().await;
    let (replayed, mut holds, end, timeline) =
        adopted.context("cannot make the copy this node's")?;
    if end <= plan.earlier.through {
        copy::begin_wal_after(&config, plan.earlier.through, timeline)?;
    }
    tell("Copying the spools");
    let replication = &plan.config.replication;
    // What the copied server had applied is in them already.
    (plan.await_spooled)(replayed)?;
    // Nothing of the node's own belongs to the life that begins.
    remove(&replication.spool_dir)?;
    copy_spools(plan).await?;
    let (dir, limits) = (&replication.spool_dir, replication.spool);
    let (identity, departed) = (plan.identity, &plan.departed);
    let through =
        seed::hold_copied(dir, identity, plan.copied, limits, replayed, departed, &mut holds)?;
    let given = given(plan, &mut tell).await;
    tell("Making the slot and the spool");
    let server = Private::start(config.clone()).await?;
    let begun = async {
        seed::begin_origin(server.target(), plan.copied, through).await?;
        let short = seed::reseat_sequences(server.target(), given.as_deref()).await?;
        seed::begin_wal(server.target(), plan.identity, dir, limits, &holds).await?;
        anyhow::Ok(short)
    };
    let begun = begun.await;
    server.stop().await;
    let short = begun.context("cannot begin the WAL of the copy")?;
    take_place(plan, &config.data_dir)?;
    Ok(short)
}

/// The copy becomes the data of the node, with the password that it has.
fn take_place(plan: &Plan<'_>, complete: &Path) -> Result<()> {
    let (from, to) = (&plan.password_file, &plan.config.postgres.password_file);
    let password =
        std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    layout::write_atomic(to, &password, 0o600)?;
    let data_dir = &plan.config.postgres.data_dir;
    remove(data_dir)?;
    std::fs::rename(complete, data_dir)
        .with_context(|| format!("cannot rename {} to {}", complete.display(), data_dir.display()))
}

/// What the ending life of the node gave from its sequences; nothing where its server cannot say so any more.
async fn given(plan: &Plan<'_>, tell: &mut impl FnMut(&str)) -> Option<Vec<seed::Given>> {
    let (last, postgres) = (plan.earlier.last?, &plan.config.postgres);
    if !postgres.data_dir.join("PG_VERSION").exists() {
        return None;
    }
    tell("Asking the old server for its sequences");
    let private = postgres::Config { listen: String::new(), ..postgres.clone() };
    let asked = async {
        let server = Private::start(private).await?;
        let given = seed::given(server.target(), last).await;
        server.stop().await;
        given
    };
    match asked.await {
        Ok(given) => given,
        Err(error) => {
            tell(&format!("The old server does not tell what its sequences gave: {error:#}"));
            None
        }
    }
}

async fn copy_spools(plan: &Plan<'_>) -> Result<()> {
    let (from, identity) = (plan.spools.clone(), plan.identity.clone());
    let replication = &plan.config.replication;
    let (to, limits) = (replication.spool_dir.clone(), replication.spool);
    let copied =
        tokio::task::spawn_blocking(move || seed::copy_spools(&from, &to, &identity, limits)).await;
    copied
        .context("the copying was interrupted")?
        .with_context(|| format!("cannot copy what node {} remembers", plan.copied.node))
}

fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
