//! The plain encoder where tokens come one after the other: who sees whom is a matter of ranks.

use super::{OP, PlainTokens, PlainVit};
use crate::DropPath;
use candle_core::Tensor;
use occlude_kernels::{Error, RankRule, Result, Visibility};

/// Who sees whom among tokens that are predicted in groups, one group after the other.
#[derive(Clone, Debug)]
pub struct Sights {
    /// Encoder, decoder self-attention, content stream: the own group and those before it.
    pub content: Visibility,
    /// Cross-attention, query stream: the groups before; the first one, which has none, itself.
    pub memory: Visibility,
    /// Both, the queries of the content stream first: two streams that read the same keys.
    pub both: Visibility,
}

impl Sights {
    /// The sights of tokens of these ranks, image by image; no table of pairs is made.  [batch * tokens] for images of
    /// `tokens` each. Source: RandSAC, attention masks.
    #[must_use]
    pub fn of(ranks: &[u32], tokens: usize) -> Self {
        let earlier: Vec<u32> = ranks.iter().map(|rank| rank.saturating_sub(1)).collect();
        let both = ranks.chunks(tokens.max(1)).zip(earlier.chunks(tokens.max(1)));
        let both = both.flat_map(|(own, earlier)| own.iter().chain(earlier)).copied().collect();
        let of = |queries: Vec<u32>| Visibility::Ranks { queries, keys: ranks.to_vec(), rule: RankRule::AtMost };
        Self { content: of(ranks.to_vec()), memory: of(earlier), both: of(both) }
    }
}

impl PlainVit {
    /// Encodes whole images, each patch seeing itself and what comes before it. `taps` as in [`PlainVit::forward`].
    /// images: [batch, 3, height, width]
    ///
    /// # Errors
    /// As [`PlainVit::forward`]; an encoder with a class token; sights of other patches.
    pub fn forward_in_order(&self, images: &Tensor, sights: &Sights, taps: &[usize]) -> Result<PlainTokens> {
        self.refuse_class()?;
        self.pass(images, None, &sights.content, taps, &mut DropPath::off())
    }

    /// What the query stream says about each patch: it begins with positions alone and reads the content of what comes
    /// before, through the same weights. Source: RandSAC, two-stream decoder.
    /// images: [batch, 3, height, width] -> [batch, patches, dim], normed
    ///
    /// # Errors
    /// As [`PlainVit::forward_in_order`].
    pub fn query_stream(&self, images: &Tensor, sights: &Sights) -> Result<Tensor> {
        self.refuse_class()?;
        let (grid, off) = (self.patch_embed.grid(images)?, &mut DropPath::off());
        let content = self.embed(images, grid, None)?; // [batch, patches, dim]
        let (batch, patches, dim) = content.dims3()?;
        let query = self.table(grid)?.to_dtype(content.dtype())?.broadcast_as((batch, patches, dim))?;
        let mut both = Tensor::cat(&[&content, &query], 1)?; // [batch, 2 * patches, dim]
        let (last, others) = self.blocks.split_last().ok_or_else(|| Error::argument(OP, "no block"))?;
        for block in others {
            both = block.mix_streams(&both, patches, sights.both.clone(), off)?;
        }
        let (content, query) = (both.narrow(1, 0, patches)?, both.narrow(1, patches, patches)?);
        let query = last.last_stream(&content.contiguous()?, &query.contiguous()?, sights.memory.clone(), off)?;
        self.norm.forward(&query)
    }

    fn refuse_class(&self) -> Result<()> {
        match self.class {
            None => Ok(()),
            Some(_) => Err(Error::argument(OP, "has a class token, which has no place in an order")),
        }
    }
}
