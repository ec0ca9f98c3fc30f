//! The frozen plain encoder that is evaluated and exported.

use candle_core::Tensor;
use occlude_kernels::{Error, Measure, Result, nearest};
use occlude_tokenizers::OnlineCodebook;
use occlude_vit::{DropPath, Extractor, Extras, Features, PlainTokens, PlainVit};
use serde::{Deserialize, Serialize};

/// What stands for a whole image: as its feature; in MOCA in the image loss and in front of the patches of a decoder too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GlobalToken {
    /// The mean of the visible patches.
    Avg,
    /// The class token.
    Cls,
}

/// Features of a plain encoder: patches, and class tokens if it has any; the global vector is what stands for an image.
#[derive(Clone, Debug)]
pub struct PlainExtractor {
    encoder: PlainVit,
    words: Option<Tensor>, // [words, dim]
    global: GlobalToken,
}

impl PlainExtractor {
    /// An extractor on the storage of `encoder`; nothing is tracked.
    #[must_use]
    pub fn new(encoder: &PlainVit, global: GlobalToken) -> Self {
        Self { encoder: encoder.detach(), words: None, global }
    }

    /// The same, whose clusters are the words of `codebook`.
    #[must_use]
    pub fn with_words(self, codebook: &OnlineCodebook) -> Self {
        Self { words: Some(codebook.shared_words().clone()), ..self }
    }

    /// Tokens without those before the patches.  [batch, class + patches, dim] -> [batch, patches, dim]
    fn patches(&self, tokens: &Tensor) -> Result<Tensor> {
        let leading = self.encoder.leading();
        Ok(tokens.narrow(1, leading, tokens.dim(1)? - leading)?.contiguous()?)
    }

    /// Class tokens of the last blocks, first to last, normed.  [batch, blocks, dim]
    fn class(&self, tapped: &[Tensor]) -> Result<Option<Tensor>> {
        let normed = |block: &Tensor| self.encoder.norm().forward(&block.narrow(1, 0, 1)?.contiguous()?);
        let tokens = tapped.iter().map(normed).collect::<Result<Vec<_>>>()?;
        Ok(if tokens.is_empty() { None } else { Some(Tensor::cat(&tokens, 1)?) })
    }
}

impl Extractor for PlainExtractor {
    fn features_with(&self, images: &Tensor, extras: Extras) -> Result<Features> {
        let depth = self.encoder.blocks().len();
        let Some(first) = depth.checked_sub(extras.class_blocks) else {
            let message = format!("class tokens of {} blocks: there are {depth}", extras.class_blocks);
            return Err(Error::argument("features", message));
        };
        let has_class = self.encoder.leading() > 0;
        let mut taps: Vec<usize> = (first + 1..=depth).filter(|_| has_class).collect();
        let classes = taps.len();
        taps.extend(extras.before_norm.then_some(depth));
        let PlainTokens { tokens, tapped, grid, .. } =
            self.encoder.forward(images, None, &taps, &mut DropPath::off())?;
        let (tapped, last) = tapped.split_at(classes);
        let patches = self.patches(&tokens)?;
        let global = match self.global {
            GlobalToken::Cls if has_class => tokens.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
            GlobalToken::Avg | GlobalToken::Cls => patches.mean(1)?,
        };
        Ok(Features {
            global: Some(global),
            class: self.class(tapped)?,
            before_norm: last.first().map(|last| self.patches(last)).transpose()?,
            ..Features::new(grid, patches)
        })
    }

    /// The word nearest by direction, where there are words.
    fn clusters(&self, patches: &Tensor) -> Result<Option<Tensor>> {
        let Some(words) = &self.words else { return Ok(None) };
        let (batch, count, dim) = patches.dims3()?;
        let rows = patches.contiguous()?.reshape((batch * count, dim))?;
        let found = nearest(&rows, words, Measure::Dot)?; // Words are of one length, and a token's own does not count.
        Ok(Some(found.indices.reshape((batch, count))?))
    }

    fn patch_size(&self) -> usize {
        self.encoder.settings().patch()
    }
}
