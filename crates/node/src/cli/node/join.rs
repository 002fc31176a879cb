//! `synapsedb node join`: another node for the running cluster of this machine.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use synapsedb_core::ids::NodeId;
use synapsedb_core::state::{ClusterState, MemberStatus};

use super::Patience;
use super::agents::{Agents, choose_source};
use crate::cli::progress::Progress;
use crate::cli::{Data, runtime, say};
use crate::config::AgentConfig;
use crate::layout::{self, Cluster, Identity, Node};
use crate::pid_file::PidFile;
use crate::postgres::copy::Original;
use crate::raft::api::ChangeBody;
use crate::replication::seed::Copied;
use crate::seed::{self, EarlierLives};
use crate::supervisor;

/// The arguments of `node join`.
#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    data: Data,
    /// The node whose server is copied [default: the first that is ready]
    #[arg(long, value_name = "N")]
    source: Option<u16>,
    /// Joins the cluster of another machine (not implemented)
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    #[command(flatten)]
    patience: Patience,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.token.is_some() {
        bail!(
            "joining a cluster of another machine by a token is not implemented; nothing was changed. Without --token \
             a node is added to the cluster of this machine"
        );
    }
    let cluster = arguments.data.cluster()?;
    let agents = Agents::new(&cluster);
    let state = agents.state()?;
    let id = number(&state)?;
    let source = choose_source(&cluster, &state, arguments.source, id)?;
    let grown = layout::prepare_node(&cluster, id, source.id)?;
    let node = grown.node(id.get())?;
    let mut progress = Progress::start(&format!("Adding node {id}"));
    let identity = node.first_identity(&grown);
    let done = (|| {
        agents.change(&ChangeBody::Admit {
            node: id,
            uuid: identity.uuid.to_string(),
            incarnation: identity.incarnation,
            addresses: node.addresses(),
        })?;
        // A node that is catching up has its data already.
        if supervisor::running_agent(&grown, node).is_none() {
            // Nobody starts the agent on half a copy.
            let _lock = PidFile::acquire(&grown.node_dir(id).join("agent.pid"))?;
            let (patience, none) = (&arguments.patience, EarlierLives::default());
            copy(&agents, &grown, node, &identity, source, none, patience, &mut progress)?;
        }
        layout::keep(&grown)?;
        await_active(&grown, node, &arguments.patience, &mut progress)
    })();
    progress.clear();
    done.with_context(|| {
        format!(
            "node {id} has not joined; the others go on and keep for it what it misses. `synapsedb node join` tries \
             again, `synapsedb node part {id}` gives it up"
        )
    })
}

/// The number of the node: that of a join that was not finished, else the first that was never used.
fn number(state: &ClusterState) -> Result<NodeId> {
    let unfinished = |(node, member): (&NodeId, &synapsedb_core::state::Member)| {
        let first = member.incarnation == synapsedb_core::ids::Incarnation::FIRST;
        (member.status == MemberStatus::Joining && first).then_some(*node)
    };
    if let Some(node) = state.members.iter().find_map(unfinished) {
        return Ok(node);
    }
    let last = state.members.keys().last().map_or(0, |node| node.get());
    NodeId::new(last + 1).with_context(|| {
        format!(
            "a cluster has at most {} nodes in its life, and {last} were made; nothing was changed",
            NodeId::MAX
        )
    })
}

/// Copies the source into the node's directory, once everybody keeps for it what it will miss. Answers the sequences of
/// which an earlier life may have given values that come again.
#[allow(clippy::too_many_arguments, reason = "join and reseed say here all that differs")]
pub(super) fn copy(
    agents: &Agents<'_>,
    cluster: &Cluster,
    node: &Node,
    identity: &Identity,
    source: &Node,
    earlier: EarlierLives,
    patience: &Patience,
    progress: &mut Progress,
) -> Result<Vec<String>> {
    let id = node.id;
    agents.wait(progress, "Telling all members", patience.get(), |agents| {
        agents.all_know(id, MemberStatus::Joining, id)
    })?;
    let toml = cluster.node_dir(id).join("agent.toml");
    let config = load(&toml)?;
    let state = agents.state()?;
    let known = state.active(source.id).context("the node to be copied is not active any more")?;
    let password_file = cluster.node_dir(source.id).join("secrets/agent.password");
    let password = std::fs::read_to_string(&password_file)
        .with_context(|| format!("cannot read {}", password_file.display()))?;
    let original = Original {
        port: source.ports.postgres,
        role: config.postgres.agent_role.clone(),
        password: password.trim_end().to_owned(),
        major: known.postgres_version / 10_000,
    };
    let copied = Copied { node: source.id, incarnation: known.incarnation };
    let spools = load(&cluster.node_dir(source.id).join("agent.toml"))?.replication.spool_dir;
    let patience = patience.get();
    let departed =
        state.members.iter().filter(|(_, member)| member.status == MemberStatus::Removed);
    let plan = seed::Plan {
        config: &config,
        identity,
        original,
        copied,
        spools,
        password_file,
        earlier,
        departed: departed.map(|(node, _)| *node).collect(),
        await_spooled: &|lsn| agents.await_spooled(source.id, lsn, patience),
    };
    runtime()?.block_on(seed::make(&plan, |text| progress.tell(text)))
}

pub(super) fn load(toml: &Path) -> Result<AgentConfig> {
    AgentConfig::load(toml).map_err(|problems| anyhow::anyhow!("{problems}"))
}

/// Waits until the node has caught up and takes part; where nobody runs the agents, says how to.
pub(super) fn await_active(
    cluster: &Cluster,
    node: &Node,
    patience: &Patience,
    progress: &mut Progress,
) -> Result<ExitCode> {
    let (id, agents) = (node.id, Agents::new(cluster));
    if supervisor::running(cluster).is_none() {
        progress.clear();
        say(format_args!(
            "Node {id} has its data. Start its agent, and it catches up: synapsedb agent --config {}",
            cluster.node_dir(id).join("agent.toml").display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    agents.wait(progress, "Catching up", patience.get(), |agents| {
        let state = agents.state().map_err(|error| error.to_string())?;
        if state.active(id).is_some() {
            return Ok(());
        }
        match crate::cli::status::get(node.ports.raft, "/ready") {
            Ok((_, body)) => Err(crate::cli::status::reason(&body)),
            Err(_) => Err(format!("the agent of node {id} does not answer yet")),
        }
    })?;
    progress.clear();
    say(format_args!(
        "Node {id} takes part: PostgreSQL on port {}, HTTP on {}.",
        node.ports.postgres, node.ports.raft
    ));
    Ok(ExitCode::SUCCESS)
}
