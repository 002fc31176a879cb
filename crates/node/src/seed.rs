//! Gives a node its data: a physical copy of another node's server, made into the server of this one.
//!
//! The copy keeps transaction ids, commit times and replication origins, so every row keeps its version. Everything
//! happens in a directory of another name, which is renamed when it is complete: a node has whole data or none.

use anyhow::{Context as _, Result};
use synapsedb_core::lsn::Lsn;
use synapsedb_pg::replication as walsender;

use crate::config::AgentConfig;
use crate::layout::Identity;
use crate::postgres::copy::{self, Original, Private};
use crate::replication::seed::{self, Copied};

/// What is copied, and for whom.
pub(crate) struct Plan<'a> {
    pub(crate) config: &'a AgentConfig,
    /// Who the node will be.
    pub(crate) identity: &'a Identity,
    pub(crate) original: Original,
    pub(crate) copied: Copied,
    /// The WAL of the copy must go on after this: an earlier life of the node has used what is before.
    pub(crate) after: Lsn,
}

/// Makes the data of a node. Where the node has some already, it and its spools are removed when the copy is complete.
///
/// # Errors
/// What failed; the node's own data is untouched until the copy is complete, and the copied node is never changed.
pub(crate) async fn make(plan: &Plan<'_>, mut tell: impl FnMut(&str)) -> Result<()> {
    let config = copy::partial(&plan.config.postgres);
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
        let holds = seed::adopt(server.target(), plan.identity, plan.copied, replayed).await?;
        let end = seed::wal_end(server.target()).await?;
        let timeline = walsender::identify(server.target()).await?.timeline;
        anyhow::Ok((holds, end, timeline))
    };
    let adopted = adopted.await;
    server.stop().await;
    let (holds, end, timeline) = adopted.context("cannot make the copy this node's")?;
    if end <= plan.after {
        copy::begin_wal_after(&config, plan.after, timeline)?;
    }
    tell("Making the slot and the spool");
    let replication = &plan.config.replication;
    // Nothing of it belongs to the life that begins.
    remove(&replication.spool_dir)?;
    let server = Private::start(config.clone()).await?;
    let (dir, limits) = (&replication.spool_dir, replication.spool);
    let begun = seed::begin_wal(server.target(), plan.identity, dir, limits, &holds).await;
    server.stop().await;
    begun.context("cannot begin the WAL of the copy")?;
    let data_dir = &plan.config.postgres.data_dir;
    remove(data_dir)?;
    std::fs::rename(&config.data_dir, data_dir).with_context(|| {
        format!("cannot rename {} to {}", config.data_dir.display(), data_dir.display())
    })
}

fn remove(dir: &std::path::Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
