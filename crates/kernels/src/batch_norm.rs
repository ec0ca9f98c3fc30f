//! Batch norm over the rows of a matrix: columns are centred and scaled by their own statistics or by given ones.
//!
//! Sums over rows are f64 in groups of fixed size, and the variance is summed from differences, so columns far from zero
//! keep it. The mean goes into the rows in two parts for the same reason.

use crate::cpu::{self, Real, Values, by_dtype};
use crate::simd::vectorised;
use crate::{Error, Result, input, reference};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};

/// What [`batch_norm`] makes of a matrix.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// The normalised rows. [rows, dim]
    pub y: Tensor,
    /// Mean of each column; no graph. `[dim]`, in the dtype of y
    pub mean: Tensor,
    /// Variance of each column with the divisor `rows - 1`, which is what running statistics hold; no graph. `[dim]`, in
    /// the dtype of y
    pub variance: Tensor,
}

/// `(x - mean) / sqrt(var + eps) * w + b`, with mean and variance (divisor `rows`) over the rows of `x`, and these
/// statistics for the caller's running ones. x: [rows, dim], w and b: `[dim]`; f32 or f64. Source: MOCA specification,
/// section 7 (the rows are the words of a codebook).
///
/// # Errors
/// Another rank, fewer than two rows, a weight or bias of another size or dtype, an `eps` that is negative or not finite,
/// or a dtype that is not f32 or f64.
pub fn batch_norm(x: &Tensor, w: Option<&Tensor>, b: Option<&Tensor>, eps: f64) -> Result<BatchNorm> {
    let op = "batch_norm";
    let (rows, dim) = check(op, x, &[("weight", w), ("bias", b)], eps)?;
    if rows < 2 {
        return Err(Error::shape(op, "at least two rows: one has no variance", x.dims()));
    }
    if !cpu::on_cpu(x) {
        return reference::batch_norm(x, w, b, eps);
    }
    let x = x.contiguous()?;
    by_dtype!(op, x.dtype(), T => {
        let (mean, square) = statistics::<T>(&Values::of(&x)?, rows, dim);
        let column = |of: &[f64], scale: f64| cpu::tensor(of.iter().map(|v| T::of(v * scale)).collect::<Vec<T>>(), dim);
        let (means, variance) = (column(&mean, 1.0)?, column(&square, 1.0 / (rows - 1) as f64)?);
        let scale = square.iter().map(|square| 1.0 / (square / rows as f64 + eps).sqrt()).collect();
        let y = apply(&x, w, b, Columns { mean, scale, own: true })?;
        Ok(BatchNorm { y, mean: means, variance })
    })
}

/// `(x - mean) / sqrt(variance + eps) * w + b` with given statistics: the evaluation form. No gradient reaches them.
/// x: [rows, dim], mean, variance, w and b: `[dim]`; f32 or f64.
///
/// # Errors
/// Another rank, statistics, weight or bias of another size or dtype, an `eps` that is negative or not finite, or a dtype
/// that is not f32 or f64.
pub fn batch_norm_with(
    x: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    w: Option<&Tensor>,
    b: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let op = "batch_norm_with";
    check(op, x, &[("mean", Some(mean)), ("variance", Some(variance)), ("weight", w), ("bias", b)], eps)?;
    if !cpu::on_cpu(x) {
        return reference::batch_norm_with(x, mean, variance, w, b, eps);
    }
    let wide = |of: &Tensor| of.detach().to_dtype(candle_core::DType::F64)?.to_vec1::<f64>();
    let scale = wide(variance)?.into_iter().map(|variance| 1.0 / (variance + eps).sqrt()).collect();
    apply(&x.contiguous()?, w, b, Columns { mean: wide(mean)?, scale, own: false })
}

fn check(op: &'static str, x: &Tensor, vectors: &[(&str, Option<&Tensor>)], eps: f64) -> Result<(usize, usize)> {
    input::float(op, x)?;
    let &[rows, dim] = x.dims() else { return Err(Error::shape(op, "x [rows, dim]", x.dims())) };
    for (what, vector) in vectors {
        if let Some(vector) = vector {
            input::same_float(op, x, vector)?;
            input::shape(op, what, vector, &[dim])?;
        }
    }
    input::not_negative(op, "eps", eps)?;
    Ok((rows, dim))
}

