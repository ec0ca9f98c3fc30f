//! AdamW for many heads at once (CAPI's linear probes).

use super::heads::{Gradient, Heads};
use rayon::prelude::*;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.95;
const EPS: f32 = 1e-8;

/// AdamW with decoupled decay, a learning rate and a decay for each head.
#[derive(Clone, Debug)]
pub(crate) struct AdamW {
    sweep: Vec<(f64, f64)>,
    weight: Moments,
    bias: Moments,
    steps: i32,
}

/// First and second moments of a parameter.
#[derive(Clone, Debug)]
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Moments {
    fn zeros(count: usize) -> Self {
        Self { first: vec![0.0; count], second: vec![0.0; count] }
    }
}

impl AdamW {
    /// For these heads, one (learning rate, weight decay) each.
    #[must_use]
    pub(crate) fn new(sweep: Vec<(f64, f64)>, heads: &Heads) -> Self {
        Self { sweep, weight: Moments::zeros(heads.weight.len()), bias: Moments::zeros(heads.bias.len()), steps: 0 }
    }

    /// One step of every head; each learning rate is multiplied by `factor`. Biases are not decayed.
    pub(crate) fn step(&mut self, heads: &mut Heads, gradient: &Gradient, factor: f64) {
        self.steps += 1;
        let settings: Vec<Step> =
            self.sweep.iter().map(|&(lr, decay)| Step::new((lr * factor) as f32, decay as f32, self.steps)).collect();
        let (classes, width) = (heads.classes, heads.classes * heads.dim);
        advance(&mut heads.weight, &mut self.weight, &gradient.weight, width, |head| settings[head]);
        let plain = |head: usize| Step { decay: 0.0, ..settings[head] };
        advance(&mut heads.bias, &mut self.bias, &gradient.bias, classes, plain);
    }
}

/// Settings of one step of one head.
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

/// `width` numbers a head.
fn advance(
    value: &mut [f32],
    Moments { first, second }: &mut Moments,
    gradient: &[f32],
    width: usize,
    settings: impl Fn(usize) -> Step + Sync,
) {
    value
        .par_chunks_exact_mut(width)
        .zip(first.par_chunks_exact_mut(width))
        .zip(second.par_chunks_exact_mut(width))
        .zip(gradient.par_chunks_exact(width))
        .enumerate()
        .for_each(|(head, (((value, first), second), gradient))| {
            let Step { lr, decay, correction1, correction2 } = settings(head);
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
    use super::super::heads::{Gradient, Heads, Reduce};
    use super::AdamW;
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
        let mut heads = Heads::new(1, classes, dim, 0.02, &Streams::new(0));
        heads.weight = values(reference("linear.weight"));
        heads.bias = values(reference("linear.bias"));
        let features = values(reference("features"));
        let like = |values: Vec<f32>, name: &str| {
            Tensor::from_vec(values, reference(name).dims(), reference(name).device()).unwrap()
        };

        assert_close("logits", &like(heads.logits(&features).unwrap(), "logits"), reference("logits"), 2e-5);
        let gradient = heads.gradient(features.clone(), &labels, Reduce::Mean).unwrap();
        let loss: f32 = reference("loss").to_scalar().unwrap();
        let got = heads.loss(&features, &labels);
        assert!((got as f32 - loss).abs() <= 2e-6 * loss, "{got} against {loss}");
        for (name, got) in [("grad.linear.weight", gradient.weight), ("grad.linear.bias", gradient.bias)] {
            assert_close(name, &like(got, name), reference(name), 5e-5);
        }
        // From the reference's own gradient: a first step divides by its size, so that rounding in it would show.
        let [weight, bias] = ["grad.linear.weight", "grad.linear.bias"].map(|name| values(reference(name)));
        AdamW::new(vec![(1e-2, 0.05)], &heads).step(&mut heads, &Gradient { weight, bias }, 1.0);
        for (name, got) in [("after1.linear.weight", &heads.weight), ("after1.linear.bias", &heads.bias)] {
            let worst = got.iter().zip(values(reference(name))).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-6, "{name}: {worst}");
        }
    }

    #[test]
    fn heads_trained_together_are_as_if_alone() {
        let features: Vec<f32> = (0..6 * 3).map(|i| ((i * 7 % 11) as f32 - 5.0) / 3.0).collect();
        let labels = [0, 1, 1, 0, 1, 0];
        let sweep = vec![(1e-2, 0.1), (3e-2, 0.0)];
        let mut both = Heads::new(2, 2, 3, 0.02, &Streams::new(1));
        let (weight, bias) = (both.weight[6..].to_vec(), both.bias[2..].to_vec());
        let mut second = Heads { count: 1, weight, bias, ..both.clone() };
        let (mut adamw, mut alone) = (AdamW::new(sweep.clone(), &both), AdamW::new(vec![sweep[1]], &second));
        for _ in 0..20 {
            let gradient = both.gradient(features.clone(), &labels, Reduce::Mean).unwrap();
            adamw.step(&mut both, &gradient, 1.0);
            let gradient = second.gradient(features.clone(), &labels, Reduce::Mean).unwrap();
            alone.step(&mut second, &gradient, 1.0);
        }
        for (a, b) in both.weight[6..].iter().zip(&second.weight) {
            assert!((a - b).abs() < 1e-5, "{a} against {b}");
        }
        assert_ne!(both.weight[..6], both.weight[6..]);
    }
}
