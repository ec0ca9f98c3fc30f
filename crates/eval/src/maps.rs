//! Pictures of the patch features of some images: principal components as colours (CAPI, visualisations of features).

use crate::features::images;
use crate::pca::{JOINT, PER_IMAGE, joint_components, per_image_components, rgb};
use crate::{Error, Result};
use candle_core::{DType, Device};
use occlude_data::{Dataset, EvalTransform, Image};
use occlude_vit::Extractor;

/// One image and the maps of its patches.
#[derive(Clone, Debug, PartialEq)]
pub struct PcaMap {
    /// Index in the data set.
    pub index: usize,
    /// The image as the model saw it, in 8 bits.
    pub picture: Image,
    /// Patches from top to bottom.
    pub rows: usize,
    /// Patches from left to right.
    pub cols: usize,
    /// Colours by the image's own components, a pixel a patch.  [rows, cols, 3]
    pub own: Vec<u8>,
    /// Colours by the components of all images: equal colours mean equal things across images.  [rows, cols, 3]
    pub joint: Vec<u8>,
}

/// Maps of several images.
#[derive(Clone, Debug, PartialEq)]
pub struct PcaMaps {
    /// In the order asked for, less the images that could not be read.
    pub maps: Vec<PcaMap>,
    /// Side of a patch in pixels.
    pub patch_size: usize,
}

/// Makes the maps of the images at `indices`, four at a time.
///
/// # Errors
/// No image could be read, or the model refuses one.
pub fn pca_maps(
    extractor: &dyn Extractor,
    dataset: &dyn Dataset,
    transform: &EvalTransform,
    indices: &[usize],
    device: &Device,
) -> Result<PcaMaps> {
    let mut maps = Vec::new();
    let mut all_patches: Vec<f32> = Vec::new();
    let mut dim = 0;
    for some in indices.chunks(4) {
        let (kept, images) = images(dataset, transform, some, device)?;
        let Some(images) = images else { continue };
        let features = extractor.features(&images)?;
        dim = features.patches.dim(2)?;
        let patches: Vec<f32> = features.patches.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        for (index, patches) in kept.into_iter().zip(patches.chunks_exact(features.grid.count() * dim)) {
            let own = rgb(&per_image_components(patches, dim)?, PER_IMAGE);
            let picture = transform.picture(&dataset.read(index)?);
            let (rows, cols) = (features.grid.rows, features.grid.cols);
            maps.push(PcaMap { index, picture, rows, cols, own, joint: Vec::new() });
        }
        all_patches.extend(patches);
    }
    if maps.is_empty() {
        return Err(Error::NoneReadable { what: "PCA maps" });
    }
    let mut joint = rgb(&joint_components(&all_patches, dim)?, JOINT).into_iter();
    for map in &mut maps {
        map.joint = joint.by_ref().take(3 * map.rows * map.cols).collect();
    }
    Ok(PcaMaps { maps, patch_size: extractor.patch_size() })
}
