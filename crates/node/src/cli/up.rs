//! `synapsedb up`: a running cluster, made first if there is none.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::progress::Progress;
use super::{Data, FAILURE, endpoints, init, logs, sample};
use crate::layout::{Cluster, Node, ports};
use crate::postgres::Binaries;
use crate::process::Process;
use crate::supervisor;
use crate::tasks::Shutdown;

/// How often the nodes are asked.
const POLL: Duration = Duration::from_millis(250);
/// How many agents of one node may end before the cluster counts as failed.
const ENDS_MAX: usize = 3;
/// What `up` says, for people and for scripts, when every node has a row of every other one.
const SUCCESS: &str = "Cluster initialization successful!";
/// How many lines of its log are shown of a node that failed.
const LOG_LINES: usize = 15;

/// The arguments of `up`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    shape: init::Shape,
    /// Returns when the cluster is ready, and leaves it running
    #[arg(long, short)]
    detach: bool,
    /// How long the cluster may take to become ready, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    // Before anything is made: without a server there is nothing to run.
    Binaries::find(arguments.shape.bin_dir.as_deref(), None)?;
    let (cluster, made) = arguments.shape.find_or_make()?;
    let timeout = Duration::from_secs(arguments.timeout);
    if let Some(process) = supervisor::running(&cluster) {
        super::say(format_args!(
            "The cluster in {} is already running (supervisor {}).",
            cluster.data.display(),
            process.pid()
        ));
        return Ok(report(
            &cluster,
            wait_ready(&cluster, timeout, &Shutdown::new()),
            "It is ready.",
        ));
    }
    refuse_taken_ports(&cluster)?;
    super::tell(format_args!(
        "{} the cluster in {}",
        if made { "Made" } else { "Starting" },
        cluster.data.display()
    ));
    if arguments.detach {
        let process = detach(&cluster)?;
        let stop = Shutdown::new();
        let ended = wait_with(&cluster, timeout, &stop, Some(process));
        return Ok(report(&cluster, ended, SUCCESS));
    }
    foreground(&cluster, timeout)
}

/// Runs the agents of a cluster in this process: what `up --detach` starts.
pub(super) fn supervise(data: &Data) -> Result<ExitCode> {
    // A session of its own: the terminal's end does not reach it. It fails when it has one already.
    let _ = rustix::process::setsid();
    super::log_to_stderr("info");
    let cluster = data.cluster()?;
    super::runtime()?.block_on(async {
        let stop = Shutdown::new();
        let signals = tokio::spawn(super::stop_on_signal(stop.clone()));
        let done = supervisor::run(&cluster, &program()?, stop.clone()).await;
        stop.cancel();
        signals.await.context("the signal handler panicked")??;
        done.map(|()| ExitCode::SUCCESS)
    })
}

fn foreground(cluster: &Cluster, timeout: Duration) -> Result<ExitCode> {
    super::log_to_stderr("warn");
    let stop = Shutdown::new();
    super::runtime()?.block_on(async {
        let signals = tokio::spawn(super::stop_on_signal(stop.clone()));
        let (ours, until) = (cluster.clone(), stop.clone());
        let agents = tokio::spawn(async move {
            let done = supervisor::run(&ours, &program()?, until.clone()).await;
            // When it could not start, nothing is left to wait for.
            until.cancel();
            done
        });
        let (ours, until) = (cluster.clone(), stop.clone());
        let ended = tokio::task::spawn_blocking(move || wait_ready(&ours, timeout, &until)).await?;
        let ready = ended.is_ok();
        let mut code = ExitCode::SUCCESS;
        if !stop.is_cancelled() || !ready {
            code = report(cluster, ended, SUCCESS);
        }
        if ready && !stop.is_cancelled() {
            super::say(format_args!("Ctrl-C stops the cluster."));
            stop.cancelled().await;
        }
        stop.cancel();
        super::tell(format_args!("Stopping the cluster"));
        agents.await.context("the supervisor panicked")??;
        signals.await.context("the signal handler panicked")??;
        super::tell(format_args!("Stopped; `synapsedb up` starts it again with its data."));
        Ok(code)
    })
}

/// Starts a supervisor that outlives this process.
fn detach(cluster: &Cluster) -> Result<Process> {
    let log_file = cluster.data.join("supervisor.log");
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_file)
        .with_context(|| format!("cannot open {}", log_file.display()))?;
    let child = std::process::Command::new(program()?)
        .arg("supervise")
        .arg("--data")
        .arg(&cluster.data)
        .env_remove("POSTGRES_PASSWORD")
        .env_remove("POSTGRES_PASSWORD_FILE")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the supervisor")?;
    Process::find(child.id())
        .with_context(|| format!("the supervisor ended at once; see {}", log_file.display()))
}

/// This program, also when its file was replaced while it ran.
fn program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("cannot find the own program")?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map(PathBuf::from).unwrap_or(path.clone()))
}

