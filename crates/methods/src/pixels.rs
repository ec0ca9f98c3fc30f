//! Pixels as targets, and predictions of pixels as pictures.

use candle_core::{DType, Tensor};
use occlude_kernels::{Result, pixel_loss};
use occlude_vit::patch_pixels;

/// Added to the variance of a patch's pixels under the root.
pub(crate) const PIXEL_EPS: f64 = 1e-6;

/// What a method says about pixels.
#[derive(Clone, Debug)]
pub struct Painted {
    /// Place of each patch in the order in which an image is predicted, from 0; where there is no order, 1 for what was
    /// hidden and 0 for what was shown.  [batch * patches]
    pub ranks: Vec<u32>,
    /// Images with every patch as it was predicted, normalised as the input.  [batch, 3, height, width], f32
    pub images: Tensor,
}

/// Mean squared error of the pixels of each patch, which are standardised on the way with `norm_pix`.
/// predicted: [batch, patches, patch * patch * 3], images: [batch, 3, height, width] -> [batch * patches]
pub(crate) fn per_token(predicted: &Tensor, images: &Tensor, patch: usize, norm_pix: bool) -> Result<Tensor> {
    let (batch, patches, values) = predicted.dims3()?;
    let truth = patch_pixels(images, patch, None)?.to_dtype(predicted.dtype())?; // [batch * patches, values]
    let predicted = predicted.reshape((batch * patches, values))?;
    pixel_loss(&predicted, &truth, norm_pix.then_some(PIXEL_EPS))
}

/// Predicted patches pasted together. With `norm_pix` a prediction has no level and no contrast: those of the true patch
/// are used, as is customary.
/// predicted: [batch, patches, patch * patch * 3], images: [batch, 3, height, width] -> as images, f32
pub(crate) fn painted(predicted: &Tensor, images: &Tensor, patch: usize, norm_pix: bool) -> Result<Tensor> {
    let (batch, channels, height, width) = images.dims4()?;
    let (rows, cols) = (height / patch, width / patch);
    let mut said = predicted.to_dtype(DType::F32)?.reshape((batch * rows * cols, ()))?;
    if norm_pix {
        let truth = patch_pixels(images, patch, None)?;
        let mean = truth.mean_keepdim(1)?;
        let deviation = (truth.var_keepdim(1)? + PIXEL_EPS)?.sqrt()?;
        said = said.broadcast_mul(&deviation)?.broadcast_add(&mean)?;
    }
    let parts = said.reshape(&[batch, rows, cols, patch, patch, channels][..])?;
    Ok(parts.permute([0, 5, 1, 3, 2, 4])?.reshape((batch, channels, height, width))?)
}

#[cfg(test)]
mod tests {
    use super::{painted, per_token};
    use candle_core::{Device, Tensor};
    use occlude_kernels::check::sample;
    use occlude_vit::patch_pixels;

    #[test]
    fn the_true_pixels_are_the_image() {
        let images = sample(3, (2, 3, 8, 12)).unwrap().to_dtype(candle_core::DType::F32).unwrap();
        let truth = patch_pixels(&images, 4, None).unwrap().reshape((2, 6, 48)).unwrap();
        let same = painted(&truth, &images, 4, false).unwrap();
        let bits = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bits(&same), bits(&images));
        assert!(
            per_token(&truth, &images, 4, false).unwrap().to_vec1::<f32>().unwrap().iter().all(|loss| *loss == 0.0)
        );
    }

    #[test]
    fn a_standardised_patch_gets_its_level_back() {
        let images = sample(4, (1, 3, 4, 4)).unwrap().to_dtype(candle_core::DType::F32).unwrap();
        let blank = Tensor::zeros((1, 4, 12), candle_core::DType::F32, &Device::Cpu).unwrap();
        let painted = painted(&blank, &images, 2, true).unwrap();
        let level = |of: &Tensor| of.narrow(2, 0, 2).unwrap().narrow(3, 0, 2).unwrap().mean_all().unwrap();
        let (got, expected) = (level(&painted).to_scalar::<f32>().unwrap(), level(&images).to_scalar::<f32>().unwrap());
        assert!((got - expected).abs() < 1e-6);
        let spread = painted.narrow(2, 0, 2).unwrap().narrow(3, 0, 2).unwrap().flatten_all().unwrap().var(0).unwrap();
        assert!(spread.to_scalar::<f32>().unwrap() < 1e-10, "no contrast was predicted");
    }
}
