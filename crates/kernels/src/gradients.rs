//! Gradients of one backward pass, by tensor.

use crate::Result;
use candle_core::{Tensor, TensorId};
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
    let store = loss.backward()?;
    // candle's store also holds gradients of constants, and of a loss that depends on nothing.
    let variables = loss.sorted_nodes().into_iter().filter(|node| node.is_variable());
    let by_id = variables.filter_map(|node| store.get(node).map(|gradient| (node.id(), gradient.clone()))).collect();
    Ok(Gradients { by_id })
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
