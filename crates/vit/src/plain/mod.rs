//! The plain encoder: fixed positions, layer norms, a class token or none.

mod config;
mod ordered;

#[cfg(test)]
mod tests;

pub use config::{PlainVitConfig, PlainVitSettings};
pub use ordered::Sights;

use crate::resize::resized;
use crate::{Block, BlockKind, DropPath, PatchEmbed, layer_norm_weights, sincos_table};
use candle_core::Tensor;
use occlude_kernels::{Error, Factors, Init, NormWeights, Result, Scope, Visibility, gather_rows};
use occlude_masking::Grid;

const OP: &str = "plain vit";

/// A pre-norm Vision Transformer with a fixed table of sines and cosines, and a class token unless its settings say
/// otherwise. Parameter names are the usual ones, but for the queries, keys and values of a block ([`BlockKind::Layer`]).
/// Source: MOCA, encoder; that of masked autoencoders is the same, and RandSAC's without the class token.
#[derive(Clone, Debug)]
pub struct PlainVit {
    settings: PlainVitSettings,
    class: Option<Tensor>, // [1, 1, dim]
    positions: Tensor,     // [1, class + patches, dim]; a row of zeros for the class token
    patch_embed: PatchEmbed,
    blocks: Vec<Block>,
    norm: NormWeights,
}

/// What the encoder gives. Tokens are `[class, patches]`, the patches in the order in which they were asked for; patches
/// alone, where the encoder has no class token.
#[derive(Clone, Debug)]
pub struct PlainTokens {
    /// The last block's output after the norm.  [batch, class + patches, dim]
    pub tokens: Tensor,
    /// Outputs of the blocks that were tapped, without a norm, in the order of the request.  [batch, class + patches, dim] each
    pub tapped: Vec<Tensor>,
    /// The grid of the images.
    pub grid: Grid,
    /// Tokens before the patches: 1 with a class token, else 0.
    pub leading: usize,
}

impl PlainTokens {
    /// The output at the patches.  [batch, patches, dim]
    ///
    /// # Errors
    /// A failing view.
    pub fn patches(&self) -> Result<Tensor> {
        Ok(self.tokens.narrow(1, self.leading, self.tokens.dim(1)? - self.leading)?)
    }

    /// The output at the class token.  [batch, dim]
    ///
    /// # Errors
    /// The encoder has none.
    pub fn class(&self) -> Result<Tensor> {
        if self.leading == 0 {
            return Err(Error::argument(OP, "has no class token"));
        }
        Ok(self.tokens.narrow(1, 0, 1)?.squeeze(1)?)
    }
}

/// Tokens without the class token.  [batch, 1 + patches, dim] -> [batch, patches, dim]
///
/// # Errors
/// Another rank, or no class token.
pub fn patches_of(tokens: &Tensor) -> Result<Tensor> {
    let (_, count, _) = tokens.dims3()?;
    Ok(tokens.narrow(1, 1, count - 1)?)
}

