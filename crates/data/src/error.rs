//! Why an image or a data set could not be read.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image or a data set could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be opened or read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The path of a data set leads nowhere.
    #[error(
        "{path}: no such file or folder; give a folder of images, tar shards, a CIFAR or IDX set, or `synthetic`",
        path = path.display()
    )]
    Missing {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The folder or archive is there, but holds no image.
    #[error("{path}: no images inside; PNG, JPEG, WebP and TIFF files are looked for, in all subfolders", path = path.display())]
    Empty {
        /// The folder or archive.
        path: PathBuf,
    },
    /// The file is none of the known kinds.
    #[error("{path}: {reason}", path = path.display())]
    Unrecognised {
        /// The file.
        path: PathBuf,
        /// What was seen and what would be read.
        reason: String,
    },
    /// A folder holds archives and images side by side.
    #[error(
        "{path}: holds archives ({archive}) and images ({image}); give the path of one or the other, or move one away",
        path = path.display(), archive = archive.display(), image = image.display()
    )]
    Mixed {
        /// The folder.
        path: PathBuf,
        /// The first archive.
        archive: PathBuf,
        /// An image.
        image: PathBuf,
    },
    /// An evaluation split was asked for, but there is none.
    #[error("{path}: no test split; give `test` a path, or set `holdout` above 0", path = path.display())]
    NoTestSplit {
        /// The data set.
        path: PathBuf,
    },
    /// A binary file is not a whole number of records.
    #[error(
        "{path}: {found} bytes is not a whole number of {record}-byte records; the file is cut short or of another kind: fetch it again",
        path = path.display()
    )]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// Bytes of one record.
        record: u64,
    },
    /// An archive or binary file ends before what its headers announce.
    #[error(
        "{path}: cut short: {what} needs {expected} bytes, {found} are there; fetch the file again",
        path = path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The part that is incomplete.
        what: String,
        /// Length in bytes that the headers announce.
        expected: u64,
        /// Length in bytes that was found.
        found: u64,
    },
    /// A file contradicts its own format.
    #[error("{path}: {reason}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was seen and expected.
        reason: String,
    },
    /// Something announces a size beyond a named limit; nothing was allocated for it.
    #[error("{name}: {what} of {found} exceeds the limit of {limit}")]
    TooLarge {
        /// The file or entry.
        name: String,
        /// What is too large, with its unit.
        what: &'static str,
        /// The announced size.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// One image could not be decoded.
    #[error("{name}: {reason}")]
    Decode {
        /// The file or entry.
        name: String,
        /// What the decoder said.
        reason: String,
    },
    /// More files than allowed could not be read.
    #[error(
        "{count} unreadable images are more than max_corrupt_share = {share} of {of} images; the first: {first}. Repair or remove them, or raise max_corrupt_share"
    )]
    TooManyCorrupt {
        /// How many different images failed.
        count: usize,
        /// What the share is taken of: the images loaded so far, but no fewer than a fair sample and no more than all.
        of: u64,
        /// The allowed share.
        share: f64,
        /// The first failure.
        first: String,
    },
    /// Image after image could not be read, so that a batch could not be filled.
    #[error("{tries} images drawn in a row cannot be read; the first: {first}. Repair or remove them")]
    NoneReadable {
        /// How many were tried.
        tries: usize,
        /// The first failure.
        first: String,
    },
    /// The loader has ended, after an earlier error or because a worker thread was lost.
    #[error("the loader has ended: {reason}")]
    Ended {
        /// Why.
        reason: String,
    },
}

impl Error {
    /// For `map_err`: a system error at a path.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// A decoding failure of `name`.
    pub(crate) fn decode(name: &str, reason: impl std::fmt::Display) -> Self {
        Self::Decode { name: name.to_owned(), reason: reason.to_string() }
    }
}
