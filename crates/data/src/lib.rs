//! Images for training and evaluation: data sets, decoding, augmentations and the deterministic loader.
//!
//! Invariants: every image is 8-bit RGB once decoded; the batch of a step is a pure function of (seed, step), for any
//! number of workers and after any interruption; sizes that a file announces are checked before memory is taken; a
//! file that cannot be read is counted, named and replaced, never half decoded.
//! Not here: tensors and devices (the consumers of [`Batch`]), what a method does with views, and any download.
//!
//! ```no_run
//! use occlude_data::{CropConfig, Loader, LoaderConfig, SourceConfig, Split};
//! use occlude_random::Streams;
//! use std::sync::Arc;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = SourceConfig { path: "photos".into(), ..SourceConfig::default() }.check()?;
//! let dataset = occlude_data::open(&source, Split::Train)?;
//! let crop = Arc::new(CropConfig { size: 96, ..CropConfig::default() }.check()?);
//! let settings = LoaderConfig::default().check(64)?;
//! let mut loader = Loader::start(dataset, crop, settings, Streams::new(0), 0)?;
//! let batch = loader.next()?;
//! assert_eq!(batch.shape, [64, 3, 96, 96]);
//! # Ok(())
//! # }
//! ```

mod augment;
mod cache;
mod crop;
mod dataset;
mod decode;
mod draw;
mod error;
mod evaluate;
mod files;
mod fingerprint;
mod layout;
mod limits;
mod loader;
pub mod ops;
mod part;
mod readers;
mod resample;
mod source;
mod synthetic;
mod vector;
mod views;

pub use augment::{Augment, Draws, Normalize};
pub use crop::{CropBox, CropConfig, RandomCrop};
pub use dataset::{Dataset, Image};
pub use decode::decode;
pub use error::{Error, Result};
pub use evaluate::{EvalMode, EvalTransform};
pub use loader::{Batch, Loader, LoaderConfig, LoaderSettings};
pub use resample::{Interpolation, resize_nearest};
pub use source::{Both, Source, SourceConfig, Split, open, open_both};
pub use synthetic::Synthetic;
pub use views::{BlurConfig, JitterConfig, NamedViews, SolariseConfig, ViewConfig, Views, ViewsConfig};
