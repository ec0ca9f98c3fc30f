//! Transformer blocks: self-attention in an encoder or a decoder, cross-attention in a predictor.

use crate::parts::biased;
use crate::{DropPath, GroupFactors, Kept, Positions, layer_norm_weights, linear_map, linear_weight};
use candle_core::Tensor;
use occlude_kernels::{
    Affine, BlockOptions, BlockWeights, Branch, Error, Factors, Init, NormWeights, Result, Scope, Visibility, block,
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

/// The norms and biases of a block, and what its parameters are called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BlockKind {
    /// RMS norms and no biases. Names are those of the official CAPI checkpoints (`residual1.norm.weight`,
    /// `residual1.fn.q_proj.weight`, ..).
    Rms(GroupFactors),
    /// Layer norms and biases. Names are the usual ones (`norm1`, `attn.proj`, `norm2`, `mlp.fc1`, `mlp.fc2`), except that
    /// the matrix of queries, keys and values is held as three (`attn.q`, `attn.k`, `attn.v`). They are drawn as if it were
    /// one: Xavier uniform over [3 * dim, dim].
    Layer,
}

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`. Keys and values come from the normed tokens themselves
/// ([`Block::forward`], [`Block::mix`]) or from a context that is normed already ([`Block::attend`]).
#[derive(Clone, Debug)]
pub struct Block {
    weights: BlockWeights,
    table: Option<Tensor>, // [2, head_dim]; none where positions are learned or fixed
    heads: usize,
    recompute: bool,
}

impl Block {
    /// A block of this shape and kind.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, shape: BlockShape, kind: BlockKind) -> Result<Self> {
        let BlockShape { dim, context, heads, hidden, encoded, recompute } = shape;
        let names = kind.names();
        let norm1 = kind.norm(scope, names.norm1, dim)?;
        let mut attention = scope.sub(names.attention);
        let queries = kind.third(&mut attention, names.thirds[0], dim, dim)?;
        let keys = kind.third(&mut attention, names.thirds[1], dim, context)?;
        let values = kind.third(&mut attention, names.thirds[2], dim, context)?;
        let projection = kind.linear(&mut attention, "proj", dim, dim)?;
        let table = encoded.then(|| table(&mut attention, dim / heads)).transpose()?;
        let norm2 = kind.norm(scope, names.norm2, dim)?;
        let mut mlp = scope.sub(names.mlp);
        let expand = kind.linear(&mut mlp, "fc1", hidden, dim)?;
        let contract = kind.linear(&mut mlp, "fc2", dim, hidden)?;
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
        self.run(x, None, Some((positions, positions)), drop)
    }

    /// Self-attention of tokens that carry their positions themselves.  [batch, tokens, dim] -> [batch, tokens, dim]
    ///
    /// # Errors
    /// Another width, or a block that encodes positions.
    pub fn mix(&self, x: &Tensor, drop: &mut DropPath) -> Result<Tensor> {
        self.run(x, None, None, drop)
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
        self.run(x, Some(context), Some((positions, context_positions)), drop)
    }

    /// `positions` are those of the tokens and of what they attend to.
    fn run(
        &self,
        x: &Tensor,
        context: Option<&Tensor>,
        positions: Option<(&Positions, &Positions)>,
        drop: &mut DropPath,
    ) -> Result<Tensor> {
        let batch = x.dim(0)?;
        let branches = [branch(drop.next(batch)?), branch(drop.next(batch)?)];
        let images = branches[0].images.as_deref();
        let angles = match (&self.table, positions) {
            (None, _) => None,
            (Some(table), Some((own, others))) => Some((own.angles(table, images)?, others.angles(table, images)?)),
            (Some(_), None) => return Err(Error::argument("block", "encodes positions, and was given none")),
        };
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

/// What the parameters of a block are called.
struct Names {
    norm1: &'static str,
    attention: &'static str,
    thirds: [&'static str; 3],
    norm2: &'static str,
    mlp: &'static str,
}

impl BlockKind {
    fn names(self) -> Names {
        match self {
            Self::Rms(_) => Names {
                norm1: "residual1.norm",
                attention: "residual1.fn",
                thirds: ["q_proj", "k_proj", "v_proj"],
                norm2: "residual2.norm",
                mlp: "residual2.fn",
            },
            Self::Layer => {
                Names { norm1: "norm1", attention: "attn", thirds: ["q", "k", "v"], norm2: "norm2", mlp: "mlp" }
            }
        }
    }

    fn norm(self, scope: &mut Scope<'_>, name: &str, dim: usize) -> Result<NormWeights> {
        let Self::Rms(factors) = self else { return layer_norm_weights(scope, name, dim) };
        let factors = Factors { lr: 1.0, wd: factors.norm_wd };
        let weight = scope.sub(name).trained("weight", &[dim], &Init::Constant(1.0), factors)?;
        Ok(NormWeights { weight, bias: None, centred: false, eps: NORM_EPS })
    }

    fn linear(self, scope: &mut Scope<'_>, name: &str, outputs: usize, inputs: usize) -> Result<Affine> {
        match self {
            Self::Rms(_) => Ok(Affine { weight: linear_weight(scope, name, outputs, inputs)?, bias: None }),
            Self::Layer => linear_map(scope, name, outputs, inputs),
        }
    }

    /// The map to queries, keys or values.
    fn third(self, scope: &mut Scope<'_>, name: &str, outputs: usize, inputs: usize) -> Result<Affine> {
        match self {
            Self::Rms(_) => self.linear(scope, name, outputs, inputs),
            Self::Layer => biased(scope, name, [outputs, inputs], &Init::xavier_uniform(inputs, 3 * outputs)),
        }
    }
}
