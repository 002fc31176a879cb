//! The votes and entries of openraft, in the store.

use std::fmt::Debug;
use std::ops::RangeBounds;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{LogId, LogState, OptionalSend, RaftLogReader, StorageError, Vote};

use super::machine::{Entry, Types};
use super::store::{self, Store, name};

/// openraft's view of the log. openraft calls it from one task, one call after the other, which makes all writes of
/// votes and entries follow each other as it demands; redb allows one write transaction at a time besides.
#[derive(Clone)]
pub(super) struct Log {
    store: Store,
}

impl Log {
    pub(super) fn new(store: Store) -> Self {
        Self { store }
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError<u64>> {
        self.store.entries(range).await
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<u64>> {
        let last_purged_log_id: Option<LogId<u64>> = self.store.read_meta(name::PURGED).await?;
        let last = self.store.last_entry().await?.map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id, last_log_id: last.or(last_purged_log_id) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError<u64>> {
        let vote = *vote;
        self.store.write(move |transaction| store::put(transaction, name::VOTE, &vote)).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError<u64>> {
        self.store.read_meta(name::VOTE).await
    }

    async fn append<I>(
        &mut self,
        entries: I,
        flushed: LogFlushed<Types>,
    ) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        self.store.write(move |transaction| store::put_entries(transaction, &entries)).await?;
        // The write is durable when it returns: openraft may count this node's copy.
        flushed.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: LogId<u64>) -> Result<(), StorageError<u64>> {
        self.store.write(move |transaction| store::remove_entries(transaction, from.index..)).await
    }

    async fn purge(&mut self, through: LogId<u64>) -> Result<(), StorageError<u64>> {
        self.store
            .write(move |transaction| {
                store::put(transaction, name::PURGED, &through)?;
                store::remove_entries(transaction, ..=through.index)
            })
            .await
    }
}
