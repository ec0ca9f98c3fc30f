//! AdamW and the moving average of the weights, in one pass over memory.

use crate::cpu::{self, Real, SharedRows, Values, by_dtype};
use crate::simd::vectorised;
use crate::{Error, Result, assign, input};
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, Tensor};
use std::any::Any;
use std::cell::RefCell;

/// What one step of one tensor needs besides the tensors: the group's settings at this step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate, factors of the parameter included.
    pub lr: f64,
    /// Weight decay, factors of the parameter included; decoupled: `p -= lr * weight_decay * p` before the update.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment, outside the root.
    pub eps: f64,
    /// Number of this step, from 1: for the bias correction.
    pub step: u64,
    /// The gradient is multiplied by this first (clipping); 1 for none.
    pub grad_scale: f64,
    /// Momentum of the average, where there is one: `average = m * average + (1 - m) * p` with the new `p`.
    pub ema_momentum: Option<f64>,
}

/// One AdamW step of `param`, in place; `m` and `v` are its moments (zeros before the first step), `ema` its average,
/// updated if the settings hold a momentum. All of one shape, dtype (f32 or f64) and device; all but the gradient
/// contiguous and in memory of their own. Source: CAPI specification, section 12.
///
/// Only safe between steps: a graph that still holds `param` would see the new values.
///
/// # Errors
/// Shapes, dtypes or devices that differ, a dtype that is not f32 or f64, a tensor with gaps, memory that serves two
/// operands, or step 0; nothing is changed then.
pub fn adamw_step(
    param: &Tensor,
    grad: &Tensor,
    m: &Tensor,
    v: &Tensor,
    ema: Option<&Tensor>,
    settings: &AdamWStep,
) -> Result<()> {
    let op = "adamw";
    if settings.step == 0 {
        return Err(Error::argument(op, "step 0: steps count from 1"));
    }
    let ema = ema.zip(settings.ema_momentum);
    let mut written = vec![("parameter", param), ("first moment", m), ("second moment", v)];
    written.extend(ema.map(|(average, _)| ("average", average)));
    check(op, &written, ("gradient", grad))?;
    if !cpu::on_cpu(param) {
        composed(param, grad, m, v, settings)?;
        return ema.map_or(Ok(()), |(average, momentum)| composed_average(average, param, momentum));
    }
    crate::precision::forget();
    let grad = grad.contiguous()?;
    by_dtype!(op, param.dtype(), T => {
        let grad = Values::<T>::of(&grad)?;
        let rates = Rates::<T>::of(settings);
        writing(param, |param| writing(m, |m| writing(v, |v| match ema {
            None => step_all(param, &grad, m, v, &mut [], &rates),
            Some((average, _)) => writing(average, |average| step_all(param, &grad, m, v, average, &rates)),
        })))
    })
}

/// `average = momentum * average + (1 - momentum) * param`, in place: for averages that do not follow the optimizer's step.
/// Both of one shape, dtype (f32 or f64) and device, contiguous and in memory of their own.
///
/// Only safe between steps, as [`adamw_step`] is.
///
/// # Errors
/// As [`adamw_step`]; nothing is changed then.
pub fn move_average(average: &Tensor, param: &Tensor, momentum: f64) -> Result<()> {
    let op = "move_average";
    check(op, &[("average", average)], ("parameter", param))?;
    if !cpu::on_cpu(average) {
        return composed_average(average, param, momentum);
    }
    crate::precision::forget();
    let param = param.detach().contiguous()?;
    by_dtype!(op, average.dtype(), T => {
        let (param, weights) = (Values::<T>::of(&param)?, (T::of(momentum), T::of(1.0 - momentum)));
        let param: &[T] = &param;
        writing(average, |average: &mut [T]| {
            let work = average.len();
            cpu::for_chunks(average, cpu::ELEMENTS, work, |i, average| {
                average_chunk(average, &param[i * cpu::ELEMENTS..][..average.len()], weights);
            });
            Ok(())
        })
    })
}

/// The L2 norm of all gradients together, added in f64 in the order given.
///
/// # Errors
/// A dtype that is not f32 or f64.
pub fn global_norm<'a>(gradients: impl IntoIterator<Item = &'a Tensor>) -> Result<f64> {
    let op = "global_norm";
    let mut sum = 0.0;
    for gradient in gradients {
        input::float(op, gradient)?;
        let gradient = gradient.detach();
        if !cpu::on_cpu(&gradient) {
            sum += gradient.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
            continue;
        }
        let gradient = gradient.contiguous()?;
        let squares: Result<f64> = by_dtype!(op, gradient.dtype(), T => {
            let values = Values::<T>::of(&gradient)?;
            let groups = values.len().div_ceil(cpu::ELEMENTS);
            let partial = cpu::fill_chunks(groups, 1, values.len(), |i, out: &mut [f64]| {
                let start = i * cpu::ELEMENTS;
                out[0] = sum_of_squares(&values[start..values.len().min(start + cpu::ELEMENTS)]);
            });
            Ok(partial.iter().sum())
        });
        sum += squares?;
    }
    Ok(sum.sqrt())
}

