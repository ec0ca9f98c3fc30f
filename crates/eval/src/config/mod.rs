//! Settings of the online probe and of an evaluation, as written and checked.

mod knn;
mod linear;
mod low_shot;

pub use knn::{KnnConfig, KnnSettings};
pub use linear::{LinearConfig, LinearProtocol, LinearSettings, MaeLinearConfig, MocaLinearConfig};
pub use low_shot::{LowShotConfig, LowShotList, LowShotSettings};

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
    /// Class tokens of the last blocks, one after the other.
    Class,
    /// Class tokens of the last blocks, then the mean of the patch tokens.
    ClassAverage,
    /// Mean of the patch tokens before the encoder's final norm.
    BeforeNorm,
}

impl Pooling {
    /// Every one, in the order of the names an error lists.
    const ALL: [Self; 6] = [Self::Average, Self::Global, Self::Both, Self::Class, Self::ClassAverage, Self::BeforeNorm];

    /// The name as written in a config.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Average => "average",
            Self::Global => "global",
            Self::Both => "both",
            Self::Class => "class",
            Self::ClassAverage => "class_average",
            Self::BeforeNorm => "before_norm",
        }
    }
}

/// A way to score frozen features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Nearest neighbours vote; beside random weights and raw pixels.
    Knn,
    /// A linear classifier on all training images.
    Linear,
    /// A linear classifier on a few training images of each class.
    LowShot,
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
    /// What is scored.
    pub protocols: Vec<Protocol>,
    /// Which features. k-NN scores each; the linear probe learns on the first unless it names its own.
    pub poolings: Vec<Pooling>,
    /// Blocks that give their class token to the poolings `class` and `class_average`, counted from the last.
    pub class_blocks: usize,
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
    /// Low-shot classification.
    pub lowshot: LowShotConfig,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            weights: WeightsChoice::Teacher,
            protocols: vec![Protocol::Knn, Protocol::Linear],
            poolings: vec![Pooling::Average, Pooling::Global],
            class_blocks: 1,
            batch: 64,
            bank: Some(20_000),
            test: None,
            knn: KnnConfig::default(),
            linear: LinearConfig::default(),
            lowshot: LowShotConfig::default(),
        }
    }
}

/// Checked [`EvalConfig`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Eval {
    /// Which weights.
    pub weights: WeightsChoice,
    /// What is scored; not empty.
    pub protocols: Vec<Protocol>,
    /// Which features; not empty.
    pub poolings: Vec<Pooling>,
    /// Blocks that give their class token.
    pub class_blocks: usize,
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
    /// Low-shot classification.
    pub lowshot: LowShotSettings,
}

impl Eval {
    /// Whether `protocol` is asked for.
    #[must_use]
    pub fn scores(&self, protocol: Protocol) -> bool {
        self.protocols.contains(&protocol)
    }

    /// The features the linear probes learn on.
    #[must_use]
    pub fn linear_poolings(&self) -> &[Pooling] {
        if self.linear.poolings.is_empty() { &self.poolings[..1] } else { &self.linear.poolings }
    }
}

impl EvalConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// A field that is not allowed, by its name within this table.
    pub fn check(&self) -> Result<Eval, ConfigError> {
        if self.poolings.is_empty() {
            let names = Pooling::ALL.map(Pooling::name).join(", ");
            return Err(ConfigError::new("poolings", "[]", format!("must be one or more of {names}")));
        }
        if self.protocols.is_empty() {
            return Err(ConfigError::new("protocols", "[]", "must be one or more of knn, linear, lowshot"));
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
            protocols: self.protocols.clone(),
            poolings: self.poolings.clone(),
            class_blocks: require("class_blocks", self.class_blocks, "must be at least 1", |n| *n >= 1)?,
            batch: require("batch", self.batch, "must be at least 1 image", |n| *n >= 1)?,
            bank: self.bank,
            test: self.test,
            knn,
            linear: self.linear.check().map_err(|error| error.inside("linear"))?,
            lowshot: self.lowshot.check().map_err(|error| error.inside("lowshot"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        EvalConfig, KnnConfig, LinearConfig, LinearProtocol, LowShotConfig, LowShotList, MocaLinearConfig, ProbeConfig,
    };
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
    fn the_published_rates_of_the_other_recipe_are_45() {
        let moca = LinearConfig { protocol: LinearProtocol::Moca, ..LinearConfig::default() };
        let settings = moca.check().unwrap();
        assert_eq!((settings.epochs, settings.batch, settings.sweep.len()), (100, 1024, 45));
        assert_eq!((settings.sweep[0], settings.sweep[2], settings.sweep[44]), ((1e-4, 0.0), (3e-4, 0.0), (9.0, 0.0)));
        assert!(settings.sweep.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn temperatures_are_scored_in_order_and_once() {
        let knn = KnnConfig { temperatures: vec![0.2, 0.07, 0.04], ..KnnConfig::default() }.check().unwrap();
        assert_eq!((knn.temperature, knn.temperatures), (0.07, vec![0.04, 0.07, 0.2]));
        assert_eq!(KnnConfig::default().check().unwrap().temperatures, [0.07]);
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
            (
                LinearConfig { moca: MocaLinearConfig { epochs: 0, ..Default::default() }, ..Default::default() },
                "moca.epochs",
            ),
            (
                LinearConfig {
                    moca: MocaLinearConfig { lrs: Some(vec![]), ..Default::default() },
                    ..Default::default()
                },
                "moca.lrs",
            ),
        ] {
            assert_eq!(config.check().unwrap_err().field, field);
        }
        let list = |name: &str, files: usize| LowShotList { name: name.into(), files: vec!["a.txt".into(); files] };
        for (config, field) in [
            (LowShotConfig { shots: vec![2, 1], ..LowShotConfig::default() }, "shots"),
            (LowShotConfig { shots: vec![0], ..LowShotConfig::default() }, "shots"),
            (LowShotConfig { subsets: 0, ..LowShotConfig::default() }, "subsets"),
            (LowShotConfig { lambdas: vec![0.1, f64::NAN], ..LowShotConfig::default() }, "lambdas"),
            (LowShotConfig { tolerance: 0.0, ..LowShotConfig::default() }, "tolerance"),
            (LowShotConfig { lists: vec![list("1 %", 0)], ..LowShotConfig::default() }, "lists"),
            (LowShotConfig { lists: vec![list("a", 1), list("a", 2)], ..LowShotConfig::default() }, "lists"),
        ] {
            assert_eq!(config.check().unwrap_err().field, field);
        }
        let hot = KnnConfig { temperatures: vec![-1.0], ..KnnConfig::default() };
        assert_eq!(hot.check().unwrap_err().field, "temperatures");
        assert_eq!(EvalConfig { protocols: vec![], ..EvalConfig::default() }.check().unwrap_err().field, "protocols");
        assert_eq!(EvalConfig { class_blocks: 0, ..EvalConfig::default() }.check().unwrap_err().field, "class_blocks");
    }
}
