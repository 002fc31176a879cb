//! A process of this machine that may be no child of this one: known by pid and start time, so that a reused pid is
//! never mistaken for it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How often a process that is no child is looked at.
const POLL: Duration = Duration::from_millis(50);

/// A process that was alive when this value was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    /// Clock ticks from boot to its start.
    started: u64,
}

impl Process {
    /// The living process with this pid.
    pub fn find(pid: u32) -> Option<Self> {
        started(pid).map(|started| Self { pid, started })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// The first 15 bytes of its program's name.
    pub fn name(&self) -> Option<String> {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", self.pid)).ok()?;
        Some(name.trim().to_owned())
    }

    /// Its working directory, if this user may see it.
    pub fn working_dir(&self) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{}/cwd", self.pid)).ok()
    }

    /// Sends a signal, unless the process is gone. An error (not permitted) is ignored: what follows is a wait anyway.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| self.is_alive()) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Returns when it is gone.
    pub async fn gone(&self) {
        while self.is_alive() {
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until it is gone, blocking; tells whether it is.
    pub fn wait_gone(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }
}

/// The start time of a living process, from `/proc/<pid>/stat`.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may contain anything; the fields after it count from the state (field 3).
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_child_is_seen_and_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::find(child.id()).unwrap();
        assert!(process.is_alive());
        assert!(!process.wait_gone(Duration::from_millis(10)));
        process.signal(Signal::TERM);
        assert!(process.wait_gone(Duration::from_secs(5)), "a zombie counts as gone");
        child.wait().unwrap();
        assert!(Process::find(child.id()).is_none());
    }
}
