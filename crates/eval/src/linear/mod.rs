//! The linear probe on frozen features (CAPI, classification probes): one linear layer with bias for every learning rate and
//! weight decay of a sweep, all trained together on the same batches; the best on a validation split is scored.
//!
//! Differs from the reference in these points:
//!
//! - features are computed once, from the evaluation transform; the reference sees a random crop and flip each time.
//!   Whether that transform squashes or cuts the centre out of the short side, as published, is the data set's setting
//!   (`data.eval`), not known here;
//! - one process: learning rates are scaled by `batch / 256`, half with the default batch of 128, where the reference
//!   has 8 workers of 128 images and scales by 4;
//! - 3 000 iterations unless told otherwise, not 12 500;
//! - the validation split is drawn from a named stream, not the permutation of seed 42;
//! - first weights are normal, not truncated (the bound lies a hundred deviations away);
//! - an image has one label or none; features may be standardised, which is off.

mod probes;
#[cfg(test)]
mod tests;

use probes::Probes;

use crate::config::LinearSettings;
use crate::features::FeatureSet;
use crate::subset::shuffle;
use crate::{Error, Result};
use occlude_optim::Schedule;
use occlude_random::Streams;
use serde::{Deserialize, Serialize};

/// Labelled rows that are needed to train on some and choose on others.
pub(crate) const LEAST_TRAINING_ROWS: usize = 10;

/// One probe of the sweep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearTrial {
    /// Learning rate before scaling by batch / 256.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Accuracy on the validation split, in percent.
    pub validation: f64,
}

/// The outcome of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearReport {
    /// Test accuracy of the best probe, in percent.
    pub accuracy: f64,
    /// The probe with the best validation accuracy, the first of equal ones.
    pub best: LinearTrial,
    /// The whole sweep.
    pub trials: Vec<LinearTrial>,
    /// Images the probes learned from.
    pub train: usize,
    /// Images the best was chosen on.
    pub validation: usize,
    /// Images it was scored on.
    pub test: usize,
}

/// Labelled rows, in one piece.
struct Samples {
    features: Vec<f32>,
    labels: Vec<u32>,
}

/// Trains the sweep on the labelled rows of `train` and scores the best probe on those of `test`. Draws come from the
/// streams `probe/validation`, `probe/init` (by probe) and `probe/order/0`, `probe/order/1`, ... (one a pass).
/// `progress` is told how many iterations of how many are done.
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
    let dim = train.dim;
    let classes = train.class_count().max(test.class_count());
    let (mut fit, mut held_out) = split(train, settings.validation, streams)?;
    let (rows, labels) = test.labelled("linear probe test set")?;
    let mut test = Samples { features: gather(train.dim, &test.features, &rows), labels };
    if settings.standardise {
        let scale = Standard::of(&fit.features, dim);
        [&mut fit, &mut held_out, &mut test].into_iter().for_each(|samples| scale.apply(&mut samples.features));
    }

    let mut probes = Probes::new(settings.sweep.clone(), classes, dim, streams);
    train_all(&mut probes, &fit, settings, streams, progress)?;
    let validation = probes.accuracies(&held_out.features, &held_out.labels)?;
    let trial = |(&(lr, weight_decay), validation)| LinearTrial { lr, weight_decay, validation };
    let trials: Vec<LinearTrial> = settings.sweep.iter().zip(validation).map(trial).collect();
    let mut best = 0;
    for (index, trial) in trials.iter().enumerate() {
        best = if trial.validation > trials[best].validation { index } else { best };
    }
    let accuracy = probes.accuracies(&test.features, &test.labels)?[best];
    let (train, validation, test) = (fit.labels.len(), held_out.labels.len(), test.labels.len());
    Ok(LinearReport { accuracy, best: trials[best], trials, train, validation, test })
}

