//! Looks up the children that may have lost their parent, when both writes are visible here, and writes those that have
//! to the log of conflicts. What is logged already is not logged again, so everything may be looked up twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use synapsedb_core::version::{RowVersion, VersionVector};
use synapsedb_pg::client::Client;
use synapsedb_pg::quote;
use tokio::sync::Notify;
use tokio_postgres::types::ToSql;

use super::{ForeignKey, Orphans};
use crate::replication::Shared;
use crate::tasks::Shutdown;

/// How long orphans gather before they are looked up together.
const GATHER: Duration = Duration::from_millis(100);

/// The wait before a look that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Children that one look writes to the log at most.
const ROWS_MAX: usize = 10_000;

/// The orphans that are to be looked up.
#[derive(Default)]
pub(crate) struct Checks {
    pending: Mutex<BTreeMap<Arc<ForeignKey>, Pending>>,
    asked: Notify,
}

/// What is to be looked up of one foreign key.
#[derive(Debug, Default)]
struct Pending {
    /// The values by which children refer to the parent that went, with who deleted it.
    values: BTreeMap<Vec<String>, Option<RowVersion>>,
    /// All children: too many parents went, or it is not known which.
    all: bool,
    awaits: VersionVector,
}

impl Checks {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<ForeignKey>, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are to be looked up: at most `values_max` parents of a foreign key one by one.
    pub(crate) fn look_for(&self, orphans: Vec<Orphans>, values_max: usize) {
        if orphans.is_empty() {
            return;
        }
        let mut pending = self.lock();
        for Orphans { key, values, gone, awaits } in orphans {
            let known = pending.entry(key).or_default();
            known.awaits.merge(&awaits);
            match values {
                Some(values) if !known.all && known.values.len() < values_max => {
                    known.values.insert(values, gone);
                }
                Some(values) if known.values.contains_key(&values) => {}
                Some(_) | None => {
                    known.all = true;
                    known.values.clear();
                }
            }
        }
        drop(pending);
        self.asked.notify_one();
    }

    /// Takes what is pending, but leaves what waits already: it grows here meanwhile.
    fn take_into(&self, waiting: &mut BTreeMap<Arc<ForeignKey>, Pending>) {
        let mut pending = self.lock();
        let keys: Vec<_> =
            pending.keys().filter(|key| !waiting.contains_key(*key)).cloned().collect();
        waiting.extend(keys.into_iter().filter_map(|key| pending.remove_entry(&key)));
    }
}

