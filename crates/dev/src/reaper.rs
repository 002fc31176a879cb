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

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens when the test process dies: nobody says that all is done, the pipe just ends.
    #[test]
    fn the_end_of_the_pipe_ends_the_processes_and_removes_the_data() -> Result<()> {
        let folder = tempfile::tempdir()?.keep();
        let reaper = Reaper::start(&folder)?;
        let (mut agent, mut ended) = (sleeper()?, sleeper()?);
        reaper.started(agent.id());
        reaper.started(ended.id());
        reaper.ended(ended.id());
        drop(reaper);
        let status = crate::process::wait_exit(&mut agent, std::time::Duration::from_secs(20));
        assert!(status.is_some_and(|status| !status.success()));
        for _ in 0..200 {
            if !folder.exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(!folder.exists(), "{} is left", folder.display());
        assert!(ended.try_wait()?.is_none(), "a process that was taken back was ended");
        ended.kill()?;
        ended.wait()?;
        Ok(())
    }

    fn sleeper() -> Result<Child> {
        Ok(Command::new("sleep").arg("60").process_group(0).spawn()?)
    }
}
