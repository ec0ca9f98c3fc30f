//! SGD with momentum for many heads at once (MOCA, linear probing).

use super::heads::{Gradient, Heads};
use rayon::prelude::*;

const MOMENTUM: f32 = 0.9;

/// SGD with momentum 0.9, a learning rate and a weight decay for each head: `v = 0.9 v + (g + decay w)`, `w -= lr v`.
#[derive(Clone, Debug)]
pub(crate) struct Sgd {
    sweep: Vec<(f64, f64)>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Sgd {
    /// For these heads, one (learning rate, weight decay) each.
    #[must_use]
    pub(crate) fn new(sweep: Vec<(f64, f64)>, heads: &Heads) -> Self {
        Self { sweep, weight: vec![0.0; heads.weight.len()], bias: vec![0.0; heads.bias.len()] }
    }

    /// One step of every head; each learning rate is multiplied by `factor`. Biases are decayed like weights.
    pub(crate) fn step(&mut self, heads: &mut Heads, gradient: &Gradient, factor: f64) {
        let settings: Vec<(f32, f32)> =
            self.sweep.iter().map(|&(lr, decay)| ((lr * factor) as f32, decay as f32)).collect();
        let (classes, width) = (heads.classes, heads.classes * heads.dim);
        advance(&mut heads.weight, &mut self.weight, &gradient.weight, width, &settings);
        advance(&mut heads.bias, &mut self.bias, &gradient.bias, classes, &settings);
    }
}

/// `width` numbers a head.
fn advance(value: &mut [f32], velocity: &mut [f32], gradient: &[f32], width: usize, settings: &[(f32, f32)]) {
    value
        .par_chunks_exact_mut(width)
        .zip(velocity.par_chunks_exact_mut(width))
        .zip(gradient.par_chunks_exact(width))
        .zip(settings)
        .for_each(|(((value, velocity), gradient), &(lr, decay))| {
            for ((value, velocity), &g) in value.iter_mut().zip(velocity).zip(gradient) {
                *velocity = MOMENTUM * *velocity + (g + decay * *value);
                *value -= lr * *velocity;
            }
        });
}

#[cfg(test)]
mod tests {
    use super::super::cosine;
    use super::super::heads::{Heads, Reduce};
    use super::Sgd;
    use candle_core::{DType, Tensor};
    use occlude_golden::assert_close;
    use occlude_random::Streams;

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn golden_moca_linear_probe() {
        let Some(tensors) = occlude_golden::set("moca").tensors("linear_probe") else { return };
        let (batches, rows, dim) = tensors["features"].dims3().unwrap();
        let classes = tensors["weight0"].dim(0).unwrap();
        let lrs: Vec<f64> = tensors["lrs"].to_vec1().unwrap();
        let mut heads = Heads::new(1, classes, dim, 0.01, &Streams::new(0));
        (heads.weight, heads.bias) = (values(&tensors["weight0"]), values(&tensors["bias0"]));
        let mut sgd = Sgd::new(vec![(lrs[0], 0.0)], &heads);
        let (features, labels) = (values(&tensors["features"]), values(&tensors["labels"]));
        let losses: Vec<f64> = tensors["losses"].to_vec1().unwrap();
        for batch in 0..batches {
            // Each batch of the file is an epoch.
            let factor = cosine(batch, batches);
            assert!((lrs[0] * factor - lrs[batch]).abs() <= 1e-9 * lrs[0], "epoch {batch}: {factor}, {lrs:?}");
            let features = features[batch * rows * dim..(batch + 1) * rows * dim].to_vec();
            let labels: Vec<u32> = labels[batch * rows..(batch + 1) * rows].iter().map(|label| *label as u32).collect();
            let (got, loss) = (heads.loss(&features, &labels), losses[batch]);
            assert!((got - loss).abs() <= 1e-5 * loss, "epoch {batch}: {got} against {loss}");
            let gradient = heads.gradient(features, &labels, Reduce::Sum).unwrap();
            sgd.step(&mut heads, &gradient, factor);
        }
        for (name, got) in [("weight", heads.weight), ("bias", heads.bias)] {
            let reference = &tensors[&format!("{name}{batches}")];
            let got = Tensor::from_vec(got, reference.dims(), reference.device()).unwrap();
            assert_close(name, &got, reference, 5e-5);
        }
    }

    #[test]
    fn a_head_among_others_moves_as_if_alone() {
        let features: Vec<f32> = (0..6 * 3).map(|i| ((i * 7 % 11) as f32 - 5.0) / 3.0).collect();
        let labels = [0, 1, 1, 0, 1, 0];
        let sweep = vec![(0.5, 0.0), (0.1, 1e-2)];
        let mut both = Heads::new(2, 2, 3, 0.01, &Streams::new(1));
        let (weight, bias) = (both.weight[6..].to_vec(), both.bias[2..].to_vec());
        let mut second = Heads { count: 1, weight, bias, ..both.clone() };
        let (mut sgd, mut alone) = (Sgd::new(sweep.clone(), &both), Sgd::new(vec![sweep[1]], &second));
        for _ in 0..20 {
            let gradient = both.gradient(features.clone(), &labels, Reduce::Sum).unwrap();
            sgd.step(&mut both, &gradient, 1.0);
            let gradient = second.gradient(features.clone(), &labels, Reduce::Sum).unwrap();
            alone.step(&mut second, &gradient, 1.0);
        }
        for (a, b) in both.weight[6..].iter().zip(&second.weight) {
            assert!((a - b).abs() < 1e-5, "{a} against {b}");
        }
    }

    #[test]
    fn weights_and_biases_decay() {
        let mut heads = Heads::new(1, 2, 1, 0.01, &Streams::new(1));
        (heads.weight, heads.bias) = (vec![1.0, -2.0], vec![0.5, 0.0]);
        let zero = super::Gradient { weight: vec![0.0; 2], bias: vec![0.0; 2] };
        let mut sgd = Sgd::new(vec![(0.1, 0.5)], &heads);
        sgd.step(&mut heads, &zero, 1.0);
        sgd.step(&mut heads, &zero, 1.0);
        // v = 0.5, w = 0.95; then v = 0.45 + 0.475, w = 0.95 - 0.0925.
        assert!((heads.weight[0] - 0.8575).abs() < 1e-6 && (heads.bias[0] - 0.428_75).abs() < 1e-6, "{heads:?}");
    }
}
