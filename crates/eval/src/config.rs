//! Settings of the online probe and of an evaluation, as written and checked.

use crate::linear::LEAST_TRAINING_ROWS;
use occlude_settings::{ConfigError, Ruler, Span, require};
use serde::{Deserialize, Serialize};

/// How the tokens of an image become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Mean of the patch tokens.
    Average,
    /// The model's own vector (CAPI: predictor pooling).
    Global,
    /// The model's own vector, then the mean of the patch tokens.
    Both,
}

impl Pooling {
    /// The name as written in a config.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Average => "average",
            Self::Global => "global",
            Self::Both => "both",
        }
    }
}

/// Which weights of a method are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightsChoice {
    /// The network that is trained by gradient.
    Student,
    /// Its exponential moving average.
    Teacher,
}

/// The k-NN score taken while a run trains, as written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeConfig {
    /// Steps between two scores; `{ steps = 0 }` takes none before the end.
    pub every: Span,
    /// Training images whose neighbours vote.
    pub bank: usize,
    /// Held-out images that are classified.
    pub test: usize,
    /// Which weights.
    pub weights: WeightsChoice,
    /// Which features.
    pub pooling: Pooling,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self {
            every: Span::Percent(10.0),
            bank: 10_000,
            test: 2_000,
            weights: WeightsChoice::Teacher,
            pooling: Pooling::Average,
        }
    }
}

/// Checked [`ProbeConfig`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Probe {
    /// Steps between two scores; 0 for none before the end.
    pub every: u64,
    /// Training images whose neighbours vote, at most.
    pub bank: usize,
    /// Held-out images, at most.
    pub test: usize,
    /// Which weights.
    pub weights: WeightsChoice,
    /// Which features.
    pub pooling: Pooling,
}

impl ProbeConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// An empty bank or test set, or a length that is none. Whether the bank is large enough for the neighbours asked
    /// for is known where both are: see [`KnnSettings::voters`].
    pub fn check(&self, ruler: Ruler) -> Result<Probe, ConfigError> {
        let steps = self.every.steps("every", ruler)?;
        let off = matches!(self.every, Span::Steps(0));
        Ok(Probe {
            // A share of a short run may round to nothing: that asks for every step, not for no score.
            every: if off { 0 } else { steps.max(1) },
            bank: require("bank", self.bank, "must be at least 1 image", |n| *n >= 1)?,
            test: require("test", self.test, "must be at least 1 image", |n| *n >= 1)?,
            weights: self.weights,
            pooling: self.pooling,
        })
    }
}

impl Probe {
    /// Whether a score is due after `step` finished steps.
    #[must_use]
    pub fn is_due(&self, step: u64) -> bool {
        self.every > 0 && step > 0 && step.is_multiple_of(self.every)
    }
}

/// k-NN classification, as written (the CAPI paper reports such scores; the protocol is ours).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KnnConfig {
    /// Numbers of neighbours to try; the last is the one reported as canonical, with weighted votes.
    pub neighbours: Vec<usize>,
    /// A weighted vote is exp(similarity / temperature).
    pub temperature: f64,
}

impl Default for KnnConfig {
    fn default() -> Self {
        Self { neighbours: vec![1, 5, 10, 20], temperature: 0.07 }
    }
}

/// Checked [`KnnConfig`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct KnnSettings {
    /// Numbers of neighbours, ascending, not empty.
    pub neighbours: Vec<usize>,
    /// Of a weighted vote.
    pub temperature: f64,
}

impl KnnSettings {
    /// Images of a bank that are needed at least: the largest number of neighbours.
    #[must_use]
    pub fn voters(&self) -> usize {
        self.neighbours.last().copied().unwrap_or(1)
    }
}

impl KnnConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// No neighbours, an order that is not ascending, or a temperature that is not positive.
    pub fn check(&self) -> Result<KnnSettings, ConfigError> {
        let ascending = self.neighbours.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || self.neighbours.first().is_none_or(|least| *least == 0) {
            let allowed = "must be one or more numbers from 1, ascending";
            return Err(ConfigError::new("neighbours", format!("{:?}", self.neighbours), allowed));
        }
        let temperature = require("temperature", self.temperature, "must be above 0 and finite", positive)?;
        Ok(KnnSettings { neighbours: self.neighbours.clone(), temperature })
    }
}

