//! The MLP branch of a block, on slices.

use super::Branch;
use super::attend::{apply_onto, apply_with, back, norm_backward, normed};
use super::weights::BlockWeights;
use crate::cpu::{self, Real};
use crate::finish::{Activation, Finished, Finishing};
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
        let (tokens, _) = normed(&self.weights.norm2, &self.branch.chosen(x, self.len, 1.0))?;
        let gelu = Finishing { activation: Some(Activation::Gelu), keep: true, ..Finishing::default() };
        let Finished { y: activated, before } = apply_with(&self.weights.expand, &tokens, gelu)?;
        drop(tokens);
        let y = apply_onto(&self.weights.contract, &activated, x, self.branch, self.len)?;
        Ok((y, before))
    }

    /// The gradient of `x` from that of the output; those of the weights are collected.
    pub(super) fn backward<T: Real>(&self, x: &[T], hidden: Vec<T>, gradient: Vec<T>) -> candle_core::Result<Vec<T>> {
        let BlockWeights { norm2, expand, contract, .. } = self.weights;
        let outward = self.branch.chosen(&gradient, self.len, self.branch.scale);
        // The gradient of the activated layer, then, in the same memory, that of the layer before its activation; the
        // activated layer takes the memory of what was saved.
        let (mut layer, mut slopes) = (hidden, back(contract, &outward)?); // [images, tokens, hidden]
        let work = COST * layer.len();
        cpu::for_chunk_pairs((&mut layer, CHUNK), (&mut slopes, CHUNK), work, |_, layer, slopes| {
            gelu::forward_and_backward(layer, slopes);
        });
        collect_linear(&contract.weight, contract.bias.as_ref(), &outward, &layer)?;
        drop((layer, outward));
        let some = self.branch.chosen(x, self.len, 1.0);
        let (tokens, norm) = normed(norm2, &some)?;
        collect_linear(&expand.weight, expand.bias.as_ref(), &slopes, &tokens)?;
        let inward = back(expand, &slopes)?; // [images, tokens, dim]
        drop((tokens, slopes));
        let through = norm_backward(norm2, &norm, &some, &inward)?;
        drop(some);
        let mut dx = gradient;
        self.branch.add(&mut dx, self.len, &through);
        Ok(dx)
    }
}
