//! Softmax over the last axis.

use crate::cpu::{self, SharedRows, Values, by_dtype};
use crate::simd::{dot, largest, sum_of, vectorised};
use crate::{Error, Result, input, reference};
use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Shape, Tensor};

/// `exp(x) / sum(exp(x))` over the last axis, shifted by the row's maximum. x: [.., k]; f32 or f64.
/// A row that holds a NaN is all NaN.
///
/// # Errors
/// A scalar, or a dtype that is not f32 or f64.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    input::float("softmax", x)?;
    let (_, k) = input::rows("softmax", x)?;
    if !cpu::on_cpu(x) {
        return reference::softmax(x);
    }
    Ok(x.contiguous()?.apply_op1(Softmax { k })?)
}

/// What [`soften`] makes of scores. No graph.
#[derive(Clone, Debug)]
pub struct Softened {
    /// The softmax of each row.  [.., k]
    pub probabilities: Tensor,
    /// Entropy of each row of it, `-sum_k p_k ln p_k`; rows in row-major order.
    pub entropies: Vec<f64>,
    /// By how much the largest score of each row passes the mean one.
    pub leads: Vec<f64>,
}

/// [`softmax`] with what else one pass over the scores tells of each row. The entropy comes from the scores,
/// `ln sum_k exp(x_k) - sum_k p_k x_k`, so no logarithm of a probability is taken. x: [.., k]; f32 or f64.
///
/// # Errors
/// A scalar, no classes, or a dtype that is not f32 or f64.
pub fn soften(x: &Tensor) -> Result<Softened> {
    let op = "soften";
    input::float(op, x)?;
    let (rows, k) = input::rows(op, x)?;
    if k == 0 {
        return Err(Error::shape(op, "at least one class", x.dims()));
    }
    let x = x.detach();
    if !cpu::on_cpu(&x) {
        return composed(&x);
    }
    let x = x.contiguous()?;
    by_dtype!(op, x.dtype(), T => {
        let values = Values::<T>::of(&x)?;
        let (values, group): (&[T], usize) = (&values, cpu::rows_of(k));
        let mut stats = vec![0.0; rows * 2];
        let shared = SharedRows::new(&mut stats);
        let y = cpu::fill_chunks(values.len(), group * k, WORK * values.len(), |i, y: &mut [T]| {
            // SAFETY: no two calls get the same index, and each has as many rows here as there.
            #[allow(unsafe_code)]
            let stats = unsafe { shared.chunk(i, group * 2) };
            let x = &values[i * group * k..][..y.len()];
            forward(x, k, y);
            describe(x, y, k, stats);
        });
        let of = |at: usize| stats.iter().skip(at).step_by(2).copied().collect();
        Ok(Softened { probabilities: cpu::tensor(y, x.shape())?, entropies: of(0), leads: of(1) })
    })
}

/// [`soften`] by candle's operators.
fn composed(x: &Tensor) -> Result<Softened> {
    let values = |t: &Tensor| -> Result<Vec<f64>> { Ok(t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?) };
    let probabilities = reference::softmax(x)?;
    let held = probabilities.gt(0.0)?;
    let terms = held.where_cond(&(&probabilities * probabilities.log()?)?, &probabilities.zeros_like()?)?;
    let leads = values(&(x.max(D::Minus1)? - x.mean(D::Minus1)?)?)?;
    Ok(Softened { entropies: values(&terms.sum(D::Minus1)?.neg()?)?, leads, probabilities })
}

vectorised! {
    /// Entropy and lead of each row of scores `x` with softmax `y`.
    fn describe / describe_at<T, ISA>(x: &[T], y: &[T], k: usize, stats: &mut [f64]) {
        for ((x, y), stats) in x.chunks_exact(k).zip(y.chunks_exact(k)).zip(stats.chunks_exact_mut(2)) {
            let shift = largest(x);
            // The largest probability is one over the sum of exponentials.
            let log_sum = -largest(y).wide().ln();
            let mut below = 0.0;
            for (x, y) in x.chunks(BLOCK).zip(y.chunks(BLOCK)) {
                let mut lanes = [T::zero(); LANES];
                for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
                    for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
                        // What underflowed adds nothing, however far below it lies; NaN stays.
                        let term = *y * (shift - *x);
                        *lane += if *y == T::zero() { T::zero() } else { term };
                    }
                }
                below += sum_of(&lanes).wide();
            }
            stats[0] = log_sum + below;
            stats[1] = shift.wide() - sum_of(x).wide() / k as f64;
        }
    }
}

/// Elements whose terms are added in the element type; blocks are added in f64.
const BLOCK: usize = 256;
const LANES: usize = 16;

struct Softmax {
    k: usize,
}

/// A group of rows costs about as much as this many copies of it.
const WORK: usize = 8;

vectorised! {
    fn forward / forward_at<T, ISA>(x: &[T], k: usize, y: &mut [T]) {
        for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(k)) {
            // A NaN is passed over here, and then fills the row through the sum.
            let shift = largest(x);
            for i in 0..k {
                y[i] = (x[i] - shift).exponential::<ISA>();
            }
            let scale = T::one() / sum_of(y);
            for i in 0..k {
                y[i] *= scale;
            }
        }
    }
}

