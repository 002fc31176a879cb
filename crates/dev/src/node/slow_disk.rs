//! A slow disk for an agent: a library, loaded into it, lets each of its flushes take longer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Node;

/// How slow the disk of one agent is.
#[derive(Debug)]
pub(crate) struct SlowDisk {
    library: PathBuf,
    flush: Duration,
}

impl SlowDisk {
    /// Compiles the library in a node's directory.
    pub(crate) fn make(folder: &Path, flush: Duration) -> Result<Self> {
        let (source, library) = (folder.join("slow_disk.c"), folder.join("slow_disk.so"));
        fs::write(&source, include_str!("slow_disk.c"))
            .with_context(|| format!("write {}", source.display()))?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl");
        let status = compiler.status().context("run cc")?;
        ensure!(status.success(), "cc did not compile {}: {status}", source.display());
        Ok(Self { library, flush })
    }

    /// The environment of a process with this disk.
    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("SLOW_DISK_US", self.flush.as_micros().to_string()),
        ]
    }
}

impl Node {
    /// Lets every flush of the agent to its disk take so much longer, from its next start on. Its server's disk stays
    /// as it is if the server runs already.
    ///
    /// # Panics
    /// When there is no C compiler.
    pub fn slow_disk(&self, flush: Duration) {
        match SlowDisk::make(&self.folder, flush) {
            Ok(disk) => *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = Some(disk),
            Err(error) => panic!("node {} gets no slow disk: {error:#}", self.number),
        }
    }

    /// What makes its agent's clock or disk another than this machine's. One of the two at a time.
    pub(super) fn own_environment(&self) -> Vec<(&'static str, String)> {
        let clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let of_clock = clock.iter().flat_map(|clock| clock.environment());
        of_clock.chain(disk.iter().flat_map(SlowDisk::environment)).collect()
    }
}
