//! Many linear probes as one wide linear layer, with a gradient written by hand.

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use occlude_kernels::linear;
use occlude_random::{Streams, normal};
use rayon::prelude::*;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.95;
const EPS: f32 = 1e-8;
/// Of the first weights; the reference truncates at 2, a hundred deviations away.
const INIT_STD: f64 = 0.02;

/// Softmax regressions with equal inputs, one for each learning rate and weight decay.
#[derive(Clone, Debug)]
pub(crate) struct Probes {
    sweep: Vec<(f64, f64)>,
    classes: usize,
    dim: usize,
    /// [probes, classes, dim]
    weight: Moments,
    /// [probes, classes]
    bias: Moments,
    steps: i32,
}

/// A parameter and its AdamW moments.
#[derive(Clone, Debug)]
struct Moments {
    value: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Moments {
    fn new(value: Vec<f32>) -> Self {
        let zeros = vec![0.0; value.len()];
        Self { value, first: zeros.clone(), second: zeros }
    }
}

/// Loss and gradients of one batch.
struct Gradient {
    /// Cross-entropy averaged over the batch and over all probes.
    loss: f64,
    /// [probes, classes, dim]
    weight: Vec<f32>,
    /// [probes, classes]
    bias: Vec<f32>,
}

impl Probes {
    /// One probe for each (learning rate, weight decay): weights N(0, 0.02^2) from the stream `probe/init` at the index
    /// of the probe, biases 0.
    #[must_use]
    pub(crate) fn new(sweep: Vec<(f64, f64)>, classes: usize, dim: usize, streams: &Streams) -> Self {
        let mut weight = Vec::with_capacity(sweep.len() * classes * dim);
        for probe in 0..sweep.len() {
            let mut stream = streams.stream("probe/init", 0, probe as u64);
            weight.extend((0..classes * dim).map(|_| (INIT_STD * normal(&mut stream)) as f32));
        }
        let bias = vec![0.0; sweep.len() * classes];
        Self { sweep, classes, dim, weight: Moments::new(weight), bias: Moments::new(bias), steps: 0 }
    }

    /// Length of a row of features.
    #[must_use]
    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    /// Logits of all probes.  features: [rows, dim] row-major  ->  [rows, probes, classes] row-major
    ///
    /// # Errors
    /// `features` is no whole number of rows.
    pub(crate) fn logits(&self, features: &[f32]) -> Result<Vec<f32>> {
        self.wide(&Tensor::from_slice(features, (features.len() / self.dim, self.dim), &Device::Cpu)?)
    }

    fn wide(&self, features: &Tensor) -> Result<Vec<f32>> {
        let outputs = self.bias.value.len();
        let weight = Tensor::from_slice(&self.weight.value, (outputs, self.dim), &Device::Cpu)?; // [outputs, dim]
        let bias = Tensor::from_slice(&self.bias.value, outputs, &Device::Cpu)?; // [probes * classes = outputs]
        Ok(linear(features, &weight, Some(&bias))?.flatten_all()?.to_vec1()?)
    }

    /// One optimizer step of every probe on the same rows; each learning rate is multiplied by `factor`. Returns the
    /// loss before the step, averaged over rows and probes.
    ///
    /// Labels are smaller than the number of classes.
    ///
    /// # Errors
    /// `features` does not hold `labels.len()` rows.
    pub(crate) fn step(&mut self, features: Vec<f32>, labels: &[u32], factor: f64) -> Result<f64> {
        let gradient = self.gradient(features, labels)?;
        self.apply(&gradient, factor);
        Ok(gradient.loss)
    }

    /// AdamW of every probe.
    fn apply(&mut self, gradient: &Gradient, factor: f64) {
        self.steps += 1;
        let settings: Vec<Step> =
            self.sweep.iter().map(|&(lr, decay)| Step::new((lr * factor) as f32, decay as f32, self.steps)).collect();
        let width = self.classes * self.dim;
        advance(&mut self.weight, &gradient.weight, width, |probe| settings[probe]);
        // Biases are not decayed.
        advance(&mut self.bias, &gradient.bias, self.classes, |probe| Step { decay: 0.0, ..settings[probe] });
    }

