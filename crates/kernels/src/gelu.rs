//! GELU in its exact form.

use crate::cpu::{self, Real, Values, by_dtype};
use crate::simd::vectorised;
use crate::{Result, input, reference};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

const OP: &str = "gelu";
/// Elements per parallel chunk.
pub(crate) const CHUNK: usize = 8 * 1024;
/// Cost of an element next to a multiply-add.
pub(crate) const COST: usize = 16;

/// `x * Phi(x)` with the normal distribution function Phi (the erf form, not the tanh approximation). Any shape.
///
/// # Errors
/// A dtype that is not f32 or f64.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    input::float(OP, x)?;
    if !cpu::on_cpu(x) {
        return reference::gelu(x);
    }
    Ok(x.contiguous()?.apply_op1(Gelu)?)
}

/// Saves nothing but its input: the backward pass computes Phi anew, which is cheaper than to read it from memory.
struct Gelu;

/// The activation of every element.
pub(crate) fn all<T: Real>(x: &[T]) -> Vec<T> {
    cpu::fill_chunks(x.len(), CHUNK, x.len() * COST, |i, y: &mut [T]| forward(&x[i * CHUNK..][..y.len()], y))
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(OP, cpu::dtype(storage), T => {
            let x = cpu::slice::<T>(storage, layout)?;
            Ok((cpu::storage(all(x)), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        by_dtype!(OP, x.dtype(), T => {
            let (values, gradient) = (Values::<T>::of(x)?, Values::<T>::of(&gradient)?);
            let (values, gradient): (&[T], &[T]) = (&values, &gradient);
            let dx = cpu::fill_chunks(values.len(), CHUNK, values.len() * COST, |i, dx: &mut [T]| {
                backward(&values[i * CHUNK..][..dx.len()], &gradient[i * CHUNK..][..dx.len()], dx);
            });
            cpu::tensor(dx, x.shape()).map(Some)
        })
    }
}

vectorised! {
    fn forward / forward_at<T, ISA>(x: &[T], y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = *x * x.normal::<ISA>().0;
        }
    }
}

vectorised! {
    fn backward / backward_at<T, ISA>(x: &[T], gradient: &[T], dx: &mut [T]) {
        for ((dx, x), gradient) in dx.iter_mut().zip(x).zip(gradient) {
            let (distribution, density) = x.normal::<ISA>();
            *dx = *gradient * T::fused::<ISA>(*x, density, distribution);
        }
    }
}

vectorised! {
    /// Replaces `x` by its activation.
    pub(crate) fn activate / activate_at<T, ISA>(x: &mut [T]) {
        for x in x {
            *x *= x.normal::<ISA>().0;
        }
    }
}

vectorised! {
    /// Replaces `x` by its gradient, given that of its activation.
    pub(crate) fn pull / pull_at<T, ISA>(x: &mut [T], gradient: &[T]) {
        for (x, gradient) in x.iter_mut().zip(gradient) {
            let (distribution, density) = x.normal::<ISA>();
            *x = *gradient * T::fused::<ISA>(*x, density, distribution);
        }
    }
}

vectorised! {
    /// Replaces `x` by its activation and, in `dy`, the gradient of the activation by that of `x`.
    pub(crate) fn forward_and_backward / forward_and_backward_at<T, ISA>(x: &mut [T], dy: &mut [T]) {
        for (x, dy) in x.iter_mut().zip(dy) {
            let (distribution, density) = x.normal::<ISA>();
            *dy *= T::fused::<ISA>(*x, density, distribution);
            *x *= distribution;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{backward_at, forward_at, gelu};
    use crate::check::{check_large, check_op, output_and_gradients, same_for_any_threads, sample};
    use crate::{reference, simd};
    use candle_core::{DType, Device, Tensor};

    #[test]
    fn matches_its_reference_and_its_gradient() {
        for shape in [vec![7], vec![3, 5, 11]] {
            let x = (sample(1, shape).unwrap() * 4.0).unwrap();
            check_op(&[x], |v| gelu(&v[0]), |v| reference::gelu(&v[0])).unwrap();
        }
    }

    #[test]
    fn many_elements_match_as_well() {
        let x = sample(1, (700, 67)).unwrap();
        check_large(&[x], |v| gelu(&v[0]), |v| reference::gelu(&v[0])).unwrap();
    }

    #[test]
    fn every_instruction_set_gives_the_same_up_to_rounding() {
        // In the lower tail the exponential magnifies the rounding of x^2 / 2, here up to 30.
        let x: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) / 60.0).collect();
        let run = |level| {
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            forward_at(level, &x, &mut y);
            backward_at(level, &x, &x, &mut dx);
            [y, dx].concat()
        };
        let baseline = run(simd::BASELINE);
        for level in [simd::AVX2, simd::AVX512] {
            for (a, b) in run(level).iter().zip(&baseline) {
                assert!((a - b).abs() <= 4e-5 * b.abs().max(1e-6), "{a} {b}");
            }
        }
    }

    #[test]
    fn nan_and_infinity_pass() {
        let x = Tensor::new(&[f32::NAN, f32::INFINITY, -40.0, 0.0], &Device::Cpu).unwrap();
        let y = gelu(&x).unwrap().to_vec1::<f32>().unwrap();
        assert!(y[0].is_nan());
        assert_eq!(y[1..], [f32::INFINITY, 0.0, 0.0]);
    }

    #[test]
    fn nothing_gives_nothing_and_integers_are_refused() {
        let empty = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(gelu(&empty).unwrap().dims(), [0, 3]);
        let message = gelu(&Tensor::zeros(3, DType::U32, &Device::Cpu).unwrap()).unwrap_err().to_string();
        assert_eq!(message, "gelu: expected dtype F32 or F64, got U32");
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let x = sample(1, (40, 1000)).unwrap();
        same_for_any_threads(|| output_and_gradients(std::slice::from_ref(&x), DType::F32, |v| gelu(&v[0]))).unwrap();
    }
}
