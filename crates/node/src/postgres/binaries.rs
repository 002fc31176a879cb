//! Finds PostgreSQL's programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// The oldest major version that is supported.
const MAJOR_MIN: u32 = 15;
/// The newest major version that is supported.
const MAJOR_MAX: u32 = 18;

/// The programs of one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// Their directory.
    pub dir: PathBuf,
    /// The major version.
    pub major: u32,
}

impl Binaries {
    /// The programs in `bin_dir`; else the newest supported ones of the usual places and `PATH`. With `major` only
    /// those of that version: a data directory needs the version that made it.
    ///
    /// # Errors
    /// When there are none; the text says what was looked at and what is needed.
    pub fn find(bin_dir: Option<&Path>, major: Option<u32>) -> Result<Self> {
        let dirs = bin_dir.map_or_else(usual_places, |dir| vec![dir.to_owned()]);
        let mut seen = Vec::new();
        let mut found: Vec<Self> = Vec::new();
        for dir in dirs {
            match inspect(&dir) {
                Ok(binaries) => found.push(binaries),
                Err(Some(why)) => seen.push(format!("  {}: {why}", dir.display())),
                Err(None) if bin_dir.is_some() => {
                    seen.push(format!("  {}: no postgres", dir.display()))
                }
                Err(None) => {}
            }
        }
        // Stable: of one version the place that comes first wins.
        found.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
        let fits = |binaries: &&Self| major.is_none_or(|major| binaries.major == major);
        if let Some(binaries) = found.iter().find(fits) {
            return Ok(binaries.clone());
        }
        seen.extend(found.iter().map(|f| format!("  {}: version {}", f.dir.display(), f.major)));
        let needed = match major {
            Some(major) => format!("PostgreSQL {major}, which made the data directory,"),
            None => format!("PostgreSQL {MAJOR_MIN} to {MAJOR_MAX}"),
        };
        let seen =
            if seen.is_empty() { String::new() } else { format!("\nfound:\n{}", seen.join("\n")) };
        bail!(
            "{needed} is not installed; install it (Debian, Ubuntu: apt install postgresql) or name the directory of its \
             programs with --bin-dir or postgres.bin_dir{seen}"
        );
    }

    /// The path of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// The version in a directory; `Err(None)` when there is no server at all.
fn inspect(dir: &Path) -> Result<Binaries, Option<String>> {
    let postgres = dir.join("postgres");
    if !postgres.is_file() {
        return Err(None);
    }
    let output = Command::new(&postgres).arg("--version").output();
    let text = match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Ok(output) => {
            return Err(Some(format!("`postgres --version` ended with {}", output.status)));
        }
        Err(error) => return Err(Some(format!("`postgres --version` cannot be run: {error}"))),
    };
    let major = major_of(&text)
        .ok_or_else(|| Some(format!("`postgres --version` says {:?}", text.trim())))?;
    if !(MAJOR_MIN..=MAJOR_MAX).contains(&major) {
        return Err(Some(format!(
            "version {major} is not supported ({MAJOR_MIN} to {MAJOR_MAX} are)"
        )));
    }
    if !dir.join("initdb").is_file() {
        return Err(Some("no initdb beside postgres".to_owned()));
    }
    Ok(Binaries { dir: dir.to_owned(), major })
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` is 15.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split_whitespace().nth(2)?;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Where Debian, Red Hat, Homebrew and the sources put the programs, and `PATH`.
fn usual_places() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for (parent, prefix) in
        [("/usr/lib/postgresql", ""), ("/usr", "pgsql-"), ("/usr/local", "pgsql")]
    {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(prefix)
                && (parent != "/usr/lib/postgresql" || name.parse::<u32>().is_ok())
            {
                dirs.push(entry.path().join("bin"));
            }
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    dirs.extend(std::env::split_paths(&path).filter(|dir| dir.is_absolute()));
    dirs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions_as_the_packagers_print_them() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_of("pong"), None);
    }

    #[test]
    fn a_directory_without_programs_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Binaries::find(Some(dir.path()), None).unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        assert!(error.contains("PostgreSQL 15 to 18"), "{error}");
    }
}
