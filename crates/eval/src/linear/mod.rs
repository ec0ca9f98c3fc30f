//! Linear probes on frozen features: one linear layer with bias for every learning rate and weight decay of a sweep, all
//! trained together on the same batches.
//!
//! CAPI (classification probes): `AdamW`, a warm-up and a cosine by iteration; the best on a validation split is scored
//! on the test images. MOCA (linear probing): SGD with momentum, first weights N(0, 0.01), biases 0, a cosine by epoch to 0;
//! all heads are scored on the test images after every epoch, and the best accuracy of any head at any epoch is quoted:
//! chosen on the images it is quoted for, so a little too good. MAE (linear probing, which is RandSAC's too): LARS,
//! batch normalisation without parameters in front, first weights N(0, 0.01), biases 0, a warm-up and a cosine by step to
//! 0; the accuracy on the test images after the last epoch is quoted. The recipe has one learning rate. Where several are
//! given, the best of them is quoted, and again it was chosen on the images it is quoted for.
//!
//! Differs from the references in these points:
//!
//! - features are computed once, from the evaluation transform; the references see a random crop and flip each time.
//!   Whether that transform squashes or cuts the centre out of the short side, as published, is the data set's setting
//!   (`data.eval`), not known here;
//! - one process: learning rates are scaled by `batch / 256`. For CAPI that is half with the default batch of 128, where
//!   the reference has 8 workers of 128 images and scales by 4; for MOCA and MAE it is the reference's rule and batch;
//! - orders and first weights are drawn from named streams; so is CAPI's validation split, not by the permutation of seed 42;
//! - CAPI: 3 000 iterations unless told otherwise, not 12 500; first weights are normal, not truncated (the bound lies a
//!   hundred deviations away);
//! - an image has one label or none; features may be standardised, which is off.

mod adamw;
mod batch_norm;
mod heads;
mod lars;
mod mae;
mod sgd;
mod standard;
#[cfg(test)]
mod tests;

pub use standard::Standard;

use adamw::AdamW;
use heads::{Heads, Reduce};
use mae::mae;
use sgd::Sgd;

use crate::config::{LinearProtocol, LinearSettings};
use crate::features::FeatureSet;
use crate::subset::shuffle;
use crate::{Error, Result};
use occlude_optim::Schedule;
use occlude_random::Streams;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Of the first weights: CAPI (truncated there at 2, a hundred deviations away); MOCA and MAE.
const INIT_STD: (f64, f64) = (0.02, 0.01);

/// Labelled rows that are needed to train on some and choose on others.
pub(crate) const LEAST_TRAINING_ROWS: usize = 10;

/// One probe of the sweep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearTrial {
    /// Learning rate before scaling by batch / 256.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Accuracy in percent: on the validation split (CAPI), the best over the epochs on the test images (MOCA), or on
    /// the test images after the last epoch (MAE).
    pub validation: f64,
    /// The epoch of that accuracy, from 1 (MOCA, MAE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<usize>,
}

/// The outcome of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearReport {
    /// Whose recipe.
    #[serde(default)]
    pub protocol: LinearProtocol,
    /// Test accuracy of the best probe, in percent.
    pub accuracy: f64,
    /// The probe with the best validation accuracy, the first of equal ones.
    pub best: LinearTrial,
    /// The whole sweep.
    pub trials: Vec<LinearTrial>,
    /// Images the probes learned from.
    pub train: usize,
    /// Images the best was chosen on: those it was scored on, in MOCA's and MAE's recipes; 0 where MAE's had one probe
    /// and nothing was chosen.
    pub validation: usize,
    /// Images it was scored on.
    pub test: usize,
}

/// Labelled rows, in one piece.
struct Samples {
    features: Vec<f32>,
    labels: Vec<u32>,
    dim: usize,
}

impl Samples {
    /// Features and labels of these rows.
    fn batch(&self, rows: &[usize]) -> (Vec<f32>, Vec<u32>) {
        (gather(self.dim, &self.features, rows), rows.iter().map(|&row| self.labels[row]).collect())
    }

