//! A local write that was decoded after a remote transaction had met its place, unseen: the place is looked at again.
//!
//! A remote insert may find a key free whose local delete is not decoded yet, or a unique value that a local row has
//! just left. When the local write is decoded, it is known to be later; the remote row that is there, or will be when
//! its transaction commits, gives way. So the place is looked at as soon as everything that may meet it is applied, and
//! until it could be looked at. What an agent before this one had not looked at shows when the spools are read at the
//! start.
//!
//! Nobody waits for this: an applier that waits for the decoding of the own WAL may have a lock on the very row.
//!
//! The session has a replication origin of its own, so that what it deletes is not replicated: every other node decides
//! alike by itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use synapsedb_core::change::{Relation, Value};
use synapsedb_core::ids::NodeId;
use synapsedb_core::time::Timestamp;
use synapsedb_core::version::{RowVersion, VersionVector};
use synapsedb_pg::client::Client;
use synapsedb_pg::pgoutput::{self, Message};
use synapsedb_pg::quote;
use tokio::sync::Notify;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::apply::inherited::Inherited;
use super::keys::{self, UniqueIndex};
use super::recent::old_values;
use super::{Shared, origin, parse_origin_name};
use crate::tasks::Shutdown;

/// Whoever has it in its session is not seen by the publisher.
const ORIGIN: &str = "synapsedb_recheck";
/// How often the origin is asked for.
const TRIES_MAX: u32 = 50;
/// How often a row is tried in vain before that is told: somebody may have it locked.
const TRIES_UNTOLD_MAX: u32 = 50;
/// The wait before what could not be looked at is tried again: a row may be locked for long.
const RETRY: Duration = Duration::from_millis(100);

/// Whose place is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Of the change of the local write: whatever is there and is older gives way.
    Winner,
    /// Of the remote change whose row the local write has deleted: what is older there gives way.
    Deleted,
    /// Of the remote change from whose row the local write has taken a unique value. It gives way as that change, of
    /// this commit time, has written it: a later one has its own values.
    Beaten(Timestamp),
}

/// A place that a local write has taken.
pub(crate) struct Recheck {
    /// The relation of the change as its stream describes it.
    pub(crate) relation: Bytes,
    /// The change.
    pub(crate) change: Bytes,
    /// The version of the local write.
    pub(crate) version: RowVersion,
    /// Whose change it is.
    pub(crate) place: Place,
    /// The transactions of others that may meet the place: until they are applied, nothing is there to be seen.
    pub(crate) awaits: VersionVector,
    /// How often it was looked at in vain.
    pub(crate) tries: u32,
}

/// The places that are to be looked at.
#[derive(Default)]
pub(crate) struct Rechecks {
    pending: Mutex<Vec<Recheck>>,
    asked: Notify,
}

impl Rechecks {
    fn lock(&self) -> MutexGuard<'_, Vec<Recheck>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are to be looked at.
    pub(crate) fn look_at(&self, rechecks: Vec<Recheck>) {
        if !rechecks.is_empty() {
            self.lock().extend(rechecks);
            self.asked.notify_one();
        }
    }
}

/// Looks at places until shutdown.
///
/// # Errors
/// None: what cannot be looked at now is tried again.
pub(crate) async fn run(shared: Arc<Shared>, stop: Shutdown) -> Result<()> {
    let mut visible = shared.applied.watch_visible();
    let mut waiting: Vec<Recheck> = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = shared.rechecks.asked.notified() => {}
            _ = visible.changed(), if !waiting.is_empty() => {}
            () = tokio::time::sleep(RETRY), if !waiting.is_empty() => {}
        }
        waiting.append(&mut shared.rechecks.lock());
        visible.borrow_and_update();
        if !waiting.iter().any(|recheck| is_due(&shared, recheck)) {
            continue;
        }
        let looked = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            looked = look(&shared, &mut waiting) => looked,
        };
        if let Err(error) = looked {
            tracing::warn!(
                "a place that a local write has taken cannot be looked at, it is tried again: {error:#}"
            );
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

fn is_due(shared: &Shared, recheck: &Recheck) -> bool {
    shared.applied.shows(shared.identity.node, &recheck.awaits)
}

/// Looks at what is due, and takes out what could be looked at.
///
/// # Errors
/// The server cannot be asked.
async fn look(shared: &Shared, waiting: &mut Vec<Recheck>) -> Result<()> {
    let client = shared.sql("recheck").await?;
    client.batch_execute(include_str!("sql/recheck_session.sql")).await?;
    origin::take(&client, ORIGIN, TRIES_MAX).await?;
    let mut at = 0;
    while let Some(recheck) = waiting.get_mut(at) {
        if !is_due(shared, recheck) {
            at += 1;
            continue;
        }
        shared.own_commits.wait_visible(shared, recheck.version.lsn).await?;
        match one(&client, recheck).await {
            Ok(()) => drop(waiting.swap_remove(at)),
            Err(error) => match refused(&error) {
                None => return Err(error.context("look again at where a local write was")),
                // The table or a column is gone, or of another type, and the place with it.
                Some(code) if code.starts_with("42") || code.starts_with("22") => {
                    drop(waiting.swap_remove(at));
                }
                Some(_) => {
                    recheck.tries += 1;
                    if recheck.tries == TRIES_UNTOLD_MAX {
                        let what = "a row that lost to a local write cannot be deleted yet";
                        tracing::warn!("{what}, it is tried until it can: {error:#}");
                    }
                    at += 1;
                }
            },
        }
    }
    // The session ends when it may, and the next one needs the origin at once.
    client.batch_execute("select pg_catalog.pg_replication_origin_session_reset()").await?;
    Ok(())
}

/// The code with which the server refused a statement, if it did.
fn refused(error: &anyhow::Error) -> Option<&str> {
    let error = error.downcast_ref::<tokio_postgres::Error>()?;
    Some(error.as_db_error()?.code().code())
}

async fn one(client: &Client, recheck: &Recheck) -> Result<()> {
    let Message::Relation(relation) = pgoutput::decode(&recheck.relation)? else { return Ok(()) };
    let Message::Change(change) = pgoutput::decode(&recheck.change)? else { return Ok(()) };
    let indexes = keys::load(client, &relation.schema, &relation.name).await?.indexes;
    let Some(primary) = indexes.iter().find(|index| index.is_primary) else { return Ok(()) };
    let (old, new) = change.rows();
    let place = |row| Looked { client, relation: &relation, recheck, row };
    if let (Place::Winner, Some(old)) = (recheck.place, old) {
        place(old_values(old)).older_goes(&[(primary, true)]).await?;
    }
    let Some(new) = new else { return Ok(()) };
    if recheck.place != Place::Winner {
        return place(new).older_goes(&[(primary, true)]).await;
    }
    for index in indexes.iter().filter(|index| !index.is_primary) {
        place(new).older_goes(&[(index, true), (primary, false)]).await?;
    }
    Ok(())
}

/// A row whose place is looked at.
struct Looked<'r> {
    client: &'r Client,
    relation: &'r Relation,
    recheck: &'r Recheck,
    row: &'r [Value<'r>],
}

