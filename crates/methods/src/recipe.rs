//! The optimizer of methods that train one network by one loss: settings, the checked recipe, its groups. And the checks
//! that other recipes share.

use crate::BatchSize;
use occlude_kernels::{Gradients, Param, ParamStore, Role, global_norm};
use occlude_optim::{ParamGroup, Schedule};
use occlude_settings::{ConfigError, Ruler, Span, require};
use serde::{Deserialize, Serialize};

/// Images that the base learning rate is meant for.
pub(crate) const BASE_BATCH: f64 = 256.0;

/// `AdamW` as written in a file. Defaults are RandSAC's on ImageNet (its section of pre-training recipes).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Peak learning rate for 256 images: it grows with the images of a step.
    pub base_lr: f64,
    /// The peak itself, where given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Length of the straight line up to the peak; a cosine to 0 at the end of the run follows.
    pub warmup: Span,
    /// Weight decay of matrices.
    pub weight_decay: f64,
    /// Decays of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            base_lr: 1.5e-4,
            lr: None,
            warmup: Span::Epochs(40.0),
            weight_decay: 0.05,
            betas: (0.9, 0.95),
            eps: 1e-8,
        }
    }
}

/// How everything is stepped.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdamWRecipe {
    lr: Schedule,
    weight_decay: f64,
    betas: (f64, f64),
    eps: f64,
}

impl AdamWConfig {
    /// Checks the settings for steps of `batch` images and a run as long as `ruler` says.
    pub(crate) fn check(&self, batch: BatchSize, ruler: Ruler) -> Result<AdamWRecipe, ConfigError> {
        let Self { base_lr, lr, warmup, weight_decay, betas, eps } = *self;
        check_sizes(&[("base_lr", base_lr), ("lr", lr.unwrap_or(0.0)), ("weight_decay", weight_decay)])?;
        check_moments(betas, eps)?;
        let peak = lr.unwrap_or(base_lr * batch.effective() as f64 / BASE_BATCH);
        let length = ruler.total_steps as f64 / ruler.steps_per_epoch; // epochs
        let lr = Schedule::linear_cosine(peak, check_warmup(warmup, ruler)?, length, ruler);
        Ok(AdamWRecipe { lr, weight_decay, betas, eps })
    }
}

/// Rates and decays.
pub(crate) fn check_sizes(numbers: &[(&str, f64)]) -> Result<(), ConfigError> {
    for (field, value) in numbers {
        require(field, *value, "must be at least 0", |v| *v >= 0.0 && v.is_finite())?;
    }
    Ok(())
}

pub(crate) fn check_moments(betas: (f64, f64), eps: f64) -> Result<(), ConfigError> {
    require("eps", eps, "must be positive", |e| *e > 0.0 && e.is_finite())?;
    for beta in [betas.0, betas.1] {
        require("betas", beta, "must be at least 0 and below 1", |b| (0.0..1.0).contains(b))?;
    }
    Ok(())
}

/// The warm-up in epochs, if it fits into the run.
pub(crate) fn check_warmup(warmup: Span, ruler: Ruler) -> Result<f64, ConfigError> {
    let steps = warmup.steps("warmup", ruler)?;
    let allowed = format!("steps must fit into the run of {} steps", ruler.total_steps);
    require("warmup", steps, &allowed, |steps| *steps <= ruler.total_steps)?;
    Ok(match warmup {
        Span::Epochs(epochs) => epochs,
        Span::Steps(_) | Span::Percent(_) => steps as f64 / ruler.steps_per_epoch,
    })
}

impl AdamWRecipe {
    /// All trained parameters of `store`: those that are decayed, and the others.
    pub(crate) fn groups(&self, store: &ParamStore) -> Vec<ParamGroup> {
        let group = |name, decayed: bool| ParamGroup {
            name,
            params: store.trained().filter(|param| is_decayed(param) == decayed).cloned().collect(),
            lr: self.lr.clone(),
            weight_decay: Schedule::constant(if decayed { self.weight_decay } else { 0.0 }),
            betas: self.betas,
            eps: self.eps,
            ema: None,
        };
        vec![group("no_decay", false), group("decay", true)]
    }
}

/// The L2 norm of the gradients of all trained parameters together.
pub(crate) fn gradients_norm(store: &ParamStore, gradients: &Gradients) -> occlude_kernels::Result<f64> {
    global_norm(store.trained().filter_map(|param| gradients.get(&param.tensor)))
}

pub(crate) fn is_decayed(param: &Param) -> bool {
    matches!(param.role, Role::Trained(factors) if factors.wd > 0.0)
}
