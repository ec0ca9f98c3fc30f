//! Low-shot classification (MOCA, low-shot classification): logistic regression without intercept on a few labelled
//! images of each class, several times, on features from before the encoder's final norm.
//!
//! In order: [`low_shot_splits`] says which training images are used; the caller computes their features and those of the
//! test images ([`crate::Pooling::BeforeNorm`]; as published from images that were resized bilinearly); [`low_shot`] takes from each row its own mean,
//! scales it to length 1, fits the minimum of `(1 / lambda) * sum of cross-entropies + |weight|^2 / 2` and scores.
//!
//! Differs from the reference: the fit is in f64, and the tolerance is of the gradient of that sum, not of a mean over the
//! images, so that the minimum is met more closely.

mod subsets;
#[cfg(test)]
mod tests;

pub use subsets::{LowShotSplit, low_shot_splits};

use crate::config::LowShotSettings;
use crate::features::FeatureSet;
use crate::logistic::{Problem, Stop};
use crate::nearest::to_unit_length;
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The score of one split with one penalty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LowShotScore {
    /// Name of the split.
    pub split: String,
    /// Strength of the penalty.
    pub lambda: f64,
    /// Mean test accuracy over the subsets, in percent.
    pub mean: f64,
    /// Population standard deviation over the subsets, in percent.
    pub deviation: f64,
    /// Test accuracy of each subset, in percent.
    pub accuracies: Vec<f64>,
    /// Training images of each subset.
    pub images: Vec<usize>,
    /// Whether every fit ended before its last step.
    pub converged: bool,
}

/// Scores of all splits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LowShotReport {
    /// By split, then by penalty, as in the settings.
    pub scores: Vec<LowShotScore>,
    /// Labelled test images.
    pub test: usize,
}

/// Fits and scores every subset of every split with every penalty. `train` holds the images of all splits, by the index
/// of each in the data set; an image that is missing there (it could not be read) is left out. `progress` is told how many
/// fits of how many are done.
///
/// # Errors
/// Test images without labels, a subset with fewer than two classes, rows of different length, or a feature that is not
/// finite.
pub fn low_shot(
    train: &FeatureSet,
    test: &FeatureSet,
    splits: &[LowShotSplit],
    settings: &LowShotSettings,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<LowShotReport> {
    if train.dim != test.dim {
        return Err(Error::Mismatch(format!("rows of {} numbers to train on and {} to test", train.dim, test.dim)));
    }
    train.check("low-shot")?;
    test.check("low-shot test set")?;
    let (rows, labels) = test.labelled("low-shot test set")?;
    let test = Test { features: prepared(&test.select(&rows)), labels };
    let train = Train { features: prepared(train), set: train, rows: row_of_each(train) };
    let total = splits.iter().map(|split| split.subsets.len() * settings.lambdas.len()).sum();
    let mut done = 0;
    let mut scores = Vec::new();
    for split in splits {
        for &lambda in &settings.lambdas {
            let mut score = LowShotScore {
                split: split.name.clone(),
                lambda,
                mean: 0.0,
                deviation: 0.0,
                accuracies: Vec::new(),
                images: Vec::new(),
                converged: true,
            };
            for subset in &split.subsets {
                let fit = train.fit(subset, lambda, settings)?;
                score.accuracies.push(test.accuracy(&fit)?);
                score.images.push(fit.images);
                score.converged &= fit.model.converged;
                done += 1;
                progress(done, total);
            }
            (score.mean, score.deviation) = mean_and_deviation(&score.accuracies);
            scores.push(score);
        }
    }
    Ok(LowShotReport { scores, test: test.labels.len() })
}

/// Each row less its own mean, at unit length.
fn prepared(set: &FeatureSet) -> Vec<f32> {
    let mut rows = set.features.clone();
    rows.par_chunks_exact_mut(set.dim).for_each(|row| {
        let mean = (row.iter().map(|value| f64::from(*value)).sum::<f64>() / row.len() as f64) as f32;
        row.iter_mut().for_each(|value| *value -= mean);
    });
    to_unit_length(&mut rows, set.dim);
    rows
}

/// Row by index in the data set.
fn row_of_each(set: &FeatureSet) -> HashMap<usize, usize> {
    set.indices.iter().enumerate().map(|(row, index)| (*index, row)).collect()
}

/// Mean and population standard deviation.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    (mean, (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt())
}

struct Train<'a> {
    /// [rows, dim], prepared
    features: Vec<f32>,
    set: &'a FeatureSet,
    rows: HashMap<usize, usize>,
}

/// A fitted classifier and what it was fitted to.
struct Fit {
    model: crate::logistic::Logistic,
    /// Labels it tells apart, ascending.
    classes: Vec<u32>,
    images: usize,
}

impl Train<'_> {
    fn fit(&self, subset: &[usize], lambda: f64, settings: &LowShotSettings) -> Result<Fit> {
        let dim = self.set.dim;
        let rows = subset.iter().filter_map(|index| self.rows.get(index).copied());
        let labelled: Vec<(usize, u32)> = rows.filter_map(|row| Some((row, self.set.labels[row]?))).collect();
        let mut classes: Vec<u32> = labelled.iter().map(|(_, label)| *label).collect();
        classes.sort_unstable();
        classes.dedup();
        let features: Vec<f32> =
            labelled.iter().flat_map(|(row, _)| &self.features[row * dim..(row + 1) * dim]).copied().collect();
        let targets: Vec<usize> =
            labelled.iter().map(|(_, label)| classes.partition_point(|class| class < label)).collect();
        let problem = Problem {
            features: &features,
            dim,
            targets: &targets,
            classes: classes.len(),
            c: 1.0 / lambda,
            bias: false,
            stop: Stop { iterations: settings.iterations, tolerance: settings.tolerance },
        };
        Ok(Fit { model: problem.fit()?, classes, images: labelled.len() })
    }
}

struct Test {
    /// [rows, dim], prepared
    features: Vec<f32>,
    labels: Vec<u32>,
}

impl Test {
    /// In percent. Images of classes that the fit never saw are wrong.
    fn accuracy(&self, fit: &Fit) -> Result<f64> {
        let predicted = fit.model.predict(&self.features)?;
        let right = predicted.iter().zip(&self.labels).filter(|(class, label)| fit.classes[**class] == **label).count();
        Ok(100.0 * right as f64 / self.labels.len() as f64)
    }
}