impl PlainVit {
    /// An encoder whose parameters lie in `scope`: `cls_token` (if there is one), `pos_embed` (never trained),
    /// `patch_embed.proj`, `blocks.{i}`, `norm`.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, settings: &PlainVitSettings) -> Result<Self> {
        let PlainVitSettings { dim, depth, patch, grid, class: has_class, .. } = *settings;
        // Decayed, unlike vectors: the public code goes by the number of axes.
        let mut class_token = || scope.trained("cls_token", &[1, 1, dim], &Init::Normal { std: 0.02 }, Factors::ONE);
        let class = has_class.then(&mut class_token).transpose()?;
        let table = Init::Values(sincos_table(dim, grid, has_class)?);
        let positions = scope.constant("pos_embed", &[1, usize::from(has_class) + grid.count(), dim], &table)?;
        let mut projection = scope.sub("patch_embed.proj");
        let patch_embed = match has_class {
            true => PatchEmbed::new(&mut projection, dim, patch, 1.0)?,
            false => PatchEmbed::with_bias(&mut projection, dim, patch, 1.0, &Init::Constant(0.0))?,
        };
        let mut stack = scope.sub("blocks");
        let new = |i| Block::new(&mut stack.sub(i), settings.block_shape(), BlockKind::Layer);
        let blocks = (0..depth).map(new).collect::<Result<_>>()?;
        let norm = layer_norm_weights(scope, "norm", dim)?;
        Ok(Self { settings: settings.clone(), class, positions, patch_embed, blocks, norm })
    }

    /// The settings it was made with.
    #[must_use]
    pub fn settings(&self) -> &PlainVitSettings {
        &self.settings
    }

    /// Its blocks, first to last.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The norm after the last block.
    #[must_use]
    pub fn norm(&self) -> &NormWeights {
        &self.norm
    }

    /// Encodes whole images, or the patches `visible` of them: flat indices, image after image, equally many of each, in
    /// any order within an image. `taps` are blocks, counted from 1, whose outputs are given as well.
    /// images: [batch, 3, height, width]
    ///
    /// # Errors
    /// Images or indices that do not fit, or a tap that is no block.
    pub fn forward(
        &self,
        images: &Tensor,
        visible: Option<&[u32]>,
        taps: &[usize],
        drop: &mut DropPath,
    ) -> Result<PlainTokens> {
        self.pass(images, visible, &Visibility::All, taps, drop)
    }

    /// Patches `visible` of the images through all blocks, each token seeing what `sight` lets it.
    fn pass(
        &self,
        images: &Tensor,
        visible: Option<&[u32]>,
        sight: &Visibility,
        taps: &[usize],
        drop: &mut DropPath,
    ) -> Result<PlainTokens> {
        if let Some(tap) = taps.iter().find(|tap| !(1..=self.blocks.len()).contains(*tap)) {
            return Err(Error::argument(OP, format!("block {tap} of {}: blocks count from 1", self.blocks.len())));
        }
        let grid = self.patch_embed.grid(images)?;
        let mut x = self.embed(images, grid, visible)?; // [batch, class + patches, dim]
        let mut outputs = vec![None; taps.len()];
        for (at, block) in self.blocks.iter().enumerate() {
            x = block.mix_seeing(&x, sight.clone(), drop)?;
            let wanted = outputs.iter_mut().zip(taps).filter(|(_, tap)| **tap == at + 1);
            wanted.for_each(|(output, _)| *output = Some(x.clone()));
        }
        let tapped = outputs.into_iter().flatten().collect();
        Ok(PlainTokens { tokens: self.norm.forward(&x)?, tapped, grid, leading: self.leading() })
    }

    /// What enters the first block: the class token if there is one, then patches with their positions.
    /// [batch, class + patches, dim]
    fn embed(&self, images: &Tensor, grid: Grid, visible: Option<&[u32]>) -> Result<Tensor> {
        let (batch, dim, count) = (images.dim(0)?, self.settings.dim, grid.count());
        let patches = self.patch_embed.forward(images, visible)?; // [batch * patches, dim]
        let (table, leading) = (self.table(grid)?, self.leading()); // [leading + count, dim]
        let (each, positions) = match visible {
            None => (count, table.narrow(0, leading, count)?.repeat((batch, 1))?),
            Some(list) => (equally_many(list, batch, count)?, gather_rows(&table, &places(list, count, leading))?),
        };
        let patches = (patches + positions)?.reshape((batch, each, dim))?;
        let Some(class) = &self.class else { return Ok(patches) };
        let class = class.broadcast_add(&table.narrow(0, 0, 1)?)?.broadcast_as((batch, 1, dim))?;
        Ok(Tensor::cat(&[&class, &patches], 1)?)
    }

    /// The table of positions for images of `grid`; that of a class token stays as it is.  [class + patches, dim]
    ///
    /// # Errors
    /// A failing product.
    pub fn table(&self, grid: Grid) -> Result<Tensor> {
        let (own, dim, leading) = (self.settings.grid, self.settings.dim, self.leading());
        let table = self.positions.detach().reshape((leading + own.count(), dim))?;
        if grid == own {
            return Ok(table);
        }
        let patches = resized(&table.narrow(0, leading, own.count())?, own, grid)?;
        match leading {
            0 => Ok(patches),
            _ => Ok(Tensor::cat(&[&table.narrow(0, 0, leading)?, &patches], 0)?),
        }
    }

    /// Tokens before the patches: 1 with a class token, else 0.
    #[must_use]
    pub fn leading(&self) -> usize {
        usize::from(self.class.is_some())
    }

    /// The same encoder on the same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self {
            settings: self.settings.clone(),
            class: self.class.as_ref().map(Tensor::detach),
            positions: self.positions.detach(),
            patch_embed: self.patch_embed.detach(),
            blocks: self.blocks.iter().map(Block::detach).collect(),
            norm: self.norm.detach(),
        }
    }
}

/// How many patches of each image are listed, image after image.
fn equally_many(list: &[u32], batch: usize, count: usize) -> Result<usize> {
    let each = list.len() / batch;
    let image_of = |index: u32| index as usize / count;
    let ordered = each > 0 && list.len() == each * batch;
    if !ordered || list.chunks(each).zip(0..).any(|(own, image)| own.iter().any(|index| image_of(*index) != image)) {
        let message =
            format!("{} visible patches: {batch} images must have equally many, one after the other", list.len());
        return Err(Error::argument(OP, message));
    }
    Ok(each)
}

/// Rows of the table for flat indices of patches, behind `leading` others.
fn places(list: &[u32], count: usize, leading: usize) -> Vec<u32> {
    list.iter().map(|index| leading as u32 + index % count as u32).collect()
}
