//! Gradients of one backward pass, by tensor.

use crate::adamw::writing;
use crate::cpu::{self, Matrix, Real, Values, by_dtype};
use crate::{Error, Result, input};
use candle_core::{Tensor, TensorId};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

/// Gradients of trained tensors. A map of our own, so that an operator with hand-written backward can add to it
/// the gradients of parameters that candle's graph does not route.
#[derive(Debug, Default)]
pub struct Gradients {
    by_id: HashMap<TensorId, Tensor>,
    /// Of which the memory is this map's own.
    growing: HashSet<TensorId>,
}

impl Gradients {
    /// The gradient of `tensor`, if the loss depends on it. Same shape and dtype as `tensor`.
    #[must_use]
    pub fn get(&self, tensor: &Tensor) -> Option<&Tensor> {
        self.by_id.get(&tensor.id())
    }

    /// Adds `gradient` to what is held for the tensor of this id.
    ///
    /// # Errors
    /// Shapes or dtypes differ; what is held stays then.
    pub fn accumulate(&mut self, id: TensorId, gradient: Tensor) -> Result<()> {
        let sum = match self.by_id.get(&id) {
            Some(held) => (held + gradient)?,
            None => gradient,
        };
        self.growing.remove(&id);
        self.by_id.insert(id, sum);
        Ok(())
    }

    /// Adds the gradients of the scalar `loss` with respect to every variable it depends on. Those of weights grow in place
    /// where an operator adds to them itself (linear maps of blocks do), so that a pass over one part of a batch after the
    /// other holds each gradient once; clones of what [`Gradients::get`] gave share that memory. Drop `loss` afterwards: its
    /// graph keeps all activations alive.
    ///
    /// # Errors
    /// `loss` is not a scalar, or an operator has no backward; what was held may hold a part of the new gradients then.
    pub fn add(&mut self, loss: &Tensor) -> Result<()> {
        if loss.elem_count() != 1 {
            return Err(Error::shape("backward", "a scalar", loss.dims()));
        }
        let growing = std::mem::take(&mut self.growing);
        let own = growing.into_iter().filter_map(|id| self.by_id.remove(&id).map(|sum| (id, sum))).collect();
        let collecting = Collecting::start(own);
        let store = loss.backward();
        for (id, sum) in collecting.finish() {
            self.by_id.insert(id, sum);
            self.growing.insert(id);
        }
        let store = store?;
        // candle's store also holds gradients of constants, and of a loss that depends on nothing.
        for node in loss.sorted_nodes().into_iter().filter(|node| node.is_variable()) {
            if let Some(gradient) = store.get(node) {
                self.accumulate(node.id(), gradient.clone())?;
            }
        }
        Ok(())
    }

    /// Takes the gradient of `tensor` out, if the loss depends on it.
    pub fn take(&mut self, tensor: &Tensor) -> Option<Tensor> {
        self.growing.remove(&tensor.id());
        self.by_id.remove(&tensor.id())
    }

    /// Adds everything in `other`.
    ///
    /// # Errors
    /// Shapes or dtypes of two gradients of one tensor differ; others may have been added by then.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        other.by_id.into_iter().try_for_each(|(id, gradient)| self.accumulate(id, gradient))
    }

    /// Adds what a linear map `y = input w^T + b` hands to its weight and bias when `gradient` is that of `y`. From the
    /// second time on the gradient of the weight grows in place, so that a map of one part of a batch after the other
    /// costs no copies; clones of what [`Gradients::get`] gave share that memory.
    /// weight: `[out, in]`, bias: `[out]`, gradient: `[rows, out]`, input: `[rows, in]`; f32 or f64.
    ///
    /// # Errors
    /// Shapes or dtypes that do not fit.
    pub fn add_linear(
        &mut self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        gradient: &Tensor,
        input: &Tensor,
    ) -> Result<()> {
        let op = "add_linear";
        let ((out, inner), (rows, _)) = (weight.dims2()?, gradient.dims2()?);
        input::same_float(op, weight, gradient)?;
        input::same_float(op, weight, input)?;
        input::shape(op, "gradient", gradient, &[rows, out])?;
        input::shape(op, "input", input, &[rows, inner])?;
        bias.map_or(Ok(()), |bias| input::shape(op, "bias", bias, &[out]))?;
        let (gradient, input) = (gradient.detach().contiguous()?, input.detach().contiguous()?);
        if !cpu::on_cpu(weight) {
            bias.map_or(Ok(()), |bias| self.accumulate(bias.id(), gradient.sum(0)?))?;
            return self.accumulate(weight.id(), gradient.t()?.matmul(&input)?);
        }
        by_dtype!(op, weight.dtype(), T => {
            let (gradient, input) = (Values::<T>::of(&gradient)?, Values::<T>::of(&input)?);
            if let Some(bias) = bias {
                self.accumulate(bias.id(), cpu::tensor(cpu::column_sums(&gradient, out), out)?)?;
            }
            let (left, right) = (Matrix::new(&gradient, rows, out).t(), Matrix::new(&input, rows, inner));
            match self.by_id.get(&weight.id()).filter(|_| self.growing.contains(&weight.id())) {
                Some(held) => writing(held, |sum: &mut [T]| {
                    cpu::add_product(sum, left, right, None);
                    Ok(())
                }),
                None => {
                    self.accumulate(weight.id(), cpu::tensor(cpu::product(left, right), weight.shape())?)?;
                    self.growing.insert(weight.id());
                    Ok(())
                }
            }
        })
    }

    /// How many tensors have a gradient.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether no tensor has a gradient.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

