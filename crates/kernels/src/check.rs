//! The judge of operators, for the tests of this room and of those above it: forward pass against a plain reference in
//! f64 and f32 and in several memory layouts, gradients against central differences and against the reference.
//!
//! The tolerances of all operators are the constants below; each is a bound on the largest difference over the
//! largest reference value.

use crate::{Error, Param, ParamStore, Result, assign};
use candle_core::{DType, Device, Shape, Tensor, Var};

/// Forward and gradient, f64: sums in another order, a few hundred roundings of 1e-16.
pub const F64: f64 = 1e-12;
/// Forward and gradient, f32: a few hundred roundings of 6e-8 and polynomials good to 1e-7.
pub const F32: f64 = 5e-6;
/// Autograd against central differences in f64: the cut of the step and the roundings it magnifies.
pub const DIFFERENCES: f64 = 1e-6;
/// Step of the central differences.
const STEP: f64 = 1e-5;

/// Values in (-1, 1) that depend on `seed` and position alone, with no symmetry that a wrong axis could hide in. f64.
///
/// # Errors
/// None in practice: building a tensor on the CPU.
pub fn sample(seed: u64, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let values: Vec<f64> = (0..shape.elem_count() as u64).map(|i| unit(seed, i)).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// SplitMix64 of the position, as a fraction in (-1, 1).
fn unit(seed: u64, index: u64) -> f64 {
    let mut z = (seed << 32).wrapping_add(index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}

/// Judges `op` on f64 `inputs`, all differentiable, against `reference`.
///
/// # Errors
/// What differs, and by how much; an input of which no gradient arrives; or an error of either function.
pub fn check_op(
    inputs: &[Tensor],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    check_op_with(inputs, &[], |inputs, _| op(inputs), |inputs, _| reference(inputs))
}

/// [`check_op`] with further float tensors that take no gradient; they are cast along with the inputs.
///
/// # Errors
/// As [`check_op`].
pub fn check_op_with(
    inputs: &[Tensor],
    constants: &[Tensor],
    op: impl Fn(&[Tensor], &[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Tensor], &[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    for (dtype, tolerance) in [(DType::F64, F64), (DType::F32, F32)] {
        let constants = constants.iter().map(|t| Ok(t.to_dtype(dtype)?)).collect::<Result<Vec<_>>>()?;
        let judge = Pass::run(inputs, dtype, Layout::Contiguous, |inputs| reference(inputs, &constants))?;
        for layout in [Layout::Contiguous, Layout::Narrowed, Layout::Transposed] {
            let pass = Pass::run(inputs, dtype, layout, |inputs| op(inputs, &constants))?;
            let case = format!("{dtype:?}, {layout:?} inputs");
            same(&format!("output ({case})"), &pass.output, &judge.output, tolerance)?;
            for (i, (gradient, expected)) in pass.gradients.iter().zip(&judge.gradients).enumerate() {
                let gradient =
                    gradient.as_ref().ok_or_else(|| failure(format!("input {i} has no gradient ({case})")))?;
                if let Some(expected) = expected {
                    same(&format!("gradient of input {i} ({case})"), gradient, expected, tolerance)?;
                }
            }
            if dtype == DType::F64 && matches!(layout, Layout::Contiguous) {
                differences(inputs, &pass, |inputs| op(inputs, &constants))?;
            }
        }
    }
    Ok(())
}

/// Judges `op` on inputs of many chunks, in f64 and f32: output and gradients against those of `reference` in f64. No
/// central differences: their cost grows with the square of the size, and [`check_op`] takes them on small inputs.
///
/// # Errors
/// As [`check_op`].
pub fn check_large(
    inputs: &[Tensor],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    // Numbers that both types hold, so that f32 is not judged by the rounding of its inputs.
    let round = |t: &Tensor| Ok(t.to_dtype(DType::F32)?.to_dtype(DType::F64)?);
    let inputs = inputs.iter().map(round).collect::<Result<Vec<_>>>()?;
    let judge = output_and_gradients(&inputs, DType::F64, reference)?;
    for (dtype, tolerance) in [(DType::F64, F64), (DType::F32, F32)] {
        for (i, (got, expected)) in output_and_gradients(&inputs, dtype, &op)?.iter().zip(&judge).enumerate() {
            let what = if i == 0 { "output".to_owned() } else { format!("gradient of input {}", i - 1) };
            same(&format!("{what} ({dtype:?})"), got, expected, tolerance)?;
        }
    }
    Ok(())
}

/// The gradients of `op` on f64 `inputs`, as they lie, against central differences.
///
/// # Errors
/// The input whose gradient differs or is missing, or an error of `op`.
pub fn check_differences(inputs: &[Tensor], op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
    differences(inputs, &Pass::run(inputs, DType::F64, Layout::Contiguous, &op)?, &op)
}

/// The gradients of a scalar by the trained parameters of an f64 `store` against central differences, at some entries of
/// each. `still` names those on which it does not depend (the bias of keys moves all scores of a query alike).
///
/// # Errors
/// The parameter whose gradient differs, is missing or is nothing though it is not `still`; or an error of `loss`.
pub fn check_parameters(
    store: &ParamStore,
    still: impl Fn(&str) -> bool,
    loss: impl Fn() -> Result<Tensor>,
) -> Result<()> {
    let value = loss()?;
    // Differences of a large number are as large as its rounding allows.
    let least = 1e-3 * value.to_scalar::<f64>()?.abs().max(1.0);
    let gradients = crate::backward(&value)?;
    for Param { name, tensor, .. } in store.trained() {
        let gradient = gradients.get(tensor).ok_or_else(|| failure(format!("{name} has no gradient")))?;
        let gradient: Vec<f64> = gradient.flatten_all()?.to_vec1()?;
        let scale = gradient.iter().fold(least, |most, slope| most.max(slope.abs()));
        if !still(name) && gradient.iter().all(|slope| slope.abs() < 1e-6) {
            return Err(failure(format!("{name}: a gradient of nothing")));
        }
        let values: Vec<f64> = tensor.flatten_all()?.to_vec1()?;
        for at in (0..values.len()).step_by(values.len().div_ceil(5)) {
            let moved = |by: f64| -> Result<f64> {
                let mut values = values.clone();
                values[at] += by;
                assign(tensor, &Tensor::from_vec(values, tensor.shape(), &Device::Cpu)?)?;
                Ok(loss()?.to_scalar::<f64>()?)
            };
            let slope = (moved(STEP)? - moved(-STEP)?) / (2.0 * STEP);
            moved(0.0)?;
            let apart = (slope - gradient[at]).abs();
            if apart.is_nan() || apart > DIFFERENCES * scale {
                return Err(failure(format!("{name}[{at}]: {slope} by differences, {} by autograd", gradient[at])));
            }
        }
    }
    Ok(())
}

/// Moves every trained parameter of an f64 `store` by up to `by`, so that zeros and ones hide nothing.
///
/// # Errors
/// None in practice: building tensors on the CPU.
pub fn stir(store: &ParamStore, by: f64) -> Result<()> {
    for (seed, param) in (10..).zip(store.trained()) {
        let noise = sample(seed, param.tensor.shape().clone())?.to_dtype(param.tensor.dtype())?;
        assign(&param.tensor, &(&param.tensor + (noise * by)?)?)?;
    }
    Ok(())
}

/// How the inputs of a pass lie in memory.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Contiguous,
    /// A slice of a larger tensor: an offset and gaps.
    Narrowed,
    /// The last two axes swapped in memory.
    Transposed,
}

/// Output and gradients of one run.
struct Pass {
    output: Tensor,
    gradients: Vec<Option<Tensor>>,
}

impl Pass {
    /// The gradient is that of the output's product with fixed weights, so that every output element counts.
    fn run(inputs: &[Tensor], dtype: DType, layout: Layout, op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<Self> {
        let leaves = inputs.iter().map(|t| layout.leaf(&t.to_dtype(dtype)?)).collect::<Result<Vec<_>>>()?;
        let views = leaves.iter().map(|leaf| layout.view(leaf.as_tensor())).collect::<Result<Vec<_>>>()?;
        let output = op(&views)?;
        let gradients = crate::backward(&projection(&output)?)?;
        let gradients = leaves
            .iter()
            .map(|leaf| gradients.get(leaf.as_tensor()).map(|gradient| layout.view(gradient)).transpose())
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { output, gradients })
    }
}

impl Layout {
    fn leaf(self, input: &Tensor) -> Result<Var> {
        let stored = match self {
            Self::Narrowed if input.rank() > 0 => input.pad_with_zeros(input.rank() - 1, 1, 2)?,
            Self::Transposed if input.rank() > 1 => {
                input.transpose(input.rank() - 2, input.rank() - 1)?.contiguous()?
            }
            _ => input.copy()?,
        };
        Ok(Var::from_tensor(&stored)?)
    }

    fn view(self, stored: &Tensor) -> Result<Tensor> {
        let rank = stored.rank();
        Ok(match self {
            Self::Narrowed if rank > 0 => stored.narrow(rank - 1, 1, stored.dim(rank - 1)? - 3)?,
            Self::Transposed if rank > 1 => stored.transpose(rank - 2, rank - 1)?,
            _ => stored.clone(),
        })
    }
}

fn projection(output: &Tensor) -> Result<Tensor> {
    let weights = sample(0x0cc1, output.shape().clone())?.to_dtype(output.dtype())?.to_device(output.device())?;
    Ok((output * weights)?.sum_all()?)
}

fn differences(inputs: &[Tensor], pass: &Pass, op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
    for (i, gradient) in pass.gradients.iter().enumerate() {
        let gradient = gradient.as_ref().ok_or_else(|| failure(format!("input {i} has no gradient")))?;
        let values = inputs[i].flatten_all()?.to_vec1::<f64>()?;
        let mut slopes = Vec::with_capacity(values.len());
        for element in 0..values.len() {
            let at = |step: f64| -> Result<f64> {
                let mut moved = values.clone();
                moved[element] += step;
                let mut inputs = inputs.to_vec();
                inputs[i] = Tensor::from_vec(moved, inputs[i].shape().clone(), &Device::Cpu)?;
                Ok(projection(&op(&inputs)?)?.to_scalar::<f64>()?)
            };
            slopes.push((at(STEP)? - at(-STEP)?) / (2.0 * STEP));
        }
        let slopes = Tensor::from_vec(slopes, inputs[i].shape().clone(), &Device::Cpu)?;
        same(&format!("gradient of input {i} against central differences"), gradient, &slopes, DIFFERENCES)?;
    }
    Ok(())
}

/// Fails unless `got` has the shape and, within `tolerance` of the largest reference value, the values of `expected`.
///
/// # Errors
/// What differs, and by how much.
pub fn same(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) -> Result<()> {
    if got.dims() != expected.dims() {
        return Err(failure(format!("{what}: shape {:?}, expected {:?}", got.dims(), expected.dims())));
    }
    let values = |t: &Tensor| -> Result<Vec<f64>> { Ok(t.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?) };
    let (got, expected) = (values(got)?, values(expected)?);
    let scale = expected.iter().fold(0.0_f64, |most, value| most.max(value.abs())).max(f64::MIN_POSITIVE);
    for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
        let difference = (a - b).abs() / scale;
        // Written so that a NaN fails. Below the smallest f32 both are nothing.
        if !(difference <= tolerance || (a.abs() < 1e-37 && b.abs() < 1e-37)) {
            return Err(failure(format!(
                "{what}: element {i} is {a:e}, expected {b:e} ({difference:.1e} of the largest)"
            )));
        }
    }
    Ok(())
}

/// Runs `f` with 1, 2 and 3 threads; fails unless all tensors are bit-equal.
///
/// # Errors
/// The tensor that differs, or an error of `f`.
pub fn same_for_any_threads(f: impl Fn() -> Result<Vec<Tensor>> + Sync) -> Result<()> {
    let bits = |threads: usize| -> Result<Vec<Vec<u64>>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| failure(e.to_string()))?;
        let tensors = pool.install(&f)?;
        let bits = |t: &Tensor| -> Result<Vec<u64>> {
            let values: Vec<f64> = t.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
            Ok(values.into_iter().map(f64::to_bits).collect())
        };
        tensors.iter().map(bits).collect()
    };
    let one = bits(1)?;
    for threads in [2, 3] {
        let many = bits(threads)?;
        if let Some(i) = (0..one.len()).find(|&i| one[i] != many[i]) {
            return Err(failure(format!("tensor {i} differs between 1 and {threads} threads")));
        }
    }
    Ok(())
}

