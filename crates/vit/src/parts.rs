//! The small parts of a block: norms, linear weights, the MLP.

use candle_core::Tensor;
use occlude_kernels::{Factors, Init, Result, Scope, mlp, rms_norm};

/// Added under the root of every RMS norm.
pub const NORM_EPS: f64 = 1e-5;

/// Multipliers of a recipe that blocks give to their own parameters (CAPI, parameter groups).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupFactors {
    /// On the learning rate of the patch embedding.
    pub patch_embed_lr: f64,
    /// On the weight decay of norm weights.
    pub norm_wd: f64,
}

/// A linear weight [out, in], Xavier uniform: the initialisation of every linear in encoder and predictor.
///
/// # Errors
/// The name exists already.
pub fn linear_weight(scope: &mut Scope<'_>, name: &str, outputs: usize, inputs: usize) -> Result<Tensor> {
    let init = Init::xavier_uniform(inputs, outputs);
    scope.sub(name).trained("weight", &[outputs, inputs], &init, Factors::ONE)
}

/// RMS norm with a weight, as inside blocks.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor, // [dim]
}

impl RmsNorm {
    /// A norm of width `dim`, weights 1.
    ///
    /// # Errors
    /// The name exists already.
    pub fn new(scope: &mut Scope<'_>, dim: usize, factors: GroupFactors) -> Result<Self> {
        let factors = Factors { lr: 1.0, wd: factors.norm_wd };
        Ok(Self { weight: scope.trained("weight", &[dim], &Init::Constant(1.0), factors)? })
    }

    /// x: [.., dim] -> [.., dim]
    ///
    /// # Errors
    /// Another width or dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, Some(&self.weight), NORM_EPS)
    }

    pub(crate) fn detach(&self) -> Self {
        Self { weight: self.weight.detach() }
    }
}

/// The norm without weight at the end of an encoder or a predictor. x: [.., dim] -> [.., dim]
///
/// # Errors
/// A scalar, or a dtype that is not f32 or f64.
pub fn final_norm(x: &Tensor) -> Result<Tensor> {
    rms_norm(x, None, NORM_EPS)
}

/// Two bias-free linears with an exact GELU between them.
#[derive(Clone, Debug)]
pub struct Mlp {
    fc1: Tensor, // [hidden, dim]
    fc2: Tensor, // [dim, hidden]
}

impl Mlp {
    /// An MLP of width `dim` with `hidden` units.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, dim: usize, hidden: usize) -> Result<Self> {
        Ok(Self { fc1: linear_weight(scope, "fc1", hidden, dim)?, fc2: linear_weight(scope, "fc2", dim, hidden)? })
    }

    /// x: [.., dim] -> [.., dim]
    ///
    /// # Errors
    /// Another width or dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        mlp(x, &self.fc1, &self.fc2)
    }

    pub(crate) fn detach(&self) -> Self {
        Self { fc1: self.fc1.detach(), fc2: self.fc2.detach() }
    }
}
