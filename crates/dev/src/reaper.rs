//! Ends what a test has started when the test process ends without having done so: a panic, Ctrl-C, SIGKILL.
//!
//! A small shell process of its own group reads from a pipe whose other end only this process holds; the end of the
//! pipe is the end of this process. Destructors and exit handlers do not run in all those cases, the kernel does.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};

/// What the process does: wait for the end of its input, then end what was named.
const SCRIPT: &str = include_str!("reaper.sh");

/// The process that outlives us.
#[derive(Debug)]
pub struct Reaper {
    child: Mutex<Option<(Child, ChildStdin)>>,
}

impl Reaper {
    /// Starts it for the cluster of the directory `data`.
    ///
    /// # Errors
    /// When no shell can be started.
    pub fn start(data: &Path) -> Result<Self> {
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .process_group(0)
            .spawn()
            .context("start the process that ends the cluster of a test")?;
        let pipe = child.stdin.take().context("the pipe to the reaper")?;
        let reaper = Self { child: Mutex::new(Some((child, pipe))) };
        reaper.tell(&format!("data {}", data.display()));
        Ok(reaper)
    }

    /// An agent was started.
    pub fn started(&self, pid: u32) {
        self.tell(&format!("agent {pid}"));
    }

    /// An agent has ended and its number may be given to others.
    pub fn ended(&self, pid: u32) {
        self.tell(&format!("gone {pid}"));
    }

    /// An nftables table is about to be made.
    pub fn table(&self, name: &str) {
        self.tell(&format!("table {name}"));
    }

    /// A control group was made.
    pub fn group(&self, folder: &Path) {
        self.tell(&format!("group {}", folder.display()));
    }

    /// The data is to be kept for a look.
    pub fn keep(&self) {
        self.tell("keep");
    }

    /// Everything has been ended in order: nothing is left to do.
    pub fn finish(&self) {
        self.tell("done");
        let taken = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((mut child, pipe)) = taken {
            drop(pipe);
            let _ = child.wait();
        }
    }

    fn tell(&self, line: &str) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pipe)) = child.as_mut() {
            // Without its reaper a test is only less tidy when it is killed.
            let _ = writeln!(pipe, "{line}");
        }
    }
}
