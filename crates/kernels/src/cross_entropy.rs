//! Cross-entropy against soft targets.
//!
//! The forward pass keeps three numbers per row; the backward pass recomputes the softmax from the logits, so nothing
//! as large as the logits exists but their gradient.

use crate::cpu::{self, Real, Values, by_dtype};
use crate::simd::{largest, sum_of, vectorised};
use crate::{Error, Result, input, reference};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use std::sync::OnceLock;

/// `-mean over rows of sum_k t_k * log_softmax(l / temperature)_k`, a scalar in the dtype of the logits; row losses are
/// added in f64. logits and targets: [rows, k]. Target rows may sum to anything (an assignment that underflowed sums to
/// less than 1). No gradient reaches the targets. Source: CAPI specification, section 9.
///
/// # Errors
/// Shapes or dtypes that differ, no rows, no classes, a temperature that is not positive, or a dtype that is not f32 or
/// f64.
pub fn soft_cross_entropy(logits: &Tensor, targets: &Tensor, temperature: f64) -> Result<Tensor> {
    let op = "soft_cross_entropy";
    let (rows, k) = check(op, logits, targets, temperature)?;
    if !cpu::on_cpu(logits) {
        return reference::soft_cross_entropy(logits, targets, temperature);
    }
    let targets = targets.detach().contiguous()?;
    let op = SoftCrossEntropy { targets, rows, k, temperature, stats: OnceLock::new() };
    Ok(logits.contiguous()?.apply_op1(op)?)
}

fn check(op: &'static str, logits: &Tensor, targets: &Tensor, temperature: f64) -> Result<(usize, usize)> {
    input::same_float(op, logits, targets)?;
    let &[rows, k] = logits.dims() else { return Err(Error::shape(op, "logits [rows, k]", logits.dims())) };
    if rows == 0 || k == 0 {
        return Err(Error::shape(op, "at least one row and one class", logits.dims()));
    }
    input::shape(op, "targets", targets, logits.dims())?;
    input::positive(op, "temperature", temperature)?;
    Ok((rows, k))
}

/// [`soft_cross_entropy`] and `scale` times its gradient, without a graph: for scores that exist part by part, whose
/// gradient goes to [`Gradients::add_linear`](crate::Gradients::add_linear). -> loss, [rows, k]
///
/// # Errors
/// As [`soft_cross_entropy`].
pub fn soft_cross_entropy_gradient(
    logits: &Tensor,
    targets: &Tensor,
    temperature: f64,
    scale: f64,
) -> Result<(f64, Tensor)> {
    let op = "soft_cross_entropy_gradient";
    let (rows, k) = check(op, logits, targets, temperature)?;
    let (logits, targets) = (logits.detach().contiguous()?, targets.detach().contiguous()?);
    if !cpu::on_cpu(&logits) {
        let loss = reference::soft_cross_entropy(&logits, &targets, temperature)?;
        let shares = targets.sum_keepdim(1)?; // [rows, 1]
        let probabilities = reference::softmax(&(logits / temperature)?)?.broadcast_mul(&shares)?;
        let gradient = ((probabilities - targets)? * (scale / (temperature * rows as f64)))?;
        return Ok((loss.to_dtype(candle_core::DType::F64)?.to_scalar()?, gradient));
    }
    by_dtype!(op, logits.dtype(), T => {
        let (values, targets) = (Values::<T>::of(&logits)?, Values::<T>::of(&targets)?);
        let stats = all_losses::<T>(&values, &targets, k, temperature);
        let scale = scale / (temperature * rows as f64);
        let gradient = all_gradients::<T>(&values, &targets, k, temperature, scale, &stats);
        Ok((mean_loss(&stats), cpu::tensor(gradient, logits.shape())?))
    })
}

/// The [`STATS`] of every row.
pub(crate) fn all_losses<T: Real>(logits: &[T], targets: &[T], k: usize, temperature: f64) -> Vec<f64> {
    let (rows, group) = (logits.len() / k, cpu::rows_of(k));
    cpu::fill_chunks(rows * STATS, group * STATS, LOGARITHM * logits.len(), |i, stats: &mut [f64]| {
        let here = i * group * k..(i * group + stats.len() / STATS) * k;
        row_losses(&logits[here.clone()], &targets[here], k, T::of(1.0 / temperature), stats);
    })
}

fn mean_loss(stats: &[f64]) -> f64 {
    summed(stats) / (stats.len() / STATS) as f64
}

/// The sum of the losses of all rows.
pub(crate) fn summed(stats: &[f64]) -> f64 {
    stats.chunks_exact(STATS).map(|row| row[3]).sum()
}

