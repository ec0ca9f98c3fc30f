//! Small parts that encoders and predictors share: factors of a recipe, linear weights, the last norm.

use crate::NORM_EPS;
use candle_core::Tensor;
use occlude_kernels::{Affine, Factors, Init, NormWeights, Result, Scope, rms_norm};

/// Added under the root of every layer norm with weights.
pub const LAYER_NORM_EPS: f64 = 1e-6;

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

/// A linear map with a bias: `name.weight`, Xavier uniform, and `name.bias`, zeros that are not decayed.
///
/// # Errors
/// A name exists already.
pub fn linear_map(scope: &mut Scope<'_>, name: &str, outputs: usize, inputs: usize) -> Result<Affine> {
    biased(scope, name, [outputs, inputs], &Init::xavier_uniform(inputs, outputs))
}

/// A linear map of this shape, [out, in], with a bias, whose weight is drawn by `init`.
pub(crate) fn biased(scope: &mut Scope<'_>, name: &str, shape: [usize; 2], init: &Init) -> Result<Affine> {
    let mut scope = scope.sub(name);
    let weight = scope.trained("weight", &shape, init, Factors::ONE)?;
    let bias = scope.trained("bias", &shape[..1], &Init::Constant(0.0), Factors::NO_DECAY)?;
    Ok(Affine { weight, bias: Some(bias) })
}

/// A layer norm with `name.weight`, ones, and `name.bias`, zeros; neither is decayed.
///
/// # Errors
/// A name exists already.
pub fn layer_norm_weights(scope: &mut Scope<'_>, name: &str, dim: usize) -> Result<NormWeights> {
    let mut scope = scope.sub(name);
    let weight = scope.trained("weight", &[dim], &Init::Constant(1.0), Factors::NO_DECAY)?;
    let bias = scope.trained("bias", &[dim], &Init::Constant(0.0), Factors::NO_DECAY)?;
    Ok(NormWeights { weight, bias: Some(bias), centred: true, eps: LAYER_NORM_EPS })
}

/// The norm without weight at the end of an encoder or a predictor. x: [.., dim] -> [.., dim]
///
/// # Errors
/// A scalar, or a dtype that is not f32 or f64.
pub fn final_norm(x: &Tensor) -> Result<Tensor> {
    rms_norm(x, None, NORM_EPS)
}
