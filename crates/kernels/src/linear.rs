//! The linear map.

use crate::cpu::{self, Matrix, Real, Values, by_dtype};
use crate::finish::Finishing;
use crate::{Error, Result, input, reference};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Shape, Tensor};

const OP: &str = "linear";

/// `x w^T + b`. x: `[.., in]`, w: `[out, in]`, b: `[out]` -> `[.., out]`.
///
/// # Errors
/// Shapes that do not fit, unequal dtypes, or a dtype that is not f32 or f64.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    check(x, w, b)?;
    if !cpu::on_cpu(x) {
        return reference::linear(x, w, b);
    }
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    Ok(match b {
        None => x.apply_op2(&w, Linear)?,
        Some(b) => x.apply_op3(&w, &b.contiguous()?, Linear)?,
    })
}

fn check(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<()> {
    input::same_float(OP, x, w)?;
    let [out, inner] = w.dims() else { return Err(Error::shape(OP, "a weight [out, in]", w.dims())) };
    if x.rank() == 0 || x.dim(D::Minus1)? != *inner {
        return Err(Error::shape(OP, format!("x of shape [.., {inner}]"), x.dims()));
    }
    if let Some(b) = b {
        input::same_float(OP, x, b)?;
        input::shape(OP, "a bias", b, &[*out])?;
    }
    Ok(())
}

struct Linear;

/// Sizes of one call: x is [rows, inner], w is [out, inner].
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    inner: usize,
    out: usize,
}

impl Sizes {
    fn of(x: &Shape, w: &Shape) -> candle_core::Result<Self> {
        let (out, inner) = w.dims2()?;
        let rows = x.dims().split_last().map_or(0, |(_, leading)| leading.iter().product());
        Ok(Self { rows, inner, out })
    }
}

/// `shape` with another last axis.
pub(crate) fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    if let Some(dim) = dims.last_mut() {
        *dim = last;
    }
    Shape::from(dims)
}

/// `x w^T + b` on slices.
fn forward<T: Real>(x: &[T], w: &[T], b: Option<&[T]>, sizes: Sizes) -> Vec<T> {
    let Sizes { rows, inner, out } = sizes;
    let finishing = Finishing { bias: b, ..Finishing::default() };
    finishing.product(Matrix::new(x, rows, inner), Matrix::new(w, out, inner).t(), None).y // [rows, out]
}