/// The linear probe on frozen features, as written (CAPI, classification probes). The published sweep trains 12 500
/// iterations on augmented images; here features are computed once, and fewer iterations are enough for small sets.
/// `linear_probe` lists every difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinearConfig {
    /// Optimizer steps.
    pub iterations: usize,
    /// Images in a step. Learning rates are scaled by `batch / 256` (the reference: 8 workers of 128 images, so by 4).
    pub batch: usize,
    /// Learning rates to try, before scaling.
    pub lrs: Vec<f64>,
    /// Weight decays to try.
    pub weight_decays: Vec<f64>,
    /// Share of the training images kept apart to choose between the probes.
    pub validation: f64,
    /// Whether every feature is shifted and scaled to mean 0 and variance 1 over the training images.
    pub standardise: bool,
}

impl Default for LinearConfig {
    fn default() -> Self {
        Self {
            iterations: 3_000,
            batch: 128,
            lrs: vec![1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2],
            weight_decays: vec![5e-4, 1e-3, 5e-2],
            validation: 0.1,
            standardise: false,
        }
    }
}

/// Checked [`LinearConfig`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LinearSettings {
    /// Optimizer steps.
    pub iterations: usize,
    /// Images in a step.
    pub batch: usize,
    /// Every pair of learning rate (before scaling) and weight decay, learning rates in the outer loop.
    pub sweep: Vec<(f64, f64)>,
    /// Share of the training images kept apart.
    pub validation: f64,
    /// Whether features are standardised.
    pub standardise: bool,
}

impl LinearConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Nothing to train or to try, a rate that is not positive, or a validation share that leaves one part empty.
    pub fn check(&self) -> Result<LinearSettings, ConfigError> {
        let validation =
            require("validation", self.validation, "must be above 0 and below 1", |v| *v > 0.0 && *v < 1.0)?;
        all("lrs", &self.lrs, "must be one or more numbers above 0", positive)?;
        all("weight_decays", &self.weight_decays, "must be one or more numbers from 0", |w| {
            *w >= 0.0 && w.is_finite()
        })?;
        let pairs = |&lr: &f64| self.weight_decays.iter().map(move |&decay| (lr, decay));
        Ok(LinearSettings {
            iterations: require("iterations", self.iterations, "must be at least 1", |n| *n >= 1)?,
            batch: require("batch", self.batch, "must be at least 1 image", |n| *n >= 1)?,
            sweep: self.lrs.iter().flat_map(pairs).collect(),
            validation,
            standardise: self.standardise,
        })
    }
}

fn positive(value: &f64) -> bool {
    *value > 0.0 && value.is_finite()
}

fn all(field: &str, values: &[f64], allowed: &str, holds: impl Fn(&f64) -> bool) -> Result<(), ConfigError> {
    if values.is_empty() || !values.iter().all(holds) {
        return Err(ConfigError::new(field, format!("{values:?}"), allowed));
    }
    Ok(())
}

/// An evaluation of frozen weights, as written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Which weights.
    pub weights: WeightsChoice,
    /// Which features. k-NN scores each; the linear probe learns on the first.
    pub poolings: Vec<Pooling>,
    /// Images in one forward pass.
    pub batch: usize,
    /// Training images, at most. A file that leaves it out gets the default; a number as large as the set takes all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bank: Option<usize>,
    /// Test images, at most; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<usize>,
    /// k-NN.
    pub knn: KnnConfig,
    /// Linear probe.
    pub linear: LinearConfig,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            weights: WeightsChoice::Teacher,
            poolings: vec![Pooling::Average, Pooling::Global],
            batch: 64,
            bank: Some(20_000),
            test: None,
            knn: KnnConfig::default(),
            linear: LinearConfig::default(),
        }
    }
}

/// Checked [`EvalConfig`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Eval {
    /// Which weights.
    pub weights: WeightsChoice,
    /// Which features; not empty.
    pub poolings: Vec<Pooling>,
    /// Images in one forward pass.
    pub batch: usize,
    /// Training images, at most; all if absent. Never fewer than a protocol needs.
    pub bank: Option<usize>,
    /// Test images, at most; all if absent.
    pub test: Option<usize>,
    /// k-NN.
    pub knn: KnnSettings,
    /// Linear probe.
    pub linear: LinearSettings,
}

