//! Squared error of predicted patches against their pixels, which are standardised on the way.
//!
//! No tensor of targets exists: two numbers per patch are kept from the forward pass.

use crate::cpu::{self, Real, Values, by_dtype};
use crate::simd::{dot, sum_of, vectorised};
use crate::{Error, Result, input, reference};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use std::sync::OnceLock;

/// Mean squared error of each predicted patch: the mean over the last axis of `(prediction - target)^2`, where the target
/// is the patch or, with `Some(eps)`, the patch standardised by itself: `(x - mean) / sqrt(var + eps)`, the variance with
/// the divisor `dim - 1`. predictions and pixels: `[.., dim]`, result: `[..]`; f32 or f64. Their mean is the loss; apart,
/// they are what diagnostics sort by. No gradient reaches the pixels. Sources: RandSAC specification, section 8 (eps 1e-6);
/// MOCA specification, pixel target.
///
/// # Errors
/// Shapes or dtypes that differ, a scalar, patches of no value, or of one with `Some(eps)`: its variance has no value; an
/// eps that is negative or not finite; or a dtype that is not f32 or f64.
pub fn pixel_loss(predictions: &Tensor, pixels: &Tensor, eps: Option<f64>) -> Result<Tensor> {
    let op = "pixel_loss";
    input::same_float(op, predictions, pixels)?;
    let (_, dim) = input::rows(op, predictions)?;
    input::shape(op, "pixels", pixels, predictions.dims())?;
    if dim == 0 {
        return Err(Error::shape(op, "patches of at least one value", predictions.dims()));
    }
    if let Some(eps) = eps {
        input::not_negative(op, "eps", eps)?;
        if dim == 1 {
            let expected = "patches of at least two values: that of one has no variance to standardise by";
            return Err(Error::shape(op, expected, pixels.dims()));
        }
    }
    if !cpu::on_cpu(predictions) {
        return reference::pixel_loss(predictions, pixels, eps);
    }
    let pixels = pixels.detach().contiguous()?;
    Ok(predictions.contiguous()?.apply_op1(PixelLoss { pixels, dim, eps, stats: OnceLock::new() })?)
}

struct PixelLoss {
    pixels: Tensor,
    dim: usize,
    eps: Option<f64>,
    /// Level and scale of every patch, from the forward pass: the target is `(x - level) * scale`. [rows, 2]
    stats: OnceLock<Vec<f64>>,
}

/// Differences of one step, whose squares are added in lanes.
const BLOCK: usize = 256;

vectorised! {
    fn row_losses / row_losses_at<T, ISA>(
        predictions: &[T], pixels: &[T], dim: usize, eps: Option<f64>, losses: &mut [T], stats: &mut [f64],
    ) {
        let rows = predictions.chunks_exact(dim).zip(pixels.chunks_exact(dim));
        for (((p, x), loss), stats) in rows.zip(losses).zip(stats.chunks_exact_mut(2)) {
            let (level, scale) = match eps {
                Some(eps) => standard::<T, ISA>(x, eps),
                None => (T::zero(), T::one()),
            };
            let sum = squares::<T, ISA>(x, |x, i| p[i] - (x - level) * scale);
            *loss = sum / T::of(dim as f64);
            stats[0] = level.wide();
            stats[1] = scale.wide();
        }
    }
}

/// The mean of a patch and the reciprocal of its deviation.
#[inline(always)]
fn standard<T: Real, const ISA: u8>(x: &[T], eps: f64) -> (T, T) {
    let mean = sum_of(x) / T::of(x.len() as f64);
    let variance = squares::<T, ISA>(x, |x, _| x - mean) / T::of((x.len() - 1) as f64);
    (mean, T::one() / (variance + T::of(eps)).root())
}

/// The sum of the squares of what `f` makes of every element and its index.
#[inline(always)]
fn squares<T: Real, const ISA: u8>(x: &[T], f: impl Fn(T, usize) -> T) -> T {
    let (mut buffer, mut sum) = ([T::zero(); BLOCK], T::zero());
    for (block, x) in x.chunks(BLOCK).enumerate() {
        let buffer = &mut buffer[..x.len()];
        for i in 0..x.len() {
            buffer[i] = f(x[i], block * BLOCK + i);
        }
        sum += dot::<T, ISA>(buffer, buffer);
    }
    sum
}