/// Gradients of the scalar `loss` with respect to every variable it depends on. Drop `loss` afterwards: its graph
/// keeps all activations alive.
///
/// # Errors
/// `loss` is not a scalar, or an operator has no backward.
pub fn backward(loss: &Tensor) -> Result<Gradients> {
    let mut gradients = Gradients::default();
    gradients.add(loss)?;
    Ok(gradients)
}

thread_local! {
    /// Sums of the backward pass that runs on this thread; candle walks a graph on one thread.
    static SUMS: RefCell<Option<HashMap<TensorId, Tensor>>> = const { RefCell::new(None) };
}

/// As long as it lives, operators with more parameters than candle has arguments may [`collect`] on this thread.
struct Collecting {
    /// What an outer pass on this thread had collected.
    outer: Option<HashMap<TensorId, Tensor>>,
}

impl Collecting {
    /// Goes on from `sums`, whose memory nothing else reads.
    fn start(sums: HashMap<TensorId, Tensor>) -> Self {
        Self { outer: SUMS.replace(Some(sums)) }
    }

    fn finish(self) -> HashMap<TensorId, Tensor> {
        SUMS.take().unwrap_or_default()
    }
}

impl Drop for Collecting {
    fn drop(&mut self) {
        SUMS.set(self.outer.take());
    }
}

/// Adds to the gradient of `parameter`, in place: `add` is given the row-major sum so far. Nothing happens to a tensor
/// that is not tracked.
///
/// # Errors
/// The pass was not started by [`backward`] or [`Gradients::add`], or the sum has another dtype.
pub(crate) fn collect<T: Real>(parameter: &Tensor, add: impl FnOnce(&mut [T])) -> candle_core::Result<()> {
    collect_with(parameter, |held: Option<&mut [T]>| match held {
        Some(sum) => {
            add(sum);
            None
        }
        None => {
            let mut sum = vec![T::zero(); parameter.elem_count()];
            add(&mut sum);
            Some(sum)
        }
    })
}

/// As [`collect`]; `add` is given the sum so far, or makes the first one.
fn collect_with<T: Real>(
    parameter: &Tensor,
    add: impl FnOnce(Option<&mut [T]>) -> Option<Vec<T>>,
) -> candle_core::Result<()> {
    if !parameter.track_op() {
        return Ok(());
    }
    let held = SUMS.with_borrow(|sums| sums.as_ref().map(|sums| sums.get(&parameter.id()).cloned()));
    let held = held.ok_or_else(|| {
        Error::argument(
            "backward",
            "this graph holds fused blocks: call occlude_kernels::backward, not Tensor::backward",
        )
    })?;
    if let Some(sum) = held {
        return Ok(writing(&sum, |sum| {
            add(Some(sum));
            Ok(())
        })?);
    }
    let Some(first) = add(None) else { return Ok(()) };
    let sum = cpu::tensor(first, parameter.shape())?;
    SUMS.with_borrow_mut(|sums| sums.as_mut().map(|sums| sums.insert(parameter.id(), sum)));
    Ok(())
}

/// Adds `gradient^T input` to the gradient of a linear weight [out, in], and the column sums to that of its bias.
/// gradient: [rows, out], input: [rows, in].
///
/// # Errors
/// As [`collect`].
pub(crate) fn collect_linear<T: Real>(
    weight: &Tensor,
    bias: Option<&Tensor>,
    gradient: &[T],
    input: &[T],
) -> candle_core::Result<()> {
    let (out, inner) = weight.dims2()?;
    let rows = gradient.len().checked_div(out).unwrap_or(0);
    let (left, right) = (Matrix::new(gradient, rows, out).t(), Matrix::new(input, rows, inner));
    collect_with(weight, |held| match held {
        None => Some(cpu::product(left, right)),
        Some(sum) => {
            cpu::add_product(sum, left, right, None);
            None
        }
    })?;
    match bias {
        None => Ok(()),
        Some(bias) => collect(bias, |sum: &mut [T]| crate::simd::add_assign(sum, &cpu::column_sums(gradient, out))),
    }
}

