//! The role and the database that every node has, made when they are missing.

use anyhow::{Context as _, Result};

use synapsedb_pg::client::{Client, connect};

use super::Config;

/// Makes the role and the database on a managed server; what is there is left as it is.
///
/// # Errors
/// When the server refuses, or the role is missing and there is no verifier for it.
pub(super) async fn ensure(config: &Config, target: &synapsedb_pg::Config) -> Result<()> {
    let client = connect(&maintenance(target)).await?;
    if !exists(&client, "SELECT 1 FROM pg_roles WHERE rolname = $1", &config.role).await? {
        let verifier = verifier(config)?;
        let create = "SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', $1::text, $2::text)";
        run(&client, create, &config.role, &verifier).await?;
        tracing::info!(role = config.role, "made the role");
    }
    if !exists(&client, "SELECT 1 FROM pg_database WHERE datname = $1", &config.database).await? {
        let create = "SELECT format('CREATE DATABASE %I OWNER %I', $1::text, $2::text)";
        run(&client, create, &config.database, &config.role).await?;
        tracing::info!(database = config.database, "made the database");
        // Only its owner may add it later, and an ordinary owner may not where the package does not trust it.
        let database = connect(target).await?;
        database.batch_execute(include_str!("add_vector.sql")).await?;
    }
    Ok(())
}

/// The database that every server has from the start.
pub(super) fn maintenance(target: &synapsedb_pg::Config) -> synapsedb_pg::Config {
    synapsedb_pg::Config { database: "postgres".to_owned(), ..target.clone() }
}

fn verifier(config: &Config) -> Result<String> {
    let file = config.role_verifier_file.as_ref().with_context(|| {
        format!("there is no role `{}`; make it, or set postgres.role_verifier_file", config.role)
    })?;
    let text = std::fs::read_to_string(file).with_context(|| {
        format!("postgres.role_verifier_file {} cannot be read", file.display())
    })?;
    Ok(text.trim().to_owned())
}

async fn exists(client: &Client, sql: &str, name: &str) -> synapsedb_pg::Result<bool> {
    Ok(client.query_opt(sql, &[&name]).await?.is_some())
}

/// Has the server quote the names, and runs what it made of them.
async fn run(client: &Client, sql: &str, first: &str, second: &str) -> synapsedb_pg::Result<()> {
    let statement: String = client.query_one(sql, &[&first, &second]).await?.get(0);
    Ok(client.batch_execute(&statement).await?)
}
