//! `synapsedb node …`: lists the members of a running cluster, adds one, gives one new data, takes one out.

mod agents;
mod join;
mod part;
mod reseed;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use synapsedb_core::state::MemberStatus;

use super::Data;
use agents::Agents;

/// The verbs.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Lists the members as the cluster has agreed
    Ls(Data),
    /// Adds a node to the running cluster of this machine: a copy of another node, while all go on
    Join(join::Arguments),
    /// Throws a node's data away and gives it a copy of another node's
    Reseed(reseed::Arguments),
    /// Takes a node out of the cluster for good
    Part(part::Arguments),
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Ls(data) => ls(data),
        Command::Join(arguments) => join::run(arguments),
        Command::Reseed(arguments) => reseed::run(arguments),
        Command::Part(arguments) => part::run(arguments),
    }
}

/// How long the others may take to do their part.
#[derive(clap::Args)]
struct Patience {
    /// How long the whole may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

impl Patience {
    fn get(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

fn ls(data: &Data) -> Result<ExitCode> {
    let cluster = data.cluster()?;
    let state = Agents::new(&cluster).state()?;
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["NODE", "STATUS", "INCARNATION", "PEERS", "POSTGRES", "HTTP", "VERSION"]);
    for (node, member) in &state.members {
        let status = match member.status {
            MemberStatus::Joining => "joining",
            MemberStatus::Active if state.primary == Some(*node) => "active, primary",
            MemberStatus::Active => "active",
            MemberStatus::Leaving => "leaving",
            MemberStatus::Removed => "removed",
        };
        table.add_row([
            node.to_string(),
            status.to_owned(),
            member.incarnation.to_string(),
            member.addresses.peers.clone(),
            member.addresses.postgres.clone(),
            member.addresses.http.clone(),
            (member.postgres_version / 10_000).to_string(),
        ]);
    }
    super::say(table);
    Ok(ExitCode::SUCCESS)
}
