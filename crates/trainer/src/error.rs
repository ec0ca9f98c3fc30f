//! Why a run stopped before its end.

use occlude_checkpoint::CommitError;
use std::io;
use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a run stopped before its end. The newest checkpoint of the run is intact in every case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A loss or gradient is not finite. The optimizer has not moved in that step.
    #[error(
        "step {step}: {what} is not finite; stopped before the optimizer moved, {checkpoint}. {bundle}; \
         a lower learning rate, a longer warm-up or train.clip may help"
    )]
    NonFinite {
        /// The step, 0-based.
        step: u64,
        /// The loss, or the parameter whose gradient it is.
        what: String,
        /// Which checkpoint stands, in words.
        checkpoint: String,
        /// Where the step was stored and how to run it again, or why it was not stored.
        bundle: String,
    },
    /// The newest checkpoint belongs to a run with other settings.
    #[error(
        "{path}: written with another configuration: differs in {differences}; give another --out, or --fresh to start over",
        path = path.display()
    )]
    OtherConfig {
        /// The checkpoint.
        path: PathBuf,
        /// The settings that differ, with both values.
        differences: String,
    },
    /// A stored step belongs to a run with other settings.
    #[error(
        "{path}: stored by a run with other settings: differs in {differences}; only that run can replay it",
        path = path.display()
    )]
    OtherStep {
        /// The folder of the stored step.
        path: PathBuf,
        /// The settings that differ, with both values.
        differences: String,
    },
    /// There are checkpoints, but none is whole.
    #[error("{path}: none of {count} checkpoints is whole ({first}); --fresh starts over", path = path.display())]
    NoWholeCheckpoint {
        /// The folder of checkpoints.
        path: PathBuf,
        /// How many there are.
        count: usize,
        /// What is wrong with the newest.
        first: String,
    },
    /// A checkpoint or replay bundle could not be read.
    #[error(transparent)]
    Checkpoint(#[from] occlude_checkpoint::Error),
    /// A checkpoint could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A metrics file could not be written.
    #[error("{name}: {source}{}", remedy(source))]
    Sink {
        /// The sink, or its file.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The next batch could not be made.
    #[error(transparent)]
    Data(#[from] occlude_data::Error),
    /// The method or the optimizer refused.
    #[error(transparent)]
    Method(#[from] occlude_kernels::Error),
    /// The ranks of the run could not agree, or one is gone.
    #[error(transparent)]
    Collective(#[from] occlude_distributed::Error),
    /// A probe failed.
    #[error("probe after step {step}: {source}")]
    Probe {
        /// Steps done.
        step: u64,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Method(error.into())
    }
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space, then start the same command again"
        }
        _ => "",
    }
}
