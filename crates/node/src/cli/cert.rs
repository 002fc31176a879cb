//! `synapsedb cert`: the authority of a cluster and the certificates of its nodes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use synapsedb_core::ids::NodeId;
use uuid::Uuid;

use crate::tls::authority;

/// What to make.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Makes the authority of a cluster
    Ca {
        /// The directory that gets ca.crt and ca.key
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// The cluster's name
        #[arg(long, default_value = "synapsedb")]
        name: String,
        /// The cluster's UUID [default: a new one, which is printed]
        #[arg(long, value_name = "UUID")]
        cluster_id: Option<Uuid>,
    },
    /// Makes the certificate of a node
    Issue {
        /// The directory of the authority
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// The directory that gets node.crt and node.key
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// The cluster's UUID
        #[arg(long, value_name = "UUID")]
        cluster_id: Uuid,
        /// The node, 1 to 16
        #[arg(long, value_name = "N")]
        node: NodeId,
        /// A name or address under which clients reach the node; may be repeated
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        /// How long the certificate holds, in days
        #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Ca { out, name, cluster_id } => {
            let cluster_id = cluster_id.unwrap_or_else(Uuid::new_v4);
            authority::create_ca(out, name, cluster_id).context("cannot make the authority")?;
            println!("{}: the authority of cluster {cluster_id}", out.display());
        }
        Command::Issue { ca, out, cluster_id, node, hosts, days } => {
            authority::issue(ca, out, *cluster_id, *node, hosts, *days)
                .with_context(|| format!("cannot make the certificate of node {node}"))?;
            println!("{}: the certificate of node {node}, for {days} days", out.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
