//! Which commits of this node its own readers see already.
//!
//! PostgreSQL writes the record of a commit before it shows its rows: a moment before, or a long one when the commit
//! waits for a synchronous standby. Whoever reads the WAL, and so a peer, may know of it earlier than the readers here,
//! and what that peer then writes upon it must not be shown here before it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use synapsedb_core::lsn::Lsn;
use synapsedb_pg::client::Client;

use super::Shared;

/// How many commits that nobody has asked for are remembered; earlier ones count as visible.
const RECENT_MAX: usize = 1 << 16;
/// How many are looked at together.
const LOOK_MAX: usize = 4096;
/// The wait between two looks at a commit that is not visible.
const PAUSE: Duration = Duration::from_millis(1);

/// The commits of this node that were not seen to be visible yet, in the order of the WAL.
#[derive(Default)]
pub(crate) struct OwnCommits {
    recent: Mutex<VecDeque<(Lsn, u32)>>,
    session: tokio::sync::Mutex<Option<Client>>,
}

impl OwnCommits {
    /// The WAL tells of a commit of this node.
    pub(crate) fn committed(&self, lsn: Lsn, xid: u32) {
        let mut recent = self.recent();
        if recent.len() >= RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back((lsn, xid));
    }

    /// Whether all commits of this node through `lsn` are known to be visible.
    pub(crate) fn are_visible(&self, lsn: Lsn) -> bool {
        self.recent().front().is_none_or(|(first, _)| *first > lsn)
    }

    /// Waits until all commits of this node through `lsn` are visible.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub(crate) async fn wait_visible(&self, shared: &Shared, lsn: Lsn) -> Result<()> {
        let mut session = self.session.lock().await;
        while !self.are_visible(lsn) {
            if session.as_ref().is_none_or(|client| client.is_closed()) {
                *session = Some(shared.sql("visible").await?);
            }
            let client = session.as_ref().context("the session that was just opened")?;
            self.look(client).await?;
            if !self.are_visible(lsn) {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Whether all commits of this node that the WAL has told of are visible now.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub(crate) async fn all_visible(&self, shared: &Shared) -> Result<bool> {
        let Some((last, _)) = self.recent().back().copied() else { return Ok(true) };
        let mut session = self.session.lock().await;
        loop {
            let before = self.recent().len();
            if session.as_ref().is_none_or(|client| client.is_closed()) {
                *session = Some(shared.sql("visible").await?);
            }
            self.look(session.as_ref().context("the session that was just opened")?).await?;
            if self.are_visible(last) {
                return Ok(true);
            }
            if self.recent().len() >= before {
                return Ok(false);
            }
        }
    }

    /// Forgets the first commits as far as they are visible now.
    async fn look(&self, client: &Client) -> Result<()> {
        let looked_at: Vec<(Lsn, u32)> = self.recent().iter().take(LOOK_MAX).copied().collect();
        let ids: Vec<i64> = looked_at.iter().map(|(_, xid)| i64::from(*xid)).collect();
        let sql = include_str!("sql/visible_commits.sql");
        let rows = client.query(sql, &[&ids]).await.context("ask which commits are visible")?;
        let visible = looked_at.iter().zip(&rows).take_while(|(_, row)| row.get::<_, bool>(0));
        let Some(((last, _), _)) = visible.last() else { return Ok(()) };
        let mut recent = self.recent();
        while recent.front().is_some_and(|(lsn, _)| lsn <= last) {
            recent.pop_front();
        }
        Ok(())
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<(Lsn, u32)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