/// An absent weight is all ones and an absent bias all zeros: one path to prove.
fn apply(x: &Tensor, w: Option<&Tensor>, b: Option<&Tensor>, op: Columns) -> Result<Tensor> {
    let dim = x.dims()[1];
    let w = w.map_or_else(|| Tensor::ones(dim, x.dtype(), x.device()), Tensor::contiguous)?;
    let b = b.map_or_else(|| Tensor::zeros(dim, x.dtype(), x.device()), Tensor::contiguous)?;
    Ok(x.apply_op3(&w, &b, op)?)
}

/// Mean of each column, and the sum of the squares of what is left without it.
fn statistics<T: Real>(x: &[T], rows: usize, dim: usize) -> (Vec<f64>, Vec<f64>) {
    let row = |row: usize| &x[row * dim..][..dim];
    let mut mean = cpu::sum_rows(rows, dim, |i, sum: &mut [f64]| add(row(i), sum));
    mean.iter_mut().for_each(|mean| *mean /= rows as f64);
    let square = cpu::sum_rows(rows, dim, |i, sum: &mut [f64]| add_squares(row(i), &mean, sum));
    (mean, square)
}

vectorised! {
    fn add / add_at<T, ISA>(x: &[T], sum: &mut [f64]) {
        for (x, sum) in x.iter().zip(sum) {
            *sum += x.wide();
        }
    }
}

vectorised! {
    fn add_squares / add_squares_at<T, ISA>(x: &[T], mean: &[f64], sum: &mut [f64]) {
        for ((x, mean), sum) in x.iter().zip(mean).zip(sum) {
            let apart = x.wide() - mean;
            *sum += apart * apart;
        }
    }
}

/// Columns by f64 statistics.
struct Columns {
    mean: Vec<f64>,
    /// Reciprocal deviation.
    scale: Vec<f64>,
    /// Whether the statistics are those of the rows, so that gradients pass through them.
    own: bool,
}

/// The statistics in the type of the rows.
struct Parts<T> {
    /// The mean, and what its rounding left.
    mean: Vec<T>,
    rest: Vec<T>,
    scale: Vec<T>,
}

impl Columns {
    fn parts<T: Real>(&self) -> Parts<T> {
        let mean: Vec<T> = self.mean.iter().map(|mean| T::of(*mean)).collect();
        let rest = self.mean.iter().zip(&mean).map(|(exact, mean)| T::of(exact - mean.wide())).collect();
        Parts { mean, rest, scale: self.scale.iter().map(|scale| T::of(*scale)).collect() }
    }

    fn forward<T: Real>(&self, x: &[T], w: &[T], b: &[T]) -> Vec<T> {
        let (dim, parts) = (w.len(), self.parts::<T>());
        let chunk = cpu::rows_of(dim) * dim;
        cpu::fill_chunks(x.len(), chunk, x.len(), |i, y: &mut [T]| {
            normalise(&x[i * chunk..][..y.len()], &parts, w, b, y);
        })
    }

    /// Gradients of w and b, side by side.
    fn vectors<T: Real>(&self, x: &[T], g: &[T]) -> Vec<f64> {
        let dim = self.mean.len();
        let (rows, parts) = (x.len().checked_div(dim).unwrap_or(0), self.parts::<T>());
        cpu::sum_rows(rows, 2 * dim, |row, sum: &mut [f64]| {
            let here = row * dim..(row + 1) * dim;
            let (dw, db) = sum.split_at_mut(dim);
            add_gradients(&x[here.clone()], &g[here], &parts, dw, db);
        })
    }

    /// The gradient of x, given those of w and b.
    fn backward<T: Real>(&self, x: &[T], w: &[T], g: &[T], vectors: &[f64]) -> Vec<T> {
        let (dim, parts) = (w.len(), self.parts::<T>());
        let share = if self.own { dim as f64 / x.len() as f64 } else { 0.0 };
        let (along, level) = vectors.split_at(dim);
        let mean = |of: &[f64]| of.iter().map(|sum| T::of(sum * share)).collect::<Vec<T>>();
        let (along, level) = (mean(along), mean(level));
        let chunk = cpu::rows_of(dim) * dim;
        cpu::fill_chunks(x.len(), chunk, x.len(), |i, dx: &mut [T]| {
            let here = i * chunk..i * chunk + dx.len();
            gradients(&x[here.clone()], &g[here], &parts, w, &along, &level, dx);
        })
    }
}

