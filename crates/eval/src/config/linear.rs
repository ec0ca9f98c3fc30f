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
    /// LARS behind batch normalisation at one learning rate; the accuracy after the last epoch is quoted.
    Mae,
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
    /// MOCA's recipe.
    pub moca: MocaLinearConfig,
    /// MAE's recipe.
    pub mae: MaeLinearConfig,
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
            mae: MaeLinearConfig::default(),
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

/// LARS, a warm-up and a cosine, as written (MAE, linear probing; RandSAC, linear probe).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaeLinearConfig {
    /// Passes over the training images.
    pub epochs: usize,
    /// The first passes, over which learning rates rise from 0; at most all.
    pub warmup_epochs: usize,
    /// Images in a step, or all where there are fewer. Learning rates are scaled by the images in a step / 256.
    pub batch: usize,
    /// Learning rates to try, before scaling; the published recipe has one. The best of several is chosen on the test
    /// images, for which it is quoted.
    pub lrs: Vec<f64>,
    /// Weight decays to try.
    pub weight_decays: Vec<f64>,
    /// Whether features pass batch normalisation without parameters.
    pub batch_norm: bool,
}

impl Default for MaeLinearConfig {
    fn default() -> Self {
        Self {
            epochs: 90,
            warmup_epochs: 10,
            batch: 16_384,
            lrs: vec![0.1],
            weight_decays: vec![0.0],
            batch_norm: true,
        }
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
    /// Passes over the training images (MOCA, MAE).
    pub epochs: usize,
    /// The first passes, over which learning rates rise; at most all (MAE).
    pub warmup_epochs: usize,
    /// Images in a step.
    pub batch: usize,
    /// Every pair of learning rate (before scaling) and weight decay, learning rates in the outer loop.
    pub sweep: Vec<(f64, f64)>,
    /// Share of the training images kept apart (CAPI).
    pub validation: f64,
    /// Whether features pass batch normalisation; a step then has two or more images (MAE).
    pub batch_norm: bool,
}

impl LinearConfig {
    /// Checks every field, those of the recipes that are not chosen too.
    ///
    /// # Errors
    /// Nothing to train or to try, a rate that is not positive, a validation share that leaves one part empty, a
    /// warm-up longer than its training, or batch normalisation over one image.
    pub fn check(&self) -> Result<LinearSettings, ConfigError> {
        let validation =
            require("validation", self.validation, "must be above 0 and below 1", |v| *v > 0.0 && *v < 1.0)?;
        let capi = (at_least_one_image(self.batch)?, sweep(&self.lrs, &self.weight_decays)?);
        let moca = self.moca.check().map_err(|error| error.inside("moca"))?;
        let mae = self.mae.check().map_err(|error| error.inside("mae"))?;
        let (epochs, (batch, sweep)) = match self.protocol {
            LinearProtocol::Capi => (self.moca.epochs, capi),
            LinearProtocol::Moca => (self.moca.epochs, moca),
            LinearProtocol::Mae => (self.mae.epochs, mae),
        };
        Ok(LinearSettings {
            protocol: self.protocol,
            poolings: self.poolings.clone(),
            standardise: self.standardise,
            iterations: require("iterations", self.iterations, "must be at least 1", |n| *n >= 1)?,
            epochs,
            warmup_epochs: self.mae.warmup_epochs,
            batch,
            sweep,
            validation,
            batch_norm: self.mae.batch_norm,
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

impl MaeLinearConfig {
    fn check(&self) -> Result<(usize, Vec<(f64, f64)>), ConfigError> {
        let epochs = require("epochs", self.epochs, "must be at least 1", |n| *n >= 1)?;
        let allowed = format!("must be at most the {epochs} epochs");
        require("warmup_epochs", self.warmup_epochs, &allowed, |n| *n <= epochs)?;
        let batch = if self.batch_norm {
            require("batch", self.batch, "must be at least 2 images, for batch normalisation", |n| *n >= 2)?
        } else {
            at_least_one_image(self.batch)?
        };
        Ok((batch, sweep(&self.lrs, &self.weight_decays)?))
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

#[cfg(test)]
mod tests {
    use super::{LinearConfig, LinearProtocol, MaeLinearConfig};

    fn with(mae: MaeLinearConfig) -> LinearConfig {
        LinearConfig { protocol: LinearProtocol::Mae, mae, ..LinearConfig::default() }
    }

    #[test]
    fn the_published_recipe_of_mae_has_one_rate() {
        let settings = with(MaeLinearConfig::default()).check().unwrap();
        assert_eq!((settings.epochs, settings.warmup_epochs, settings.batch), (90, 10, 16_384));
        assert_eq!((settings.sweep, settings.batch_norm), (vec![(0.1, 0.0)], true));
    }

    #[test]
    fn the_recipe_is_written_in_lower_case_with_its_own_table() {
        let text = r#"{ "protocol": "mae", "mae": { "lrs": [0.1, 1.0], "warmup_epochs": 5, "batch_norm": false } }"#;
        let read: LinearConfig = serde_json::from_str(text).unwrap();
        let mae =
            MaeLinearConfig { lrs: vec![0.1, 1.0], warmup_epochs: 5, batch_norm: false, ..MaeLinearConfig::default() };
        assert_eq!(read, with(mae));
        assert!(serde_json::from_str::<LinearConfig>(r#"{ "mae": { "warmup": 5 } }"#).is_err());
    }

    #[test]
    fn refusals_of_the_recipe_of_mae_name_the_field() {
        let refused = |mae: MaeLinearConfig| with(mae).check().unwrap_err();
        let plain = MaeLinearConfig::default;
        for (mae, field) in [
            (MaeLinearConfig { epochs: 0, ..plain() }, "mae.epochs"),
            (MaeLinearConfig { epochs: 9, ..plain() }, "mae.warmup_epochs"),
            (MaeLinearConfig { batch: 1, ..plain() }, "mae.batch"),
            (MaeLinearConfig { batch: 0, batch_norm: false, ..plain() }, "mae.batch"),
            (MaeLinearConfig { lrs: vec![0.0], ..plain() }, "mae.lrs"),
            (MaeLinearConfig { weight_decays: vec![f64::NAN], ..plain() }, "mae.weight_decays"),
        ] {
            assert_eq!(refused(mae).field, field);
        }
        let long = refused(MaeLinearConfig { epochs: 9, ..plain() });
        assert_eq!(long.to_string(), "mae.warmup_epochs = 10: must be at most the 9 epochs");
        with(MaeLinearConfig { epochs: 10, batch: 1, batch_norm: false, ..plain() }).check().unwrap();
    }
}
