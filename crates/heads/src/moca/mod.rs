//! What sits on MOCA's student: the generator of prototypes, the decoder and its blocks, heads of other targets.

mod block;
mod config;
mod decoder;
mod generator;
mod projection;

pub use config::{DecoderConfig, DecoderInput, DecoderSettings, GeneratorConfig, GeneratorSettings};
pub use decoder::Decoder;
pub use generator::{Generated, Generator};
pub use projection::TargetHead;

#[cfg(test)]
mod tests;

use candle_core::Tensor;
use occlude_kernels::{Factors, Init, Result, Scope, layer_norm, linear};
use occlude_vit::linear_weight;

/// Added under the root of every layer norm.
const LAYER_NORM_EPS: f64 = 1e-6;

/// A linear map with a bias.
#[derive(Clone, Debug)]
struct Linear {
    weight: Tensor,       // [out, in]
    bias: Option<Tensor>, // [out]
}

impl Linear {
    /// `name.weight`, Xavier uniform, and `name.bias`, zero.
    fn new(scope: &mut Scope<'_>, name: &str, outputs: usize, inputs: usize) -> Result<Self> {
        let weight = linear_weight(scope, name, outputs, inputs)?;
        let bias = scope.sub(name).trained("bias", &[outputs], &Init::Constant(0.0), Factors::NO_DECAY)?;
        Ok(Self { weight, bias: Some(bias) })
    }

    fn without_bias(scope: &mut Scope<'_>, name: &str, outputs: usize, inputs: usize) -> Result<Self> {
        Ok(Self { weight: linear_weight(scope, name, outputs, inputs)?, bias: None })
    }

    /// x: [.., in] -> [.., out]
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// A layer norm with weight and bias.
#[derive(Clone, Debug)]
struct LayerNorm {
    weight: Tensor, // [dim]
    bias: Tensor,   // [dim]
}

impl LayerNorm {
    fn new(scope: &mut Scope<'_>, name: &str, dim: usize) -> Result<Self> {
        let mut scope = scope.sub(name);
        let weight = scope.trained("weight", &[dim], &Init::Constant(1.0), Factors::NO_DECAY)?;
        Ok(Self { weight, bias: scope.trained("bias", &[dim], &Init::Constant(0.0), Factors::NO_DECAY)? })
    }

    /// x: [.., dim] -> [.., dim]
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, Some(&self.weight), Some(&self.bias), LAYER_NORM_EPS)
    }
}