/// [rows, k]; `scale` multiplies what softmax and targets differ by.
pub(crate) fn all_gradients<T: Real>(
    logits: &[T],
    targets: &[T],
    k: usize,
    temperature: f64,
    scale: f64,
    stats: &[f64],
) -> Vec<T> {
    let group = cpu::rows_of(k);
    cpu::fill_chunks(logits.len(), group * k, LOGARITHM * logits.len(), |i, dl: &mut [T]| {
        let here = i * group * k..i * group * k + dl.len();
        let (l, t, stats) = (&logits[here.clone()], &targets[here], &stats[i * group * STATS..]);
        gradients(l, t, k, T::of(1.0 / temperature), scale, stats, dl);
    })
}

/// Mean over rows of `-sum_k t_k ln t_k`, with `0 ln 0 = 0`, in f64. targets: [.., k].
///
/// # Errors
/// A scalar, no rows, or a dtype that is not f32 or f64.
pub fn mean_row_entropy(targets: &Tensor) -> Result<f64> {
    let op = "mean_row_entropy";
    let (rows, _) = input::rows(op, targets)?;
    if rows == 0 {
        return Err(Error::shape(op, "at least one row", targets.dims()));
    }
    let targets = targets.detach().to_device(&candle_core::Device::Cpu)?.contiguous()?;
    by_dtype!(op, targets.dtype(), T => {
        let values = Values::<T>::of(&targets)?;
        let groups = values.len().div_ceil(cpu::ELEMENTS);
        let partial = cpu::fill_chunks(groups, 1, LOGARITHM * values.len(), |i, out: &mut [f64]| {
            let values = values[i * cpu::ELEMENTS..].iter().take(cpu::ELEMENTS);
            out[0] = values.map(|t| t.wide()).filter(|&t| t != 0.0).map(|t| -t * t.ln()).sum();
        });
        Ok(partial.iter().sum::<f64>() / rows as f64)
    })
}

/// A logarithm or exponential costs about as much as this many copies.
const LOGARITHM: usize = 8;
/// Per row: largest logit, sum of exponentials, sum of targets, loss.
const STATS: usize = 4;
/// Elements whose exponentials are added in the element type; blocks are added in f64.
const BLOCK: usize = 256;

struct SoftCrossEntropy {
    targets: Tensor,
    rows: usize,
    k: usize,
    temperature: f64,
    /// [rows, STATS], from the forward pass.
    stats: OnceLock<Vec<f64>>,
}

vectorised! {
    fn row_losses / row_losses_at<T, ISA>(logits: &[T], targets: &[T], k: usize, sharpness: T, stats: &mut [f64]) {
        let (mut exps, mut products) = ([T::zero(); BLOCK], [T::zero(); BLOCK]);
        for ((l, t), stats) in logits.chunks_exact(k).zip(targets.chunks_exact(k)).zip(stats.chunks_exact_mut(STATS)) {
            let shift = largest(l);
            let (mut exp_sum, mut product_sum, mut target_sum) = (0.0, 0.0, 0.0);
            for (l, t) in l.chunks(BLOCK).zip(t.chunks(BLOCK)) {
                let (exps, products) = (&mut exps[..l.len()], &mut products[..l.len()]);
                for i in 0..l.len() {
                    let z = (l[i] - shift) * sharpness; // Not scaled apart: near the largest, the difference is exact.
                    exps[i] = z.exponential::<ISA>();
                    products[i] = z * t[i];
                }
                exp_sum += sum_of(exps).wide();
                product_sum += sum_of(products).wide();
                target_sum += sum_of(t).wide();
            }
            stats[0] = shift.wide();
            stats[1] = exp_sum;
            stats[2] = target_sum;
            stats[3] = target_sum * exp_sum.ln() - product_sum;
        }
    }
}

vectorised! {
    fn gradients / gradients_at<T, ISA>(
        logits: &[T], targets: &[T], k: usize, sharpness: T, scale: f64, stats: &[f64], dl: &mut [T],
    ) {
        let rows = logits.chunks_exact(k).zip(targets.chunks_exact(k)).zip(dl.chunks_exact_mut(k));
        for (((l, t), dl), stats) in rows.zip(stats.chunks_exact(STATS)) {
            let (shift, share, scale) = (T::of(stats[0]), T::of(stats[2] / stats[1]), T::of(scale));
            for i in 0..k {
                let p = ((l[i] - shift) * sharpness).exponential::<ISA>() * share;
                dl[i] = (p - t[i]) * scale;
            }
        }
    }
}

