//! The MLP branch of a block, on slices.

use super::attend::{apply, back, norm_backward, normed};
use super::weights::BlockWeights;
use super::{Branch, add_branch, chosen};
use crate::cpu::{self, Real};
use crate::gelu::{self, CHUNK, COST};
use crate::gradients::collect_linear;

/// What stays the same over the calls of one pass.
pub(super) struct Feed<'a> {
    pub(super) weights: &'a BlockWeights,
    pub(super) branch: &'a Branch,
    /// Elements of one image.
    pub(super) len: usize,
}

impl Feed<'_> {
    /// `x + scale * mlp(norm(x))`, and the hidden layer before its activation, [images, tokens, hidden].
    /// x: [batch, tokens, dim]
    pub(super) fn forward<T: Real>(&self, x: &[T]) -> candle_core::Result<(Vec<T>, Vec<T>)> {
        let (tokens, _) = normed(&self.weights.norm2, &chosen(x, self.branch, self.len, 1.0))?;
        let hidden = apply(&self.weights.expand, &tokens)?;
        drop(tokens);
        let mut y = x.to_vec();
        add_branch(&mut y, self.branch, self.len, &apply(&self.weights.contract, &gelu::all(&hidden))?);
        Ok((y, hidden))
    }

    /// The gradient of `x` from that of the output; those of the weights are collected.
    pub(super) fn backward<T: Real>(&self, x: &[T], hidden: Vec<T>, gradient: Vec<T>) -> candle_core::Result<Vec<T>> {
        let BlockWeights { norm2, expand, contract, .. } = self.weights;
        let outward = chosen(&gradient, self.branch, self.len, self.branch.scale);
        // The gradient of the activated layer, then, in the same memory, that of the layer before its activation; the
        // activated layer takes the memory of what was saved.
        let (mut layer, mut slopes) = (hidden, back(contract, &outward)?); // [images, tokens, hidden]
        let work = COST * layer.len();
        cpu::for_chunk_pairs((&mut layer, CHUNK), (&mut slopes, CHUNK), work, |_, layer, slopes| {
            gelu::forward_and_backward(layer, slopes);
        });
        collect_linear(&contract.weight, contract.bias.as_ref(), &outward, &layer)?;
        drop((layer, outward));
        let some = chosen(x, self.branch, self.len, 1.0);
        let (tokens, norm) = normed(norm2, &some)?;
        collect_linear(&expand.weight, expand.bias.as_ref(), &slopes, &tokens)?;
        let inward = back(expand, &slopes)?; // [images, tokens, dim]
        drop((tokens, slopes));
        let through = norm_backward(norm2, &norm, &some, &inward)?;
        drop(some);
        let mut dx = gradient;
        add_branch(&mut dx, &Branch { scale: 1.0, ..self.branch.clone() }, self.len, &through);
        Ok(dx)
    }
}
