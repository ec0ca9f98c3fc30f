//! Transformer blocks: self-attention in an encoder, cross-attention in a predictor.

use crate::{DropPath, GroupFactors, Kept, Positions};
use candle_core::Tensor;
use occlude_kernels::{
    Affine, BlockOptions, BlockWeights, Branch, Factors, Init, NormWeights, Result, Scope, Visibility, block,
    frequency_table,
};

/// Added under the root of every RMS norm.
pub const NORM_EPS: f64 = 1e-5;

/// Sizes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// Width of the stream.
    pub dim: usize,
    /// Width of the tokens that are attended to; `dim` in a self-attention block.
    pub context: usize,
    /// Attention heads.
    pub heads: usize,
    /// Units of the MLP.
    pub hidden: usize,
    /// Whether attention encodes positions (a frequency table), or positions are learned elsewhere.
    pub encoded: bool,
    /// Whether activations are computed again in the backward pass.
    pub recompute: bool,
}

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`, with RMS norms and without biases. Keys and values come from the
/// normed tokens themselves ([`Block::forward`]) or from a context that is normed already ([`Block::attend`]).
#[derive(Clone, Debug)]
pub struct Block {
    weights: BlockWeights,
    table: Option<Tensor>, // [2, head_dim]; none where positions are learned
    heads: usize,
    recompute: bool,
}

impl Block {
    /// A block of this shape.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, shape: BlockShape, factors: GroupFactors) -> Result<Self> {
        let BlockShape { dim, context, heads, hidden, encoded, recompute } = shape;
        let mut first = scope.sub("residual1");
        let norm1 = norm(&mut first.sub("norm"), dim, factors)?;
        let mut attention = first.sub("fn");
        let queries = linear(&mut attention, "q_proj", dim, dim)?;
        let keys = linear(&mut attention, "k_proj", dim, context)?;
        let values = linear(&mut attention, "v_proj", dim, context)?;
        let projection = linear(&mut attention, "proj", dim, dim)?;
        let table = encoded.then(|| table(&mut attention, dim / heads)).transpose()?;
        let mut second = scope.sub("residual2");
        let norm2 = norm(&mut second.sub("norm"), dim, factors)?;
        let mut mlp = second.sub("fn");
        let expand = linear(&mut mlp, "fc1", hidden, dim)?;
        let contract = linear(&mut mlp, "fc2", dim, hidden)?;
        let weights = BlockWeights { norm1, queries, keys, values, projection, norm2, expand, contract };
        Ok(Self { weights, table, heads, recompute })
    }

    /// Its weights, for tests and pictures.
    #[must_use]
    pub fn weights(&self) -> &BlockWeights {
        &self.weights
    }

    /// The frequency table of its attention, [2, head_dim]; none where positions are learned.
    #[must_use]
    pub fn table(&self) -> Option<&Tensor> {
        self.table.as_ref()
    }

    /// Self-attention.  [batch, tokens, dim] -> [batch, tokens, dim]
    ///
    /// # Errors
    /// Another width, or positions of other tokens.
    pub fn forward(&self, x: &Tensor, positions: &Positions, drop: &mut DropPath) -> Result<Tensor> {
        self.run(x, positions, None, positions, drop)
    }

    /// Cross-attention to `context`.
    /// x: [batch, tokens, dim], context: [batch, others, context] -> [batch, tokens, dim]
    ///
    /// # Errors
    /// Another width, or positions of other tokens.
    pub fn attend(
        &self,
        x: &Tensor,
        positions: &Positions,
        context: &Tensor,
        context_positions: &Positions,
        drop: &mut DropPath,
    ) -> Result<Tensor> {
        self.run(x, positions, Some(context), context_positions, drop)
    }

    fn run(
        &self,
        x: &Tensor,
        positions: &Positions,
        context: Option<&Tensor>,
        context_positions: &Positions,
        drop: &mut DropPath,
    ) -> Result<Tensor> {
        let batch = x.dim(0)?;
        let branches = [branch(drop.next(batch)?), branch(drop.next(batch)?)];
        let images = branches[0].images.as_deref();
        let both = |table: &Tensor| -> Result<_> {
            Ok((positions.angles(table, images)?, context_positions.angles(table, images)?))
        };
        let angles = self.table.as_ref().map(both).transpose()?;
        let Self { heads, recompute, .. } = *self;
        let options = BlockOptions { heads, angles, visibility: Visibility::All, branches, recompute };
        block(x, context, &self.weights, options)
    }

    /// The same block on the same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { weights: self.weights.detach(), ..self.clone() }
    }
}

/// The images of a branch that is multiplied by 0 or by one factor are those where it is not 0.
fn branch(kept: Kept) -> Branch {
    match kept {
        Kept::All => Branch::all(),
        Kept::Rows { rows, scale } => Branch { images: Some(rows), scale },
        Kept::Scaled(factors) => {
            let images =
                (0_u32..).zip(&factors).filter(|(_, factor)| **factor != 0.0).map(|(image, _)| image).collect();
            Branch { images: Some(images), scale: factors.iter().copied().fold(0.0, f64::max) }
        }
    }
}

fn table(scope: &mut Scope<'_>, head_dim: usize) -> Result<Tensor> {
    scope.sub("rope").constant("freqs", &[2, head_dim], &Init::Values(frequency_table(head_dim)?))
}

fn norm(scope: &mut Scope<'_>, dim: usize, factors: GroupFactors) -> Result<NormWeights> {
    let factors = Factors { lr: 1.0, wd: factors.norm_wd };
    let weight = scope.trained("weight", &[dim], &Init::Constant(1.0), factors)?;
    Ok(NormWeights { weight, bias: None, centred: false, eps: NORM_EPS })
}

fn linear(scope: &mut Scope<'_>, name: &str, outputs: usize, inputs: usize) -> Result<Affine> {
    Ok(Affine { weight: crate::linear_weight(scope, name, outputs, inputs)?, bias: None })
}