impl CustomOp1 for SoftCrossEntropy {
    fn name(&self) -> &'static str {
        "soft_cross_entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!("soft_cross_entropy", cpu::dtype(logits), T => {
            let (logits, targets) = (cpu::slice::<T>(logits, layout)?, Values::<T>::of(&self.targets)?);
            let stats = all_losses::<T>(logits, &targets, self.k, self.temperature);
            let loss = mean_loss(&stats);
            // One instance per call, so the cell is empty.
            let _ = self.stats.set(stats);
            Ok((cpu::storage(vec![T::of(loss)]), Shape::from(())))
        })
    }

    fn bwd(&self, logits: &Tensor, _loss: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let stats = self.stats.get().map_or(&[][..], Vec::as_slice);
        by_dtype!("soft_cross_entropy", logits.dtype(), T => {
            let scale = g.to_scalar::<T>()?.wide() / (self.temperature * self.rows as f64);
            let (values, targets) = (Values::<T>::of(logits)?, Values::<T>::of(&self.targets)?);
            let dl = all_gradients::<T>(&values, &targets, self.k, self.temperature, scale, stats);
            Ok(Some(cpu::tensor(dl, logits.shape())?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{mean_row_entropy, soft_cross_entropy, soft_cross_entropy_gradient};
    use crate::check::{check_large, check_op_with, output_and_gradients, same, same_for_any_threads, sample};
    use crate::levels::{same_on_all, values};
    use crate::{Error, backward, reference};
    use candle_core::{DType, Device, Tensor, Var};

    /// Positive rows that sum to less than 1, as assignments that underflowed do.
    fn targets(rows: usize, k: usize) -> Tensor {
        (reference::softmax(&sample(9, (rows, k)).unwrap()).unwrap() * 0.8).unwrap()
    }

    #[test]
    fn agrees_with_its_reference_and_its_gradient() {
        for (rows, k) in [(1, 2), (3, 7), (5, 16), (2, 33), (17, 3)] {
            for temperature in [0.12, 1.0] {
                check_op_with(
                    &[sample(1, (rows, k)).unwrap()],
                    &[targets(rows, k)],
                    |v, t| soft_cross_entropy(&v[0], &t[0], temperature),
                    |v, t| reference::soft_cross_entropy(&v[0], &t[0], temperature),
                )
                .unwrap();
            }
        }
    }

    #[test]
    fn the_gradient_without_a_graph_is_that_of_the_graph() {
        for dtype in [DType::F32, DType::F64] {
            let targets = targets(37, 21).to_dtype(dtype).unwrap();
            let logits = Var::from_tensor(&sample(1, (37, 21)).unwrap().to_dtype(dtype).unwrap()).unwrap();
            let whole = (soft_cross_entropy(&logits, &targets, 0.12).unwrap() * 0.25).unwrap();
            let expected = backward(&whole).unwrap();
            let (loss, gradient) = soft_cross_entropy_gradient(&logits, &targets, 0.12, 0.25).unwrap();
            let whole = whole.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
            assert!((0.25 * loss - whole).abs() < 1e-6 * whole, "{loss} and {whole}");
            same("gradient", &gradient, expected.get(&logits).unwrap(), crate::check::F32).unwrap();
            assert!(!gradient.track_op());
        }
    }

    #[test]
    fn many_rows_match_as_well() {
        let (logits, targets) = (sample(1, (700, 67)).unwrap(), targets(700, 67));
        let run = |v: &[Tensor], loss: fn(&Tensor, &Tensor, f64) -> crate::Result<Tensor>| {
            loss(&v[0], &targets.to_dtype(v[0].dtype())?, 0.12)
        };
        check_large(&[logits], |v| run(v, soft_cross_entropy), |v| run(v, reference::soft_cross_entropy)).unwrap();
    }

    #[test]
    fn logits_far_from_zero_keep_their_differences() {
        let logits = ((sample(1, (5, 67)).unwrap() + 1e3).unwrap()).to_dtype(DType::F32).unwrap();
        let run = |dtype, loss: fn(&Tensor, &Tensor, f64) -> crate::Result<Tensor>| {
            let targets = targets(5, 67).to_dtype(dtype).unwrap();
            output_and_gradients(std::slice::from_ref(&logits), dtype, |v| loss(&v[0], &targets, 0.03)).unwrap()
        };
        let expected = run(DType::F64, reference::soft_cross_entropy);
        for (got, expected) in run(DType::F32, soft_cross_entropy).iter().zip(&expected) {
            same("loss", got, expected, crate::check::F32).unwrap();
        }
    }

    #[test]
    fn the_gradient_of_a_short_target_row_sums_to_zero() {
        let logits = Var::from_tensor(&sample(1, (4, 9)).unwrap()).unwrap();
        let loss = soft_cross_entropy(&logits, &targets(4, 9), 0.12).unwrap();
        let gradient = backward(&loss).unwrap().get(&logits).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        assert!(gradient.abs() < 1e-14, "{gradient}");
    }

    #[test]
    fn targets_get_no_gradient() {
        let logits = Var::from_tensor(&sample(1, (4, 9)).unwrap()).unwrap();
        let targets = Var::from_tensor(&targets(4, 9)).unwrap();
        let loss = soft_cross_entropy(&logits, targets.as_tensor(), 1.0).unwrap();
        assert!(backward(&loss).unwrap().get(&targets).is_none());
        // A target computed from a variable is an inner node of the graph, where candle asks for a gradient by force.
        let loss = soft_cross_entropy(&logits, &(targets.as_tensor() * 0.5).unwrap(), 1.0).unwrap();
        assert!(backward(&loss).unwrap().get(&targets).is_none());
    }

    #[test]
    fn large_logits_give_a_finite_loss_and_a_nan_is_not_hidden() {
        let run = |values: &[f32]| {
            let logits = Tensor::from_slice(values, (1, 2), &Device::Cpu).unwrap();
            let targets = Tensor::new(&[[0.0_f32, 1.0]], &Device::Cpu).unwrap();
            soft_cross_entropy(&logits, &targets, 0.5).unwrap().to_scalar::<f32>().unwrap()
        };
        assert_eq!(run(&[1e6, 0.0]), 2e6);
        assert!(run(&[f32::NAN, 0.0]).is_nan());
        assert!(run(&[0.0, f32::NAN]).is_nan());
    }

    #[test]
    fn any_number_of_threads_gives_equal_bits() {
        let (logits, targets) = (sample(1, (301, 67)).unwrap(), targets(301, 67));
        for dtype in [DType::F32, DType::F64] {
            let targets = targets.to_dtype(dtype).unwrap();
            same_for_any_threads(|| {
                output_and_gradients(std::slice::from_ref(&logits), dtype, |v| {
                    soft_cross_entropy(&v[0], &targets, 0.12)
                })
            })
            .unwrap();
        }
    }

    #[test]
    fn entropy_is_that_of_the_rows() {
        let rows = Tensor::new(&[[0.5_f32, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        assert!((mean_row_entropy(&rows).unwrap() - 0.5 * std::f64::consts::LN_2).abs() < 1e-12);
        assert!(mean_row_entropy(&(rows * f64::NAN).unwrap()).unwrap().is_nan());
    }

    #[test]
    fn other_shapes_dtypes_and_temperatures_are_refused() {
        let (l, t) = (sample(1, (3, 4)).unwrap(), targets(3, 4));
        let none = Tensor::zeros((0, 4), DType::F64, &Device::Cpu).unwrap();
        assert!(matches!(soft_cross_entropy(&l, &targets(3, 5), 1.0), Err(Error::Shape { .. })));
        assert!(matches!(soft_cross_entropy(&none, &none, 1.0), Err(Error::Shape { .. })));
        assert!(matches!(mean_row_entropy(&none), Err(Error::Shape { op: "mean_row_entropy", .. })));
        assert!(matches!(soft_cross_entropy(&l, &t.to_dtype(DType::F32).unwrap(), 1.0), Err(Error::Dtype { .. })));
        assert!(matches!(soft_cross_entropy(&l, &t, 0.0), Err(Error::Argument { .. })));
        assert!(matches!(soft_cross_entropy(&l, &t, f64::NAN), Err(Error::Argument { .. })));
    }

    #[test]
    fn every_instruction_set_gives_the_same() {
        // More than one block of the row, and a ragged end.
        let k = super::BLOCK + 37;
        let (l, t) = (values(1, 2 * k), values(2, 2 * k));
        same_on_all(1e-5, |level| {
            let (mut stats, mut dl) = (vec![0.0; 2 * super::STATS], vec![0.0; l.len()]);
            super::row_losses_at(level, &l, &t, k, 8.0, &mut stats);
            super::gradients_at(level, &l, &t, k, 8.0, 0.1, &stats, &mut dl);
            let stats: Vec<f32> = stats.into_iter().map(|value| value as f32).collect();
            [stats, dl].concat()
        });
    }
}
