//! Predictors: cross-attention, self-attention, fused with the encoder.

use crate::queries::{MaskToken, coords_of, every_patch, positions_of};
use crate::{PredictorKind, PredictorSettings};
use candle_core::Tensor;
use occlude_kernels::{Error, Result, Scope, gather_rows, linear};
use occlude_masking::BatchMask;
use occlude_vit::{
    Block, BlockKind, BlockShape, DropPath, Encoded, GroupFactors, PositionKind, Positions, Vit, VitSettings,
    final_norm, linear_weight,
};

/// A predictor on an encoder.
#[derive(Clone, Debug)]
pub struct Predictor {
    mask: MaskToken,
    stack: Stack,
}

#[derive(Clone, Debug)]
enum Stack {
    Cross(Vec<Block>),
    SelfAttention { embed: Option<Tensor>, blocks: Vec<Block>, only_sampled: bool },
    Fused,
}

/// Features of whole images.
#[derive(Debug)]
pub struct Pooled {
    /// The encoder's output.
    pub encoded: Encoded,
    /// One vector an image.  [batch, dim]
    pub global: Tensor,
}

impl Predictor {
    /// A predictor whose parameters lie in `scope` (`mask_token`, `decoder.blocks.{i}`).
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(
        scope: &mut Scope<'_>,
        settings: &PredictorSettings,
        encoder: &VitSettings,
        factors: GroupFactors,
    ) -> Result<Self> {
        let PredictorSettings { kind, dim, depth, heads, only_sampled } = *settings;
        // A fused predictor's mask tokens stand among the patches, and share their table.
        let learned = encoder.position() == PositionKind::Learnable && kind != PredictorKind::Fused;
        let mask = MaskToken::new(scope, dim, learned.then(|| encoder.grid()))?;
        let shape = BlockShape {
            dim,
            context: encoder.dim(),
            heads,
            hidden: encoder.hidden_for(dim),
            encoded: encoder.position() == PositionKind::Rope,
            recompute: encoder.recompute(),
        };
        let mut decoder = scope.sub("decoder");
        let stack = match kind {
            PredictorKind::Fused => Stack::Fused,
            PredictorKind::Cross => {
                let mut blocks = decoder.sub("blocks");
                let new = |i| Block::new(&mut blocks.sub(i), shape, BlockKind::Rms(factors));
                Stack::Cross((0..depth).map(new).collect::<Result<_>>()?)
            }
            PredictorKind::SelfAttention => {
                let embed = (dim != encoder.dim()).then(|| linear_weight(&mut decoder, "embed", dim, encoder.dim()));
                let embed = embed.transpose()?;
                let mut blocks = decoder.sub("blocks");
                let shape = BlockShape { context: dim, ..shape };
                let new = |i| Block::new(&mut blocks.sub(i), shape, BlockKind::Rms(factors));
                Stack::SelfAttention { embed, blocks: (0..depth).map(new).collect::<Result<_>>()?, only_sampled }
            }
        };
        Ok(Self { mask, stack })
    }

    /// The blocks of a cross-attention predictor; none for another.
    #[must_use]
    pub fn cross_blocks(&self) -> &[Block] {
        match &self.stack {
            Stack::Cross(blocks) => blocks,
            _ => &[],
        }
    }

    /// The mask tokens at the patches `list`.  [batch, list.len() / batch, dim]
    ///
    /// # Errors
    /// A failing product of learned positions.
    pub fn queries(&self, mask: &BatchMask, list: &[u32]) -> Result<Tensor> {
        self.mask.at(mask.grid, mask.batch, list)
    }

    /// Encodes what is visible of `images` and predicts the patches `mask.predict`, in that order, after the final norm.
    /// images: [batch, 3, height, width] -> [predicted, dim]
    ///
    /// # Errors
    /// A mask of another grid or batch.
    pub fn predict(&self, encoder: &Vit, images: &Tensor, mask: &BatchMask, drop: &mut DropPath) -> Result<Tensor> {
        let (batch, grid) = (images.dim(0)?, encoder.grid(images)?);
        if (batch, grid) != (mask.batch, mask.grid) {
            let message = format!("a mask of {} images of {:?} for {batch} of {grid:?}", mask.batch, mask.grid);
            return Err(Error::argument("predictor", message));
        }
        match &self.stack {
            Stack::Fused => self.predict_fused(encoder, images, mask, drop),
            Stack::Cross(blocks) => {
                let encoded = encoder.forward(images, Some(&mask.visible), drop)?;
                let out = self.cross(blocks, &encoded, mask.batch, &mask.predict, drop)?;
                rows(&final_norm(&out)?)
            }
            Stack::SelfAttention { only_sampled, .. } => {
                let encoded = encoder.forward(images, Some(&mask.visible), drop)?;
                if *only_sampled {
                    return rows(&final_norm(&self.joint(&encoded, mask.batch, &mask.predict, None, drop)?)?);
                }
                let hidden = hidden_patches(mask);
                let out = final_norm(&self.joint(&encoded, mask.batch, &hidden, None, drop)?)?;
                gather_rows(&rows(&out)?, &places_in(&hidden, &mask.predict)?)
            }
        }
    }

