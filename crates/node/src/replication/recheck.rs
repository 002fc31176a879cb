//! A local write that was decoded after a remote transaction had met its place, unseen: the place is looked at again.
//!
//! A remote insert may find a key free whose local delete is not decoded yet, or a unique value that a local row has
//! just left. When the local write is decoded, it is known to be later; the remote row that is there, or will be when
//! its transaction commits, gives way. So the place is looked at as soon as everything that may meet it is applied, and
//! until it could be looked at. What an agent before this one had not looked at shows when the spools are read at the
//! start.
//!
//! In a table with a policy of its own the later write need not stay: there a lane decides upon the local write by the
//! policy, as if it came last. That is also for a local row which was made where a remote write had left none.
//!
//! Nobody waits for this: an applier that waits for the decoding of the own WAL may have a lock on the very row.
//!
//! The session has a replication origin of its own, so that what it deletes is not replicated: every other node decides
//! alike by itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use synapsedb_core::change::{Column, Relation, Value};
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::time::Timestamp;
use synapsedb_core::version::{RowVersion, VersionVector};
use synapsedb_pg::client::Client;
use synapsedb_pg::pgoutput::{self, Message};
use synapsedb_pg::quote;
use tokio::sync::Notify;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::apply::inherited::Inherited;
use super::keys::{self, RowKeys, UniqueIndex};
use super::recent::old_values;
use super::writers::{self, Found, Table};
use super::{Shared, origin, parse_origin_name};
use crate::tasks::Shutdown;

mod ruled;

use ruled::{By, rule, settled_by};

/// Whoever has it in its session is not seen by the publisher.
const ORIGIN: &str = "synapsedb_recheck";
/// How often the origin is asked for.
const TRIES_MAX: u32 = 50;
/// How often a place is looked at whose row others change at the same time.
const LOOKS_MAX: usize = 8;
/// How often a row is tried in vain before that is told: somebody may have it locked.
const TRIES_UNTOLD_MAX: u32 = 50;
/// How many times as long is waited at most before a lane is asked again.
const PATIENCE_MAX: u32 = 20;
/// From when on a place waits for long: then what is remembered for it has a bound.
const LONG: Duration = Duration::from_secs(5);
/// The wait before what could not be looked at is tried again: a row may be locked for long.
const RETRY: Duration = Duration::from_millis(100);

/// Whose place is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Of the change of the local write: whatever is there and is older gives way.
    Winner,
    /// Of the remote change whose row the local write has deleted: what is older there gives way.
    Deleted,
    /// Of the remote change beside whose row the local write has made one, in a table with a policy of its own.
    Made,
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
    asked_at: Instant,
    /// How often it was looked at in vain.
    tries: u32,
    /// Not to be looked at again before.
    not_before: Option<Instant>,
}

impl Recheck {
    pub(crate) fn new(
        (relation, change): (Bytes, Bytes),
        version: RowVersion,
        place: Place,
        awaits: VersionVector,
    ) -> Self {
        let asked_at = Instant::now();
        Self { relation, change, version, place, awaits, asked_at, tries: 0, not_before: None }
    }
}

/// The places that are to be looked at.
#[derive(Default)]
pub(crate) struct Rechecks {
    pending: Mutex<Vec<Recheck>>,
    asked: Notify,
    /// Everything has been looked at, also what the spools told at the start: until then nothing is forgotten.
    are_done: AtomicBool,
    /// The spools have been read.
    are_told: AtomicBool,
    /// Since when the longest has waited that could not be looked at yet.
    waits_since: Mutex<Option<Instant>>,
}

impl Rechecks {
    fn lock(&self) -> MutexGuard<'_, Vec<Recheck>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The spools have been read at the start; these are to be looked at.
    pub(crate) fn begin(&self, rechecks: Vec<Recheck>) {
        self.lock().extend(rechecks);
        self.are_told.store(true, Ordering::Release);
        self.asked.notify_one();
    }

    /// Whether everything has been looked at, also what the spools told at the start.
    pub(crate) fn are_done(&self) -> bool {
        self.are_done.load(Ordering::Acquire)
    }

    /// Whether the spools have been read at the start.
    pub(crate) fn are_told(&self) -> bool {
        self.are_told.load(Ordering::Acquire)
    }