/// The gradients that are asked for: of x, of w, of b.
fn backward(wanted: [bool; 3], x: &Tensor, w: &Tensor, gradient: &Tensor) -> candle_core::Result<[Option<Tensor>; 3]> {
    let gradient = gradient.contiguous()?;
    let Sizes { rows, inner, out } = Sizes::of(x.shape(), w.shape())?;
    by_dtype!(OP, x.dtype(), T => {
        let dy = Values::<T>::of(&gradient)?;
        let dy = Matrix::new(&dy, rows, out);
        let dx = || cpu::tensor(cpu::product(dy, Matrix::new(&Values::<T>::of(w)?, out, inner)), x.shape());
        let dw = || cpu::tensor(cpu::product(dy.t(), Matrix::new(&Values::<T>::of(x)?, rows, inner)), w.shape());
        let db = || cpu::tensor(cpu::column_sums(&Values::<T>::of(&gradient)?, out), out);
        Ok([
            wanted[0].then(dx).transpose()?,
            wanted[1].then(dw).transpose()?,
            wanted[2].then(db).transpose()?,
        ])
    })
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let sizes = Sizes::of(x_layout.shape(), w_layout.shape())?;
        by_dtype!(OP, cpu::dtype(x), T => {
            let y = forward(cpu::slice::<T>(x, x_layout)?, cpu::slice(w, w_layout)?, None, sizes);
            Ok((cpu::storage(y), with_last(x_layout.shape(), sizes.out)))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, _] = backward([x.track_op(), w.track_op(), false], x, w, gradient)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        OP
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
        let sizes = Sizes::of(x_layout.shape(), w_layout.shape())?;
        by_dtype!(OP, cpu::dtype(x), T => {
            let b = Some(cpu::slice(b, b_layout)?);
            let y = forward(cpu::slice::<T>(x, x_layout)?, cpu::slice(w, w_layout)?, b, sizes);
            Ok((cpu::storage(y), with_last(x_layout.shape(), sizes.out)))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = backward([x.track_op(), w.track_op(), b.track_op()], x, w, gradient)?;
        Ok((dx, dw, db))
    }
}

#[cfg(test)]
mod tests {
    use super::linear;
    use crate::check::{check_large, check_op, output_and_gradients, same_for_any_threads, sample};
    use crate::reference;
    use candle_core::{DType, Device, Tensor, Var};

    #[test]
    fn matches_its_reference_and_its_gradient() {
        for (leading, inner, out) in [(vec![5], 7, 3), (vec![2, 3], 4, 9), (vec![], 6, 2), (vec![3], 1, 1)] {
            let x = sample(1, [leading, vec![inner]].concat()).unwrap();
            let (w, b) = (sample(2, (out, inner)).unwrap(), sample(3, out).unwrap());
            let inputs = [x, w, b];
            check_op(&inputs[..2], |v| linear(&v[0], &v[1], None), |v| reference::linear(&v[0], &v[1], None)).unwrap();
            check_op(&inputs, |v| linear(&v[0], &v[1], Some(&v[2])), |v| reference::linear(&v[0], &v[1], Some(&v[2])))
                .unwrap();
        }
    }

    #[test]
    fn large_products_match_as_well() {
        let inputs = [sample(1, (700, 96)).unwrap(), sample(2, (130, 96)).unwrap(), sample(3, 130).unwrap()];
        check_large(&inputs, |v| linear(&v[0], &v[1], Some(&v[2])), |v| reference::linear(&v[0], &v[1], Some(&v[2])))
            .unwrap();
    }

    #[test]
    fn empty_inputs_give_empty_or_bias_alone() {
        let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(linear(&zeros((0, 3)), &zeros((4, 3)), None).unwrap().dims(), [0, 4]);
        assert_eq!(linear(&zeros((2, 3)), &zeros((0, 3)), None).unwrap().dims(), [2, 0]);
        let b = Tensor::new(&[1_f32, 2.0], &Device::Cpu).unwrap();
        let y = linear(&zeros((2, 0)), &zeros((2, 0)), Some(&b)).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), [[1.0, 2.0]; 2]);
    }

    #[test]
    fn an_empty_batch_gives_zero_weight_gradients() {
        let w = Var::from_tensor(&sample(1, (4, 3)).unwrap()).unwrap();
        let x = Tensor::zeros((0, 3), DType::F64, &Device::Cpu).unwrap();
        let y = linear(&x, w.as_tensor(), None).unwrap();
        let loss = (y.sum_all().unwrap() + w.as_tensor().sum_all().unwrap()).unwrap();
        let gradients = crate::backward(&loss).unwrap();
        assert_eq!(gradients.get(w.as_tensor()).unwrap().to_vec2::<f64>().unwrap(), [[1.0; 3]; 4]);
    }

    #[test]
    fn untracked_inputs_get_no_gradient() {
        let w = Var::from_tensor(&sample(1, (4, 3)).unwrap()).unwrap();
        let x = sample(2, (5, 3)).unwrap();
        let gradients = crate::backward(&linear(&x, w.as_tensor(), None).unwrap().sum_all().unwrap()).unwrap();
        assert!(gradients.get(&x).is_none() && gradients.get(w.as_tensor()).is_some());
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        let w = zeros(&[4, 3], DType::F32);
        let message = |x: &Tensor, b: Option<&Tensor>| linear(x, &w, b).unwrap_err().to_string();
        assert_eq!(message(&zeros(&[2, 4], DType::F32), None), "linear: expected x of shape [.., 3], got shape [2, 4]");
        assert!(message(&zeros(&[2, 3], DType::F64), None).contains("dtype F64"));
        assert!(message(&zeros(&[2, 3], DType::F32), Some(&zeros(&[3], DType::F32))).contains("bias"));
        assert!(linear(&w, &zeros(&[3], DType::F32), None).is_err());
    }

    #[test]
    fn nan_passes() {
        let x = Tensor::new(&[[f32::NAN, 0.0], [1.0, 0.0]], &Device::Cpu).unwrap();
        let y = linear(&x, &Tensor::zeros((1, 2), DType::F32, &Device::Cpu).unwrap(), None).unwrap();
        let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(y[0].is_nan() && y[1] == 0.0);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        for (rows, inner, out) in [(1500, 128, 512), (1500, 512, 128), (333, 65, 31), (1, 300, 700), (2000, 33, 1)] {
            let inputs = [sample(1, (rows, inner)).unwrap(), sample(2, (out, inner)).unwrap(), sample(3, out).unwrap()];
            let run = || output_and_gradients(&inputs, DType::F32, |v| linear(&v[0], &v[1], Some(&v[2])));
            same_for_any_threads(run).unwrap();
        }
    }
}