vectorised! {
    fn gradients / gradients_at<T, ISA>(
        predictions: &[T], pixels: &[T], g: &[T], stats: &[f64], dim: usize, dp: &mut [T],
    ) {
        let rows = predictions.chunks_exact(dim).zip(pixels.chunks_exact(dim)).zip(dp.chunks_exact_mut(dim));
        for ((((p, x), dp), g), stats) in rows.zip(g).zip(stats.chunks_exact(2)) {
            let (level, scale, share) = (T::of(stats[0]), T::of(stats[1]), *g * T::of(2.0 / dim as f64));
            for i in 0..dim {
                dp[i] = (p[i] - (x[i] - level) * scale) * share;
            }
        }
    }
}

impl PixelLoss {
    fn losses<T: Real>(&self, predictions: &[T], pixels: &[T]) -> Vec<T> {
        let (dim, group) = (self.dim, cpu::rows_of(self.dim));
        let rows = predictions.len() / dim;
        let (mut losses, mut stats) = (vec![T::zero(); rows], vec![0.0; 2 * rows]);
        cpu::for_chunk_pairs((&mut losses, group), (&mut stats, 2 * group), pixels.len(), |i, losses, stats| {
            let here = i * group * dim..(i * group + losses.len()) * dim;
            row_losses(&predictions[here.clone()], &pixels[here], dim, self.eps, losses, stats);
        });
        // One instance per call, so the cell is empty.
        let _ = self.stats.set(stats);
        losses
    }
}

