//! `synapsedb down`: stops the cluster on this machine, and with `--destroy` removes it.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use synapsedb_core::ids::NodeId;

use super::progress::Progress;
use super::{Data, sample};
use crate::layout::{self, CLUSTER_FILE, Cluster};
use crate::supervisor::{self, AGENT_STOP, SERVER_STOP};

/// The arguments of `down`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    data: Data,
    /// Removes the cluster's directory: all its data, for ever
    #[arg(long)]
    destroy: bool,
    /// Does not ask
    #[arg(long, requires = "destroy")]
    yes: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let data = arguments.data.path()?;
    let Some(cluster) = layout::find(&data)? else {
        super::say(format_args!("There is no cluster in {}.", data.display()));
        return Ok(ExitCode::SUCCESS);
    };
    if arguments.destroy && !arguments.yes {
        confirm(&data)?;
    }
    let stopped = stop(&cluster)?;
    super::say(format_args!(
        "{}",
        if stopped { "The cluster is stopped." } else { "The cluster was not running." }
    ));
    if arguments.destroy {
        destroy(&cluster)?;
        super::say(format_args!("Removed {}.", data.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn confirm(data: &Path) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "--destroy removes all data in {}; say --yes as well, nothing was changed",
            data.display()
        );
    }
    print!("Remove the cluster in {} with all its data? Type yes: ", data.display());
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() != "yes" {
        bail!("nothing was changed");
    }
    Ok(())
}

/// Stops supervisor, agents and servers, also those that a killed one left; tells whether there were any.
fn stop(cluster: &Cluster) -> Result<bool> {
    let mut stopped = false;
    let mut progress = Progress::start("Stopping the cluster");
    if let Some(process) = supervisor::running(cluster) {
        stopped = true;
        process.signal(Signal::TERM);
        if !process.wait_gone(AGENT_STOP + SERVER_STOP) {
            bail!("the supervisor (pid {}) does not stop; nothing else was changed", process.pid());
        }
    }
    let left: Vec<_> = cluster
        .nodes
        .iter()
        .filter_map(|node| Some((node.id, supervisor::running_agent(cluster, node)?)))
        .collect();
    for (_, process) in &left {
        process.signal(Signal::TERM);
    }
    for (id, process) in &left {
        stopped = true;
        progress.tell(&format!("Stopping node {id}"));
        if !process.wait_gone(AGENT_STOP) {
            process.signal(Signal::KILL);
            process.wait_gone(AGENT_STOP);
        }
    }
    for node in &cluster.nodes {
        let pgdata = cluster.node_dir(node.id).join("pgdata");
        stopped |= crate::postgres::stop_leftover(&pgdata, SERVER_STOP)?.is_some();
    }
    progress.clear();
    Ok(stopped)
}

/// Removes what `init` made, and nothing else; `cluster.json` last, so that an interruption can be continued.
fn destroy(cluster: &Cluster) -> Result<()> {
    let mut names = vec!["ca".to_owned(), "ca.partial".to_owned()];
    // Also of nodes that have left.
    for number in 1..=NodeId::MAX {
        names.push(format!("node-{number}"));
        names.push(format!("node-{number}.partial"));
    }
    for node in &cluster.nodes {
        if !node.socket_dir.starts_with(&cluster.data) {
            remove(&node.socket_dir)?;
        }
    }
    names.extend(
        ["supervisor.pid", "supervisor.log", "cluster.partial", sample::MARKER, CLUSTER_FILE]
            .map(str::to_owned),
    );
    for name in names {
        remove(&cluster.data.join(name))?;
    }
    // Something that is not ours keeps the directory.
    let _ = std::fs::remove_dir(&cluster.data);
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.with_context(|| {
        format!("cannot remove {}; run `synapsedb down --destroy` again", path.display())
    })
}