    fn select(&self, rows: &[usize]) -> Self {
        let (features, labels) = self.batch(rows);
        Self { features, labels, dim: self.dim }
    }
}

/// Trains the sweep on the labelled rows of `train` and scores the best probe on those of `test`. Draws come from the
/// streams `probe/validation`, `probe/init` (by probe) and `probe/order/0`, `probe/order/1`, ... (one a pass).
/// `progress` is told how many iterations or epochs of how many are done.
///
/// # Errors
/// A set without labels, fewer than ten labelled training rows, rows of different length, or a feature that is not
/// finite.
pub fn linear_probe(
    train: &FeatureSet,
    test: &FeatureSet,
    settings: &LinearSettings,
    streams: &Streams,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<LinearReport> {
    if train.dim != test.dim {
        return Err(Error::Mismatch(format!("rows of {} numbers to train on and {} to test", train.dim, test.dim)));
    }
    train.check("linear probe")?;
    test.check("linear probe test set")?;
    let (rows, labels) = train.labelled("linear probe")?;
    if rows.len() < LEAST_TRAINING_ROWS {
        return Err(Error::TooFew { what: "linear probe", got: rows.len(), needed: LEAST_TRAINING_ROWS });
    }
    let all = Samples { features: gather(train.dim, &train.features, &rows), labels, dim: train.dim };
    let (rows, labels) = test.labelled("linear probe test set")?;
    let test_rows = Samples { features: gather(test.dim, &test.features, &rows), labels, dim: test.dim };
    let classes = train.class_count().max(test.class_count());
    match settings.protocol {
        LinearProtocol::Capi => capi(&all, test_rows, classes, settings, streams, progress),
        LinearProtocol::Moca => moca(all, test_rows, classes, settings, streams, progress),
        LinearProtocol::Mae => mae(all, test_rows, classes, settings, streams, progress),
    }
}

/// The probe with the best validation accuracy, the first of equal ones.
fn best_of(trials: &[LinearTrial]) -> usize {
    let mut best = 0;
    for (index, trial) in trials.iter().enumerate() {
        best = if trial.validation > trials[best].validation { index } else { best };
    }
    best
}

fn capi(
    all: &Samples,
    mut test: Samples,
    classes: usize,
    settings: &LinearSettings,
    streams: &Streams,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<LinearReport> {
    let (mut fit, mut held_out) = split(all, settings.validation, streams);
    if settings.standardise {
        standardise(&mut fit, &mut [&mut held_out, &mut test]);
    }
    let mut heads = Heads::new(settings.sweep.len(), classes, fit.dim, INIT_STD.0, streams);
    let mut adamw = AdamW::new(settings.sweep.clone(), &heads);
    let mut order = Order::new(fit.labels.len(), streams);
    let total = settings.iterations as u64;
    let schedule = Schedule::warmup_cosine(1.0, total / 10, total);
    for iteration in 0..settings.iterations {
        let rows: Vec<usize> = (0..settings.batch).map(|_| order.take()).collect();
        let (features, labels) = fit.batch(&rows);
        let gradient = heads.gradient(features, &labels, Reduce::Mean)?;
        adamw.step(&mut heads, &gradient, schedule.at(iteration as u64) * per_256(settings.batch));
        progress(iteration + 1, settings.iterations);
    }
    let validation = heads.accuracies(&held_out.features, &held_out.labels)?;
    let trial = |(&(lr, weight_decay), validation)| LinearTrial { lr, weight_decay, validation, epoch: None };
    let trials: Vec<LinearTrial> = settings.sweep.iter().zip(validation).map(trial).collect();
    let best = best_of(&trials);
    let accuracy = heads.accuracies(&test.features, &test.labels)?[best];
    let counts = (fit.labels.len(), held_out.labels.len(), test.labels.len());
    Ok(report(settings, accuracy, trials, counts))
}

fn moca(
    mut all: Samples,
    mut test: Samples,
    classes: usize,
    settings: &LinearSettings,
    streams: &Streams,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<LinearReport> {
    if settings.standardise {
        standardise(&mut all, &mut [&mut test]);
    }
    let mut heads = Heads::new(settings.sweep.len(), classes, all.dim, INIT_STD.1, streams);
    let mut sgd = Sgd::new(settings.sweep.clone(), &heads);
    let mut order = Order::new(all.labels.len(), streams);
    let fresh = |&(lr, weight_decay)| LinearTrial { lr, weight_decay, validation: 0.0, epoch: None };
    let mut trials: Vec<LinearTrial> = settings.sweep.iter().map(fresh).collect();
    for epoch in 0..settings.epochs {
        let factor = cosine(epoch, settings.epochs) * per_256(settings.batch);
        for rows in order.pass().chunks(settings.batch) {
            let (features, labels) = all.batch(rows);
            let gradient = heads.gradient(features, &labels, Reduce::Sum)?;
            sgd.step(&mut heads, &gradient, factor);
        }
        for (trial, accuracy) in trials.iter_mut().zip(heads.accuracies(&test.features, &test.labels)?) {
            if trial.epoch.is_none() || accuracy > trial.validation {
                (trial.validation, trial.epoch) = (accuracy, Some(epoch + 1));
            }
        }
        progress(epoch + 1, settings.epochs);
    }
    let accuracy = trials[best_of(&trials)].validation;
    let counts = (all.labels.len(), test.labels.len(), test.labels.len());
    Ok(report(settings, accuracy, trials, counts))
}

fn report(
    settings: &LinearSettings,
    accuracy: f64,
    trials: Vec<LinearTrial>,
    (train, validation, test): (usize, usize, usize),
) -> LinearReport {
    let best = trials[best_of(&trials)];
    LinearReport { protocol: settings.protocol, accuracy, best, trials, train, validation, test }
}

/// Shifts and scales all sets so that every feature of the first has mean 0 and deviation 1.
fn standardise(train: &mut Samples, others: &mut [&mut Samples]) {
    let scale = Standard::of(&train.features, train.dim);
    scale.apply(&mut train.features);
    others.iter_mut().for_each(|samples| scale.apply(&mut samples.features));
}

/// Learning rates of all recipes are stated for 256 images and scaled linearly.
fn per_256(batch: usize) -> f64 {
    batch as f64 / 256.0
}

/// The share of the learning rate in an epoch (from 0); it would reach 0 after the last.
fn cosine(epoch: usize, epochs: usize) -> f64 {
    0.5 * (1.0 + (PI * epoch as f64 / epochs as f64).cos())
}

/// The last share of a permutation is kept apart.
fn split(all: &Samples, share: f64, streams: &Streams) -> (Samples, Samples) {
    let count = all.labels.len();
    let mut order: Vec<usize> = (0..count).collect();
    shuffle(&mut order, streams, "probe/validation");
    let kept_apart = ((count as f64 * share) as usize).clamp(1, count - 1);
    let (fit, held_out) = order.split_at(count - kept_apart);
    (all.select(fit), all.select(held_out))
}

fn gather(dim: usize, features: &[f32], rows: &[usize]) -> Vec<f32> {
    let mut gathered = Vec::with_capacity(rows.len() * dim);
    rows.iter().for_each(|&row| gathered.extend_from_slice(&features[row * dim..(row + 1) * dim]));
    gathered
}

/// Endless passes over the rows, each in an order of its own; a batch may span two passes.
struct Order<'a> {
    rows: Vec<usize>,
    next: usize,
    epoch: u64,
    streams: &'a Streams,
}

impl<'a> Order<'a> {
    fn new(rows: usize, streams: &'a Streams) -> Self {
        Self { rows: (0..rows).collect(), next: rows, epoch: 0, streams }
    }

    fn take(&mut self) -> usize {
        if self.next == self.rows.len() {
            self.pass();
            self.next = 0;
        }
        self.next += 1;
        self.rows[self.next - 1]
    }

    /// All rows in the order of the next pass.
    fn pass(&mut self) -> &[usize] {
        shuffle(&mut self.rows, self.streams, &format!("probe/order/{}", self.epoch));
        self.epoch += 1;
        &self.rows
    }
}
