//! Child processes of the fixture and what the kernel tells of a process: only those started here are ever ended.

use std::fs;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// How often a process that should end is looked at.
const PAUSE: Duration = Duration::from_millis(20);

/// Sends `signal` to the process `pid`; a process that is gone already is no error.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Fails only when the process is gone, or is not ours: the caller then sees it still running.
        let _ = kill_process(pid, signal);
    }
}

/// Whether the process `pid` exists (a zombie does).
pub fn exists(pid: u32) -> bool {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .is_some_and(|pid| test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

/// Waits at most `limit` until `pid` is gone and says whether it is.
pub fn wait_gone(pid: u32, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while exists(pid) {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

/// Waits at most `limit` for the end of a child.
pub fn wait_exit(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => std::thread::sleep(PAUSE),
            Ok(None) | Err(_) => return None,
        }
    }
}

/// The postmaster of a data directory, when it runs: its pid stands in the first line of `postmaster.pid`, and its
/// working directory proves that the number has not been given to another process since.
pub fn postmaster(pgdata: &Path) -> Option<u32> {
    let text = fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
    let pid: u32 = text.lines().next()?.trim().parse().ok()?;
    let folder = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (folder == fs::canonicalize(pgdata).ok()?).then_some(pid)
}

/// The resident memory of a process and its peak, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What is resident now.
    pub now_bytes: u64,
    /// The most that was resident since the start, or since [`reset_peak`].
    pub peak_bytes: u64,
}

/// The resident memory of the process `pid`; `None` when it is gone.
pub fn memory(pid: u32) -> Option<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kilobytes * 1024)
    };
    Some(Memory { now_bytes: field("VmRSS:")?, peak_bytes: field("VmHWM:")? })
}

/// Makes the peak of the process `pid` start again from what is resident now.
pub fn reset_peak(pid: u32) {
    // Without the right to it the peak is that of the whole life, which is never less.
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_memory() {
        let memory = memory(std::process::id());
        assert!(memory.is_some_and(
            |memory| memory.now_bytes > 0 && memory.peak_bytes >= memory.now_bytes / 2
        ));
    }

    #[test]
    fn sees_a_child_end() -> std::io::Result<()> {
        let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
        assert!(exists(child.id()));
        send(child.id(), Signal::TERM);
        assert!(wait_exit(&mut child, Duration::from_secs(10)).is_some());
        assert!(wait_gone(child.id(), Duration::from_secs(1)));
        Ok(())
    }

    #[test]
    fn a_stale_postmaster_pid_is_nobody() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("postmaster.pid"), format!("{}\n", std::process::id()))?;
        assert_eq!(postmaster(folder.path()), None);
        Ok(())
    }
}
