//! `synapsedb init`: the directory of a cluster, and nothing started.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::Data;
use crate::layout::{self, Cluster, Options};

/// The arguments of `init`; `up` has them too.
#[derive(clap::Args)]
pub(super) struct Shape {
    #[command(flatten)]
    pub(super) data: Data,
    /// How many nodes a new cluster gets, 1 to 16 [default: 3]
    #[arg(long, value_name = "N")]
    nodes: Option<u16>,
    /// Counts the ports of a new cluster from here instead of taking the well-known ones
    #[arg(long, value_name = "PORT")]
    port_base: Option<u16>,
    /// Gives a new cluster an endpoint on this port that takes reads and writes and splits them
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..))]
    split_port: Option<u16>,
    /// Where PostgreSQL's programs are [default: the newest supported ones found]
    #[arg(long, value_name = "DIR")]
    pub(super) bin_dir: Option<PathBuf>,
}

/// The arguments of `init`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    shape: Shape,
    /// Prints the layout as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (cluster, _) = arguments.shape.find_or_make()?;
    if arguments.json {
        super::say(serde_json::to_string_pretty(&cluster.to_json())?);
    } else {
        super::say(format_args!(
            "{}: {} nodes, cluster {}",
            cluster.data.display(),
            cluster.nodes.len(),
            cluster.cluster_id
        ));
    }
    Ok(ExitCode::SUCCESS)
}

impl Shape {
    /// The cluster in the directory, or a new one; tells whether it was made now.
    pub(super) fn find_or_make(&self) -> Result<(Cluster, bool)> {
        let data = self.data.path()?;
        let found = layout::find(&data)?;
        let known = found.as_ref();
        let bin_dir = self.bin_dir.as_deref().map(std::path::absolute).transpose()?;
        let options = Options {
            data,
            nodes: self
                .nodes
                .unwrap_or_else(|| known.map_or(3, |c| c.nodes.len().try_into().unwrap_or(3))),
            port_base: self.port_base.or_else(|| known.and_then(|cluster| cluster.port_base)),
            split_port: self.split_port.or_else(|| known.and_then(|cluster| cluster.split_port)),
            bin_dir: bin_dir.or_else(|| known.and_then(|cluster| cluster.bin_dir.clone())),
            password: super::password_from_environment()?,
        };
        Ok((layout::init(&options)?, found.is_none()))
    }
}
