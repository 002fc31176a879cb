//! `synapsedb node part`: a node leaves for good; what it has committed is received and applied by all others first.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::state::MemberStatus;

use super::Patience;
use super::agents::Agents;
use crate::cli::progress::Progress;
use crate::cli::{Data, say};
use crate::layout;
use crate::raft::api::ChangeBody;

/// The arguments of `node part`.
#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    /// The node
    node: u16,
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    patience: Patience,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let cluster = arguments.data.cluster()?;
    let agents = Agents::new(&cluster);
    let state = agents.state()?;
    let id = synapsedb_core::ids::NodeId::new(arguments.node)
        .with_context(|| format!("{} is no number of a node", arguments.node))?;
    let Some(known) = state.members.get(&id) else {
        bail!("node {id} is no member; nothing was changed");
    };
    let mut progress = Progress::start(&format!("Taking node {id} out"));
    if known.status != MemberStatus::Removed {
        let copying = known.status == MemberStatus::Joining;
        let done = (|| {
            agents.change(&ChangeBody::Dismiss { node: id })?;
            if copying {
                return Ok(());
            }
            // What it commits from now on nobody waits for: the router does not lead to it any more.
            let through = agents.published(id).unwrap_or(Lsn::ZERO);
            let what = format!("Handing round what node {id} has committed");
            agents.wait(&mut progress, &what, arguments.patience.get(), |agents| {
                agents.equal(id, through).map(drop)
            })
        })();
        done.with_context(|| {
            format!(
                "node {id} is still there, and serves nobody; `synapsedb node part {id}` goes on"
            )
        })?;
        agents.change(&ChangeBody::Remove { node: id })?;
    }
    let mut smaller = cluster.clone();
    smaller.nodes.retain(|node| node.id != id);
    layout::keep(&smaller)?;
    progress.clear();
    say(format_args!(
        "Node {id} is no member any more, and its number is not given again. Its agent stops; what is left in {} can \
         be removed.",
        cluster.node_dir(id).display()
    ));
    Ok(ExitCode::SUCCESS)
}
