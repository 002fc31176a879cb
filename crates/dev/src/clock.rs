//! A node's own clock: its agent and its server run under libfaketime, which adds to the time what a file says.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::{postgres, process};

/// The library for programs with threads, below `/usr/lib`: of Debian and Ubuntu, and of Red Hat.
const LIBRARIES: [&str; 2] = ["faketime/libfaketimeMT.so.1", "libfaketimeMT.so.1"];
/// Where libfaketime keeps what its processes share.
const SHARED: &str = "/dev/shm";

/// The clock of one node.
#[derive(Debug)]
pub(crate) struct Clock {
    library: PathBuf,
    file: PathBuf,
    ahead_ms: AtomicI64,
}

/// Whether this machine can give a node a clock of its own.
///
/// # Errors
/// What is missing.
pub fn library() -> Result<PathBuf> {
    let multiarch = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let folders = multiarch.map(|entry| entry.path()).chain(["/usr/lib64".into()]);
    let mut found = folders.flat_map(|folder| LIBRARIES.map(|library| folder.join(library)));
    match found.find(|file| file.is_file()) {
        Some(file) => Ok(file),
        None => {
            bail!("a clock of its own needs libfaketime (Debian, Ubuntu: apt install libfaketime)")
        }
    }
}

impl Clock {
    /// Makes the clock of the node whose directory is `folder`: the file with its offset, and a directory of
    /// PostgreSQL's programs in which the server is one that runs under the library.
    pub(crate) fn make(folder: &Path) -> Result<Self> {
        let (library, file) = (library()?, folder.join("clock"));
        let clock = Self { library, file, ahead_ms: AtomicI64::new(0) };
        clock.set(0)?;
        let (programs, bin) = (postgres::programs(None)?, clock.programs());
        fs::create_dir_all(&bin).with_context(|| format!("make {}", bin.display()))?;
        for entry in fs::read_dir(&programs)? {
            let program = entry?.path();
            if let Some(name) = program.file_name().filter(|name| *name != "postgres") {
                symlink(&program, bin.join(name))?;
            }
        }
        let mut script = "#!/bin/sh\n".to_owned();
        for (name, value) in clock.environment() {
            script += &format!("export {name}=\"{value}\"\n");
        }
        script += &format!("exec {}/postgres \"$@\"\n", programs.display());
        let postgres = bin.join("postgres");
        fs::write(&postgres, script)?;
        fs::set_permissions(&postgres, fs::Permissions::from_mode(0o755))?;
        Ok(clock)
    }

    /// The directory of PostgreSQL's programs for `postgres.bin_dir`.
    pub(crate) fn programs(&self) -> PathBuf {
        self.file.with_file_name("bin")
    }

    /// Sets how far it is ahead, from now on, in the processes that run too.
    pub(crate) fn set(&self, ahead_ms: i64) -> Result<()> {
        let (sign, ms) = (if ahead_ms < 0 { '-' } else { '+' }, ahead_ms.unsigned_abs());
        self.say(&format!("{sign}{}.{:03}", ms / 1000, ms % 1000))?;
        self.ahead_ms.store(ahead_ms, Ordering::Relaxed);
        Ok(())
    }

    /// Lets it stand still at a second since 1970, until it is set.
    pub(crate) fn stop_at(&self, unix_s: u64) -> Result<()> {
        self.say(&unix_s.to_string())
    }

    fn say(&self, text: &str) -> Result<()> {
        // By a new file, so that nobody reads half of it.
        let new = self.file.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(0o644)))
            .and_then(|()| fs::rename(&new, &self.file))
            .with_context(|| format!("write {}", self.file.display()))
    }

    /// How far it is ahead.
    pub(crate) fn ahead_ms(&self) -> i64 {
        self.ahead_ms.load(Ordering::Relaxed)
    }

    /// The environment of a process with this clock.
    pub(crate) fn environment(&self) -> [(&'static str, String); 6] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            // An instant is told in seconds since 1970.
            ("FAKETIME_FMT", "%s".to_owned()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
    }
}

/// Removes what processes share that were killed.
pub(crate) fn remove_leftovers() {
    for entry in fs::read_dir(SHARED).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| {
            let shared = name.strip_prefix("faketime_shm_");
            shared.or_else(|| name.strip_prefix("sem.faketime_sem_"))?.parse().ok()
        });
        if pid.is_some_and(|pid| !process::exists(pid)) {
            // Left behind it takes a page of memory.
            let _ = fs::remove_file(entry.path());
        }
    }
}
