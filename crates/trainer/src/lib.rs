//! The training loop: batches in, steps, probes, metrics, checkpoints, and an exact way back after any interruption.
//!
//! A [`Trainer`] drives any `Method` with batches from a [`Batches`] source. It owns the optimizer, writes the files of
//! the run through [`Sink`]s, asks [`Probe`]s for scores, saves, stops on a signal ([`Stop`]) and resumes by itself from
//! the newest whole checkpoint of the run directory.
//!
//! Invariants: `N` steps in one go and `k` steps, any kind of end, and a second start give the same weights, moments and
//! `metrics.jsonl`, bit for bit on the CPU; files that grow are cut back to where the checkpoint found them, so no row is
//! missing or doubled; where a loss or gradient is not finite the optimizer does not move, and the micro-batch is stored
//! whole under `replay/`, from where [`replay()`] runs it again; ranks that train one model stay equal.
//!
//! Not here: which method is trained, where images come from, how a score is computed, printing. The progress bar draws
//! where the caller lets it ([`ProgressSink`] is given its bar).
//!
//! ```
//! use occlude_settings::Span;
//! use occlude_trainer::TrainConfig;
//! let training = TrainConfig { length: Span::Epochs(2.0), batch: 64, ..TrainConfig::default() }.check(6400)?;
//! assert_eq!(training.ruler().total_steps, 200);
//! # Ok::<(), occlude_settings::ConfigError>(())
//! ```

mod clock;
mod config;
mod error;
mod event;
mod memory;
mod probe;
mod replay;
mod sinks;
mod state;
mod stop;
mod summary;
mod total;
mod trainer;

pub use config::{CheckpointConfig, TrainConfig, Training};
pub use error::{Error, Result};
pub use event::{Event, MatrixRow, Named, ProbeRow, StepRow, TimingRow};
pub use memory::peak_memory_mb;
pub use probe::Probe;
pub use replay::{Replay, replay};
pub use sinks::{MetricsSink, ProgressSink, Sink, TensorBoardSink, TimingSink};
pub use stop::Stop;
pub use summary::Summary;
pub use trainer::{Batches, End, Outcome, Trainer};
