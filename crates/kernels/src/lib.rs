//! Differentiable operators for candle, their parameters and their optimizer.
//!
//! Each operator is a free function over f32 or f64 tensors. On the CPU it is one fused kernel with a hand-written
//! backward pass; on any other device it is its twin in [`mod@reference`], in ordinary tensor operations, which is
//! also what the tests judge it by. [`ParamStore`] holds parameters in order and by name, [`backward`] gives their
//! [`Gradients`], [`adamw_step`] changes them. [`threads::init`] belongs at the start of `main`.
//!
//! Invariants: the gradient of every tracked input is given, whatever the memory layout; results are bit-equal for any
//! number of threads; a NaN is never hidden; what does not fit is refused by an [`Error`] that names the operator.
//!
//! Not here: models, losses of a method, schedules, random masks, files.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use occlude_kernels::{backward, gelu, linear};
//! let x = Tensor::new(&[[1_f32, 2.0]], &Device::Cpu)?; // [rows, in]
//! let w = Var::new(&[[0.5_f32, -1.0], [0.0, 1.0], [1.0, 1.0]], &Device::Cpu)?; // [out, in]
//! let loss = gelu(&linear(&x, &w, None)?)?.sum_all()?;
//! assert_eq!(backward(&loss)?.get(&w).map(|gradient| gradient.dims().to_vec()), Some(vec![3, 2]));
//! # Ok::<(), occlude_kernels::Error>(())
//! ```

mod adamw;
mod attention;
mod batch_norm;
mod block;
#[doc(hidden)]
pub mod ceiling;
#[doc(hidden)]
pub mod check;
mod cpu;
mod cross_entropy;
mod error;
mod finish;
mod gelu;
mod gradients;
mod heads;
mod input;
#[cfg(test)]
mod levels;
mod linear;
mod linear_cross_entropy;
mod linear_with;
pub mod memory;
mod nearest;
mod normalize;
mod norms;
mod packed_attention;
mod params;
mod pixel_loss;
mod position;
mod precision;
pub mod reference;
mod relu;
mod rows;
mod simd;
mod sinkhorn;
mod softmax;
pub mod threads;
pub mod tiles;
mod turn;
mod visibility;

pub use adamw::{AdamWStep, adamw_step, global_norm, move_average};
pub use attention::attention;
pub use batch_norm::{BatchNorm, batch_norm, batch_norm_with};
pub use block::{
    Affine, BlockOptions, BlockWeights, Branch, NormWeights, block, joined_stream_block, two_stream_block,
};
pub use cross_entropy::{mean_row_entropy, soft_cross_entropy, soft_cross_entropy_gradient};
pub use error::{Error, Result};
pub use finish::Activation;
pub use gelu::gelu;
pub use gradients::{Gradients, backward};
pub use linear::linear;
pub use linear_cross_entropy::linear_cross_entropy;
pub use linear_with::{LinearOptions, linear_with};
pub use nearest::{Measure, Nearest, nearest};
pub use normalize::{l2_normalize, weight_norm};
pub use norms::{layer_norm, rms_norm};
pub use packed_attention::packed_attention;
pub use params::{Factors, Init, Param, ParamStore, Role, Scope, StateDict, assign};
pub use pixel_loss::pixel_loss;
pub use position::{Angles, frequency_table, position_encode};
pub use precision::{Precision, PrecisionScope};
pub use relu::relu;
pub use rows::{gather_rows, scatter_add_rows, scatter_rows};
pub use sinkhorn::sinkhorn;
pub use softmax::{Softened, soften, softmax};
pub use visibility::{RankRule, Visibility};

/// The README's example runs with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
