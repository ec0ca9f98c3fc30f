//! Why a run directory, a checkpoint or a weight file was refused.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be read. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be opened, read or created.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The run directory does not exist.
    #[error("{path}: no such run directory; give the folder that `train` wrote", path = path.display())]
    NoRun {
        /// The folder asked for.
        path: PathBuf,
    },
    /// Another process trains in this directory.
    #[error("{path}: another process is training here; wait for it or give another --out", path = path.display())]
    Locked {
        /// The run directory.
        path: PathBuf,
    },
    /// A file is missing, has another length or other bytes than its manifest says, or does not parse.
    #[error("{path}: damaged: {reason}", path = path.display())]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is larger than this crate reads.
    #[error("{path}: {size} bytes, more than the limit of {limit}", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A tensor of a weight file does not have the shape that the settings need.
    #[error("{path}: {tensor} has shape {found:?}, the config needs {needed:?}", path = path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// Its shape there.
        found: Vec<usize>,
        /// The shape that is needed.
        needed: Vec<usize>,
    },
    /// A whole, undamaged file whose content does not fit what was asked of it.
    #[error("{path}: {reason}", path = path.display())]
    Mismatch {
        /// The file or folder.
        path: PathBuf,
        /// What does not fit, and what to do.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn mismatch(path: &Path, reason: impl Into<String>) -> Self {
        Self::Mismatch { path: path.to_owned(), reason: reason.into() }
    }
}

/// Why a file or checkpoint was not written, or not certainly so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// Nothing was replaced: what was there before is intact.
    #[error("{path}: not written, what was there before stands: {source}{remedy}", path = path.display(), remedy = remedy(source))]
    NotCommitted {
        /// What was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The new file or folder is in place; a power cut could still undo the rename.
    #[error("{path}: in place, durability unconfirmed: {source}", path = path.display())]
    Unconfirmed {
        /// What was written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl CommitError {
    pub(crate) fn not_committed(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::NotCommitted { path, source }
    }

    pub(crate) fn unconfirmed(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Unconfirmed { path, source }
    }
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space, then start the same command again"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; make the folder writable or give another --out"
        }
        _ => "",
    }
}
