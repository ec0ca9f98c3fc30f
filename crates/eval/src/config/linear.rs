//! Settings of the linear probes.

use super::{Pooling, all, positive};
use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};

/// Whose recipe a linear probe follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinearProtocol {
    /// `AdamW` over a grid; the best on a share of the training images is scored once.
    #[default]
    Capi,
    /// SGD over 45 learning rates; the best accuracy on the test images over all of them and all epochs is quoted.
    Moca,
}

/// The linear probe on frozen features, as written (CAPI, classification probes). The published sweep trains 12 500
/// iterations on augmented images; here features are computed once, and fewer iterations are enough for small sets.
/// `linear_probe` lists every difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinearConfig {
    /// Whose recipe.
    pub protocol: LinearProtocol,
    /// Which features, a probe each; where empty, the first of the evaluation's.
    pub poolings: Vec<Pooling>,
    /// Whether every feature is shifted and scaled to mean 0 and variance 1 over the training images.
    pub standardise: bool,
    /// Optimizer steps (CAPI).
    pub iterations: usize,
    /// Images in a step (CAPI). Learning rates are scaled by `batch / 256` (the reference: 8 workers of 128 images, so by 4).
    pub batch: usize,
    /// Learning rates to try, before scaling (CAPI).
    pub lrs: Vec<f64>,
    /// Weight decays to try (CAPI).
    pub weight_decays: Vec<f64>,
    /// Share of the training images kept apart to choose between the probes (CAPI).
    pub validation: f64,
    /// The other recipe.
    pub moca: MocaLinearConfig,
}

impl Default for LinearConfig {
    fn default() -> Self {
        Self {
            protocol: LinearProtocol::Capi,
            poolings: Vec::new(),
            standardise: false,
            iterations: 3_000,
            batch: 128,
            lrs: vec![1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2],
            weight_decays: vec![5e-4, 1e-3, 5e-2],
            validation: 0.1,
            moca: MocaLinearConfig::default(),
        }
    }
}

/// SGD with momentum, as written (MOCA, linear probing).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MocaLinearConfig {
    /// Passes over the training images.
    pub epochs: usize,
    /// Images in a step. Learning rates are scaled by `batch / 256`.
    pub batch: usize,
    /// Learning rates to try, before scaling; 1 to 9 times 1e-4 to 1 where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lrs: Option<Vec<f64>>,
    /// Weight decays to try; the published wider grid is 0, 1e-6, 1e-5, 1e-4.
    pub weight_decays: Vec<f64>,
}

impl Default for MocaLinearConfig {
    fn default() -> Self {
        Self { epochs: 100, batch: 1024, lrs: None, weight_decays: vec![0.0] }
    }
}

/// Checked [`LinearConfig`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LinearSettings {
    /// Whose recipe.
    pub protocol: LinearProtocol,
    /// Which features; the first of the evaluation's where empty.
    pub poolings: Vec<Pooling>,
    /// Whether features are standardised.
    pub standardise: bool,
    /// Optimizer steps (CAPI).
    pub iterations: usize,
    /// Passes over the training images (MOCA).
    pub epochs: usize,
    /// Images in a step.
    pub batch: usize,
    /// Every pair of learning rate (before scaling) and weight decay, learning rates in the outer loop.
    pub sweep: Vec<(f64, f64)>,
    /// Share of the training images kept apart (CAPI).
    pub validation: f64,
}

impl LinearConfig {
    /// Checks every field, those of the recipe that is not chosen too.
    ///
    /// # Errors
    /// Nothing to train or to try, a rate that is not positive, or a validation share that leaves one part empty.
    pub fn check(&self) -> Result<LinearSettings, ConfigError> {
        let validation =
            require("validation", self.validation, "must be above 0 and below 1", |v| *v > 0.0 && *v < 1.0)?;
        let capi = (at_least_one_image(self.batch)?, sweep(&self.lrs, &self.weight_decays)?);
        let moca = self.moca.check().map_err(|error| error.inside("moca"))?;
        let (batch, sweep) = if self.protocol == LinearProtocol::Moca { moca } else { capi };
        Ok(LinearSettings {
            protocol: self.protocol,
            poolings: self.poolings.clone(),
            standardise: self.standardise,
            iterations: require("iterations", self.iterations, "must be at least 1", |n| *n >= 1)?,
            epochs: self.moca.epochs,
            batch,
            sweep,
            validation,
        })
    }
}

impl MocaLinearConfig {
    fn check(&self) -> Result<(usize, Vec<(f64, f64)>), ConfigError> {
        require("epochs", self.epochs, "must be at least 1", |n| *n >= 1)?;
        let lrs = self.lrs.clone().unwrap_or_else(published_lrs);
        Ok((at_least_one_image(self.batch)?, sweep(&lrs, &self.weight_decays)?))
    }
}

fn at_least_one_image(batch: usize) -> Result<usize, ConfigError> {
    require("batch", batch, "must be at least 1 image", |n| *n >= 1)
}

/// 1 to 9 times 1e-4 to 1, ascending.
fn published_lrs() -> Vec<f64> {
    let decades = [1e4, 1e3, 1e2, 1e1, 1e0];
    decades.iter().flat_map(|parts| (1..=9).map(move |factor| f64::from(factor) / parts)).collect()
}

fn sweep(lrs: &[f64], weight_decays: &[f64]) -> Result<Vec<(f64, f64)>, ConfigError> {
    all("lrs", lrs, "must be one or more numbers above 0", positive)?;
    all("weight_decays", weight_decays, "must be one or more numbers from 0", |w| *w >= 0.0 && w.is_finite())?;
    let pairs = |&lr: &f64| weight_decays.iter().map(move |&decay| (lr, decay));
    Ok(lrs.iter().flat_map(pairs).collect())
}
