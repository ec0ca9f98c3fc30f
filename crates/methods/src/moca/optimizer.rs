//! How MOCA's parameters are stepped: settings, and the checked recipe.

use crate::BatchSize;
use crate::recipe::{BASE_BATCH, check_moments, check_sizes, check_warmup};
use occlude_optim::Schedule;
use occlude_settings::{ConfigError, Ruler, Span, require};
use serde::{Deserialize, Serialize};

/// The optimizer as written in a file. Defaults are those of the paper's recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MocaOptimizerConfig {
    /// Peak learning rate for 256 images: it grows with the images of a step.
    pub base_lr: f64,
    /// The peak itself, where given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Length of the straight line up to the peak.
    pub warmup: Span,
    /// Where the cosine after the warm-up would reach 0, in lengths of the run: with more than 1 the run ends before that.
    pub horizon: f64,
    /// Learning rate of the generators, the same in every step.
    pub generator_lr: f64,
    /// Weight decay of matrices, and of class and mask tokens; that of the generators stays at this.
    pub weight_decay: f64,
    /// Where that of encoder and decoder ends, by half a cosine; it stays where absent. The public code's recommended run
    /// has 0.2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay_end: Option<f64>,
    /// Decays of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Momentum of the teacher in the first step. The public code's recommended run has 0.994.
    pub momentum: f64,
    /// Where it ends, by half a cosine; a constant is its own end.
    pub momentum_end: f64,
}

impl Default for MocaOptimizerConfig {
    fn default() -> Self {
        Self {
            base_lr: 1.5e-4,
            lr: None,
            warmup: Span::Epochs(30.0),
            horizon: 1.25,
            generator_lr: 1e-4,
            weight_decay: 0.05,
            weight_decay_end: None,
            betas: (0.9, 0.999),
            eps: 1e-8,
            momentum: 0.99,
            momentum_end: 1.0,
        }
    }
}

/// How everything is stepped.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Recipe {
    pub(super) lr: Schedule,
    pub(super) generator_lr: Schedule,
    pub(super) weight_decay: Schedule,
    pub(super) generator_weight_decay: Schedule,
    pub(super) betas: (f64, f64),
    pub(super) eps: f64,
    pub(super) momentum: Schedule,
}

impl MocaOptimizerConfig {
    /// Checks the settings for steps of `batch` images and a run as long as `ruler` says.
    pub(super) fn check(&self, batch: BatchSize, ruler: Ruler) -> Result<Recipe, ConfigError> {
        let Self { weight_decay, betas, eps, generator_lr, .. } = *self;
        let decay_end = self.weight_decay_end.unwrap_or(weight_decay);
        check_sizes(&[
            ("base_lr", self.base_lr),
            ("lr", self.lr.unwrap_or(0.0)),
            ("generator_lr", generator_lr),
            ("weight_decay", weight_decay),
            ("weight_decay_end", decay_end),
        ])?;
        check_moments(betas, eps)?;
        for (field, value) in [("momentum", self.momentum), ("momentum_end", self.momentum_end)] {
            require(field, value, "must be between 0 and 1", |m| (0.0..=1.0).contains(m))?;
        }
        let length = ruler.total_steps as f64 / ruler.steps_per_epoch; // epochs
        Ok(Recipe {
            lr: self.learning_rate(batch, length, ruler)?,
            generator_lr: Schedule::constant(generator_lr),
            weight_decay: Schedule::cosine_wave(weight_decay, decay_end, length, ruler),
            generator_weight_decay: Schedule::constant(weight_decay),
            betas,
            eps,
            momentum: Schedule::cosine(self.momentum, self.momentum_end, length, ruler),
        })
    }

    fn learning_rate(&self, batch: BatchSize, length: f64, ruler: Ruler) -> Result<Schedule, ConfigError> {
        let factor = require("horizon", self.horizon, "must be at least 1", |h| *h >= 1.0 && h.is_finite())?;
        // Whole epochs, as in the public code, unless the run itself is a part of one.
        let horizon = factor * length;
        let horizon = if horizon.trunc() >= length { horizon.trunc() } else { horizon };
        let warmup = check_warmup(self.warmup, ruler)?;
        let peak = self.lr.unwrap_or(self.base_lr * batch.effective() as f64 / BASE_BATCH);
        Ok(Schedule::linear_cosine(peak, warmup, horizon, ruler))
    }
}
