//! The two linear maps of a transformer block with their activation, as one operator.

use crate::cpu::{self, Matrix, Real, Values, by_dtype};
use crate::gelu::{self, CHUNK, COST};
use crate::linear::with_last;
use crate::{Error, Result, input, reference};
use candle_core::{CpuStorage, CustomOp3, D, Layout, Shape, Tensor};
use std::sync::{Mutex, PoisonError};

const OP: &str = "mlp";

/// `gelu(x w1^T) w2^T`, without biases. x: [.., in], w1: [hidden, in], w2: [out, hidden] -> [.., out].
///
/// The same as `linear(gelu(linear(x, w1)), w2)`, but of the hidden layer, the largest activation of a block, one copy
/// is kept for the backward pass in place of two, and none where nothing is tracked; and the gradient of the layer is
/// made in place.
///
/// # Errors
/// Shapes that do not fit, unequal dtypes, or a dtype that is not f32 or f64.
pub fn mlp(x: &Tensor, w1: &Tensor, w2: &Tensor) -> Result<Tensor> {
    let sizes = check(x, w1, w2)?;
    if !cpu::on_cpu(x) {
        return reference::mlp(x, w1, w2);
    }
    let keep = x.track_op() || w1.track_op() || w2.track_op();
    let op = Mlp { sizes, keep, hidden: Mutex::new(None) };
    Ok(x.contiguous()?.apply_op3(&w1.contiguous()?, &w2.contiguous()?, op)?)
}

fn check(x: &Tensor, w1: &Tensor, w2: &Tensor) -> Result<Sizes> {
    input::same_float(OP, x, w1)?;
    input::same_float(OP, x, w2)?;
    let [hidden, inner] = *w1.dims() else { return Err(Error::shape(OP, "w1 of shape [hidden, in]", w1.dims())) };
    let [out, _] = *w2.dims() else { return Err(Error::shape(OP, "w2 of shape [out, hidden]", w2.dims())) };
    input::shape(OP, "w2", w2, &[out, hidden])?;
    if x.rank() == 0 || x.dim(D::Minus1)? != inner {
        return Err(Error::shape(OP, format!("x of shape [.., {inner}]"), x.dims()));
    }
    let rows = x.dims()[..x.rank() - 1].iter().product();
    Ok(Sizes { rows, inner, hidden, out })
}

/// Sizes of one call: x is [rows, inner], w1 [hidden, inner], w2 [out, hidden].
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    inner: usize,
    hidden: usize,
    out: usize,
}

struct Mlp {
    sizes: Sizes,
    keep: bool,
    /// The hidden layer before its activation, [rows, hidden]; taken by the backward pass.
    hidden: Mutex<Option<CpuStorage>>,
}

/// The gradients of x, w1 and w2.
type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

impl Mlp {
    fn saved(&self) -> Option<CpuStorage> {
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn backward<T: Real>(&self, x: &Tensor, w1: &Tensor, w2: &Tensor, dy: &Tensor) -> candle_core::Result<Gradients> {
        let Sizes { rows, inner, hidden, out } = self.sizes;
        let [x_values, first, second, dy] = [x, w1, w2, dy].map(Values::<T>::of);
        let (x_values, first, second, dy) = (x_values?, first?, second?, dy?);
        let before = match self.saved() {
            Some(storage) => T::cpu_storage_data(storage)?,
            // A second backward pass over one graph.
            None => cpu::product(Matrix::new(&x_values, rows, inner), Matrix::new(&first, hidden, inner).t()),
        };
        // The gradient of the activated layer, then, in the same memory, that of the layer before its activation; the
        // activated layer takes the memory of what was saved.
        let mut slopes = cpu::product(Matrix::new(&dy, rows, out), Matrix::new(&second, out, hidden));
        let mut layer = before;
        cpu::for_chunk_pairs((&mut layer, CHUNK), (&mut slopes, CHUNK), COST * rows * hidden, |_, layer, slopes| {
            gelu::forward_and_backward(layer, slopes);
        });
        let (dy, slopes) = (Matrix::new(&dy, rows, out), Matrix::new(&slopes, rows, hidden));
        let dx = || cpu::tensor(cpu::product(slopes, Matrix::new(&first, hidden, inner)), x.shape());
        let dw1 = || cpu::tensor(cpu::product(slopes.t(), Matrix::new(&x_values, rows, inner)), w1.shape());
        let dw2 = || cpu::tensor(cpu::product(dy.t(), Matrix::new(&layer, rows, hidden)), w2.shape());
        Ok((
            x.track_op().then(dx).transpose()?,
            w1.track_op().then(dw1).transpose()?,
            w2.track_op().then(dw2).transpose()?,
        ))
    }
}

/// The output, and the hidden layer before its activation if it is to be kept.
fn forward<T: Real>(sizes: Sizes, x: &[T], w1: &[T], w2: &[T], keep: bool) -> (Vec<T>, Option<Vec<T>>) {
    let Sizes { rows, inner, hidden, out } = sizes;
    let before = cpu::product(Matrix::new(x, rows, inner), Matrix::new(w1, hidden, inner).t()); // [rows, hidden]
    let layer = gelu::all(&before);
    let y = cpu::product(Matrix::new(&layer, rows, hidden), Matrix::new(w2, out, hidden).t()); // [rows, out]
    (y, keep.then_some(before))
}

impl CustomOp3 for Mlp {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w1: &CpuStorage,
        w1_layout: &Layout,
        w2: &CpuStorage,
        w2_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(OP, cpu::dtype(x), T => {
            let (w1, w2) = (cpu::slice::<T>(w1, w1_layout)?, cpu::slice(w2, w2_layout)?);
            let (y, before) = forward(self.sizes, cpu::slice(x, x_layout)?, w1, w2, self.keep);
            *self.hidden.lock().unwrap_or_else(PoisonError::into_inner) = before.map(cpu::storage);
            Ok((cpu::storage(y), with_last(x_layout.shape(), self.sizes.out)))
        })
    }

