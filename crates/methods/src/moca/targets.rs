//! Where targets come from: the teacher's tokens and their assignments to words.

use super::LocTarget;
use candle_core::Tensor;
use occlude_kernels::{Error, Result};
use occlude_losses::mean_row_entropy;
use occlude_tokenizers::{Assignments, OnlineCodebook};

/// The targets of a batch, rows of the first view before those of the second. No gradient.
#[derive(Clone, Debug)]
pub struct Goal {
    /// The mean assignment of the *other* view of each image.  [2 * batch, words]
    pub images: Tensor,
    /// What the teacher makes of every patch of the same view: its assignment, or its token where embeddings are learned.
    /// [2 * batch * patches, words or dim]
    pub patches: Tensor,
    /// Mean similarity distance of each view.
    pub distances: [f64; 2],
    /// Mean entropy of `images`.
    pub image_entropy: f64,
    /// Entropy of each patch's assignment, whatever `patches` holds.
    entropies: Vec<f64>,
}

impl Goal {
    /// The targets that both views' tokens give. Nothing is changed.  tokens: [2 * batch, patches, dim], those of the first
    /// view before those of the second
    ///
    /// Source: MOCA, image-level and location-specific predictive loss.
    ///
    /// # Errors
    /// Tokens of other patches or another width than the codebook's, or of an odd number of images.
    pub fn new(codebook: &OnlineCodebook, tokens: &Tensor, target: Option<LocTarget>) -> Result<Self> {
        let (rows, patches, _) = tokens.dims3()?;
        let batch = rows / 2;
        if rows != 2 * batch {
            return Err(Error::shape("moca", "tokens of two views", tokens.dims()));
        }
        let assigned = codebook.assign(tokens)?;
        let views = codebook.image_targets(&assigned.targets)?; // [2 * batch, words]
        let images = Tensor::cat(&[views.narrow(0, batch, batch)?, views.narrow(0, 0, batch)?], 0)?;
        let distances = [assigned.distance(0..batch), assigned.distance(batch..rows)];
        let Assignments { targets, entropies, .. } = assigned;
        let patches = match target {
            Some(LocTarget::Embeddings) => tokens.reshape((rows * patches, ()))?,
            _ => targets.reshape((rows * patches, ()))?,
        };
        let image_entropy = mean_row_entropy(&images)?;
        Ok(Self { images, patches, distances, image_entropy, entropies })
    }

    /// Mean entropy of the assignments of some patches, by their places in [`Goal::patches`]; of all of them: `None`.
    ///
    /// # Panics
    /// A place beyond the last.
    #[must_use]
    pub fn entropy(&self, of: Option<&[u32]>) -> f64 {
        let mean = |sum: f64, count: usize| sum / count as f64;
        match of {
            None => mean(self.entropies.iter().sum(), self.entropies.len()),
            Some(places) => mean(places.iter().map(|at| self.entropies[*at as usize]).sum(), places.len()),
        }
    }
}
