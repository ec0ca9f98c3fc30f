//! Segmentation on frozen patch features (CAPI, segmentation): every patch has one feature and the labels of its pixels.
//!
//! In order: [`patch_labels`] cuts label maps into patches; [`PatchSet::standard`] and [`PatchSet::scaled`] bring
//! features to one scale; [`PatchSet::labelled_rows`] and [`PatchSet::select`] drop training patches that are mostly
//! ignored; [`patch_knn`] or [`LogisticRegression`] predicts; [`segmentation_score`] judges. Images and maps are
//! squashed to one size by the caller, and the validation split, if settings are to be chosen, is the caller's too.

mod knn;
mod logistic;
mod score;
#[cfg(test)]
mod tests;

pub use knn::{Distance, patch_knn};
pub use logistic::LogisticRegression;
pub use score::{SegmentationScore, segmentation_score};

use crate::linear::Standard;
use crate::{Error, Result};

/// Patches with one feature each and the labels of their pixels. Not empty.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchSet {
    /// [patches, dim]
    features: Vec<f32>,
    dim: usize,
    /// [patches, pixels]
    labels: Vec<u8>,
    pixels: usize,
}

impl PatchSet {
    /// features: [patches, dim], labels: [patches, pixels], both row-major.
    ///
    /// # Errors
    /// No patch, rows without numbers or pixels, sizes that do not fit, or a feature that is not finite.
    pub fn new(features: Vec<f32>, dim: usize, labels: Vec<u8>, pixels: usize) -> Result<Self> {
        let patches = rows("patches", &features, dim)?;
        if pixels == 0 || labels.len() != patches * pixels {
            let count = labels.len();
            return Err(Error::Mismatch(format!(
                "patches: {count} labels are not {patches} patches of {pixels} pixels"
            )));
        }
        Ok(Self { features, dim, labels, pixels })
    }

    /// How many patches; never 0.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a set is never empty")]
    pub fn len(&self) -> usize {
        self.features.len() / self.dim
    }

    /// Length of a feature.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// [patches, dim]
    #[must_use]
    pub fn features(&self) -> &[f32] {
        &self.features
    }

    /// [patches, pixels]
    #[must_use]
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// The most frequent label of each patch, the smallest of equal ones.  `[patches]`
    #[must_use]
    pub fn modes(&self) -> Vec<u8> {
        self.labels.chunks_exact(self.pixels).map(|labels| most_frequent(labels.iter().copied())).collect()
    }

    /// The patches whose most frequent label is not ignored.
    #[must_use]
    pub fn labelled_rows(&self, ignored: &[u8]) -> Vec<usize> {
        self.modes().iter().enumerate().filter(|(_, mode)| !ignored.contains(mode)).map(|(row, _)| row).collect()
    }

    /// The patches given, in that order.
    ///
    /// # Errors
    /// No patch is given, or one that there is not.
    pub fn select(&self, rows: &[usize]) -> Result<Self> {
        if let Some(row) = rows.iter().find(|row| **row >= self.len()) {
            return Err(Error::Mismatch(format!("patches: there is no patch {row} among {}", self.len())));
        }
        let features = rows.iter().flat_map(|row| &self.features[row * self.dim..(row + 1) * self.dim]).copied();
        let labels = rows.iter().flat_map(|row| &self.labels[row * self.pixels..(row + 1) * self.pixels]).copied();
        Self::new(features.collect(), self.dim, labels.collect(), self.pixels)
    }

    /// Mean and population deviation of each feature; what is constant is only centred.
    #[must_use]
    pub fn standard(&self) -> Standard {
        Standard::of(&self.features, self.dim)
    }

    /// Mean of each feature and one deviation for all of them.
    #[must_use]
    pub fn overall(&self) -> Standard {
        Standard::overall(&self.features, self.dim)
    }

    /// The same patches with scaled features.
    #[must_use]
    pub fn scaled(mut self, standard: &Standard) -> Self {
        standard.apply(&mut self.features);
        self
    }
}

/// Cuts a map of labels into patches, both row-major.  map: [height, width] -> [patches, patch * patch]
///
/// # Errors
/// A map of another size, or one that is no whole number of patches in each direction.
pub fn patch_labels(map: &[u8], (height, width): (usize, usize), patch: usize) -> Result<Vec<u8>> {
    let whole = patch > 0 && height.is_multiple_of(patch) && width.is_multiple_of(patch);
    if !whole || map.is_empty() || map.len() != height * width {
        let count = map.len();
        let message = format!("label map: {count} labels are not {height} x {width} pixels in patches of {patch}");
        return Err(Error::Mismatch(message));
    }
    let mut labels = Vec::with_capacity(map.len());
    for band in map.chunks_exact(patch * width) {
        for left in (0..width).step_by(patch) {
            band.chunks_exact(width).for_each(|line| labels.extend_from_slice(&line[left..left + patch]));
        }
    }
    Ok(labels)
}

/// How many rows of `dim` finite numbers there are; at least one.
fn rows(what: &'static str, features: &[f32], dim: usize) -> Result<usize> {
    if dim == 0 || features.is_empty() || !features.len().is_multiple_of(dim) {
        let numbers = features.len();
        return Err(Error::Mismatch(format!("{what}: {numbers} numbers are no rows of {dim}")));
    }
    match features.iter().position(|value| !value.is_finite()) {
        Some(place) => Err(Error::NotFinite { what, row: place / dim }),
        None => Ok(features.len() / dim),
    }
}

/// The smallest of the most frequent labels; 0 where there is none.
fn most_frequent(labels: impl Iterator<Item = u8>) -> u8 {
    let mut counts = [0_u32; 256];
    labels.for_each(|label| counts[usize::from(label)] += 1);
    let mut best = 0_u8;
    for label in 0..=u8::MAX {
        best = if counts[usize::from(label)] > counts[usize::from(best)] { label } else { best };
    }
    best
}