fn check(op: &'static str, written: &[(&str, &Tensor)], read: (&str, &Tensor)) -> Result<()> {
    let (_, first) = written[0];
    let all: Vec<(&str, &Tensor)> = written.iter().copied().chain([read]).collect();
    for (i, (what, tensor)) in all.iter().enumerate() {
        input::same_float(op, first, tensor)?;
        input::shape(op, what, tensor, first.dims())?;
        if !tensor.device().same_device(first.device()) {
            return Err(Error::argument(op, format!("{what} is on another device than {}", written[0].0)));
        }
        if i < written.len() && !tensor.is_contiguous() {
            return Err(Error::shape(op, format!("{what} without gaps"), tensor.dims()));
        }
        // Each operand is locked while the pass runs; a second lock on one memory would wait for ever.
        if let Some((other, _)) = all[..i].iter().find(|(_, other)| home(other) == home(tensor)) {
            return Err(Error::argument(op, format!("{other} and {what} share memory")));
        }
    }
    Ok(())
}

/// Identity of the memory behind a tensor.
fn home(tensor: &Tensor) -> *const Storage {
    let (storage, _) = tensor.storage_and_layout();
    std::ptr::from_ref(&*storage)
}

/// The numbers of one step, in the type of the tensors; what f64 can do is done before rounding.
struct Rates<T> {
    grad_scale: T,
    beta1: T,
    beta2: T,
    /// 1 - beta1 and 1 - beta2.
    take1: T,
    take2: T,
    /// 1 - lr * weight decay.
    keep: T,
    /// lr over the first bias correction.
    rate: T,
    /// 1 over the root of the second bias correction.
    root_scale: T,
    eps: T,
    /// Momentum of the average, and what is left of 1.
    ema: (T, T),
}

impl<T: Real> Rates<T> {
    fn of(s: &AdamWStep) -> Self {
        let momentum = s.ema_momentum.unwrap_or(1.0);
        Self {
            grad_scale: T::of(s.grad_scale),
            beta1: T::of(s.beta1),
            beta2: T::of(s.beta2),
            take1: T::of(1.0 - s.beta1),
            take2: T::of(1.0 - s.beta2),
            keep: T::of(1.0 - s.lr * s.weight_decay),
            rate: T::of(s.lr / correction(s.beta1, s.step)),
            root_scale: T::of(1.0 / correction(s.beta2, s.step).sqrt()),
            eps: T::of(s.eps),
            ema: (T::of(momentum), T::of(1.0 - momentum)),
        }
    }
}

/// Elements are independent, so any cut gives the same bits. `average` may be empty: none is kept.
fn step_all<T: Real>(
    param: &mut [T],
    grad: &[T],
    m: &mut [T],
    v: &mut [T],
    average: &mut [T],
    rates: &Rates<T>,
) -> Result<()> {
    let [m, v, average] = [m, v, average].map(SharedRows::new);
    let work = param.len();
    cpu::for_chunks(param, cpu::ELEMENTS, work, |i, param| {
        let grad = &grad[i * cpu::ELEMENTS..][..param.len()];
        // SAFETY: no two calls get the same index.
        #[allow(unsafe_code)]
        let [m, v, average] = [&m, &v, &average].map(|shared| unsafe { shared.chunk(i, cpu::ELEMENTS) });
        step_chunk(param, grad, m, v, average, rates);
    });
    Ok(())
}

