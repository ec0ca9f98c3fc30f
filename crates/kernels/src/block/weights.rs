//! The tensors of a block.

use crate::{Error, Result, input};
use candle_core::Tensor;

/// A linear map.
#[derive(Clone, Debug)]
pub struct Affine {
    /// [out, in].
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

/// A norm over the last axis.
#[derive(Clone, Debug)]
pub struct NormWeights {
    /// `[dim]`.
    pub weight: Tensor,
    /// `[dim]`.
    pub bias: Option<Tensor>,
    /// Whether the mean is taken off: a layer norm; else an RMS norm.
    pub centred: bool,
    /// Added under the root.
    pub eps: f64,
}

/// All weights of a block. Clones share storage.
#[derive(Clone, Debug)]
pub struct BlockWeights {
    /// Before the attention.
    pub norm1: NormWeights,
    /// [dim, dim].
    pub queries: Affine,
    /// [dim, context].
    pub keys: Affine,
    /// [dim, context].
    pub values: Affine,
    /// After the attention, [dim, dim].
    pub projection: Affine,
    /// Before the MLP.
    pub norm2: NormWeights,
    /// First linear of the MLP, [hidden, dim].
    pub expand: Affine,
    /// Second linear of the MLP, [dim, hidden].
    pub contract: Affine,
}

impl Affine {
    /// `x w^T + b`.  x: [.., in] -> [.., out]
    ///
    /// # Errors
    /// Another width or dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        crate::linear(x, &self.weight, self.bias.as_ref())
    }

    /// The same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.as_ref().map(Tensor::detach) }
    }

    fn check(&self, op: &'static str, what: &str, like: &Tensor, out: usize, inner: usize) -> Result<()> {
        fits(op, &format!("{what}.weight"), like, &self.weight, &[out, inner])?;
        self.bias.iter().try_for_each(|bias| fits(op, &format!("{what}.bias"), like, bias, &[out]))
    }
}

impl NormWeights {
    /// The norm by itself, outside a block.  x: [.., dim] -> [.., dim]
    ///
    /// # Errors
    /// Another width or dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.centred {
            return crate::layer_norm(x, Some(&self.weight), self.bias.as_ref(), self.eps);
        }
        let y = crate::rms_norm(x, Some(&self.weight), self.eps)?;
        self.bias.as_ref().map_or_else(|| Ok(y.clone()), |bias| Ok(y.broadcast_add(bias)?))
    }

    /// The same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.as_ref().map(Tensor::detach), ..*self }
    }

    fn check(&self, op: &'static str, what: &str, like: &Tensor, dim: usize) -> Result<()> {
        input::not_negative(op, "eps", self.eps)?;
        fits(op, &format!("{what}.weight"), like, &self.weight, &[dim])?;
        self.bias.iter().try_for_each(|bias| fits(op, &format!("{what}.bias"), like, bias, &[dim]))
    }
}

/// A weight the operator can read and whose gradient it can hand on: of this shape, without gaps, and either a
/// variable or untracked. A computed weight would lose what lies before it in the graph.
pub(crate) fn fits(op: &'static str, what: &str, like: &Tensor, weight: &Tensor, shape: &[usize]) -> Result<()> {
    input::same_float(op, like, weight)?;
    input::shape(op, what, weight, shape)?;
    if weight.track_op() && !weight.is_variable() {
        return Err(Error::argument(op, format!("{what} is computed from other tensors: it must be a variable")));
    }
    if !weight.is_contiguous() {
        return Err(Error::argument(op, format!("{what} has gaps in memory: it must be contiguous")));
    }
    Ok(())
}

impl BlockWeights {
    /// The same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self {
            norm1: self.norm1.detach(),
            queries: self.queries.detach(),
            keys: self.keys.detach(),
            values: self.values.detach(),
            projection: self.projection.detach(),
            norm2: self.norm2.detach(),
            expand: self.expand.detach(),
            contract: self.contract.detach(),
        }
    }

    /// Units of the MLP.
    pub(super) fn hidden(&self) -> usize {
        self.expand.weight.dims().first().copied().unwrap_or(0)
    }

    pub(super) fn check(&self, op: &'static str, x: &Tensor, dim: usize, context: usize) -> Result<()> {
        self.norm1.check(op, "norm1", x, dim)?;
        self.queries.check(op, "queries", x, dim, dim)?;
        self.keys.check(op, "keys", x, dim, context)?;
        self.values.check(op, "values", x, dim, context)?;
        self.projection.check(op, "projection", x, dim, dim)?;
        self.norm2.check(op, "norm2", x, dim)?;
        self.expand.check(op, "expand", x, self.hidden(), dim)?;
        self.contract.check(op, "contract", x, dim, self.hidden())
    }

    /// A weight that is trained, or any: it stands in candle's graph for all of them, so that the backward pass comes here
    /// even where `x` is not tracked.
    pub(super) fn anchor(&self) -> &Tensor {
        let affine = [&self.queries, &self.keys, &self.values, &self.projection, &self.expand, &self.contract];
        let norms = [&self.norm1, &self.norm2];
        let weights = affine.iter().flat_map(|map| [Some(&map.weight), map.bias.as_ref()]);
        let weights = weights.chain(norms.iter().flat_map(|norm| [Some(&norm.weight), norm.bias.as_ref()]));
        weights.flatten().find(|weight| weight.track_op()).unwrap_or(&self.norm1.weight)
    }
}
