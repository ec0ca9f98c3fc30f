//! Linear probing of MAE, which is RandSAC's too: LARS behind batch normalisation, scored after the last epoch.
//!
//! An epoch drops its incomplete last batch. A set smaller than the batch is one batch, with a learning rate scaled to
//! its size. LARS moves a weight by at most about a hundredth of its size times the scaled rate in a step, so a small
//! set learns little at the published rate: 90 epochs of 50 000 images are 270 steps at rates up to 6.4.

use super::batch_norm::BatchNorm;
use super::heads::{Heads, Reduce};
use super::lars::Lars;
use super::{INIT_STD, LinearReport, LinearTrial, Order, Samples, best_of, per_256, report, standardise};
use crate::Result;
use crate::config::LinearSettings;
use occlude_optim::Schedule;
use occlude_random::Streams;
use occlude_settings::Ruler;

/// Trains the sweep on `all` and scores it on `test` once. With several probes the best on `test` is quoted.
pub(super) fn mae(
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
    let (heads, norm) = fit(&all, classes, settings, streams, progress)?;
    if let Some(norm) = norm {
        norm.apply(&mut test.features);
    }
    let epoch = Some(settings.epochs);
    let trial = |(&(lr, weight_decay), validation)| LinearTrial { lr, weight_decay, validation, epoch };
    let accuracies = heads.accuracies(&test.features, &test.labels)?;
    let trials: Vec<LinearTrial> = settings.sweep.iter().zip(accuracies).map(trial).collect();
    let accuracy = trials[best_of(&trials)].validation;
    let chosen_on = if trials.len() > 1 { test.labels.len() } else { 0 };
    Ok(report(settings, accuracy, trials, (all.labels.len(), chosen_on, test.labels.len())))
}

/// Trained heads, and what their features have to pass first.
fn fit(
    all: &Samples,
    classes: usize,
    settings: &LinearSettings,
    streams: &Streams,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Heads, Option<BatchNorm>)> {
    let (batch, steps) = batches(all.labels.len(), settings.batch);
    let rate = rate(settings, batch, steps);
    let mut heads = Heads::new(settings.sweep.len(), classes, all.dim, INIT_STD.1, streams);
    let mut lars = Lars::new(settings.sweep.clone(), &heads);
    let mut norm = settings.batch_norm.then(|| BatchNorm::new(all.dim));
    let mut order = Order::new(all.labels.len(), streams);
    for epoch in 0..settings.epochs {
        for (step, rows) in order.pass().chunks_exact(batch).enumerate() {
            let (mut features, labels) = all.batch(rows);
            if let Some(norm) = &mut norm {
                norm.train(&mut features);
            }
            let gradient = heads.gradient(features, &labels, Reduce::Sum)?;
            lars.step(&mut heads, &gradient, rate.at((epoch * steps + step) as u64));
        }
        progress(epoch + 1, settings.epochs);
    }
    Ok((heads, norm))
}

/// Rows of a batch and whole batches in a pass over one row or more.
fn batches(rows: usize, wanted: usize) -> (usize, usize) {
    let batch = wanted.min(rows);
    (batch, rows / batch)
}

/// What a learning rate is multiplied by at every step.
fn rate(settings: &LinearSettings, batch: usize, steps_per_epoch: usize) -> Schedule {
    let total_steps = (settings.epochs * steps_per_epoch) as u64;
    let ruler = Ruler { steps_per_epoch: steps_per_epoch as f64, total_steps };
    Schedule::linear_cosine(per_256(batch), settings.warmup_epochs as f64, settings.epochs as f64, ruler)
}

#[cfg(test)]
mod tests {
    use super::super::Order;
    use super::{Samples, batches, fit, rate};
    use crate::{LinearConfig, LinearProtocol, LinearSettings, MaeLinearConfig};
    use occlude_random::Streams;

    fn settings(mae: MaeLinearConfig) -> LinearSettings {
        LinearConfig { protocol: LinearProtocol::Mae, mae, ..LinearConfig::default() }.check().unwrap()
    }

    #[test]
    fn golden_randsac_probe_schedule() {
        let Some(tensors) = occlude_golden::set("randsac").tensors("tables") else { return };
        let rates: Vec<f64> = tensors["lr.probe"].to_vec1().unwrap();
        let settings = settings(MaeLinearConfig::default());
        // The table has four rates an epoch, and the one at the end, of which no step is taken.
        assert_eq!(rates.len(), 4 * settings.epochs + 1);
        let factor = rate(&settings, settings.batch, 4);
        for (step, reference) in rates.into_iter().enumerate() {
            let got = settings.sweep[0].0 * factor.at(step as u64);
            assert!((got - reference).abs() <= 1e-12 * 6.4, "step {step}: {got} against {reference}");
        }
    }

    #[test]
    fn batches_are_whole_and_no_larger_than_the_set() {
        assert_eq!(batches(50_000, 16_384), (16_384, 3));
        assert_eq!(batches(100, 40), (40, 2));
        assert_eq!(batches(80, 40), (40, 2));
        assert_eq!(batches(100, 16_384), (100, 1));
        // The rate of a batch that is the whole set: 128 / 256 of the stated one at the end of the warm-up.
        let settings = settings(MaeLinearConfig::default());
        let (batch, steps) = batches(128, settings.batch);
        assert_eq!(rate(&settings, batch, steps).at(10), 0.5);
    }

    #[test]
    fn rows_of_an_incomplete_batch_are_not_learned_from() {
        let samples = |change: Option<&[usize]>| {
            let mut features: Vec<f32> = (0..100 * 3).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
            change.into_iter().flatten().for_each(|row| features[row * 3] += 100.0);
            Samples { features, labels: (0..100).map(|i| i % 2).collect(), dim: 3 }
        };
        let streams = Streams::new(5);
        let order = Order::new(100, &streams).pass().to_vec();
        let mae = MaeLinearConfig { epochs: 1, warmup_epochs: 0, batch: 40, ..MaeLinearConfig::default() };
        let settings = settings(mae);
        let fitted = |samples: Samples| {
            let (heads, norm) = fit(&samples, 2, &settings, &streams, &mut |_, _| ()).unwrap();
            let mut row = vec![1.0, 2.0, 3.0];
            norm.unwrap().apply(&mut row);
            (heads.weight, heads.bias, row)
        };
        let plain = fitted(samples(None));
        assert_eq!(plain, fitted(samples(Some(&order[80..]))));
        assert_ne!(plain, fitted(samples(Some(&order[79..80]))));
    }
}
