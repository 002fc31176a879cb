//! PostgreSQL's own regression tests through the router, compared with the same tests on a direct connection.
//!
//! What a test prints depends on the build of the server, so nothing is compared with the files that PostgreSQL ships:
//! the measure is a direct connection to an equal, fresh node. The tests are PostgreSQL's sources, which are fetched
//! when they are needed and kept in the user's cache; nothing of them is part of this tree.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::binary::Binary;
use crate::client::Server;
use crate::postgres::programs;

/// Fetches the sources of a major version from Debian.
const FETCH: &str = include_str!("regress/fetch.sh");
/// Makes the superuser that the tests are run by.
const SUPERUSER: &str = include_str!("regress/superuser.sql");
/// Makes the database as PostgreSQL's own program would.
const DATABASE: &str = include_str!("regress/database.sql");
/// The settings of that database.
const SETTINGS: &str = include_str!("regress/settings.sql");
/// The superuser and its password.
const USER: &str = "postgres";
/// Libraries of PostgreSQL that the tests load, beside their own.
const LIBRARIES: [&str; 2] = ["autoinc.so", "refint.so"];
/// Server connections of a pool: more than a group of tests that run at once.
const POOL_SIZE: i64 = 40;
/// Lines of each difference that are printed.
const SHOWN: usize = 6;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The mode of the router's pools; without it the router's default.
    #[arg(long)]
    pub mode: Option<String>,
    /// Only these tests and what they need (`test_setup`), one after the other; all if none is named.
    #[arg(long, value_delimiter = ',')]
    pub tests: Vec<String>,
    /// PostgreSQL's sources; without it they are fetched into the cache.
    #[arg(long)]
    pub source: Option<PathBuf>,
    /// Where to write what the differing tests have printed, as `direct/NAME.out` and `routed/NAME.out`.
    #[arg(long)]
    pub output: Option<PathBuf>,
}

/// What one run printed, by test.
type Printed = BTreeMap<String, String>;

/// Runs the tests both ways and prints which files differ.
///
/// # Errors
/// When the tests cannot be run, or some file differs.
pub async fn run(binary: Binary, options: Options) -> Result<()> {
    let programs = programs(None)?;
    let source = source(&programs, &options)?;
    let direct = one(&binary, &programs, &source, &options, false).await.context("direct")?;
    let routed = one(&binary, &programs, &source, &options, true).await.context("routed")?;
    let mut different = 0;
    for (test, expected) in &direct {
        let found = routed.get(test).map_or("", String::as_str);
        if found != expected {
            different += 1;
            println!("{test} differs ({} lines)", lines(expected, found).len());
            for (sign, line) in lines(expected, found).iter().take(SHOWN) {
                println!("    {sign} {line}");
            }
            if let Some(folder) = &options.output {
                keep(&folder.join("direct"), test, expected)?;
                keep(&folder.join("routed"), test, found)?;
            }
        }
    }
    println!("{different} of {} files differ from a direct connection", direct.len());
    if different > 0 {
        bail!("the router is seen by {different} of PostgreSQL's own tests");
    }
    Ok(())
}

fn keep(folder: &Path, test: &str, printed: &str) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    fs::write(folder.join(format!("{test}.out")), printed).context("keep what a test has printed")
}

/// Lines that only the one or only the other has, as a diff without its order.
fn lines<'a>(expected: &'a str, found: &'a str) -> Vec<(char, &'a str)> {
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    found.lines().for_each(|line| *counts.entry(line).or_default() += 1);
    let mut different = Vec::new();
    for line in expected.lines() {
        let count = counts.entry(line).or_default();
        if *count == 0 {
            different.push(('-', line));
        } else {
            *count -= 1;
        }
    }
    for line in found.lines() {
        let count = counts.entry(line).or_default();
        if *count > 0 {
            different.push(('+', line));
            *count -= 1;
        }
    }
    different
}

/// The folder of the tests in PostgreSQL's sources.
fn source(programs: &Path, options: &Options) -> Result<PathBuf> {
    let root = match &options.source {
        Some(root) => root.clone(),
        None => fetched(programs)?,
    };
    let folder = root.join("src/test/regress");
    if !folder.join("parallel_schedule").is_file() {
        bail!("{} has no regression tests of PostgreSQL", root.display());
    }
    Ok(folder)
}

/// PostgreSQL's sources in the cache, fetched if they are not there.
fn fetched(programs: &Path) -> Result<PathBuf> {
    let major = programs.parent().and_then(Path::file_name).context("a version of PostgreSQL")?;
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = cache.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?;
    let folder = cache.join("synapsedb-regress").join(major);
    if !folder.join("src/test/regress/parallel_schedule").is_file() {
        let mut fetch = Command::new("sh");
        fetch.args(["-c", FETCH, "fetch"]).arg(major).arg(&folder);
        output(fetch).context("fetch PostgreSQL's sources; or name them with --source")?;
    }
    Ok(folder)
}

