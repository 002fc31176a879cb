//! Finds the `synapsedb` binary under test and runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::cluster::{Cluster, Layout};

/// The environment variable that names another binary to test, such as a release build.
const OVERRIDE: &str = "SYNAPSEDB_BIN";

/// The binary under test.
#[derive(Clone, Debug)]
pub struct Binary {
    path: PathBuf,
}

/// The binary to test: the one that `SYNAPSEDB_BIN` names, else `built`, which an integration test of the package
/// gets from `env!("CARGO_BIN_EXE_synapsedb")`.
pub fn binary(built: impl Into<PathBuf>) -> Binary {
    let path = std::env::var_os(OVERRIDE).map_or_else(|| built.into(), PathBuf::from);
    Binary { path }
}

impl Binary {
    /// The binary for a tool that Cargo tells nothing: `SYNAPSEDB_BIN`, else the one beside the running tool, else
    /// the release or debug build in the target directory.
    ///
    /// # Errors
    /// When there is none, with the command that builds it.
    pub fn find() -> Result<Self> {
        if let Some(path) = std::env::var_os(OVERRIDE) {
            return Ok(Self { path: path.into() });
        }
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
        let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
        let folders = [Some(target.join("release")), beside, Some(target.join("debug"))];
        let found = folders.into_iter().flatten().map(|folder| folder.join("synapsedb"));
        let Some(path) = found.into_iter().find(|path| path.is_file()) else {
            bail!("no synapsedb binary was found; build it with: cargo build --release");
        };
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lays out and starts a cluster of `nodes` nodes and waits until every one of them is ready.
    ///
    /// # Panics
    /// When the cluster does not become ready; its data is kept and named.
    pub async fn cluster(&self, nodes: u16) -> Cluster {
        let cluster = self.lay_out(nodes);
        cluster.start().await;
        cluster
    }

    /// Lays out a cluster without starting anything, so that a test can change its configuration first.
    ///
    /// # Panics
    /// When `synapsedb init` fails.
    pub fn lay_out(&self, nodes: u16) -> Cluster {
        match Layout::new(self.clone(), nodes).make() {
            Ok(cluster) => cluster,
            Err(error) => panic!("a cluster of {nodes} nodes could not be laid out: {error:#}"),
        }
    }

    /// Runs the binary with `arguments` to its end.
    ///
    /// # Panics
    /// When it cannot be run at all.
    pub fn run(&self, arguments: &[&str]) -> Output {
        match self.command(arguments).output() {
            Ok(output) => output,
            Err(error) => panic!("{} could not be run: {error}", self.path.display()),
        }
    }

    /// The command that runs the binary with `arguments`, without input.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs the binary and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with its own words.
    pub fn output(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(arguments)
            .output()
            .with_context(|| format!("run {}", self.path.display()))?;
        if !output.status.success() {
            bail!(
                "{} {} failed ({}): {}",
                self.path.display(),
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The root of the source tree.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}
