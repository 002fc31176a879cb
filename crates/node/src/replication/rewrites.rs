//! The tables that were rewritten here, and who had written their rows before: read from the spools.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use synapsedb_core::group::Span;
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::rewrite::{self, Writers};
use synapsedb_core::version::VersionVector;
use synapsedb_pg::client::Client;

use super::spool::Spool;
use super::writers::{Reading, Table};
use super::{Shared, task};

/// What is known of rewrites that are not settled yet.
#[derive(Default)]
pub(crate) struct Rewrites {
    noticed: Mutex<rewrite::Rewrites>,
    /// Who had written the rows of a table that a transaction has rewritten, once somebody has asked. One lane at a
    /// time reads the spools.
    pub(crate) writers: tokio::sync::Mutex<BTreeMap<Rewritten, Arc<Writers>>>,
}

/// A table and the `xmin` with which its rows were stored anew.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rewritten {
    pub(crate) xmin: String,
    pub(crate) schema: String,
    pub(crate) table: String,
}

/// Notices new rewrites, and forgets those of which every transaction that may still be applied here has seen all that
/// they hide.
///
/// # Errors
/// The server cannot be asked.
pub(crate) async fn settle(shared: &Shared, client: &Client, stable: &VersionVector) -> Result<()> {
    let rows = client.query_again(include_str!("sql/open_alterations.sql"), &[]).await?;
    // While a lane reads the spools, this does not wait for it.
    if let Ok(mut writers) = shared.rewrites.writers.try_lock() {
        writers.retain(|known, _| rows.iter().any(|row| row.get::<_, &str>(1) == known.xmin));
    }
    if rows.is_empty() {
        return Ok(());
    }
    // Asked for after the rewrites were seen: nothing that any of them hides can be missing.
    let (mut applied, _, wal) = task::progress_of(shared, client).await?;
    applied.advance(shared.identity.node, wal);
    let settled = {
        let mut noticed = shared.rewrites.noticed.lock().unwrap_or_else(PoisonError::into_inner);
        rows.iter().for_each(|row| noticed.noticed(row.get(0), &applied));
        noticed.settled(stable)
    };
    if settled.is_empty() {
        return Ok(());
    }
    client.execute(include_str!("sql/settle_alterations.sql"), &[&settled]).await?;
    // The plans of the lanes still keep their rows apart.
    shared.catalog_changed();
    Ok(())
}

/// Who wrote the rows of a table last, of the transactions that were applied here up to `applied`.
///
/// # Errors
/// A spool cannot be read.
pub(crate) async fn writers(
    shared: &Shared,
    table: Table,
    applied: VersionVector,
) -> Result<Writers> {
    let ended = shared.spools.ended().into_iter().map(|((origin, _), spool)| (origin, spool));
    let open = shared.spools.all().into_iter().map(|(origin, (_, spool))| (origin, spool));
    let spools: Vec<(NodeId, Spool)> = ended.chain(open).collect();
    let here = shared.identity.node;
    let read = move || {
        let mut of_origins: BTreeMap<NodeId, Writers> = BTreeMap::new();
        for (origin, spool) in spools {
            let through = if origin == here { Lsn(u64::MAX) } else { applied.get(origin) };
            let span = Span { after: Lsn::ZERO, through };
            let writers = of_origins.entry(origin).or_default();
            Reading { origin, span, table: &table }.read(&spool, writers)?;
        }
        let mut all = Writers::default();
        of_origins.into_values().for_each(|writers| all.merge(writers));
        Ok(all)
    };
    tokio::task::spawn_blocking(read).await.context("the reading of the spools panicked")?
}
