//! The pre-training methods behind one trait.
//!
//! A [`Method`] owns its networks and says what one step computes; which one runs, with which settings, is a
//! [`MethodConfig`]. Methods: [`capi`], [`moca`], [`randsac`], [`mae`].
//!
//! Invariants: a step changes no parameter; every trained tensor of [`Method::groups`] gets a gradient in every step;
//! all draws come from named streams keyed by the batch or the step.
//! Not here: the loop, files, the optimizer (`trainer`, `checkpoint`, `optim`), and the parts methods are made of.
//!
//! ```
//! use candle_core::{DType, Device};
//! use occlude_methods::{BatchSize, Method, MethodConfig, capi::CapiConfig};
//! use occlude_random::Streams;
//! use occlude_settings::Ruler;
//! let mut config = CapiConfig::default();
//! (config.encoder.dim, config.encoder.depth, config.encoder.heads, config.encoder.patch) = (32, 1, 2, 4);
//! (config.predictor.dim, config.predictor.depth, config.predictor.heads) = (32, 1, 2);
//! config.clustering.prototypes = 64;
//! let ruler = Ruler { steps_per_epoch: 50.0, total_steps: 1000 };
//! let batch = BatchSize { micro: 64, accumulate: 1 };
//! let checked = MethodConfig::Capi(Box::new(config)).check(32, batch, ruler)?;
//! let method = checked.build(Streams::new(0), DType::F32, &Device::Cpu)?;
//! assert!(method.state().contains_key("student_ema.backbone.mask_token"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod capi;
mod choice;
mod extract;
pub mod mae;
mod method;
pub mod moca;
mod pixels;
pub mod randsac;
mod recipe;
mod stores;

pub use choice::{CheckedMethod, MethodConfig, ShownMask};
pub use extract::{GlobalToken, PlainExtractor};
pub use method::{BatchSize, Matrix, Method, StepContext, StepOutput, ViewBatch, Weights};
pub use pixels::Painted;
pub use recipe::AdamWConfig;
