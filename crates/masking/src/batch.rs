//! The masks of a batch as index lists.

use crate::{Grid, Mask, Masker};
use occlude_random::{RngCore, choose};

/// Why masks do not make a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MaskError {
    /// More patches are to be predicted than are hidden.
    #[error("{asked} predicted patches an image: only {hidden} are hidden")]
    TooManyPredicted {
        /// How many were asked for.
        asked: usize,
        /// How many there are.
        hidden: usize,
    },
    /// Two masks of a batch have different grids or hide different numbers of patches.
    #[error("mask {image} hides {got} patches of {got_grid:?}, mask 0 hides {expected} of {expected_grid:?}")]
    Unequal {
        /// Which mask differs from the first.
        image: usize,
        /// What it hides.
        got: usize,
        /// Its grid.
        got_grid: Grid,
        /// What the first hides.
        expected: usize,
        /// The grid of the first.
        expected_grid: Grid,
    },
    /// The patches to predict of an image are not all hidden, or not as many as of the first image.
    #[error("image {image}: {got} patches to predict, expected {expected}, each of them hidden")]
    NotHidden {
        /// Which image.
        image: usize,
        /// How many were given.
        got: usize,
        /// How many the first image has.
        expected: usize,
    },
    /// A batch of no images, or one whose flat indices pass 32 bits.
    #[error("a batch of {images} images of {patches} patches cannot be indexed")]
    Size {
        /// Images in the batch.
        images: usize,
        /// Patches of an image.
        patches: usize,
    },
}

/// How many of `hidden` patches are predicted at a share: the truncated product, as in the public code (0.05 of 166 is
/// 8; the paper's table says 7, which no default gives).
#[must_use]
pub fn predict_count(hidden: usize, share: f64) -> usize {
    (hidden as f64 * share) as usize
}

/// Index lists of a batch of masks. A flat index is `image * grid.count() + patch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchMask {
    /// The grid of every image.
    pub grid: Grid,
    /// Images.
    pub batch: usize,
    /// Flat indices of all visible patches, ascending.  [batch * visible_per_image]
    pub visible: Vec<u32>,
    /// Flat indices of the predicted patches, image by image; within an image in random order: row i of the targets
    /// belongs to row i of the predictions, so never sort one of them.  [batch * predict_per_image]
    pub predict: Vec<u32>,
    /// Visible patches of one image.
    pub visible_per_image: usize,
    /// Predicted patches of one image.
    pub predict_per_image: usize,
}

impl BatchMask {
    /// Draws `batch` masks and the predicted patches of each. `stream(image)` is called once an image, in order; its mask
    /// is drawn first, then its predicted patches.
    ///
    /// # Errors
    /// More patches are to be predicted than are hidden, or the batch cannot be indexed.
    pub fn draw<R: RngCore>(
        masker: &Masker,
        grid: Grid,
        batch: usize,
        predict: usize,
        mut stream: impl FnMut(usize) -> R,
    ) -> Result<Self, MaskError> {
        let drawn: Vec<(Mask, R)> = (0..batch)
            .map(|image| {
                let mut rng = stream(image);
                (masker.mask(grid, &mut rng), rng)
            })
            .collect();
        let (masks, mut streams): (Vec<Mask>, Vec<R>) = drawn.into_iter().unzip();
        Self::from_masks(&masks, predict, &mut streams)
    }

    /// The batch of given masks; `streams[image]` draws which hidden patches of an image are predicted, and in which order.
    ///
    /// # Errors
    /// No masks, masks of different grids or counts, more predicted patches than hidden ones, fewer streams than masks.
    pub fn from_masks<R: RngCore>(masks: &[Mask], predict: usize, streams: &mut [R]) -> Result<Self, MaskError> {
        if let Some(mask) = masks.iter().find(|mask| mask.hidden().len() < predict) {
            return Err(MaskError::TooManyPredicted { asked: predict, hidden: mask.hidden().len() });
        }
        let orders: Vec<Vec<u32>> = masks
            .iter()
            .zip(streams)
            .map(|(mask, rng)| choose(rng, &mut mask.hidden().to_vec(), predict).to_vec())
            .collect();
        Self::from_lists(masks, &orders)
    }

    /// The batch of given masks and, for each, the patches to predict in the given order (positions in the grid).
    ///
    /// # Errors
    /// No masks, masks of different grids or counts, lists that do not pair with the masks, are of unequal length,
    /// or name a patch that is not hidden.
    pub fn from_lists(masks: &[Mask], predict: &[Vec<u32>]) -> Result<Self, MaskError> {
        let grid = masks.first().map_or(Grid::new(0, 0), Mask::grid);
        let (batch, patches) = (masks.len(), grid.count());
        if batch == 0 || predict.len() != batch || u32::try_from(batch.saturating_mul(patches)).is_err() {
            return Err(MaskError::Size { images: batch.min(predict.len()), patches });
        }
        let (first, predict_per_image) = (&masks[0], predict[0].len());
        let expected = first.hidden().len();
        let mut lists = (Vec::new(), Vec::new());
        for (image, (mask, chosen)) in masks.iter().zip(predict).enumerate() {
            let got = mask.hidden().len();
            if mask.grid() != grid || got != expected {
                return Err(MaskError::Unequal { image, got, got_grid: mask.grid(), expected, expected_grid: grid });
            }
            if chosen.len() != predict_per_image
                || chosen.iter().any(|patch| mask.hidden().binary_search(patch).is_err())
            {
                return Err(MaskError::NotHidden { image, got: chosen.len(), expected: predict_per_image });
            }
            let offset = (image * patches) as u32;
            lists.0.extend(mask.visible().iter().map(|patch| offset + patch));
            lists.1.extend(chosen.iter().map(|patch| offset + patch));
        }
        let visible_per_image = first.visible().len();
        Ok(Self { grid, batch, visible: lists.0, predict: lists.1, visible_per_image, predict_per_image })
    }
}
