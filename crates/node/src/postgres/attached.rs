//! What a server that somebody else runs must be like, checked all at once.

use super::connect::{Client, ConnectError, Host, connect, one_line};
use super::probe::{Facts, Probe, probe};
use super::{Config, Target};

/// `server_version_num` of the oldest server that is supported.
const VERSION_MIN: i32 = 150_000;

/// Reads `postgresql://user[:password]@host[:port]/database`; a host that begins with `/` is a socket's directory.
///
/// # Errors
/// What is wrong with it, to be put behind the key's name.
pub fn target(url: &str) -> Result<Target, String> {
    let expected = "expected postgresql://user@host:port/database";
    let config: tokio_postgres::Config = url
        .parse()
        .map_err(|error: tokio_postgres::Error| format!("is no url ({error}); {expected}"))?;
    let host = match config.get_hosts() {
        [tokio_postgres::config::Host::Tcp(host)] => Host::Tcp(host.clone()),
        [tokio_postgres::config::Host::Unix(dir)] => Host::Unix(dir.clone()),
        hosts => return Err(format!("names {} hosts instead of one; {expected}", hosts.len())),
    };
    let user = config.get_user().ok_or_else(|| format!("names no user; {expected}"))?;
    let database = config.get_dbname().ok_or_else(|| format!("names no database; {expected}"))?;
    let password = config.get_password().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    Ok(Target {
        host,
        port: config.get_ports().first().copied().unwrap_or(5432),
        user: user.to_owned(),
        password,
        database: database.to_owned(),
        application_name: "synapsedb".to_owned(),
        connect_timeout_ms: 2_000,
        options: Vec::new(),
    })
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
pub(super) async fn check(config: &Config, target: &Target) -> Result<Facts, Vec<String>> {
    let client = connect(target).await.map_err(|error| vec![explain(config, target, &error)])?;
    // Nothing else is asked of a server that may not know the answer.
    let version = number(&client).await.map_err(|why| vec![why])?;
    if version < VERSION_MIN {
        return Err(vec![format!(
            "the server is PostgreSQL {}.{}; PostgreSQL 15 to 18 is needed: upgrade it",
            version / 10_000,
            version / 100 % 100
        )]);
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

async fn number(client: &Client) -> Result<i32, String> {
    let sql = "SELECT current_setting('server_version_num')::int";
    client.query_one(sql, &[]).await.map(|row| row.get(0)).map_err(|error| one_line(&error))
}

async fn settings(
    config: &Config,
    target: &Target,
    client: &Client,
) -> Result<Vec<String>, String> {
    let row = client
        .query_one(include_str!("attached.sql"), &[])
        .await
        .map_err(|error| one_line(&error))?;
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
fn explain(config: &Config, target: &Target, error: &ConnectError) -> String {
    let at = target.address();
    match error.sqlstate() {
        Some("28P01") if target.password.is_none() => {
            format!(
                "{at} wants a password for the role {}; set postgres.password_file",
                target.user
            )
        }
        Some("28P01") => format!(
            "{at} refuses the password of the role {}; correct {}",
            target.user,
            if config.password_file.as_os_str().is_empty() {
                "postgres.url".to_owned()
            } else {
                format!("postgres.password_file ({})", config.password_file.display())
            }
        ),
        Some("28000") => {
            format!("{at} refuses the role {}: {error}; correct pg_hba.conf", target.user)
        }
        Some("3D000") => {
            format!(
                "{at} has no database {0}: CREATE DATABASE \"{0}\", or correct postgres.url",
                target.database
            )
        }
        _ if target.password.is_none() && error.to_string().contains("password missing") => {
            format!(
                "{at} wants a password for the role {}; set postgres.password_file",
                target.user
            )
        }
        _ => format!("{at} cannot be reached: {error}"),
    }
}
