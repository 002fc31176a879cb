//! `cargo dev …`: the developer's commands.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use synapsedb_dev::causality::{self, Workload};
use synapsedb_dev::chaos::{self, Fault};
use synapsedb_dev::{Binary, Cluster, HttpPort, bench, regress, sim, tidy};

/// The developer's commands.
#[derive(Parser)]
#[command(name = "cargo dev", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Checks format, lints (warnings are errors) and tidiness; writes nothing.
    Check,
    /// Formats, and applies what clippy can apply.
    Fix,
    /// Checks the style rules and invariants only.
    Tidy,
    /// Runs the tests whose name contains FILTER.
    Test {
        /// A part of the name, such as a component.
        filter: Option<String>,
    },
    /// Runs a cluster of the fixture until Ctrl-C.
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = 3)]
        nodes: u16,
    },
    /// Runs a world of pure nodes, decided by a seed: tells every step of one, or tries many.
    Sim {
        /// The seed, or the first of many.
        #[arg(default_value_t = 0)]
        seed: u64,
        /// How many seeds to try; then only what is violated is told.
        #[arg(long)]
        seeds: Option<u64>,
        /// How many nodes.
        #[arg(long, default_value_t = 3)]
        nodes: u16,
        /// How many transactions users make before all is healed.
        #[arg(long, default_value_t = 60)]
        transactions: usize,
    },
    /// Breaks a cluster under load for minutes and checks that nothing was lost or doubled.
    Soak {
        /// What is to be tried.
        #[arg(value_enum)]
        subject: Subject,
        /// How long the faults go on.
        #[arg(long, default_value_t = 1.0)]
        minutes: f64,
        /// Seconds between two faults.
        #[arg(long, default_value_t = 4.0)]
        between: f64,
        /// Writers on every node.
        #[arg(long, default_value_t = 2)]
        writers: u16,
        /// Also stop the time of agents, cut them off from their peers, and give every node a clock of its own.
        #[arg(long)]
        all_faults: bool,
        /// Decides upon the faults and the writes; without it chance does.
        #[arg(long)]
        seed: Option<u64>,
        /// Writes on hot keys, and observers that look for effects without their causes.
        #[arg(long)]
        hot_keys: bool,
        /// The same observers on pglogical with paused apply workers, where they must find some.
        #[arg(long, conflicts_with = "all_faults")]
        pglogical: bool,
    },
    /// Measures a cluster.
    Bench {
        /// What is to be measured.
        #[command(subcommand)]
        subject: Measured,
    },
    /// Runs PostgreSQL's own regression tests through the router and compares with a direct connection.
    Regress(regress::Options),
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Subject {
    /// The rows on their way between the nodes.
    Replication,
}

#[derive(Subcommand)]
enum Measured {
    /// The rows on their way between the nodes, beside pglogical.
    Replication(bench::Options),
    /// The statements on their way through the router, beside PgBouncer and HAProxy.
    Router(bench::router::Options),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Check => {
            cargo(&["fmt", "--all", "--check"])?;
            cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
            check_tidy()
        }
        Task::Fix => {
            cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--fix",
                "--allow-dirty",
                "--allow-staged",
            ])?;
            cargo(&["fmt", "--all"])
        }
        Task::Tidy => check_tidy(),
        Task::Test { filter } => {
            let filter = filter.iter().map(String::as_str);
            let runner: &[_] = if has_nextest() { &["nextest", "run"] } else { &["test"] };
            cargo(&runner.iter().copied().chain(["--workspace"]).chain(filter).collect::<Vec<_>>())
        }
        Task::Up { nodes } => async_run(up(release_binary()?, nodes)),
        Task::Sim { seed, seeds, nodes, transactions } => {
            let trace = seeds.is_none();
            let config = sim::Config { nodes, transactions, trace, ..sim::Config::default() };
            simulate(seed..seed + seeds.unwrap_or(1), &config)
        }
        Task::Soak {
            subject: Subject::Replication,
            minutes,
            between,
            writers,
            all_faults,
            seed,
            hot_keys,
            pglogical,
        } => {
            let mut config = chaos::Config {
                duration: Duration::from_secs_f64(minutes * 60.0),
                between: Duration::from_secs_f64(between),
                ..chaos::Config::default()
            };
            config.load.writers = writers;
            if all_faults {
                config.faults.extend([Fault::Pause, Fault::CutOff, Fault::SetClock]);
            }
            config.seed = seed.unwrap_or(config.seed);
            println!("seed {}", config.seed);
            let workload =
                Workload { writers: writers.into(), seed: config.seed, ..Workload::default() };
            match (pglogical, hot_keys) {
                (true, _) => async_run(soak_pglogical(config.duration, workload)),
                (false, true) => async_run(soak_hot_keys(release_binary()?, config, workload)),
                (false, false) => async_run(soak(release_binary()?, config)),
            }
        }
        Task::Bench { subject: Measured::Replication(options) } => {
            async_run(bench::run(release_binary()?, options))
        }
        Task::Bench { subject: Measured::Router(options) } => {
            async_run(bench::router::run(release_binary()?, options))
        }
        Task::Regress(options) => async_run(regress::run(release_binary()?, options)),
    }
}

