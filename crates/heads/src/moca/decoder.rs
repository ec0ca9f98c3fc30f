//! The decoder: what the student says about some hidden patches, and about the visible ones.

use super::{DecoderInput, DecoderSettings};
use candle_core::Tensor;
use occlude_kernels::{Affine, Error, Factors, Init, NormWeights, Result, Scope, gather_rows};
use occlude_masking::{Grid, Round};
use occlude_vit::{Block, BlockKind, BlockShape, DropPath, layer_norm_weights, linear_map, sincos_table};

const OP: &str = "decoder";
/// Units of the MLP of a block over the width.
const MLP_RATIO: usize = 4;

/// Blocks over one leading token, the visible patches and mask tokens, with fixed positions. Source: MOCA, condenser-based decoder, partial decoding, default decoder.
#[derive(Clone, Debug)]
pub struct Decoder {
    positions: Tensor, // [1, 1 + patches, dim]; a row of zeros for the leading token
    mask: Tensor,      // [1, 1, dim]
    norm: Option<NormWeights>,
    embed: Affine,
    blocks: Vec<Block>,
    last_norm: NormWeights,
    grid: Grid,
}

impl Decoder {
    /// A decoder whose parameters lie in `scope`: `decoder_pos_embed` (never trained) and, each with `ending` behind it,
    /// `mask_token`, `norm` (not of a plain one), `decoder_embed`, `decoder_blocks.{i}`, `decoder_norm`. Official MOCA
    /// checkpoints have the ending `_cls_pt`, masked autoencoders none.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, settings: &DecoderSettings, ending: &str) -> Result<Self> {
        let name = |name: &str| format!("{name}{ending}");
        let DecoderSettings { input, dim, depth, heads, encoder, grid, recompute } = *settings;
        let table = Init::Values(sincos_table(dim, grid, true)?);
        let positions = scope.constant("decoder_pos_embed", &[1, 1 + grid.count(), dim], &table)?;
        // Decayed, unlike vectors: the public code goes by the number of axes.
        let mask = scope.trained(&name("mask_token"), &[1, 1, dim], &Init::Normal { std: 0.02 }, Factors::ONE)?;
        let normed = input != DecoderInput::Plain;
        let norm = normed.then(|| layer_norm_weights(scope, &name("norm"), encoder)).transpose()?;
        let embed = linear_map(scope, &name("decoder_embed"), dim, encoder)?;
        let mut stack = scope.sub(name("decoder_blocks"));
        let shape = BlockShape { dim, context: dim, heads, hidden: MLP_RATIO * dim, encoded: false, recompute };
        let new = |i| Block::new(&mut stack.sub(i), shape, BlockKind::Layer);
        let blocks = (0..depth).map(new).collect::<Result<_>>()?;
        let last_norm = layer_norm_weights(scope, &name("decoder_norm"), dim)?;
        Ok(Self { positions, mask, norm, embed, blocks, last_norm, grid })
    }

    /// Its blocks, first to last.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// What the decoder says about the patches `round.decoded()`, in that order: visible ones, then hidden ones, row after
    /// row. `leading` is the global embedding, or for a plain decoder the output of the class token.
    /// leading: [rows, encoder], visible: [rows, keep, encoder] (no class token, in the order of the round)
    /// -> [rows * decode, dim]
    ///
    /// # Errors
    /// Tokens of other rows, patches or widths than those of the round and the encoder.
    pub fn forward(&self, leading: &Tensor, visible: &Tensor, round: &Round) -> Result<Tensor> {
        let mut x = self.tokens(leading, visible, round)?;
        for block in &self.blocks {
            x = block.mix(&x, &mut DropPath::off())?;
        }
        let (rows, tokens, dim) = x.dims3()?;
        let patches = self.last_norm.forward(&x)?.narrow(1, 1, tokens - 1)?.contiguous()?;
        Ok(patches.reshape((rows * (tokens - 1), dim))?)
    }

    /// What enters the first block.  [rows, 1 + decode, dim]
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn tokens(&self, leading: &Tensor, visible: &Tensor, round: &Round) -> Result<Tensor> {
        self.check(leading, visible, round)?;
        let (rows, counts, dim) = (round.rows(), round.counts(), self.mask.dim(2)?);
        let patches = match &self.norm {
            Some(norm) => norm.forward(visible)?,
            None => visible.clone(),
        };
        let known = self.embed.forward(&Tensor::cat(&[&leading.unsqueeze(1)?, &patches], 1)?)?; // [rows, 1 + keep, dim]
        let asked = counts.decode - counts.keep;
        let masks = gather_rows(&self.mask.reshape((1, dim))?, &vec![0; rows * asked])?;
        let tokens = Tensor::cat(&[&known, &masks.reshape((rows, asked, dim))?], 1)?;
        Ok((tokens + self.positions_of(round)?)?)
    }

    /// Positions of the leading token (row 0) and of the decoded patches of each row.  [rows, 1 + decode, dim]
    fn positions_of(&self, round: &Round) -> Result<Tensor> {
        let (decode, dim) = (round.counts().decode, self.mask.dim(2)?);
        let row =
            |ids: &[u32]| -> Vec<u32> { std::iter::once(0).chain(ids[..decode].iter().map(|id| 1 + id)).collect() };
        let index: Vec<u32> = round.ids().chunks_exact(round.patches()).flat_map(row).collect();
        let table = self.positions.detach().reshape((1 + self.grid.count(), dim))?;
        Ok(gather_rows(&table, &index)?.reshape((round.rows(), 1 + decode, dim))?)
    }

    fn check(&self, leading: &Tensor, visible: &Tensor, round: &Round) -> Result<()> {
        if round.patches() != self.grid.count() {
            let message = format!("a round of {} patches for a grid of {}", round.patches(), self.grid.count());
            return Err(Error::argument(OP, message));
        }
        let (rows, keep, width) = (round.rows(), round.counts().keep, self.embed.weight.dim(1)?);
        if leading.dims() != [rows, width] {
            return Err(Error::shape(OP, format!("leading tokens [{rows}, {width}]"), leading.dims()));
        }
        if visible.dims() != [rows, keep, width] {
            return Err(Error::shape(OP, format!("visible tokens [{rows}, {keep}, {width}]"), visible.dims()));
        }
        Ok(())
    }
}
