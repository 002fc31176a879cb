//! The role and the database that every node has, made when they are missing.

use anyhow::{Context as _, Result};

use super::connect::{Client, connect, one_line};
use super::{Config, Target};

/// Makes the role and the database on a managed server; what is there is left as it is.
///
/// # Errors
/// When the server refuses, or the role is missing and there is no verifier for it.
pub(super) async fn ensure(config: &Config, target: &Target) -> Result<()> {
    let client = connect(&target.in_database("postgres")).await?;
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
    }
    Ok(())
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

async fn exists(client: &Client, sql: &str, name: &str) -> Result<bool> {
    let row =
        client.query_opt(sql, &[&name]).await.map_err(|error| anyhow::anyhow!(one_line(&error)))?;
    Ok(row.is_some())
}

/// Has the server quote the names, and runs what it made of them.
async fn run(client: &Client, sql: &str, first: &str, second: &str) -> Result<()> {
    let made = async {
        let statement: String = client.query_one(sql, &[&first, &second]).await?.get(0);
        client.batch_execute(&statement).await
    };
    made.await.map_err(|error| anyhow::anyhow!(one_line(&error)))
}
