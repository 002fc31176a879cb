//! Copies a spool whose writer goes on meanwhile.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use super::durable;
use super::segment;
use super::{Config, SpoolError, SpoolId, recovery};

/// Copies the spool in `from` to `to`, a directory that is made, and verifies it as [`super::open`] does. The copy ends
/// with a transaction that was complete when it was made, or a later one.
///
/// # Errors
/// [`SpoolError::Io`] also when the oldest segment was deleted meanwhile; [`SpoolError::Corrupt`] when the original is,
/// or its writer undid a transaction at the moment of copying; [`SpoolError::OtherSpool`]. The original is untouched.
pub fn copy(from: &Path, to: &Path, id: SpoolId, config: Config) -> Result<(), SpoolError> {
    fs::create_dir_all(to).map_err(|source| SpoolError::io("create", to, source))?;
    // First the note of what is durable: what is copied after it reaches at least so far.
    let note = durable::NAME;
    if from.join(note).exists() {
        copy_file(&from.join(note), &to.join(note))?;
    }
    let failed = |source| SpoolError::io("list", from, source);
    let mut segments = Vec::new();
    for entry in fs::read_dir(from).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(number) = name.and_then(segment::number) {
            segments.push((number, path));
        }
    }
    segments.sort();
    for (number, path) in segments {
        copy_file(&path, &segment::path(to, number))?;
    }
    let dir = File::open(to).and_then(|dir| dir.sync_all());
    dir.map_err(|source| SpoolError::io("sync", to, source))?;
    recovery::open(to, id, config).map(drop)
}

/// Copies what the file holds now.
fn copy_file(from: &Path, to: &Path) -> Result<(), SpoolError> {
    let read = |source| SpoolError::io("read", from, source);
    let write = |source| SpoolError::io("write", to, source);
    let original = File::open(from).map_err(read)?;
    let length = original.metadata().map_err(read)?.len();
    let mut copy = File::create_new(to).map_err(write)?;
    io::copy(&mut original.take(length), &mut copy).map_err(write)?;
    copy.sync_all().map_err(write)
}
