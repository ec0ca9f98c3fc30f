//! Transformer blocks: self-attention in an encoder or a decoder, cross-attention in a predictor.

use crate::parts::biased;
use crate::{DropPath, GroupFactors, Kept, Positions, layer_norm_weights, linear_map, linear_weight};
use candle_core::Tensor;
use occlude_kernels::{
    Affine, BlockOptions, BlockWeights, Branch, Error, Factors, Init, NormWeights, Result, Scope, Visibility, block,
    frequency_table, joined_stream_block,
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
    /// As `Layer`, for the part of a decoder's layer that follows its self-attention ([`SelfAttention`](crate::SelfAttention)):
    /// cross-attention and MLP (`norm2`, `cross_attn.q`, .., `norm3`, `mlp.fc1`, ..). Keys and values are drawn as if they
    /// were one matrix, [2 * dim, context].
    Cross,
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
        self.run(x, None, Some((positions, positions)), Visibility::All, drop)
    }

    /// Self-attention of tokens that carry their positions themselves.  [batch, tokens, dim] -> [batch, tokens, dim]
    ///
    /// # Errors
    /// Another width, or a block that encodes positions.
    pub fn mix(&self, x: &Tensor, drop: &mut DropPath) -> Result<Tensor> {
        self.run(x, None, None, Visibility::All, drop)
    }

    /// As [`Block::mix`], each token seeing only what `visibility` lets it.
    ///
    /// # Errors
    /// As [`Block::mix`], or a visibility of other tokens.
    pub fn mix_seeing(&self, x: &Tensor, visibility: Visibility, drop: &mut DropPath) -> Result<Tensor> {
        self.run(x, None, None, visibility, drop)
    }

    /// Cross-attention to `context`, of which each token sees what `visibility` lets it; positions are in the tokens.
    /// x: [batch, tokens, dim], context: [batch, others, context] -> [batch, tokens, dim]
    ///
    /// # Errors
    /// As [`Block::mix_seeing`].
    pub fn attend_seeing(
        &self,
        x: &Tensor,
        context: &Tensor,
        visibility: Visibility,
        drop: &mut DropPath,
    ) -> Result<Tensor> {
        self.run(x, Some(context), None, visibility, drop)
    }

    /// Two streams with the same weights, the second reading the first: `content` tokens of the one lie before those of the
    /// other. `visibility` is of all tokens over those of the first stream.  [batch, both, dim] -> [batch, both, dim]
    ///
    /// # Errors
    /// As [`Block::mix_seeing`], or more tokens of content than there are tokens.
    pub fn mix_streams(
        &self,
        x: &Tensor,
        content: usize,
        visibility: Visibility,
        drop: &mut DropPath,
    ) -> Result<Tensor> {
        let options = self.options(x.dim(0)?, None, visibility, drop)?;
        joined_stream_block(x, content, &self.weights, options)
    }

    /// What [`Block::mix_streams`] makes of the second stream, where nobody reads the first one on: the last block.
    /// content: [batch, others, dim], query: [batch, tokens, dim] -> as query
    ///
    /// # Errors
    /// As [`Block::mix_seeing`].
    pub fn last_stream(
        &self,
        content: &Tensor,
        query: &Tensor,
        visibility: Visibility,
        drop: &mut DropPath,
    ) -> Result<Tensor> {
        let content = self.weights.norm1.forward(content)?;
        self.attend_seeing(query, &content, visibility, drop)
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
        self.run(x, Some(context), Some((positions, context_positions)), Visibility::All, drop)
    }

    /// `positions` are those of the tokens and of what they attend to.
    fn run(
        &self,
        x: &Tensor,
        context: Option<&Tensor>,
        positions: Option<(&Positions, &Positions)>,
        visibility: Visibility,
        drop: &mut DropPath,
    ) -> Result<Tensor> {
        let options = self.options(x.dim(0)?, positions, visibility, drop)?;
        block(x, context, &self.weights, options)
    }

    fn options(
        &self,
        batch: usize,
        positions: Option<(&Positions, &Positions)>,
        visibility: Visibility,
        drop: &mut DropPath,
    ) -> Result<BlockOptions> {
        let branches = [branch(drop.next(batch)?), branch(drop.next(batch)?)];
        let images = branches[0].images.as_deref();
        let angles = match (&self.table, positions) {
            (None, _) => None,
            (Some(table), Some((own, others))) => Some((own.angles(table, images)?, others.angles(table, images)?)),
            (Some(_), None) => return Err(Error::argument("block", "encodes positions, and was given none")),
        };
        let Self { heads, recompute, .. } = *self;
        Ok(BlockOptions { heads, angles, visibility, branches, recompute })
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
            Self::Cross => {
                Names { norm1: "norm2", attention: "cross_attn", thirds: ["q", "k", "v"], norm2: "norm3", mlp: "mlp" }
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
            Self::Layer | Self::Cross => linear_map(scope, name, outputs, inputs),
        }
    }

    /// The map to queries, keys or values: one of as many that are drawn as one.
    fn third(self, scope: &mut Scope<'_>, name: &str, outputs: usize, inputs: usize) -> Result<Affine> {
        let together = match self {
            Self::Rms(_) => return self.linear(scope, name, outputs, inputs),
            Self::Layer => 3,
            Self::Cross if name == "q" => 1,
            Self::Cross => 2,
        };
        biased(scope, name, [outputs, inputs], &Init::xavier_uniform(inputs, together * outputs))
    }
}
