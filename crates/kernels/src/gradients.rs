//! Gradients of one backward pass, by tensor.

use crate::cpu::{self, Matrix, Real};
use crate::{Error, Result};
use candle_core::{CpuStorage, Shape, Tensor, TensorId};
use std::cell::RefCell;
use std::collections::HashMap;

/// Gradients of trained tensors. A map of our own, so that an operator with hand-written backward can add to it
/// the gradients of parameters that candle's graph does not route.
#[derive(Debug, Default)]
pub struct Gradients {
    by_id: HashMap<TensorId, Tensor>,
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
        self.by_id.insert(id, sum);
        Ok(())
    }

    /// Adds everything in `other`.
    ///
    /// # Errors
    /// Shapes or dtypes of two gradients of one tensor differ; others may have been added by then.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        other.by_id.into_iter().try_for_each(|(id, gradient)| self.accumulate(id, gradient))
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
    if loss.elem_count() != 1 {
        return Err(crate::Error::shape("backward", "a scalar", loss.dims()));
    }
    let collecting = Collecting::start();
    let store = loss.backward()?;
    // candle's store also holds gradients of constants, and of a loss that depends on nothing.
    let variables = loss.sorted_nodes().into_iter().filter(|node| node.is_variable());
    let by_id = variables.filter_map(|node| store.get(node).map(|gradient| (node.id(), gradient.clone()))).collect();
    let mut gradients = Gradients { by_id };
    for (id, sum) in collecting.finish() {
        gradients.accumulate(id, sum.tensor()?)?;
    }
    Ok(gradients)
}

/// A gradient that grows in place, in the memory it will be read from.
struct Sum {
    values: CpuStorage,
    shape: Shape,
}

impl Sum {
    fn tensor(self) -> candle_core::Result<Tensor> {
        let device = candle_core::Device::Cpu;
        match self.values {
            CpuStorage::F32(values) => Tensor::from_vec(values, self.shape, &device),
            CpuStorage::F64(values) => Tensor::from_vec(values, self.shape, &device),
            other => Err(Error::Dtype { op: "backward", expected: "F32 or F64", got: cpu::dtype(&other) }.into()),
        }
    }
}

thread_local! {
    /// Sums of the backward pass that runs on this thread; candle walks a graph on one thread.
    static SUMS: RefCell<Option<HashMap<TensorId, Sum>>> = const { RefCell::new(None) };
}

/// As long as it lives, operators with more parameters than candle has arguments may [`collect`] on this thread.
struct Collecting {
    /// What an outer pass on this thread had collected.
    outer: Option<HashMap<TensorId, Sum>>,
}

impl Collecting {
    fn start() -> Self {
        Self { outer: SUMS.replace(Some(HashMap::new())) }
    }

    fn finish(self) -> HashMap<TensorId, Sum> {
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
/// The pass was not started by [`backward`], or the sum has another dtype.
pub(crate) fn collect<T: Real>(parameter: &Tensor, add: impl FnOnce(&mut [T])) -> candle_core::Result<()> {
    if !parameter.track_op() {
        return Ok(());
    }
    let held = SUMS.with_borrow_mut(|sums| sums.as_mut().map(|sums| sums.remove(&parameter.id())));
    let held = held.ok_or_else(|| {
        Error::argument(
            "backward",
            "this graph holds fused blocks: call occlude_kernels::backward, not Tensor::backward",
        )
    })?;
    let mut values = match held {
        Some(sum) => T::cpu_storage_data(sum.values)?,
        None => vec![T::zero(); parameter.elem_count()],
    };
    add(&mut values);
    let sum = Sum { values: cpu::storage(values), shape: parameter.shape().clone() };
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
    collect(weight, |sum: &mut [T]| {
        cpu::add_product(sum, Matrix::new(gradient, rows, out).t(), Matrix::new(input, rows, inner), None);
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
    fn gradients_add_up_and_a_refused_one_changes_nothing() {
        let tensor = ones(2);
        let mut all = Gradients::default();
        all.accumulate(tensor.id(), ones(2)).unwrap();
        all.accumulate(tensor.id(), ones(2)).unwrap();
        assert!(all.accumulate(tensor.id(), ones(3)).is_err());
        assert_eq!(all.get(&tensor).unwrap().to_vec1::<f32>().unwrap(), [2.0; 2]);
    }
}