impl EvalConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// A field that is not allowed, by its name within this table.
    pub fn check(&self) -> Result<Eval, ConfigError> {
        if self.poolings.is_empty() {
            return Err(ConfigError::new("poolings", "[]", "must be one or more of average, global, both"));
        }
        let knn = self.knn.check().map_err(|error| error.inside("knn"))?;
        let least = knn.voters().max(LEAST_TRAINING_ROWS);
        let allowed = format!(
            "must be at least {least} images: k-NN asks for {} neighbours, the linear probe for {LEAST_TRAINING_ROWS} rows",
            knn.voters()
        );
        self.bank.map_or(Ok(least), |n| require("bank", n, &allowed, |n| *n >= least))?;
        self.test.map_or(Ok(1), |n| require("test", n, "must be at least 1 image", |n| *n >= 1))?;
        Ok(Eval {
            weights: self.weights,
            poolings: self.poolings.clone(),
            batch: require("batch", self.batch, "must be at least 1 image", |n| *n >= 1)?,
            bank: self.bank,
            test: self.test,
            knn,
            linear: self.linear.check().map_err(|error| error.inside("linear"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{EvalConfig, KnnConfig, LinearConfig, ProbeConfig};
    use occlude_settings::{Ruler, Span};

    const RULER: Ruler = Ruler { steps_per_epoch: 10.0, total_steps: 600 };

    #[test]
    fn defaults_are_allowed() {
        let eval = EvalConfig::default().check().unwrap();
        assert_eq!(eval.linear.sweep.len(), 30);
        assert_eq!((eval.linear.sweep[0], eval.linear.sweep[29]), ((1e-5, 5e-4), (1e-2, 5e-2)));
        assert_eq!(ProbeConfig::default().check(RULER).unwrap().every, 60);
    }

    #[test]
    fn a_probe_is_due_at_multiples_and_can_be_turned_off() {
        let at = |every: Span| ProbeConfig { every, ..ProbeConfig::default() }.check(RULER).unwrap();
        let due: Vec<u64> = (0..=50).filter(|step| at(Span::Epochs(2.0)).is_due(*step)).collect();
        assert_eq!(due, [20, 40]);
        assert!(!(0..=600).any(|step| at(Span::Steps(0)).is_due(step)));
        assert!(at(Span::Percent(0.01)).is_due(1), "a share that rounds to nothing asks for every step");
    }

    #[test]
    fn a_bank_smaller_than_its_voters_is_refused_before_anything_runs() {
        let with = |neighbours: &[usize], bank| {
            let knn = KnnConfig { neighbours: neighbours.to_vec(), ..KnnConfig::default() };
            EvalConfig { bank, knn, ..EvalConfig::default() }.check()
        };
        let refused = with(&[1, 5, 20], Some(19)).unwrap_err();
        assert_eq!((refused.field.as_str(), refused.value.as_str()), ("bank", "19"));
        assert!(refused.to_string().contains("at least 20"), "{refused}");
        assert_eq!(with(&[1], Some(9)).unwrap_err().field, "bank", "the linear probe needs ten");
        with(&[1, 5, 20], Some(20)).unwrap();
        with(&[1], Some(10)).unwrap();
        with(&[1, 5, 20], None).unwrap();
    }

    #[test]
    fn refusals_name_the_field() {
        let bank = ProbeConfig { bank: 0, ..ProbeConfig::default() }.check(RULER).unwrap_err();
        assert_eq!(bank.field, "bank");
        let order = KnnConfig { neighbours: vec![5, 1], ..KnnConfig::default() };
        assert_eq!(order.check().unwrap_err().field, "neighbours");
        assert_eq!(EvalConfig { knn: order, ..EvalConfig::default() }.check().unwrap_err().field, "knn.neighbours");
        for (config, field) in [
            (LinearConfig { validation: f64::NAN, ..LinearConfig::default() }, "validation"),
            (LinearConfig { lrs: vec![], ..LinearConfig::default() }, "lrs"),
            (LinearConfig { weight_decays: vec![-1.0], ..LinearConfig::default() }, "weight_decays"),
            (LinearConfig { batch: 0, ..LinearConfig::default() }, "batch"),
        ] {
            assert_eq!(config.check().unwrap_err().field, field);
        }
    }
}
