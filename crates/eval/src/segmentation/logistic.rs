//! Logistic regression from a feature to a label, in f64 ("linear" segmentation).

use super::lbfgs::minimise;
use super::rows;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

/// One linear layer with bias and a softmax, fitted to the minimum of `|weight|^2 / 2 + c * sum of cross-entropies`; the
/// bias is not penalised. The reference tries eight `c` from 1e-6 to 1e5, evenly by logarithm.
#[derive(Clone, Debug, PartialEq)]
pub struct LogisticRegression {
    /// Labels it tells apart, ascending.
    pub classes: Vec<u8>,
    /// [classes, dim]
    pub weight: Vec<f64>,
    /// `[classes]`
    pub bias: Vec<f64>,
    dim: usize,
}

impl LogisticRegression {
    /// Fits by L-BFGS from zero.  features: [rows, dim], labels: `[rows]`
    ///
    /// # Errors
    /// Sizes that do not fit, a feature that is not finite, one label only, or a `c` that is not positive.
    pub fn fit(features: &[f32], dim: usize, labels: &[u8], c: f64) -> Result<Self> {
        const WHAT: &str = "logistic regression";
        let count = rows(WHAT, features, dim)?;
        if labels.len() != count {
            return Err(Error::Mismatch(format!("{WHAT}: {} labels for {count} rows", labels.len())));
        }
        if !(c > 0.0 && c.is_finite()) {
            return Err(Error::Mismatch(format!("{WHAT}: c = {c}: must be above 0 and finite")));
        }
        let mut classes = labels.to_vec();
        classes.sort_unstable();
        classes.dedup();
        if classes.len() < 2 {
            return Err(Error::Mismatch(format!("{WHAT}: all rows have one label, at least two are needed")));
        }
        let targets = labels.iter().map(|label| classes.partition_point(|class| class < label)).collect();
        let features = Tensor::from_slice(features, (count, dim), &Device::Cpu)?.to_dtype(DType::F64)?;
        let objective = Objective { features, targets, classes: classes.len(), c };
        let found = minimise(vec![0.0; classes.len() * (dim + 1)], |at| objective.at(at))?;
        let (weight, bias) = found.split_at(classes.len() * dim);
        Ok(Self { weight: weight.to_vec(), bias: bias.to_vec(), classes, dim })
    }

    /// The likeliest label of each row, the smallest of equal ones.  features: [rows, dim] -> `[rows]`
    ///
    /// # Errors
    /// Rows of another length, or a feature that is not finite.
    pub fn predict(&self, features: &[f32]) -> Result<Vec<u8>> {
        rows("logistic regression", features, self.dim)?;
        let label = |row: &[f32]| {
            let logit = |class: usize| {
                let weight = &self.weight[class * self.dim..(class + 1) * self.dim];
                self.bias[class] + weight.iter().zip(row).map(|(w, x)| w * f64::from(*x)).sum::<f64>()
            };
            let mut best = (0, f64::NEG_INFINITY);
            for class in 0..self.classes.len() {
                let logit = logit(class);
                best = if logit > best.1 { (class, logit) } else { best };
            }
            self.classes[best.0]
        };
        Ok(features.par_chunks_exact(self.dim).map(label).collect())
    }
}

struct Objective {
    /// [rows, dim], f64
    features: Tensor,
    /// Index of the class of each row.
    targets: Vec<usize>,
    classes: usize,
    c: f64,
}

impl Objective {
    /// Value and gradient.  parameters: weight [classes, dim], then bias [classes]
    fn at(&self, parameters: &[f64]) -> Result<(f64, Vec<f64>)> {
        let (rows, dim) = self.features.dims2()?;
        let (weight, bias) = parameters.split_at(self.classes * dim);
        let matrix = Tensor::from_slice(weight, (self.classes, dim), &Device::Cpu)?; // [classes, dim]
        let mut errors: Vec<f64> = self.features.matmul(&matrix.t()?)?.flatten_all()?.to_vec1()?; // [rows * classes]
        let losses: Vec<f64> = errors
            .par_chunks_exact_mut(self.classes)
            .zip(&self.targets)
            .map(|(logits, &target)| to_error(logits, bias, target, self.c))
            .collect();
        let mut bias_gradient = vec![0.0; self.classes];
        for row in errors.chunks_exact(self.classes) {
            bias_gradient.iter_mut().zip(row).for_each(|(sum, error)| *sum += error);
        }
        let errors = Tensor::from_vec(errors, (rows, self.classes), &Device::Cpu)?; // [rows, classes]
        let mut gradient: Vec<f64> = errors.t()?.matmul(&self.features)?.flatten_all()?.to_vec1()?; // [classes * dim]
        gradient.iter_mut().zip(weight).for_each(|(slope, weight)| *slope += weight);
        gradient.extend(bias_gradient);
        let penalty = weight.iter().map(|weight| weight * weight).sum::<f64>() / 2.0;
        Ok((penalty + self.c * losses.iter().sum::<f64>(), gradient))
    }
}

/// Replaces products by c * (softmax - one-hot) and returns the cross-entropy.
fn to_error(logits: &mut [f64], bias: &[f64], target: usize, c: f64) -> f64 {
    logits.iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias);
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let truth = logits[target] - most;
    logits.iter_mut().for_each(|logit| *logit = (*logit - most).exp());
    let sum: f64 = logits.iter().sum();
    logits.iter_mut().for_each(|share| *share *= c / sum);
    logits[target] -= c;
    sum.ln() - truth
}
