//! `synapsedb node reseed`: a node's data is thrown away, and another life of it begins with a copy.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use synapsedb_core::ids::Incarnation;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::state::ClusterState;

use super::Patience;
use super::agents::{Agents, choose_source};
use super::join::{await_active, copy, load};
use crate::cli::progress::Progress;
use crate::cli::{Data, FAILURE, say};
use crate::layout::{self, Cluster, Identity, Node};
use crate::pid_file::PidFile;
use crate::raft::api::ChangeBody;
use crate::seed::EarlierLives;
use crate::supervisor::{self, AGENT_STOP, SERVER_STOP};
use crate::vote::{self, Vote};

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
    let mut progress = Progress::start(&format!("Re-seeding node {id}"));
    let mut place = Place { cluster: &cluster, node, lock: None, vote: None };
    let state = match agents.state() {
        // One that was stopped, by the attempt before this one too, may be the one whose vote is missing.
        Err(_) if supervisor::running_agent(&cluster, node).is_none() => {
            place.take(&mut progress)?;
            place.stand_in(&agents, &mut progress)?
        }
        state => state?,
    };
    let known = state.present().find(|(member, _)| *member == id).map(|(_, member)| member.clone());
    let known = known.with_context(|| format!("node {id} is no member; nothing was changed"))?;
    let source = choose_source(&cluster, &state, arguments.source, id)?;
    progress.clear();
    if !arguments.yes && !confirm(&cluster, node, source)? {
        return Ok(ExitCode::from(FAILURE));
    }
    place.take(&mut progress)?;
    if agents.few_without(id, &state) {
        place.stand_in(&agents, &mut progress)?;
    }
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
    let config = |node: &Node| load(&cluster.node_dir(node.id).join("agent.toml"));
    let earlier = EarlierLives::of(last, &config(source)?, &config(node)?)?;
    let done = (|| {
        agents.change(&ChangeBody::Admit {
            node: id,
            uuid: identity.uuid.to_string(),
            incarnation: identity.incarnation,
            addresses: node.addresses(),
        })?;
        let patience = &arguments.patience;
        let short =
            copy(&agents, &cluster, node, &identity, source, earlier, patience, &mut progress)?;
        layout::put_identity(&cluster, &identity)?;
        place.leave();
        warn_of(&short, node, &mut progress);
        await_active(&cluster, node, patience, &mut progress)
    })();
    progress.clear();
    done.with_context(|| {
        format!(
            "node {id} has no new data; the others go on. `synapsedb node reseed {id}` tries again"
        )
    })
}

/// Sequences of few values cannot be moved beyond all that the life that has ended may have given.
fn warn_of(short: &[String], node: &Node, progress: &mut Progress) {
    if !short.is_empty() {
        progress.clear();
        say(format_args!(
            "Values that node {} gave from these sequences may come again, since its old server could not be asked and \
             they are too short to skip a range: {}. Move them with setval() where that matters",
            node.id,
            short.join(", ")
        ));
    }
}

/// How long the agents may take to find a leader again.
const VOTE_PATIENCE: Duration = Duration::from_secs(30);

/// The place of a node whose agent is stopped.
struct Place<'c> {
    cluster: &'c Cluster,
    node: &'c Node,
    lock: Option<PidFile>,
    vote: Option<Vote>,
}

impl Place<'_> {
    /// Stops the agent and its server, and keeps others from starting them.
    fn take(&mut self, progress: &mut Progress) -> Result<()> {
        if self.lock.is_none() {
            progress.tell(&format!("Stopping node {}", self.node.id));
            self.lock = Some(stop(self.cluster, self.node)?);
        }
        Ok(())
    }

    /// Votes in place of the stopped agent, without which the others are no majority. Answers what they agree on.
    fn stand_in(&mut self, agents: &Agents<'_>, progress: &mut Progress) -> Result<ClusterState> {
        let id = self.node.id;
        if self.vote.is_none() {
            let config = load(&self.cluster.node_dir(id).join("agent.toml"))?;
            self.vote = Some(vote::start(config).with_context(|| {
                format!(
                    "the others are no majority without node {id}, and its vote cannot be cast for it; its data is \
                     as it was"
                )
            })?);
        }
        agents.wait(
            progress,
            "Agreeing with the vote of the stopped node",
            VOTE_PATIENCE,
            |agents| agents.state().map(drop).map_err(|error| format!("{error:#}")),
        )?;
        agents.state()
    }

    /// Lets the agent be started.
    fn leave(&mut self) {
        self.vote = None;
        self.lock = None;
    }
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
