//! LARS for many heads at once (MAE and RandSAC, linear probing).

use super::heads::{Gradient, Heads};
use rayon::prelude::*;

const MOMENTUM: f32 = 0.9;
/// A step before momentum and rate, as a share of the size of the weight.
const TRUST: f64 = 1e-3;

/// LARS with momentum 0.9, a learning rate and a weight decay for each head. The weight of a head is one tensor with
/// norms of its own: `g += decay w`, `g *= 0.001 |w| / |g|` (1 where either norm is 0), `m = 0.9 m + g`, `w -= lr m`.
/// Its bias has neither decay nor factor.
#[derive(Clone, Debug)]
pub(crate) struct Lars {
    sweep: Vec<(f64, f64)>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Lars {
    /// For these heads, one (learning rate, weight decay) each.
    #[must_use]
    pub(crate) fn new(sweep: Vec<(f64, f64)>, heads: &Heads) -> Self {
        Self { sweep, weight: vec![0.0; heads.weight.len()], bias: vec![0.0; heads.bias.len()] }
    }

    /// One step of every head; each learning rate is multiplied by `factor`.
    pub(crate) fn step(&mut self, heads: &mut Heads, gradient: &Gradient, factor: f64) {
        let width = heads.classes * heads.dim;
        let lr = |lr: f64| (lr * factor) as f32;
        let each = heads.weight.par_chunks_exact_mut(width).zip(self.weight.par_chunks_exact_mut(width));
        each.zip(gradient.weight.par_chunks_exact(width)).zip(&self.sweep).for_each(
            |(((weight, momentum), gradient), &(rate, decay))| {
                let decay = decay as f32;
                let trust = trust(weight, gradient, decay);
                advance(weight, momentum, gradient, lr(rate), |w, g| trust * (g + decay * w));
            },
        );
        let each = heads.bias.chunks_exact_mut(heads.classes).zip(self.bias.chunks_exact_mut(heads.classes));
        for (((bias, momentum), gradient), &(rate, _)) in
            each.zip(gradient.bias.chunks_exact(heads.classes)).zip(&self.sweep)
        {
            advance(bias, momentum, gradient, lr(rate), |_, g| g);
        }
    }
}

/// The factor of the decayed gradient of one weight.
fn trust(weight: &[f32], gradient: &[f32], decay: f32) -> f32 {
    let square = |value: f32| f64::from(value) * f64::from(value);
    let size = weight.iter().map(|w| square(*w)).sum::<f64>().sqrt();
    let slope = weight.iter().zip(gradient).map(|(w, g)| square(g + decay * w)).sum::<f64>().sqrt();
    if size > 0.0 && slope > 0.0 { (TRUST * size / slope) as f32 } else { 1.0 }
}

/// `change` tells by value and gradient what momentum takes up.
fn advance(value: &mut [f32], momentum: &mut [f32], gradient: &[f32], lr: f32, change: impl Fn(f32, f32) -> f32) {
    for ((value, momentum), &g) in value.iter_mut().zip(momentum).zip(gradient) {
        *momentum = MOMENTUM * *momentum + change(*value, g);
        *value -= lr * *momentum;
    }
}

#[cfg(test)]
mod tests {
    use super::super::heads::{Gradient, Heads, Reduce};
    use super::Lars;
    use candle_core::{DType, Tensor};
    use occlude_golden::assert_close;
    use occlude_random::Streams;

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// One head of two classes on one feature.
    fn small(weight: [f32; 2], bias: [f32; 2]) -> Heads {
        let heads = Heads::new(1, 2, 1, 0.01, &Streams::new(1));
        Heads { weight: weight.to_vec(), bias: bias.to_vec(), ..heads }
    }

    fn of(weight: [f32; 2], bias: [f32; 2]) -> Gradient {
        Gradient { weight: weight.to_vec(), bias: bias.to_vec() }
    }

