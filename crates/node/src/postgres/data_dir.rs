//! The managed server's data directory: made once, and given this agent's settings at every start.

use std::fmt::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::{Binaries, Config, OsUser};
use crate::layout::write_atomic;

/// The file with the agent's settings, included at the end of `postgresql.conf`.
const CONF_FILE: &str = "synapsedb.conf";
/// The file with the agent's access rules.
const HBA_FILE: &str = "synapsedb_hba.conf";

/// Makes the data directory if there is none, and writes the agent's settings. Blocks while `initdb` runs.
///
/// # Errors
/// When there are no programs of the right version, `initdb` fails, or the directory is somebody else's.
pub(super) fn prepare(
    config: &Config,
    user: Option<&OsUser>,
    password: Option<&str>,
) -> Result<Binaries> {
    let dir = &config.data_dir;
    let exists = dir.exists();
    let major = if exists { Some(major_of(dir)?) } else { None };
    let binaries = Binaries::find(config.bin_dir.as_deref(), major)?;
    if exists {
        write_settings(config, user, dir)?;
    } else {
        make(config, user, password, &binaries)?;
    }
    make_socket_dir(&config.socket_dir, user)?;
    Ok(binaries)
}

/// The major version that made a data directory.
pub(super) fn major_of(dir: &Path) -> Result<u32> {
    let file = dir.join("PG_VERSION");
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!("{} is no data directory of PostgreSQL: PG_VERSION cannot be read", dir.display())
    })?;
    text.trim().parse().with_context(|| format!("{} says {:?}", file.display(), text.trim()))
}

