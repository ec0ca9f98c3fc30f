//! The schema of a run, from whatever a person writes to a checked whole.
//!
//! Settings come in layers, each over the one before: defaults, a preset, a file, `OCCLUDE_*` variables, `--set`. Each
//! layer is held against the schema, so an unknown key is refused with its full name, where it stands and the nearest
//! key that exists. The result is a [`RunConfig`] (raw: it may still hold a bad value), which [`RunConfig::check`]
//! turns into a [`Run`] by asking every room to check its own part.
//!
//! Published experiments are rows of one table a method ([`Reproduction`]): a preset and what a row changes, at the paper's
//! size and at a smaller one, beside the figures of the paper.
//!
//! Invariants: a `Run` cannot be built unchecked; equal layers give equal text from [`RunConfig::to_toml`], and that
//! text reads back as the same config.
//! Not here: reading the environment or the command line (the caller passes both in), tensors, and the meaning of any
//! setting (each room documents its own).
//!
//! ```
//! let layers = occlude_config::Sources { set: vec!["train.batch=8".into()], ..Default::default() };
//! assert!(occlude_config::resolve(&layers).is_ok());
//! let layers = occlude_config::Sources { set: vec!["train.bacth=8".into()], ..Default::default() };
//! let message = occlude_config::resolve(&layers).unwrap_err().to_string();
//! assert!(message.contains("did you mean `train.batch`?"), "{message}");
//! ```

mod error;
mod identity;
mod keys;
mod layers;
mod merge;
mod presets;
mod repro;
mod run;

pub use error::{Error, Result};
pub use layers::{Source, Sources, is_setting};
pub use presets::{QUICKSTART, preset_names};
pub use repro::{Absent, Difference, Figure, Measure, Reproduction, Row, Scale, Selected, Study, differences};
pub use run::{DataConfig, LINEAR_PROBE_NEEDS, NOMINAL_IMAGES, Run, RunConfig, resolve};