vectorised! {
    fn normalise / normalise_at<T, ISA>(x: &[T], parts: &Parts<T>, w: &[T], b: &[T], y: &mut [T]) {
        let dim = w.len();
        let (mean, rest, scale) = (&parts.mean[..dim], &parts.rest[..dim], &parts.scale[..dim]);
        for (x, y) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)) {
            for i in 0..dim {
                y[i] = T::fused::<ISA>((x[i] - mean[i] - rest[i]) * scale[i], w[i], b[i]);
            }
        }
    }
}

vectorised! {
    /// Adds one row to the gradients of weight and bias.
    fn add_gradients / add_gradients_at<T, ISA>(x: &[T], g: &[T], parts: &Parts<T>, dw: &mut [f64], db: &mut [f64]) {
        let dim = x.len();
        let (mean, rest, scale) = (&parts.mean[..dim], &parts.rest[..dim], &parts.scale[..dim]);
        let (g, dw, db) = (&g[..dim], &mut dw[..dim], &mut db[..dim]);
        for i in 0..dim {
            dw[i] += (g[i] * ((x[i] - mean[i] - rest[i]) * scale[i])).wide();
            db[i] += g[i].wide();
        }
    }
}

vectorised! {
    /// The gradient loses, in each column, its mean `level` and its part `along` the normalised column.
    fn gradients / gradients_at<T, ISA>(
        x: &[T], g: &[T], parts: &Parts<T>, w: &[T], along: &[T], level: &[T], dx: &mut [T],
    ) {
        let dim = w.len();
        let (mean, rest, scale) = (&parts.mean[..dim], &parts.rest[..dim], &parts.scale[..dim]);
        let (along, level) = (&along[..dim], &level[..dim]);
        for ((x, g), dx) in x.chunks_exact(dim).zip(g.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim)) {
            for i in 0..dim {
                let normal = (x[i] - mean[i] - rest[i]) * scale[i];
                dx[i] = (g[i] - level[i] - normal * along[i]) * (scale[i] * w[i]);
            }
        }
    }
}

