//! Run directories, atomic checkpoints, and weights in official layouts.
//!
//! A [`RunDir`] is the folder of one training run; opening it for training takes a lock. [`Checkpoints`] commits named
//! state dictionaries and a JSON state as one folder `step-00000100` and finds the newest whole one again.
//! [`layouts`] writes and reads the tensor names that other people's tools expect.
//!
//! Invariants: a file or folder appears under its final name only when all its bytes are on disk (temporary name,
//! fsync, rename, fsync of the folder); every byte of a checkpoint is covered by a checksum, so a damaged one is
//! refused and the one before it is found; a failed commit leaves the previous checkpoint as it was; pruning never
//! removes the checkpoint just written.
//!
//! Limits, checked before memory is taken: [`MAX_MANIFEST_BYTES`], [`MAX_STATE_BYTES`], [`MAX_TENSOR_FILE_BYTES`].
//!
//! Not here: what the tensors mean, when to save (`trainer`), printing.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use occlude_checkpoint::{Checkpoints, Retention};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let checkpoints = Checkpoints::new(folder.path(), Retention::default());
//! let weights = [("weight".to_owned(), Tensor::new(&[1_f32, 2.0], &Device::Cpu)?)].into();
//! checkpoints.commit(100, &[("method", &weights)], &serde_json::json!({ "seed": 7 }))?;
//! let newest = checkpoints.newest()?.checkpoint.ok_or("nothing found")?;
//! assert_eq!(newest.step(), 100);
//! assert_eq!(newest.load("method", &Device::Cpu)?["weight"].to_vec1::<f32>()?, [1.0, 2.0]);
//! # Ok(())
//! # }
//! ```

mod checkpoint;
mod checkpoints;
mod error;
mod files;
pub mod layouts;
mod manifest;
mod run_dir;
mod tensors;

pub use checkpoint::{Checkpoint, MAX_STATE_BYTES};
pub use checkpoints::{Checkpoints, CommitPhase, Newest, Retention};
pub use error::{CommitError, Error, Result};
pub use files::write_whole;
pub use manifest::MAX_MANIFEST_BYTES;
pub use run_dir::{RunDir, RunLock};
pub use tensors::{MAX_TENSOR_FILE_BYTES, read_tensors, write_tensors};