impl CustomOp1 for PixelLoss {
    fn name(&self) -> &'static str {
        "pixel_loss"
    }

    fn cpu_fwd(&self, predictions: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let leading = &layout.dims()[..layout.dims().len() - 1];
        by_dtype!("pixel_loss", cpu::dtype(predictions), T => {
            let losses = self.losses::<T>(cpu::slice(predictions, layout)?, &Values::of(&self.pixels)?);
            Ok((cpu::storage(losses), Shape::from(leading)))
        })
    }

    fn bwd(&self, predictions: &Tensor, _losses: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (dim, group, g) = (self.dim, cpu::rows_of(self.dim), g.contiguous()?);
        let stats = self.stats.get().map_or(&[][..], Vec::as_slice);
        by_dtype!("pixel_loss", predictions.dtype(), T => {
            let (values, pixels) = (Values::<T>::of(predictions)?, Values::<T>::of(&self.pixels)?);
            let g = Values::<T>::of(&g)?;
            let dp = cpu::fill_chunks(values.len(), group * dim, values.len(), |i, dp: &mut [T]| {
                let here = i * group * dim..i * group * dim + dp.len();
                let (g, stats) = (&g[i * group..], &stats[i * group * 2..]);
                gradients(&values[here.clone()], &pixels[here], g, stats, dim, dp);
            });
            Ok(Some(cpu::tensor(dp, predictions.shape())?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, pixel_loss};
    use crate::check::{check_large, check_op_with, output_and_gradients, same, same_for_any_threads, sample};
    use crate::levels::{same_on_all, values};
    use crate::{Error, backward, reference};
    use candle_core::{DType, Device, Tensor, Var};

    /// As the specifications have it.
    const EPS: Option<f64> = Some(1e-6);

    #[test]
    fn agrees_with_its_reference_and_its_gradient() {
        for shape in [&[2][..], &[1, 2], &[5, 3], &[3, 16], &[2, 33], &[1, 300], &[2, 3, 12], &[4, 1]] {
            for eps in [None, EPS, Some(0.5)] {
                if eps.is_some() && shape[shape.len() - 1] == 1 {
                    continue;
                }
                let (predictions, pixels) = (sample(1, shape).unwrap(), sample(2, shape).unwrap());
                check_op_with(
                    &[predictions],
                    &[pixels],
                    |v, x| pixel_loss(&v[0], &x[0], eps),
                    |v, x| reference::pixel_loss(&v[0], &x[0], eps),
                )
                .unwrap();
            }
        }
    }

    #[test]
    fn many_patches_match_as_well() {
        let (predictions, pixels) = (sample(1, (700, 67)).unwrap(), sample(2, (700, 67)).unwrap());
        let pixels = pixels.to_dtype(DType::F32).unwrap();
        for eps in [None, EPS] {
            let run = |v: &[Tensor], loss: fn(&Tensor, &Tensor, Option<f64>) -> crate::Result<Tensor>| {
                loss(&v[0], &pixels.to_dtype(v[0].dtype())?, eps)
            };
            let inputs = std::slice::from_ref(&predictions);
            check_large(inputs, |v| run(v, pixel_loss), |v| run(v, reference::pixel_loss)).unwrap();
        }
    }

    #[test]
    fn the_variance_is_the_unbiased_one() {
        // Mean 3, squares 4 + 0 + 4 over 2: variance 4, targets -1, 0, 1.
        let pixels = Tensor::new(&[[1_f64, 3.0, 5.0]], &Device::Cpu).unwrap();
        let zeros = pixels.zeros_like().unwrap();
        let loss = |eps| pixel_loss(&zeros, &pixels, eps).unwrap().to_vec1::<f64>().unwrap()[0];
        assert!((loss(Some(0.0)) - 2.0 / 3.0).abs() < 1e-15);
        assert!((loss(Some(12.0)) - 1.0 / 6.0).abs() < 1e-15);
        assert!((loss(None) - 35.0 / 3.0).abs() < 1e-14);
    }

    #[test]
    fn a_patch_far_from_zero_keeps_its_variance_and_a_flat_one_is_all_zeros() {
        let pixels = (sample(1, (4, 768)).unwrap() + 1e3).unwrap().to_dtype(DType::F32).unwrap();
        let predictions = sample(2, (4, 768)).unwrap();
        let expected = reference::pixel_loss(&predictions, &pixels.to_dtype(DType::F64).unwrap(), EPS).unwrap();
        let got = pixel_loss(&predictions.to_dtype(DType::F32).unwrap(), &pixels, EPS).unwrap();
        // The rounding of the mean: 1e3 at 6e-8, beside a spread of about 1.
        same("losses", &got, &expected, 1e-4).unwrap();
        let flat = (Tensor::ones((2, 768), DType::F32, &Device::Cpu).unwrap() * 0.3).unwrap();
        let loss = pixel_loss(&flat.zeros_like().unwrap(), &flat, EPS).unwrap().to_vec1::<f32>().unwrap();
        assert!(loss.iter().all(|loss| *loss < 1e-6), "{loss:?}");
    }

    #[test]
    fn pixels_get_no_gradient() {
        let predictions = Var::from_tensor(&sample(1, (4, 9)).unwrap()).unwrap();
        let pixels = Var::from_tensor(&sample(2, (4, 9)).unwrap()).unwrap();
        // Also as an inner node of the graph, where candle asks for a gradient by force.
        for pixels_of in [pixels.as_tensor().clone(), (pixels.as_tensor() * 0.5).unwrap()] {
            let loss = pixel_loss(&predictions, &pixels_of, EPS).unwrap().mean_all().unwrap();
            let gradients = backward(&loss).unwrap();
            assert!(gradients.get(&pixels).is_none() && gradients.get(&predictions).is_some());
        }
    }

    #[test]
    fn strided_pixels_give_the_same() {
        let (predictions, pixels) = (sample(1, (5, 7)).unwrap(), sample(2, (7, 5)).unwrap());
        let got = pixel_loss(&predictions, &pixels.t().unwrap(), EPS).unwrap();
        let expected = pixel_loss(&predictions, &pixels.t().unwrap().contiguous().unwrap(), EPS).unwrap();
        same("losses", &got, &expected, 0.0).unwrap();
    }

    #[test]
    fn any_number_of_threads_gives_equal_bits() {
        let (predictions, pixels) = (sample(1, (701, 67)).unwrap(), sample(2, (701, 67)).unwrap());
        for dtype in [DType::F32, DType::F64] {
            let pixels = pixels.to_dtype(dtype).unwrap();
            same_for_any_threads(|| {
                output_and_gradients(std::slice::from_ref(&predictions), dtype, |v| pixel_loss(&v[0], &pixels, EPS))
            })
            .unwrap();
        }
    }

    #[test]
    fn a_nan_stays_in_its_patch_and_no_patches_have_no_loss() {
        let numbers = Tensor::new(&[[1_f32, 2.0, 3.0], [1.0, 2.0, 4.0]], &Device::Cpu).unwrap();
        let broken = Tensor::new(&[[1_f32, f32::NAN, 3.0], [1.0, 2.0, 4.0]], &Device::Cpu).unwrap();
        for (predictions, pixels) in [(&broken, &numbers), (&numbers, &broken)] {
            for eps in [None, EPS] {
                let leaf = Var::from_tensor(predictions).unwrap();
                let losses = pixel_loss(&leaf, pixels, eps).unwrap();
                let gradient =
                    backward(&losses.sum_all().unwrap()).unwrap().get(&leaf).unwrap().to_vec2::<f32>().unwrap();
                let losses = losses.to_vec1::<f32>().unwrap();
                assert!(losses[0].is_nan() && losses[1].is_finite(), "{losses:?}");
                assert!(gradient[0][1].is_nan() && gradient[1].iter().all(|value| value.is_finite()), "{gradient:?}");
            }
        }
        let none = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(pixel_loss(&none, &none, EPS).unwrap().dims(), [0]);
        let none = Tensor::zeros((2, 0, 3), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(pixel_loss(&none, &none, None).unwrap().dims(), [2, 0]);
    }

    #[test]
    fn other_shapes_and_dtypes_are_refused() {
        let (p, x) = (sample(1, (3, 4)).unwrap(), sample(2, (3, 4)).unwrap());
        assert!(matches!(pixel_loss(&p, &sample(2, (3, 5)).unwrap(), EPS), Err(Error::Shape { op: "pixel_loss", .. })));
        assert!(matches!(pixel_loss(&p, &sample(2, (1, 4)).unwrap(), EPS), Err(Error::Shape { .. })));
        let scalar = Tensor::zeros((), DType::F64, &Device::Cpu).unwrap();
        assert!(matches!(pixel_loss(&scalar, &scalar, None), Err(Error::Shape { .. })));
        let empty = Tensor::zeros((3, 0), DType::F64, &Device::Cpu).unwrap();
        assert!(matches!(pixel_loss(&empty, &empty, None), Err(Error::Shape { .. })));
        let single = sample(1, (3, 1)).unwrap();
        let message = pixel_loss(&single, &single, EPS).unwrap_err().to_string();
        assert!(message.contains("that of one has no variance") && message.contains("[3, 1]"), "{message}");
        assert!(matches!(pixel_loss(&p, &x.to_dtype(DType::F32).unwrap(), EPS), Err(Error::Dtype { .. })));
        let half = p.to_dtype(DType::BF16).unwrap();
        assert!(matches!(pixel_loss(&half, &half, EPS), Err(Error::Dtype { got: DType::BF16, .. })));
        for eps in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(pixel_loss(&p, &x, Some(eps)), Err(Error::Argument { .. })));
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same() {
        // More than one block of the row, and a ragged end.
        let (rows, dim) = (3, BLOCK + 37);
        let (p, x, g) = (values(1, rows * dim), values(2, rows * dim), values(3, rows));
        for eps in [None, EPS] {
            same_on_all(1e-5, |level| {
                let (mut losses, mut stats, mut dp) = (vec![0.0; rows], vec![0.0; 2 * rows], vec![0.0; p.len()]);
                super::row_losses_at(level, &p, &x, dim, eps, &mut losses, &mut stats);
                super::gradients_at(level, &p, &x, &g, &stats, dim, &mut dp);
                [losses, dp].concat()
            });
        }
    }
}
