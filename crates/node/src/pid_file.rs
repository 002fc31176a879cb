//! A file that is locked as long as its process lives, with the pid in it: at most one agent runs on a node's directory,
//! and at most one supervisor on a cluster's.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::process::Process;

/// How often a lock is tried again: somebody may just be looking whether it is held.
const TRIES: u32 = 10;
/// The time between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// A lock held by this process; the kernel lets it go when the process ends, however it ends.
pub struct PidFile {
    _file: File,
}

impl PidFile {
    /// Locks the file and writes this process's pid into it.
    ///
    /// # Errors
    /// When another process holds it (the text names its pid), or the file cannot be written.
    pub fn acquire(path: &Path) -> Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let mut tries = 0;
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            tries += 1;
            if error != Errno::WOULDBLOCK {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
            if tries > TRIES {
                let pid =
                    holder(path).map_or("unknown".to_owned(), |process| process.pid().to_string());
                bail!(
                    "{} is held by the process {pid}, which runs already; nothing was changed",
                    path.display()
                );
            }
            std::thread::sleep(PAUSE);
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

/// The living process that holds the file; `None` when nobody does.
pub fn holder(path: &Path) -> Option<Process> {
    let file = File::open(path).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => None,
        Err(_) => Process::find(std::fs::read_to_string(path).ok()?.trim().parse().ok()?),
    }
}
