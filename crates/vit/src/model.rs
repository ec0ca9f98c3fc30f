//! The encoder.

use crate::{
    Block, BlockKind, BlockShape, DropPath, GroupFactors, LearnedPositions, PatchEmbed, PositionKind, Positions,
    RegisterCoords, VitSettings, final_norm, patch_coords, register_coords, scale_into_box,
};
use candle_core::Tensor;
use occlude_kernels::{Error, Factors, Init, Result, Scope, gather_rows};
use occlude_masking::Grid;

/// A Vision Transformer without a class token.
#[derive(Clone, Debug)]
pub struct Vit {
    settings: VitSettings,
    registers: Option<Tensor>, // [1, registers, dim]
    patch_embed: PatchEmbed,
    learned: Option<LearnedPositions>,
    blocks: Vec<Block>,
}

/// What the encoder gives.
#[derive(Debug)]
pub struct Encoded {
    /// The last block's output after the final norm: what a predictor reads.  [batch, registers + patches, dim]
    pub context: Tensor,
    /// The chosen block's output after the final norm; the same tensor as `context` unless an earlier block was chosen.
    pub tokens: Tensor,
    /// What `tokens` is the norm of: the chosen block's output.  [batch, registers + patches, dim]
    pub before_norm: Tensor,
    /// Where the tokens are.
    pub positions: Positions,
    /// The grid of the images.
    pub grid: Grid,
    registers: usize,
}

impl Encoded {
    /// How many registers stand in front of the patches.
    #[must_use]
    pub fn register_count(&self) -> usize {
        self.registers
    }

    /// The features at the patches that entered.  [batch, patches, dim]
    ///
    /// # Errors
    /// A failing view.
    pub fn patches(&self) -> Result<Tensor> {
        let count = self.tokens.dim(1)? - self.registers;
        Ok(self.tokens.narrow(1, self.registers, count)?)
    }

    /// The features at the patches before the final norm.  [batch, patches, dim]
    ///
    /// # Errors
    /// A failing view.
    pub fn patches_before_norm(&self) -> Result<Tensor> {
        let count = self.before_norm.dim(1)? - self.registers;
        Ok(self.before_norm.narrow(1, self.registers, count)?)
    }

    /// The features at the registers, if there are any.  [batch, registers, dim]
    ///
    /// # Errors
    /// A failing view.
    pub fn registers(&self) -> Result<Option<Tensor>> {
        let some = self.registers > 0;
        Ok(some.then(|| self.tokens.narrow(1, 0, self.registers)).transpose()?)
    }
}

