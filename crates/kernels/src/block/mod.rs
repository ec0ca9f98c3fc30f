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
mod feed;
mod operator;
mod streams;
#[cfg(test)]
mod streams_tests;
#[cfg(test)]
mod tests;
mod weights;

pub use operator::{BlockOptions, Branch, block};
pub use streams::{joined_stream_block, two_stream_block};
pub use weights::{Affine, BlockWeights, NormWeights};

use crate::cpu::{self, Real};

/// The rows of a batch that a residual branch is computed for.
/// x: [batch, len]; all of it, or a copy of the chosen images.
fn chosen<'a, T: Real>(x: &'a [T], branch: &Branch, len: usize, scale: f64) -> std::borrow::Cow<'a, [T]> {
    match &branch.images {
        None => std::borrow::Cow::Borrowed(x),
        Some(images) => std::borrow::Cow::Owned(crate::rows::taken(x, images, len, T::of(scale))),
    }
}

/// `x + scale * branch` at the chosen images, in the memory of `x`.
fn add_branch<T: Real>(x: &mut Vec<T>, branch: &Branch, len: usize, values: &[T]) {
    match &branch.images {
        None => cpu::add_in_place(x, values),
        Some(images) => {
            let rows = x.len().checked_div(len).unwrap_or(0);
            *x = crate::rows::added(Some(&x[..]), rows, images, values, len, T::of(branch.scale));
        }
    }
}
