//! The pre-norm transformer block as one operator with a hand-written backward pass.
//!
//! `x + attention(norm(x))`, then `x + mlp(norm(x))`; the attention reads its own tokens, those of a context, or, where
//! two streams share the weights, those of the first stream.
//! candle's graph holds one node for all of it: two norms, six products, attention and two residuals. What the
//! backward pass needs is kept by the operator and freed as soon as it was used; gradients of the weights grow in
//! place, also where one block stands twice in a graph, and reach the caller through [`crate::backward`].
//!
//! Not here: how weights are named, drawn and stored; which images a residual branch is computed for.

mod attend;
mod branch;
mod feed;
mod operator;
mod streams;
#[cfg(test)]
mod streams_tests;
#[cfg(test)]
mod tests;
mod weights;

pub use branch::Branch;
pub use operator::{BlockOptions, block};
pub use streams::{joined_stream_block, two_stream_block};
pub(crate) use weights::fits;
pub use weights::{Affine, BlockWeights, NormWeights};
