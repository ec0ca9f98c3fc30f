//! What a frozen model gives: the contract between any method and evaluation, export and reports.

use candle_core::Tensor;
use occlude_kernels::Result;
use occlude_masking::Grid;

/// Features of a batch of whole images. Nothing is tracked by autograd.
#[derive(Clone, Debug)]
pub struct Features {
    /// The patch grid of the images.
    pub grid: Grid,
    /// Normed encoder outputs at the patches, row-major.  [batch, patches, dim]
    pub patches: Tensor,
    /// Normed encoder outputs at the registers, if the model has any.  [batch, registers, dim]
    pub registers: Option<Tensor>,
    /// One vector an image that the model itself offers (CAPI: predictor pooling), if any.  [batch, width]
    pub global: Option<Tensor>,
}

/// A frozen model that turns images into features.
pub trait Extractor {
    /// Features of `images`: [batch, 3, height, width], normalised as in training; height and width are multiples of
    /// the patch size.
    ///
    /// # Errors
    /// A wrong shape or dtype.
    fn features(&self, images: &Tensor) -> Result<Features>;

    /// The cluster (target token) of every patch, for models that have them: `patches` as in [`Features::patches`]
    /// gives [batch, patches] u32.
    ///
    /// # Errors
    /// A wrong shape or dtype.
    fn clusters(&self, patches: &Tensor) -> Result<Option<Tensor>> {
        let _ = patches;
        Ok(None)
    }

    /// Side of a patch in pixels.
    fn patch_size(&self) -> usize;
}
