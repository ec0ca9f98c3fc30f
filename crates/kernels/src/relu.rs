//! The rectifier.

use crate::cpu::{self, Values, by_dtype};
use crate::simd::vectorised;
use crate::{Result, input, reference};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

const OP: &str = "relu";

/// `max(x, 0)`, and NaN where `x` is: candle's own makes that 0. The slope at 0 is 0. Any shape.
///
/// # Errors
/// A dtype that is not f32 or f64.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    input::float(OP, x)?;
    if !cpu::on_cpu(x) {
        return reference::relu(x);
    }
    Ok(x.contiguous()?.apply_op1(Relu)?)
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(OP, cpu::dtype(storage), T => {
            let x = cpu::slice::<T>(storage, layout)?;
            let y = cpu::fill_chunks(x.len(), cpu::ELEMENTS, x.len(), |i, y: &mut [T]| {
                forward(&x[i * cpu::ELEMENTS..][..y.len()], y);
            });
            Ok((cpu::storage(y), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        by_dtype!(OP, x.dtype(), T => {
            let (values, gradient) = (Values::<T>::of(x)?, Values::<T>::of(&gradient)?);
            let (values, gradient): (&[T], &[T]) = (&values, &gradient);
            let dx = cpu::fill_chunks(values.len(), cpu::ELEMENTS, values.len(), |i, dx: &mut [T]| {
                let at = i * cpu::ELEMENTS;
                backward(&values[at..][..dx.len()], &gradient[at..][..dx.len()], dx);
            });
            cpu::tensor(dx, x.shape()).map(Some)
        })
    }
}

vectorised! {
    fn forward / forward_at<T, ISA>(x: &[T], y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = if *x <= T::zero() { T::zero() } else { *x };
        }
    }
}

vectorised! {
    fn backward / backward_at<T, ISA>(x: &[T], gradient: &[T], dx: &mut [T]) {
        for ((dx, x), gradient) in dx.iter_mut().zip(x).zip(gradient) {
            *dx = if *x <= T::zero() { T::zero() } else { *gradient };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::relu;
    use crate::check::{check_large, check_op, output_and_gradients, same_for_any_threads, sample};
    use crate::reference;
    use candle_core::{DType, Device, Tensor};

    #[test]
    fn agrees_with_its_reference_and_its_gradient() {
        for shape in [&[0][..], &[1], &[5, 3], &[2, 3, 9]] {
            check_op(&[sample(1, shape).unwrap()], |v| relu(&v[0]), |v| reference::relu(&v[0])).unwrap();
        }
        check_large(&[sample(1, (700, 67)).unwrap()], |v| relu(&v[0]), |v| reference::relu(&v[0])).unwrap();
    }

    #[test]
    fn any_number_of_threads_gives_equal_bits() {
        let x = sample(1, (301, 257)).unwrap();
        for dtype in [DType::F32, DType::F64] {
            same_for_any_threads(|| output_and_gradients(std::slice::from_ref(&x), dtype, |v| relu(&v[0]))).unwrap();
        }
    }

    #[test]
    fn views_with_gaps_and_bad_numbers_are_read_rightly() {
        let x = Tensor::new(&[[1.0_f32, -2.0, f32::NAN], [-0.0, 3.0, f32::NEG_INFINITY]], &Device::Cpu).unwrap();
        let y = relu(&x.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!((y[0].as_slice(), y[1].as_slice(), y[2][1]), (&[1.0, 0.0][..], &[0.0, 3.0][..], 0.0));
        assert!(y[2][0].is_nan());
        assert!(relu(&x.to_dtype(DType::U32).unwrap()).is_err());
    }
}