#[cfg(test)]
mod tests {
    use super::{Gradients, backward};
    use candle_core::{DType, Device, Tensor, Var};

    fn ones(len: usize) -> Tensor {
        Tensor::ones(len, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn only_variables_have_gradients() {
        let (constant, variable) = (ones(2), Var::from_tensor(&ones(2)).unwrap());
        let loss = (&constant * variable.as_tensor()).unwrap().sum_all().unwrap();
        let gradients = backward(&loss).unwrap();
        assert_eq!((gradients.len(), gradients.get(&constant).is_none()), (1, true));
        assert_eq!(gradients.get(&variable).unwrap().to_vec1::<f32>().unwrap(), [1.0; 2]);
        assert!(backward(&constant.sum_all().unwrap()).unwrap().is_empty());
        assert!(backward(&constant).is_err());
    }

    #[test]
    fn a_map_of_parts_gives_the_gradient_of_the_whole() {
        let sample = |seed, shape: (usize, usize)| crate::check::sample(seed, shape).unwrap();
        for dtype in [DType::F32, DType::F64] {
            let (x, dy) = (sample(1, (70, 9)).to_dtype(dtype).unwrap(), sample(2, (70, 5)).to_dtype(dtype).unwrap());
            let w = Var::from_tensor(&sample(3, (5, 9)).to_dtype(dtype).unwrap()).unwrap();
            let b = Var::zeros(5, dtype, &Device::Cpu).unwrap();
            let y = crate::linear(&x, w.as_tensor(), Some(b.as_tensor())).unwrap();
            let whole = backward(&(y * &dy).unwrap().sum_all().unwrap()).unwrap();
            let mut parts = Gradients::default();
            for (start, count) in [(0, 40), (40, 1), (41, 29)] {
                let part = |t: &Tensor| t.narrow(0, start, count).unwrap();
                parts.add_linear(&w, Some(&b), &part(&dy), &part(&x)).unwrap();
            }
            for variable in [&w, &b] {
                let (got, expected) = (parts.get(variable).unwrap(), whole.get(variable).unwrap());
                crate::check::same("parts", got, expected, crate::check::F32).unwrap();
            }
            // A gradient that came from elsewhere is never written to.
            let other = ones(2 * 9).reshape((2, 9)).unwrap();
            let v = Var::zeros((2, 9), DType::F32, &Device::Cpu).unwrap();
            let mut mixed = Gradients::default();
            mixed.accumulate(v.id(), other.clone()).unwrap();
            mixed.add_linear(&v, None, &ones(2).reshape((1, 2)).unwrap(), &ones(9).reshape((1, 9)).unwrap()).unwrap();
            assert_eq!(other.sum_all().unwrap().to_scalar::<f32>().unwrap(), 18.0);
            assert_eq!(mixed.get(&v).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 36.0);
            assert!(parts.add_linear(&w, None, &dy, &dy).unwrap_err().to_string().contains("input"));
        }
    }

    #[test]
    fn one_pass_after_the_other_gives_the_gradient_of_the_sum() {
        let sample = |seed, shape: (usize, usize)| crate::check::sample(seed, shape).unwrap();
        let w = Var::from_tensor(&sample(1, (5, 9))).unwrap();
        let b = Var::zeros(5, DType::F64, &Device::Cpu).unwrap();
        // An operator that adds to its bias itself, and candle's product, whose gradients come from the graph.
        let loss = |seed| {
            let y = crate::linear_with(&sample(seed, (7, 9)), &w, Some(&b), &Default::default()).unwrap();
            (y * sample(seed + 1, (7, 5))).unwrap().sum_all().unwrap()
        };
        let whole = backward(&(loss(2) + loss(4)).unwrap()).unwrap();
        let mut parts = backward(&loss(2)).unwrap();
        let first = parts.get(&b).unwrap().copy().unwrap();
        parts.add(&loss(4)).unwrap();
        for variable in [&w, &b] {
            let (got, expected) = (parts.get(variable).unwrap(), whole.get(variable).unwrap());
            crate::check::same("parts", got, expected, 1e-12).unwrap();
        }
        assert!(parts.add(&sample(1, (2, 2))).is_err());
        assert!(parts.take(&b).is_some() && parts.take(&b).is_none(), "taken once");
        parts.add(&loss(2)).unwrap();
        crate::check::same("after it was taken", parts.get(&b).unwrap(), &first, 1e-12).unwrap();
    }

    #[test]
    fn gradients_add_up_and_a_refused_one_changes_nothing() {
        let tensor = ones(2);
        let mut all = Gradients::default();
        all.accumulate(tensor.id(), ones(2)).unwrap();
        all.accumulate(tensor.id(), ones(2)).unwrap();
        assert!(all.accumulate(tensor.id(), ones(3)).is_err());
        assert_eq!(all.get(&tensor).unwrap().to_vec1::<f32>().unwrap(), [2.0; 2]);
    }
}