fn refuse_taken_ports(cluster: &Cluster) -> Result<()> {
    let running: Vec<_> = cluster
        .nodes
        .iter()
        .filter(|node| {
            supervisor::running_agent(cluster, node).is_some()
                || crate::postgres::is_running(&cluster.node_dir(node.id).join("pgdata"))
        })
        .map(|node| node.id)
        .collect();
    let nodes = cluster.nodes.iter().map(|node| (node.id, node.ports)).collect();
    let stats = ports::stats(cluster.port_base);
    let (read, write) = (cluster.read_port, cluster.write_port);
    let split = endpoints::split_port(cluster);
    let plan = ports::Plan { read, write, split, stats, nodes };
    let taken = plan.taken(&running);
    if taken.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = taken.iter().map(|taken| format!("  {taken}")).collect();
    bail!(
        "ports are taken, nothing was started:\n{}\nstop these processes and try again",
        list.join("\n")
    )
}

/// Why a cluster did not become ready.
struct NotReady {
    /// What is wrong, in a sentence.
    reason: String,
    /// The node of which this is known, if of one.
    node: Option<u16>,
}

fn wait_ready(cluster: &Cluster, timeout: Duration, stop: &Shutdown) -> Result<(), NotReady> {
    wait_with(cluster, timeout, stop, None)
}

/// Waits until every node says that it is ready, which it does when the probe row of every other node has arrived.
fn wait_with(
    cluster: &Cluster,
    timeout: Duration,
    stop: &Shutdown,
    supervisor: Option<Process>,
) -> Result<(), NotReady> {
    let deadline = Instant::now() + timeout;
    let mut progress = Progress::start("Waiting for the agents");
    let mut agents: Vec<Vec<u32>> = vec![Vec::new(); cluster.nodes.len()];
    loop {
        let mut waiting = None;
        for (node, seen) in cluster.nodes.iter().zip(&mut agents) {
            ended_too_often(cluster, node, seen)?;
            if let Err(why) = ready(node) {
                waiting.get_or_insert((node.id.get(), why));
            }
        }
        let Some((node, why)) = waiting else {
            progress.tell("Making the sample tables");
            let made = super::runtime().and_then(|runtime| runtime.block_on(sample::make(cluster)));
            progress.clear();
            return made.map_err(|error| NotReady { reason: format!("{error:#}"), node: None });
        };
        progress.tell(&format!("Waiting for node {node}: {why}"));
        let failed = |reason: String| NotReady { reason, node: Some(node) };
        if stop.is_cancelled() {
            progress.clear();
            return Err(NotReady { reason: "interrupted".to_owned(), node: None });
        }
        if Instant::now() > deadline {
            progress.clear();
            return Err(failed(format!("node {node} is not ready after {timeout:?}: {why}")));
        }
        if supervisor.is_some_and(|process| !process.is_alive()) {
            progress.clear();
            let log = cluster.data.join("supervisor.log");
            let reason = format!("the supervisor ended; see {}", log.display());
            return Err(NotReady { reason, node: None });
        }
        std::thread::sleep(POLL);
    }
}

/// An agent that cannot run is started over and over: seen by its changing pid.
fn ended_too_often(cluster: &Cluster, node: &Node, seen: &mut Vec<u32>) -> Result<(), NotReady> {
    if let Some(process) = supervisor::running_agent(cluster, node)
        && !seen.contains(&process.pid())
    {
        seen.push(process.pid());
    }
    if seen.len() <= ENDS_MAX {
        return Ok(());
    }
    let reason = format!("the agent of node {} keeps ending", node.id);
    Err(NotReady { reason, node: Some(node.id.get()) })
}

/// Asks a node whether it is ready; the error is what it waits for.
fn ready(node: &Node) -> Result<(), String> {
    match super::status::get(node.ports.raft, "/ready") {
        Ok((200, _)) => Ok(()),
        Ok((_, body)) => Err(super::status::reason(&body)),
        Err(_) => Err("its agent does not answer yet".to_owned()),
    }
}

/// Prints the end of `up`.
fn report(cluster: &Cluster, ended: Result<(), NotReady>, headline: &str) -> ExitCode {
    let Err(failed) = ended else {
        super::say(format_args!("{headline}\n{}", endpoints::list(cluster)));
        return ExitCode::SUCCESS;
    };
    super::tell(format_args!("synapsedb: the cluster is not ready: {}", failed.reason));
    if let Some(node) = failed.node.and_then(|number| cluster.node(number).ok()) {
        for file in ["agent.log", "postgres.log"] {
            let path = cluster.node_dir(node.id).join(file);
            let lines = logs::last_lines(&path, LOG_LINES);
            if !lines.is_empty() {
                super::tell(format_args!(
                    "The end of {}:\n  {}",
                    path.display(),
                    lines.join("\n  ")
                ));
            }
        }
    }
    if supervisor::running(cluster).is_some() {
        super::tell(format_args!(
            "What runs is left as it is: `synapsedb status` shows it, `synapsedb down` stops it."
        ));
    }
    ExitCode::from(FAILURE)
}
