//! Files that are whole or not there: written under another name, synced, renamed.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result};

/// Writes a file so that after a crash the old or the new text is there, never a part, with the permissions `mode`.
///
/// # Errors
/// When the disk refuses; the old file is unchanged then.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let partial = path.with_extension("partial");
        let _ = fs::remove_file(&partial);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&partial)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_parent(path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// [`write_atomic`] of a value as JSON.
pub(super) fn write_json(path: &Path, value: &impl serde::Serialize, mode: u32) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    write_atomic(path, &text, mode)
}

/// Makes a directory, and those above it, with the permissions `mode`; one that is there is left as it is.
pub(super) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        // Exactly this mode, whatever the umask takes away: another user's server may have to pass.
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Puts a finished directory where it belongs.
pub(super) fn publish_dir(partial: &Path, path: &Path) -> Result<()> {
    fs::rename(partial, path)
        .and_then(|()| sync_parent(path))
        .with_context(|| format!("cannot rename {} to {}", partial.display(), path.display()))
}

/// Removes what an interrupted run left under the name of an unfinished directory.
pub(super) fn clear_partial(partial: &Path) -> Result<()> {
    match fs::remove_dir_all(partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error)
            .with_context(|| format!("cannot remove the unfinished {}", partial.display())),
        _ => Ok(()),
    }
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
