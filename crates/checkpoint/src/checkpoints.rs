//! The folder of checkpoints: commit, find the newest whole one, prune.

use crate::checkpoint::{PART_ENDING, STATE, folder_name, is_plain, step_of};
use crate::files::{SCRATCH_PREFIX, Scratch, remove_any, sync_folder, write_synced};
use crate::manifest::{FileSum, MANIFEST, Manifest, SummingWriter};
use crate::tensors::serialize;
use crate::{Checkpoint, CommitError, Error, Result};
use occlude_kernels::StateDict;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which checkpoints stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How many of the newest stay; 0 is read as 1.
    pub keep_last: usize,
    /// Every checkpoint at a multiple of this many steps stays as well.
    pub keep_every: Option<u64>,
}

impl Default for Retention {
    /// The three newest.
    fn default() -> Self {
        Self { keep_last: 3, keep_every: None }
    }
}

/// How far a commit has come. An observer sees each in this order; an error it returns fails the commit there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitPhase {
    /// The scratch folder exists and is empty.
    Begun,
    /// Tensor files and state are on disk, the manifest is not.
    PartsWritten,
    /// All files are on disk under the scratch name.
    Written,
    /// A checkpoint of the same step was moved aside. Only seen when there was one.
    MovedAside,
    /// The new checkpoint has its name.
    Published,
}

type Observer = Arc<dyn Fn(CommitPhase) -> io::Result<()> + Send + Sync>;

/// The checkpoints in one folder.
#[derive(Clone)]
pub struct Checkpoints {
    root: PathBuf,
    retention: Retention,
    observer: Option<Observer>,
}

impl std::fmt::Debug for Checkpoints {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Checkpoints").field("root", &self.root).field("retention", &self.retention).finish()
    }
}

/// What [`Checkpoints::newest`] found.
#[derive(Debug)]
pub struct Newest {
    /// The newest whole checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// Newer ones that were refused, newest first, each with the reason.
    pub skipped: Vec<(PathBuf, Error)>,
}

/// A checkpoint of the same step, moved aside during a commit.
const REPLACED_PREFIX: &str = ".tmp-replaced-";
/// A checkpoint on its way out: renamed first, so that one half removed is not taken for a damaged one.
const PRUNED_PREFIX: &str = ".tmp-pruned-";

