//! `synapsedb logs`: what the agents or the servers wrote.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Data;

/// How often the files are looked at with `-f`.
const POLL: Duration = Duration::from_millis(200);
/// How much of a file's end is read for its last lines.
const TAIL_BYTES: u64 = 1024 * 1024;

/// The arguments of `logs`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    data: Data,
    /// The node, 1 to 16 [default: all]
    node: Option<u16>,
    /// Goes on with what is written
    #[arg(long, short)]
    follow: bool,
    /// The PostgreSQL server's log instead of the agent's
    #[arg(long)]
    postgres: bool,
    /// How many lines of the past
    #[arg(long, short = 'n', default_value_t = 50)]
    lines: usize,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let cluster = arguments.data.cluster()?;
    let nodes = match arguments.node {
        Some(number) => vec![cluster.node(number)?],
        None => cluster.nodes.iter().collect(),
    };
    let name = if arguments.postgres { "postgres.log" } else { "agent.log" };
    let mut tails: Vec<Tail> = nodes
        .iter()
        .map(|node| Tail {
            path: cluster.node_dir(node.id).join(name),
            prefix: if nodes.len() > 1 { format!("node-{} | ", node.id) } else { String::new() },
            position: 0,
        })
        .collect();
    if !arguments.follow && tails.iter().all(|tail| !tail.path.is_file()) {
        bail!("there is no {name} yet: the cluster was never started");
    }
    for tail in &mut tails {
        tail.position = tail.path.metadata().map_or(0, |metadata| metadata.len());
        for line in last_lines(&tail.path, arguments.lines) {
            print_line(&tail.prefix, &line);
        }
    }
    if !arguments.follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        std::thread::sleep(POLL);
        tails.iter_mut().for_each(Tail::print_new);
    }
}

/// A file that grows.
struct Tail {
    path: PathBuf,
    prefix: String,
    position: u64,
}

impl Tail {
    fn print_new(&mut self) {
        let Ok(mut file) = File::open(&self.path) else { return };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        // Shorter than before: it was emptied or replaced.
        if length < self.position {
            self.position = 0;
        }
        if length == self.position || file.seek(SeekFrom::Start(self.position)).is_err() {
            return;
        }
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        // The last line may still be being written: it is left for the next look.
        while reader.read_until(b'\n', &mut line).is_ok() && line.ends_with(b"\n") {
            self.position += line.len() as u64;
            print_line(&self.prefix, String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
    }
}

/// A closed pipe ends the program quietly, as it does with `tail`.
fn print_line(prefix: &str, line: &str) {
    if writeln!(std::io::stdout(), "{prefix}{line}").is_err() {
        std::process::exit(0);
    }
}

/// The last lines of a file; none when it cannot be read.
pub(super) fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let read = || -> std::io::Result<Vec<String>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(count);
        Ok(lines[from..].iter().map(|line| (*line).to_owned()).collect())
    };
    read().unwrap_or_default()
}
