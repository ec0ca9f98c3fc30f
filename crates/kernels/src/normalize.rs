//! Rows of unit length, and weights split into direction and length.

use crate::cpu::{self, Real, Values, by_dtype};
use crate::simd::{dot, vectorised};
use crate::{Error, Result, input, reference};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

/// `x / max(|x|, eps)` over the last axis. x: [.., dim]; f32 or f64.
///
/// # Errors
/// A scalar, an `eps` that is not positive, or a dtype that is not f32 or f64.
pub fn l2_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    let op = "l2_normalize";
    input::float(op, x)?;
    let (_, dim) = input::rows(op, x)?;
    input::positive(op, "eps", eps)?;
    if !cpu::on_cpu(x) {
        return reference::l2_normalize(x, eps);
    }
    Ok(x.contiguous()?.apply_op1(Unit { dim, eps })?)
}

/// `v * g / (|v| + eps)` row by row (CAPI specification, section 7). v: [k, dim], g: [k, 1]; f32 or f64.
/// The length of an all-zero row counts as constant: only the direct part of its gradient remains.
///
/// # Errors
/// Other shapes, an `eps` that is not positive, or a dtype that is not f32 or f64.
pub fn weight_norm(v: &Tensor, g: &Tensor, eps: f64) -> Result<Tensor> {
    let op = "weight_norm";
    input::same_float(op, v, g)?;
    let &[rows, dim] = v.dims() else { return Err(Error::shape(op, "directions [k, dim]", v.dims())) };
    input::shape(op, "lengths", g, &[rows, 1])?;
    input::positive(op, "eps", eps)?;
    if !cpu::on_cpu(v) {
        return reference::weight_norm(v, g, eps);
    }
    Ok(v.contiguous()?.apply_op2(&g.contiguous()?, Split { dim, eps })?)
}

struct Unit {
    dim: usize,
    eps: f64,
}

vectorised! {
    fn unit / unit_at<T, ISA>(x: &[T], dim: usize, eps: T, y: &mut [T]) {
        for (x, y) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)) {
            let norm = dot::<T, ISA>(x, x).root();
            // Written so that a NaN is not replaced by the floor.
            let scale = T::one() / if norm < eps { eps } else { norm };
            for i in 0..dim {
                y[i] = x[i] * scale;
            }
        }
    }
}

vectorised! {
    fn unit_gradient / unit_gradient_at<T, ISA>(x: &[T], g: &[T], dim: usize, eps: T, dx: &mut [T]) {
        for ((x, g), dx) in x.chunks_exact(dim).zip(g.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim)) {
            let norm = dot::<T, ISA>(x, x).root();
            let floored = norm < eps;
            let scale = T::one() / if floored { eps } else { norm };
            let along = if floored { T::zero() } else { dot::<T, ISA>(x, g) * scale * scale };
            for i in 0..dim {
                dx[i] = (g[i] - x[i] * along) * scale;
            }
        }
    }
}