/// Runs the tests on a fresh node.
async fn one(
    binary: &Binary,
    programs: &Path,
    source: &Path,
    options: &Options,
    routed: bool,
) -> Result<Printed> {
    let cluster = binary.lay_out(1);
    let node = cluster.node(1);
    node.configure("router.pool_size", POOL_SIZE);
    if let Some(mode) = &options.mode {
        node.configure("router.pool_mode", mode.clone());
    }
    cluster.start().await;
    let mut admin = node.agent_server();
    admin.sql(SUPERUSER).await;
    admin.sql(DATABASE).await;
    admin.database = "regression".to_owned();
    for statement in SETTINGS.lines().filter(|line| line.starts_with("alter")) {
        admin.sql(statement).await;
    }
    let entrance = if routed { cluster.write_endpoint() } else { node.server().clone() };
    let work = prepare(programs, source)?;
    let tests = options.tests.clone();
    let (entrance, path) = (entrance, work.path().to_owned());
    let programs = programs.to_owned();
    tokio::task::spawn_blocking(move || regress(&programs, &path, &entrance, &tests)).await??;
    printed(&work.path().join("out/results"))
}

/// A folder that the server's user may read and write, with the tests and the libraries that they load.
fn prepare(programs: &Path, source: &Path) -> Result<tempfile::TempDir> {
    let work = tempfile::Builder::new().prefix("synapsedb-regress-").tempdir()?;
    let path = work.path();
    fs::create_dir(path.join("lib"))?;
    fs::create_dir_all(path.join("out/results"))?;
    for name in ["sql", "expected", "data", "parallel_schedule", "input", "output"] {
        if source.join(name).exists() {
            let mut copy = Command::new("cp");
            copy.arg("-r").arg(source.join(name)).arg(path);
            output(copy)?;
        }
    }
    let mut headers = Command::new("pg_config");
    headers.arg("--includedir-server");
    let headers = output(headers)?;
    let mut compile = Command::new("cc");
    compile.args(["-O1", "-w", "-shared", "-fPIC", "-I", headers.trim(), "-o"]);
    compile.arg(path.join("lib/regress.so")).arg(source.join("regress.c"));
    output(compile)?;
    for name in LIBRARIES {
        let library = programs.with_file_name("lib").join(name);
        fs::copy(&library, path.join("lib").join(name))
            .with_context(|| format!("copy {}", library.display()))?;
    }
    for folder in ["", "out", "out/results"] {
        fs::set_permissions(path.join(folder), fs::Permissions::from_mode(0o777))?;
    }
    Ok(work)
}

/// Runs PostgreSQL's program; that tests fail against its own files means nothing here.
fn regress(programs: &Path, work: &Path, server: &Server, tests: &[String]) -> Result<()> {
    let program = programs.with_file_name("lib").join("pgxs/src/test/regress/pg_regress");
    if !program.is_file() {
        bail!("{} is not there: install postgresql-server-dev", program.display());
    }
    let mut command = Command::new(&program);
    command
        .arg("--use-existing")
        .arg(format!("--inputdir={}", work.display()))
        .arg(format!("--outputdir={}", work.join("out").display()))
        .arg(format!("--dlpath={}", work.join("lib").display()))
        .arg(format!("--bindir={}", programs.display()))
        .args(["--host=127.0.0.1", &format!("--port={}", server.port)])
        .args([&format!("--user={USER}"), "--dbname=regression"])
        .env("PGPASSWORD", USER)
        .env("PGSSLMODE", "disable")
        .current_dir(work)
        .stdin(Stdio::null());
    if tests.is_empty() {
        command.arg(format!("--schedule={}", work.join("parallel_schedule").display()));
    } else {
        command.arg("test_setup").args(tests);
    }
    let run = command.output().with_context(|| format!("run {}", program.display()))?;
    let said = String::from_utf8_lossy(&run.stdout);
    let summary =
        said.lines().find(|line| line.contains(" tests failed") || line.contains(" tests passed"));
    match summary {
        Some(summary) => eprintln!("{}: {}", server.name, summary.trim()),
        None => bail!("pg_regress: {said}{}", String::from_utf8_lossy(&run.stderr)),
    }
    Ok(())
}

fn printed(folder: &Path) -> Result<Printed> {
    let mut printed = Printed::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "out") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            printed.insert(name, String::from_utf8_lossy(&fs::read(&path)?).into_owned());
        }
    }
    if printed.is_empty() {
        bail!("no test has printed anything into {}", folder.display());
    }
    Ok(printed)
}

fn output(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_only_one_side_has() {
        assert!(lines("a\nb\n", "a\nb\n").is_empty());
        assert_eq!(lines("a\nb\nb\n", "b\nc\n"), [('-', "a"), ('-', "b"), ('+', "c")]);
    }
}