    /// d loss / d logits is (softmax - one-hot) / (rows * probes); the rest is one matrix product.
    fn gradient(&self, features: Vec<f32>, labels: &[u32]) -> Result<Gradient> {
        let features = Tensor::from_vec(features, (labels.len(), self.dim), &Device::Cpu)?; // [rows, dim]
        let mut errors = self.wide(&features)?; // [rows, probes, classes]
        let outputs = self.bias.value.len();
        let scale = 1.0 / (labels.len() * self.sweep.len()) as f32;
        let losses: Vec<f64> = errors
            .par_chunks_exact_mut(outputs)
            .zip(labels)
            .map(|(row, &label)| {
                row.chunks_exact_mut(self.classes).map(|logits| to_error(logits, label as usize, scale)).sum()
            })
            .collect();
        let mut bias = vec![0.0; outputs];
        for row in errors.chunks_exact(outputs) {
            bias.iter_mut().zip(row).for_each(|(sum, error)| *sum += error);
        }
        let errors = Tensor::from_vec(errors, (labels.len(), outputs), &Device::Cpu)?; // [rows, probes * classes]
        let weight = errors.t()?.matmul(&features)?.flatten_all()?.to_vec1()?; // [probes * classes * dim]
        Ok(Gradient { loss: losses.iter().sum::<f64>() * f64::from(scale), weight, bias })
    }