    /// Features of whole images. The global one is the mean over all positions of the *first* block's predictions after
    /// the final norm; a fused predictor has no block of its own and gives the mean of the patch features.
    /// images: [batch, 3, height, width]
    ///
    /// # Errors
    /// Images that do not fit.
    pub fn pooled(&self, encoder: &Vit, images: &Tensor) -> Result<Pooled> {
        let mut off = DropPath::off();
        let encoded = encoder.forward(images, None, &mut off)?;
        let batch = images.dim(0)?;
        let every = every_patch(encoded.grid, batch);
        let predicted = match &self.stack {
            Stack::Fused => encoded.patches()?,
            Stack::Cross(blocks) => final_norm(&self.cross(&blocks[..1], &encoded, batch, &every, &mut off)?)?,
            Stack::SelfAttention { .. } => final_norm(&self.joint(&encoded, batch, &every, Some(1), &mut off)?)?,
        };
        Ok(Pooled { global: predicted.mean(1)?, encoded })
    }

    /// Mask tokens at `list` through cross-attention blocks, before the norm.  [batch, list.len() / batch, dim]
    fn cross(
        &self,
        blocks: &[Block],
        encoded: &Encoded,
        batch: usize,
        list: &[u32],
        drop: &mut DropPath,
    ) -> Result<Tensor> {
        let mut x = self.mask.at(encoded.grid, batch, list)?;
        let positions = positions_of(encoded.grid, batch, list, &encoded.context)?;
        for block in blocks {
            x = block.attend(&x, &positions, &encoded.context, &encoded.positions, drop)?;
        }
        Ok(x)
    }

    /// The encoder's output and mask tokens at `list` through (the first `depth`) self-attention blocks; the mask tokens,
    /// before the norm.  [batch, list.len() / batch, dim]
    fn joint(
        &self,
        encoded: &Encoded,
        batch: usize,
        list: &[u32],
        depth: Option<usize>,
        drop: &mut DropPath,
    ) -> Result<Tensor> {
        let Stack::SelfAttention { embed, blocks, .. } = &self.stack else {
            return Err(Error::argument("predictor", "has no self-attention blocks"));
        };
        let context = match embed {
            Some(weight) => linear(&encoded.context, weight, None)?,
            None => encoded.context.clone(),
        };
        let asked = self.mask.at(encoded.grid, batch, list)?;
        let (known, count) = (context.dim(1)?, asked.dim(1)?);
        let mut x = Tensor::cat(&[&context, &asked], 1)?; // [batch, known + asked, dim]
        let positions = encoded.positions.and(&coords_of(encoded.grid, batch, list))?;
        for block in blocks.iter().take(depth.unwrap_or(blocks.len())) {
            x = block.forward(&x, &positions, drop)?;
        }
        Ok(x.narrow(1, known, count)?)
    }

    /// Mask tokens take the places of hidden patches in front of the encoder, which sees the full grid.
    fn predict_fused(&self, encoder: &Vit, images: &Tensor, mask: &BatchMask, drop: &mut DropPath) -> Result<Tensor> {
        let tokens = encoder.embed_masked(images, &mask.visible, self.mask.token())?; // [batch, patches, dim]
        let positions: Positions = encoder.positions(mask.grid, mask.batch, None, &tokens)?;
        let encoded = encoder.run(&encoder.with_registers(&tokens)?, positions, mask.grid, drop)?;
        let patches = encoded.context.narrow(1, encoded.register_count(), mask.grid.count())?;
        gather_rows(&rows(&patches.contiguous()?)?, &mask.predict)
    }

    /// The same predictor on the same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        let stack = match &self.stack {
            Stack::Fused => Stack::Fused,
            Stack::Cross(blocks) => Stack::Cross(blocks.iter().map(Block::detach).collect()),
            Stack::SelfAttention { embed, blocks, only_sampled } => Stack::SelfAttention {
                embed: embed.as_ref().map(Tensor::detach),
                blocks: blocks.iter().map(Block::detach).collect(),
                only_sampled: *only_sampled,
            },
        };
        Self { mask: self.mask.detach(), stack }
    }
}

/// [batch, tokens, dim] -> [batch * tokens, dim]
fn rows(x: &Tensor) -> Result<Tensor> {
    let (batch, tokens, dim) = x.dims3()?;
    Ok(x.reshape((batch * tokens, dim))?)
}

