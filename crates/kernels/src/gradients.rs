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

    /// Adds `gradient` to what is held for `tensor`.
    ///
    /// # Errors
    /// Shapes differ.
    pub fn accumulate(&mut self, id: TensorId, gradient: Tensor) -> Result<()> {
        let sum = match self.by_id.remove(&id) {
            Some(held) => (held + gradient)?,
            None => gradient,
        };
        self.by_id.insert(id, sum);
        Ok(())
    }

    /// Adds everything in `other`.
    ///
    /// # Errors
    /// Shapes of gradients of one tensor differ.
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
    let by_id = store.get_ids().filter_map(|id| store.get_id(*id).map(|gradient| (*id, gradient.clone()))).collect();
    Ok(Gradients { by_id })
}
