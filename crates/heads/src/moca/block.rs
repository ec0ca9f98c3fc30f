//! The decoder's transformer block: pre-norm, layer norms, biases, one matrix for queries, keys and values.

use super::{LayerNorm, Linear};
use candle_core::Tensor;
use occlude_kernels::{Result, Scope, Visibility, attention, gelu};

/// Units of the MLP over the width.
const MLP_RATIO: usize = 4;

/// `x + attention(norm1(x))`, then `x + mlp(norm2(x))`. Operator by operator, since the fused block wants queries, keys
/// and values of their own, and checkpoints hold them as one matrix.
#[derive(Clone, Debug)]
pub(super) struct SelfBlock {
    norm1: LayerNorm,
    qkv: Linear, // [3 * dim, dim]
    projection: Linear,
    norm2: LayerNorm,
    expand: Linear,
    contract: Linear,
    heads: usize,
}

impl SelfBlock {
    pub(super) fn new(scope: &mut Scope<'_>, dim: usize, heads: usize) -> Result<Self> {
        let norm1 = LayerNorm::new(scope, "norm1", dim)?;
        let mut attention = scope.sub("attn");
        let qkv = Linear::new(&mut attention, "qkv", 3 * dim, dim)?;
        let projection = Linear::new(&mut attention, "proj", dim, dim)?;
        let norm2 = LayerNorm::new(scope, "norm2", dim)?;
        let mut mlp = scope.sub("mlp");
        let expand = Linear::new(&mut mlp, "fc1", MLP_RATIO * dim, dim)?;
        let contract = Linear::new(&mut mlp, "fc2", dim, MLP_RATIO * dim)?;
        Ok(Self { norm1, qkv, projection, norm2, expand, contract, heads })
    }

    /// [rows, tokens, dim] -> [rows, tokens, dim]
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let dim = x.dims3()?.2;
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?; // [rows, tokens, 3 * dim]
        let third = |i: usize| qkv.narrow(2, i * dim, dim);
        let mixed = attention(&third(0)?, &third(1)?, &third(2)?, self.heads, &Visibility::All)?;
        let x = (x + self.projection.forward(&mixed)?)?;
        let hidden = gelu(&self.expand.forward(&self.norm2.forward(&x)?)?)?; // [rows, tokens, 4 * dim]
        Ok((x + self.contract.forward(&hidden)?)?)
    }
}
