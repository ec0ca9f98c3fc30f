//! Prototypes made from the words of a codebook by a small network.

use super::GeneratorSettings;
use candle_core::{DType, Tensor};
use occlude_kernels::{
    Affine, BatchNorm, Error, Factors, Init, Result, Scope, assign, batch_norm, l2_normalize, linear,
    linear_cross_entropy, relu,
};
use occlude_vit::{linear_map, linear_weight};

/// The smallest norm that a word or a prototype is divided by.
const NORM_FLOOR: f64 = 1e-5;
/// Added to a variance under the root.
const BATCH_NORM_EPS: f64 = 1e-5;
/// How much of the running statistics a step replaces.
const MOMENTUM: f64 = 0.1;

/// A word to a prototype: linear, batch norm over the words, ReLU, linear, and a skip around them. As words come and go
/// in the codebook, so do prototypes, without being learned one by one. Parameter names are those of the official MOCA
/// checkpoints. Source: MOCA, weight generation modules.
#[derive(Clone, Debug)]
pub struct Generator {
    scale: Tensor, // [1]: kappa
    first: Affine, // [hidden, dim], no bias
    norm: NormOverWords,
    last: Affine,         // [out, hidden]
    skip: Option<Affine>, // [out, dim]; none where the widths agree
}

#[derive(Clone, Debug)]
struct NormOverWords {
    weight: Tensor,   // [hidden]
    bias: Tensor,     // [hidden]
    mean: Tensor,     // [hidden], running
    variance: Tensor, // [hidden], running
    batches: Tensor,  // scalar, int64
}

/// What a generator makes of a codebook.
#[derive(Clone, Debug)]
pub struct Generated {
    /// One unit row a word.  [words, out]
    pub prototypes: Tensor,
    /// What [`Generator::observe`] takes.
    pub statistics: WordStatistics,
}

/// Mean and variance over the words of what the norm has seen; no graph.
#[derive(Clone, Debug)]
pub struct WordStatistics {
    mean: Tensor,     // [hidden]
    variance: Tensor, // [hidden]
}

impl Generator {
    /// A generator of prototypes of width `out` in `scope` (`scale`, `layers_w.0`).
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, settings: &GeneratorSettings, out: usize) -> Result<Self> {
        let GeneratorSettings { dim, hidden, kappa } = *settings;
        let scale = scope.constant("scale", &[1], &Init::Constant(kappa))?;
        let mut layers = scope.sub("layers_w");
        let mut module = layers.sub(0);
        let mut generator = module.sub("generator");
        let first = Affine { weight: linear_weight(&mut generator, "b0_fc", hidden, dim)?, bias: None };
        let norm = NormOverWords::new(&mut generator.sub("b0_bn"), hidden)?;
        let last = linear_map(&mut generator, "b0_last_layer", out, hidden)?;
        let skip = (out != dim).then(|| linear_map(&mut module, "skip", out, dim)).transpose()?;
        Ok(Self { scale, first, norm, last, skip })
    }

    /// The prototypes of a codebook. The norm goes by the words at hand, never by the running statistics, which this
    /// leaves alone: [`Generator::observe`] moves them. No gradient reaches the words.  [words, dim] -> [words, out]
    ///
    /// # Errors
    /// Fewer than two words, another width or dtype.
    pub fn generate(&self, words: &Tensor) -> Result<Generated> {
        let unit = l2_normalize(&words.detach(), NORM_FLOOR)?;
        let BatchNorm { y, mean, variance } = self.norm.forward(&self.first.forward(&unit)?)?; // [words, hidden]
        let made = self.last.forward(&relu(&y)?)?; // [words, out]
        let skip = match &self.skip {
            Some(skip) => skip.forward(&unit)?,
            None => unit,
        };
        let prototypes = l2_normalize(&(made + skip)?, NORM_FLOOR)?;
        Ok(Generated { prototypes, statistics: WordStatistics { mean, variance } })
    }

    /// Moves the running statistics of the norm: once a forward pass of the step.
    ///
    /// # Errors
    /// A failing copy.
    pub fn observe(&mut self, statistics: &WordStatistics) -> Result<()> {
        self.norm.observe(statistics)
    }

    /// Scores of features, which count by direction and length: `kappa * features * prototypes^T`. The temperature is in
    /// them: the loss takes 1.  features: [rows, out], prototypes: [words, out] -> [rows, words]
    ///
    /// # Errors
    /// Another width or dtype.
    pub fn logits(&self, features: &Tensor, prototypes: &Tensor) -> Result<Tensor> {
        linear(&(features * self.kappa()?)?, prototypes, None)
    }

    /// Cross-entropy of the scores of `features`, row `i` against row `rows[i]` of `targets` (in order: `None`), the mean
    /// over rows; the scores never lie in memory.  features: [n, out], prototypes: [words, out], targets: [m, words]
    ///
    /// # Errors
    /// Other widths, words, rows or dtypes.
    pub fn cross_entropy(
        &self,
        features: &Tensor,
        prototypes: &Tensor,
        targets: &Tensor,
        rows: Option<&[u32]>,
    ) -> Result<Tensor> {
        linear_cross_entropy(features, prototypes, targets, rows, 1.0 / self.kappa()?)
    }

    /// Inverse temperature of the scores.
    ///
    /// # Errors
    /// A failing copy.
    pub fn kappa(&self) -> Result<f64> {
        self.scale.to_dtype(DType::F64)?.to_vec1::<f64>()?.first().copied().ok_or_else(|| Error::State("scale".into()))
    }
}

impl NormOverWords {
    fn new(scope: &mut Scope<'_>, dim: usize) -> Result<Self> {
        Ok(Self {
            weight: scope.trained("weight", &[dim], &Init::Constant(1.0), Factors::NO_DECAY)?,
            bias: scope.trained("bias", &[dim], &Init::Constant(0.0), Factors::NO_DECAY)?,
            mean: scope.constant("running_mean", &[dim], &Init::Constant(0.0))?,
            variance: scope.constant("running_var", &[dim], &Init::Constant(1.0))?,
            batches: scope.count("num_batches_tracked", &[])?,
        })
    }

    /// [words, dim] -> [words, dim], and its statistics
    fn forward(&self, x: &Tensor) -> Result<BatchNorm> {
        batch_norm(x, Some(&self.weight), Some(&self.bias), BATCH_NORM_EPS)
    }

    fn observe(&self, of: &WordStatistics) -> Result<()> {
        for (running, now) in [(&self.mean, &of.mean), (&self.variance, &of.variance)] {
            assign(running, &((running * (1.0 - MOMENTUM))? + (now * MOMENTUM)?)?)?;
        }
        assign(&self.batches, &(&self.batches + 1.0)?)
    }
}