/// Looks orphans up until shutdown.
///
/// # Errors
/// None: what cannot be looked up now is tried again.
pub(crate) async fn run(shared: Arc<Shared>, stop: Shutdown) -> Result<()> {
    let mut waiting: BTreeMap<Arc<ForeignKey>, Pending> = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = shared.foreign_keys.asked.notified(), if waiting.is_empty() => {}
            () = tokio::time::sleep(GATHER), if !waiting.is_empty() => {}
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(GATHER) => {}
        }
        shared.foreign_keys.take_into(&mut waiting);
        let due: Vec<_> = waiting
            .iter()
            .filter(|(_, pending)| shared.applied.shows(shared.identity.node, &pending.awaits))
            .map(|(key, _)| key.clone())
            .collect();
        if due.is_empty() {
            continue;
        }
        let looked = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            looked = look(&shared, &mut waiting, due) => looked,
        };
        if let Err(error) = looked {
            tracing::warn!(
                "children that may have lost their parent cannot be looked up, it is tried again: {error:#}"
            );
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

async fn look(
    shared: &Shared,
    waiting: &mut BTreeMap<Arc<ForeignKey>, Pending>,
    due: Vec<Arc<ForeignKey>>,
) -> Result<()> {
    let client = shared.sql("foreign keys").await?;
    let limit_ms = shared.config.row_timeout_ms.to_string();
    let session = include_str!("../sql/orphans_session.sql").replace("{limit_ms}", &limit_ms);
    client.batch_execute(&session).await?;
    for key in due {
        let Some(pending) = waiting.get(&key) else { continue };
        let own = pending.awaits.get(shared.identity.node);
        shared.own_commits.wait_visible(shared, own).await?;
        match look_at(&client, shared, &key, pending).await {
            Ok(rows) => told(shared, &key, rows),
            // The table or a column is gone, and the foreign key with it.
            Err(error) if error.code().is_some_and(|code| code.code().starts_with("42")) => {
                tracing::debug!("foreign key {} is not there any more: {error}", key.name);
            }
            Err(error) => return Err(error.into()),
        }
        waiting.remove(&key);
    }
    Ok(())
}

fn told(shared: &Shared, key: &ForeignKey, rows: usize) {
    if rows == 0 {
        return;
    }
    let table = format!("{}.{}", key.child.0, key.child.1);
    shared.metrics.conflicts("foreign_key", &table, rows as u64);
    let (parent_schema, parent) = &key.parent;
    tracing::warn!(
        %table,
        rows,
        "rows refer by foreign key \"{}\" to rows of {parent_schema}.{parent} that were deleted concurrently: \
         they stay, on all nodes alike. See `synapsedb conflicts ls --type foreign_key`",
        key.name
    );
}

/// Writes to the log which children have lost their parent; answers how many that are.
async fn look_at(
    client: &Client,
    shared: &Shared,
    key: &ForeignKey,
    pending: &Pending,
) -> Result<usize, tokio_postgres::Error> {
    let sql = sql(key, pending.all, shared.identity.node.get());
    if pending.all {
        return Ok(client.query(&sql, &[]).await?.len());
    }
    let columns: Vec<Vec<&str>> = (0..key.columns.len())
        .map(|at| {
            pending.values.keys().filter_map(|values| values.get(at).map(String::as_str)).collect()
        })
        .collect();
    let gone = || pending.values.values();
    let nodes: Vec<Option<i32>> =
        gone().map(|gone| gone.map(|gone| i32::from(gone.origin.get()))).collect();
    let lsns: Vec<Option<String>> =
        gone().map(|gone| gone.map(|gone| gone.lsn.to_string())).collect();
    let times: Vec<Option<String>> = gone()
        .map(|gone| gone.map(|gone| crate::replication::lag::rfc3339(gone.commit_time)))
        .collect();
    let mut parameters: Vec<&(dyn ToSql + Sync)> =
        columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
    parameters.extend([&nodes as &(dyn ToSql + Sync), &lsns, &times]);
    Ok(client.query(&sql, &parameters).await?.len())
}

/// The statement for some parents, or for all children.
fn sql(key: &ForeignKey, all: bool, here: u16) -> String {
    let join = |parts: Vec<String>, between: &str| parts.join(between);
    let numbered = || key.columns.iter().enumerate();
    let child = quote::qualified(&key.child.0, &key.child.1);
    let parent = quote::qualified(&key.parent.0, &key.parent.1);
    let width = key.columns.len();
    let children = if all {
        format!(
            "{child} as c cross join (select null::integer, null::text, null::text) as k (node, lsn, at)"
        )
    } else {
        let arrays = (1..=width).map(|n| format!("${n}::text[]"));
        let arrays = arrays.chain([
            format!("${}::integer[]", width + 1),
            format!("${}::text[]", width + 2),
            format!("${}::text[]", width + 3),
        ]);
        let names = (1..=width).map(|n| format!("v{n}"));
        let names = names.chain(["node", "lsn", "at"].map(str::to_owned));
        let found = numbered().map(|(at, pair)| {
            format!("c.{} = k.v{}::{}", quote::ident(&pair.child), at + 1, pair.r#type)
        });
        format!(
            "unnest({}) as k ({}) join {child} as c on {}",
            join(arrays.collect(), ", "),
            join(names.collect(), ", "),
            join(found.collect(), " and ")
        )
    };
    let values = numbered().map(|(_, pair)| {
        format!("{}, c.{}", quote::literal(&pair.parent), quote::ident(&pair.child))
    });
    let referring = numbered().map(|(_, pair)| format!("c.{}", quote::ident(&pair.child)));
    let matches = numbered().map(|(_, pair)| {
        format!("p.{} = c.{}", quote::ident(&pair.parent), quote::ident(&pair.child))
    });
    let child_key = key.child_key.iter().map(|name| quote::literal(name));
    let detail = format!(
        "foreign key \"{}\": the row of {}.{} to which it refers was deleted concurrently",
        key.name, key.parent.0, key.parent.1
    );
    let parts = [
        ("parent_values", join(values.collect(), ", ")),
        ("children", children),
        ("referring", join(referring.collect(), ", ")),
        ("matches", join(matches.collect(), " and ")),
        ("parent", parent),
        ("limit", ROWS_MAX.to_string()),
        ("here", here.to_string()),
        ("schema_name", quote::literal(&key.child.0)),
        ("table_name", quote::literal(&key.child.1)),
        ("child_key", join(child_key.collect(), ", ")),
        ("detail", quote::literal(&detail)),
    ];
    let parts = parts.each_ref().map(|(name, text)| (*name, text.as_str()));
    quote::fill(include_str!("../sql/orphans.sql"), &parts)
}
