//! The settings of the server by which its commits wait for the publisher's reports.

use anyhow::{Context as _, Result, bail};
use synapsedb_core::durability::Class;
use synapsedb_pg::client::Client;
use synapsedb_pg::quote;

use crate::replication::Shared;

/// The `application_name` of the publisher's stream, by which the server knows its synchronous standby.
pub(crate) const STANDBY: &str = "synapsedb publisher";

/// The `synchronous_commit` that is a class.
fn level(class: Class) -> &'static str {
    match class {
        Class::Local => "local",
        Class::Quorum => "on",
        Class::Applied => "remote_apply",
    }
}

/// Makes the server's commits wait for the publisher, in `class` where a session chooses none. Idempotent.
///
/// # Errors
/// The server refuses, or has synchronous standbys of somebody else, which are left alone.
pub(crate) async fn put_in_force(client: &Client, class: Class) -> Result<()> {
    let row = client.query_one(include_str!("../sql/durability_settings.sql"), &[]).await?;
    let (names, commit): (String, String) = (row.get(0), row.get(1));
    let ours = quote::ident(STANDBY);
    if !names.is_empty() && names != ours {
        bail!(
            "the server has synchronous_standby_names = '{names}', which is not ours; nothing was changed. \
             Empty it (ALTER SYSTEM RESET synchronous_standby_names) to have durability classes"
        );
    }
    // `off` promises even less than local, and whoever runs the server may have set it.
    let fits = commit == level(class) || (class == Class::Local && commit == "off");
    if names == ours && fits {
        return Ok(());
    }
    if !fits {
        set(client, "synchronous_commit", level(class)).await?;
    }
    set(client, "synchronous_standby_names", &ours).await?;
    client.query("select pg_catalog.pg_reload_conf()", &[]).await?;
    tracing::info!(
        class = super::name(class),
        "commits of this server wait as their durability class says"
    );
    Ok(())
}

async fn set(client: &Client, name: &str, value: &str) -> Result<()> {
    let sql = format!("alter system set {name} = {}", quote::literal(value));
    client.batch_execute(&sql).await.with_context(|| format!("set {name} = {value}"))
}

/// Lets no commit wait while there is no slot: making one waits for all transactions to end, which would wait for the
/// stream of that slot.
///
/// # Errors
/// The server refuses.
pub(crate) async fn suspend_without_slot(shared: &Shared, slot: &str) -> Result<()> {
    let client = shared.sql("durability").await?;
    let row = client.query_one(include_str!("../sql/durability_slot.sql"), &[&slot]).await?;
    let (there, names): (bool, String) = (row.get(0), row.get(1));
    if there || names != quote::ident(STANDBY) {
        return Ok(());
    }
    client.batch_execute("alter system reset synchronous_standby_names").await?;
    client.query("select pg_catalog.pg_reload_conf()", &[]).await?;
    tracing::warn!("commits wait for no other node until the replication slot is there");
    Ok(())
}

/// Lets no commit wait for anybody from now on: the server has left the cluster. What somebody else has set is left.
///
/// # Errors
/// The server refuses.
pub(crate) async fn lift(client: &Client) -> Result<()> {
    let row = client.query_one(include_str!("../sql/durability_settings.sql"), &[]).await?;
    if row.get::<_, &str>(0) != quote::ident(STANDBY) {
        return Ok(());
    }
    for name in ["synchronous_standby_names", "synchronous_commit"] {
        client
            .batch_execute(&format!("alter system reset {name}"))
            .await
            .with_context(|| format!("reset {name}"))?;
    }
    client.query("select pg_catalog.pg_reload_conf()", &[]).await?;
    Ok(())
}
