//! What the clusters of a model look like: for each of the most used, some patches that belong to it.

use crate::features::images;
use crate::{Error, Result};
use candle_core::{DType, Device};
use occlude_data::{Dataset, EvalTransform, Image};
use occlude_vit::Extractor;
use std::collections::BTreeMap;

/// A patch of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchRef {
    /// Index of the image in the data set.
    pub index: usize,
    /// Row of the patch.
    pub row: usize,
    /// Column of the patch.
    pub col: usize,
    /// The pixels of the patch as the model saw them, in 8 bits.
    pub picture: Image,
}

/// One cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Its number in the model.
    pub id: u32,
    /// Patches of the images looked at that belong to it.
    pub count: usize,
    /// Some of them, at most one an image.
    pub examples: Vec<PatchRef>,
}

/// What [`cluster_gallery`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterGallery {
    /// Most used first.
    pub clusters: Vec<Cluster>,
    /// Patches looked at: those of all images that could be read.
    pub patches: usize,
}

/// The `clusters` most used clusters over the images at `indices`, most used first and equal ones by number, with at
/// most `examples` patches each: the first met, one an image. `None` if the model has no clusters.
///
/// # Errors
/// No image could be read, or the model refuses one.
pub fn cluster_gallery(
    extractor: &dyn Extractor,
    dataset: &dyn Dataset,
    transform: &EvalTransform,
    indices: &[usize],
    (clusters, examples): (usize, usize),
    device: &Device,
) -> Result<Option<ClusterGallery>> {
    let mut members: BTreeMap<u32, (usize, Vec<(usize, usize)>)> = BTreeMap::new();
    let mut cols = 1;
    for some in indices.chunks(16) {
        let (kept, images) = images(dataset, transform, some, device)?;
        let Some(images) = images else { continue };
        let features = extractor.features(&images)?;
        cols = features.grid.cols;
        let Some(assigned) = extractor.clusters(&features.patches)? else { return Ok(None) };
        let assigned: Vec<u32> = assigned.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?; // [batch * patches]
        for (index, assigned) in kept.into_iter().zip(assigned.chunks_exact(features.grid.count())) {
            for (patch, &id) in assigned.iter().enumerate() {
                let (count, shown) = members.entry(id).or_default();
                *count += 1;
                if shown.len() < examples && shown.last().is_none_or(|(last, _)| *last != index) {
                    shown.push((index, patch));
                }
            }
        }
    }
    if members.is_empty() {
        return Err(Error::NoneReadable { what: "cluster gallery" });
    }
    let patches = members.values().map(|(count, _)| count).sum();
    let mut used: Vec<_> = members.into_iter().collect();
    used.sort_by_key(|(id, (count, _))| (std::cmp::Reverse(*count), *id));
    used.truncate(clusters);
    let side = extractor.patch_size();
    let show = |(index, patch): &(usize, usize)| -> Result<PatchRef> {
        let (row, col) = (patch / cols, patch % cols);
        let picture = cut(&transform.picture(&dataset.read(*index)?), row * side, col * side, side);
        Ok(PatchRef { index: *index, row, col, picture })
    };
    let cluster = |(id, (count, shown)): (u32, (usize, Vec<(usize, usize)>))| {
        let examples = shown.iter().map(show).collect::<Result<_>>()?;
        Ok(Cluster { id, count, examples })
    };
    let clusters = used.into_iter().map(cluster).collect::<Result<_>>()?;
    Ok(Some(ClusterGallery { clusters, patches }))
}

/// A square of an image; the caller keeps it inside.
fn cut(image: &Image, top: usize, left: usize, side: usize) -> Image {
    let line = |row: usize| &image.pixels[3 * (row * image.width + left)..3 * (row * image.width + left + side)];
    Image { width: side, height: side, pixels: (top..top + side).flat_map(line).copied().collect() }
}
