//! Many linear classifiers as one wide linear layer, with a gradient written by hand.

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use occlude_kernels::linear;
use occlude_random::{Streams, normal};
use rayon::prelude::*;

/// Softmax regressions with equal inputs. Optimizers move them: [`super::adamw`], [`super::sgd`].
#[derive(Clone, Debug)]
pub(crate) struct Heads {
    pub(super) count: usize,
    pub(super) classes: usize,
    pub(super) dim: usize,
    /// [heads, classes, dim]
    pub(super) weight: Vec<f32>,
    /// [heads, classes]
    pub(super) bias: Vec<f32>,
}

/// Gradients of one batch.
pub(crate) struct Gradient {
    /// [heads, classes, dim]
    pub(super) weight: Vec<f32>,
    /// [heads, classes]
    pub(super) bias: Vec<f32>,
}

/// What the gradient is of. With one head the two are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduce {
    /// The loss averaged over all heads.
    Mean,
    /// The sum of the heads' losses: each gets the gradient it would have alone.
    Sum,
}

impl Heads {
    /// Weights N(0, std^2) from the stream `probe/init` at the index of the head, biases 0.
    #[must_use]
    pub(crate) fn new(count: usize, classes: usize, dim: usize, std: f64, streams: &Streams) -> Self {
        let mut weight = Vec::with_capacity(count * classes * dim);
        for head in 0..count {
            let mut stream = streams.stream("probe/init", 0, head as u64);
            weight.extend((0..classes * dim).map(|_| (std * normal(&mut stream)) as f32));
        }
        Self { count, classes, dim, weight, bias: vec![0.0; count * classes] }
    }

    /// Logits of all heads.  features: [rows, dim] row-major  ->  [rows, heads, classes] row-major
    ///
    /// # Errors
    /// `features` is no whole number of rows.
    pub(crate) fn logits(&self, features: &[f32]) -> Result<Vec<f32>> {
        self.wide(&Tensor::from_slice(features, (features.len() / self.dim, self.dim), &Device::Cpu)?)
    }

    /// One product for all heads.
    fn wide(&self, features: &Tensor) -> Result<Vec<f32>> {
        let outputs = self.bias.len();
        let weight = Tensor::from_slice(&self.weight, (outputs, self.dim), &Device::Cpu)?; // [outputs, dim]
        let bias = Tensor::from_slice(&self.bias, outputs, &Device::Cpu)?; // [heads * classes = outputs]
        Ok(linear(features, &weight, Some(&bias))?.flatten_all()?.to_vec1()?)
    }

    /// Gradients of the cross-entropy averaged over a batch; labels are smaller than the number of classes. d loss / d logits is
    /// (softmax - one-hot) / rows, and / heads where losses are averaged; the rest is one matrix product.
    ///
    /// # Errors
    /// `features` does not hold `labels.len()` rows.
    pub(crate) fn gradient(&self, features: Vec<f32>, labels: &[u32], reduce: Reduce) -> Result<Gradient> {
        let features = Tensor::from_vec(features, (labels.len(), self.dim), &Device::Cpu)?; // [rows, dim]
        let mut errors = self.wide(&features)?; // [rows, heads, classes]
        let outputs = self.bias.len();
        let scale = match reduce {
            Reduce::Mean => 1.0 / (labels.len() * self.count) as f32,
            Reduce::Sum => 1.0 / labels.len() as f32,
        };
        errors.par_chunks_exact_mut(outputs).zip(labels).for_each(|(row, &label)| {
            row.chunks_exact_mut(self.classes).for_each(|logits| to_error(logits, label as usize, scale));
        });
        let mut bias = vec![0.0; outputs];
        for row in errors.chunks_exact(outputs) {
            bias.iter_mut().zip(row).for_each(|(sum, error)| *sum += error);
        }
        let errors = Tensor::from_vec(errors, (labels.len(), outputs), &Device::Cpu)?; // [rows, heads * classes]
        let weight = errors.t()?.matmul(&features)?.flatten_all()?.to_vec1()?; // [heads * classes * dim]
        Ok(Gradient { weight, bias })
    }

    /// Accuracy of each head on one or more rows, in percent; equal logits go to the smallest label.
    ///
    /// # Errors
    /// `features` does not hold `labels.len()` rows.
    pub(crate) fn accuracies(&self, features: &[f32], labels: &[u32]) -> Result<Vec<f64>> {
        if features.len() != labels.len() * self.dim {
            let (numbers, rows) = (features.len(), labels.len());
            return Err(Error::Mismatch(format!(
                "linear probe: {numbers} numbers are not {rows} rows of {}",
                self.dim
            )));
        }
        let mut right = vec![0_usize; self.count];
        for (rows, labels) in features.chunks(1024 * self.dim).zip(labels.chunks(1024)) {
            let logits = self.logits(rows)?; // [rows, probes, classes]
            for (row, &label) in logits.chunks_exact(self.bias.len()).zip(labels) {
                for (count, logits) in right.iter_mut().zip(row.chunks_exact(self.classes)) {
                    *count += usize::from(largest(logits) == label as usize);
                }
            }
        }
        Ok(right.into_iter().map(|count| 100.0 * count as f64 / labels.len() as f64).collect())
    }
}

fn largest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (label, logit) in logits.iter().enumerate() {
        best = if *logit > logits[best] { label } else { best };
    }
    best
}

/// Replaces logits by (softmax - one-hot) * scale.
fn to_error(logits: &mut [f32], label: usize, scale: f32) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0_f32;
    for logit in logits.iter_mut() {
        *logit = (*logit - most).exp();
        sum += *logit;
    }
    for logit in logits.iter_mut() {
        *logit *= scale / sum;
    }
    logits[label] -= scale;
}

#[cfg(test)]
mod tests {
    use super::{Heads, Reduce};
    use occlude_random::Streams;

    impl Heads {
        /// Cross-entropy averaged over rows and heads.
        pub(in super::super) fn loss(&self, features: &[f32], labels: &[u32]) -> f64 {
            let logits = self.logits(features).unwrap(); // [rows, heads, classes]
            let rows = logits.chunks_exact(self.bias.len()).zip(labels);
            let losses =
                rows.flat_map(|(row, label)| row.chunks_exact(self.classes).map(move |logits| (logits, *label)));
            let loss = |(logits, label): (&[f32], u32)| {
                let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
                sum.ln() - f64::from(logits[label as usize])
            };
            losses.map(loss).sum::<f64>() / (labels.len() * self.count) as f64
        }
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let features: Vec<f32> = (0..5 * 4).map(|i| ((i * 5 % 13) as f32 - 6.0) / 4.0).collect();
        let labels = [2, 0, 1, 1, 2];
        let heads = Heads::new(2, 3, 4, 0.02, &Streams::new(2));
        let gradient = heads.gradient(features.clone(), &labels, Reduce::Mean).unwrap();
        let sum = heads.gradient(features.clone(), &labels, Reduce::Sum).unwrap();
        let loss = |weight: usize, by: f32| {
            let mut moved = heads.clone();
            moved.weight[weight] += by;
            moved.loss(&features, &labels)
        };
        for weight in 0..24 {
            // f32 logits: a step of 1e-2 leaves about 1e-5 of rounding and as much of curvature.
            let numeric = (loss(weight, 1e-2) - loss(weight, -1e-2)) / 2e-2;
            let analytic = f64::from(gradient.weight[weight]);
            assert!((numeric - analytic).abs() < 1e-4, "weight {weight}: {numeric} against {analytic}");
            assert!((2.0 * gradient.weight[weight] - sum.weight[weight]).abs() < 1e-6, "weight {weight}: two heads");
        }
    }
}
