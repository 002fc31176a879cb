//! What the coordinator of a comparison asks the nodes, and the way to them; its own node is asked like any other.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::verify::RowState;
use synapsedb_core::version::VersionVector;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::local;
use crate::peers::CallError;
use crate::replication::Shared;

/// The service under which a node answers.
pub(super) const SERVICE: &str = "replication.verify";

/// What a call may take beyond the statement that it runs.
const CALL_MARGIN_MS: u64 = 5000;

/// A primary key: the text of each of its columns.
pub(super) type Key = Vec<String>;

/// The rows after one key, through another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Range {
    pub(super) after: Option<Key>,
    pub(super) through: Option<Key>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct TableName {
    pub(super) schema: String,
    pub(super) name: String,
}

/// A column with its type as SQL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) r#type: String,
}

/// A table as one node has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Described {
    pub(super) table: TableName,
    /// In the order of their names, without generated ones.
    pub(super) columns: Vec<Column>,
    /// The primary key, in its order; empty if there is none.
    pub(super) key: Vec<Column>,
}

/// What a node is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    /// The tables, all or those of a name: `Vec<Described>`.
    Tables { wanted: Option<String> },
    /// `Digest` of a range.
    Digest { table: TableName, range: Range },
    /// The key that many rows into the range, if it has so many: `Option<Key>`.
    NextBound { table: TableName, range: Range, rows: u64 },
    /// Every so many rows a key of the range: `Vec<Key>`.
    Bounds { table: TableName, range: Range, rows: u64 },
    /// The rows of a range: `Vec<(Key, RowState)>`.
    Rows { table: TableName, range: Range, limit: u64 },
    /// The rows of some keys, in their order: `Vec<Option<RowState>>`.
    Look { table: TableName, keys: Vec<Key> },
    /// What the node has committed and applied until now: [`Position`].
    Position,
    /// Waits until all this has been applied; why not, if not: `Option<String>`.
    Await { target: VersionVector },
    /// The values of the rows of some keys, in their order: `Vec<Option<Fetched>>`.
    Fetch { table: TableName, keys: Vec<Key> },
    /// Sets rows as they are on a node: `Vec<SetOutcome>`.
    Set { table: TableName, from: NodeId, rows: Vec<SetRow> },
    /// The comparison is over.
    End,
}

/// An [`Ask`] of a comparison.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Call {
    pub(super) job: Uuid,
    pub(super) ask: Ask,
}

/// How far a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Position {
    /// Everything that was committed there is published with a commit LSN up to this.
    pub(super) published: Lsn,
    /// What is applied there of the others.
    pub(super) visible: VersionVector,
}

/// A row with its values.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Fetched {
    pub(super) state: RowState,
    /// In the order of the columns.
    pub(super) values: Vec<Option<String>>,
    /// When it was committed by its writer, if the server still knows.
    pub(super) commit_time: Option<String>,
}

/// A row that is to be set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SetRow {
    pub(super) key: Key,
    /// What was seen there: nothing is done when something else is there now.
    pub(super) seen: Option<RowState>,
    /// What shall be there.
    pub(super) row: Option<Fetched>,
}

impl SetRow {
    /// When the row that shall be there was committed by its writer.
    pub(super) fn commit_time(&self) -> Option<&str> {
        self.row.as_ref()?.commit_time.as_deref()
    }
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SetOutcome {
    /// It is as asked.
    Done,
    /// Another row is there now.
    Moved,
    /// The server refused.
    Refused(String),
}

/// Why the coordinator did not get an answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The node cannot be reached.
    Lost { node: NodeId, reason: String },
    /// It cannot do what was asked.
    Failed(String),
    /// The comparison was cancelled.
    Cancelled,
}

/// The nodes of a comparison.
pub(super) struct Circle<'a> {
    pub(super) shared: &'a Shared,
    pub(super) job: Uuid,
    pub(super) nodes: Vec<NodeId>,
    pub(super) cancelled: &'a CancellationToken,
}

impl Circle<'_> {
    /// This node.
    pub(super) fn here(&self) -> NodeId {
        self.shared.identity.node
    }

    /// Asks one node.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        node: NodeId,
        ask: Ask,
    ) -> Result<T, Trouble> {
        let call = Call { job: self.job, ask };
        let answer = tokio::select! {
            biased;
            () = self.cancelled.cancelled() => return Err(Trouble::Cancelled),
            answer = self.call(node, call) => answer?,
        };
        let understood = serde_json::from_slice(&answer);
        understood.map_err(|error| {
            Trouble::Failed(format!("node {node} answers what is not understood here: {error}"))
        })
    }

    async fn call(&self, node: NodeId, call: Call) -> Result<Bytes, Trouble> {
        if node == self.here() {
            let answer = local::answer(self.shared, node, call).await;
            return answer.map_err(|reason| Trouble::Failed(format!("node {node}: {reason}")));
        }
        let body = serde_json::to_vec(&call).map_err(|error| Trouble::Failed(error.to_string()))?;
        let limit = self.limit(&call.ask);
        let answer = self.shared.peers.call_within(node, SERVICE, Bytes::from(body), limit).await;
        answer.map_err(|error| match error {
            CallError::Remote { message, .. } => Trouble::Failed(format!("node {node}: {message}")),
            CallError::TooLong { .. } => Trouble::Failed(error.to_string()),
            CallError::UnknownPeer { .. }
            | CallError::Unreachable { .. }
            | CallError::Disconnected { .. }
            | CallError::Timeout { .. } => Trouble::Lost { node, reason: error.to_string() },
        })
    }

    /// How long the answer may take.
    fn limit(&self, ask: &Ask) -> Duration {
        let config = &self.shared.config.verify;
        let limit_ms = match ask {
            Ask::Tables { .. } | Ask::Position | Ask::Await { .. } | Ask::End => {
                config.barrier_timeout_ms
            }
            Ask::Digest { .. }
            | Ask::NextBound { .. }
            | Ask::Bounds { .. }
            | Ask::Rows { .. }
            | Ask::Look { .. }
            | Ask::Fetch { .. }
            | Ask::Set { .. } => config.statement_timeout_ms,
        };
        Duration::from_millis(limit_ms.saturating_add(CALL_MARGIN_MS))
    }

    /// Asks all nodes at once.
    pub(super) async fn ask_all<T: DeserializeOwned>(
        &self,
        ask: Ask,
    ) -> Result<BTreeMap<NodeId, T>, Trouble> {
        let asked = self.nodes.iter().map(|node| {
            let ask = ask.clone();
            async { Ok((*node, self.ask(*node, ask).await?)) }
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Waits until every node has applied everything that any of them has committed until now; answers what keeps one
    /// from it, if something does.
    pub(super) async fn barrier(&self) -> Result<Option<String>, Trouble> {
        let positions: BTreeMap<NodeId, Position> = self.ask_all(Ask::Position).await?;
        let mut target = VersionVector::new();
        for (node, position) in &positions {
            target.advance(*node, position.published);
            target.merge(&position.visible);
        }
        let behind: BTreeMap<NodeId, Option<String>> = self.ask_all(Ask::Await { target }).await?;
        let first = behind.into_iter().find_map(|(node, behind)| Some((node, behind?)));
        Ok(first.map(|(node, reason)| format!("node {node} {reason}")))
    }

    /// Tells all nodes that the comparison is over; one that does not hear it finds out by itself.
    pub(super) async fn end(&self) {
        let told =
            self.nodes.iter().map(|node| self.call(*node, Call { job: self.job, ask: Ask::End }));
        let _ = tokio::time::timeout(Duration::from_secs(1), join_all(told)).await;
    }
}
