//! Raw pixels as features: the baseline every learned feature must pass.

use crate::features::{FeatureSet, describe, images};
use crate::{Error, Result};
use candle_core::Device;
use occlude_data::{Dataset, EvalTransform};

/// How pixels become a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelForm {
    /// Every normalised value.
    Plain,
    /// The mean of each of `side x side` equal areas, channel by channel.
    Averaged {
        /// Areas along one side; divides the height and width of the transformed image.
        side: usize,
    },
}

/// Normalised pixels of the images asked for, through the same transform as a model would see.
///
/// # Errors
/// No image could be read, or the image side is not a multiple of the areas asked for.
pub fn pixel_features(
    dataset: &dyn Dataset,
    transform: &EvalTransform,
    indices: &[usize],
    form: PixelForm,
) -> Result<FeatureSet> {
    let mut kept = Vec::with_capacity(indices.len());
    let mut rows: Vec<f32> = Vec::new();
    for some in indices.chunks(512) {
        let (read, pixels) = images(dataset, transform, some, &Device::Cpu)?;
        let Some(pixels) = pixels else { continue };
        let pixels = match form {
            PixelForm::Plain => pixels,
            PixelForm::Averaged { side } => {
                let size = transform.size();
                if side == 0 || !size.is_multiple_of(side) {
                    return Err(Error::Mismatch(format!("pixels: {size} pixels do not divide into {side} areas")));
                }
                pixels.avg_pool2d(size / side)?
            }
        };
        rows.extend(pixels.flatten_all()?.to_vec1::<f32>()?);
        kept.extend(read);
    }
    describe(dataset, rows, &kept)
}