impl Checkpoints {
    /// The checkpoints in `root`, which is created by the first commit.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, retention: Retention) -> Self {
        Self { root: root.into(), retention, observer: None }
    }

    /// Calls `observer` between the phases of every commit. For tests of what a kill or a full disk leaves behind.
    #[must_use]
    pub fn observed(self, observer: impl Fn(CommitPhase) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { observer: Some(Arc::new(observer)), ..self }
    }

    /// The folder that holds them.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes the checkpoint of `step`: one tensor file for each of `parts` and `state` as JSON. Then prunes.
    /// A checkpoint of the same step is replaced. Returns its folder.
    ///
    /// # Errors
    /// [`CommitError::NotCommitted`]: earlier checkpoints are as they were. [`CommitError::Unconfirmed`]: it is there,
    /// but the folder could not be synced.
    pub fn commit(
        &self,
        step: u64,
        parts: &[(&str, &StateDict)],
        state: &impl Serialize,
    ) -> Result<PathBuf, CommitError> {
        let target = self.root.join(folder_name(step));
        let scratch = self.write(step, &target, parts, state).map_err(CommitError::not_committed(&target))?;
        self.publish(scratch, &target)?;
        self.prune(step);
        Ok(target)
    }

    /// Committed checkpoints by step, oldest first. None is opened.
    ///
    /// # Errors
    /// The folder cannot be read. A folder that is not there holds none.
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut found: Vec<(u64, PathBuf)> = self
            .names()
            .map_err(Error::io(&self.root))?
            .into_iter()
            .filter_map(|name| step_of(&name).map(|step| (step, self.root.join(&name))))
            .collect();
        found.sort();
        Ok(found)
    }

    /// Walks from the newest checkpoint to the oldest and opens the first whole one. Changes nothing.
    ///
    /// # Errors
    /// The folder cannot be read. Damaged checkpoints are no error: they are in [`Newest::skipped`] and in the log.
    pub fn newest(&self) -> Result<Newest> {
        let mut skipped = Vec::new();
        for (_, path) in self.list()?.into_iter().rev() {
            match Checkpoint::open(&path) {
                Ok(checkpoint) => return Ok(Newest { checkpoint: Some(checkpoint), skipped }),
                Err(error) => {
                    tracing::warn!(%error, "checkpoint skipped, trying the one before it");
                    skipped.push((path, error));
                }
            }
        }
        Ok(Newest { checkpoint: None, skipped })
    }

    /// Clears up after a killed process: a checkpoint that was moved aside and not yet replaced gets its name back,
    /// scratch folders are removed. Only the process that trains may call this.
    ///
    /// # Errors
    /// The folder cannot be read, or a checkpoint cannot be renamed.
    pub fn recover(&self) -> Result<()> {
        for name in self.names().map_err(Error::io(&self.root))? {
            let path = self.root.join(&name);
            if let Some(original) = name.strip_prefix(REPLACED_PREFIX).map(|name| self.root.join(name))
                && !original.exists()
            {
                fs::rename(&path, &original).map_err(Error::io(&path))?;
            } else if name.starts_with(SCRATCH_PREFIX) {
                remove_any(&path);
            }
        }
        Ok(())
    }

    /// Removes every checkpoint, for a run that starts afresh.
    ///
    /// # Errors
    /// The folder cannot be read, or a checkpoint is still there.
    pub fn clear(&self) -> Result<()> {
        self.list()?.iter().try_for_each(|(step, path)| self.remove(*step, path))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        match fs::read_dir(&self.root) {
            // A name that is not UTF-8 is none of ours.
            Ok(entries) => entries
                .map(|entry| Ok(entry?.file_name().into_string().ok()))
                .filter_map(io::Result::transpose)
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn reached(&self, phase: CommitPhase) -> io::Result<()> {
        self.observer.as_ref().map_or(Ok(()), |observer| observer(phase))
    }

    /// Everything of a commit up to the rename: the manifest comes last, so that it never describes missing bytes.
    fn write(
        &self,
        step: u64,
        target: &Path,
        parts: &[(&str, &StateDict)],
        state: &impl Serialize,
    ) -> io::Result<Scratch> {
        fs::create_dir_all(&self.root)?;
        let scratch = Scratch::folder_beside(target)?;
        self.reached(CommitPhase::Begun)?;
        let mut files = BTreeMap::new();
        for (part, tensors) in parts {
            let name = format!("{part}{PART_ENDING}");
            if !is_plain(&name) {
                return Err(io::Error::other(format!("{part:?} cannot be part of a file name")));
            }
            let sum = write_summed(&scratch.path.join(&name), |out| serialize(tensors, out))?;
            files.insert(name, sum);
        }
        let state = serde_json::to_vec_pretty(state)?;
        files.insert(STATE.to_owned(), write_summed(&scratch.path.join(STATE), |out| out.write_all(&state))?);
        self.reached(CommitPhase::PartsWritten)?;
        let manifest = Manifest::new(step, files)?.to_bytes()?;
        write_synced(&scratch.path.join(MANIFEST), |file| file.write_all(&manifest))?;
        sync_folder(&scratch.path)?;
        self.reached(CommitPhase::Written)?;
        Ok(scratch)
    }

    fn publish(&self, scratch: Scratch, target: &Path) -> Result<(), CommitError> {
        let aside = target.exists().then(|| self.beside(target, REPLACED_PREFIX));
        if let Some(aside) = &aside {
            // A folder cannot be renamed onto another; between the two renames `recover` can bring this one back.
            remove_any(aside);
            fs::rename(target, aside).map_err(CommitError::not_committed(target))?;
        }
        let moved = if aside.is_some() { self.reached(CommitPhase::MovedAside) } else { Ok(()) };
        let published = moved.map_err(CommitError::not_committed(target)).and_then(|()| scratch.publish(target));
        if let Some(aside) = &aside {
            match &published {
                Err(CommitError::NotCommitted { .. }) => {
                    fs::rename(aside, target).map_err(CommitError::not_committed(target))?;
                }
                _ => remove_any(aside),
            }
        }
        published?;
        self.reached(CommitPhase::Published).map_err(CommitError::unconfirmed(target))
    }

    /// Removes what [`Retention`] does not keep. Later steps than `newest` are left over from before a damaged
    /// checkpoint: they do not count and stay until they are replaced.
    fn prune(&self, newest: u64) {
        let listed = match self.list() {
            Ok(listed) => listed,
            Err(error) => return tracing::warn!(%error, "old checkpoints not pruned"),
        };
        let kept_by_rule =
            |step: u64| self.retention.keep_every.is_some_and(|every| every > 0 && step.is_multiple_of(every));
        let past: Vec<_> = listed.into_iter().filter(|(step, _)| *step <= newest).collect();
        let surplus = past.len().saturating_sub(self.retention.keep_last.max(1));
        for (step, path) in past.iter().take(surplus).filter(|(step, _)| !kept_by_rule(*step)) {
            if let Err(error) = self.remove(*step, path) {
                tracing::warn!(%error, "old checkpoint not removed");
            }
        }
    }

    fn remove(&self, step: u64, path: &Path) -> Result<()> {
        let gone = self.beside(&self.root.join(folder_name(step)), PRUNED_PREFIX);
        fs::rename(path, &gone).map_err(Error::io(path))?;
        remove_any(&gone);
        Ok(())
    }

    fn beside(&self, target: &Path, prefix: &str) -> PathBuf {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        self.root.join(format!("{prefix}{name}"))
    }
}

fn write_summed(
    path: &Path,
    fill: impl FnOnce(&mut SummingWriter<BufWriter<&mut fs::File>>) -> io::Result<()>,
) -> io::Result<FileSum> {
    let mut sum = None;
    write_synced(path, |file| {
        let mut out = SummingWriter::new(BufWriter::new(file));
        fill(&mut out)?;
        sum = Some(out.finish()?);
        Ok(())
    })?;
    sum.ok_or_else(|| io::Error::other("nothing was written"))
}
