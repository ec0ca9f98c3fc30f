//! Whole files: a scratch file or folder beside its target, fsync, rename, fsync of the parent.
//!
//! The order is forced by types: only [`Scratch::publish`] renames, it consumes the guard, and it takes a path that
//! was synced by the functions of this module. A guard that is dropped removes what it made.

use crate::CommitError;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Beginning of every name that is not yet, or no longer, a committed file. Leftovers may be deleted.
pub(crate) const SCRATCH_PREFIX: &str = ".tmp-";

/// Writes `bytes` to `path` so that a reader sees either the old file or the new one, also after a crash.
///
/// # Errors
/// [`CommitError::NotCommitted`]: the old file stands. [`CommitError::Unconfirmed`]: the new one is in place, but
/// the folder could not be synced.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), CommitError> {
    write_whole_with(path, |file| file.write_all(bytes))
}

/// [`write_whole`] with the bytes coming from `fill`, for files too large to hold.
pub(crate) fn write_whole_with(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), CommitError> {
    let scratch = Scratch::beside(path);
    write_synced(&scratch.path, fill).map_err(CommitError::not_committed(path))?;
    scratch.publish(path)
}

/// Creates `path`, fills it and brings its bytes to disk. The name itself is durable once the folder is synced.
pub(crate) fn write_synced(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = File::create(path)?;
    fill(&mut file)?;
    file.sync_all()
}

/// Brings the names in `folder` to disk.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    // Windows neither can nor needs to sync a directory handle.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Owns a file or folder under a scratch name; removes it unless published.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) path: PathBuf,
    published: bool,
}

impl Scratch {
    /// A scratch name in the folder of `target`. Nothing is created yet; a leftover of that name is removed.
    pub(crate) fn beside(target: &Path) -> Self {
        let mut name = OsString::from(SCRATCH_PREFIX);
        name.push(target.file_name().unwrap_or_default());
        let path = target.with_file_name(name);
        remove_any(&path);
        Self { path, published: false }
    }

    /// A scratch folder in the folder of `target`, created empty.
    pub(crate) fn folder_beside(target: &Path) -> io::Result<Self> {
        let scratch = Self::beside(target);
        fs::create_dir_all(&scratch.path)?;
        Ok(scratch)
    }

    /// Gives the finished file or folder its name and makes the name durable.
    pub(crate) fn publish(mut self, target: &Path) -> Result<(), CommitError> {
        fs::rename(&self.path, target).map_err(CommitError::not_committed(target))?;
        self.published = true;
        match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
            _ => sync_folder(Path::new(".")),
        }
        .map_err(CommitError::unconfirmed(target))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.published {
            remove_any(&self.path);
        }
    }
}

/// Removes a file or folder if it is there. A leftover that cannot be removed costs space, nothing else: it is
/// logged, and its name keeps it from being read.
pub(crate) fn remove_any(path: &Path) {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return,
    };
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "leftover not removed");
    }
}

#[cfg(test)]
mod tests {
    use super::{Scratch, write_whole, write_whole_with};
    use crate::CommitError;
    use std::{fs, io};

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_scratch() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        write_whole(&path, b"old").unwrap();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let refused = write_whole_with(&path, |file| io::Write::write_all(file, b"ne").and(Err(full()))).unwrap_err();
        assert!(matches!(refused, CommitError::NotCommitted { .. }));
        assert!(refused.to_string().ends_with("free some space, then start the same command again"), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_dropped_scratch_folder_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch::folder_beside(&folder.path().join("step-00000001")).unwrap();
        fs::write(scratch.path.join("half"), b"x").unwrap();
        assert!(scratch.path.exists());
        drop(scratch);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_replaces_the_one_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary.json");
        write_whole(&path, b"first").unwrap();
        write_whole(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
    }
}
