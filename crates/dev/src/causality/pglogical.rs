//! The same observers on three servers with pglogical in all directions, whose apply workers are paused one after the
//! other: they must report effects that are seen before their causes, or they would not find any.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::Rng as _;
use rustix::process::Signal;
use tokio::time::Instant;

use super::{Observers, Report, TABLES, Workload, Writers, progress_rows};
use crate::bench::pglogical;
use crate::client::Server;
use crate::eventually::try_eventually;
use crate::postgres::Postgres;
use crate::process;

/// The settings of the servers.
const SETTINGS: &str = "fsync = off\ntrack_commit_timestamp = on\n\
    pglogical.conflict_resolution = 'last_update_wins'";
/// The processes that apply, one for each subscription.
const APPLIERS: &str = "select pid from pg_stat_activity where backend_type like 'pglogical apply%' \
    or application_name like 'pglogical apply%'";
/// How long the set-up may take.
const SETUP_TIMEOUT: Duration = Duration::from_secs(60);
/// For how long one apply worker stands still.
const PAUSE_MS: std::ops::Range<u64> = 200..800;

/// Runs writers and observers on a mesh of three for `duration` and tells what was seen. Only the rows without unique
/// values are written: pglogical stops at the first of their clashes.
///
/// # Errors
/// pglogical is not installed, or the mesh cannot be made.
pub async fn run(duration: Duration, workload: &Workload) -> Result<Report> {
    let workload =
        Workload { uniques: false, deletes: false, policies: false, steps: 1, ..*workload };
    let programs = pglogical::programs(15)?;
    let mut mesh = Vec::new();
    for name in ["first", "second", "third"] {
        mesh.push(pglogical::server(name, Path::new(&programs), SETTINGS).await?);
    }
    let servers: Vec<Server> = mesh.iter().map(|one| one.server().clone()).collect();
    connect(&servers, &workload).await?;
    let (writers, observers) = (Writers::start(&servers, &workload), Observers::start(&servers));
    let mut report = Report::default();
    let end = Instant::now() + duration;
    while Instant::now() < end {
        let turn = report.faults % servers.len();
        pause_one(&servers[turn]).await?;
        report.faults += 1;
    }
    writers.finish(&mut report).await;
    observers.finish(&mut report).await;
    drop::<Vec<Postgres>>(mesh);
    Ok(report)
}

/// Lets one apply worker of a server stand still for a while.
async fn pause_one(server: &Server) -> Result<()> {
    let appliers = server.try_rows(APPLIERS).await?;
    let (which, pause_ms) = {
        let mut rng = rand::rng();
        (rng.random_range(0..appliers.len().max(1)), rng.random_range(PAUSE_MS))
    };
    let pid: Option<u32> = appliers.get(which).map(|pid| pid.parse()).transpose()?;
    if let Some(pid) = pid {
        process::send(pid, Signal::STOP);
    }
    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    if let Some(pid) = pid {
        process::send(pid, Signal::CONT);
    }
    Ok(())
}

async fn connect(servers: &[Server], workload: &Workload) -> Result<()> {
    for server in servers {
        server.try_rows("create extension pglogical").await?;
        let (name, dsn) = (&server.name, pglogical::dsn(server));
        server.try_rows(&format!("select pglogical.create_node('{name}', '{dsn}')")).await?;
        server.try_rows(TABLES).await?;
        server.try_rows(&progress_rows(servers.len(), workload)).await?;
        let publish = "select pglogical.replication_set_add_all_tables('default', array['public'])";
        server.try_rows(publish).await?;
    }
    for to in servers {
        for from in servers.iter().filter(|from| from.port != to.port) {
            let (name, dsn) = (format!("{}_{}", from.name, to.name), pglogical::dsn(from));
            let subscribe = format!(
                "select pglogical.create_subscription('{name}', '{dsn}', synchronize_structure := false,
                 synchronize_data := false, forward_origins := '{{}}')"
            );
            to.try_rows(&subscribe).await?;
        }
    }
    let status = "select distinct status from pglogical.show_subscription_status()";
    for server in servers {
        try_eventually(SETUP_TIMEOUT, async || server.shows(status, &["replicating"]).await)
            .await
            .map_err(anyhow::Error::msg)
            .context("the subscriptions do not replicate")?;
    }
    Ok(())
}