    #[test]
    fn golden_randsac_lars() {
        let Some(tensors) = occlude_golden::set("randsac").tensors("tables") else { return };
        let (steps, classes, dim) = tensors["lars.grad_w"].dims3().unwrap();
        let mut heads = Heads::new(1, classes, dim, 0.01, &Streams::new(0));
        (heads.weight, heads.bias) = (values(&tensors["lars.w0"]), values(&tensors["lars.b0"]));
        // Stated beside the tensors: lr 6.4 (0.1 * 16384 / 256), no weight decay.
        let mut lars = Lars::new(vec![(0.1, 0.0)], &heads);
        for step in 0..steps {
            let [weight, bias] = ["lars.grad_w", "lars.grad_b"].map(|name| values(&tensors[name].get(step).unwrap()));
            lars.step(&mut heads, &Gradient { weight, bias }, 64.0);
        }
        for (name, got) in [(format!("lars.w{steps}"), heads.weight), (format!("lars.b{steps}"), heads.bias)] {
            let reference = &tensors[&name];
            let got = Tensor::from_vec(got, reference.dims(), reference.device()).unwrap();
            assert_close(&name, &got, reference, 1e-6);
        }
    }

    #[test]
    fn a_head_among_others_moves_as_if_alone() {
        let features: Vec<f32> = (0..6 * 3).map(|i| ((i * 7 % 11) as f32 - 5.0) / 3.0).collect();
        let labels = [0, 1, 1, 0, 1, 0];
        let sweep = vec![(20.0, 0.0), (2.0, 1e-2)];
        let mut both = Heads::new(2, 2, 3, 0.01, &Streams::new(1));
        // Norms taken over both heads would be those of the first.
        both.weight[..6].iter_mut().for_each(|weight| *weight *= 100.0);
        let (weight, bias) = (both.weight[6..].to_vec(), both.bias[2..].to_vec());
        let mut second = Heads { count: 1, weight, bias, ..both.clone() };
        let (mut lars, mut alone) = (Lars::new(sweep.clone(), &both), Lars::new(vec![sweep[1]], &second));
        for _ in 0..20 {
            let gradient = both.gradient(features.clone(), &labels, Reduce::Sum).unwrap();
            lars.step(&mut both, &gradient, 1.0);
            let gradient = second.gradient(features.clone(), &labels, Reduce::Sum).unwrap();
            alone.step(&mut second, &gradient, 1.0);
        }
        for (a, b) in both.weight[6..].iter().chain(&both.bias[2..]).zip(second.weight.iter().chain(&second.bias)) {
            assert!((a - b).abs() < 1e-5, "{a} against {b}");
        }
    }

    #[test]
    fn only_weights_decay_and_decay_counts_for_their_norm() {
        let mut heads = small([3.0, -4.0], [0.5, 0.0]);
        let mut lars = Lars::new(vec![(2.0, 0.5)], &heads);
        lars.step(&mut heads, &of([0.0, 0.0], [0.0, 1.0]), 0.5);
        // g = 0.5 w has norm 2.5, w has 5: the step is 0.001 * 5 / 2.5 * g = 0.001 w. The bias takes its gradient.
        assert!((heads.weight[0] - 2.997).abs() < 1e-6 && (heads.weight[1] + 3.996).abs() < 1e-6, "{heads:?}");
        assert_eq!(heads.bias, [0.5, -1.0]);
    }

    #[test]
    fn without_a_norm_there_is_no_factor() {
        let mut heads = small([0.0, 0.0], [0.0, 0.0]);
        Lars::new(vec![(1.0, 0.0)], &heads).step(&mut heads, &of([0.25, -0.5], [0.0, 0.0]), 1.0);
        assert_eq!(heads.weight, [-0.25, 0.5], "a weight of 0");
        let mut heads = small([1.0, 2.0], [0.0, 0.0]);
        Lars::new(vec![(1.0, 0.0)], &heads).step(&mut heads, &of([0.0, 0.0], [0.0, 0.0]), 1.0);
        assert_eq!(heads.weight, [1.0, 2.0], "a gradient of 0");
    }
}
