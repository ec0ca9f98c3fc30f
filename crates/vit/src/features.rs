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
    /// `patches` before the encoder's final norm, where [`Extras::before_norm`] asked and the model can.
    /// [batch, patches, dim]
    pub before_norm: Option<Tensor>,
    /// Class tokens of the last blocks, first to last, each through the encoder's final norm, where [`Extras::class_blocks`]
    /// asked and the model has a class token.  [batch, blocks, dim]
    pub class: Option<Tensor>,
}

impl Features {
    /// Patches alone, as [`Features::patches`]; set what else the model has.
    #[must_use]
    pub fn new(grid: Grid, patches: Tensor) -> Self {
        Self { grid, patches, registers: None, global: None, before_norm: None, class: None }
    }
}

/// What is asked for beyond what every pass gives; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// Patches before the encoder's final norm.
    pub before_norm: bool,
    /// Class tokens of this many blocks, counted from the last; 0 for none.
    pub class_blocks: usize,
}

/// A frozen model that turns images into features.
pub trait Extractor {
    /// Features of `images`: [batch, 3, height, width], normalised as in training; height and width are multiples of
    /// the patch size.
    ///
    /// # Errors
    /// A wrong shape or dtype.
    fn features(&self, images: &Tensor) -> Result<Features> {
        self.features_with(images, Extras::default())
    }

    /// The same with `extras`, from the same pass. What the model does not have stays `None`: who asked says so.
    ///
    /// # Errors
    /// A wrong shape or dtype, or class tokens of more blocks than the model has.
    fn features_with(&self, images: &Tensor, extras: Extras) -> Result<Features>;

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
