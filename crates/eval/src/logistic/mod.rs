//! Multinomial logistic regression in f64, fitted to its minimum: what "linear" segmentation and low-shot classification
//! share.

mod lbfgs;

pub(crate) use lbfgs::Stop;

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use lbfgs::minimise;
use rayon::prelude::*;

/// What is fitted: the minimum of `|weight|^2 / 2 + c * sum of cross-entropies`; a bias is not penalised.
pub(crate) struct Problem<'a> {
    /// [rows, dim], finite
    pub(crate) features: &'a [f32],
    pub(crate) dim: usize,
    /// Class of each row, below `classes`.
    pub(crate) targets: &'a [usize],
    pub(crate) classes: usize,
    pub(crate) c: f64,
    pub(crate) bias: bool,
    pub(crate) stop: Stop,
}

/// One linear layer and a softmax.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Logistic {
    /// [classes, dim]
    pub(crate) weight: Vec<f64>,
    /// `[classes]`, or empty
    pub(crate) bias: Vec<f64>,
    /// Whether the gradient became small enough.
    pub(crate) converged: bool,
    dim: usize,
}

impl Problem<'_> {
    /// Fits by L-BFGS from zero.
    ///
    /// # Errors
    /// Sizes that do not fit, one class only, or a `c` that is not positive.
    pub(crate) fn fit(&self) -> Result<Logistic> {
        const WHAT: &str = "logistic regression";
        let (rows, dim, classes) = (self.targets.len(), self.dim, self.classes);
        if dim == 0 || self.features.len() != rows * dim {
            let numbers = self.features.len();
            return Err(Error::Mismatch(format!("{WHAT}: {numbers} numbers are not {rows} rows of {dim}")));
        }
        if !(self.c > 0.0 && self.c.is_finite()) {
            return Err(Error::Mismatch(format!("{WHAT}: c = {}: must be above 0 and finite", self.c)));
        }
        if classes < 2 {
            return Err(Error::Mismatch(format!("{WHAT}: all rows have one label, at least two are needed")));
        }
        let features = self.rows()?;
        let start = vec![0.0; classes * (dim + usize::from(self.bias))];
        let found = minimise(start, self.stop, |at| self.value_and_gradient(&features, at))?;
        let (weight, bias) = found.at.split_at(classes * dim);
        Ok(Logistic { weight: weight.to_vec(), bias: bias.to_vec(), converged: found.converged, dim })
    }

    /// [rows, dim], f64
    fn rows(&self) -> Result<Tensor> {
        let shape = (self.targets.len(), self.dim);
        Ok(Tensor::from_slice(self.features, shape, &Device::Cpu)?.to_dtype(DType::F64)?)
    }

    /// What is minimised, at `parameters`.
    #[cfg(test)]
    pub(crate) fn value(&self, parameters: &[f64]) -> Result<f64> {
        Ok(self.value_and_gradient(&self.rows()?, parameters)?.0)
    }

    /// features: [rows, dim] f64; parameters: weight [classes, dim], then bias [classes] if there is one
    fn value_and_gradient(&self, features: &Tensor, parameters: &[f64]) -> Result<(f64, Vec<f64>)> {
        let (rows, dim) = features.dims2()?;
        let (weight, bias) = parameters.split_at(self.classes * dim);
        let matrix = Tensor::from_slice(weight, (self.classes, dim), &Device::Cpu)?; // [classes, dim]
        let mut errors: Vec<f64> = features.matmul(&matrix.t()?)?.flatten_all()?.to_vec1()?; // [rows * classes]
        let losses: Vec<f64> = errors
            .par_chunks_exact_mut(self.classes)
            .zip(self.targets)
            .map(|(logits, &target)| to_error(logits, bias, target, self.c))
            .collect();
        let mut bias_gradient = vec![0.0; bias.len()];
        for row in errors.chunks_exact(self.classes) {
            bias_gradient.iter_mut().zip(row).for_each(|(sum, error)| *sum += error);
        }
        let errors = Tensor::from_vec(errors, (rows, self.classes), &Device::Cpu)?; // [rows, classes]
        let mut gradient: Vec<f64> = errors.t()?.matmul(features)?.flatten_all()?.to_vec1()?; // [classes * dim]
        gradient.iter_mut().zip(weight).for_each(|(slope, weight)| *slope += weight);
        gradient.extend(bias_gradient);
        let penalty = weight.iter().map(|weight| weight * weight).sum::<f64>() / 2.0;
        Ok((penalty + self.c * losses.iter().sum::<f64>(), gradient))
    }
}

impl Logistic {
    /// The likeliest class of each row, the smallest of equal ones.  features: [rows, dim] -> `[rows]`
    ///
    /// # Errors
    /// No whole number of rows.
    pub(crate) fn predict(&self, features: &[f32]) -> Result<Vec<usize>> {
        /// Rows in one product.
        const BLOCK: usize = 1024;
        let classes = self.weight.len() / self.dim;
        let weight = Tensor::from_slice(&self.weight, (classes, self.dim), &Device::Cpu)?.t()?; // [dim, classes]
        let mut predicted = Vec::with_capacity(features.len() / self.dim);
        for block in features.chunks(BLOCK * self.dim) {
            let block = Tensor::from_slice(block, (block.len() / self.dim, self.dim), &Device::Cpu)?; // [block, dim]
            let logits: Vec<f64> = block.to_dtype(DType::F64)?.matmul(&weight)?.flatten_all()?.to_vec1()?;
            predicted.extend(logits.chunks_exact(classes).map(|logits| self.largest(logits)));
        }
        Ok(predicted)
    }

    /// Of products of one row with the weights.
    fn largest(&self, products: &[f64]) -> usize {
        let mut best = (0, f64::NEG_INFINITY);
        for (class, product) in products.iter().enumerate() {
            let logit = product + self.bias.get(class).copied().unwrap_or(0.0);
            best = if logit > best.1 { (class, logit) } else { best };
        }
        best.0
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