impl CustomOp3 for Columns {
    fn name(&self) -> &'static str {
        "batch_norm"
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
        by_dtype!("batch_norm", cpu::dtype(x), T => {
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
        by_dtype!("batch_norm", x.dtype(), T => {
            let (dim, g) = (w.elem_count(), g.contiguous()?);
            let (values, g) = (Values::<T>::of(x)?, Values::<T>::of(&g)?);
            let vectors = self.vectors::<T>(&values, &g);
            let dx = || cpu::tensor(self.backward::<T>(&values, &Values::of(w)?, &g, &vectors), x.shape());
            let half = |of: &[f64]| cpu::tensor(of.iter().map(|sum| T::of(*sum)).collect::<Vec<T>>(), dim);
            let dx = x.track_op().then(dx).transpose()?;
            let dw = w.track_op().then(|| half(&vectors[..dim])).transpose()?;
            let db = b.track_op().then(|| half(&vectors[dim..])).transpose()?;
            Ok((dx, dw, db))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{batch_norm, batch_norm_with};
    use crate::check::{
        check_large, check_op, check_op_with, output_and_gradients, same, same_for_any_threads, sample,
    };
    use crate::levels::{same_on_all, values};
    use crate::{Error, Result, backward, reference};
    use candle_core::{DType, Device, Tensor, Var};

    const EPS: f64 = 1e-5;
    /// Ragged sizes: one column, two rows, around a vector's width.
    const SHAPES: [(usize, usize); 6] = [(2, 3), (5, 1), (3, 7), (9, 16), (4, 33), (6, 70)];
    /// None, weight, bias, both: their places among the inputs.
    const VECTORS: [(usize, Option<usize>, Option<usize>); 4] =
        [(0, None, None), (1, Some(1), None), (1, None, Some(1)), (2, Some(1), Some(2))];

    fn inputs((rows, dim): (usize, usize), vectors: usize) -> Vec<Tensor> {
        let mut inputs = vec![sample(1, (rows, dim)).unwrap()];
        inputs.extend((0..vectors).map(|i| sample(2 + i as u64, dim).unwrap()));
        inputs
    }

    fn variances(dim: usize) -> Tensor {
        (sample(8, dim).unwrap().sqr().unwrap() + 0.3).unwrap()
    }

    #[test]
    fn agrees_with_its_reference_and_its_gradient() {
        for shape in SHAPES {
            // Two rows are plus and minus one but for eps, and differences of nothing judge nothing.
            let eps = if shape.0 < 4 { 0.5 } else { 0.01 };
            for (count, w, b) in VECTORS {
                type Norm = fn(&Tensor, Option<&Tensor>, Option<&Tensor>, f64) -> Result<super::BatchNorm>;
                let run = |v: &[Tensor], norm: Norm| {
                    Ok(norm(&v[0], w.map(|i: usize| &v[i]), b.map(|i: usize| &v[i]), eps)?.y)
                };
                check_op(&inputs(shape, count), |v| run(v, batch_norm), |v| run(v, reference::batch_norm)).unwrap();
            }
        }
    }

    #[test]
    fn given_statistics_agree_with_the_reference_and_the_gradient() {
        for shape in SHAPES.into_iter().chain([(1, 5)]) {
            let constants = [sample(7, shape.1).unwrap(), variances(shape.1)];
            for (count, w, b) in VECTORS {
                type With = fn(&Tensor, &Tensor, &Tensor, Option<&Tensor>, Option<&Tensor>, f64) -> Result<Tensor>;
                let run = |v: &[Tensor], c: &[Tensor], norm: With| {
                    norm(&v[0], &c[0], &c[1], w.map(|i: usize| &v[i]), b.map(|i: usize| &v[i]), EPS)
                };
                check_op_with(
                    &inputs(shape, count),
                    &constants,
                    |v, c| run(v, c, batch_norm_with),
                    |v, c| run(v, c, reference::batch_norm_with),
                )
                .unwrap();
            }
        }
    }

    #[test]
    fn many_rows_match_as_well() {
        let inputs = inputs((1700, 67), 2);
        check_large(
            &inputs,
            |v| Ok(batch_norm(&v[0], Some(&v[1]), Some(&v[2]), EPS)?.y),
            |v| Ok(reference::batch_norm(&v[0], Some(&v[1]), Some(&v[2]), EPS)?.y),
        )
        .unwrap();
    }

    #[test]
    fn its_statistics_are_the_mean_and_the_unbiased_variance() {
        let x = Tensor::new(&[[1_f64, 0.0], [3.0, 0.0], [5.0, 3.0]], &Device::Cpu).unwrap();
        let found = batch_norm(&x, None, None, 0.0).unwrap();
        assert_eq!(found.mean.to_vec1::<f64>().unwrap(), [3.0, 1.0]);
        assert_eq!(found.variance.to_vec1::<f64>().unwrap(), [4.0, 3.0]);
        // Normalised by the other one: 8 / 3 and 2.
        let y = found.y.to_vec2::<f64>().unwrap();
        assert!((y[2][0] - 2.0 / (8.0_f64 / 3.0).sqrt()).abs() < 1e-15 && (y[2][1] - 2.0_f64.sqrt()).abs() < 1e-15);
        let x = sample(1, (700, 33)).unwrap();
        let (got, expected) = (batch_norm(&x, None, None, EPS).unwrap(), x.var(0).unwrap());
        same("variance", &got.variance, &expected, 1e-12).unwrap();
        same("mean", &got.mean, &x.mean(0).unwrap(), 1e-12).unwrap();
        let twin = reference::batch_norm(&x, None, None, EPS).unwrap();
        same("variance", &twin.variance, &expected, 1e-12).unwrap();
        same("mean", &twin.mean, &got.mean, 1e-12).unwrap();
    }

    #[test]
    fn statistics_take_no_part_in_the_graph() {
        let x = Var::from_tensor(&sample(1, (5, 3)).unwrap()).unwrap();
        let found = batch_norm(&x, None, None, EPS).unwrap();
        assert!(found.y.track_op() && !found.mean.track_op() && !found.variance.track_op());
        let mean = Var::from_tensor(&sample(2, 3).unwrap()).unwrap();
        let variance = Var::from_tensor(&variances(3)).unwrap();
        // Also as inner nodes of the graph, where candle asks for a gradient by force.
        let scaled = (variance.as_tensor() * 2.0).unwrap();
        let y = batch_norm_with(&x, &mean, &scaled, None, None, EPS).unwrap();
        let gradients = backward(&y.sum_all().unwrap()).unwrap();
        assert!(gradients.get(&mean).is_none() && gradients.get(&variance).is_none() && gradients.get(&x).is_some());
    }

    #[test]
    fn columns_far_from_zero_keep_their_variance_and_their_gradient() {
        // 1e4 in f32 has steps of 1e-3, but what is stored is exact: nothing more may be lost than in columns near zero.
        let x = (sample(1, (3000, 9)).unwrap() + 1e4).unwrap().to_dtype(DType::F32).unwrap();
        let exact = x.to_dtype(DType::F64).unwrap();
        let (got, expected) =
            (batch_norm(&x, None, None, EPS).unwrap(), reference::batch_norm(&exact, None, None, EPS).unwrap());
        same("y", &got.y, &expected.y, 1e-6).unwrap();
        same("variance", &got.variance, &expected.variance, 1e-6).unwrap();
        let run = |dtype, norm: &dyn Fn(&Tensor) -> Result<Tensor>| {
            output_and_gradients(std::slice::from_ref(&x), dtype, |v| norm(&v[0])).unwrap()
        };
        let got = run(DType::F32, &|x| Ok(batch_norm(x, None, None, EPS)?.y));
        let expected = run(DType::F64, &|x| Ok(reference::batch_norm(x, None, None, EPS)?.y));
        same("gradient", &got[1], &expected[1], 1e-6).unwrap();
    }

    #[test]
    fn its_own_statistics_given_back_give_the_same() {
        let (x, w, b) = (sample(1, (40, 5)).unwrap(), sample(2, 5).unwrap(), sample(3, 5).unwrap());
        let found = batch_norm(&x, Some(&w), Some(&b), EPS).unwrap();
        let biased = (found.variance * (39.0 / 40.0)).unwrap();
        let y = batch_norm_with(&x, &found.mean, &biased, Some(&w), Some(&b), EPS).unwrap();
        same("y", &y, &found.y, 1e-12).unwrap();
    }

    #[test]
    fn any_number_of_threads_gives_equal_bits() {
        let inputs = inputs((1301, 67), 2);
        for dtype in [DType::F32, DType::F64] {
            let (mean, variance) =
                (sample(7, 67).unwrap().to_dtype(dtype).unwrap(), variances(67).to_dtype(dtype).unwrap());
            same_for_any_threads(|| {
                let own = |v: &[Tensor]| Ok(batch_norm(&v[0], Some(&v[1]), Some(&v[2]), EPS)?.y);
                let mut all = output_and_gradients(&inputs, dtype, own)?;
                let given = |v: &[Tensor]| batch_norm_with(&v[0], &mean, &variance, Some(&v[1]), Some(&v[2]), EPS);
                all.extend(output_and_gradients(&inputs, dtype, given)?);
                let found = batch_norm(&inputs[0].to_dtype(dtype)?, None, None, EPS)?;
                all.extend([found.mean, found.variance]);
                Ok(all)
            })
            .unwrap();
        }
    }

    #[test]
    fn a_nan_stays_in_its_column_and_nothing_is_nothing() {
        let x = Tensor::new(&[[1_f32, f32::NAN], [2.0, 1.0], [4.0, 2.0]], &Device::Cpu).unwrap();
        let found = batch_norm(&x, None, None, EPS).unwrap();
        for row in found.y.to_vec2::<f32>().unwrap() {
            assert!(row[0].is_finite() && row[1].is_nan(), "{row:?}");
        }
        assert!(
            found.mean.to_vec1::<f32>().unwrap()[1].is_nan() && found.variance.to_vec1::<f32>().unwrap()[1].is_nan()
        );
        let (zeros, ones) =
            (Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap(), Tensor::ones(2, DType::F32, &Device::Cpu).unwrap());
        let y = batch_norm_with(&x, &zeros, &ones, None, None, EPS).unwrap().to_vec2::<f32>().unwrap();
        assert!(y[0][1].is_nan() && y[1][1].is_finite());
        let y =
            batch_norm_with(&x, &zeros, &(ones * -1.0).unwrap(), None, None, EPS).unwrap().to_vec2::<f32>().unwrap();
        assert!(y[1][1].is_nan(), "a negative variance has no root");
        let narrow = Tensor::zeros((3, 0), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(batch_norm(&narrow, None, None, EPS).unwrap().variance.dims(), [0]);
        // No rows, through the backward pass: the vectors' gradients are zeros.
        let leaf = |shape: &[usize]| Var::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let (x, w, b) = (leaf(&[0, 2]), leaf(&[2]), leaf(&[2]));
        let y = batch_norm_with(&x, &zeros, &zeros, Some(&w), Some(&b), EPS).unwrap();
        assert_eq!(y.dims(), [0, 2]);
        let gradients = backward(&y.sum_all().unwrap()).unwrap();
        assert_eq!(gradients.get(&w).unwrap().to_vec1::<f32>().unwrap(), [0.0; 2]);
        assert_eq!(gradients.get(&b).unwrap().to_vec1::<f32>().unwrap(), [0.0; 2]);
    }

    #[test]
    fn other_shapes_and_dtypes_are_refused() {
        let (x, w) = (sample(1, (3, 4)).unwrap(), sample(2, 4).unwrap());
        let short = sample(2, 3).unwrap();
        let own = |x: &Tensor, w: Option<&Tensor>, b: Option<&Tensor>| batch_norm(x, w, b, EPS).map(|found| found.y);
        let given = |mean: &Tensor, variance: &Tensor| batch_norm_with(&x, mean, variance, None, None, EPS);
        for rows in [0, 1] {
            let message = own(&x.narrow(0, 0, rows).unwrap(), None, None).unwrap_err().to_string();
            assert_eq!(
                message,
                format!("batch_norm: expected at least two rows: one has no variance, got shape [{rows}, 4]")
            );
        }
        assert!(matches!(own(&x.flatten_all().unwrap(), None, None), Err(Error::Shape { op: "batch_norm", .. })));
        assert!(matches!(own(&x, Some(&short), None), Err(Error::Shape { .. })));
        assert!(matches!(own(&x, None, Some(&short)), Err(Error::Shape { .. })));
        assert!(matches!(own(&x, Some(&w.to_dtype(DType::F32).unwrap()), None), Err(Error::Dtype { .. })));
        assert!(matches!(own(&x.to_dtype(DType::F16).unwrap(), None, None), Err(Error::Dtype { got: DType::F16, .. })));
        assert!(matches!(batch_norm(&x, None, None, -1.0), Err(Error::Argument { .. })));
        assert!(matches!(given(&short, &w), Err(Error::Shape { op: "batch_norm_with", .. })));
        assert!(matches!(given(&w, &short), Err(Error::Shape { .. })));
        assert!(matches!(given(&w, &w.to_dtype(DType::F32).unwrap()), Err(Error::Dtype { .. })));
        assert!(matches!(batch_norm_with(&x, &w, &w, None, None, f64::NAN), Err(Error::Argument { .. })));
    }

    #[test]
    fn every_instruction_set_gives_the_same() {
        let (rows, dim) = (3, 70);
        let (x, g, w, b) = (values(1, rows * dim), values(2, rows * dim), values(3, dim), values(4, dim));
        let parts = super::Parts { mean: values(5, dim), rest: vec![1e-8; dim], scale: values(6, dim) };
        same_on_all(1e-5, |level| {
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            super::normalise_at(level, &x, &parts, &w, &b, &mut y);
            super::gradients_at(level, &x, &g, &parts, &w, &values(7, dim), &values(8, dim), &mut dx);
            let (mut sum, mut squares) = (vec![0.0; dim], vec![0.0; dim]);
            let (mut dw, mut db) = (vec![0.0; dim], vec![0.0; dim]);
            for row in 0..rows {
                super::add_at(level, &x[row * dim..][..dim], &mut sum);
                super::add_squares_at(level, &x[row * dim..][..dim], &[0.25; 70], &mut squares);
                super::add_gradients_at(
                    level,
                    &x[row * dim..][..dim],
                    &g[row * dim..][..dim],
                    &parts,
                    &mut dw,
                    &mut db,
                );
            }
            let sums = [sum, squares, dw, db].concat().into_iter().map(|sum| sum as f32).collect();
            [y, dx, sums].concat()
        });
    }
}