vectorised! {
    fn step_chunk / step_chunk_at<T, ISA>(
        param: &mut [T], grad: &[T], m: &mut [T], v: &mut [T], average: &mut [T], r: &Rates<T>,
    ) {
        let n = param.len();
        let (grad, m, v) = (&grad[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let g = grad[i] * r.grad_scale;
            m[i] = r.beta1 * m[i] + r.take1 * g;
            v[i] = r.beta2 * v[i] + r.take2 * g * g;
            let update = m[i] / (v[i].root() * r.root_scale + r.eps);
            param[i] = param[i] * r.keep - r.rate * update;
        }
        // The chunk is still in the cache.
        for (average, param) in average.iter_mut().zip(&*param) {
            *average = r.ema.0 * *average + r.ema.1 * *param;
        }
    }
}

vectorised! {
    fn average_chunk / average_chunk_at<T, ISA>(average: &mut [T], param: &[T], weights: (T, T)) {
        for (average, param) in average.iter_mut().zip(param) {
            *average = weights.0 * *average + weights.1 * *param;
        }
    }
}

vectorised! {
    fn sum_of_squares / sum_of_squares_at<T, ISA>(values: &[T]) -> f64 {
        const LANES: usize = 16;
        let mut lanes = [0.0_f64; LANES];
        let chunks = values.chunks_exact(LANES);
        let rest: f64 = chunks.remainder().iter().map(|value| value.wide() * value.wide()).sum();
        for chunk in chunks {
            for l in 0..LANES {
                lanes[l] = f64::fused::<ISA>(chunk[l].wide(), chunk[l].wide(), lanes[l]);
            }
        }
        lanes.iter().sum::<f64>() + rest
    }
}

/// Runs `f` on the elements of a contiguous CPU tensor, which is locked for writing meanwhile.
pub(crate) fn writing<T: Real>(tensor: &Tensor, f: impl FnOnce(&mut [T]) -> Result<()>) -> Result<()> {
    let op = Writing { f: RefCell::new(Some(f)), result: RefCell::new(Ok(())), element: std::marker::PhantomData };
    tensor.inplace_op1(&op)?;
    op.result.into_inner()
}

/// candle hands out mutable storage to in-place operators only; this one lends it to a closure.
struct Writing<F, T> {
    f: RefCell<Option<F>>,
    result: RefCell<Result<()>>,
    element: std::marker::PhantomData<T>,
}

impl<T: Real, F: FnOnce(&mut [T]) -> Result<()>> InplaceOp1 for Writing<F, T> {
    fn name(&self) -> &'static str {
        "writing"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let values: &mut dyn Any = match storage {
            CpuStorage::F32(values) => values,
            CpuStorage::F64(values) => values,
            _ => return Err(Error::argument("writing", "neither f32 nor f64").into()),
        };
        let (Some(values), Some((start, end)), Some(f)) =
            (values.downcast_mut::<Vec<T>>(), layout.contiguous_offsets(), self.f.take())
        else {
            return Err(Error::argument("writing", "another dtype, or gaps").into());
        };
        *self.result.borrow_mut() = f(&mut values[start..end]);
        Ok(())
    }
}

/// The step as a composition of tensor operations: devices other than the CPU.
fn composed(param: &Tensor, grad: &Tensor, m: &Tensor, v: &Tensor, s: &AdamWStep) -> Result<()> {
    let (param, grad) = (param.detach(), (grad.detach() * s.grad_scale)?);
    let first = ((m.detach() * s.beta1)? + (&grad * (1.0 - s.beta1))?)?;
    let second = ((v.detach() * s.beta2)? + (grad.sqr()? * (1.0 - s.beta2))?)?;
    let root = ((second.sqrt()? / correction(s.beta2, s.step).sqrt())? + s.eps)?;
    let update = ((&first / &root)? * (s.lr / correction(s.beta1, s.step)))?;
    assign(&param, &((&param * (1.0 - s.lr * s.weight_decay))? - update)?)?;
    assign(m, &first)?;
    assign(v, &second)
}

fn composed_average(average: &Tensor, param: &Tensor, momentum: f64) -> Result<()> {
    assign(average, &((average.detach() * momentum)? + (param.detach() * (1.0 - momentum))?)?)
}

/// What a moment that started at zero is short of after `step` steps.
fn correction(beta: f64, step: u64) -> f64 {
    1.0 - beta.powf(step as f64)
}

#[cfg(test)]
mod tests {
    use super::{AdamWStep, Rates, adamw_step, global_norm};
    use crate::Error;
    use crate::check::{same_for_any_threads, sample};
    use crate::levels::{same_on_all, values as numbers};
    use candle_core::{DType, Device, Tensor, Var};

    const SETTINGS: AdamWStep = AdamWStep {
        lr: 1e-2,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        step: 1,
        grad_scale: 1.0,
        ema_momentum: Some(0.9),
    };

    fn values(tensor: &Tensor) -> Vec<f64> {
        tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
        assert_eq!(a.dims(), b.dims());
        values(a).iter().zip(&values(b)).fold(0.0, |most, (a, b)| {
            assert!(!(a - b).is_nan());
            most.max((a - b).abs())
        })
    }

    /// What one element holds.
    #[derive(Clone, Copy)]
    struct Element {
        param: f64,
        m: f64,
        v: f64,
        average: f64,
    }