/// Flat indices of all hidden patches, ascending: equally many of each image.
fn hidden_patches(mask: &BatchMask) -> Vec<u32> {
    let mut seen = mask.visible.iter().copied().peekable();
    (0..(mask.batch * mask.grid.count()) as u32).filter(|index| seen.next_if_eq(index).is_none()).collect()
}

/// Where each of `wanted` stands in the ascending list `among`.
fn places_in(among: &[u32], wanted: &[u32]) -> Result<Vec<u32>> {
    let place = |index: &u32| {
        let message = || Error::argument("predictor", format!("patch {index} is predicted but not hidden"));
        among.binary_search(index).map(|place| place as u32).map_err(|_| message())
    };
    wanted.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::{Predictor, hidden_patches, places_in};
    use crate::{PredictorConfig, PredictorKind};
    use candle_core::{DType, Device, Tensor};
    use occlude_kernels::ParamStore;
    use occlude_kernels::check::sample;
    use occlude_masking::{BatchMask, Grid};
    use occlude_random::Streams;
    use occlude_vit::{DropPath, GroupFactors, Vit, VitConfig};

    fn model(kind: PredictorKind) -> (Vit, Predictor) {
        let (_, vit, predictor) = stored(kind);
        (vit, predictor)
    }

    fn stored(kind: PredictorKind) -> (ParamStore, Vit, Predictor) {
        let encoder = VitConfig { dim: 16, depth: 1, heads: 2, patch: 2, registers: 4, ..VitConfig::default() };
        let settings = encoder.check(6).unwrap();
        let predictor = PredictorConfig { kind, dim: 8, depth: 2, heads: 1, ..PredictorConfig::default() };
        let predictor = predictor.check(&settings).unwrap();
        let factors = GroupFactors { patch_embed_lr: 0.2, norm_wd: 0.1 };
        let mut store = ParamStore::frozen(Streams::new(4), DType::F64, &Device::Cpu);
        let mut scope = store.root();
        let vit = Vit::new(&mut scope, &settings, factors).unwrap();
        let predictor = Predictor::new(&mut scope, &predictor, &settings, factors).unwrap();
        (store, vit, predictor)
    }

    /// Two images of 3 x 3 patches, three of them visible.
    fn mask(predict: &[u32]) -> BatchMask {
        BatchMask {
            grid: Grid::new(3, 3),
            batch: 2,
            visible: vec![0, 1, 4, 9, 16, 17],
            predict: predict.to_vec(),
            visible_per_image: 3,
            predict_per_image: predict.len() / 2,
        }
    }

    fn predict(model: &(Vit, Predictor), mask: &BatchMask) -> Vec<Vec<f64>> {
        let images: Tensor = sample(1, (2, 3, 6, 6)).unwrap();
        model.1.predict(&model.0, &images, mask, &mut DropPath::off()).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn a_cross_prediction_does_not_depend_on_the_others() {
        let model = model(PredictorKind::Cross);
        let all = predict(&model, &mask(&[2, 8, 5, 14, 10, 12]));
        let some = predict(&model, &mask(&[5, 12]));
        for (a, b) in [(&all[2], &some[0]), (&all[5], &some[1])] {
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12));
        }
        assert!((all[0][0] - all[1][0]).abs() > 1e-6, "positions matter");
    }

    #[test]
    fn hidden_patches_are_all_but_the_visible() {
        let hidden = hidden_patches(&mask(&[2, 10]));
        assert_eq!(hidden, [2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15]);
        assert_eq!(places_in(&hidden, &[7, 2]).unwrap(), [4, 0]);
        assert!(places_in(&hidden, &[9]).is_err(), "9 is visible");
    }

    #[test]
    fn a_mask_of_another_batch_is_refused() {
        let (vit, predictor) = model(PredictorKind::Cross);
        let images = sample(1, (3, 3, 6, 6)).unwrap();
        let error = predictor.predict(&vit, &images, &mask(&[2, 10]), &mut DropPath::off()).unwrap_err();
        assert!(error.to_string().contains("2 images"), "{error}");
    }

    #[test]
    fn the_global_feature_comes_from_the_first_block() {
        // Changing the second block changes predictions, not the pooled vector.
        let (store, vit, predictor) = stored(PredictorKind::Cross);
        let images = sample(1, (2, 3, 6, 6)).unwrap();
        let both = || {
            let global = predictor.pooled(&vit, &images).unwrap().global.to_vec2::<f64>().unwrap();
            let out = predictor.predict(&vit, &images, &mask(&[2, 10]), &mut DropPath::off()).unwrap();
            (global, out.to_vec2::<f64>().unwrap())
        };
        let (global, out) = both();
        let weight = store.get("decoder.blocks.1.residual2.fn.fc2.weight").unwrap();
        occlude_kernels::assign(weight, &weight.ones_like().unwrap()).unwrap();
        let (global_after, out_after) = both();
        assert_eq!(global, global_after);
        assert_ne!(out, out_after);
    }
}
