//! Mask tokens: what is asked about hidden positions.

use candle_core::Tensor;
use occlude_kernels::{Factors, Init, Result, Scope, gather_rows};
use occlude_masking::Grid;
use occlude_vit::{LearnedPositions, Positions, patch_coords};

/// One learned vector, asked at every position; where positions are learned, their vector is added.
#[derive(Clone, Debug)]
pub(crate) struct MaskToken {
    token: Tensor, // [1, dim]
    learned: Option<LearnedPositions>,
}

impl MaskToken {
    /// A token of width `dim` named `mask_token`; with `learned`, a table `decoder_pos_embed` for that grid.
    pub(crate) fn new(scope: &mut Scope<'_>, dim: usize, learned: Option<Grid>) -> Result<Self> {
        let token = scope.trained("mask_token", &[1, dim], &Init::Normal { std: 0.02 }, Factors::ONE)?;
        let learned = learned.map(|grid| LearnedPositions::new(scope, "decoder_pos_embed", grid, dim)).transpose()?;
        Ok(Self { token, learned })
    }

    /// The bare token.  [1, dim]
    pub(crate) fn token(&self) -> &Tensor {
        &self.token
    }

    /// Tokens for the patches `list` (flat indices, equally many of each image).  [batch, list.len() / batch, dim]
    pub(crate) fn at(&self, grid: Grid, batch: usize, list: &[u32]) -> Result<Tensor> {
        let tokens = gather_rows(&self.token, &vec![0; list.len()])?; // [patches, dim]
        let tokens = match &self.learned {
            None => tokens,
            Some(learned) => (tokens + learned.at(grid, list)?)?,
        };
        Ok(tokens.reshape((batch, list.len() / batch.max(1), self.token.dim(1)?))?)
    }

    pub(crate) fn detach(&self) -> Self {
        Self { token: self.token.detach(), learned: self.learned.as_ref().map(LearnedPositions::detach) }
    }
}

/// Where the patches `list` (flat indices, equally many of each image) are.
pub(crate) fn positions_of(grid: Grid, batch: usize, list: &[u32], like: &Tensor) -> Result<Positions> {
    let images = coords_of(grid, batch, list);
    Positions::each(&images, like.dtype(), like.device())
}

/// Coordinates of the patches `list`, image by image.
pub(crate) fn coords_of(grid: Grid, batch: usize, list: &[u32]) -> Vec<Vec<[f64; 2]>> {
    let all = patch_coords(grid);
    let each = (list.len() / batch.max(1)).max(1);
    list.chunks(each).map(|image| image.iter().map(|index| all[*index as usize % grid.count()]).collect()).collect()
}

/// Flat indices of every patch of a batch.
pub(crate) fn every_patch(grid: Grid, batch: usize) -> Vec<u32> {
    (0..(batch * grid.count()) as u32).collect()
}