    /// The update as the papers write it, one number at a time.
    fn judge(e: &mut Element, gradient: f64, s: &AdamWStep) {
        let gradient = gradient * s.grad_scale;
        e.param -= s.lr * s.weight_decay * e.param;
        e.m = s.beta1 * e.m + (1.0 - s.beta1) * gradient;
        e.v = s.beta2 * e.v + (1.0 - s.beta2) * gradient * gradient;
        let first = e.m / (1.0 - s.beta1.powi(s.step as i32));
        let second = e.v / (1.0 - s.beta2.powi(s.step as i32));
        e.param -= s.lr * first / (second.sqrt() + s.eps);
        if let Some(momentum) = s.ema_momentum {
            e.average = momentum * e.average + (1.0 - momentum) * e.param;
        }
    }

    /// Tensors of one parameter: itself, moments, average.
    fn state(shape: &[usize], dtype: DType) -> [Tensor; 4] {
        let start = sample(1, shape).unwrap().to_dtype(dtype).unwrap();
        let average = sample(2, shape).unwrap().to_dtype(dtype).unwrap();
        let zeros = || Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        [Var::from_tensor(&start).unwrap().into_inner(), zeros(), zeros(), average]
    }

    #[test]
    fn steps_agree_with_the_formula_in_f64() {
        for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 2e-6)] {
            for shape in [&[1][..], &[7], &[3, 33], &[150, 130]] {
                let [param, m, v, average] = state(shape, dtype);
                let start =
                    |i: usize| Element { param: values(&param)[i], m: 0.0, v: 0.0, average: values(&average)[i] };
                let mut elements: Vec<Element> = if param.elem_count() < 100 {
                    (0..param.elem_count()).map(start).collect()
                } else {
                    let (params, averages) = (values(&param), values(&average));
                    params
                        .iter()
                        .zip(&averages)
                        .map(|(&param, &average)| Element { param, m: 0.0, v: 0.0, average })
                        .collect()
                };
                for step in 1..=3 {
                    let settings = AdamWStep { step, grad_scale: 0.5, ..SETTINGS };
                    let gradient = sample(10 + step, shape).unwrap().to_dtype(dtype).unwrap();
                    adamw_step(&param, &gradient, &m, &v, Some(&average), &settings).unwrap();
                    elements.iter_mut().zip(values(&gradient)).for_each(|(e, gradient)| judge(e, gradient, &settings));
                }
                let expected = |pick: fn(&Element) -> f64| elements.iter().map(pick).collect::<Vec<_>>();
                for (name, tensor, expected) in [
                    ("param", &param, expected(|e| e.param)),
                    ("m", &m, expected(|e| e.m)),
                    ("v", &v, expected(|e| e.v)),
                    ("average", &average, expected(|e| e.average)),
                ] {
                    let expected = Tensor::from_vec(expected, shape, &Device::Cpu).unwrap();
                    let difference = largest_difference(tensor, &expected);
                    assert!(difference <= tolerance, "{name} {shape:?} {dtype:?}: {difference:e}");
                }
            }
        }
    }

    #[test]
    fn a_strided_gradient_and_no_average_are_fine() {
        let [param, m, v, average] = state(&[4, 5], DType::F64);
        let other = state(&[4, 5], DType::F64);
        let gradient = sample(3, (5, 4)).unwrap().t().unwrap();
        let settings = AdamWStep { ema_momentum: None, ..SETTINGS };
        adamw_step(&param, &gradient, &m, &v, None, &settings).unwrap();
        adamw_step(&other[0], &gradient.contiguous().unwrap(), &other[1], &other[2], Some(&other[3]), &settings)
            .unwrap();
        assert_eq!(values(&param), values(&other[0]));
        assert_eq!(values(&average), values(&other[3]), "no momentum, no update");
    }

    #[test]
    fn a_gradient_of_nan_is_not_hidden() {
        let [param, m, v, average] = state(&[3], DType::F32);
        let gradient = Tensor::new(&[0.1_f32, f32::NAN, 0.1], &Device::Cpu).unwrap();
        adamw_step(&param, &gradient, &m, &v, Some(&average), &SETTINGS).unwrap();
        let (param, average) = (values(&param), values(&average));
        assert!(param[1].is_nan() && average[1].is_nan() && param[0].is_finite() && param[2].is_finite());
    }

    #[test]
    fn a_refused_step_changes_nothing() {
        let [param, m, v, average] = state(&[3], DType::F32);
        let before = [values(&param), values(&m), values(&v), values(&average)];
        let gradient = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
        let step = |gradient: &Tensor, v: &Tensor, average: &Tensor, settings: &AdamWStep| {
            adamw_step(&param, gradient, &m, v, Some(average), settings)
        };
        let long = Tensor::ones(4, DType::F32, &Device::Cpu).unwrap();
        let double = gradient.to_dtype(DType::F64).unwrap();
        let zeroth = AdamWStep { step: 0, ..SETTINGS };
        assert!(matches!(step(&long, &v, &average, &SETTINGS), Err(Error::Shape { .. })));
        assert!(matches!(step(&double, &v, &average, &SETTINGS), Err(Error::Dtype { .. })));
        assert!(matches!(step(&gradient, &v, &long, &SETTINGS), Err(Error::Shape { .. })));
        assert!(matches!(step(&gradient, &v, &average, &zeroth), Err(Error::Argument { .. })));
        // One memory as two operands: the pass would write what it still has to read.
        assert!(matches!(step(&gradient, &m, &average, &SETTINGS), Err(Error::Argument { .. })));
        assert!(matches!(step(&gradient, &v, &param, &SETTINGS), Err(Error::Argument { .. })));
        assert_eq!(before, [values(&param), values(&m), values(&v), values(&average)]);
    }

    #[test]
    fn the_norm_of_all_gradients_is_one_number() {
        let a = Tensor::new(&[3_f32, 0.0], &Device::Cpu).unwrap();
        let b = Tensor::new(&[[4_f64]], &Device::Cpu).unwrap();
        assert_eq!(global_norm([&a, &b]).unwrap(), 5.0);
        assert_eq!(global_norm([]).unwrap(), 0.0);
        assert!(global_norm([&(a * f64::NAN).unwrap()]).unwrap().is_nan());
        // 1e20 squared is beyond f32.
        let large = Tensor::full(1e20_f32, 4, &Device::Cpu).unwrap();
        assert!((global_norm([&large]).unwrap() / 2e20 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn any_number_of_threads_gives_equal_bits() {
        let gradient = sample(3, (300, 301)).unwrap().to_dtype(DType::F32).unwrap();
        same_for_any_threads(|| {
            let [param, m, v, average] = state(&[300, 301], DType::F32);
            adamw_step(&param, &gradient, &m, &v, Some(&average), &SETTINGS)?;
            let norm = Tensor::new(global_norm([&gradient, &param])?, &Device::Cpu)?;
            Ok(vec![param, m, v, average, norm])
        })
        .unwrap();
    }

    #[test]
    fn every_instruction_set_gives_the_same() {
        let (param, grad) = (numbers(1, 101), numbers(2, 101));
        same_on_all(1e-6, |level| {
            let (mut param, mut average) = (param.clone(), grad.clone());
            let (mut m, mut v) = (vec![0.0; 101], vec![0.0; 101]);
            super::step_chunk_at(level, &mut param, &grad, &mut m, &mut v, &mut average, &Rates::of(&SETTINGS));
            let squares = super::sum_of_squares_at(level, &grad) as f32 / 101.0;
            [param, average, m, v, vec![squares]].concat()
        });
    }

    #[test]
    fn the_composition_for_other_devices_agrees() {
        let (fused, plain) = (state(&[5, 7], DType::F64), state(&[5, 7], DType::F64));
        for step in 1..=3 {
            let settings = AdamWStep { step, grad_scale: 0.5, ..SETTINGS };
            let gradient = sample(10 + step, (5, 7)).unwrap();
            adamw_step(&fused[0], &gradient, &fused[1], &fused[2], Some(&fused[3]), &settings).unwrap();
            super::composed(&plain[0], &gradient, &plain[1], &plain[2], &settings).unwrap();
            super::composed_average(&plain[3], &plain[0], 0.9).unwrap();
        }
        for (fused, plain) in fused.iter().zip(&plain) {
            assert!(largest_difference(fused, plain) < 1e-14);
        }
    }

    #[test]
    fn an_average_moves_by_itself() {
        for (dtype, len) in [(DType::F32, 70_003), (DType::F64, 5), (DType::F32, 0)] {
            let sample = |seed| sample(seed, len).unwrap().to_dtype(dtype).unwrap();
            let (average, param) = (sample(1), sample(2));
            let expected = ((&average * 0.9).unwrap() + (&param * (1.0 - 0.9)).unwrap()).unwrap();
            super::move_average(&average, &param, 0.9).unwrap();
            assert!(largest_difference(&average, &expected) < 1e-6);
        }
        let (average, other) = (sample(1, 4).unwrap(), sample(2, 5).unwrap());
        assert!(super::move_average(&average, &other, 0.9).unwrap_err().to_string().contains("parameter"));
        assert!(super::move_average(&average, &average, 0.9).unwrap_err().to_string().contains("share memory"));
    }
}
