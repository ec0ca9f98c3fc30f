//! AdamW with parameter groups, schedules, clipping and the moving averages of a teacher.
//!
//! A [`ParamGroup`] holds parameters that share a [`Schedule`] and settings; an [`Optimizer`] steps all groups and, in the
//! same pass, their averages ([`Ema`]). Multipliers on the learning rate and weight decay come with each parameter
//! (`Role::Trained`). Source: CAPI, schedules and optimisers.
//!
//! Invariants: a step that is refused has changed nothing; averages are taken of parameters *after* their step; the
//! state of an optimizer and a step's number decide everything a later step does, bit for bit.
//! Not here: gradients (`kernels`), which parameters form a group (`methods`), when a step is skipped (`trainer`).
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use occlude_kernels::{Factors, Init, ParamStore, backward};
//! use occlude_optim::{Optimizer, ParamGroup, Schedule};
//! # use occlude_random::Streams;
//! let mut store = ParamStore::trainable(Streams::new(0), DType::F32, &Device::Cpu);
//! let weight = store.root().trained("weight", &[3], &Init::Constant(1.0), Factors::ONE)?;
//! let group = ParamGroup::adamw("model", store.params(), Schedule::constant(0.1));
//! let mut optimizer = Optimizer::new(vec![group], None)?;
//! for step in 0..100 {
//!     let loss = weight.sqr()?.sum_all()?;
//!     optimizer.step(&backward(&loss)?, step)?;
//! }
//! assert!(weight.abs()?.max(0)?.to_scalar::<f32>()? < 0.1);
//! # Ok::<(), occlude_kernels::Error>(())
//! ```

mod group;
mod optimizer;
mod schedule;

pub use group::{Ema, ParamGroup};
pub use optimizer::{Optimizer, StepReport};
pub use schedule::{Schedule, ScheduleConfig};
