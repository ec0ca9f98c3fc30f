//! Layer norm and RMS norm over the last axis: one operator, with or without the mean.
//!
//! The mean and the reciprocal deviation of each row are kept from the forward pass; the backward pass reads the input
//! once for all three gradients.

use crate::cpu::{self, Real, Values, by_dtype};
use crate::simd::{dot, sum_of, vectorised};
use crate::{Result, input, reference};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};
use std::sync::OnceLock;

/// `x / sqrt(mean(x^2) + eps) * w` over the last axis. x: `[.., dim]`, w: `[dim]`; f32 or f64.
///
/// # Errors
/// A scalar, a weight of another size or dtype, an `eps` that is negative or not finite, or a dtype that is not f32 or
/// f64.
pub fn rms_norm(x: &Tensor, w: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    check("rms_norm", x, w, None, eps)?;
    if !cpu::on_cpu(x) {
        return reference::rms_norm(x, w, eps);
    }
    apply(x, w, None, Norm::new(false, eps))
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * w + b` over the last axis, with the population variance.
/// x: `[.., dim]`, w and b: `[dim]`; f32 or f64.
///
/// # Errors
/// As [`rms_norm`]; a bias of another size or dtype.
pub fn layer_norm(x: &Tensor, w: Option<&Tensor>, b: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    check("layer_norm", x, w, b, eps)?;
    if !cpu::on_cpu(x) {
        return reference::layer_norm(x, w, b, eps);
    }
    apply(x, w, b, Norm::new(true, eps))
}

fn check(op: &'static str, x: &Tensor, w: Option<&Tensor>, b: Option<&Tensor>, eps: f64) -> Result<()> {
    let (_, dim) = input::rows(op, x)?;
    input::float(op, x)?;
    input::not_negative(op, "eps", eps)?;
    for (what, vector) in [("weight", w), ("bias", b)] {
        if let Some(vector) = vector {
            input::same_float(op, x, vector)?;
            input::shape(op, what, vector, &[dim])?;
        }
    }
    Ok(())
}

/// An absent weight is all ones and an absent bias all zeros: `dim` numbers more to read, one path to prove.
fn apply(x: &Tensor, w: Option<&Tensor>, b: Option<&Tensor>, op: Norm) -> Result<Tensor> {
    let dim = x.dims()[x.rank() - 1];
    let w = w.map_or_else(|| Tensor::ones(dim, x.dtype(), x.device()), Tensor::contiguous)?;
    let b = b.map_or_else(|| Tensor::zeros(dim, x.dtype(), x.device()), Tensor::contiguous)?;
    Ok(x.contiguous()?.apply_op3(&w, &b, op)?)
}

pub(crate) struct Norm {
    centred: bool,
    eps: f64,
    /// Mean and reciprocal deviation of every row, from the forward pass. [rows, 2]
    rows: OnceLock<Vec<f64>>,
}

impl Norm {
    pub(crate) fn new(centred: bool, eps: f64) -> Self {
        Self { centred, eps, rows: OnceLock::new() }
    }

    pub(crate) fn forward<T: Real>(&self, x: &[T], w: &[T], b: &[T]) -> Vec<T> {
        let dim = w.len();
        let group = cpu::rows_of(dim);
        let mut stats = vec![0.0; 2 * x.len().checked_div(dim).unwrap_or(0)];
        let sizes = (x.len(), group * dim);
        let y = cpu::fill_chunks_beside(sizes, (&mut stats, group * 2), x.len(), |i, y: &mut [T], stats| {
            normalise(&x[i * group * dim..][..y.len()], w, b, self.centred, self.eps, y, stats);
        });
        // One instance per call, so the cell is empty.
        let _ = self.rows.set(stats);
        y
    }

    /// Gradients of x, and of w and b side by side.
    pub(crate) fn backward<T: Real>(&self, x: &[T], w: &[T], g: &[T]) -> (Vec<T>, Vec<T>) {
        let dim = w.len();
        let group = cpu::rows_of(dim);
        let stats = self.rows.get().map_or(&[][..], Vec::as_slice);
        let groups = x.len().div_ceil((group * dim).max(1));
        let mut partial = vec![T::zero(); groups * 2 * dim]; // [groups, 2, dim]
        let sizes = (x.len(), group * dim);
        let dx = cpu::fill_chunks_beside(sizes, (&mut partial, 2 * dim), x.len(), |i, dx: &mut [T], partial| {
            let (x, g) = (&x[i * group * dim..][..dx.len()], &g[i * group * dim..][..dx.len()]);
            let (dw, db) = partial.split_at_mut(dim);
            gradients(x, w, g, &stats[i * group * 2..], self.centred, dx, dw, db);
        });
        (dx, cpu::column_sums(&partial, 2 * dim))
    }
}

vectorised! {
    fn normalise / normalise_at<T, ISA>(x: &[T], w: &[T], b: &[T], centred: bool, eps: f64, y: &mut [T], stats: &mut [f64]) {
        let dim = w.len();
        let (b, share) = (&b[..dim], T::one() / T::of(dim as f64));
        for ((x, y), stats) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)).zip(stats.chunks_exact_mut(2)) {
            let mean = if centred { sum_of(x) * share } else { T::zero() };
            for i in 0..dim {
                y[i] = x[i] - mean;
            }
            let scale = T::one() / (dot::<T, ISA>(y, y) * share + T::of(eps)).root();
            for i in 0..dim {
                y[i] = T::fused::<ISA>(y[i] * scale, w[i], b[i]);
            }
            stats[0] = mean.wide();
            stats[1] = scale.wide();
        }
    }
}

vectorised! {
    fn gradients / gradients_at<T, ISA>(
        x: &[T], w: &[T], g: &[T], stats: &[f64], centred: bool, dx: &mut [T], dw: &mut [T], db: &mut [T],
    ) {
        let dim = w.len();
        let (dw, db, share) = (&mut dw[..dim], &mut db[..dim], T::one() / T::of(dim as f64));
        let rows = x.chunks_exact(dim).zip(g.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim));
        for (((x, g), dx), stats) in rows.zip(stats.chunks_exact(2)) {
            let (mean, scale) = (T::of(stats[0]), T::of(stats[1]));
            for i in 0..dim {
                dw[i] = T::fused::<ISA>(g[i], (x[i] - mean) * scale, dw[i]);
                db[i] += g[i];
                dx[i] = g[i] * w[i];
            }
            // The gradient loses its part along the normalised row, and along the ones where the mean was taken off.
            let level = if centred { sum_of(dx) * share } else { T::zero() };
            let along = dot_beyond::<T, ISA>(dx, x, mean) * scale * scale * share;
            for i in 0..dim {
                dx[i] = (dx[i] - level - (x[i] - mean) * along) * scale;
            }
        }
    }
}

/// The sum of `a * (b - level)`: taking the level off afterwards would cancel where rows lie far from zero.
#[inline(always)]
fn dot_beyond<T: Real, const ISA: u8>(a: &[T], b: &[T], level: T) -> T {
    const LANES: usize = 32;
    let mut lanes = [T::zero(); LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let rest = rest.fold(T::zero(), |sum, (a, b)| T::fused::<ISA>(*a, *b - level, sum));
    for (a, b) in a_chunks.zip(b_chunks) {
        for l in 0..LANES {
            lanes[l] = T::fused::<ISA>(a[l], b[l] - level, lanes[l]);
        }
    }
    sum_of(&lanes) + rest
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!("norm", cpu::dtype(x), T => {
            let y = self.forward::<T>(cpu::slice(x, x_layout)?, cpu::slice(w, w_layout)?, cpu::slice(b, b_layout)?);
            Ok((cpu::storage(y), x_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        by_dtype!("norm", x.dtype(), T => {
            let g = g.contiguous()?;
            let (dx, vectors) = self.backward::<T>(&Values::of(x)?, &Values::of(w)?, &Values::of(&g)?);
            let vectors = cpu::tensor(vectors, (2, w.elem_count()))?;
            let dx = x.track_op().then(|| cpu::tensor(dx, x.shape())).transpose()?;
            let dw = w.track_op().then(|| vectors.get(0)).transpose()?;
            let db = b.track_op().then(|| vectors.get(1)).transpose()?;
            Ok((dx, dw, db))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{layer_norm, rms_norm};
    use crate::check::{check_large, check_op, output_and_gradients, same, same_for_any_threads, sample};
    use crate::levels::{same_on_all, values};
    use crate::{Error, reference};
    use candle_core::{DType, Device, Tensor};

    const EPS: f64 = 1e-5;

    type Norm = fn(&Tensor, Option<&Tensor>, Option<&Tensor>, f64) -> crate::Result<Tensor>;

    /// Ragged sizes: below, at and just above a lane group, one column, one row, three axes.
    const SHAPES: [&[usize]; 7] = [&[1], &[5, 1], &[3, 7], &[2, 16], &[3, 33], &[1, 70], &[2, 3, 9]];

    fn inputs(shape: &[usize], vectors: u64) -> Vec<Tensor> {
        let dim = shape[shape.len() - 1];
        let mut inputs = vec![sample(1, shape).unwrap()];
        inputs.extend((0..vectors).map(|i| sample(2 + i, dim).unwrap()));
        inputs
    }

    #[test]
    fn rms_norm_agrees_with_its_reference_and_its_gradient() {
        for shape in SHAPES {
            // In a single column only eps keeps the output from being a sign, whose gradient is all rounding.
            let eps = if shape[shape.len() - 1] == 1 { 0.5 } else { EPS };
            for (vectors, w) in [(0, None), (1, Some(1))] {
                let weight = |v: &'_ [Tensor]| w.map(|i: usize| v[i].clone());
                check_op(
                    &inputs(shape, vectors),
                    |v| rms_norm(&v[0], weight(v).as_ref(), eps),
                    |v| reference::rms_norm(&v[0], weight(v).as_ref(), eps),
                )
                .unwrap();
            }
        }
    }

    #[test]
    fn layer_norm_agrees_with_its_reference_and_its_gradient() {
        // One column is left out: its output is the bias whatever x holds, and differences of nothing judge nothing.
        for shape in SHAPES.into_iter().filter(|shape| shape[shape.len() - 1] > 1) {
            for (vectors, w, b) in [(0, None, None), (1, Some(1), None), (1, None, Some(1)), (2, Some(1), Some(2))] {
                let run = |v: &[Tensor], norm: Norm| norm(&v[0], w.map(|i: usize| &v[i]), b.map(|i: usize| &v[i]), EPS);
                check_op(&inputs(shape, vectors), |v| run(v, layer_norm), |v| run(v, reference::layer_norm)).unwrap();
            }
        }
    }

    #[test]
    fn many_rows_match_as_well() {
        let inputs = inputs(&[700, 67], 2);
        let rms = |v: &[Tensor], norm: fn(&Tensor, Option<&Tensor>, f64) -> _| norm(&v[0], Some(&v[1]), EPS);
        check_large(&inputs[..2], |v| rms(v, rms_norm), |v| rms(v, reference::rms_norm)).unwrap();
        let layer = |v: &[Tensor], norm: Norm| norm(&v[0], Some(&v[1]), Some(&v[2]), EPS);
        check_large(&inputs, |v| layer(v, layer_norm), |v| layer(v, reference::layer_norm)).unwrap();
    }

    #[test]
    fn a_row_far_from_zero_keeps_its_variance() {
        let x = (sample(1, (4, 65)).unwrap() + 1e4).unwrap();
        let expected = reference::layer_norm(&x, None, None, EPS).unwrap();
        let got = layer_norm(&x.to_dtype(DType::F32).unwrap(), None, None, EPS).unwrap();
        // f32 at 1e4 rounds to 1e-3 of the spread; sums of squares minus the squared mean would lose all of it.
        same("layer_norm", &got, &expected, 5e-3).unwrap();
    }

    #[test]
    fn any_number_of_threads_gives_equal_bits() {
        let inputs = inputs(&[700, 67], 2);
        for dtype in [DType::F32, DType::F64] {
            same_for_any_threads(|| {
                let mut all = output_and_gradients(&inputs[..2], dtype, |v| rms_norm(&v[0], Some(&v[1]), EPS))?;
                let layer = |v: &[Tensor]| layer_norm(&v[0], Some(&v[1]), Some(&v[2]), EPS);
                all.extend(output_and_gradients(&inputs, dtype, layer)?);
                Ok(all)
            })
            .unwrap();
        }
    }

    #[test]
    fn a_nan_stays_in_its_row_and_no_rows_are_no_rows() {
        let x = Tensor::new(&[[1_f32, f32::NAN, 2.0], [1.0, 2.0, 3.0]], &Device::Cpu).unwrap();
        for y in [rms_norm(&x, None, EPS).unwrap(), layer_norm(&x, None, None, EPS).unwrap()] {
            let y = y.to_vec2::<f32>().unwrap();
            assert!(y[0].iter().all(|value| value.is_nan()) && y[1].iter().all(|value| value.is_finite()), "{y:?}");
        }
        for shape in [[0, 3], [3, 0]] {
            let x = Tensor::zeros(&shape, DType::F32, &Device::Cpu).unwrap();
            let w = Tensor::zeros(shape[1], DType::F32, &Device::Cpu).unwrap();
            assert_eq!(rms_norm(&x, Some(&w), EPS).unwrap().dims(), shape);
            assert_eq!(layer_norm(&x, Some(&w), Some(&w), EPS).unwrap().dims(), shape);
        }
    }

    #[test]
    fn other_shapes_and_dtypes_are_refused() {
        let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        let scalar = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
        let short = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
        let double = Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap();
        let half = x.to_dtype(DType::BF16).unwrap();
        assert!(matches!(rms_norm(&x, Some(&short), EPS), Err(Error::Shape { op: "rms_norm", .. })));
        assert!(matches!(layer_norm(&x, None, Some(&short), EPS), Err(Error::Shape { op: "layer_norm", .. })));
        assert!(matches!(rms_norm(&scalar, None, EPS), Err(Error::Shape { .. })));
        assert!(matches!(rms_norm(&x, Some(&double), EPS), Err(Error::Dtype { .. })));
        assert!(matches!(layer_norm(&half, None, None, EPS), Err(Error::Dtype { got: DType::BF16, .. })));
        assert!(matches!(rms_norm(&x, None, f64::NAN), Err(Error::Argument { .. })));
    }

    #[test]
    fn every_instruction_set_gives_the_same() {
        let (rows, dim) = (3, 70);
        let (x, g, w, b) = (values(1, rows * dim), values(2, rows * dim), values(3, dim), values(4, dim));
        for centred in [false, true] {
            same_on_all(1e-5, |level| {
                let (mut y, mut stats) = (vec![0.0; x.len()], vec![0.0; 2 * rows]);
                super::normalise_at(level, &x, &w, &b, centred, EPS, &mut y, &mut stats);
                let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; dim], vec![0.0; dim]);
                super::gradients_at(level, &x, &w, &g, &stats, centred, &mut dx, &mut dw, &mut db);
                [y, dx, dw, db].concat()
            });
        }
    }
}