vectorised! {
    fn gradient / gradient_at<T, ISA>(y: &[T], g: &[T], k: usize, dx: &mut [T]) {
        for ((y, g), dx) in y.chunks_exact(k).zip(g.chunks_exact(k)).zip(dx.chunks_exact_mut(k)) {
            let mean = dot::<T, ISA>(y, g);
            for i in 0..k {
                dx[i] = y[i] * (g[i] - mean);
            }
        }
    }
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let chunk = cpu::rows_of(self.k) * self.k;
        by_dtype!("softmax", cpu::dtype(x), T => {
            let x: &[T] = cpu::slice(x, layout)?;
            let y = cpu::fill_chunks(x.len(), chunk, WORK * x.len(), |i, y: &mut [T]| {
                forward(&x[i * chunk..][..y.len()], self.k, y);
            });
            Ok((cpu::storage(y), layout.shape().clone()))
        })
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (chunk, g) = (cpu::rows_of(self.k) * self.k, g.contiguous()?);
        by_dtype!("softmax", y.dtype(), T => {
            let (values, g) = (Values::<T>::of(y)?, Values::<T>::of(&g)?);
            let dx = cpu::fill_chunks(values.len(), chunk, values.len(), |i, dx: &mut [T]| {
                let here = i * chunk..i * chunk + dx.len();
                gradient(&values[here.clone()], &g[here], self.k, dx);
            });
            Ok(Some(cpu::tensor(dx, y.shape())?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{composed, soften, softmax};
    use crate::check::{check_large, check_op, output_and_gradients, same_for_any_threads, sample};
    use crate::levels::{same_on_all, values};
    use crate::{Error, reference};
    use candle_core::{DType, Device, Tensor};

    #[test]
    fn agrees_with_its_reference_and_its_gradient() {
        for shape in [&[2][..], &[5, 3], &[3, 16], &[2, 33], &[1, 70], &[2, 3, 9]] {
            let x = (sample(1, shape).unwrap() * 4.0).unwrap();
            check_op(&[x], |v| softmax(&v[0]), |v| reference::softmax(&v[0])).unwrap();
        }
    }

    #[test]
    fn many_rows_match_as_well() {
        let x = sample(1, (700, 67)).unwrap();
        check_large(&[x], |v| softmax(&v[0]), |v| reference::softmax(&v[0])).unwrap();
    }

    #[test]
    fn any_number_of_threads_gives_equal_bits() {
        let x = sample(1, (301, 67)).unwrap();
        for dtype in [DType::F32, DType::F64] {
            same_for_any_threads(|| output_and_gradients(std::slice::from_ref(&x), dtype, |v| softmax(&v[0]))).unwrap();
        }
    }

    #[test]
    fn softened_rows_have_their_entropy_and_their_lead() {
        let close = |a: &[f64], b: &[f64], within: f64| {
            assert_eq!(a.len(), b.len());
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < within), "{a:?} {b:?}");
        };
        for (shape, scale) in [(&[3, 1][..], 1.0), (&[2, 3, 9], 4.0), (&[5, 300], 30.0), (&[70, 4099], 10.0)] {
            for (dtype, within) in [(DType::F32, 3e-5), (DType::F64, 1e-12)] {
                let x = (sample(1, shape).unwrap() * scale).unwrap().to_dtype(dtype).unwrap();
                let (got, expected) = (soften(&x).unwrap(), composed(&x.to_dtype(DType::F64).unwrap()).unwrap());
                close(&got.entropies, &expected.entropies, within);
                close(&got.leads, &expected.leads, within);
                let bits =
                    |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
                assert_eq!(bits(&got.probabilities), bits(&softmax(&x).unwrap()));
            }
        }
        let x = Tensor::new(&[[0.0_f32, f32::NEG_INFINITY, 0.0], [f32::NAN, 0.0, 1.0]], &Device::Cpu).unwrap();
        let got = soften(&x).unwrap();
        assert!((got.entropies[0] - 2.0_f64.ln()).abs() < 1e-7);
        assert!(got.entropies[1].is_nan() && got.leads[1].is_nan());
        let nothing = |shape| soften(&Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
        assert!(nothing((0, 3)).unwrap().entropies.is_empty());
        assert!(nothing((3, 0)).is_err());
    }

    #[test]
    fn large_logits_do_not_overflow_and_hidden_ones_get_nothing() {
        let x = Tensor::new(&[[1e30_f32, 1e30, -1e30], [f32::NEG_INFINITY, -1e4, -1e4]], &Device::Cpu).unwrap();
        assert_eq!(softmax(&x).unwrap().to_vec2::<f32>().unwrap(), [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]);
    }

    #[test]
    fn a_nan_fills_its_row_and_no_other_wherever_it_stands() {
        for place in [0, 20, 39] {
            let mut values = vec![0.5_f32; 80];
            values[place] = f32::NAN;
            let x = Tensor::from_vec(values, (2, 40), &Device::Cpu).unwrap();
            let y = softmax(&x).unwrap().to_vec2::<f32>().unwrap();
            assert!(y[0].iter().all(|value| value.is_nan()) && y[1].iter().all(|value| value.is_finite()), "{y:?}");
        }
    }

    #[test]
    fn no_rows_are_no_rows_and_other_dtypes_are_refused() {
        for shape in [[0, 3], [3, 0]] {
            let x = Tensor::zeros(&shape, DType::F64, &Device::Cpu).unwrap();
            assert_eq!(softmax(&x).unwrap().dims(), shape);
        }
        let scalar = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(softmax(&scalar), Err(Error::Shape { op: "softmax", .. })));
        let half = Tensor::zeros(3, DType::F16, &Device::Cpu).unwrap();
        assert!(matches!(softmax(&half), Err(Error::Dtype { got: DType::F16, .. })));
    }

    #[test]
    fn every_instruction_set_gives_the_same() {
        let (k, x, g) = (70, values(1, 210), values(2, 210));
        same_on_all(1e-6, |level| {
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            super::forward_at(level, &x, k, &mut y);
            super::gradient_at(level, &y, &g, k, &mut dx);
            [y, dx].concat()
        });
    }
}
