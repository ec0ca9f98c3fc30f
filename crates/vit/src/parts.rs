//! Small parts that encoders and predictors share: factors of a recipe, linear weights, the last norm.

use crate::NORM_EPS;
use candle_core::Tensor;
use occlude_kernels::{Factors, Init, Result, Scope, rms_norm};

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

/// The norm without weight at the end of an encoder or a predictor. x: [.., dim] -> [.., dim]
///
/// # Errors
/// A scalar, or a dtype that is not f32 or f64.
pub fn final_norm(x: &Tensor) -> Result<Tensor> {
    rms_norm(x, None, NORM_EPS)
}