impl Vit {
    /// An encoder whose parameters lie in `scope` (`patch_embed`, `registers`, `encoder.blocks.{i}`).
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, settings: &VitSettings, factors: GroupFactors) -> Result<Self> {
        let VitSettings { dim, depth, patch, registers, grid, .. } = *settings;
        let shape = settings.block_shape();
        let registers = match registers {
            0 => None,
            n => Some(scope.trained("registers", &[1, n, dim], &Init::Normal { std: 0.02 }, Factors::ONE)?),
        };
        let patch_embed = PatchEmbed::new(&mut scope.sub("patch_embed"), dim, patch, factors.patch_embed_lr)?;
        let learned = match settings.position {
            PositionKind::Rope => None,
            PositionKind::Learnable => Some(LearnedPositions::new(scope, "pos_embed", grid, dim)?),
        };
        let mut encoder = scope.sub("encoder");
        let mut stack = encoder.sub("blocks");
        let blocks =
            (0..depth).map(|i| Block::new(&mut stack.sub(i), shape, BlockKind::Rms(factors))).collect::<Result<_>>()?;
        Ok(Self { settings: settings.clone(), registers, patch_embed, learned, blocks })
    }

    /// The settings it was made with.
    #[must_use]
    pub fn settings(&self) -> &VitSettings {
        &self.settings
    }

    /// Its blocks, first to last.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The patch grid of `images` [batch, 3, height, width].
    ///
    /// # Errors
    /// No images, not three channels, or a side that is not a multiple of the patch size.
    pub fn grid(&self, images: &Tensor) -> Result<Grid> {
        self.patch_embed.grid(images)
    }

    /// Encodes whole images, or the patches `visible` of them (flat indices, ascending, equally many of each image).
    /// images: [batch, 3, height, width]
    ///
    /// # Errors
    /// Images or indices that do not fit.
    pub fn forward(&self, images: &Tensor, visible: Option<&[u32]>, drop: &mut DropPath) -> Result<Encoded> {
        let (batch, grid) = (images.dim(0)?, self.grid(images)?);
        let patches = self.embed(images, visible)?; // [batch, patches, dim]
        let positions = self.positions(grid, batch, visible, &patches)?;
        self.run(&self.with_registers(&patches)?, positions, grid, drop)
    }

    /// Tokens of the patches, before registers are added.  [batch, 3, height, width] -> [batch, patches, dim]
    ///
    /// # Errors
    /// Images or indices that do not fit.
    pub fn embed(&self, images: &Tensor, list: Option<&[u32]>) -> Result<Tensor> {
        let (batch, grid) = (images.dim(0)?, self.grid(images)?);
        let tokens = self.patch_embed.forward(images, list)?; // [patches, dim]
        let tokens = match (&self.learned, list) {
            (None, _) => tokens,
            (Some(learned), Some(list)) => (tokens + learned.at(grid, list)?)?,
            (Some(learned), None) => {
                let all: Vec<u32> = (0..(batch * grid.count()) as u32).collect();
                (tokens + learned.at(grid, &all)?)?
            }
        };
        let count = tokens.dim(0)?;
        if count % batch != 0 {
            return Err(Error::argument("vit", format!("{count} visible patches for {batch} images")));
        }
        Ok(tokens.reshape((batch, count / batch, self.settings.dim))?)
    }

    /// Tokens of all patches of the grid, with `mask_token` [1, dim] wherever a patch is not in `visible`.
    /// [batch, 3, height, width] -> [batch, patches, dim]
    ///
    /// # Errors
    /// Images or indices that do not fit.
    pub fn embed_masked(&self, images: &Tensor, visible: &[u32], mask_token: &Tensor) -> Result<Tensor> {
        let (batch, grid) = (images.dim(0)?, self.grid(images)?);
        let known = self.patch_embed.forward(images, Some(visible))?; // [visible, dim]
        // Row 0 of the source is the mask token, row i + 1 the visible patch i.
        let source = Tensor::cat(&[mask_token, &known], 0)?;
        let mut places = vec![0; batch * grid.count()];
        for (row, index) in visible.iter().enumerate() {
            places[*index as usize] = row as u32 + 1;
        }
        let tokens = gather_rows(&source, &places)?; // [batch * patches, dim]
        let tokens = match &self.learned {
            None => tokens,
            Some(learned) => (tokens + learned.at(grid, &(0..places.len() as u32).collect::<Vec<_>>())?)?,
        };
        Ok(tokens.reshape((batch, grid.count(), self.settings.dim))?)
    }

    /// Registers in front of patch tokens.  [batch, patches, dim] -> [batch, registers + patches, dim]
    ///
    /// # Errors
    /// Another width.
    pub fn with_registers(&self, patches: &Tensor) -> Result<Tensor> {
        let Some(registers) = &self.registers else { return Ok(patches.clone()) };
        let (batch, _, dim) = patches.dims3()?;
        let registers = registers.broadcast_as((batch, self.settings.registers, dim))?;
        Ok(Tensor::cat(&[&registers, patches], 1)?)
    }

    /// Where the tokens `[registers, patches]` of a batch are; dtype and device as `like`.
    ///
    /// # Errors
    /// Unequal numbers of visible patches.
    pub fn positions(&self, grid: Grid, batch: usize, visible: Option<&[u32]>, like: &Tensor) -> Result<Positions> {
        let all = patch_coords(grid);
        let Some(visible) = visible else {
            return Positions::same(&self.token_coords(&all), batch, like.dtype(), like.device());
        };
        let mut images: Vec<Vec<[f64; 2]>> = vec![Vec::new(); batch];
        for &index in visible {
            let (image, place) = (index as usize / grid.count(), index as usize % grid.count());
            let list = images.get_mut(image).ok_or_else(|| {
                Error::argument("vit", format!("visible patch {index} lies outside a batch of {batch} images"))
            })?;
            list.push(all[place]);
        }
        let images: Vec<_> = images.iter().map(|patches| self.token_coords(patches)).collect();
        Positions::each(&images, like.dtype(), like.device())
    }

    /// Registers, then the patches of one image.
    fn token_coords(&self, patches: &[[f64; 2]]) -> Vec<[f64; 2]> {
        let unit = match self.settings.register_coords {
            RegisterCoords::Edge => register_coords(self.settings.registers),
            RegisterCoords::Zeros => vec![[0.0; 2]; self.settings.registers],
        };
        let mut tokens = if self.settings.scale_registers { scale_into_box(&unit, patches) } else { unit };
        tokens.extend_from_slice(patches);
        tokens
    }

    /// The blocks and the final norm.  tokens: [batch, registers + patches, dim]
    ///
    /// # Errors
    /// Another width, or positions of other tokens.
    pub fn run(&self, tokens: &Tensor, positions: Positions, grid: Grid, drop: &mut DropPath) -> Result<Encoded> {
        let mut x = tokens.clone();
        let mut chosen = (self.settings.out_layer == 0).then(|| x.clone());
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, &positions, drop)?;
            if index + 1 == self.settings.out_layer && index + 1 < self.blocks.len() {
                chosen = Some(x.clone());
            }
        }
        let context = final_norm(&x)?;
        let (before_norm, tokens) = match chosen {
            None => (x, context.clone()),
            Some(chosen) => {
                let tokens = final_norm(&chosen)?;
                (chosen, tokens)
            }
        };
        Ok(Encoded { context, tokens, before_norm, positions, grid, registers: self.settings.registers })
    }

    /// The same encoder on the same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self {
            settings: self.settings.clone(),
            registers: self.registers.as_ref().map(Tensor::detach),
            patch_embed: self.patch_embed.detach(),
            learned: self.learned.as_ref().map(LearnedPositions::detach),
            blocks: self.blocks.iter().map(Block::detach).collect(),
        }
    }
}

impl VitSettings {
    /// The shape of its blocks.
    #[must_use]
    pub fn block_shape(&self) -> BlockShape {
        BlockShape {
            dim: self.dim,
            context: self.dim,
            heads: self.heads,
            hidden: self.hidden,
            encoded: self.position == PositionKind::Rope,
            recompute: self.recompute,
        }
    }
}