    fn bwd(&self, x: &Tensor, w1: &Tensor, w2: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Gradients> {
        let dy = dy.contiguous()?;
        by_dtype!(OP, x.dtype(), T => self.backward::<T>(x, w1, w2, &dy))
    }
}

#[cfg(test)]
mod tests {
    use super::mlp;
    use crate::check::{check_large, check_op, output_and_gradients, same_for_any_threads, sample};
    use crate::reference;
    use candle_core::{DType, Device, Tensor, Var};

    fn inputs(leading: &[usize], inner: usize, hidden: usize, out: usize) -> Vec<Tensor> {
        let x = sample(1, [leading, &[inner]].concat()).unwrap();
        let (w1, w2) = (sample(2, (hidden, inner)).unwrap(), sample(3, (out, hidden)).unwrap());
        vec![(x * 2.0).unwrap(), w1, w2]
    }

    #[test]
    fn matches_its_reference_and_its_gradient() {
        for (leading, inner, hidden, out) in [(vec![5], 3, 7, 4), (vec![2, 3], 4, 5, 4), (vec![], 2, 3, 1)] {
            let inputs = inputs(&leading, inner, hidden, out);
            check_op(&inputs, |v| mlp(&v[0], &v[1], &v[2]), |v| reference::mlp(&v[0], &v[1], &v[2])).unwrap();
        }
    }

    #[test]
    fn many_rows_match_as_well() {
        let inputs = inputs(&[19, 11], 24, 50, 24);
        check_large(&inputs, |v| mlp(&v[0], &v[1], &v[2]), |v| reference::mlp(&v[0], &v[1], &v[2])).unwrap();
    }

    #[test]
    fn a_second_backward_pass_gives_the_same() {
        let inputs = inputs(&[6], 3, 5, 3);
        let w1 = Var::from_tensor(&inputs[1]).unwrap();
        let loss = mlp(&inputs[0], w1.as_tensor(), &inputs[2]).unwrap().sum_all().unwrap();
        let gradient = || crate::backward(&loss).unwrap().get(w1.as_tensor()).unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(gradient(), gradient());
    }

    #[test]
    fn empty_inputs_give_empty_or_zero() {
        let zeros = |a: usize, b: usize| Tensor::zeros((a, b), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(mlp(&zeros(0, 3), &zeros(4, 3), &zeros(2, 4)).unwrap().dims(), [0, 2]);
        assert_eq!(mlp(&zeros(2, 3), &zeros(0, 3), &zeros(1, 0)).unwrap().to_vec2::<f32>().unwrap(), [[0.0]; 2]);
    }

    #[test]
    fn nan_stays_in_its_row() {
        let x = Tensor::new(&[[f32::NAN, 0.0], [1.0, 0.0]], &Device::Cpu).unwrap();
        let ones = |shape| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        let y = mlp(&x, &ones((3, 2)), &ones((1, 3))).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(y[0].is_nan() && y[1].is_finite());
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let refusal = |x: &Tensor, w1: &Tensor, w2: &Tensor| mlp(x, w1, w2).unwrap_err().to_string();
        let (x, w1, w2) = (zeros(&[2, 3]), zeros(&[4, 3]), zeros(&[3, 4]));
        assert_eq!(refusal(&zeros(&[2, 2]), &w1, &w2), "mlp: expected x of shape [.., 3], got shape [2, 2]");
        assert!(refusal(&x, &w1, &zeros(&[3, 3])).contains("w2 of shape [3, 4]"));
        assert!(refusal(&x, &zeros(&[4]), &w2).contains("[hidden, in]"));
        assert!(refusal(&x, &w1, &zeros(&[4])).contains("[out, hidden]"));
        assert!(refusal(&x, &w1.to_dtype(DType::F64).unwrap(), &w2).contains("dtype"));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let inputs = inputs(&[700], 48, 100, 48);
        same_for_any_threads(|| output_and_gradients(&inputs, DType::F32, |v| mlp(&v[0], &v[1], &v[2]))).unwrap();
    }
}