fn check_tidy() -> Result<()> {
    let findings = tidy::check(&synapsedb_dev::binary::root())?;
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => {
            println!("tidy");
            Ok(())
        }
        count => bail!("{count} findings"),
    }
}

fn simulate(seeds: std::ops::Range<u64>, config: &sim::Config) -> Result<()> {
    let (mut worlds, mut transactions, mut concurrent) = (0, 0, 0);
    for seed in seeds {
        match sim::run(seed, config) {
            Ok(report) if config.trace => println!("{report:#?}"),
            Ok(report) => {
                worlds += 1;
                transactions += report.transactions;
                concurrent += report.concurrent;
            }
            Err(reason) => bail!("{reason}\nevery step of it: cargo dev sim {seed}"),
        }
    }
    if !config.trace {
        println!("{worlds} worlds, {transactions} transactions, {concurrent} concurrent pairs");
    }
    println!("safe, and equal after the healing");
    Ok(())
}

/// The release build of the binary, made now unless the environment names another one.
fn release_binary() -> Result<Binary> {
    if std::env::var_os("SYNAPSEDB_BIN").is_none() {
        cargo(&["build", "--release", "--package", "synapsedb"])?;
    }
    Binary::find()
}

fn cargo(arguments: &[&str]) -> Result<()> {
    let program = std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), Into::into);
    let status = Command::new(program)
        .args(arguments)
        .current_dir(synapsedb_dev::binary::root())
        .status()
        .context("run cargo")?;
    if !status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}

fn has_nextest() -> bool {
    let output = Command::new("cargo").args(["nextest", "--version"]).output();
    output.is_ok_and(|output| output.status.success())
}

fn async_run(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(work)
}

async fn up(binary: Binary, nodes: u16) -> Result<()> {
    let cluster = binary.cluster(nodes).await;
    println!("data       {}", cluster.data().display());
    for node in cluster.nodes() {
        println!("node {}     psql \"{}\"", node.number(), node.server().url());
        println!("           curl {}", node.url(HttpPort::Raft, "/status"));
    }
    println!("read       psql \"{}\"", cluster.read_endpoint().url());
    println!("write      psql \"{}\"", cluster.write_endpoint().url());
    println!("Ctrl-C ends and removes it");
    tokio::signal::ctrl_c().await?;
    Ok(())
}

async fn soaked_cluster(binary: &Binary, config: &chaos::Config) -> Cluster {
    let cluster = binary.lay_out(3);
    if config.faults.contains(&Fault::SetClock)
        && let Err(reason) = chaos::own_clocks(&cluster, config.seed)
    {
        println!("the nodes' clocks are the machine's: {reason}");
    }
    cluster.start().await;
    cluster
}

async fn soak(binary: Binary, config: chaos::Config) -> Result<()> {
    let cluster = soaked_cluster(&binary, &config).await;
    match chaos::run(&cluster, &config).await {
        Ok(report) => {
            println!("{report:#?}");
            println!("every node holds the same rows, every acknowledged one once");
            Ok(())
        }
        Err(error) => {
            cluster.keep();
            bail!("{error:#}\nthe data is kept in {}", cluster.data().display())
        }
    }
}

async fn soak_hot_keys(binary: Binary, config: chaos::Config, workload: Workload) -> Result<()> {
    let cluster = soaked_cluster(&binary, &config).await;
    match causality::run(&cluster, &workload, &config).await {
        Ok(report) => {
            println!("{report:#?}");
            println!(
                "no effect was seen before its cause; every node holds the rows that must have won"
            );
            Ok(())
        }
        Err(error) => {
            cluster.keep();
            bail!("{error:#}\nthe data is kept in {}", cluster.data().display())
        }
    }
}

async fn soak_pglogical(duration: Duration, workload: Workload) -> Result<()> {
    let report = causality::run_pglogical(duration, &workload).await?;
    println!("{report:#?}");
    if report.violations == 0 {
        bail!("no effect was seen before its cause: the observers have found nothing");
    }
    Ok(())
}