    /// Accuracy of each probe on one or more rows, in percent; equal logits go to the smallest label.
    ///
    /// # Errors
    /// `features` does not hold `labels.len()` rows.
    pub(crate) fn accuracies(&self, features: &[f32], labels: &[u32]) -> Result<Vec<f64>> {
        if features.len() != labels.len() * self.dim {
            let (numbers, rows) = (features.len(), labels.len());
            return Err(Error::Mismatch(format!("probes: {numbers} numbers are not {rows} rows of {}", self.dim)));
        }
        let mut right = vec![0_usize; self.sweep.len()];
        for (rows, labels) in features.chunks(1024 * self.dim).zip(labels.chunks(1024)) {
            let logits = self.logits(rows)?; // [rows, probes, classes]
            for (row, &label) in logits.chunks_exact(self.bias.value.len()).zip(labels) {
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

/// Replaces logits by (softmax - one-hot) * scale and returns the cross-entropy.
fn to_error(logits: &mut [f32], label: usize, scale: f32) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let truth = logits[label] - most;
    let mut sum = 0.0_f32;
    for logit in logits.iter_mut() {
        *logit = (*logit - most).exp();
        sum += *logit;
    }
    for logit in logits.iter_mut() {
        *logit *= scale / sum;
    }
    logits[label] -= scale;
    f64::from(sum.ln() - truth)
}

/// Settings of one AdamW step of one probe.
#[derive(Clone, Copy)]
struct Step {
    lr: f32,
    decay: f32,
    correction1: f32,
    correction2: f32,
}

impl Step {
    fn new(lr: f32, decay: f32, step: i32) -> Self {
        let correction = |beta: f32| (1.0 - f64::from(beta).powi(step)) as f32;
        Self { lr, decay, correction1: correction(BETA1), correction2: correction(BETA2) }
    }
}

/// AdamW with decoupled decay, `width` numbers a probe.
fn advance(parameter: &mut Moments, gradient: &[f32], width: usize, settings: impl Fn(usize) -> Step + Sync) {
    let Moments { value, first, second } = parameter;
    value
        .par_chunks_exact_mut(width)
        .zip(first.par_chunks_exact_mut(width))
        .zip(second.par_chunks_exact_mut(width))
        .zip(gradient.par_chunks_exact(width))
        .enumerate()
        .for_each(|(probe, (((value, first), second), gradient))| {
            let Step { lr, decay, correction1, correction2 } = settings(probe);
            let (keep, rate, root) = (1.0 - lr * decay, lr / correction1, correction2.sqrt());
            for (((value, first), second), &g) in value.iter_mut().zip(first).zip(second).zip(gradient) {
                *first = BETA1 * *first + (1.0 - BETA1) * g;
                *second = BETA2 * *second + (1.0 - BETA2) * g * g;
                *value = *value * keep - rate * *first / (second.sqrt() / root + EPS);
            }
        });
}

#[cfg(test)]
mod tests {
    use super::{Gradient, Moments, Probes};
    use candle_core::{DType, Tensor};
    use occlude_golden::assert_close;
    use occlude_random::Streams;

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn golden_capi_linear_probe() {
        let Some(tensors) = occlude_golden::set("capi").tensors("probes") else { return };
        let reference = |name: &str| &tensors[&format!("linear.{name}")];
        let (classes, dim) = reference("linear.weight").dims2().unwrap();
        let labels: Vec<u32> =
            values(&reference("labels").to_dtype(DType::F32).unwrap()).iter().map(|l| *l as u32).collect();
        let mut probes = Probes::new(vec![(1e-2, 0.05)], classes, dim, &Streams::new(0));
        probes.weight = Moments::new(values(reference("linear.weight")));
        probes.bias = Moments::new(values(reference("linear.bias")));
        let features = values(reference("features"));
        let like = |values: Vec<f32>, name: &str| {
            Tensor::from_vec(values, reference(name).dims(), reference(name).device()).unwrap()
        };

        assert_close("logits", &like(probes.logits(&features).unwrap(), "logits"), reference("logits"), 2e-5);
        let gradient = probes.gradient(features.clone(), &labels).unwrap();
        let loss: f32 = reference("loss").to_scalar().unwrap();
        assert!((gradient.loss as f32 - loss).abs() <= 2e-6 * loss, "{} against {loss}", gradient.loss);
        for (name, got) in [("grad.linear.weight", gradient.weight), ("grad.linear.bias", gradient.bias)] {
            assert_close(name, &like(got, name), reference(name), 5e-5);
        }
        // From the reference's own gradient: a first step divides by its size, so that rounding in it would show.
        let [weight, bias] = ["grad.linear.weight", "grad.linear.bias"].map(|name| values(reference(name)));
        probes.apply(&Gradient { loss: 0.0, weight, bias }, 1.0);
        for (name, got) in [("after1.linear.weight", &probes.weight.value), ("after1.linear.bias", &probes.bias.value)]
        {
            let worst = got.iter().zip(values(reference(name))).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-6, "{name}: {worst}");
        }
    }

    #[test]
    fn probes_trained_together_are_as_if_alone_but_for_the_scale_of_the_gradient() {
        let features: Vec<f32> = (0..6 * 3).map(|i| ((i * 7 % 11) as f32 - 5.0) / 3.0).collect();
        let labels = [0, 1, 1, 0, 1, 0];
        let sweep = vec![(1e-2, 0.1), (3e-2, 0.0)];
        let mut both = Probes::new(sweep.clone(), 2, 3, &Streams::new(1));
        let mut second = both.clone();
        second.sweep = vec![sweep[1]];
        second.weight = Moments::new(both.weight.value[6..].to_vec());
        second.bias = Moments::new(both.bias.value[2..].to_vec());
        for _ in 0..20 {
            both.step(features.clone(), &labels, 1.0).unwrap();
            second.step(features.clone(), &labels, 1.0).unwrap();
        }
        for (a, b) in both.weight.value[6..].iter().zip(&second.weight.value) {
            assert!((a - b).abs() < 1e-5, "{a} against {b}");
        }
        assert_ne!(both.weight.value[..6], both.weight.value[6..]);
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let features: Vec<f32> = (0..5 * 4).map(|i| ((i * 5 % 13) as f32 - 6.0) / 4.0).collect();
        let labels = [2, 0, 1, 1, 2];
        let probes = Probes::new(vec![(1.0, 0.0); 2], 3, 4, &Streams::new(2));
        let gradient = probes.gradient(features.clone(), &labels).unwrap();
        let loss = |weight: usize, by: f32| {
            let mut moved = probes.clone();
            moved.weight.value[weight] += by;
            moved.gradient(features.clone(), &labels).unwrap().loss
        };
        for weight in 0..24 {
            // f32 logits: a step of 1e-2 leaves about 1e-5 of rounding and as much of curvature.
            let numeric = (loss(weight, 1e-2) - loss(weight, -1e-2)) / 2e-2;
            let analytic = f64::from(gradient.weight[weight]);
            assert!((numeric - analytic).abs() < 1e-4, "weight {weight}: {numeric} against {analytic}");
        }
    }
}