impl CustomOp1 for Unit {
    fn name(&self) -> &'static str {
        "l2_normalize"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let chunk = cpu::rows_of(self.dim) * self.dim;
        by_dtype!("l2_normalize", cpu::dtype(x), T => {
            let x: &[T] = cpu::slice(x, layout)?;
            let y = cpu::fill_chunks(x.len(), chunk, x.len(), |i, y: &mut [T]| {
                unit(&x[i * chunk..][..y.len()], self.dim, T::of(self.eps), y);
            });
            Ok((cpu::storage(y), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (chunk, g) = (cpu::rows_of(self.dim) * self.dim, g.contiguous()?);
        by_dtype!("l2_normalize", x.dtype(), T => {
            let (values, g) = (Values::<T>::of(x)?, Values::<T>::of(&g)?);
            let dx = cpu::fill_chunks(values.len(), chunk, values.len(), |i, dx: &mut [T]| {
                let here = i * chunk..i * chunk + dx.len();
                unit_gradient(&values[here.clone()], &g[here], self.dim, T::of(self.eps), dx);
            });
            Ok(Some(cpu::tensor(dx, x.shape())?))
        })
    }
}

struct Split {
    dim: usize,
    eps: f64,
}

vectorised! {
    fn split / split_at<T, ISA>(v: &[T], lengths: &[T], dim: usize, eps: T, y: &mut [T]) {
        for ((v, y), length) in v.chunks_exact(dim).zip(y.chunks_exact_mut(dim)).zip(lengths) {
            let scale = *length / (dot::<T, ISA>(v, v).root() + eps);
            for i in 0..dim {
                y[i] = v[i] * scale;
            }
        }
    }
}

vectorised! {
    /// `g` is the gradient of the output.
    fn split_gradient / split_gradient_at<T, ISA>(
        v: &[T], lengths: &[T], g: &[T], dim: usize, eps: T, dv: &mut [T], dlengths: &mut [T],
    ) {
        let rows = v.chunks_exact(dim).zip(g.chunks_exact(dim)).zip(dv.chunks_exact_mut(dim));
        for (((v, g), dv), (length, dlength)) in rows.zip(lengths.iter().zip(dlengths)) {
            let norm = dot::<T, ISA>(v, v).root();
            let inverse = T::one() / (norm + eps);
            let scale = *length * inverse;
            let pull = dot::<T, ISA>(v, g) * inverse;
            *dlength = pull;
            let along = if norm == T::zero() { T::zero() } else { pull * scale / norm };
            for i in 0..dim {
                dv[i] = g[i] * scale - v[i] * along;
            }
        }
    }
}

impl CustomOp2 for Split {
    fn name(&self) -> &'static str {
        "weight_norm"
    }

    fn cpu_fwd(
        &self,
        v: &CpuStorage,
        v_layout: &Layout,
        lengths: &CpuStorage,
        lengths_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let group = cpu::rows_of(self.dim);
        by_dtype!("weight_norm", cpu::dtype(v), T => {
            let (v, lengths): (&[T], &[T]) = (cpu::slice(v, v_layout)?, cpu::slice(lengths, lengths_layout)?);
            let y = cpu::fill_chunks(v.len(), group * self.dim, v.len(), |i, y: &mut [T]| {
                let v = &v[i * group * self.dim..][..y.len()];
                split(v, &lengths[i * group..], self.dim, T::of(self.eps), y);
            });
            Ok((cpu::storage(y), v_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        v: &Tensor,
        lengths: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (group, g) = (cpu::rows_of(self.dim), g.contiguous()?);
        by_dtype!("weight_norm", v.dtype(), T => {
            let (vs, ls, gs) = (Values::<T>::of(v)?, Values::<T>::of(lengths)?, Values::<T>::of(&g)?);
            let mut dlengths = vec![T::default(); ls.len()];
            let (directions, beside) = ((vs.len(), group * self.dim), (&mut dlengths[..], group));
            let dv = cpu::fill_chunks_beside(directions, beside, vs.len(), |i, dv: &mut [T], dlengths| {
                let here = i * group * self.dim..i * group * self.dim + dv.len();
                let (v, g) = (&vs[here.clone()], &gs[here]);
                split_gradient(v, &ls[i * group..], g, self.dim, T::of(self.eps), dv, dlengths);
            });
            let dv = v.track_op().then(|| cpu::tensor(dv, v.shape())).transpose()?;
            let dlengths = lengths.track_op().then(|| cpu::tensor(dlengths, lengths.shape())).transpose()?;
            Ok((dv, dlengths))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{l2_normalize, weight_norm};
    use crate::check::{check_large, check_op, output_and_gradients, same_for_any_threads, sample};
    use crate::levels::{same_on_all, values};
    use crate::{Error, reference};
    use candle_core::{DType, Device, Tensor};

    #[test]
    fn unit_rows_agree_with_their_reference_and_gradient_on_both_sides_of_the_floor() {
        for shape in [&[5, 3][..], &[3, 16], &[2, 33], &[2, 3, 9]] {
            // A floor below every norm, and one above.
            for eps in [1e-7, 100.0] {
                let inputs = [sample(1, shape).unwrap()];
                check_op(&inputs, |v| l2_normalize(&v[0], eps), |v| reference::l2_normalize(&v[0], eps)).unwrap();
            }
        }
    }

    #[test]
    fn split_weights_agree_with_their_reference_and_gradient() {
        for (k, dim) in [(1, 2), (5, 3), (3, 16), (4, 33)] {
            for eps in [1e-8, 0.5] {
                let inputs = [sample(1, (k, dim)).unwrap(), sample(2, (k, 1)).unwrap()];
                check_op(&inputs, |v| weight_norm(&v[0], &v[1], eps), |v| reference::weight_norm(&v[0], &v[1], eps))
                    .unwrap();
            }
        }
    }

    #[test]
    fn many_rows_match_as_well() {
        let inputs = [sample(1, (700, 67)).unwrap(), sample(2, (700, 1)).unwrap()];
        check_large(&inputs[..1], |v| l2_normalize(&v[0], 1e-7), |v| reference::l2_normalize(&v[0], 1e-7)).unwrap();
        check_large(&inputs, |v| weight_norm(&v[0], &v[1], 1e-8), |v| reference::weight_norm(&v[0], &v[1], 1e-8))
            .unwrap();
    }

    #[test]
    fn a_zero_row_stays_zero_with_a_finite_gradient() {
        let v = Tensor::zeros((2, 3), DType::F64, &Device::Cpu).unwrap();
        let g = Tensor::ones((2, 1), DType::F64, &Device::Cpu).unwrap();
        let unit = output_and_gradients(std::slice::from_ref(&v), DType::F64, |v| l2_normalize(&v[0], 1e-3)).unwrap();
        let split = output_and_gradients(&[v, g], DType::F64, |v| weight_norm(&v[0], &v[1], 1e-3)).unwrap();
        for tensor in unit.iter().chain(&split) {
            let values = tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert!(values.iter().all(|value| value.is_finite()), "{values:?}");
        }
        assert!(unit[1].abs().unwrap().min_all().unwrap().to_scalar::<f64>().unwrap() > 0.0);
    }

    #[test]
    fn any_number_of_threads_gives_equal_bits() {
        let inputs = [sample(1, (301, 67)).unwrap(), sample(2, (301, 1)).unwrap()];
        for dtype in [DType::F32, DType::F64] {
            same_for_any_threads(|| {
                let mut all = output_and_gradients(&inputs[..1], dtype, |v| l2_normalize(&v[0], 1e-7))?;
                all.extend(output_and_gradients(&inputs, dtype, |v| weight_norm(&v[0], &v[1], 1e-8))?);
                Ok(all)
            })
            .unwrap();
        }
    }

    #[test]
    fn a_nan_stays_in_its_row_and_no_rows_are_no_rows() {
        let x = Tensor::new(&[[1_f32, f32::NAN], [3.0, 4.0]], &Device::Cpu).unwrap();
        let y = l2_normalize(&x, 1e-7).unwrap().to_vec2::<f32>().unwrap();
        assert!(y[0].iter().all(|value| value.is_nan()));
        assert_eq!(y[1], [0.6, 0.8]);
        for shape in [[0, 3], [3, 0]] {
            let v = Tensor::zeros(&shape, DType::F32, &Device::Cpu).unwrap();
            let g = Tensor::zeros((shape[0], 1), DType::F32, &Device::Cpu).unwrap();
            assert_eq!(l2_normalize(&v, 1e-7).unwrap().dims(), shape);
            assert_eq!(weight_norm(&v, &g, 1e-8).unwrap().dims(), shape);
        }
    }

    #[test]
    fn other_shapes_dtypes_and_floors_are_refused() {
        let v = sample(1, (3, 4)).unwrap();
        let g = sample(2, (3, 1)).unwrap();
        assert!(matches!(weight_norm(&v, &g.flatten_all().unwrap(), 1e-8), Err(Error::Shape { .. })));
        assert!(matches!(weight_norm(&g.flatten_all().unwrap(), &g, 1e-8), Err(Error::Shape { .. })));
        assert!(matches!(weight_norm(&v, &g.to_dtype(DType::F32).unwrap(), 1e-8), Err(Error::Dtype { .. })));
        assert!(matches!(l2_normalize(&v.to_dtype(DType::F16).unwrap(), 1e-8), Err(Error::Dtype { .. })));
        assert!(matches!(l2_normalize(&v, 0.0), Err(Error::Argument { op: "l2_normalize", .. })));
        assert!(matches!(weight_norm(&v, &g, f64::NAN), Err(Error::Argument { .. })));
    }

    #[test]
    fn every_instruction_set_gives_the_same() {
        let (dim, v, g, lengths) = (70, values(1, 210), values(2, 210), values(3, 3));
        same_on_all(1e-6, |level| {
            let blank = || vec![0.0; v.len()];
            let (mut y, mut dy, mut w, mut dv, mut dlengths) = (blank(), blank(), blank(), blank(), vec![0.0; 3]);
            super::unit_at(level, &v, dim, 1e-7, &mut y);
            super::unit_gradient_at(level, &v, &g, dim, 1e-7, &mut dy);
            super::split_at(level, &v, &lengths, dim, 1e-8, &mut w);
            super::split_gradient_at(level, &v, &lengths, &g, dim, 1e-8, &mut dv, &mut dlengths);
            [y, dy, w, dv, dlengths].concat()
        });
    }
}