/// The last share of a permutation is kept apart.
fn split(train: &FeatureSet, share: f64, streams: &Streams) -> Result<(Samples, Samples)> {
    let (rows, labels) = train.labelled("linear probe")?;
    if rows.len() < LEAST_TRAINING_ROWS {
        return Err(Error::TooFew { what: "linear probe", got: rows.len(), needed: LEAST_TRAINING_ROWS });
    }
    let mut order: Vec<usize> = (0..rows.len()).collect();
    shuffle(&mut order, streams, "probe/validation");
    let kept_apart = ((rows.len() as f64 * share) as usize).clamp(1, rows.len() - 1);
    let take = |order: &[usize]| {
        let chosen: Vec<usize> = order.iter().map(|&place| rows[place]).collect();
        Samples {
            features: gather(train.dim, &train.features, &chosen),
            labels: order.iter().map(|&place| labels[place]).collect(),
        }
    };
    let (fit, held_out) = order.split_at(rows.len() - kept_apart);
    Ok((take(fit), take(held_out)))
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
            shuffle(&mut self.rows, self.streams, &format!("probe/order/{}", self.epoch));
            self.epoch += 1;
            self.next = 0;
        }
        self.next += 1;
        self.rows[self.next - 1]
    }
}

fn train_all(
    probes: &mut Probes,
    samples: &Samples,
    settings: &LinearSettings,
    streams: &Streams,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    let dim = probes.dim();
    let mut order = Order::new(samples.labels.len(), streams);
    let total = settings.iterations as u64;
    let schedule = Schedule::warmup_cosine(1.0, total / 10, total);
    for iteration in 0..settings.iterations {
        let rows: Vec<usize> = (0..settings.batch).map(|_| order.take()).collect();
        let features = gather(dim, &samples.features, &rows);
        let labels: Vec<u32> = rows.iter().map(|&row| samples.labels[row]).collect();
        // The linear scaling rule of the reference, whose sweep is stated for 256 images.
        let factor = schedule.at(iteration as u64) * settings.batch as f64 / 256.0;
        probes.step(features, &labels, factor)?;
        progress(iteration + 1, settings.iterations);
    }
    Ok(())
}

/// Mean and deviation of every feature over the training rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Standard {
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl Standard {
    /// Of each feature: mean and population deviation.  features: [rows, dim]
    pub(crate) fn of(features: &[f32], dim: usize) -> Self {
        let count = (features.len() / dim) as f64;
        let (mut sums, mut squares) = (vec![0.0_f64; dim], vec![0.0_f64; dim]);
        for row in features.chunks_exact(dim) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        sums.iter_mut().for_each(|sum| *sum /= count);
        for row in features.chunks_exact(dim) {
            let centred = row.iter().zip(&sums).map(|(value, mean)| f64::from(*value) - mean);
            squares.iter_mut().zip(centred).for_each(|(sum, value)| *sum += value * value);
        }
        // A constant feature stays as it is: 0 after centring.
        let deviation = |square: f64| if square > 0.0 { (square / count).sqrt() as f32 } else { 1.0 };
        Self {
            mean: sums.iter().map(|mean| *mean as f32).collect(),
            deviation: squares.into_iter().map(deviation).collect(),
        }
    }

    /// Of each feature the mean; one deviation for all, that of every number around the mean of all (plus 1e-8).
    /// features: [rows, dim]
    pub(crate) fn overall(features: &[f32], dim: usize) -> Self {
        let (count, values) = (features.len() as f64, || features.iter().map(|value| f64::from(*value)));
        let mean = values().sum::<f64>() / count;
        let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        Self { deviation: vec![(variance.sqrt() + 1e-8) as f32; dim], ..Self::of(features, dim) }
    }

    /// Shifts and scales every row.  features: [rows, dim]
    pub fn apply(&self, features: &mut [f32]) {
        for row in features.chunks_exact_mut(self.mean.len()) {
            for ((value, mean), deviation) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
                *value = (*value - mean) / deviation;
            }
        }
    }
}