/// A command as the server's user, with an environment that does not depend on who called.
pub(super) fn command(program: &Path, user: Option<&OsUser>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").env_clear().stdin(Stdio::null());
    for name in ["PATH", "TZ", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("LC_ALL", "C.UTF-8");
    if let Some(user) = user {
        user.apply(&mut command);
    }
    command
}

/// Runs `initdb` in a directory of another name and renames that when it is complete.
fn make(
    config: &Config,
    user: Option<&OsUser>,
    password: Option<&str>,
    binaries: &Binaries,
) -> Result<()> {
    let password = password.context("a new server needs postgres.password_file")?;
    let partial = sibling(&config.data_dir, "partial");
    let password_file = sibling(&config.data_dir, "password");
    write_atomic(&password_file, password.as_bytes(), 0o600)?;
    if let Some(user) = user {
        user.own(&password_file)?;
    }
    let made = initdb(config, user, binaries, &partial, &password_file);
    let removed = std::fs::remove_file(&password_file);
    made?;
    removed.with_context(|| format!("cannot remove {}", password_file.display()))?;
    write_settings(config, user, &partial)?;
    std::fs::rename(&partial, &config.data_dir).with_context(|| {
        format!("cannot rename {} to {}", partial.display(), config.data_dir.display())
    })
}

fn initdb(
    config: &Config,
    user: Option<&OsUser>,
    binaries: &Binaries,
    dir: &Path,
    password_file: &Path,
) -> Result<()> {
    let mut refused = String::new();
    // A system without the locale C.UTF-8 has C; both sort by code point.
    for locale in ["C.UTF-8", "C"] {
        if dir.exists() {
            std::fs::remove_dir_all(dir)
                .with_context(|| format!("cannot remove the unfinished {}", dir.display()))?;
        }
        std::fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
        if let Some(user) = user {
            user.own(dir)?;
        }
        let output = command(&binaries.program("initdb"), user)
            .arg("--pgdata")
            .arg(dir)
            .arg("--username")
            .arg(&config.agent_role)
            .arg("--pwfile")
            .arg(password_file)
            .args([
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--data-checksums",
                "--no-instructions",
            ])
            .arg(format!("--locale={locale}"))
            .output()
            .context("cannot run initdb")?;
        if output.status.success() {
            return Ok(());
        }
        refused = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        if !refused.contains("locale") {
            break;
        }
    }
    bail!("initdb of {} failed: {refused}", config.data_dir.display())
}

/// Writes the settings and the access rules, and has `postgresql.conf` include them.
fn write_settings(config: &Config, user: Option<&OsUser>, dir: &Path) -> Result<()> {
    for (name, text) in [(CONF_FILE, conf(config)), (HBA_FILE, hba(config))] {
        let file = dir.join(name);
        write_atomic(&file, text.as_bytes(), 0o600)?;
        if let Some(user) = user {
            user.own(&file)?;
        }
    }
    let main = dir.join("postgresql.conf");
    let text = std::fs::read_to_string(&main)
        .with_context(|| format!("cannot read {}", main.display()))?;
    let include = format!("include '{CONF_FILE}'");
    if !text.lines().any(|line| line.trim() == include) {
        let text = format!("{}\n\n{include}\n", text.trim_end());
        write_atomic(&main, text.as_bytes(), 0o600)?;
        if let Some(user) = user {
            user.own(&main)?;
        }
    }
    Ok(())
}

/// The settings: defaults first, then the user's, then those on which replication rests.
fn conf(config: &Config) -> String {
    let number = |value: u64| value.to_string();
    let defaults = [
        ("max_connections", number(u64::from(config.max_connections))),
        ("shared_buffers", format!("{}MB", config.shared_buffers_mb)),
        ("max_replication_slots", number(96)),
        ("max_wal_senders", number(32)),
        ("max_prepared_transactions", number(64)),
        ("wal_sender_timeout", "60s".to_owned()),
        ("log_line_prefix", "%m [%p] %q%u@%d %a ".to_owned()),
        ("log_checkpoints", "off".to_owned()),
    ];
    let fixed = [
        ("wal_level", "logical".to_owned()),
        ("track_commit_timestamp", "on".to_owned()),
        ("password_encryption", "scram-sha-256".to_owned()),
        ("listen_addresses", config.listen.clone()),
        ("port", config.port.to_string()),
        ("unix_socket_directories", config.socket_dir.display().to_string()),
        ("unix_socket_permissions", "0700".to_owned()),
        ("hba_file", config.data_dir.join(HBA_FILE).display().to_string()),
        ("cluster_name", config.cluster_name.clone()),
        ("log_destination", "stderr".to_owned()),
        ("logging_collector", "off".to_owned()),
    ];
    let mut text = "# Written by the SynapseDB agent at every start: set postgres.settings in agent.toml instead.\n"
        .to_owned();
    let given = config.settings.iter().map(|(name, value)| (name.as_str(), value.clone()));
    for (name, value) in defaults.into_iter().chain(given).chain(fixed) {
        let value = value.replace('\\', "\\\\").replace('\'', "''");
        let _ = writeln!(text, "{name} = '{value}'");
    }
    text
}

/// Who may connect: the agent's superuser from this machine only, everybody else with SCRAM.
fn hba(config: &Config) -> String {
    let mut text =
        "# Written by the SynapseDB agent at every start: set postgres.hba in agent.toml.\n"
            .to_owned();
    let agent = format!("\"{}\"", config.agent_role);
    let mut rule = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    for databases in ["all", "replication"] {
        rule(format!("local {databases} {agent} scram-sha-256"));
        rule(format!("host {databases} {agent} 127.0.0.1/32 scram-sha-256"));
        rule(format!("host {databases} {agent} ::1/128 scram-sha-256"));
    }
    rule(format!("host all {agent} all reject"));
    rule(format!("host replication {agent} all reject"));
    for line in &config.hba {
        rule(line.replace('\n', " "));
    }
    rule("local all all scram-sha-256".to_owned());
    rule("host all all all scram-sha-256".to_owned());
    text
}

/// The directory of the unix socket, which only the server's user and root may enter.
fn make_socket_dir(dir: &Path, user: Option<&OsUser>) -> Result<()> {
    match std::fs::create_dir(dir) {
        Ok(()) => {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
            if let Some(user) = user {
                user.own(dir)?;
            }
            return Ok(());
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(|| format!("cannot make {}", dir.display())),
    }
    // Under /tmp anybody may have made it first, to listen in on the agent.
    let metadata =
        dir.symlink_metadata().with_context(|| format!("cannot read {}", dir.display()))?;
    let own = user.map_or_else(|| rustix::process::geteuid().as_raw(), |user| user.uid);
    if !metadata.is_dir() || metadata.uid() != own || metadata.mode() & 0o077 != 0 {
        bail!(
            "{} is not a directory that only the server's user may enter; remove it, or set postgres.socket_dir",
            dir.display()
        );
    }
    Ok(())
}

fn sibling(dir: &Path, extension: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(extension);
    dir.with_file_name(name)
}