impl Looked<'_> {
    /// Deletes the remote row that has the values of the row in each of the indexes, or has not, and is older than the
    /// local write.
    async fn older_goes(&self, indexes: &[(&UniqueIndex, bool)]) -> Result<()> {
        let Self { client, relation, recheck, row } = self;
        let types = client
            .query(include_str!("sql/replica_table.sql"), &[&relation.schema, &relation.name])
            .await?;
        let mut values: Vec<String> = Vec::new();
        let mut condition = |index: &UniqueIndex| -> Option<String> {
            let mut parts = Vec::new();
            for name in &index.columns {
                let at = relation.columns.iter().position(|column| column.name == *name)?;
                let Value::Text(text) = row.get(at)? else { return None };
                let column = types.iter().find(|column| column.get::<_, &str>(1) == name)?;
                values.push(String::from_utf8(text.to_vec()).ok()?);
                let type_name: &str = column.get(2);
                parts.push(format!(
                    "t.{} = ${}::text::{type_name}",
                    quote::ident(name),
                    values.len()
                ));
            }
            Some(parts.join(" and "))
        };
        let mut found = Vec::new();
        for (index, has) in indexes {
            let Some(condition) = condition(index) else { return Ok(()) };
            found.push(format!("{}({condition})", if *has { "" } else { "not " }));
        }
        if let Place::Beaten(written) = recheck.place {
            let time = "extract(epoch from pg_catalog.pg_xact_commit_timestamp(t.xmin)) * 1000000";
            found.push(format!("{time} = {}", written.unix_us()));
        }
        let lower = lower_origins(client, recheck.version.origin).await?;
        let inherited = client.query(include_str!("sql/inherited.sql"), &[]).await?;
        let boundary = |row: &Row| -> Result<_> {
            Ok((row.get::<_, &str>(0).parse()?, row.get::<_, &str>(1).parse()?))
        };
        let inherited = Inherited::new(inherited.iter().map(boundary).collect::<Result<_>>()?);
        let table = quote::qualified(&relation.schema, &relation.name);
        let version = recheck.version;
        let parts = [
            ("table", table.clone()),
            ("found", found.join(" and ")),
            ("without_origin", inherited.node_sql("t", version.origin)),
            ("lower", lower),
            ("time", version.commit_time.unix_us().to_string()),
            ("schema_name", quote::literal(&relation.schema)),
            ("table_name", quote::literal(&relation.name)),
            ("origin", version.origin.to_string()),
            ("lsn", quote::literal(&version.lsn.to_string())),
        ];
        let parts = parts.each_ref().map(|(name, text)| (*name, text.as_str()));
        let sql = quote::fill(include_str!("sql/older_goes.sql"), &parts);
        let parameters: Vec<&(dyn ToSql + Sync)> =
            values.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
        client.query(&sql, &parameters).await?;
        Ok(())
    }
}

/// The numbers of the origins of nodes below one, for a list in SQL that is never empty.
async fn lower_origins(client: &Client, than: NodeId) -> Result<String> {
    let mut lower = Vec::new();
    for origin in &client.query(include_str!("sql/origins.sql"), &[]).await? {
        if parse_origin_name(origin.get(1)).is_some_and(|(node, _)| node < than) {
            lower.push(origin.get::<_, String>(0));
        }
    }
    lower.push("-1".to_owned());
    Ok(lower.join(", "))
}
