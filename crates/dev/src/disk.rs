//! A small file system in memory under a directory of a node, to be filled in a test.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The file that takes the room.
const FILLER: &str = "filler";

/// A mounted file system of a fixed size; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts `bytes` of memory on `folder`, which keeps its owner. What the folder held is moved onto it.
    ///
    /// # Errors
    /// When the mount is not allowed, which needs root.
    pub fn mount(folder: &Path, bytes: u64) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("mounting a small disk needs root");
        }
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let owner = fs::metadata(folder)?;
        let options = format!(
            "size={bytes},uid={},gid={},mode={:o}",
            owner.uid(),
            owner.gid(),
            owner.mode() & 0o7777
        );
        let kept = folder.with_extension("kept");
        fs::create_dir_all(&kept)?;
        run(Command::new("cp").arg("-a").arg(folder.join(".")).arg(&kept))?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder))?;
        let disk = Self { folder: folder.to_owned() };
        run(Command::new("cp").arg("-a").arg(kept.join(".")).arg(folder))?;
        fs::remove_dir_all(&kept)?;
        Ok(disk)
    }

    /// Takes all the room but about `left_bytes`.
    ///
    /// # Errors
    /// When the filler cannot be written for another reason than a full disk.
    pub fn fill(&self, left_bytes: u64) -> Result<()> {
        let stat = rustix::fs::statvfs(&self.folder)?;
        let mut take = (stat.f_bavail * stat.f_frsize).saturating_sub(left_bytes);
        let mut filler = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join(FILLER))
            .context("open the filler")?;
        let block = vec![0u8; 64 * 1024];
        while take > 0 {
            let part = take.min(block.len() as u64) as usize;
            match filler.write(&block[..part]) {
                Ok(0) => break,
                Ok(written) => take -= written as u64,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("write the filler"),
            }
        }
        Ok(())
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// When the filler cannot be removed.
    pub fn relieve(&self) -> Result<()> {
        fs::remove_file(self.folder.join(FILLER)).context("remove the filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazy: an agent may still have files open on it.
        let _ = run(Command::new("umount").arg("-l").arg(&self.folder));
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_full_and_has_room_again() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let place = folder.path().join("spool");
        fs::create_dir(&place)?;
        fs::write(place.join("before"), "kept")?;
        let disk = match SmallDisk::mount(&place, 1 << 20) {
            Ok(disk) => disk,
            Err(error) => {
                eprintln!("skipped: {error:#}");
                return Ok(());
            }
        };
        assert_eq!(fs::read_to_string(place.join("before"))?, "kept");
        disk.fill(0)?;
        let refused = fs::write(place.join("after"), vec![0; 100_000]);
        assert!(refused.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull));
        disk.relieve()?;
        fs::write(place.join("after"), vec![0; 100_000])?;
        Ok(())
    }
}
