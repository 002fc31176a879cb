//! Servers with pglogical, to be compared with: only what they need to be connected.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::client::Server;
use crate::postgres::{self, Postgres};

/// The password of the servers that pglogical connects.
const PASSWORD: &str = "bench";

/// The programs of PostgreSQL `major`, if pglogical is installed for it.
///
/// # Errors
/// It is not, with what to do.
pub(crate) fn programs(major: u16) -> Result<PathBuf> {
    let programs = postgres::programs(Some(major))?;
    let library = programs.with_file_name("lib").join("pglogical.so");
    if !library.is_file() {
        bail!(
            "pglogical is not installed; install it with `apt-get install postgresql-{major}-pglogical`, \
             or leave it out with --without-pglogical"
        );
    }
    Ok(programs)
}

/// How pglogical reaches a server.
pub(crate) fn dsn(server: &Server) -> String {
    let (port, user, database) = (server.port, &server.user, &server.database);
    format!("host=127.0.0.1 port={port} user={user} dbname={database} password={PASSWORD}")
}

/// Starts a server in which pglogical can be made.
///
/// # Errors
/// It does not start.
pub(crate) async fn server(name: &str, programs: &Path, settings: &str) -> Result<Postgres> {
    let settings = format!(
        "{settings}\nwal_level = logical\nshared_preload_libraries = 'pglogical'\nmax_worker_processes = 20\n\
         max_replication_slots = 20\nmax_wal_senders = 20"
    );
    let started = Postgres::start(name, programs, &settings, PASSWORD).await?;
    allow_output_plugin(started.server()).await?;
    Ok(started)
}

/// Newer minor releases list the output plugins that may be used; pglogical's is not among them.
async fn allow_output_plugin(server: &Server) -> Result<()> {
    let name = "output_plugin_libraries";
    let known = server.try_rows(&format!("select current_setting('{name}', true)")).await?.concat();
    let settings = format!("select count(*) from pg_settings where name = '{name}'");
    if server.try_rows(&settings).await?.concat() == "0" {
        return Ok(());
    }
    let list = [known.as_str(), "pglogical_output"].map(str::trim).join(", ");
    let list = list.trim_start_matches(", ");
    server.try_rows(&format!("alter system set {name} = {list}")).await?;
    server.try_rows("select pg_reload_conf()").await?;
    Ok(())
}
