//! RandSAC's decoder: positions alone ask earlier segments what is there.
//!
//! Its input is the fixed table of positions. A layer mixes tokens of the own segment and those before, then reads the
//! encoder at segments before. With trainable skips each layer reads a mixture of all blocks of the encoder, not only the last.

mod config;
#[cfg(test)]
mod tests;

pub use config::{SegmentDecoderConfig, SegmentDecoderSettings, SkipInit};

use candle_core::Tensor;
use occlude_kernels::{Affine, Error, Factors, Init, NormWeights, Result, Scope};
use occlude_vit::{
    Block, BlockKind, BlockShape, DropPath, SelfAttention, Sights, layer_norm_weights, linear_map, sincos_table,
};

const OP: &str = "segment decoder";

/// A decoder of pixels, segment by segment. Parameter names are those of the RandSAC specification, but for fused matrices,
/// which are held in parts. Source: RandSAC, decoder: masked transformer, trainable skip connections.
#[derive(Clone, Debug)]
pub struct SegmentDecoder {
    positions: Tensor,     // [1, patches, dim]
    skips: Option<Tensor>, // [layers, encoder blocks]
    embed: Option<Affine>, // where the encoder has another width
    layers: Vec<Layer>,
    norm: NormWeights,
    head: PixelHead,
}

#[derive(Clone, Debug)]
struct Layer {
    own: SelfAttention,
    rest: Block,
}

/// A linear map from tokens to the pixels of their patches: `decoder_pred`.
#[derive(Clone, Debug)]
pub struct PixelHead(Affine);

impl PixelHead {
    /// A head on tokens of width `dim` for patches of `patch` x `patch` pixels.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, dim: usize, patch: usize) -> Result<Self> {
        Ok(Self(linear_map(scope, "decoder_pred", 3 * patch * patch, dim)?))
    }

    /// [.., dim] -> [.., patch * patch * 3], as [`patch_pixels`](occlude_vit::patch_pixels) has them
    ///
    /// # Errors
    /// Another width or dtype.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        self.0.forward(tokens)
    }
}

impl SegmentDecoder {
    /// A decoder whose parameters lie in `scope`: `decoder_pos_embed` (never trained), `skip.weight` and `decoder_embed` (if
    /// there are any), `decoder_blocks.{i}`, `decoder_norm`, `decoder_pred`.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, settings: &SegmentDecoderSettings) -> Result<Self> {
        let SegmentDecoderSettings { dim, depth, heads, hidden, encoder, grid, recompute, .. } = *settings;
        let table = Init::Values(sincos_table(dim, grid, false)?);
        let positions = scope.constant("decoder_pos_embed", &[1, grid.count(), dim], &table)?;
        let skips = settings.skips.map(|init| skips(scope, init, depth, settings.blocks)).transpose()?;
        let embed = (encoder != dim).then(|| linear_map(scope, "decoder_embed", dim, encoder)).transpose()?;
        let shape = BlockShape { dim, context: dim, heads, hidden, encoded: false, recompute };
        let mut stack = scope.sub("decoder_blocks");
        let layer = |i| {
            let mut scope = stack.sub(i);
            let own = SelfAttention::new(&mut scope, dim, heads)?;
            Ok(Layer { own, rest: Block::new(&mut scope, shape, BlockKind::Cross)? })
        };
        let layers = (0..depth).map(layer).collect::<Result<_>>()?;
        let norm = layer_norm_weights(scope, "decoder_norm", dim)?;
        Ok(Self { positions, skips, embed, layers, norm, head: PixelHead::new(scope, dim, settings.patch)? })
    }

    /// Weights of the trainable skips, if it has any.  [layers, encoder blocks]
    #[must_use]
    pub fn skips(&self) -> Option<&Tensor> {
        self.skips.as_ref()
    }

    /// The pixels of every patch. `seen` are normed outputs of the encoder: of all blocks in order with skips, else of the
    /// last.  [batch, patches, encoder] each -> [batch, patches, patch * patch * 3]
    ///
    /// # Errors
    /// Outputs of other patches, widths or blocks; sights of other tokens.
    pub fn forward(&self, seen: &[Tensor], sights: &Sights) -> Result<Tensor> {
        let memory = self.memory(seen)?;
        let Some(first) = memory.first() else { return Err(Error::argument(OP, "no layer")) };
        let (batch, patches, dim) = first.dims3()?;
        let mut y = self.positions.detach().broadcast_as((batch, patches, dim))?.contiguous()?;
        for (layer, memory) in self.layers.iter().zip(&memory) {
            y = layer.forward(&y, memory, sights)?;
        }
        self.head.forward(&self.norm.forward(&y)?)
    }

    /// What each layer reads.  [batch, patches, dim] each
    ///
    /// # Errors
    /// As [`SegmentDecoder::forward`].
    pub fn memory(&self, seen: &[Tensor]) -> Result<Vec<Tensor>> {
        let mixed = match (&self.skips, seen) {
            (Some(weights), _) => mixtures(weights, seen)?,
            (None, [last]) => vec![last.clone(); self.layers.len()],
            (None, _) => return Err(Error::argument(OP, format!("reads one block, got {}", seen.len()))),
        };
        match &self.embed {
            None => Ok(mixed),
            Some(embed) if self.skips.is_none() => {
                // The same for every layer.
                let once = embed.forward(&mixed[0])?;
                Ok(vec![once; self.layers.len()])
            }
            Some(embed) => mixed.iter().map(|memory| embed.forward(memory)).collect(),
        }
    }
}

impl Layer {
    /// [batch, patches, dim] both
    fn forward(&self, y: &Tensor, memory: &Tensor, sights: &Sights) -> Result<Tensor> {
        let own = self.own.forward(y, &sights.content)?;
        self.rest.attend_seeing(&own, memory, sights.memory.clone(), &mut DropPath::off())
    }
}

fn skips(scope: &mut Scope<'_>, init: SkipInit, layers: usize, blocks: usize) -> Result<Tensor> {
    let weight = |at: usize| match init {
        SkipInit::Last => f64::from(u8::from(at % blocks + 1 == blocks)),
        SkipInit::Uniform => 1.0 / blocks as f64,
    };
    let values = Init::Values((0..layers * blocks).map(weight).collect());
    scope.sub("skip").trained("weight", &[layers, blocks], &values, Factors::NO_DECAY)
}

/// `sum_k weights[l, k] seen[k]` for each layer l.
/// weights: [layers, blocks], seen: [batch, patches, dim] each -> as seen
fn mixtures(weights: &Tensor, seen: &[Tensor]) -> Result<Vec<Tensor>> {
    let (layers, blocks) = weights.dims2()?;
    let Some(first) = seen.first().filter(|_| seen.len() == blocks) else {
        return Err(Error::argument(OP, format!("reads {blocks} blocks, got {}", seen.len())));
    };
    let shape = first.dims().to_vec();
    let stacked = Tensor::stack(seen, 0)?.reshape((blocks, first.elem_count()))?; // [blocks, batch * patches * dim]
    let mixed = weights.matmul(&stacked)?; // [layers, batch * patches * dim]
    (0..layers).map(|layer| Ok(mixed.get(layer)?.reshape(&shape[..])?)).collect()
}