/// Output and the gradients of all inputs, of a leaf per input in `dtype`: what [`same_for_any_threads`] compares.
///
/// # Errors
/// An error of `op`, or an input without a gradient.
pub fn output_and_gradients(
    inputs: &[Tensor],
    dtype: DType,
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let pass = Pass::run(inputs, dtype, Layout::Contiguous, op)?;
    let mut all = vec![pass.output];
    for (i, gradient) in pass.gradients.into_iter().enumerate() {
        all.push(gradient.ok_or_else(|| failure(format!("input {i} has no gradient")))?);
    }
    Ok(all)
}

fn failure(message: String) -> Error {
    Error::argument("check_op", message)
}

#[cfg(test)]
mod tests {
    use super::{check_large, check_op, same_for_any_threads, sample};
    use candle_core::{DType, Tensor};

    #[test]
    fn a_right_operator_passes() {
        let inputs = [sample(1, (3, 4)).unwrap(), sample(2, (3, 4)).unwrap()];
        check_op(&inputs, |v| Ok((&v[0] * &v[1])?), |v| Ok((&v[1] * &v[0])?)).unwrap();
    }

    #[test]
    fn a_wrong_value_a_wrong_gradient_and_a_missing_one_are_told_apart() {
        let inputs = [sample(1, (3, 4)).unwrap()];
        let refusal = |op: fn(&Tensor) -> candle_core::Result<Tensor>| {
            check_op(&inputs, |v| Ok(op(&v[0])?), |v| Ok(v[0].sqr()?)).unwrap_err().to_string()
        };
        assert!(refusal(|x| x.sqr()? * 1.001).contains("output"));
        assert!(refusal(|x| x * x.detach()).contains("gradient of input 0"));
        assert!(refusal(|x| x.detach().sqr()? + 0.0 * x.ones_like()?).contains("no gradient"));
    }

    #[test]
    fn a_wrong_value_and_a_wrong_gradient_are_told_apart_without_differences() {
        let refusal = |op: fn(&Tensor) -> candle_core::Result<Tensor>| {
            check_large(&[sample(1, (3, 4)).unwrap()], |v| Ok(op(&v[0])?), |v| Ok(v[0].sqr()?))
        };
        refusal(Tensor::sqr).unwrap();
        assert!(refusal(|x| x.sqr()? * 1.001).unwrap_err().to_string().contains("output"));
        assert!(refusal(|x| x * x.detach()).unwrap_err().to_string().contains("gradient of input 0"));
    }

    #[test]
    fn a_result_that_depends_on_the_threads_is_found() {
        let count = || Ok(vec![Tensor::new(rayon::current_num_threads() as f64, &candle_core::Device::Cpu)?]);
        assert!(same_for_any_threads(count).unwrap_err().to_string().contains("threads"));
        assert!(same_for_any_threads(|| Ok(vec![sample(1, 5)?.to_dtype(DType::F32)?])).is_ok());
    }
}
