//! Settings of the clustering: as written, and checked.

use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};

/// Most prototypes: far beyond any recipe, but small enough that no size computed from them overflows.
const MOST_PROTOTYPES: usize = 1 << 24;

/// Which tokens share the prototypes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkhornKind {
    /// The tokens at one position over the batch, separately for each position (CAPI's proposal).
    Positionwise,
    /// All tokens of the batch together.
    Standard,
}

/// The clustering as written in a file. Defaults are CAPI's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusteringConfig {
    /// Prototypes, and so target classes. The recipe has as many as images in a batch.
    pub prototypes: usize,
    /// Scores are divided by this before Sinkhorn.
    pub target_temp: f64,
    /// Scores are divided by this where the prototypes learn to predict the assignments.
    pub pred_temp: f64,
    /// Sinkhorn iterations.
    pub iterations: usize,
    /// `positionwise` or `standard`.
    pub sinkhorn: SinkhornKind,
    /// Whether each prototype has a bias.
    pub bias: bool,
    /// Peak learning rate of the prototypes; the shape of the schedule is the model's.
    pub lr: f64,
    /// Weight decay of prototypes and bias.
    pub weight_decay: f64,
    /// Decays of the first and second moment: the optimizer of the prototypes is not the student's.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for ClusteringConfig {
    fn default() -> Self {
        Self {
            prototypes: 16384,
            target_temp: 0.06,
            pred_temp: 0.12,
            iterations: 3,
            sinkhorn: SinkhornKind::Positionwise,
            bias: true,
            lr: 5e-4,
            weight_decay: 0.01,
            betas: (0.9, 0.95),
            eps: 1e-8,
        }
    }
}

/// A checked clustering.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusteringSettings {
    pub(crate) prototypes: usize,
    pub(crate) target_temp: f64,
    pub(crate) pred_temp: f64,
    pub(crate) iterations: usize,
    pub(crate) sinkhorn: SinkhornKind,
    pub(crate) bias: bool,
}

impl ClusteringConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub fn check(&self) -> Result<ClusteringSettings, ConfigError> {
        let allowed = format!("must be at least 2 and at most {MOST_PROTOTYPES}");
        require("prototypes", self.prototypes, &allowed, |k| (2..=MOST_PROTOTYPES).contains(k))?;
        // Without an iteration the exponentials of the scores would be the targets, of any size.
        require("iterations", self.iterations, "must be at least 1", |n| *n >= 1)?;
        for (field, value) in [("target_temp", self.target_temp), ("pred_temp", self.pred_temp), ("eps", self.eps)] {
            require(field, value, "must be positive", |t| *t > 0.0 && t.is_finite())?;
        }
        for (field, value) in [("lr", self.lr), ("weight_decay", self.weight_decay)] {
            require(field, value, "must be at least 0", |v| *v >= 0.0 && v.is_finite())?;
        }
        for beta in [self.betas.0, self.betas.1] {
            require("betas", beta, "must be at least 0 and below 1", |b| (0.0..1.0).contains(b))?;
        }
        Ok(ClusteringSettings {
            prototypes: self.prototypes,
            target_temp: self.target_temp,
            pred_temp: self.pred_temp,
            iterations: self.iterations,
            sinkhorn: self.sinkhorn,
            bias: self.bias,
        })
    }
}

impl ClusteringSettings {
    /// Prototypes.
    #[must_use]
    pub fn prototypes(&self) -> usize {
        self.prototypes
    }

    /// Over how many tokens each prototype is shared in a batch of `batch` images of `patches` patches.
    #[must_use]
    pub fn samples(&self, batch: usize, patches: usize) -> usize {
        match self.sinkhorn {
            SinkhornKind::Positionwise => batch,
            SinkhornKind::Standard => batch * patches,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ClusteringConfig;

    #[test]
    fn each_refusal_names_its_field() {
        let refused = |change: fn(&mut ClusteringConfig)| {
            let mut config = ClusteringConfig::default();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(refused(|c| c.prototypes = 1).starts_with("prototypes = 1: must be at least 2"));
        assert!(refused(|c| c.target_temp = 0.0).starts_with("target_temp = 0"));
        assert!(refused(|c| c.pred_temp = f64::NAN).starts_with("pred_temp = NaN"));
        assert!(refused(|c| c.prototypes = 1 << 40).contains("at most 16777216"));
        assert!(refused(|c| c.iterations = 0).starts_with("iterations = 0: must be at least 1"));
        assert!(refused(|c| c.lr = -1.0).starts_with("lr = -1"));
        assert!(refused(|c| c.eps = 0.0).starts_with("eps = 0: must be positive"));
        assert!(refused(|c| c.betas.1 = 1.0).starts_with("betas = 1"));
    }
}
