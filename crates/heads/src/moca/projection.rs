//! Heads of a decoder whose targets are no assignments.

use candle_core::Tensor;
use occlude_kernels::{Affine, Result, Scope};
use occlude_vit::linear_map;

/// A linear map with a bias from decoder features to a target: pixels of a patch, or the teacher's token. Source: MOCA,
/// ablation of the local target.
#[derive(Clone, Debug)]
pub struct TargetHead {
    linear: Affine,
}

impl TargetHead {
    /// A head named `pixel_head` to the `3 * patch * patch` pixels of a patch. In which order they come is up to the
    /// target that it is compared with.
    ///
    /// # Errors
    /// A name exists already.
    pub fn pixels(scope: &mut Scope<'_>, dim: usize, patch: usize) -> Result<Self> {
        Ok(Self { linear: linear_map(scope, "pixel_head", 3 * patch * patch, dim)? })
    }

    /// A head named `embedding_head` to tokens of width `encoder`.
    ///
    /// # Errors
    /// A name exists already.
    pub fn embeddings(scope: &mut Scope<'_>, dim: usize, encoder: usize) -> Result<Self> {
        Ok(Self { linear: linear_map(scope, "embedding_head", encoder, dim)? })
    }

    /// [rows, dim] -> [rows, target]
    ///
    /// # Errors
    /// Another width or dtype.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        self.linear.forward(features)
    }
}
