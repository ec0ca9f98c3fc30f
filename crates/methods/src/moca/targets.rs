//! Where targets come from: the teacher's tokens and their assignments to words.

use super::LocTarget;
use candle_core::Tensor;
use occlude_kernels::Result;
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
    /// Mean entropy of the assignments of patches.
    pub entropy: f64,
}

impl Goal {
    /// The targets that both views' tokens give. Nothing is changed.  tokens: [batch, patches, dim] of each view
    ///
    /// Source: MOCA, image-level and location-specific predictive loss.
    ///
    /// # Errors
    /// Tokens of other patches or another width than the codebook's.
    pub fn new(codebook: &OnlineCodebook, tokens: &[Tensor; 2], target: Option<LocTarget>) -> Result<Self> {
        let [first, second] = [codebook.assign(&tokens[0])?, codebook.assign(&tokens[1])?];
        let of_image = |view: &Assignments| codebook.image_targets(&view.targets); // [batch, words]
        let images = Tensor::cat(&[of_image(&second)?, of_image(&first)?], 0)?;
        let assigned = rows(&[&first.targets, &second.targets])?; // [2 * batch * patches, words]
        let entropy = mean_row_entropy(&assigned)?;
        let patches = match target {
            Some(LocTarget::Embeddings) => rows(&[&tokens[0], &tokens[1]])?,
            _ => assigned,
        };
        Ok(Self { images, patches, distances: [first.distance, second.distance], entropy })
    }
}

/// All patches of both views, one after the other.
fn rows(views: &[&Tensor; 2]) -> Result<Tensor> {
    let both = Tensor::cat(views, 0)?; // [2 * batch, patches, dim]
    let (images, patches, dim) = both.dims3()?;
    Ok(both.reshape((images * patches, dim))?)
}
