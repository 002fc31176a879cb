//! What a server that somebody else runs must be like, checked all at once.

use synapsedb_pg::client::{Client, connect};
use synapsedb_pg::{Error, ErrorKind};

use super::Config;
use super::probe::{Facts, Probe, probe};

/// `server_version_num` of the oldest server that is supported.
const VERSION_MIN: i32 = 150_000;

/// Reads `postgresql://user[:password]@host[:port]/database`.
///
/// # Errors
/// What is wrong with it, to be put behind the key's name.
pub fn target(url: &str) -> Result<synapsedb_pg::Config, String> {
    synapsedb_pg::Config::from_url(url)
        .map_err(|error| format!("{error}; expected postgresql://user@host:port/database"))
}

/// Checks an attached server once.
///
/// # Errors
/// Everything that is wrong with it: each a sentence with the setting, its value and the value it needs.
pub async fn check_once(config: &Config) -> Result<Facts, Vec<String>> {
    let target = super::target(config).map_err(|error| vec![format!("{error:#}")])?;
    check(config, &target).await
}

/// [`check_once`] with a known target.
pub(super) async fn check(
    config: &Config,
    target: &synapsedb_pg::Config,
) -> Result<Facts, Vec<String>> {
    let client = connect(target).await.map_err(|error| vec![explain(config, target, &error)])?;
    // Nothing else is asked of a server that may not know the answer.
    let version = number(&client).await.map_err(|why| vec![why])?;
    if let Some(why) = too_old(version) {
        return Err(vec![why]);
    }
    let problems = settings(config, target, &client).await.unwrap_or_else(|why| vec![why]);
    drop(client);
    match probe(target, config.probe_timeout_ms).await {
        Probe::Alive(facts) if problems.is_empty() => Ok(facts),
        Probe::Alive(_) => Err(problems),
        Probe::Busy => {
            Err(vec!["the server has no session left; raise max_connections".to_owned()])
        }
        Probe::Starting(why) | Probe::Failed(why) => {
            Err(problems.into_iter().chain([why]).collect())
        }
    }
}

/// What is said of a server with this `server_version_num` when it cannot be used.
fn too_old(version: i32) -> Option<String> {
    // Since version 10 the last four digits are the minor version.
    let (major, minor) = (version / 10_000, version % 10_000);
    (version < VERSION_MIN).then(|| {
        format!(
            "the server is PostgreSQL {major}.{minor}; PostgreSQL 15 to 18 is needed: upgrade it"
        )
    })
}

async fn number(client: &Client) -> Result<i32, String> {
    let sql = "SELECT current_setting('server_version_num')::int";
    client
        .query_one(sql, &[])
        .await
        .map(|row| row.get(0))
        .map_err(|error| Error::from(error).to_string())
}

async fn settings(
    config: &Config,
    target: &synapsedb_pg::Config,
    client: &Client,
) -> Result<Vec<String>, String> {
    let row = client
        .query_one(include_str!("attached.sql"), &[])
        .await
        .map_err(|error| Error::from(error).to_string())?;
    let (wal_level, track): (String, String) = (row.get(0), row.get(1));
    let (slots, senders): (i32, i32) = (row.get(2), row.get(3));
    let superuser: Option<bool> = row.get(4);
    let mut problems = Vec::new();
    let mut setting = |name: &str, is: &str, fits: bool, needs: String| {
        if !fits {
            problems.push(format!(
                "{name} is {is}, but must be {needs}: ALTER SYSTEM SET {name} = '{}'; then restart the server",
                needs.trim_start_matches("at least ")
            ));
        }
    };
    let few = |is: i32, min: u32| i64::from(is) < i64::from(min);
    let least = |min: u32| format!("at least {min}");
    setting("wal_level", &wal_level, wal_level == "logical", "logical".to_owned());
    setting("track_commit_timestamp", &track, track == "on", "on".to_owned());
    let (slots_min, senders_min) = (config.replication_slots_min, config.wal_senders_min);
    setting("max_replication_slots", &slots.to_string(), !few(slots, slots_min), least(slots_min));
    setting(
        "max_wal_senders",
        &senders.to_string(),
        !few(senders, senders_min),
        least(senders_min),
    );
    if superuser != Some(true) {
        problems.push(format!(
            "the role {user} is no superuser, but the agent needs one: ALTER ROLE \"{user}\" SUPERUSER",
            user = target.user
        ));
    }
    Ok(problems)
}

/// Why there is no session, and what to do.
fn explain(config: &Config, target: &synapsedb_pg::Config, error: &Error) -> String {
    let at = target.address();
    let user = &target.user;
    match (error.kind(), error.sqlstate()) {
        (ErrorKind::TooOld, _) => format!("{error}: upgrade it"),
        (_, Some("28P01")) if target.password.is_some() => {
            let wrong = if config.password_file.as_os_str().is_empty() {
                "postgres.url".to_owned()
            } else {
                format!("postgres.password_file ({})", config.password_file.display())
            };
            format!("{at} refuses the password of the role {user}; correct {wrong}")
        }
        (_, Some("28000")) => format!("{at} refuses the role {user}: {error}; correct pg_hba.conf"),
        (_, Some("3D000")) => {
            let database = &target.database;
            format!(
                "{at} has no database {database}: CREATE DATABASE \"{database}\", or correct postgres.url"
            )
        }
        (_, _) if target.password.is_none() && error.to_string().contains("password") => {
            format!("{at} wants a password for the role {user}; set postgres.password_file")
        }
        (_, _) => format!("{at} cannot be reached: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_server_is_told_from_a_good_one() {
        let told = too_old(140_011).unwrap_or_default();
        assert_eq!(
            told,
            "the server is PostgreSQL 14.11; PostgreSQL 15 to 18 is needed: upgrade it"
        );
        assert_eq!(too_old(150_000), None);
        assert_eq!(too_old(180_001), None);
    }
}
