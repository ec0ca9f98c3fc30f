//! The frozen model that is evaluated and exported.

use super::GlobalToken;
use candle_core::Tensor;
use occlude_kernels::{Error, Measure, Result, nearest};
use occlude_tokenizers::OnlineCodebook;
use occlude_vit::{DropPath, Extractor, Extras, Features, PlainTokens, PlainVit, patches_of};

/// Features of a student or a teacher: patches and class token; the global vector is what stood for an image in training.
#[derive(Clone, Debug)]
pub struct MocaExtractor {
    encoder: PlainVit,
    words: Tensor, // [words, dim]
    global: GlobalToken,
}

impl MocaExtractor {
    /// An extractor on the storage of `encoder` and `codebook`; nothing is tracked.
    #[must_use]
    pub fn new(encoder: &PlainVit, codebook: &OnlineCodebook, global: GlobalToken) -> Self {
        Self { encoder: encoder.detach(), words: codebook.shared_words().clone(), global }
    }

    /// Class tokens of the last blocks, first to last, normed.  [batch, blocks, dim]
    fn class(&self, tapped: &[Tensor]) -> Result<Option<Tensor>> {
        let normed = |block: &Tensor| self.encoder.norm().forward(&block.narrow(1, 0, 1)?.contiguous()?);
        let tokens = tapped.iter().map(normed).collect::<Result<Vec<_>>>()?;
        Ok(if tokens.is_empty() { None } else { Some(Tensor::cat(&tokens, 1)?) })
    }
}

impl Extractor for MocaExtractor {
    fn features_with(&self, images: &Tensor, extras: Extras) -> Result<Features> {
        let depth = self.encoder.blocks().len();
        let Some(first) = depth.checked_sub(extras.class_blocks) else {
            let message = format!("class tokens of {} blocks: there are {depth}", extras.class_blocks);
            return Err(Error::argument("features", message));
        };
        let mut taps: Vec<usize> = (first + 1..=depth).collect();
        let classes = taps.len();
        taps.extend(extras.before_norm.then_some(depth));
        let PlainTokens { tokens, tapped, grid } = self.encoder.forward(images, None, &taps, &mut DropPath::off())?;
        let (tapped, last) = tapped.split_at(classes);
        let patches = patches_of(&tokens)?.contiguous()?;
        let global = match self.global {
            GlobalToken::Avg => patches.mean(1)?,
            GlobalToken::Cls => tokens.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
        };
        Ok(Features {
            global: Some(global),
            class: self.class(tapped)?,
            before_norm: last.first().map(|last| Ok::<_, Error>(patches_of(last)?.contiguous()?)).transpose()?,
            ..Features::new(grid, patches)
        })
    }

    /// The word nearest by direction.
    fn clusters(&self, patches: &Tensor) -> Result<Option<Tensor>> {
        let (batch, count, dim) = patches.dims3()?;
        let rows = patches.contiguous()?.reshape((batch * count, dim))?;
        let found = nearest(&rows, &self.words, Measure::Dot)?; // Words are of one length, and a token's own does not count.
        Ok(Some(found.indices.reshape((batch, count))?))
    }

    fn patch_size(&self) -> usize {
        self.encoder.settings().patch()
    }
}
