//! The folder of one run: fixed file names, and a lock against two processes training in it.

use crate::{Checkpoints, CommitError, Error, Result, Retention, write_whole};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// The folder of one training run. Anyone may read it; to write, take [`RunDir::lock`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

/// Held while a process trains in a directory; the system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct RunLock {
    // Locks belong to the open file: dropping it unlocks.
    _file: File,
}

impl RunDir {
    /// The run in `path`, created with its folders if it is not there.
    ///
    /// # Errors
    /// A folder cannot be created.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let run = Self { path: path.into() };
        fs::create_dir_all(run.checkpoints_dir()).map_err(Error::io(&run.path))?;
        Ok(run)
    }

    /// The run in `path`, which must exist. Nothing is created.
    ///
    /// # Errors
    /// There is no such folder.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if path.is_dir() { Ok(Self { path }) } else { Err(Error::NoRun { path }) }
    }

    /// Takes the lock of the run. Advisory: it holds off other `occlude` processes, not a file manager.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it; or the lock file cannot be created.
    pub fn lock(&self) -> Result<RunLock> {
        let path = self.file("run.lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(RunLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path: self.path.clone() }),
            Err(TryLockError::Error(source)) => Err(Error::Io { path, source }),
        }
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of the run.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The resolved config.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.file("config.toml")
    }

    /// Versions, seed, device and command of the run.
    #[must_use]
    pub fn run_file(&self) -> PathBuf {
        self.file("run.json")
    }

    /// The last numbers and the scores.
    #[must_use]
    pub fn summary_file(&self) -> PathBuf {
        self.file("summary.json")
    }

    /// Losses, learning rates and scores: equal for equal seeds.
    #[must_use]
    pub fn metrics_file(&self) -> PathBuf {
        self.file("metrics.jsonl")
    }

    /// Speeds and waits: never equal.
    #[must_use]
    pub fn timing_file(&self) -> PathBuf {
        self.file("timing.jsonl")
    }

    /// The HTML report.
    #[must_use]
    pub fn report_file(&self) -> PathBuf {
        self.file("report.html")
    }

    /// Where checkpoints lie.
    #[must_use]
    pub fn checkpoints_dir(&self) -> PathBuf {
        self.file("checkpoints")
    }

    /// Where steps that gave a non-finite loss lie.
    #[must_use]
    pub fn replay_dir(&self) -> PathBuf {
        self.file("replay")
    }

    /// The checkpoints of the run.
    #[must_use]
    pub fn checkpoints(&self, retention: Retention) -> Checkpoints {
        Checkpoints::new(self.checkpoints_dir(), retention)
    }

    /// Writes a small file of the run whole.
    ///
    /// # Errors
    /// As [`write_whole`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CommitError> {
        write_whole(&self.file(name), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::RunDir;
    use crate::Error;

    #[test]
    fn two_cannot_train_in_one_directory() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path().join("a/b")).unwrap();
        let lock = run.lock().unwrap();
        let refused = RunDir::open(run.path()).unwrap().lock().unwrap_err();
        assert!(matches!(&refused, Error::Locked { path } if path == run.path()), "{refused}");
        drop(lock);
        run.lock().unwrap();
    }

    #[test]
    fn a_missing_run_is_not_created_by_reading() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none");
        assert!(matches!(RunDir::open(&path), Err(Error::NoRun { .. })));
        assert!(!path.exists());
    }
}
