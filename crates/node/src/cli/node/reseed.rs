//! `synapsedb node reseed`: a node's data is thrown away, and another life of it begins with a copy.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use synapsedb_core::ids::Incarnation;
use synapsedb_core::lsn::Lsn;

use super::Patience;
use super::agents::{Agents, choose_source};
use super::join::{await_active, copy};
use crate::cli::progress::Progress;
use crate::cli::{Data, FAILURE};
use crate::layout::{self, Cluster, Identity, Node};
use crate::pid_file::PidFile;
use crate::raft::api::ChangeBody;
use crate::supervisor::{self, AGENT_STOP, SERVER_STOP};

/// The arguments of `node reseed`.
#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    /// The node
    node: u16,
    #[command(flatten)]
    data: Data,
    /// The node whose server is copied [default: the first that is ready]
    #[arg(long, value_name = "N")]
    source: Option<u16>,
    /// Does not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    patience: Patience,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let cluster = arguments.data.cluster()?;
    let (agents, node) = (Agents::new(&cluster), cluster.node(arguments.node)?);
    let id = node.id;
    let state = agents.state()?;
    let known = state.present().find(|(member, _)| *member == id).map(|(_, member)| member.clone());
    let known = known.with_context(|| format!("node {id} is no member; nothing was changed"))?;
    let source = choose_source(&cluster, &state, arguments.source, id)?;
    if !arguments.yes && !confirm(&cluster, node, source)? {
        return Ok(ExitCode::from(FAILURE));
    }
    let mut progress = Progress::start(&format!("Stopping node {id}"));
    let lock = stop(&cluster, node)?;
    // Whatever is known of the life that ends must be known to all before another begins.
    let mut last = Lsn::ZERO;
    let patience = arguments.patience.get();
    let what = format!("Handing round what node {id} has committed");
    agents.wait(&mut progress, &what, patience, |agents| {
        last = agents.equal(id, Lsn::ZERO)?;
        Ok(())
    })?;
    let identity = Identity {
        incarnation: Incarnation(known.incarnation.0 + 1),
        ..layout::identity(&cluster, id)?
    };
    let done = (|| {
        agents.change(&ChangeBody::Admit {
            node: id,
            uuid: identity.uuid.to_string(),
            incarnation: identity.incarnation,
            addresses: node.addresses(),
        })?;
        copy_password(&cluster, node, source)?;
        copy(&agents, &cluster, node, &identity, source, last, &arguments.patience, &mut progress)?;
        layout::put_identity(&cluster, &identity)?;
        drop(lock);
        await_active(&cluster, node, &arguments.patience, &mut progress)
    })();
    progress.clear();
    done.with_context(|| {
        format!(
            "node {id} has no new data; the others go on. `synapsedb node reseed {id}` tries again"
        )
    })
}

/// The copy has the role of the agent as the copied node has it.
fn copy_password(cluster: &Cluster, node: &Node, source: &Node) -> Result<()> {
    let file = |node: &Node| cluster.node_dir(node.id).join("secrets/agent.password");
    let password = std::fs::read(file(source))
        .with_context(|| format!("cannot read {}", file(source).display()))?;
    layout::write_atomic(&file(node), &password, 0o600)
}

/// Stops the agent and its server, and holds the agent's place, so that no supervisor starts it meanwhile.
fn stop(cluster: &Cluster, node: &Node) -> Result<PidFile> {
    if let Some(process) = supervisor::running_agent(cluster, node) {
        process.signal(Signal::TERM);
        if !process.wait_gone(AGENT_STOP) {
            bail!(
                "the agent of node {} (pid {}) does not stop; nothing was changed",
                node.id,
                process.pid()
            );
        }
    }
    let dir = cluster.node_dir(node.id);
    let lock = PidFile::acquire(&dir.join("agent.pid"))?;
    crate::postgres::stop_leftover(&dir.join("pgdata"), SERVER_STOP)?;
    Ok(lock)
}

fn confirm(cluster: &Cluster, node: &Node, source: &Node) -> Result<bool> {
    let dir = cluster.node_dir(node.id);
    if !std::io::stdin().is_terminal() {
        bail!(
            "the data of node {} in {} is thrown away, and what no other node has received of it is lost; say --yes, \
             nothing was changed",
            node.id,
            dir.display()
        );
    }
    print!(
        "Throw away the data of node {} in {}, with what no other node has received of it, and copy node {}? \
         Type yes: ",
        node.id,
        dir.display(),
        source.id
    );
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}
