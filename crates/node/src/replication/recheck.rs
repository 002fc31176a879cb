//! A local write that was decoded after a remote transaction had met its place, unseen: the place is looked at again.
//!
//! A remote insert may find a key free whose local delete is not decoded yet, or a unique value that a local row has
//! just left. When the local write is decoded, it is known to be later; the remote row that is still there gives way.
//! The session has a replication origin of its own, so that what it deletes is not replicated: every other node decides
//! alike by itself.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use synapsedb_core::change::{Change, Relation, Value};
use synapsedb_core::ids::NodeId;
use synapsedb_core::version::RowVersion;
use synapsedb_pg::client::Client;
use synapsedb_pg::pgoutput::{self, Message};
use synapsedb_pg::quote;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::apply::inherited::Inherited;
use super::keys::{self, UniqueIndex};
use super::recent::old_values;
use super::{Shared, origin, parse_origin_name};

/// Whoever has it in its session is not seen by the publisher.
const ORIGIN: &str = "synapsedb_recheck";
/// How often a place is looked at whose row is locked, and the origin is asked for.
const TRIES_MAX: u32 = 50;

/// A local write and its place.
pub(crate) struct Recheck {
    /// The relation as the stream describes it.
    pub(crate) relation: Bytes,
    /// The write.
    pub(crate) change: Bytes,
    /// Its version.
    pub(crate) version: RowVersion,
}

/// Looks at all of them.
///
/// # Errors
/// The server cannot be reached or refuses.
pub(crate) async fn all(shared: &Shared, rechecks: Vec<Recheck>) -> Result<()> {
    if rechecks.is_empty() {
        return Ok(());
    }
    let client = shared.sql("recheck").await?;
    client.batch_execute(include_str!("sql/recheck_session.sql")).await?;
    origin::take(&client, ORIGIN, TRIES_MAX).await?;
    for recheck in rechecks {
        one(&client, &recheck).await.context("look again at where a local write was")?;
    }
    // The session ends when it may, and the next one needs the origin at once.
    client.batch_execute("select pg_catalog.pg_replication_origin_session_reset()").await?;
    Ok(())
}

async fn one(client: &Client, recheck: &Recheck) -> Result<()> {
    let Message::Relation(relation) = pgoutput::decode(&recheck.relation)? else { return Ok(()) };
    let Message::Change(change) = pgoutput::decode(&recheck.change)? else { return Ok(()) };
    let indexes = keys::load(client, &relation.schema, &relation.name).await?.indexes;
    let Some(primary) = indexes.iter().find(|index| index.is_primary) else { return Ok(()) };
    match &change {
        Change::Delete { old, .. } => {
            older_goes(client, &relation, primary, None, old_values(old), recheck).await?;
        }
        Change::Insert { new, .. } => {
            claims(client, &relation, &indexes, primary, new, recheck).await?;
        }
        Change::Update { old, new, .. } => {
            if let Some(old) = old {
                older_goes(client, &relation, primary, None, old_values(old), recheck).await?;
            }
            claims(client, &relation, &indexes, primary, new, recheck).await?;
        }
        Change::Truncate { .. } => {}
    }
    Ok(())
}

async fn claims(
    client: &Client,
    relation: &Relation,
    indexes: &[UniqueIndex],
    primary: &UniqueIndex,
    new: &[Value<'_>],
    recheck: &Recheck,
) -> Result<()> {
    for index in indexes.iter().filter(|index| !index.is_primary) {
        older_goes(client, relation, index, Some(primary), new, recheck).await?;
    }
    Ok(())
}

/// Deletes the remote row that holds the values of `index` and is older than the local write; not the row with the
/// key `other_than` of the write itself.
async fn older_goes(
    client: &Client,
    relation: &Relation,
    index: &UniqueIndex,
    other_than: Option<&UniqueIndex>,
    row: &[Value<'_>],
    recheck: &Recheck,
) -> Result<()> {
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
            parts.push(format!("t.{} = ${}::text::{type_name}", quote::ident(name), values.len()));
        }
        Some(parts.join(" and "))
    };
    let Some(mut found) = condition(index) else { return Ok(()) };
    if let Some(other_than) = other_than {
        let Some(own) = condition(other_than) else { return Ok(()) };
        found = format!("{found} and not ({own})");
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
        ("found", found),
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
    for _ in 0..TRIES_MAX {
        match client.query(&sql, &parameters).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code().is_some_and(|code| code.code() == "55P03") => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    tracing::warn!(%table, "a row that lost to a local write is locked for long: it is left to `synapsedb verify`");
    Ok(())
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