    /// Whether a place waits for long: somebody has its row locked, or what may meet it is not applied.
    pub(crate) fn wait_for_long(&self) -> bool {
        let since = *self.waits_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() > LONG)
    }

    fn note_waiting(&self, waiting: &[Recheck]) {
        let since = waiting.iter().map(|recheck| recheck.asked_at).min();
        *self.waits_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Nothing of what was asked for so far waits, if nothing else was asked for.
    fn note_done(&self) {
        let pending = self.lock();
        if pending.is_empty() && self.are_told() {
            self.are_done.store(true, Ordering::Release);
        }
    }

    /// These are to be looked at.
    pub(crate) fn look_at(&self, rechecks: Vec<Recheck>) {
        if !rechecks.is_empty() {
            let mut pending = self.lock();
            self.are_done.store(false, Ordering::Release);
            pending.extend(rechecks);
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
        let looked = match waiting.iter().any(|recheck| is_due(&shared, recheck)) {
            true => tokio::select! {
                () = stop.cancelled() => return Ok(()),
                looked = look(&shared, &mut waiting) => looked,
            },
            false => Ok(()),
        };
        shared.rechecks.note_waiting(&waiting);
        if waiting.is_empty() {
            shared.rechecks.note_done();
        }
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
    recheck.not_before.is_none_or(|at| at <= Instant::now())
        && shared.applied.shows(shared.identity.node, &recheck.awaits)
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
        match one(shared, &client, recheck).await {
            Ok(Looked::At) => drop(waiting.swap_remove(at)),
            Ok(Looked::NotYet(reason)) => {
                recheck.tries += 1;
                // A lane does nothing else meanwhile.
                recheck.not_before = Some(Instant::now() + RETRY * recheck.tries.min(PATIENCE_MAX));
                if recheck.tries == TRIES_UNTOLD_MAX {
                    let what = "what a policy makes of a local write cannot be decided yet";
                    tracing::warn!("{what}, it is tried until it can: {reason}");
                }
                at += 1;
            }
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

/// What came of a look.
enum Looked {
    /// It was looked at.
    At,
    /// Nobody could, and why.
    NotYet(String),
}

async fn one(shared: &Shared, client: &Client, recheck: &Recheck) -> Result<Looked> {
    let Message::Relation(relation) = pgoutput::decode(&recheck.relation)? else {
        return Ok(Looked::At);
    };
    let Message::Change(change) = pgoutput::decode(&recheck.change)? else {
        return Ok(Looked::At);
    };
    let (schema, name) = (relation.schema.clone(), relation.name.clone());
    let keys = keys::load(shared, client, &schema, &name).await?;
    let table = &Table { schema, name, keys };
    let indexes = &table.keys.indexes;
    let Some(primary) = indexes.iter().find(|index| index.is_primary) else {
        return Ok(Looked::At);
    };
    let (old, new) = change.rows();
    let (old, new) = (old.map(old_values), new.map(Vec::as_slice));
    let place = |row| LookedAt { shared, client, relation: &relation, table, recheck, row };
    let settled_by = match recheck.place {
        Place::Winner | Place::Made => settled_by(shared, &relation, table, recheck, &[old, new]),
        Place::Deleted | Place::Beaten(_) => settled_by(shared, &relation, table, recheck, &[new]),
    };
    let mut looked = Looked::At;
    match (settled_by, recheck.place) {
        (By::Policy, _) => looked = rule(shared, recheck).await,
        (By::Nothing, _) | (By::Time, Place::Made) => {}
        (By::Time, Place::Winner) => {
            if let Some(old) = old {
                place(old).older_goes(&[(primary, true)]).await?;
            }
        }
        (By::Time, Place::Deleted | Place::Beaten(_)) => {
            if let Some(new) = new {
                place(new).older_goes(&[(primary, true)]).await?;
            }
        }
    }
    if let (Place::Winner, Some(new)) = (recheck.place, new) {
        // Unique values are taken by the later write, whatever the policy.
        for index in indexes.iter().filter(|index| !index.is_primary) {
            place(new).older_goes(&[(index, true), (primary, false)]).await?;
        }
    }
    Ok(looked)
}

/// A row whose place is looked at.
struct LookedAt<'r> {
    shared: &'r Shared,
    client: &'r Client,
    relation: &'r Relation,
    table: &'r Table,
    recheck: &'r Recheck,
    row: &'r [Value<'r>],
}

impl LookedAt<'_> {
    /// Deletes the remote row that has the values of the row in each of the indexes, or has not, and is older than the
    /// local write.
    async fn older_goes(&self, indexes: &[(&UniqueIndex, bool)]) -> Result<()> {
        let Self { client, relation, recheck, .. } = self;
        let Some((found, values)) = self.condition(indexes).await? else { return Ok(()) };
        let parameters: Vec<&(dyn ToSql + Sync)> =
            values.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
        let table = quote::qualified(&relation.schema, &relation.name);
        let key = self.key();
        let version = recheck.version;
        let inherited = client.query(include_str!("sql/inherited.sql"), &[]).await?;
        let boundary = |row: &Row| -> Result<_> {
            Ok((row.get::<_, &str>(0).parse()?, row.get::<_, &str>(1).parse()?))
        };
        let inherited = Inherited::new(inherited.iter().map(boundary).collect::<Result<_>>()?);
        let parts = [
            ("table", table.as_str()),
            ("found", &found),
            ("without_origin", &inherited.node_sql("t", version.origin)),
            ("key", &key),
        ];
        let place = quote::fill(include_str!("sql/place.sql"), &parts);
        for _ in 0..LOOKS_MAX {
            let mut any = false;
            let rows = client.query(&place, &parameters).await?;
            for row in &rows {
                if self.gives_way(row)? {
                    any = true;
                    let parts = [
                        ("table", table.clone()),
                        ("found", found.clone()),
                        ("writer", quote::literal(row.get(0))),
                        ("time", version.commit_time.unix_us().to_string()),
                        ("schema_name", quote::literal(&relation.schema)),
                        ("table_name", quote::literal(&relation.name)),
                        ("origin", version.origin.to_string()),
                        ("lsn", quote::literal(&version.lsn.to_string())),
                    ];
                    let parts = parts.each_ref().map(|(name, text)| (*name, text.as_str()));
                    let sql = quote::fill(include_str!("sql/older_goes.sql"), &parts);
                    client.query(&sql, &parameters).await?;
                }
            }
            if !any {
                return Ok(());
            }
        }
        bail!("other sessions keep changing the row")
    }

    /// The condition that finds the row, and the values in it. Nothing when one is missing.
    async fn condition(
        &self,
        indexes: &[(&UniqueIndex, bool)],
    ) -> Result<Option<(String, Vec<String>)>> {
        let Self { client, relation, row, .. } = self;
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
            let Some(condition) = condition(index) else { return Ok(None) };
            found.push(format!("{}({condition})", if *has { "" } else { "not " }));
        }
        Ok(Some((found.join(" and "), values)))
    }

    /// The columns of the primary key as SQL.
    fn key(&self) -> String {
        let columns = self.key_columns().map(|name| keys::text_sql(name));
        columns.collect::<Vec<_>>().join(", ")
    }

    fn key_columns(&self) -> impl Iterator<Item = &String> {
        let primary = self.table.keys.indexes.iter().filter(|index| index.is_primary);
        primary.flat_map(|index| &index.columns)
    }

    /// Whether a row at the place, as `place.sql` tells it, is of another node and older than the local write.
    fn gives_way(&self, row: &Row) -> Result<bool> {
        let recheck = self.recheck;
        let (roident, node): (&str, i32) = (row.get(1), row.get(2));
        let commit_time = Timestamp::from_unix_us(row.get(3));
        let origin = match row.get::<_, Option<&str>>(5) {
            Some(name) => parse_origin_name(name).map(|(node, _)| node),
            None if roident == "0" => u16::try_from(node).ok().and_then(NodeId::new),
            None => None,
        };
        let here = recheck.version.origin;
        if roident == "0" && origin == Some(here) {
            return Ok(false);
        }
        let written = match origin {
            Some(origin) if roident != "0" => {
                self.writer(RowVersion { commit_time, origin, lsn: Lsn::ZERO }, row.get(4))?
                    .commit_time
            }
            Some(_) | None => commit_time,
        };
        if matches!(recheck.place, Place::Beaten(time) if time != written) {
            return Ok(false);
        }
        let same_time = written == recheck.version.commit_time;
        let is_lower = origin.is_some_and(|origin| origin < here);
        Ok(written < recheck.version.commit_time || same_time && is_lower)
    }

    /// Who wrote a row with this `stamp` and primary key: it may have come in a group.
    fn writer(&self, stamp: RowVersion, key: Vec<Option<String>>) -> Result<RowVersion> {
        let Self { shared, relation, table, .. } = self;
        let by_name: Vec<(&String, &Option<String>)> = self.key_columns().zip(&key).collect();
        let value = |column: &Column| {
            let value = by_name.iter().find(|(name, _)| **name == column.name);
            let text = value.and_then(|(_, value)| value.as_deref());
            text.map_or(Value::Null, |text| Value::Text(text.as_bytes()))
        };
        let tuple: Vec<Value<'_>> = relation.columns.iter().map(value).collect();
        let digest = RowKeys::new(relation, &table.keys).and_then(|keys| keys.row(&tuple));
        let Some(digest) = digest else { return Ok(stamp) };
        Ok(match writers::of_stamp(shared, stamp, table, digest)? {
            Found::Writer(version) => version,
            Found::OfTheStamp | Found::Earlier => stamp,
        })
    }
}
