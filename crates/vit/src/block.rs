//! Transformer blocks: self-attention in an encoder, cross-attention in a predictor.

use crate::{Attention, DropPath, GroupFactors, Mlp, Positions, RmsNorm, residual};
use candle_core::Tensor;
use occlude_kernels::{Result, Scope, gather_rows};

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
}

#[derive(Clone, Debug)]
struct Parts {
    norm1: RmsNorm,
    attention: Attention,
    norm2: RmsNorm,
    mlp: Mlp,
}

impl Parts {
    fn new(scope: &mut Scope<'_>, shape: BlockShape, factors: GroupFactors) -> Result<Self> {
        let BlockShape { dim, context, heads, hidden, encoded } = shape;
        let mut first = scope.sub("residual1");
        let norm1 = RmsNorm::new(&mut first.sub("norm"), dim, factors)?;
        let attention = Attention::new(&mut first.sub("fn"), dim, context, heads, encoded)?;
        let mut second = scope.sub("residual2");
        let norm2 = RmsNorm::new(&mut second.sub("norm"), dim, factors)?;
        let mlp = Mlp::new(&mut second.sub("fn"), dim, hidden)?;
        Ok(Self { norm1, attention, norm2, mlp })
    }

    /// The second residual: `x + mlp(norm(x))`.
    fn mlp(&self, x: &Tensor, drop: &mut DropPath) -> Result<Tensor> {
        let kept = drop.next(x.dim(0)?)?;
        residual(x, &kept, |some, _| self.mlp.forward(&self.norm2.forward(some)?))
    }

    fn detach(&self) -> Self {
        Self {
            norm1: self.norm1.detach(),
            attention: self.attention.detach(),
            norm2: self.norm2.detach(),
            mlp: self.mlp.detach(),
        }
    }
}

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Clone, Debug)]
pub struct Block {
    parts: Parts,
}

impl Block {
    /// A block of this shape (`context` equal to `dim`).
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, shape: BlockShape, factors: GroupFactors) -> Result<Self> {
        Ok(Self { parts: Parts::new(scope, BlockShape { context: shape.dim, ..shape }, factors)? })
    }

    /// The attention, for tests and pictures.
    #[must_use]
    pub fn attention(&self) -> &Attention {
        &self.parts.attention
    }

    /// The norm before the attention.
    #[must_use]
    pub fn first_norm(&self) -> &RmsNorm {
        &self.parts.norm1
    }

    /// x: [batch, tokens, dim] -> [batch, tokens, dim]
    ///
    /// # Errors
    /// Another width, or positions of other tokens.
    pub fn forward(&self, x: &Tensor, positions: &Positions, drop: &mut DropPath) -> Result<Tensor> {
        let kept = drop.next(x.dim(0)?)?;
        let x = residual(x, &kept, |some, rows| {
            let normed = self.parts.norm1.forward(some)?;
            self.parts.attention.forward(&normed, positions, &normed, positions, rows)
        })?;
        self.parts.mlp(&x, drop)
    }

    /// The same block on the same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { parts: self.parts.detach() }
    }
}

/// As [`Block`], with keys and values from a context that is normed already.
#[derive(Clone, Debug)]
pub struct CrossBlock {
    parts: Parts,
}

impl CrossBlock {
    /// A block of this shape.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, shape: BlockShape, factors: GroupFactors) -> Result<Self> {
        Ok(Self { parts: Parts::new(scope, shape, factors)? })
    }

    /// The attention, for tests and pictures.
    #[must_use]
    pub fn attention(&self) -> &Attention {
        &self.parts.attention
    }

    /// The norm before the attention.
    #[must_use]
    pub fn first_norm(&self) -> &RmsNorm {
        &self.parts.norm1
    }

    /// x: [batch, tokens, dim], context: [batch, others, context] -> [batch, tokens, dim]
    ///
    /// # Errors
    /// Another width, or positions of other tokens.
    pub fn forward(
        &self,
        x: &Tensor,
        positions: &Positions,
        context: &Tensor,
        context_positions: &Positions,
        drop: &mut DropPath,
    ) -> Result<Tensor> {
        let kept = drop.next(x.dim(0)?)?;
        let x = residual(x, &kept, |some, rows| {
            let normed = self.parts.norm1.forward(some)?;
            let context = match rows {
                Some(rows) => gather_rows(context, rows)?,
                None => context.clone(),
            };
            self.parts.attention.forward(&normed, positions, &context, context_positions, rows)
        })?;
        self.parts.mlp(&x, drop)
    }

    /// The same block on the same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { parts: self.parts.detach() }
    }
}
