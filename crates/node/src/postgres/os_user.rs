//! The user that runs the server: PostgreSQL refuses to run as root.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

/// An unprivileged user of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsUser {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// The number of its main group.
    pub gid: u32,
}

impl OsUser {
    /// Who runs the server: `name` when this process is root, otherwise (`None`) whoever runs this process.
    ///
    /// # Errors
    /// When this process is root and there is no such user.
    pub fn for_server(name: &str) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let user = passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields.first() == Some(&name))
                .then(|| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)))?
        });
        let (uid, gid) = user.with_context(|| {
            format!(
                "PostgreSQL does not run as root, and there is no user `{name}` to run it as; nothing was changed. \
                 Install PostgreSQL's package, make the user, or set postgres.os_user"
            )
        })?;
        Ok(Some(Self { name: name.to_owned(), uid, gid }))
    }

    /// Makes a command run as this user. The standard library drops the supplementary groups of root as well.
    pub fn apply(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Gives this user a file or a directory.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn own(&self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("cannot give {} to the user {}", path.display(), self.name))
    }
}
