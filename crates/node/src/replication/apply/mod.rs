//! Applies the transactions of one origin: in its commit order, each as exactly one local transaction.
//!
//! A *lane* is the applier of one origin; *workers* help it where cores are free.
//! All lanes of a *generation* share what the server said it has applied; when
//! the server goes away, the generation ends and the next one asks it again.

mod ahead;
mod array;
mod calls;
mod catalog;
mod check;
mod column;
mod element;
mod failure;
mod feed;
mod gate;
pub(crate) mod inherited;
mod lane;
mod plan;
mod scope;
mod session;
mod shape;
mod slow;
mod start;
mod taken_back;
#[cfg(test)]
mod tests;
mod worker;
mod write;

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use synapsedb_core::ids::{Incarnation, NodeId};

use super::spool::{Spool, SpoolError};
use super::{Shared, retry};
use lane::{Failure, Lane};
pub(crate) use taken_back::take_back;

/// Which origin a lane applies, and where its transactions lie.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) origin: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) spool: Spool,
}

/// Applies until the connection to the server is lost, which is the only way to end.
///
/// A transaction that fails is looked at row by row; what cannot be written goes to the quarantine. Only what passes by
/// itself (a lock, a full disk) is tried again, and the status says so.
///
/// # Errors
/// The connection is lost, or the spool cannot be read.
pub(crate) async fn run(shared: Arc<Shared>, source: Source) -> Result<Infallible> {
    let mut backoff = retry::backoff(&shared.config);
    loop {
        let mut lane = Lane::start(&shared, &source).await?;
        let failure = match lane.follow().await {
            Ok(failure) => failure,
            Err(error) => return Err(note_damage(&shared, &source, error)),
        };
        let progressed = lane.applied_any();
        drop(lane);
        if progressed {
            backoff.succeeded();
        }
        report(&shared, &source, &failure);
        retry::wait(&mut backoff).await;
        ensure!(
            !take_back(&shared, &source).await?,
            "progress of origin {} was taken back, which the other lanes must know",
            source.origin
        );
    }
}

/// A damaged spool is set aside by its fetcher; this tells it.
fn note_damage(shared: &Shared, source: &Source, error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<SpoolError>() {
        Ok(damage @ SpoolError::Corrupt { .. }) => {
            let error = anyhow!("{damage}");
            shared.spools.mark_corrupt(source.origin, damage);
            error
        }
        Ok(other) => other.into(),
        Err(error) => error,
    }
}

fn report(shared: &Shared, source: &Source, failure: &Failure) {
    shared.metrics.apply_failures.inc();
    let transient = failure.error.as_ref().is_some_and(|error| {
        // Serialization failures, deadlocks and lock time-outs pass by themselves.
        matches!(error.sqlstate.as_str(), "40001" | "40P01" | "55P03")
    });
    if !transient {
        shared.status.blocked(source.origin, failure.commit_lsn, &failure.text());
    }
}
